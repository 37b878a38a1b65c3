"""Find the width of every integer of a program, and write its steps in integer arithmetic.

The ranges of all arrays are found by interval arithmetic from the range of the inputs, over any
number of steps; an array is of the narrowest type that holds its range. A number with a fraction
(``mem * 2^-8`` before it is rounded) is an integer times a power of two here: what was exact in the
float that the model computes with is exact in integers, and rounding is a shift.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tracetorch.export.c_code.stages import (
    Array,
    Pointwise,
    Pool,
    Product,
    Role,
    Stage,
    StepProgram,
    Sum,
    reads_of,
)
from tracetorch.fuse.ir.graph import COMPARISONS, Line
from tracetorch.fuse.ir.graph import Value as GraphValue
from tracetorch.fuse.ir.intervals import (
    MOST_EXACT,
    RULES,
    Bounds,
    Interval,
    bounds,
    check_reach,
    constant,
    hull,
    interval_of,
    invariant,
    weighted_sums,
)
from tracetorch.fuse.ir.kernel import Axis, Dtype, Extent, KernelBuilder, Operand, Schedule, Var
from tracetorch.fuse.ir.kernel import Role as BufferRole
from tracetorch.integers.arithmetic import stored_bits


@dataclass(frozen=True)
class Widths:
    """Intervals of the arrays of an integer program, over any number of steps, and of their lines.

    Args:
        ranges: of each array.
        points: bits behind the binary point of each table that has any.
        dtype: of the arithmetic that was traced.
    """

    ranges: Mapping[Array, Interval]
    points: Mapping[Array, int]
    dtype: torch.dtype

    def type_of(self, array: Array) -> str:
        """Return the narrowest C type that holds an array."""
        if array.boolean:
            return "bool"
        found = self.ranges[array]
        scale = 2.0 ** self.points.get(array, 0)
        low, high = float(np.min(found.low)) * scale, float(np.max(found.high)) * scale
        return f"int{stored_bits(low, high)}_t"

    def lines(self, stage: Pointwise) -> Bounds:
        inputs = {name: self.ranges[view.array] for name, view in stage.reads.items()}
        try:
            return bounds(stage.graph, inputs, self.dtype)
        except ValueError as error:
            raise ValueError(f"{stage.path}: {error}") from None


def found_widths(program: StepProgram, inputs: Mapping[str, Interval]) -> Widths:
    """Return the intervals of all arrays over any number of steps, of inputs' intervals by name."""
    dtype = torch.float64 if program.double else torch.float32
    start = {array: inputs[name] for name, array in program.inputs.items()}
    starts = {
        array: _numbers(array.values, f"the state {name} starts from", 0)
        for name, array in program.states.items()
    }
    for stage in program.stages:
        for table in (v.array for v in reads_of(stage) if v.array.role is Role.TABLE):
            if table not in start:
                start[table] = _numbers(table.values, f"{stage.path} has the constant", -31)
    points = {a: int(-np.min(r.step)) for a, r in start.items() if np.min(r.step) < 0}

    def step(
        states: Mapping[Array, Interval], last: bool
    ) -> tuple[dict[Array, Interval], dict[Array, Interval]]:
        """Return the ranges of what one step computes, and those that the states get."""
        for name, array in program.states.items() if last else ():
            if states[array].magnitude > MOST_EXACT[dtype]:
                raise ValueError(
                    f"the state {name} can grow beyond {MOST_EXACT[dtype]:.0f}, up to where the "
                    "float that the model computes with holds every integer: saturate it, "
                    "tt.integers.saturate."
                )
        known, ends = {**start, **states}, dict[Array, Interval]()
        for stage in program.stages:
            results, fault = _computed(stage, Widths(known, points, dtype), last)
            broken = [a for a, each in results if not a.boolean and np.min(each.step) < 0]
            if last and (broken or fault):
                raise ValueError(
                    f"{stage.path} is not exact in integers: "
                    f"{fault or 'it computes what is no integer'}. Quantise the model, "
                    "tt.quantize, give fewer bits, smaller inputs, or x.double() and "
                    "model.double(); or export with dtype='float32'."
                )
            for array, found in results:
                into = ends if array.role is Role.STATE else known
                into[array] = hull(into[array], found) if array in into else found
        return known, ends

    return Widths(invariant(starts, step)[0], points, dtype)


def _numbers(values: Tensor, what: str, finest: int) -> Interval:
    """Return the range of constants that are multiples of ``2^finest``."""
    found = interval_of(values, finest)
    if found.step == -np.inf:
        wrong = next(n for n in values.flatten().tolist() if constant(n).step < finest)
        raise ValueError(
            f"{what} {wrong:g}, which is no integer and no multiple of 2^{finest}. Quantise the "
            "model, or export it with dtype='float32'."
        )
    return found


def _computed(stage: Stage, known: Widths, check: bool) -> tuple[list[tuple[Array, Interval]], str]:
    """Return the range of each array that a stage writes to, and what need not be exact."""
    if isinstance(stage, Pointwise):
        lines = known.lines(stage)
        return [(view.array, lines.outputs[n]) for n, view in stage.writes.items()], lines.fault
    source, rows, bias = known.ranges[stage.source.array], torch.ones(1, 1), None
    if isinstance(stage, Product):
        rows, bias = stage.weight.flatten(1), stage.bias
        if any(not torch.equal(each, each.round()) for each in (rows, bias) if each is not None):
            raise ValueError(
                f"{stage.path} has weights that are no integers. Quantise the model, tt.quantize, "
                "or export it with dtype='float32'."
            )
    elif isinstance(stage, Sum):
        rows = torch.ones(1, math.prod(stage.source.shape[len(stage.source.shape) - stage.dims :]))
    elif isinstance(stage, Pool) and not stage.maximum:
        rows = torch.ones(1, math.prod(stage.kernel))
    if isinstance(stage, Pool | Sum) and rows.numel() > 1 and stage.divisor != 1:
        raise ValueError(
            f"{stage.path} averages, and an average is no integer. Sum, tt.integers.SumPool2d for "
            "a pool, or export with dtype='float32'."
        )
    if rows.numel() == 1 and not isinstance(stage, Product):
        return [(stage.target.array, source)], ""
    sums, reached = weighted_sums(rows, bias, source)
    if check:
        check_reach(stage.path, reached, known.dtype)
    return [(stage.target.array, sums)], ""


# Arithmetic


@dataclass(frozen=True)
class Number:
    """A number of the graph: ``value / 2^point``."""

    value: Any  # an integer or a truth value: a float or a bool where it is constant
    point: int = 0  # bits behind the binary point
    # a positive number that it is still to be divided by, where a quotient is no integer; only its
    # sign, its floor and its trunc are ever needed
    divisor: Any = None


class IntegerLines(ABC):
    """Integer arithmetic of a pointwise stage's lines; a child appends the operations."""

    values: dict[str, Any]
    most_bits: ClassVar[float] = math.inf  # by which any number may be shifted

    def __init__(self, stage: Pointwise, widths: Widths) -> None:
        self.stage, self.widths, self.table = stage, widths, widths.lines(stage)

    @abstractmethod
    def truth(self, op: str, *args: Any) -> Any:
        """Append a comparison of integers, or an operation on truth values."""

    @abstractmethod
    def op(self, op: str, *args: Any, like: Interval | None = None, point: int = 0) -> Any:
        """Append an operation; ``div`` rounds towards zero, ``shift`` and ``quotient`` down."""

    def loaded(self, value: Any, array: Array) -> Number:
        return Number(value, self.widths.points.get(array, 0))

    def stored(self, value: GraphValue) -> Any:
        """Return the integer that is stored for a value."""
        result = self._whole(self.operand(value))
        # a multiple of 2^point
        return self.op("div", result.value, 2**result.point) if result.point else result.value

    def refused(self, what: str) -> ValueError:
        return ValueError(
            f"{self.stage.path} computes {what}, which is no integer arithmetic. Export it with "
            "dtype='float32'."
        )

    def _whole(self, number: Number) -> Number:
        """Return a number; raise where it is still to be divided."""
        if number.divisor is not None:
            raise self.refused("with a quotient")
        return number

    def operand(self, value: GraphValue) -> Number:
        if isinstance(value, str):
            found: Number = self.values[value]
            return found
        if isinstance(value, bool):
            return Number(value)
        number = float(self.table[value].low)  # as the dtype of the model has it
        if not math.isfinite(number):
            raise self.refused(f"with {number}")
        numerator, denominator = number.as_integer_ratio()
        return Number(float(numerator), denominator.bit_length() - 1)

    def _aligned(
        self, numbers: Sequence[Number], spans: Sequence[Interval]
    ) -> tuple[list[Any], int]:
        """Return numbers with as many bits behind their binary points as the longest has."""
        point = max(self._whole(number).point for number in numbers)
        values: list[Any] = []
        for number, span in zip(numbers, spans, strict=True):
            value, factor = number.value, 2 ** (point - number.point)
            if factor > 1 and not is_constant(value):
                value = self.op("mul", value, factor, like=span, point=point)
            elif factor > 1:
                value = float(value * factor)
            values.append(value)
        return values, point

    def _product(self, args: Sequence[Number], like: Interval) -> Number:
        one, other = map(self._whole, args)
        point = one.point + other.point
        for each, rest in ((one, other), (other, one)):
            if each.value == 1.0:
                return Number(rest.value, point)
        return Number(self.op("mul", one.value, other.value, like=like, point=point), point)

    def line(self, line: Line) -> Number:
        args = [self.operand(arg) for arg in line.args]
        spans = [self.table[arg] for arg in line.args]
        like, op = self.table[line.name], line.op
        if op in ("and", "or", "xor", "not"):
            return Number(self.truth(op, *(arg.value for arg in args)))
        if op == "float":
            return Number(self.op("float", args[0].value, like=like))
        if op == "neg":
            negative = self.op("neg", args[0].value, like=like, point=args[0].point)
            return replace(args[0], value=negative)
        if op in ("floor", "trunc", "ceil", "round"):
            return self._rounded(op, args[0])
        if op in COMPARISONS:
            # of a quotient by a positive number, the sign is that of the dividend
            if any(arg.value == 0.0 for arg in args):
                args = [Number(arg.value) if arg.divisor is not None else arg for arg in args]
            return Number(self.truth(op, *self._aligned(args, spans)[0]))
        if op == "mul":
            return self._product(args, like)
        if op == "div":
            by = args[1]
            if is_constant(by.value) and math.frexp(by.value)[0] == 0.5:  # a power of two
                point = self._whole(args[0]).point + math.frexp(by.value)[1] - 1 - by.point
                if 0 <= point < self.most_bits:
                    return replace(args[0], point=point)
            # kept undone: its rounding, or its sign, is done at once
            if not np.all(np.greater(spans[1].low, 0)):
                raise self.refused("a quotient by what may be zero or negative")
            (value, divisor), _ = self._aligned(args, spans)
            return Number(value, 0, divisor)
        if op == "fma":
            span = RULES["mul"](*spans[:2])
            args, spans, op = [self._product(args[:2], span), args[2]], [span, spans[2]], "add"
        if op == "add" and args[1].value == 0.0:
            return args[0]
        if op not in ("abs", "add", "sub", "max", "min", "where"):
            raise self.refused(op)
        choice = [args.pop(0).value] if op == "where" else []
        spans = spans[len(choice) :]
        values, point = self._aligned(args, spans)
        like = reduce(hull, spans, like)
        return Number(self.op(op, *choice, *values, like=like, point=point), point)

    def _rounded(self, op: str, number: Number) -> Number:
        value, point = number.value, number.point
        if number.divisor is not None and op in ("trunc", "floor"):
            divided = {"trunc": "div", "floor": "quotient"}[op]
            return Number(self.op(divided, value, number.divisor))
        if not self._whole(number).point:
            return number
        if is_constant(value):
            function = {"floor": np.floor, "trunc": np.trunc, "ceil": np.ceil, "round": np.rint}[op]
            return Number(float(function(float(value) / 2**point)))
        if op == "trunc":
            return Number(self.op("div", value, 2**point))
        below = self.op("shift", value, point)
        if op == "floor":
            return Number(below)
        rest = self.op("sub", value, self.op("mul", below, 2**point))
        if op == "ceil":  # not the floor of the negative: the least integer of a width has none
            up = self.truth("gt", rest, 0.0)
        else:  # to the nearest; of two equally near ones to the even one
            even = self.op("mul", self.op("shift", below, 1), 2)
            odd = self.truth("ne", self.op("sub", below, even), 0.0)
            half = 2.0 ** (point - 1)
            tie = self.truth("and", self.truth("eq", rest, half), odd)
            up = self.truth("or", self.truth("gt", rest, half), tie)
        return Number(self.op("add", below, self.op("float", up)))


def is_constant(value: Any) -> bool:
    """Whether a value is a number, not something computed."""
    return isinstance(value, (bool, int, float))


_LANE = (Axis.LANE,)


class StageKernel:
    """Builder of the kernel of a stage; ``values`` holds what was loaded and computed, by name."""

    dtype = Dtype.FLOAT32

    def __init__(self, stage: Pointwise) -> None:
        self.stage, self.k = stage, KernelBuilder("stage", "", self.dtype)
        self.values: dict[str, Any] = {}

    def kernel(self) -> Schedule:
        k, stage = self.k, self.stage
        buffers = {
            (role, name): k.buffer(role, name, (Extent.LANES,), self.buffer_dtype(view.array))
            for role, views in ((BufferRole.START, stage.reads), (BufferRole.END, stage.writes))
            for name, view in views.items()
        }
        with k.lanes():
            for name, view in stage.reads.items():
                loaded = k.load(buffers[BufferRole.START, name], _LANE, name)
                self.values[name] = self.loaded(loaded, view.array)
            for line in stage.graph.lines:
                self.values[line.name] = self.line(line)
            for name in stage.writes:
                k.store(
                    buffers[BufferRole.END, name], _LANE, self.stored(stage.graph.outputs[name])
                )
        return k.kernel()

    def buffer_dtype(self, array: Array) -> Dtype:
        return Dtype.BOOL if array.boolean else self.dtype

    def loaded(self, value: Operand, array: Array) -> Any:
        return value

    def line(self, line: Line) -> Any:
        return self.k.op(line.op, *map(self.stored, line.args))

    def stored(self, value: GraphValue) -> Operand:
        """Return the operand of a value of the graph."""
        found: Operand = self.values[value] if isinstance(value, str) else value
        return found


class IntegerKernel(IntegerLines, StageKernel):
    dtype = Dtype.INT32
    most_bits = 31  # of an int32_t: in C a shift by more is undefined

    def __init__(self, stage: Pointwise, widths: Widths) -> None:
        StageKernel.__init__(self, stage)
        IntegerLines.__init__(self, stage, widths)

    def buffer_dtype(self, array: Array) -> Dtype:
        return Dtype(self.widths.type_of(array).removesuffix("_t"))

    def truth(self, op: str, *args: Any) -> Var:
        """Append an operation whose result is a truth value."""
        return self.k.op(op, *args)

    def op(self, op: str, *args: Any, like: Interval | None = None, point: int = 0) -> Var:
        """Append an operation whose result is as wide as its range needs, or as its operands."""
        # a float stands for a number of the arithmetic
        numbers = [a if isinstance(a, (Var, bool)) else float(a) for a in args]
        wide = any(isinstance(a, Var) and a.dtype is Dtype.INT64 for a in args)
        if op == "shift" and args[1] >= self.most_bits + 32 * wide:
            raise self.refused(f"a shift by {args[1]} bits")
        span = 0.0 if like is None else like.magnitude * 2.0**point
        reach = max([span, *(abs(a) for a in numbers if isinstance(a, float))])
        if reach >= 2.0**63:
            raise self.refused(f"numbers of {reach:.3g}")
        wide = wide if like is None else span >= 2.0**31
        return self.k.op(op, *numbers, dtype=Dtype.INT64 if wide else Dtype.INT32)
