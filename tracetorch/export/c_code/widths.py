"""Find the width of every integer of a program, and write its steps in integer arithmetic.

The ranges of all arrays are found by interval arithmetic from the range of the inputs, over any
number of steps; an array is of the narrowest type that holds its range. A number with a fraction
(``mem * 2^-8`` before it is rounded) is an integer times a power of two here: what was exact in the
float that the model computes with is exact in integers, and rounding is a shift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

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
    Bounds,
    Interval,
    bounds,
    constant,
    hull,
    invariant,
)
from tracetorch.fuse.ir.kernel import (
    Axis,
    Dtype,
    Extent,
    Kernel,
    KernelBuilder,
    Operand,
    Value,
)
from tracetorch.fuse.ir.kernel import Role as BufferRole
from tracetorch.integers.width import stored_bits

LANE = (Axis.LANE,)


@dataclass(frozen=True)
class Widths:
    """Ranges of the arrays of an integer program.

    Args:
        ranges: of each array.
        points: bits behind the binary point of each table that has any.
    """

    ranges: Mapping[Array, Interval]
    points: Mapping[Array, int]

    def type_of(self, array: Array) -> str:
        """Return the narrowest C type that holds an array."""
        if array.boolean:
            return "bool"
        found = self.ranges[array]
        scale = 2.0 ** self.points.get(array, 0)
        low, high = float(np.min(found.low)) * scale, float(np.max(found.high)) * scale
        return f"int{stored_bits(low, high)}_t"


def found_widths(program: StepProgram, inputs: Mapping[str, Interval]) -> Widths:
    """Return the ranges of all arrays, over any number of steps.

    Args:
        program: one step, as the reader returns it.
        inputs: the range of each input.

    Raises:
        ValueError: something is no integer, is not exact in the float that the model computes
            with, or grows for ever; the module is named.
    """
    dtype = torch.float64 if program.double else torch.float32
    most = MOST_EXACT[dtype]
    start = {array: inputs[name] for name, array in program.inputs.items()}
    held = {
        array: _range(array.held, f"the state {name} starts from")
        for name, array in program.states.items()
    }
    points: dict[Array, int] = {}
    for stage in program.stages:
        for view in reads_of(stage):
            if view.array.role is Role.TABLE and view.array not in start:
                start[view.array], points[view.array] = _table(view.array, stage.path)
    _, held = invariant(held, lambda each: _ranges(program, {**start, **each}, dtype, check=False))
    for name, array in program.states.items():
        if held[array].magnitude > most:
            raise ValueError(
                f"the state {name} can grow beyond {most:.0f}, up to where the float that the "
                "model computes with holds every integer: saturate it, tt.integers.saturate."
            )
    known, _ = _ranges(program, {**start, **held}, dtype, check=True)
    return Widths({**known, **held}, {array: point for array, point in points.items() if point})


def _range(values: Tensor, what: str) -> Interval:
    numbers = values.double()
    if not torch.equal(numbers, numbers.round()):
        wrong = numbers[numbers != numbers.round()][0].item()
        raise ValueError(f"{what} {wrong:g}, which is no integer.")
    return Interval(float(numbers.min()), float(numbers.max()), 0.0)


def _table(array: Array, path: str) -> tuple[Interval, int]:
    """Return the range of a table, and the bits behind its binary point."""
    numbers = array.held.double()
    steps = [constant(number).step for number in set(numbers.flatten().tolist())]
    step = min([float(np.min(each)) for each in steps], default=0.0)
    if step < -31:
        raise ValueError(
            f"{path} has the constant {float(numbers.flatten()[0]):g}, which is no integer and no "
            "multiple of 2^-31. Quantise the model, or export it with dtype='float32'."
        )
    step = min(step, 0.0)
    return Interval(float(numbers.min()), float(numbers.max()), step), int(-step)


def _ranges(
    program: StepProgram, known: dict[Array, Interval], dtype: torch.dtype, check: bool
) -> tuple[dict[Array, Interval], dict[Array, Interval]]:
    """Return the ranges of what one step computes, and those that the states get."""
    known, ends = dict(known), dict[Array, Interval]()
    for stage in program.stages:
        for array, found in _computed(stage, known, dtype, check):
            if array.role is Role.STATE:
                ends[array] = hull(ends[array], found) if array in ends else found
            else:
                known[array] = hull(known[array], found) if array in known else found
    return known, ends


def _computed(
    stage: Stage, known: Mapping[Array, Interval], dtype: torch.dtype, check: bool
) -> list[tuple[Array, Interval]]:
    if isinstance(stage, Pointwise):
        found = bounds_of(stage, known, dtype)
        if check and not found.exact:
            raise ValueError(
                f"{stage.path} is not exact in integers: {found.fault}. Give fewer bits, smaller "
                "inputs, or x.double() and model.double(); or export with dtype='float32'."
            )
        results = [(stage.writes[name].array, found.outputs[name]) for name in stage.writes]
        for array, each in results:
            if check and not array.boolean and float(np.min(each.step)) < 0:
                raise ValueError(
                    f"{stage.path} computes what is no integer. Quantise the model, "
                    "tt.quantize, or export it with dtype='float32'."
                )
        return results
    source = known[stage.source.array]
    if isinstance(stage, Product):
        return [(stage.target.array, _product_range(stage, source, dtype, check))]
    found_range = source
    if isinstance(stage, Pool) and not stage.maximum:
        if stage.divisor != 1:
            raise ValueError(
                f"{stage.path} averages, and an average is no integer. Use tt.integers.SumPool2d, "
                "or export with dtype='float32'."
            )
        found_range = _times(source, math.prod(stage.kernel))
    if isinstance(stage, Sum):
        if stage.divisor != 1:
            raise ValueError(f"{stage.path} averages, and an average is no integer. Sum instead.")
        kept = len(stage.source.shape) - stage.dims
        found_range = _times(source, math.prod(stage.source.shape[kept:]))
    return [(stage.target.array, found_range)]


def _times(source: Interval, count: int) -> Interval:
    low, high = np.minimum(source.low, 0.0) * count, np.maximum(source.high, 0.0) * count
    return Interval(low, high, source.step, source.exact)


def bounds_of(stage: Pointwise, known: Mapping[Array, Interval], dtype: torch.dtype) -> Bounds:
    """Return the range of every line of a stage."""
    inputs = {name: known[view.array] for name, view in stage.reads.items()}
    try:
        return bounds(stage.graph, inputs, dtype)
    except ValueError as error:
        raise ValueError(f"{stage.path}: {error}") from None


def _product_range(stage: Product, source: Interval, dtype: torch.dtype, check: bool) -> Interval:
    """Return the range of a product's sums, those on the way included."""
    weight = stage.weight.double()
    for each in (weight, stage.bias):
        if each is not None and not torch.equal(each, each.round()):
            raise ValueError(
                f"{stage.path} has weights that are no integers. Quantise the model, tt.quantize, "
                "or export it with dtype='float32'."
            )
    rows = weight.flatten(1)
    low, high = float(np.min(source.low)), float(np.max(source.high))
    least = torch.minimum(rows * low, rows * high).clamp(max=0).sum(1)
    largest = torch.maximum(rows * low, rows * high).clamp(min=0).sum(1)
    if stage.bias is not None:
        bias = stage.bias.double()
        least, largest = least + bias, largest + bias
    reached, most = max(float(-least.min()), float(largest.max())), MOST_EXACT[dtype]
    if check and (reached > most or float(np.min(source.step)) < 0):
        raise ValueError(
            f"{stage.path} can reach {reached:.0f}, and the float that the model computes with "
            f"holds every integer up to {most:.0f} only. Give x.double() and model.double()."
        )
    return Interval(float(least.min()), float(largest.max()), 0.0)


# Arithmetic


@dataclass(frozen=True)
class _Number:
    """A number of the graph: ``value / 2^point``.

    Args:
        value: an integer, or a truth value.
        point: bits behind the binary point.
        divisor: a positive number that it is still to be divided by, where a quotient is no
            integer; only its sign, its floor and its trunc are ever needed.
    """

    value: Operand
    point: int = 0
    divisor: Operand | None = None


class _Lowering:
    """Write the lines of a pointwise stage in integers."""

    def __init__(self, stage: Pointwise, widths: Widths, double: bool) -> None:
        self.stage, self.widths, self.double = stage, widths, double
        self.k = KernelBuilder("stage", "", Dtype.INT32)
        self.env: dict[str, _Number] = {}
        known = dict(widths.ranges)
        dtype = torch.float64 if double else torch.float32
        self.ranges = {line.name: each for line, each in bounds_of(stage, known, dtype).lines}

    def kernel(self) -> Kernel:
        k, stage = self.k, self.stage
        buffers = {
            (role, name): k.buffer(role, name, (Extent.LANES,), self._dtype(view.array))
            for role, views in ((BufferRole.START, stage.reads), (BufferRole.END, stage.writes))
            for name, view in views.items()
        }
        with k.lanes():
            for name, view in stage.reads.items():
                value = k.load(buffers[BufferRole.START, name], LANE, name)
                self.env[name] = _Number(value, self.widths.points.get(view.array, 0))
                self.ranges[name] = self.widths.ranges[view.array]
            for line in stage.graph.lines:
                self.env[line.name] = self._line(line)
            for name in stage.writes:
                result = self._operand(stage.graph.outputs[name])
                if result.divisor is not None:
                    raise self._refused("a quotient")
                stored = result.value
                if result.point:  # a multiple of 2^point
                    stored = self._op("div", stored, 2**result.point)
                k.store(buffers[BufferRole.END, name], LANE, stored)
        return k.kernel()

    def _dtype(self, array: Array) -> Dtype:
        return Dtype(self.widths.type_of(array).removesuffix("_t"))

    def _refused(self, what: str) -> ValueError:
        return ValueError(
            f"{self.stage.path} computes {what}, which is no integer arithmetic. Export it with "
            "dtype='float32'."
        )

    def _operand(self, value: GraphValue) -> _Number:
        if isinstance(value, str):
            return self.env[value]
        if isinstance(value, bool):
            return _Number(value)
        number = self._literal(value)
        if not math.isfinite(number):
            raise self._refused(f"with {number}")
        numerator, denominator = number.as_integer_ratio()
        return _Number(float(numerator), denominator.bit_length() - 1)

    def _op(self, op: str, *args: Operand, like: Interval | None = None, point: int = 0) -> Value:
        """Append an operation whose result is as wide as its range needs, or as its operands."""
        # a float stands for a number of the arithmetic
        numbers = [a if isinstance(a, (Value, bool)) else float(a) for a in args]
        dtype = Dtype.INT32
        if like is not None:
            reach = max(abs(float(np.min(like.low))), abs(float(np.max(like.high)))) * 2.0**point
            if reach >= 2.0**63:
                raise self._refused(f"numbers of {reach:.3g}")
            dtype = Dtype.INT64 if reach >= 2.0**31 else Dtype.INT32
        elif any(isinstance(a, Value) and a.dtype is Dtype.INT64 for a in args):
            dtype = Dtype.INT64
        return self.k.op(op, *numbers, dtype=dtype)

    def _at(self, number: _Number, point: int, interval: Interval | None) -> Operand:
        """Return a number with more bits behind its binary point."""
        if number.divisor is not None:
            raise self._refused("with a quotient")
        if number.point == point:
            return number.value
        factor = 2 ** (point - number.point)
        if not isinstance(number.value, Value):
            return float(number.value * factor)
        return self._op("mul", number.value, factor, like=interval, point=point)

    def _line(self, line: Line) -> _Number:
        args = [self._operand(arg) for arg in line.args]
        spans = [self._span(arg) for arg in line.args]
        like, op = self.ranges[line.name], line.op
        if op in ("and", "or", "xor", "not"):
            return _Number(self.k.op(op, *(arg.value for arg in args)))
        if op == "float":
            return _Number(self._op("float", args[0].value, like=like))
        if op == "neg":
            return _Number(
                self._op("neg", args[0].value, like=like, point=args[0].point),
                args[0].point,
                args[0].divisor,
            )
        if op == "mul":
            point = args[0].point + args[1].point
            if any(arg.divisor is not None for arg in args):
                raise self._refused("with a quotient")
            for each, other in (args, args[::-1]):
                if each.value == 1.0:
                    return _Number(other.value, point)
            return _Number(
                self._op("mul", args[0].value, args[1].value, like=like, point=point), point
            )
        if op == "div":
            return self._quotient(args, spans)
        if op in COMPARISONS:
            return self._comparison(op, args, spans, line)
        if op in ("floor", "trunc", "ceil", "round"):
            return self._rounded(op, args[0], spans[0])
        if op == "fma":
            point = args[0].point + args[1].point
            span = _product(spans[0], spans[1])
            product = self._op("mul", args[0].value, args[1].value, like=span, point=point)
            args, spans, op = [_Number(product, point), args[2]], [span, spans[2]], "add"
        if op == "add" and args[1].value == 0.0:
            return args[0]
        choice = args.pop(0).value if op == "where" else None
        if choice is not None:
            spans.pop(0)
        if op == "abs" or op in ("add", "sub", "max", "min", "where"):
            point = max(arg.point for arg in args)
            values = [self._at(arg, point, span) for arg, span in zip(args, spans, strict=True)]
            given = values if choice is None else [choice, *values]
            return _Number(self._op(op, *given, like=_widest(like, *spans), point=point), point)
        raise self._refused(op)

    def _span(self, value: GraphValue) -> Interval:
        if isinstance(value, str):
            return self.ranges[value]
        return constant(self._literal(float(value)))

    def _literal(self, value: float) -> float:
        """Return a number as the dtype of the model has it."""
        return value if self.double else float(np.float32(value))

    def _quotient(self, args: list[_Number], spans: list[Interval]) -> _Number:
        """Keep a quotient undone; its rounding, or its sign, is done at once."""
        over, under = args
        if not np.all(np.greater(spans[1].low, 0)) or over.divisor is not None:
            raise self._refused("a quotient by what may be zero or negative")
        point = max(over.point, under.point)
        value, divisor = (self._at(n, point, s) for n, s in zip(args, spans, strict=True))
        return _Number(value, 0, divisor)

    def _comparison(
        self, op: str, args: list[_Number], spans: list[Interval], line: Line
    ) -> _Number:
        for i, other in ((0, 1), (1, 0)):
            if args[i].divisor is not None:
                zero = not isinstance(line.args[other], str) and float(line.args[other]) == 0
                if not zero:
                    raise self._refused("a comparison with a quotient")
                # the divisor is positive: the sign is that of the dividend
                args[i] = _Number(args[i].value)
        point = max(arg.point for arg in args)
        values = [self._at(arg, point, span) for arg, span in zip(args, spans, strict=True)]
        return _Number(self.k.op(op, *values))

    def _rounded(self, op: str, number: _Number, span: Interval) -> _Number:
        value, point = number.value, number.point
        if number.divisor is not None:
            if op == "trunc":
                return _Number(self._op("div", value, number.divisor))
            if op == "floor":
                return _Number(self._op("quotient", value, number.divisor))
            raise self._refused(f"the {op} of a quotient")
        if not point:
            return number
        if not isinstance(value, Value):
            function = {"floor": np.floor, "trunc": np.trunc, "ceil": np.ceil, "round": np.rint}[op]
            return _Number(float(function(float(value) / 2**point)))
        if op == "trunc":
            return _Number(self._op("div", value, 2**point))
        below = self._op("shift", value, point)
        if op == "floor":
            return _Number(below)
        rest = self._op("sub", value, self._op("mul", below, 2**point))
        if op == "ceil":  # not the floor of the negative: the least integer of a width has none
            return _Number(self._op("add", below, self._op("float", self.k.op("gt", rest, 0.0))))
        # to the nearest; of two equally near ones to the even one
        half = 2 ** (point - 1)
        odd = self.k.op(
            "ne", self._op("sub", below, self._op("mul", self._op("shift", below, 1), 2)), 0.0
        )
        tie = self.k.op("and", self.k.op("eq", rest, float(half)), odd)
        up = self.k.op("or", self.k.op("gt", rest, float(half)), tie)
        return _Number(self._op("add", below, self._op("float", up)))


def _product(*spans: Interval) -> Interval:
    first, second = ((float(np.min(s.low)), float(np.max(s.high))) for s in spans)
    ends = [a * b for a in first for b in second]
    return Interval(min(ends), max(ends))


def _widest(*spans: Interval) -> Interval:
    found = spans[0]
    for each in spans[1:]:
        found = hull(found, each)
    return found


def integer_kernel(stage: Pointwise, widths: Widths, double: bool) -> Kernel:
    """Return a pointwise stage as a kernel over its places, in integers.

    Raises:
        ValueError: an operation is none of integers.
    """
    return _Lowering(stage, widths, double).kernel()
