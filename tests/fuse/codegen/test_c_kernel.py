"""Compile printed C with every warning an error, and compare it with the evaluator bit by bit."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import cases
from tests.fuse.codegen.test_llvm_kernel import EXACT, plan_of
from tests.fuse.codegen.test_triton_loops import Common, Everything, everything
from tests.fuse.kernels import evaluated
from tracetorch.fuse.codegen import javascript, triton_loops
from tracetorch.fuse.codegen.c_kernel import c_source
from tracetorch.fuse.codegen.targets import c_target, javascript_target, triton_target
from tracetorch.fuse.codegen.triton_loops import triton_source
from tracetorch.fuse.ir.graph import Graph, Line
from tracetorch.fuse.ir.kernel import (
    PRIVATE,
    Axis,
    Dtype,
    Extent,
    KernelBuilder,
    Multiply,
    Role,
    Schedule,
    Size,
)
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel, step_kernel

CC = shutil.which("cc")
in_c = pytest.mark.skipif(CC is None, reason="there is no C compiler")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
LANE = (Axis.LANE,)


def compare(
    kernel: Schedule, folder: Path, lanes: int, neurons: int, *, exact: bool = True
) -> None:
    source, library = folder / "kernel.c", folder / f"{kernel.name}.so"
    source.write_text(c_source(kernel))
    flags = ("-std=c99", "-O2", "-shared", "-fPIC")
    command = [str(CC), *flags, *WARNINGS, str(source), "-o", str(library), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sizes, given, expected = evaluated(kernel, lanes, neurons, special=exact)
    for buffer in kernel.buffers:
        if buffer.role in PRIVATE:
            shape = [
                sizes[e.value.name] + e.plus if isinstance(e, Size) else e
                for e in buffer.shape
                if not isinstance(e, Extent)
            ]
            given[buffer.label] = np.full([*shape, lanes], np.nan, buffer.dtype.value)
    numbers = [ctypes.c_int64(n) for n in (lanes, neurons, *sizes.values())]
    pointers = [ctypes.c_void_p(given[buffer.label].ctypes.data) for buffer in kernel.buffers]
    getattr(ctypes.CDLL(str(library)), kernel.name)(*numbers, *pointers)
    for name, memory in expected.items():
        if exact:
            assert np.array_equal(given[name], memory, equal_nan=True), name
        else:
            np.testing.assert_allclose(given[name], memory, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.one_in(3)
@in_c
@DTYPES
@pytest.mark.parametrize("name", EXACT)
def test_layers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plan = plan_of(name, dtype)
    for kernel in (forward_kernel(plan), backward_kernel(plan), step_kernel(plan)):
        compare(kernel, tmp_path, 6, 3)
    if (name, dtype) == ("SLIF", torch.float32):
        (tmp_path / "chunks").mkdir()
        compare(forward_kernel(plan, in_chunks=True), tmp_path / "chunks", 6, 3)


@in_c
@DTYPES
def test_every_operation(dtype: torch.dtype, tmp_path: Path) -> None:
    program = cases.trace_layer(everything().to(dtype), 2, dtype)
    plan = Plan(program, "cpu", -1, program.states, True, program.inputs, program.params)
    for kernel in (forward_kernel(plan), backward_kernel(plan)):
        compare(kernel, tmp_path, 6, 3, exact=False)


@in_c
def test_carried_values_are_assigned_all_at_once_and_what_nothing_reads_is_left_out(
    tmp_path: Path,
) -> None:
    k = KernelBuilder("swap", "a swap", Dtype.FLOAT32)
    steps = k.size("steps")
    x = k.buffer(Role.START, "τ", (Extent.LANES,))
    y, z = (k.buffer(Role.END, name, (Extent.LANES,)) for name in "τz")
    with k.lanes():
        value = k.load(x, LANE, "τ")
        k.op("exp", value)
        with k.when(k.op("gt", steps, 1)):
            pass
        with k.loop("t", 0, steps, {"a": value, "b": 1.0, "c": value}) as walk:
            walk.next |= {"a": walk.carried["b"], "b": walk.carried["a"], "c": value}
        k.store(y, LANE, walk.results["b"])
        k.store(z, LANE, k.op("div", 1.0, k.op("mul", k.op("abs", value), -0.0)))
    kernel = k.kernel()
    compare(kernel, tmp_path, 5, 5)
    assert c_source(kernel).isascii()
    for source in (c_source(kernel), triton_source(kernel)):
        assert not any(word in source for word in ("exp(", "expf(", "a_end", "if (", "inside_"))


def test_product_is_an_error_where_a_language_has_none() -> None:
    k = KernelBuilder("multiply", "a product", Dtype.FLOAT32)
    x = k.buffer(Role.INPUT, "x", (1, Extent.LANES))
    y = k.buffer(Role.OUTPUT, "", (1, Extent.LANES))
    matrix = k.buffer(Role.MATRIX, "", (1, Extent.NEURONS, Extent.NEURONS))
    k.append(Multiply(y, (0, *LANE), x, (0, *LANE), matrix, 0, 1))
    for source in (c_source, triton_source):
        with pytest.raises(NotImplementedError, match="prints no Multiply"):
            source(k.kernel())


def test_targets_know_all_operations_and_name_others() -> None:
    targets = [c_target("float32"), c_target("float64"), javascript_target()]
    targets += [triton_target(dtype) for dtype in (torch.float32, torch.float64)]
    layers = [everything(kind=Common), *(cases.layer(name, 3) for name in cases.LAYERS)]
    layers += [cases.layer("LIF", 3, surrogate_derivative=s) for s in cases.SURROGATES]
    for layer in layers:
        graph = cases.trace_layer(layer, 2, torch.float32).graph
        assert [target.unknown_operation(graph) for target in targets] == [None] * 5
    graphs = [
        cases.trace_layer(everything(kind=kind), 2, torch.float64).graph
        for kind in (Common, Everything)
    ] + [Graph((Line("v0", "bessel", ("x",)),), {"output": "v0"})]
    assert [*map(javascript.unknown, graphs)] == [None, "erf", "bessel"]
    assert [*map(triton_loops.unknown, graphs)] == [None, None, "bessel"]
