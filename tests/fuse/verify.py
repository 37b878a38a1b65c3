"""Verify a kernel: every access lies inside its buffer, for all sizes.

Bounds are proved, not tried: an index is a sum of sizes, loop indices and numbers, and each of them
has bounds that are such sums. What cannot be proved is an error. Types, names and blocks are left
to the compilers of the languages that a kernel is printed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

from tracetorch.fuse.ir import kernel as ir

# A number and how often each value is added to it.
_Sum: TypeAlias = "tuple[int, tuple[tuple[ir.Var, int], ...]]"
_DEPTH = 12
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
    verifier = _Verifier(kernel)
    verifier.lower = {size: [(1, ())] for size in kernel.sizes}
    verifier.body(kernel.body)
    return kernel


@dataclass
class _Verifier:
    kernel: ir.Schedule
    stored: set[ir.Buffer] = field(default_factory=set)
    # what integers are, and lower and upper bounds of those that are nothing simpler
    sums: dict[ir.Var, _Sum] = field(default_factory=dict)
    lower: dict[ir.Var, list[_Sum]] = field(default_factory=dict)
    upper: dict[ir.Var, list[_Sum]] = field(default_factory=dict)
    # the bound that each condition gives to a value
    known: dict[ir.Var, tuple[ir.Var, _Sum]] = field(default_factory=dict)

    def fail(self, rule: str, where: object) -> NoReturn:
        raise InvalidKernel(f"{rule}: {where}")

    # Statements

    def body(self, body: Sequence[ir.Statement]) -> None:
        for each in body:
            if isinstance(each, ir.Operation):
                self.operation(each)
            elif isinstance(each, ir.Load):
                self.access(each.buffer, each.index, each)
                if each.buffer.role in ir.PRIVATE and each.buffer not in self.stored:
                    self.fail("scratch is read before it is written", each)
            elif isinstance(each, ir.Store):
                self.write(each.buffer, self.access(each.buffer, each.index, each), each)
            elif isinstance(each, ir.For):
                last = _plus(self.sum_of(each.stop), (-1, ()))
                self.lower[each.index], self.upper[each.index] = [self.sum_of(each.start)], [last]
                self.body(each.body)
            elif isinstance(each, ir.If):
                bound = self.known.get(each.condition)
                if bound is not None:
                    self.lower.setdefault(bound[0], []).append(bound[1])
                self.body(each.body)
                if bound is not None:
                    self.lower[bound[0]].remove(bound[1])
            elif isinstance(each, ir.Lanes):
                self.body(each.body)
            elif isinstance(each, ir.Multiply):
                self.product(each)

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
            else:
                at = self.sum_of(place)
                self.within(place, at, at, extent, buffer, where)
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

    def write(self, buffer: ir.Buffer, lanes: bool, where: object) -> None:
        if buffer.role in READ_ONLY:
            self.fail(f"{buffer.label} is only read", where)
        if not lanes:
            self.fail("all lanes write to one place", where)
        self.stored.add(buffer)

    def product(self, each: ir.Multiply) -> None:
        target, matrix, start = each.target, each.matrix, each.target_index[0]
        self.access(each.source, each.source_index, each)
        if isinstance(start, ir.Axis):
            self.fail("a product begins at a step", each)
        # with a count of none no place is touched: it is enough that these bounds hold
        begin, first = self.sum_of(start), self.sum_of(each.first)
        more = _plus(self.sum_of(each.count), (-1, ()))
        ends = (_minus(begin, more), begin) if each.reverse else (begin, _plus(begin, more))
        self.within("a target", *ends, target.shape[0], target, each)
        self.within("a matrix", first, _plus(first, more), matrix.shape[0], matrix, each)
        self.write(target, True, each)

    # Bounds

    def operation(self, each: ir.Operation) -> None:
        """Note what an integer is, or between which others it lies; and what a condition says."""
        value, args = each.result, each.args
        if each.op == "gt" and isinstance(args[0], ir.Var) and type(args[1]) is int:
            self.known[value] = args[0], (args[1] + 1, ())
        if not value.dtype.is_integer or value.lanes:
            return
        first, second = map(self.sum_of, args)
        # languages differ in the remainder of a negative number
        if each.op == "rem" and not (
            self.positive(first) and self.positive(_plus(second, (-1, ())))
        ):
            self.fail("a remainder is of a number that is not negative, by one above 0", each)
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
