from __future__ import annotations

import pytest
import torch

from tests import cases
from tests.fuse.codegen.test_triton_loops import everything
from tracetorch.fuse.codegen.emitter import Emitter, Target
from tracetorch.fuse.codegen.targets import javascript_target, triton_target
from tracetorch.fuse.ir.graph import Graph, Line

TARGETS = [
    pytest.param(triton_target(dtype), id=f"triton-{dtype}".replace("torch.", ""))
    for dtype in (torch.float32, torch.float64)
]
TARGETS.append(pytest.param(javascript_target(), id="javascript"))
DECAY = Graph(
    (Line("v0", "mul", (0.5, "mem")), Line("v1", "add", ("v0", "x"))), {"next": "v1", "none": 0.0}
)


def test_blocks_are_indented() -> None:
    emitter = Emitter(triton_target(torch.float32))
    with emitter.indent("for i in range(2):"):
        with emitter.indent("if i:"):
            emitter.lines("a = i", "", "b = i")
        emitter.line("c = i")
    with emitter.indent():
        emitter.line("d = 1")
    assert emitter.source() == (
        "for i in range(2):\n    if i:\n        a = i\n\n        b = i\n    c = i\n    d = 1\n"
    )


def test_empty_block_is_filled() -> None:
    emitter = Emitter(triton_target(torch.float32))
    with emitter.indent("for i in range(2):"), emitter.indent("for j in range(2):"):
        pass
    assert emitter.source() == "for i in range(2):\n    for j in range(2):\n        pass\n"


def test_blocks_are_closed_where_the_language_has_braces() -> None:
    emitter = Emitter(javascript_target(), [0.5])
    with emitter.indent("(mem, x) => {"):
        emitter.read_literals([DECAY])
        with emitter.indent("if (mem) {"):
            pass
        results = emitter.graph(DECAY)
        emitter.line(f"return [{results['next']}, {results['none']}];")
    assert emitter.source() == (
        "(mem, x) => {\n    const c0 = literals[0];\n    if (mem) {\n        ;\n    }\n"
        "    const v0 = c0 * mem;\n    const v1 = v0 + x;\n    return [v1, 0];\n}\n"
    )


def test_graph_is_printed_twice_with_suffixes() -> None:
    emitter = Emitter(triton_target(torch.float32), [0.25, 0.5])
    first = emitter.graph(DECAY, {"mem": "S[0]"}, "_0")
    second = emitter.graph(DECAY, {"mem": first["next"]}, "_1")
    assert emitter.source() == (
        "v0_0 = c1 * S[0]\nv1_0 = v0_0 + x\nv0_1 = c1 * v1_0\nv1_1 = v0_1 + x\n"
    )
    assert second == {"next": "v1_1", "none": "zero"}


def test_only_used_literals_are_read() -> None:
    emitter = Emitter(triton_target(torch.float32), [0.25, 0.5])
    emitter.read_literals([DECAY])
    assert emitter.source() == "c1 = tl.full((BLOCK,), tl.load(literals + 1), tl.float32)\n"


def test_spelling_of_literals() -> None:
    nan = float("nan")
    for target, spelled in (
        (javascript_target(), ["0", "(-0)", "1", "true", "false", "c0", "c1"]),
        (triton_target(torch.float32), ["zero", "(-zero)", "one", "true", "(true ^ true)"]),
    ):
        emitter = Emitter(target, [nan, -2.0])
        values = [0.0, -0.0, 1.0, True, False, nan, -2.0]
        assert [emitter.spell(value, {}) for value in values][: len(spelled)] == spelled
        assert emitter.spell("mem", {}) == "mem"
        assert emitter.spell("mem", {"mem": "S[0]"}) == "S[0]"


def test_undeclared_literal_is_an_error() -> None:
    with pytest.raises(KeyError):
        Emitter(triton_target(torch.float32)).graph(DECAY)


@pytest.mark.parametrize("target", TARGETS)
def test_targets_know_all_operations(target: Target) -> None:
    layers = [everything(), *(cases.layer(name, 3) for name in cases.LAYERS)]
    layers += [cases.layer("LIF", 3, surrogate_derivative=s) for s in cases.SURROGATES]
    for layer in layers:
        assert target.unknown_operation(cases.trace_layer(layer, 2, torch.float32).graph) is None
    assert target.unknown_operation(Graph((Line("v0", "bessel", ("x",)),), {})) == "bessel"
