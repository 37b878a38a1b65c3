"""The verifier passes what the schedules write, and rejects programs that break one rule each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import cases
from tests.fuse.verify import InvalidKernel, verify
from tracetorch.fuse.ir.kernel import (
    Axis,
    Buffer,
    Dtype,
    Extent,
    KernelBuilder,
    Multiply,
    Role,
    Schedule,
    Size,
    Var,
)
from tracetorch.fuse.ir.plan import LearningPlan, Plan, RecurrentPlan
from tracetorch.fuse.ir.schedule import (
    backward_kernel,
    forward_kernel,
    recurrent_backward_kernel,
    recurrent_forward_kernel,
    step_kernel,
)

LANE = Axis.LANE
Write = Callable[[KernelBuilder, Buffer, Buffer, Var], object]


@pytest.mark.parametrize("name", [*cases.LAYERS, *cases.NEURONS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_schedules_are_valid(name: str, dtype: torch.dtype) -> None:
    program = cases.trace_layer(cases.layer(name, 3).to(dtype), 2, dtype)
    needs = (True, program.inputs, program.params)
    for record in ((), program.states):
        plan = Plan(program, "cpu", -1, record, *needs)
        verify(forward_kernel(plan, in_chunks=True))
        for schedule in (forward_kernel, backward_kernel, step_kernel):
            verify(schedule(plan))
    if len(program.inputs) == 1:
        for kind in (RecurrentPlan, LearningPlan):
            inner = kind(program, "cpu", -1, (), *needs)
            verify(recurrent_forward_kernel(inner))
            verify(recurrent_backward_kernel(inner))


def kernel(write: Write) -> Schedule:
    """Return a kernel of two sequences whose loop over time has a body of its own."""
    k = KernelBuilder("broken", "a kernel", Dtype.FLOAT32)
    steps = k.size("steps")
    x = k.buffer(Role.INPUT, "x", (Size(steps), Extent.LANES))
    y = k.buffer(Role.OUTPUT, "", (Size(steps), Extent.LANES))
    with k.lanes(), k.loop("t", 0, steps) as walk:
        write(k, x, y, walk.index)
    return k.kernel()


def copied(k: KernelBuilder, x: Buffer, y: Buffer, t: Any) -> None:
    k.store(y, (t, LANE), k.load(x, (t, LANE), "now"))


def _unguarded(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    with k.when(k.op("gt", t, 1)):
        pass
    k.load(x, (k.op("sub", t, 1), LANE), "before")


def _further(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    with k.loop("u", 0, k.op("add", t, 2)) as inner:
        copied(k, x, y, inner.index)


BROKEN: list[tuple[str, Write]] = [
    ("behind the last place of output",
     lambda k, x, y, t: k.store(y, (k.op("add", t, 1), LANE), 0.0)),
    ("before the first place of output",
     lambda k, x, y, t: k.store(y, (k.op("sub", t, 1), LANE), 0.0)),
    ("behind the last place of input_x",
     lambda k, x, y, t: k.load(x, (k.op("add", t, 1), LANE), "next")),
    ("behind the last place", lambda k, x, y, t: copied(k, x, y, k.op("mul", t, t))),
    ("behind the last place", _further),
    ("before the first place of input_x", _unguarded),
    ("a remainder is of a number that is not negative",
     lambda k, x, y, t: k.op("rem", k.op("sub", t, 1), 2)),
    ("by one above 0", lambda k, x, y, t: k.op("rem", t, 0)),
    ("input_x is only read", lambda k, x, y, t: k.store(x, (t, LANE), 0.0)),
    ("not an argument", lambda k, x, y, t: k.store(replace(y, name="other"), (t, LANE), 0.0)),
    ("has 2 dimensions", lambda k, x, y, t: k.store(y, (LANE,), 0.0)),
    ("indexed by them alone", lambda k, x, y, t: k.load(x, (t, Axis.NEURON), "now")),
    ("read before it is written", lambda k, x, y, t: k.load(
        k.buffer(Role.SCRATCH, "", (1, Extent.LANES)), (0, LANE), "kept")),
    ("all lanes write to one place", lambda k, x, y, t: k.store(
        k.buffer(Role.CHECKPOINTS, "", (3,)), (0,), k.load(x, (t, LANE), "now"))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "write"), BROKEN)
def test_broken_kernel_is_rejected(rule: str, write: Write) -> None:
    verify(kernel(copied))
    with pytest.raises(InvalidKernel, match=rule):
        verify(kernel(write))


Place = Callable[[KernelBuilder, Var, Var, Var], tuple[Any, Any, Any]]


def multiplied(place: Place, reverse: bool = False) -> Schedule:
    """Return a kernel whose loop over time multiplies a step.

    ``place`` returns the target's place, the first matrix and the count, of time, steps, taps.
    """
    k = KernelBuilder("multiplied", "a product", Dtype.FLOAT32)
    steps, taps = k.size("steps"), k.size("taps")
    x = k.buffer(Role.INPUT, "x", (Size(steps), Extent.LANES))
    matrix = k.buffer(Role.MATRIX, "", (Size(taps), Extent.NEURONS, Extent.NEURONS))
    y = k.buffer(Role.OUTPUT, "", (Size(steps), Extent.LANES))
    with k.loop("t", 0, steps) as walk:
        at, first, count = place(k, walk.index, steps, taps)
        source = (walk.index, LANE)
        k.append(Multiply(y, (at, LANE), x, source, matrix, first, count, reverse=reverse))
    return k.kernel()


def _left(first: int = 0) -> Place:
    """Return the place of all steps that are left."""
    return lambda k, t, steps, taps: (
        *(k.op("add", t, 1), first),
        k.op("min", taps, k.op("sub", k.op("sub", steps, 1), t)),
    )


PLACES: list[tuple[Place, bool, str]] = [
    (lambda k, t, steps, taps: (*(k.op("add", t, 1), 0), k.op("min", taps, k.op("sub", steps, t))),
     False, "a target may lie behind the last place of output"),
    (lambda k, t, steps, taps: (t, 0, k.op("min", taps, k.op("add", t, 2))), True,
     "a target may lie before the first place of output"),
    (_left(1), False, "a matrix may lie behind the last place of matrix"),
    (_left(-1), False, "a matrix may lie before the first place of matrix"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "reverse", "message"), PLACES)
def test_product_outside_of_memory(place: Place, reverse: bool, message: str) -> None:
    with pytest.raises(InvalidKernel, match=message):
        verify(multiplied(place, reverse))


def test_product_reaches_as_far_as_its_target() -> None:
    verify(multiplied(_left()))
    gone: Place = lambda k, t, steps, taps: (k.op("sub", t, 1), 0, k.op("min", taps, t))  # noqa: E731
    verify(multiplied(gone, reverse=True))
