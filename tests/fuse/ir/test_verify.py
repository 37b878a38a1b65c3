"""The verifier passes what the schedules write, and rejects programs that break one rule each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import cases
from tracetorch.fuse.ir.kernel import (
    Axis,
    Buffer,
    Carried,
    Dtype,
    Extent,
    Kernel,
    KernelBuilder,
    Lanes,
    Load,
    Loop,
    Operation,
    Product,
    Role,
    Size,
    Store,
    Value,
)
from tracetorch.fuse.ir.plan import LearningPlan, Plan, RecurrentPlan
from tracetorch.fuse.ir.schedule import (
    backward_kernel,
    forward_kernel,
    recurrent_backward_kernel,
    recurrent_forward_kernel,
    step_kernel,
)
from tracetorch.fuse.ir.verify import InvalidKernel, verify

LANE = Axis.LANE
Write = Callable[[KernelBuilder, Buffer, Buffer, Value], None]


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


def kernel(write: Write) -> Kernel:
    """Return a kernel of two sequences whose loop over time has a body of its own."""
    k = KernelBuilder("broken", "a kernel", Dtype.FLOAT32)
    steps = k.size("steps")
    x = k.buffer(Role.INPUT, "x", (Size(steps), Extent.LANES))
    y = k.buffer(Role.OUTPUT, "", (Size(steps), Extent.LANES))
    with k.lanes(), k.loop("t", 0, steps) as walk:
        write(k, x, y, walk.index)
    return k.kernel()


def copied(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.store(y, (t, LANE), k.load(x, (t, LANE), "now"))


def test_template_is_valid() -> None:
    verify(kernel(copied))


def _after(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.store(y, (k.op("add", t, 1), LANE), 0.0)


def _before(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.store(y, (k.op("sub", t, 1), LANE), 0.0)


def _load_after(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.load(x, (k.op("add", t, 1), LANE), "next")


def _twice(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    value = Value("v", Dtype.FLOAT32, True)
    k.append(Load(value, x, (t, LANE)))
    k.append(Operation(value, "neg", (value,)))


def _undefined(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.store(y, (t, LANE), Value("nowhere", Dtype.FLOAT32, True))


def _mixed(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.op("add", k.load(x, (t, LANE), "now"), t)


def _boolean(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    now = k.load(x, (t, LANE), "now")
    k.op("mul", k.op("gt", now, 0.0), now)


def _unknown(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.op("bessel", k.load(x, (t, LANE), "now"))


def _operands(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.op("fma", 1.0, k.load(x, (t, LANE), "now"))


def _result(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    now = k.load(x, (t, LANE), "now")
    k.append(Operation(Value("v", Dtype.FLOAT32), "neg", (now,)))


def _input(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.store(x, (t, LANE), 0.0)


def _foreign(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.store(Buffer(Role.OUTPUT, "other", Dtype.FLOAT32, y.shape), (t, LANE), 0.0)


def _rank(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.store(y, (LANE,), 0.0)


def _no_lane(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.store(y, (t, 0), 0.0)


def _neuron(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.load(x, (t, Axis.NEURON), "now")


def _lane_index(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    now = k.load(x, (t, LANE), "now")
    k.append(Store(y, (now, LANE), 0.0))


def _number(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.store(y, (t, LANE), 1)


def _scratch(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    held = k.buffer(Role.HELD, "", (1, Extent.LANES))
    k.load(held, (0, LANE), "held")


def _two_names(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    k.buffer(Role.OUTPUT, "", (Extent.LANES,))


def _nested(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    with k.lanes():
        copied(k, x, y, t)


def _condition(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    with k.when(k.op("gt", k.load(x, (t, LANE), "now"), 0.0)):
        k.store(y, (t, LANE), 0.0)


def _scope(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    with k.when(k.op("gt", t, 0)):
        now = k.load(x, (t, LANE), "now")
    k.store(y, (t, LANE), now)


def _unguarded(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    with k.when(k.op("gt", t, 1)):
        pass
    k.load(x, (k.op("sub", t, 1), LANE), "before")


def _bounds(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    with k.loop("u", 0, k.op("add", t, 2)) as inner:
        copied(k, x, y, inner.index)


def _carried(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    with k.loop("u", 0, t, {"s": 0.0}) as inner:
        inner.next["s"] = t


def _one_lane(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
    inside, after = Value("s", Dtype.FLOAT32), Value("e", Dtype.FLOAT32)
    now = k.load(x, (t, LANE), "now")
    k.append(Loop(Value("u", Dtype.INT64), 0, t, False, (Carried(inside, 0.0, now, after),), ()))


BROKEN: list[tuple[Write, str]] = [
    (_after, "behind the last place of output"),
    (_before, "before the first place of output"),
    (_load_after, "behind the last place of input x"),
    (_twice, "assigned twice"),
    (_undefined, "nowhere is read before it is assigned"),
    (_mixed, "is float32, not int64|is int64, not float32"),
    (_boolean, "is bool, not float32"),
    (_unknown, "no bessel of float32"),
    (_operands, "fma takes 3 operands"),
    (_result, "of another type than its operation"),
    (_input, "input x is only read"),
    (_foreign, "not an argument"),
    (_rank, "has 2 dimensions"),
    (_no_lane, "indexed by them alone"),
    (_neuron, "indexed by them alone"),
    (_lane_index, "is float32, not int64"),
    (_number, "1 is no float32"),
    (_scratch, "read before it is written"),
    (_two_names, "two buffers have one name"),
    (_nested, "lanes within lanes"),
    (_condition, "a condition is uniform"),
    (_scope, "outside of its block"),
    (_unguarded, "before the first place of input x"),
    (_bounds, "behind the last place"),
    (_carried, "is int64, not float32"),
    (_one_lane, "what a loop carries changes its type"),
]


@pytest.mark.parametrize(("write", "rule"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_broken_kernel_is_rejected(write: Write, rule: str) -> None:
    with pytest.raises(InvalidKernel, match=rule):
        verify(kernel(write))


def change(found: Kernel, **fields: Any) -> Kernel:
    return replace(found, **fields)


def test_memory_of_lanes_is_for_lanes() -> None:
    valid = kernel(copied)
    (lanes,) = valid.body
    assert isinstance(lanes, Lanes)
    with pytest.raises(InvalidKernel, match="outside of lanes"):
        verify(change(valid, body=lanes.body))


def test_extent_is_an_argument() -> None:
    with pytest.raises(InvalidKernel, match="an extent is not an argument"):
        verify(change(kernel(copied), sizes=()))


def test_size_is_an_integer() -> None:
    valid = kernel(copied)
    real = Value("length", Dtype.FLOAT32)
    with pytest.raises(InvalidKernel, match="a size is a uniform int64"):
        verify(change(valid, sizes=(*valid.sizes, real)))


def test_sum_of_lanes_needs_a_place_of_each() -> None:
    def write(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
        literals = k.buffer(Role.CHECKPOINTS, "", (3,))
        k.store(literals, (0,), k.load(x, (t, LANE), "now"))

    with pytest.raises(InvalidKernel, match="all lanes write to one place"):
        verify(kernel(write))


def test_product_is_not_for_lanes() -> None:
    def write(k: KernelBuilder, x: Buffer, y: Buffer, t: Value) -> None:
        matrix = k.buffer(Role.MATRIX, "", (1, Extent.NEURONS, Extent.NEURONS))
        k.append(Product(y, (t, LANE), x, (t, LANE), matrix, 0, 1))

    with pytest.raises(InvalidKernel, match="a product within lanes"):
        verify(kernel(write))


Place = Callable[[KernelBuilder, Value, Value, Value], tuple[Any, Any, Any]]


def multiplied(place: Place, reverse: bool = False, columns: Extent = Extent.NEURONS) -> Kernel:
    """Return a kernel whose loop over time multiplies a step.

    Args:
        place: returns the target's place, the first matrix and the count, of time, steps, taps.
        reverse: whether targets go down.
        columns: of the matrices.
    """
    k = KernelBuilder("multiplied", "a product", Dtype.FLOAT32)
    steps, taps = k.size("steps"), k.size("taps")
    x = k.buffer(Role.INPUT, "x", (Size(steps), Extent.LANES))
    matrix = k.buffer(Role.MATRIX, "", (Size(taps), Extent.NEURONS, columns))
    y = k.buffer(Role.OUTPUT, "", (Size(steps), Extent.LANES))
    with k.loop("t", 0, steps) as walk:
        at, first, count = place(k, walk.index, steps, taps)
        k.append(
            Product(y, (at, LANE), x, (walk.index, LANE), matrix, first, count, reverse=reverse)
        )
    return k.kernel()


def _steps_left(k: KernelBuilder, t: Value, steps: Value, taps: Value) -> tuple[Any, Any, Any]:
    return k.op("add", t, 1), 0, k.op("min", taps, k.op("sub", k.op("sub", steps, 1), t))


def _steps_gone(k: KernelBuilder, t: Value, steps: Value, taps: Value) -> tuple[Any, Any, Any]:
    return k.op("sub", t, 1), 0, k.op("min", taps, t)


def test_product_reaches_as_far_as_its_target() -> None:
    verify(multiplied(_steps_left))
    verify(multiplied(_steps_gone, reverse=True))


def _one_step_too_many(
    k: KernelBuilder, t: Value, steps: Value, taps: Value
) -> tuple[Any, Any, Any]:
    return k.op("add", t, 1), 0, k.op("min", taps, k.op("sub", steps, t))


def _one_step_too_early(
    k: KernelBuilder, t: Value, steps: Value, taps: Value
) -> tuple[Any, Any, Any]:
    return t, 0, k.op("min", taps, k.op("add", t, 2))


def _one_matrix_too_many(
    k: KernelBuilder, t: Value, steps: Value, taps: Value
) -> tuple[Any, Any, Any]:
    at, _, count = _steps_left(k, t, steps, taps)
    return at, 1, count


def _a_matrix_before_the_first(
    k: KernelBuilder, t: Value, steps: Value, taps: Value
) -> tuple[Any, Any, Any]:
    at, _, count = _steps_left(k, t, steps, taps)
    return at, -1, count


def _all_steps(k: KernelBuilder, t: Value, steps: Value, taps: Value) -> tuple[Any, Any, Any]:
    return 0, 0, steps


@pytest.mark.parametrize(
    ("place", "reverse", "message"),
    [
        (_one_step_too_many, False, "a target may lie behind the last place of output"),
        (_steps_left, True, "a target may lie"),
        (_one_step_too_early, True, "a target may lie before the first place of output"),
        (_one_matrix_too_many, False, "a matrix may lie behind the last place of matrix"),
        (_a_matrix_before_the_first, False, "a matrix may lie before the first place of matrix"),
        (_all_steps, False, "a matrix may lie behind the last place of matrix"),
    ],
)
def test_product_outside_of_memory(place: Place, reverse: bool, message: str) -> None:
    with pytest.raises(InvalidKernel, match=message):
        verify(multiplied(place, reverse))


def test_matrix_of_a_product_is_square() -> None:
    with pytest.raises(InvalidKernel, match="a matrix has rows and columns of neurons"):
        verify(multiplied(_steps_left, columns=Extent.LANES))
