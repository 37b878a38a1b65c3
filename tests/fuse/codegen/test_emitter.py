from __future__ import annotations

import math

import pytest
import torch

from tests import cases
from tests.fuse.codegen.test_triton_loops import Common, Everything, everything
from tracetorch.fuse.codegen import javascript, triton_loops
from tracetorch.fuse.codegen.c_kernel import CPrinter, c_source
from tracetorch.fuse.codegen.emitter import Target
from tracetorch.fuse.codegen.targets import c_target, javascript_target, triton_target
from tracetorch.fuse.codegen.triton_loops import TritonPrinter, triton_source
from tracetorch.fuse.ir.graph import Graph, Line
from tracetorch.fuse.ir.kernel import Axis, Dtype, Extent, KernelBuilder, Multiply, Role, Schedule

LANE = (Axis.LANE,)
TARGETS = [
    pytest.param(make(dtype), id=f"{name}-{dtype}".replace("torch.", ""))
    for name, make in (
        ("triton", triton_target),
        ("C", lambda dtype: c_target(str(dtype).removeprefix("torch."))),
    )
    for dtype in (torch.float32, torch.float64)
]
TARGETS.append(pytest.param(javascript_target(), id="javascript"))


def swapping() -> Schedule:
    """Return a kernel whose loop exchanges what it carries, below an empty condition."""
    k = KernelBuilder("swap", "a swap", Dtype.FLOAT32)
    steps = k.size("steps")
    x = k.buffer(Role.START, "x", (Extent.LANES,))
    y = k.buffer(Role.END, "y", (Extent.LANES,))
    with k.lanes():
        value = k.load(x, LANE, "x")
        k.op("exp", value)
        with k.when(k.op("gt", steps, 1)):
            pass
        with k.loop("t", 0, steps, {"a": value, "b": 1.0}) as walk:
            walk.next |= {"a": walk.carried["b"], "b": walk.carried["a"]}
        k.store(y, LANE, walk.results["a"])
    return k.kernel()


def test_carried_values_are_assigned_all_at_once() -> None:
    source = c_source(swapping())
    body = source[source.index("        for (int64_t v_t") :]
    assert body == (
        "        for (int64_t v_t = 0; v_t < steps; v_t++) {\n"
        "            const float v_moved_a = v_b;\n"
        "            const float v_moved_b = v_a;\n"
        "            v_a = v_moved_a;\n"
        "            v_b = v_moved_b;\n"
        "        }\n"
        "        const float v_a_end = v_a;\n"
        "        end_y[lane] = v_a_end;\n"
        "    }\n"
        "}\n"
    )


def test_what_nothing_reads_is_not_printed() -> None:
    for source in (c_source(swapping()), triton_source(swapping())):
        assert "exp(" not in source.replace("expf(", "exp(")
        assert "b_end" not in source
        assert "if (" not in source
        assert "inside_" not in source


def test_empty_block_is_filled() -> None:
    printer = CPrinter(swapping(), c_target("float32"))
    with printer.indent("if (a) {"), printer.indent("if (b) {"):
        pass
    assert printer.source() == "if (a) {\n    if (b) {\n        ;\n    }\n}\n"


def test_spelling_of_literals() -> None:
    values = [0.0, -0.0, 1.0, True, False, 3]
    for printer, spelled in (
        (TritonPrinter(swapping()), ["zero", "(-zero)", "one", "true", "(true ^ true)", "3"]),
        (
            CPrinter(swapping(), c_target("float32")),
            ["0.0f", "(-0.0f)", "1.0f", "true", "false", "3"],
        ),
    ):
        assert [printer.spell(value) for value in values] == spelled
    assert math.copysign(1.0, values[1]) < 0


def test_product_is_an_error_where_a_language_has_none() -> None:
    k = KernelBuilder("multiply", "a product", Dtype.FLOAT32)
    x = k.buffer(Role.INPUT, "x", (1, Extent.LANES))
    y = k.buffer(Role.OUTPUT, "", (1, Extent.LANES))
    matrix = k.buffer(Role.MATRIX, "", (1, Extent.NEURONS, Extent.NEURONS))
    k.append(Multiply(y, (0, *LANE), x, (0, *LANE), matrix, 0, 1))
    for source in (c_source, triton_source):
        with pytest.raises(NotImplementedError, match="prints no Multiply"):
            source(k.kernel())


@pytest.mark.parametrize("target", TARGETS)
def test_targets_know_all_operations(target: Target) -> None:
    layers = [everything(kind=Common), *(cases.layer(name, 3) for name in cases.LAYERS)]
    layers += [cases.layer("LIF", 3, surrogate_derivative=s) for s in cases.SURROGATES]
    for layer in layers:
        assert target.unknown_operation(cases.trace_layer(layer, 2, torch.float32).graph) is None


def test_unknown_operation_is_named() -> None:
    bessel = Graph((Line("v0", "bessel", ("x",)),), {"output": "v0"})
    common, whole = (
        cases.trace_layer(everything(kind=kind), 2, torch.float64).graph
        for kind in (Common, Everything)
    )
    for unknown, lacks in ((javascript.unknown, "erf"), (triton_loops.unknown, None)):
        assert (unknown(common), unknown(whole), unknown(bessel)) == (None, lacks, "bessel")
