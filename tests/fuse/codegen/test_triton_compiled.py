"""Compile Triton's kernels for GPUs that are not there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu.__main__ import kernels
from benchmarks.gpu.compiled import TARGETS, Compiled, compiled
from tests import cases
from tests.fuse.kernels import kernel_of_graph
from tests.fuse.verify import verify
from tests.fuzz.draw import SEEDS, random_neuron
from tracetorch import fuse, snn
from tracetorch.fuse.codegen import targets
from tracetorch.fuse.codegen.targets import triton_target
from tracetorch.fuse.codegen.triton_loops import arguments
from tracetorch.fuse.ir.graph import BINARY, BOOLEAN, LOGIC, UNARY, Graph, Line, Unfusable
from tracetorch.fuse.ir.kernel import Schedule
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel
from tracetorch.fuse.runtime import gpu

ARITY = {**dict.fromkeys(UNARY, 1), **dict.fromkeys(BINARY, 2), "fma": 3}
NEURONS = (*cases.LAYERS, *cases.NEURONS)
DTYPES = (torch.float32, torch.float64)


def random_steps(count: int) -> list[int]:
    """Return the seeds of the first random steps that become kernels."""
    found: list[int] = []
    for seed in SEEDS:
        try:
            cases.trace_layer(random_neuron(seed, monitors=True), 2, torch.float32)
        except Unfusable:
            continue
        found.append(seed)
    return found[:count]


def layer_of(name: str | int) -> snn.Neuron:
    made: snn.Neuron = (
        random_neuron(name, monitors=True) if isinstance(name, int) else cases.layer(name, 3)
    )
    return made


def is_as_written(found: Compiled, kernel: Schedule) -> None:
    """Assert that a kernel fits into registers, and computes what the step says."""
    # for the largest angles these call another function, which has an array, and registers wait
    angles = re.search(r"libdevice\.(?:sin|cos|tan)\(", found.source) is not None
    assert found.local <= found.spilled + 64 * angles, found
    # a register that waits for the end of the kernel in memory costs no step anything
    assert found.spilled <= 64 if angles else found.spilled_in_loops == 0, found
    # what is loaded some steps ahead waits there: eight blocks fit into a processor's 192 KB
    assert found.shared <= 24 * 1024, found
    assert 0 < found.registers <= 255, found
    assert (found.contracted, found.flushed, found.widened) == (0, 0, 0), found


def combinations() -> list[Any]:
    """Return every step for every target and dtype; of one step in eight one is fast."""
    found = []
    every = [(target, dtype) for target in TARGETS for dtype in DTYPES]
    fast = [(target, dtype) for target in ("sm_80", "sm_90") for dtype in DTYPES]
    for place, name in enumerate((*NEURONS, *random_steps(20))):
        for each in every:
            marks = [] if each == fast[place // 8 % 4] and not place % 8 else [pytest.mark.slow]
            text = f"{name}-{each[0]}-{str(each[1]).removeprefix('torch.')}"
            found.append(pytest.param(name, *each, marks=marks, id=text))
    return found


@pytest.mark.parametrize(("name", "target", "dtype"), combinations())
def test_kernels_compile_as_they_are_written(
    name: str | int, target: str, dtype: torch.dtype
) -> None:
    for kernel in kernels(layer_of(name), dtype, 0.5):
        is_as_written(compiled(kernel, target), kernel)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16])
def test_a_launch_passes_what_was_compiled(
    dtype: torch.dtype, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs in half precision are cast before the kernel, whose arithmetic is float32."""
    schedules = {"forward": forward_kernel, "backward": backward_kernel}
    monkeypatch.setattr(gpu, "_kernel", lambda plan, name: verify(schedules[name](plan)))
    layer = cases.layer("BSRLIF", 3).to(dtype)
    x = cases.sequence(5, 2, 3, dtype=dtype).requires_grad_()
    with fuse.backend("triton"):
        y, _ = layer.forward_sequence(x)
    assert y.dtype == dtype
    y.backward(torch.ones_like(y))
    assert [kernel.name for kernel, _ in launched] == ["forward", "backward"]
    for kernel, passed in launched:
        assert passed.keys() == {*arguments(kernel)}
        assert f"torch.{kernel.dtype.value}" == str(torch.promote_types(dtype, torch.float32))
        for buffer in kernel.buffers:
            given = passed[f"at_{buffer.label}"]
            assert str(given.dtype) == f"torch.{buffer.dtype.value}", buffer
            assert given.is_contiguous(), buffer


def test_one_kernel_serves_all_calls() -> None:
    """Nothing is compiled for a number or an address, which a trial might not have seen."""
    plan = Plan(
        cases.trace_layer(cases.layer("LIF", 3), 2, torch.float32), "triton", -1, (), False, (), ()
    )
    made = gpu._kernel(plan, "forward")
    assert all(each.do_not_specialize or each.is_constexpr for each in made.params)


@pytest.mark.parametrize("target", ["sm_80", pytest.param("gfx942", marks=pytest.mark.slow)])
def test_sizes_of_64_bits_compile(target: str) -> None:
    for kernel in kernels(cases.layer("LIF", 3), torch.float32):
        is_as_written(compiled(kernel, target, large=True), kernel)


@pytest.mark.parametrize("target", ["sm_80", pytest.param("gfx942", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_compiles(target: str, dtype: torch.dtype) -> None:
    truths = [Line("b0", "gt", ("x", "y")), Line("b1", "lt", ("y", "z"))]
    lines, results = list(truths), {}
    for op in triton_target(dtype).expressions:
        if op in ("float", "where"):
            made = Line(f"v_{op}", op, ("b0", "x", "y")[: 3 if op == "where" else 1])
        elif op in BOOLEAN:
            operands = ("b0", "b1")[: 1 if op == "not" else 2] if op in LOGIC else ("x", "y")
            lines.append(Line(f"b_{op}", op, operands))
            made = Line(f"v_{op}", "float", (f"b_{op}",))
        elif op in ARITY:
            made = Line(f"v_{op}", op, ("x", "y", "z")[: ARITY[op]])
        else:
            assert op == "double"
            continue
        lines.append(made)
        results[op] = made.name
    kernel = kernel_of_graph(Graph(tuple(lines), results), dtype)
    found = compiled(kernel, target)
    assert (found.contracted, found.flushed, found.widened, found.shared) == (0, 0, 0, 0), found


# Faults that are planted


@pytest.mark.parametrize(
    ("name", "product", "fault", "options"),
    [
        ("LIF", None, "contracted", {"enable_fp_fusion": True}),
        ("BSRLIF", None, "spilled_in_loops", {"maxnreg": 24}),
        ("LIF", "libdevice.abs({})", "flushed", {"enable_reflect_ftz": True}),
        ("LIF", "({0}.to(tl.float64) * {1}).to(tl.float32)", "widened", {}),
    ],
)
def test_other_arithmetic_and_registers_in_memory_are_seen(
    name: str,
    product: str | None,
    fault: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if product is not None:
        monkeypatch.setitem(targets._TRITON_FLOAT32, "mul", product)
    _, backward = kernels(cases.layer(name, 3), torch.float32)
    assert getattr(compiled(backward, "sm_80", **options), fault) > 0
