"""Evaluate a kernel in NumPy, all lanes at once: slow, obvious, the reference of every printer."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np

from tracetorch.fuse.ir import kernel as ir

Array: TypeAlias = "np.ndarray[Any, Any]"


@functools.cache
def _library() -> Any:
    """Return the C library, whose ``fma`` rounds once."""
    name = "ucrtbase" if sys.platform == "win32" else ctypes.util.find_library("m")
    return ctypes.CDLL(name)


def _fma(x: Any, y: Any, z: Any) -> Any:
    """Compute ``x * y + z``, rounded once."""
    dtype = np.result_type(x, y, z)
    kind = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    function = _library().fmaf if dtype == np.float32 else _library().fma
    function.argtypes, function.restype = [kind] * 3, kind
    return np.vectorize(function, otypes=[dtype])(x, y, z)[()]


def _by_number(function: Callable[[float], float]) -> Callable[[Any], Any]:
    """Return a function of arrays that calls one of numbers."""

    def of(x: float) -> float:
        try:
            return function(x)
        except (OverflowError, ValueError):  # at a pole, and only there
            return math.inf

    return lambda x: np.vectorize(of, otypes=[float])(x).astype(np.asarray(x).dtype)[()]


def _sigmoid(x: Any) -> Any:
    one = np.asarray(x).dtype.type(1)
    return one / (one + np.exp(-x))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "rem": np.remainder,
    "neg": np.negative, "gt": np.greater, "ge": np.greater_equal, "lt": np.less,
    "le": np.less_equal, "eq": np.equal, "ne": np.not_equal, "and": np.logical_and,
    "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not, "where": np.where,
    # Of two equal operands, zeros of both signs, the second one; NaN of the first one passes.
    "max": lambda x, y: np.where((x > y) | (x != x), x, y),
    "min": lambda x, y: np.where((x < y) | (x != x), x, y),
    "fma": _fma, "sigmoid": _sigmoid, "round": np.rint, "pow": np.power, "atan2": np.arctan2,
    **{op: getattr(np, f"arc{op[1:]}") for op in ("acos", "acosh", "asin", "asinh", "atan")},
    "atanh": np.arctanh,
    **{op: _by_number(getattr(math, op)) for op in ("erf", "erfc")},
    **{op: getattr(np, op) for op in ("copysign", "fmod", "hypot", "nextafter")},
    **{op: getattr(np, op) for op in ("abs", "ceil", "cos", "cosh", "exp", "exp2", "expm1")},
    **{op: getattr(np, op) for op in ("floor", "log", "log10", "log1p", "log2", "sin", "sinh")},
    **{op: getattr(np, op) for op in ("sqrt", "tan", "tanh", "trunc")},
}  # fmt: skip


def evaluate(
    kernel: ir.Schedule, sizes: Mapping[str, int], buffers: Mapping[str, Array], *, neurons: Array
) -> None:
    """Run a kernel on arrays by label, all lanes as one task.

    ``neurons`` are, of each lane, the place of its neuron in the parameters.
    """
    evaluator = _Evaluator(kernel, dict(sizes), dict(buffers), neurons)
    with np.errstate(all="ignore"):
        evaluator.run()


@dataclass
class _Evaluator:
    kernel: ir.Schedule
    sizes: dict[str, int]
    memory: dict[str, Array]
    neurons: Array
    values: dict[ir.Var, Any] = field(default_factory=dict)

    def run(self) -> None:
        for size in self.kernel.sizes:
            self.values[size] = self.sizes[size.name]
        for buffer in self.kernel.buffers:
            if buffer.role in ir.PRIVATE:
                self.memory[buffer.label] = np.full(self._shape(buffer), np.nan, buffer.dtype.value)
        self.body(self.kernel.body)

    def _shape(self, buffer: ir.Buffer) -> list[int]:
        shape: list[int] = []
        for extent in buffer.shape:
            if isinstance(extent, ir.Size):
                shape.append(self.sizes[extent.value.name] + extent.plus)
            else:
                shape.append(extent if isinstance(extent, int) else len(self.neurons))
        return shape

    def number(self, operand: ir.Operand, dtype: str) -> Any:
        if isinstance(operand, ir.Var):
            return self.values[operand]
        return np.dtype(dtype).type(operand)

    def place(self, index: Sequence[ir.Index], buffer: ir.Buffer) -> tuple[Any, ...]:
        values = {ir.Axis.LANE: slice(None), ir.Axis.NEURON: self.neurons}
        found: list[Any] = []
        for each in index:
            if isinstance(each, ir.Axis):
                one = each is ir.Axis.NEURON and len(self.memory[buffer.label]) == 1
                found.append(np.zeros_like(self.neurons) if one else values[each])
            else:
                # a number from behind the end would be taken from the front
                place = int(self.values[each] if isinstance(each, ir.Var) else each)
                if place < 0:
                    raise IndexError(f"{each} is {place} in {buffer.label}")
                found.append(place)
        return tuple(found)

    def body(self, body: Sequence[ir.Statement]) -> None:
        for each in body:
            self.statement(each)

    def statement(self, each: ir.Statement) -> None:
        if isinstance(each, ir.Operation):
            self.values[each.result] = self.operation(each)
        elif isinstance(each, ir.Load):
            found = self.memory[each.buffer.label][self.place(each.index, each.buffer)]
            self.values[each.result] = np.copy(found)[()]
        elif isinstance(each, ir.Store):
            memory, place = self.memory[each.buffer.label], self.place(each.index, each.buffer)
            value = self.number(each.value, each.buffer.dtype.value)
            memory[place] = memory[place] + value if each.buffer.role is ir.Role.SUMS else value
        elif isinstance(each, ir.For):
            self.loop(each)
        elif isinstance(each, ir.If):
            if self.values[each.condition]:
                self.body(each.body)
        elif isinstance(each, ir.Lanes):
            self.body(each.body)
        elif isinstance(each, ir.Multiply):
            self.product(each)

    def operation(self, each: ir.Operation) -> Any:
        if each.op == "float":
            return np.where(self.number(each.args[0], "bool"), 1, 0).astype(
                self.kernel.dtype.value
            )[()]
        if each.op == "double":
            return np.asarray(self.number(each.args[0], "float32")).astype(float)[()]
        dtypes = [arg.dtype for arg in each.args if isinstance(arg, ir.Var)]
        numbers = [dtype for dtype in dtypes if dtype.is_float or dtype.is_integer]
        dtype = (numbers or [self.kernel.dtype])[0].value
        operands = [
            self.number(arg, "bool" if isinstance(arg, bool) else dtype) for arg in each.args
        ]
        found = _FUNCTIONS[each.op](*operands)
        return np.asarray(found).astype(each.result.dtype.value)[()]

    def loop(self, each: ir.For) -> None:
        start, stop = (int(self.number(bound, "int64")) for bound in (each.start, each.stop))
        indices = range(start, stop)
        now = [self.number(c.initial, c.inside.dtype.value) for c in each.carried]
        for index in reversed(indices) if each.reverse else indices:
            self.values[each.index] = np.int64(index)
            self.values.update(zip((c.inside for c in each.carried), now, strict=True))
            self.body(each.body)
            now = [self.number(c.next, c.inside.dtype.value) for c in each.carried]
        self.values.update(zip((c.result for c in each.carried), now, strict=True))

    def product(self, each: ir.Multiply) -> None:
        matrices = self.memory[each.matrix.label]
        source = self.memory[each.source.label][self.place(each.source_index, each.source)]
        rows = source.reshape(-1, matrices.shape[-1])
        target = self.memory[each.target.label]
        index = cast("ir.Operand", each.target_index[0])
        start, first, count = (
            int(self.number(operand, "int64")) for operand in (index, each.first, each.count)
        )
        for j in range(count):
            place = start - j if each.reverse else start + j
            if place < 0 or first < 0:
                raise IndexError(f"{place} of {each.target}, {first} of {each.matrix}")
            found = (rows @ matrices[first + j]).ravel()
            is_last = first + j == len(matrices) - 1
            target[place] = found if is_last else target[place] + found
