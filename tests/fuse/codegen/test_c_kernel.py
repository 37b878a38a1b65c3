"""Compile printed C with every warning an error, and compare it with the evaluator bit by bit."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import cases
from tests.fuse.codegen.test_llvm_kernel import EXACT, plan_of
from tests.fuse.codegen.test_triton_loops import everything
from tests.fuse.kernels import evaluated
from tracetorch.fuse.codegen.c_kernel import c_source
from tracetorch.fuse.ir.kernel import PRIVATE, Extent, Schedule, Size
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel, step_kernel

CC = shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="there is no C compiler")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def compiled(kernel: Schedule, folder: Path) -> Any:
    """Return the function of a kernel."""
    source, library = folder / "kernel.c", folder / f"{kernel.name}.so"
    source.write_text(c_source(kernel))
    flags = ("-std=c99", "-O2", "-shared", "-fPIC")
    command = [str(CC), *flags, *WARNINGS, str(source), "-o", str(library), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return getattr(ctypes.CDLL(str(library)), kernel.name)


def compare(
    kernel: Schedule, folder: Path, lanes: int, neurons: int, *, exact: bool = True
) -> None:
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
    compiled(kernel, folder)(*numbers, *pointers)
    for name, memory in expected.items():
        if exact:
            assert np.array_equal(given[name], memory, equal_nan=True), name
        else:
            np.testing.assert_allclose(given[name], memory, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EXACT)
def test_layers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plan = plan_of(name, dtype)
    for kernel in (forward_kernel(plan), backward_kernel(plan), step_kernel(plan)):
        compare(kernel, tmp_path, 6, 3)


def test_chunks(tmp_path: Path) -> None:
    compare(forward_kernel(plan_of("SLIF", torch.float32), in_chunks=True), tmp_path, 6, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_operation(dtype: torch.dtype, tmp_path: Path) -> None:
    program = cases.trace_layer(everything().to(dtype), 2, dtype)
    plan = Plan(program, "cpu", -1, program.states, True, program.inputs, program.params)
    for kernel in (forward_kernel(plan), backward_kernel(plan)):
        compare(kernel, tmp_path, 6, 3, exact=False)


def test_names_beyond_ascii(tmp_path: Path) -> None:
    from tracetorch.fuse.ir.kernel import Axis, Dtype, KernelBuilder, Role

    k = KernelBuilder("copy", "a copy", Dtype.FLOAT32)
    x = k.buffer(Role.START, "τ", (Extent.LANES,))
    y = k.buffer(Role.END, "τ", (Extent.LANES,))
    with k.lanes():
        k.store(y, (Axis.LANE,), k.op("neg", k.load(x, (Axis.LANE,), "τ")))
    assert c_source(k.kernel()).isascii()
    compare(k.kernel(), tmp_path, 5, 5)
