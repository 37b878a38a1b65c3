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
    Carried,
    Dtype,
    Extent,
    For,
    KernelBuilder,
    Lanes,
    Load,
    Multiply,
    Operation,
    Role,
    Schedule,
    Size,
    Store,
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
from tracetorch.fuse.runtime.allocation import LARGEST

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


def copied(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    k.store(y, (t, LANE), k.load(x, (t, LANE), "now"))


def _now(k: KernelBuilder, x: Buffer, t: Var) -> Var:
    return k.load(x, (t, LANE), "now")


def _twice(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    value = Var("v", Dtype.FLOAT32, True)
    k.append(Load(value, x, (t, LANE)))
    k.append(Operation(value, "neg", (value,)))


def _nested(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    with k.lanes():
        copied(k, x, y, t)


def _condition(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    with k.when(k.op("gt", _now(k, x, t), 0.0)):
        k.store(y, (t, LANE), 0.0)


def _scope(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    with k.when(k.op("gt", t, 0)):
        now = _now(k, x, t)
    k.store(y, (t, LANE), now)


def _unguarded(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    with k.when(k.op("gt", t, 1)):
        pass
    k.load(x, (k.op("sub", t, 1), LANE), "before")


def _bounds(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    with k.loop("u", 0, k.op("add", t, 2)) as inner:
        copied(k, x, y, inner.index)


def _carried(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    with k.loop("u", 0, t, {"s": 0.0}) as inner:
        inner.next["s"] = t


def _one_lane(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    inside, after = Var("s", Dtype.FLOAT32), Var("e", Dtype.FLOAT32)
    now = _now(k, x, t)
    k.append(For(Var("u", Dtype.INT64), 0, t, False, (Carried(inside, 0.0, now, after),), ()))


def _product(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
    matrix = k.buffer(Role.MATRIX, "", (1, Extent.NEURONS, Extent.NEURONS))
    k.append(Multiply(y, (t, LANE), x, (t, LANE), matrix, 0, 1))


BROKEN: dict[str, Write] = {
    "behind the last place of output":
        lambda k, x, y, t: k.store(y, (k.op("add", t, 1), LANE), 0.0),
    "before the first place of output":
        lambda k, x, y, t: k.store(y, (k.op("sub", t, 1), LANE), 0.0),
    "behind the last place of input_x":
        lambda k, x, y, t: k.load(x, (k.op("add", t, 1), LANE), "next"),
    "assigned twice": _twice,
    "nowhere is read before it is assigned":
        lambda k, x, y, t: k.store(y, (t, LANE), Var("nowhere", Dtype.FLOAT32, True)),
    "is float32, not int64|is int64, not float32": lambda k, x, y, t: k.op("add", _now(k, x, t), t),
    "is bool, not float32":
        lambda k, x, y, t: k.op("mul", k.op("gt", _now(k, x, t), 0.0), _now(k, x, t)),
    "no bessel of float32": lambda k, x, y, t: k.op("bessel", _now(k, x, t)),
    "a remainder is of a number that is not negative":
        lambda k, x, y, t: k.op("rem", k.op("sub", t, 1), 2),
    "by one above 0": lambda k, x, y, t: k.op("rem", t, 0),
    "fma takes 3 operands": lambda k, x, y, t: k.op("fma", 1.0, _now(k, x, t)),
    "of another type than its operation": lambda k, x, y, t: k.append(
        Operation(Var("v", Dtype.FLOAT32), "neg", (_now(k, x, t),))
    ),
    "input_x is only read": lambda k, x, y, t: k.store(x, (t, LANE), 0.0),
    "not an argument": lambda k, x, y, t: k.store(replace(y, name="other"), (t, LANE), 0.0),
    "has 2 dimensions": lambda k, x, y, t: k.store(y, (LANE,), 0.0),
    "a dimension of lanes or neurons is indexed by them alone":
        lambda k, x, y, t: k.store(y, (t, 0), 0.0),
    "indexed by them alone": lambda k, x, y, t: k.load(x, (t, Axis.NEURON), "now"),
    "is float32, not int64": lambda k, x, y, t: k.append(Store(y, (_now(k, x, t), LANE), 0.0)),
    "1 is no float32": lambda k, x, y, t: k.store(y, (t, LANE), 1),
    "read before it is written": lambda k, x, y, t: k.load(
        k.buffer(Role.SCRATCH, "", (1, Extent.LANES)), (0, LANE), "kept"
    ),
    "two buffers have one name": lambda k, x, y, t: k.buffer(Role.OUTPUT, "", (Extent.LANES,)),
    "lanes within lanes": _nested,
    "a condition is uniform": _condition,
    "outside of its block": _scope,
    "before the first place of input_x": _unguarded,
    "behind the last place": _bounds,
    "is int64, not float32": _carried,
    "what a loop carries changes its type": _one_lane,
    "all lanes write to one place": lambda k, x, y, t: k.store(
        k.buffer(Role.CHECKPOINTS, "", (3,)), (0,), _now(k, x, t)
    ),
    "a product within lanes": _product,
}  # fmt: skip


@pytest.mark.parametrize("rule", BROKEN)
def test_broken_kernel_is_rejected(rule: str) -> None:
    with pytest.raises(InvalidKernel, match=rule):
        verify(kernel(BROKEN[rule]))


def _times(*factors: Any) -> Write:
    """Return a body that stores at a product of time and numbers."""

    def write(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
        for factor in factors:
            t = k.op("mul", t, factor)
        k.store(y, (t, LANE), 0.0)

    return write


def _repeated(op: str, count: int) -> Write:
    """Return a body that stores where time ends up, added to or multiplied by itself and again."""

    def write(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
        at = k.op("sub", t, t) if op == "add" else t
        for _ in range(count):
            at = k.op(op, k.op("add", at, LARGEST) if op == "add" else at, at)
        k.store(y, (k.op("mul", at, 0), LANE), 0.0)

    return write


def _far(start: Any, stop: Any) -> Write:
    def write(k: KernelBuilder, x: Buffer, y: Buffer, t: Var) -> None:
        with k.loop("u", start, stop, reverse=True):
            copied(k, x, y, t)

    return write


# Without bounds each of them is 0, or in bounds.
WIDE: dict[str, Write] = {
    "wraps to 0": _times(2**62, 4),
    "a number of 65 bits": _times(2**64),
    "wraps and comes back": lambda k, x, y, t: k.store(
        y, (k.op("sub", k.op("add", t, 2**63 - 1), 2**63 - 1), LANE), 0.0
    ),
    "below": lambda k, x, y, t: k.store(
        y, (k.op("min", t, k.op("sub", k.op("sub", 0, t), 2**63 - 1)), LANE), 0.0
    ),
    "three sizes": lambda k, x, y, t: k.store(
        y, (k.op("min", t, k.op("mul", k.op("mul", t, t), t)), LANE), 0.0
    ),
    "sums that double": _repeated("add", 40),
    "squares": _repeated("mul", 2),
    "a loop from the first integer": _far(-(2**63), 0),
    "a loop to more than the last integer": _far(0, 2**63),
}


@pytest.mark.parametrize("name", WIDE)
def test_integers_have_64_bits(name: str) -> None:
    with pytest.raises(InvalidKernel, match="an integer may need more than 64 bits"):
        verify(kernel(WIDE[name]))


def test_integers_of_64_bits() -> None:
    verify(kernel(lambda k, x, y, t: k.op("mul", t, 2**32)))
    verify(kernel(lambda k, x, y, t: k.op("add", t, 2**63 - LARGEST)))
    verify(kernel(_far(1 - 2**63, 2**63 - 1)))


def test_what_is_around_the_lanes() -> None:
    valid = verify(kernel(copied))
    (lanes,) = valid.body
    assert isinstance(lanes, Lanes)
    real = Var("length", Dtype.FLOAT32)
    for change, rule in (
        ({"body": lanes.body}, "outside of lanes"),
        ({"sizes": ()}, "an extent is not an argument"),
        ({"sizes": (*valid.sizes, real)}, "a size is a uniform int64"),
    ):
        with pytest.raises(InvalidKernel, match=rule):
            verify(replace(valid, **change))


Place = Callable[[KernelBuilder, Var, Var, Var], tuple[Any, Any, Any]]


def multiplied(place: Place, reverse: bool = False, columns: Extent = Extent.NEURONS) -> Schedule:
    """Return a kernel whose loop over time multiplies a step.

    ``place`` returns the target's place, the first matrix and the count, of time, steps, taps.
    """
    k = KernelBuilder("multiplied", "a product", Dtype.FLOAT32)
    steps, taps = k.size("steps"), k.size("taps")
    x = k.buffer(Role.INPUT, "x", (Size(steps), Extent.LANES))
    matrix = k.buffer(Role.MATRIX, "", (Size(taps), Extent.NEURONS, columns))
    y = k.buffer(Role.OUTPUT, "", (Size(steps), Extent.LANES))
    with k.loop("t", 0, steps) as walk:
        at, first, count = place(k, walk.index, steps, taps)
        k.append(
            Multiply(y, (at, LANE), x, (walk.index, LANE), matrix, first, count, reverse=reverse)
        )
    return k.kernel()


def _steps_left(k: KernelBuilder, t: Var, steps: Var, taps: Var) -> tuple[Any, Any, Any]:
    return k.op("add", t, 1), 0, k.op("min", taps, k.op("sub", k.op("sub", steps, 1), t))


def _steps_gone(k: KernelBuilder, t: Var, steps: Var, taps: Var) -> tuple[Any, Any, Any]:
    return k.op("sub", t, 1), 0, k.op("min", taps, t)


def test_product_reaches_as_far_as_its_target() -> None:
    verify(multiplied(_steps_left))
    verify(multiplied(_steps_gone, reverse=True))


def _from(first: int) -> Place:
    """Return the place that is right but for the first matrix."""

    def place(k: KernelBuilder, t: Var, steps: Var, taps: Var) -> tuple[Any, Any, Any]:
        at, _, count = _steps_left(k, t, steps, taps)
        return at, first, count

    return place


PLACES: list[tuple[Place, bool, str]] = [
    (lambda k, t, steps, taps: (*(k.op("add", t, 1), 0), k.op("min", taps, k.op("sub", steps, t))),
     False, "a target may lie behind the last place of output"),
    (_steps_left, True, "a target may lie"),
    (lambda k, t, steps, taps: (t, 0, k.op("min", taps, k.op("add", t, 2))), True,
     "a target may lie before the first place of output"),
    (_from(1), False, "a matrix may lie behind the last place of matrix"),
    (_from(-1), False, "a matrix may lie before the first place of matrix"),
    (lambda k, t, steps, taps: (0, 0, steps), False, "a matrix may lie behind the last place"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "reverse", "message"), PLACES)
def test_product_outside_of_memory(place: Place, reverse: bool, message: str) -> None:
    with pytest.raises(InvalidKernel, match=message):
        verify(multiplied(place, reverse))


def test_matrix_of_a_product_is_square() -> None:
    with pytest.raises(InvalidKernel, match="a matrix has rows and columns of neurons"):
        verify(multiplied(_steps_left, columns=Extent.LANES))
