"""Verify a kernel: types, single assignment, and that every access lies inside its buffer.

Bounds are proved, not tried: an index is a sum of sizes, loop indices and numbers, and each of them
has bounds that are such sums. What cannot be proved is an error. A size is at most ``LARGEST``, and
no integer leaves the 64 bits that it has in a processor, so that the sums are what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

from tracetorch.fuse.ir import kernel as ir
from tracetorch.fuse.ir.graph import BINARY, COMPARISONS, LOGIC, UNARY
from tracetorch.fuse.runtime.allocation import LARGEST

INTEGER = frozenset({"add", "sub", "mul", "min", "rem"})

# A number and how often each value is added to it.
_Sum: TypeAlias = "tuple[int, tuple[tuple[ir.Var, int], ...]]"
_DEPTH = 12
_WORD = 2**63
ARITY = {**dict.fromkeys(UNARY, 1), **dict.fromkeys(BINARY, 2), "fma": 3}
READ_ONLY = frozenset(
    {
        *(ir.Role.INPUT, ir.Role.PARAMETER, ir.Role.LITERALS, ir.Role.START, ir.Role.MATRIX),
        *(ir.Role.GRAD_OUTPUT, ir.Role.GRAD_END, ir.Role.GRAD_RECORD, ir.Role.BIAS),
        *(ir.Role.FIRST_OUTPUT, ir.Role.GRAD_LAST_OUTPUT),
    }
)


class InvalidKernel(Exception):  # noqa: N818 (a finding about a kernel)
    """A kernel breaks a rule; the message names the rule and the statement."""


def verify(kernel: ir.Schedule) -> ir.Schedule:
    """Return a kernel after all rules were checked; raise ``InvalidKernel``."""
    _Verifier(kernel).run()
    return kernel


@dataclass
class _Verifier:
    kernel: ir.Schedule
    defined: set[ir.Var] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    scopes: list[list[ir.Var]] = field(default_factory=list)
    stored: set[ir.Buffer] = field(default_factory=set)
    in_lanes: bool = False
    # what integers are, and lower and upper bounds of those that are nothing simpler
    sums: dict[ir.Var, _Sum] = field(default_factory=dict)
    lower: dict[ir.Var, list[_Sum]] = field(default_factory=dict)
    upper: dict[ir.Var, list[_Sum]] = field(default_factory=dict)
    # the bound that each condition gives to a value
    known: dict[ir.Var, tuple[ir.Var, _Sum]] = field(default_factory=dict)
    # the least and the largest number that each integer may be
    ranges: dict[ir.Var, tuple[int, int]] = field(default_factory=dict)

    def run(self) -> None:
        kernel = self.kernel
        labels = [buffer.label for buffer in kernel.buffers]
        if len(set(labels)) < len(labels):
            self.fail("two buffers have one name", sorted(labels))
        self.scopes.append([])
        for size in kernel.sizes:
            if size.dtype is not ir.Dtype.INT64 or size.lanes:
                self.fail("a size is a uniform int64", size)
            self.define(size)
            self.lower[size] = [(1, ())]
            self.ranges[size] = 1, LARGEST
        for buffer in kernel.buffers:
            for extent in buffer.shape:
                if isinstance(extent, ir.Size) and extent.value not in kernel.sizes:
                    self.fail("an extent is not an argument", buffer)
        self.body(kernel.body)

    def fail(self, rule: str, where: object) -> NoReturn:
        raise InvalidKernel(f"{rule}: {where}")

    # Values

    def define(self, value: ir.Var) -> None:
        if value.name in self.names:
            self.fail("a name is assigned twice", value)
        if value.lanes and not self.in_lanes:
            self.fail("a value of lanes outside of lanes", value)
        self.names.add(value.name)
        self.defined.add(value)
        self.scopes[-1].append(value)

    def use(self, operand: ir.Operand, dtype: ir.Dtype, where: object) -> bool:
        """Check an operand; return whether it has lanes."""
        if isinstance(operand, ir.Var):
            if operand not in self.defined:
                self.fail(
                    f"{operand} is read before it is assigned, or outside of its block", where
                )
            if operand.dtype is not dtype:
                self.fail(f"{operand} is {operand.dtype.value}, not {dtype.value}", where)
            return operand.lanes
        is_bool = isinstance(operand, bool)
        fits = (
            is_bool
            if dtype is ir.Dtype.BOOL
            else isinstance(operand, int if dtype.is_integer else float)
        )
        if not fits or (is_bool and dtype is not ir.Dtype.BOOL):
            self.fail(f"{operand!r} is no {dtype.value}", where)
        return False

    # Statements

    def body(self, body: Sequence[ir.Statement]) -> None:
        self.scopes.append([])
        for statement in body:
            self.statement(statement)
        self.defined -= set(self.scopes.pop())

    def statement(self, each: ir.Statement) -> None:
        if isinstance(each, ir.Operation):
            self.operation(each)
        elif isinstance(each, ir.Load):
            lanes = self.access(each.buffer, each.index, each)
            if each.buffer.role in ir.PRIVATE and each.buffer not in self.stored:
                self.fail("scratch is read before it is written", each)
            if each.result.dtype is not each.buffer.dtype or each.result.lanes != lanes:
                self.fail("what is loaded is of another type than its memory", each)
            self.define(each.result)
        elif isinstance(each, ir.Store):
            self.write(each)
        elif isinstance(each, ir.For):
            self.loop(each)
        elif isinstance(each, ir.If):
            if self.use(each.condition, ir.Dtype.BOOL, each):
                self.fail("a condition is uniform", each.condition)
            bound = self.known.get(each.condition)
            if bound is not None:
                self.lower.setdefault(bound[0], []).append(bound[1])
            self.body(each.body)
            if bound is not None:
                self.lower[bound[0]].remove(bound[1])
        elif isinstance(each, ir.Lanes):
            if self.in_lanes:
                self.fail("lanes within lanes", "lanes")
            self.in_lanes = True
            self.body(each.body)
            self.in_lanes = False
        elif isinstance(each, ir.Multiply):
            self.product(each)
        elif not isinstance(each, ir.Barrier):
            self.fail("not a statement", each)

    def operation(self, each: ir.Operation) -> None:
        result, op, args = each.result, each.op, each.args
        dtypes = [arg.dtype for arg in args if isinstance(arg, ir.Var)]
        if op in COMPARISONS:
            inner = dtypes[0] if dtypes else self.kernel.dtype
            wanted, expected = [inner] * 2, ir.Dtype.BOOL
            if inner is ir.Dtype.BOOL:
                self.fail("a comparison is of numbers", each)
        elif op in LOGIC:
            wanted, expected = [ir.Dtype.BOOL] * (1 if op == "not" else 2), ir.Dtype.BOOL
        elif op == "where":
            expected = result.dtype
            wanted = [ir.Dtype.BOOL, expected, expected]
        elif op == "float":
            wanted, expected = [ir.Dtype.BOOL], self.kernel.dtype
        elif op == "double":
            wanted, expected = [ir.Dtype.FLOAT32], ir.Dtype.FLOAT64
        elif result.dtype.is_integer and op in INTEGER:
            wanted, expected = [result.dtype] * 2, result.dtype
        elif op in ARITY and result.dtype.is_float:
            wanted, expected = [result.dtype] * ARITY[op], result.dtype
        else:
            self.fail(f"there is no {op} of {result.dtype.value}", each)
        if len(args) != len(wanted):
            self.fail(f"{op} takes {len(wanted)} operands", each)
        lanes = [self.use(arg, dtype, each) for arg, dtype in zip(args, wanted, strict=True)]
        if result.dtype is not expected or result.lanes != any(lanes):
            self.fail("a result is of another type than its operation", each)
        self.define(result)
        if result.dtype.is_integer and not result.lanes:
            self.describe(each)
        if op == "gt" and isinstance(args[0], ir.Var) and type(args[1]) is int:
            self.known[result] = args[0], (args[1] + 1, ())

    def access(self, buffer: ir.Buffer, index: Sequence[ir.Index], where: object) -> bool:
        """Check an index; return whether each lane has its own place."""
        if buffer not in self.kernel.buffers:
            self.fail("memory that is not an argument", where)
        if len(index) != len(buffer.shape):
            self.fail(f"{buffer.label} has {len(buffer.shape)} dimensions", where)
        axes = {ir.Extent.LANES: ir.Axis.LANE, ir.Extent.NEURONS: ir.Axis.NEURON}
        found = False
        for place, extent in zip(index, buffer.shape, strict=True):
            if isinstance(place, ir.Axis) or isinstance(extent, ir.Extent):
                if not isinstance(extent, ir.Extent) or place is not axes[extent]:
                    self.fail("a dimension of lanes or neurons is indexed by them alone", where)
                found = True
                continue
            if self.use(place, ir.Dtype.INT64, where):
                self.fail("an index is uniform", where)
            at = self.sum_of(place)
            self.within(place, at, at, extent, buffer, where)
        if found and not self.in_lanes and not isinstance(where, ir.Multiply):
            self.fail("memory of lanes outside of lanes", where)
        return found

    def within(
        self,
        name: object,
        lowest: _Sum,
        highest: _Sum,
        extent: ir.Dimension,
        buffer: ir.Buffer,
        where: object,
    ) -> None:
        """Check that places lie in a dimension of a buffer."""
        if not self.positive(lowest):
            self.fail(f"{name} may lie before the first place of {buffer.label}", where)
        if isinstance(extent, ir.Extent):
            raise TypeError("lanes and neurons have no size in a kernel")
        size = (extent, ()) if isinstance(extent, int) else (extent.plus, ((extent.value, 1),))
        if not self.positive(_minus(_plus(size, (-1, ())), highest)):
            self.fail(f"{name} may lie behind the last place of {buffer.label}", where)

    def write(self, each: ir.Store) -> None:
        lanes = self.access(each.buffer, each.index, each)
        if each.buffer.role in READ_ONLY:
            self.fail(f"{each.buffer.label} is only read", each)
        if self.use(each.value, each.buffer.dtype, each) and not lanes:
            self.fail("all lanes write to one place", each)
        if not lanes:
            self.fail("a store is of lanes", each)
        self.stored.add(each.buffer)

    def product(self, each: ir.Multiply) -> None:
        if self.in_lanes:
            self.fail("a product within lanes", each)
        target, matrix = each.target, each.matrix
        self.access(each.source, each.source_index, each)
        if target not in self.kernel.buffers or matrix not in self.kernel.buffers:
            self.fail("memory that is not an argument", each)
        for buffer, index in ((target, each.target_index), (each.source, each.source_index)):
            is_sequence = len(buffer.shape) == 2 and buffer.shape[1] is ir.Extent.LANES
            if not is_sequence or len(index) != 2 or isinstance(index[0], ir.Axis):
                self.fail("a product is of steps of sequences of lanes", each)
            if index[1] is not ir.Axis.LANE or buffer.dtype is not matrix.dtype:
                self.fail("a product is of rows of lanes, of one dtype", each)
        if target.role in READ_ONLY or matrix.role is not ir.Role.MATRIX:
            self.fail("a product reads matrices and writes elsewhere", each)
        if matrix.shape[1:] != (ir.Extent.NEURONS, ir.Extent.NEURONS):
            self.fail("a matrix has rows and columns of neurons", each)
        start = each.target_index[0]
        if isinstance(start, ir.Axis):
            self.fail("a product begins at a step", each)
        for operand in (start, each.first, each.count):
            if self.use(operand, ir.Dtype.INT64, each):
                self.fail("an index is uniform", each)
        # with a count of none no place is touched: it is enough that these bounds hold
        begin, first = self.sum_of(start), self.sum_of(each.first)
        more = _plus(self.sum_of(each.count), (-1, ()))
        ends = (_minus(begin, more), begin) if each.reverse else (begin, _plus(begin, more))
        self.within("a target", *ends, target.shape[0], target, each)
        self.within("a matrix", first, _plus(first, more), matrix.shape[0], matrix, each)
        self.stored.add(target)

    def loop(self, each: ir.For) -> None:
        for bound in (each.start, each.stop):
            if self.use(bound, ir.Dtype.INT64, each.index):
                self.fail("a bound is uniform", each.index)
        start, stop = self.sum_of(each.start), self.sum_of(each.stop)
        for c in each.carried:
            if len({c.inside.dtype, c.result.dtype}) > 1 or c.inside.lanes != c.result.lanes:
                self.fail("what a loop carries changes its type", c.inside)
            if self.use(c.initial, c.inside.dtype, c.inside) > c.inside.lanes:
                self.fail("what a loop carries changes its type", c.inside)
        self.scopes.append([])
        self.define(each.index)
        self.lower[each.index] = [start]
        self.upper[each.index] = [_plus(stop, (-1, ()))]
        # one more on both sides, where it ends; a loop that is not run has no index
        first, last = self.range_of(each.start)[0], self.range_of(each.stop)[1]
        self.fit(first - 1, last, each.index)
        self.ranges[each.index] = first, max(first, last - 1)
        for c in each.carried:
            self.define(c.inside)
        # the body's own values are in scope where the next turn's are read
        self.scopes.append([])
        for statement in each.body:
            self.statement(statement)
        for c in each.carried:
            if self.use(c.next, c.inside.dtype, c.inside) > c.inside.lanes:
                self.fail("what a loop carries changes its type", c.inside)
        self.defined -= {*self.scopes.pop(), *self.scopes.pop()}
        for c in each.carried:
            self.define(c.result)

    # Bounds

    def describe(self, each: ir.Operation) -> None:
        """Note what an integer is, or between which others it lies."""
        first, second = map(self.sum_of, each.args)
        value = each.result
        (low, high), (least, most) = map(self.range_of, each.args)
        products = [x * y for x in (low, high) for y in (least, most)]
        ends = {
            "add": (low + least, high + most),
            "sub": (low - most, high - least),
            "mul": (min(products), max(products)),
            "min": (min(low, least), min(high, most)),
            "rem": (0, most - 1),
        }
        # languages differ in the remainder of a negative number
        if each.op == "rem" and not (self.positive(first) and least > 0):
            self.fail("a remainder is of a number that is not negative, by one above 0", each)
        self.fit(*ends[each.op], each)
        self.ranges[value] = ends[each.op]
        if each.op == "add":
            self.sums[value] = _plus(first, second)
        elif each.op == "sub":
            self.sums[value] = _minus(first, second)
        elif each.op == "mul" and not (first[1] and second[1]):
            number, other = (first, second) if not first[1] else (second, first)
            self.sums[value] = _times(other, number[0])
        else:
            if self.positive(first) and self.positive(second):
                self.lower[value] = [(0, ())]
            if each.op == "min":
                self.upper[value] = [first, second]

    def range_of(self, operand: ir.Operand) -> tuple[int, int]:
        if isinstance(operand, ir.Var):
            return self.ranges.get(operand, (-_WORD, _WORD - 1))
        self.fit(int(operand), int(operand), operand)
        return int(operand), int(operand)

    def fit(self, low: int, high: int, where: object) -> None:
        if low < -_WORD or high >= _WORD:
            self.fail("an integer may need more than 64 bits", where)

    def sum_of(self, operand: ir.Operand) -> _Sum:
        if isinstance(operand, ir.Var):
            return self.sums.get(operand, (0, ((operand, 1),)))
        return int(operand), ()

    def positive(self, total: _Sum, depth: int = _DEPTH) -> bool:
        """Whether a sum is proved to be 0 or more."""
        number, parts = total
        if not parts:
            return number >= 0
        if depth == 0:
            return False
        for value, count in parts:
            for bound in (self.lower if count > 0 else self.upper).get(value, ()):
                rest = number, tuple(part for part in parts if part[0] is not value)
                if self.positive(_plus(rest, _times(bound, count)), depth - 1):
                    return True
        return False


def _plus(first: _Sum, second: _Sum) -> _Sum:
    counts = dict(first[1])
    for value, count in second[1]:
        counts[value] = counts.get(value, 0) + count
    return first[0] + second[0], tuple((v, c) for v, c in counts.items() if c)


def _times(total: _Sum, factor: int) -> _Sum:
    return total[0] * factor, tuple((v, c * factor) for v, c in total[1] if factor)


def _minus(first: _Sum, second: _Sum) -> _Sum:
    return _plus(first, _times(second, -1))
