"""Write functions in LLVM IR: integers, arrays, loops, vectors of lanes.

The text is in single-assignment form: no pass goes over it but the selection of instructions.
Integers are ``i64``; those of other widths are extended with zeros where they are loaded, and cut
where they are stored. A division is of numbers that are not negative.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

WORD = "i64"
_BYTES = {"float": 4, "double": 8, "i64": 8, "i32": 4, "i16": 2}


# Instructions on integers and booleans, and on real numbers.
INSTRUCTIONS = {
    "add": ("add", "fadd"), "sub": ("sub", "fsub"), "mul": ("mul", "fmul"), "div": ("udiv", "fdiv"),
    "rem": ("urem", ""), "shl": ("shl", ""), "lshr": ("lshr", ""), "ashr": ("ashr", ""),
    "sdiv": ("sdiv", ""), **{op: (op, "") for op in ("and", "or", "xor")},
}  # fmt: skip
_PREDICATES = {
    "gt": ("sgt", "ogt"), "ge": ("sge", "oge"), "lt": ("slt", "olt"), "le": ("sle", "ole"),
    "eq": ("eq", "oeq"), "ne": ("ne", "une"), "ult": ("ult", "ult"), "unordered": ("", "uno"),
}  # fmt: skip
INSTRUCTIONS |= {op: (f"icmp {i}", f"fcmp {r}") for op, (i, r) in _PREDICATES.items()}


def _operator(op: str) -> Callable[[Value, Operand], Value]:
    return lambda value, other: value.apply(op, other)


@dataclass(frozen=True, eq=False)
class Value:
    """A value of a function: its name there, or a literal; arithmetic writes instructions."""

    writer: Writer
    text: str
    type: str

    def __str__(self) -> str:
        return f"{self.type} {self.text}"

    @property
    def scalar(self) -> str:
        return self.type.split(" x ")[1][:-1] if self.type.startswith("<") else self.type

    @property
    def lanes(self) -> int:
        return int(self.type[1 : self.type.index(" ")]) if self.type.startswith("<") else 1

    @property
    def is_real(self) -> bool:
        return self.scalar in ("float", "double")

    def apply(self, op: str, other: Operand) -> Value:
        """Return the result of an instruction, in every lane; NaN is equal to nothing."""
        name, second = INSTRUCTIONS[op][self.is_real], self.writer.literal(other, self.type)
        kind = self.type.replace(self.scalar, "i1") if op in _PREDICATES else self.type
        return self.writer.value(f"{name} {self}, {second.text}", kind)

    __add__, __sub__, __mul__ = _operator("add"), _operator("sub"), _operator("mul")
    __truediv__ = __floordiv__ = _operator("div")
    __mod__ = _operator("rem")
    __and__, __or__, __xor__ = _operator("and"), _operator("or"), _operator("xor")
    __lshift__, __rshift__ = _operator("shl"), _operator("lshr")
    __lt__, __ge__ = _operator("lt"), _operator("ge")
    equals, differs = _operator("eq"), _operator("ne")


Operand: TypeAlias = "Value | int | float"
Branch: TypeAlias = "Callable[[], Sequence[Value]]"


@dataclass(frozen=True)
class Array:
    """Memory from a pointer on, of elements of a type; ``array[index]`` is one of them."""

    pointer: Value
    element: str

    def at(self, index: Operand) -> Array:
        if index == 0:
            return self
        writer = self.pointer.writer
        place = writer.literal(index, WORD)
        pointer = writer.value(f"getelementptr {self.element}, {self.pointer}, {place}", "ptr")
        return Array(pointer, self.element)

    def __getitem__(self, index: Operand) -> Value:
        value = self.vector(index, 1)
        return value.writer.value(f"zext {value} to i64", WORD) if self._is_short else value

    def __setitem__(self, index: Operand, value: Operand) -> None:
        writer = self.pointer.writer
        stored = writer.literal(value, WORD if self._is_short else self.element)
        if self._is_short:
            stored = writer.value(f"trunc {stored} to {self.element}", self.element)
        self.store(index, stored)

    def vector(self, index: Operand, lanes: int) -> Value:
        """Return neighbours, as many as there are lanes."""
        kind = self.element if lanes == 1 else f"<{lanes} x {self.element}>"
        source = self.at(index).pointer
        return source.writer.value(f"load {kind}, {source}, align {_BYTES[self.element]}", kind)

    def store(self, index: Operand, value: Value) -> None:
        target = self.at(index).pointer
        target.writer.line(f"store {value}, {target}, align {_BYTES[self.element]}")

    def some(self, index: Operand, count: Value, lanes: int) -> Value:
        """Return neighbours, the first ``count`` of them read and the others 0."""
        return self.masked(index, count.writer.first(count, lanes))

    def store_some(self, index: Operand, count: Value, value: Value) -> None:
        self.store_masked(index, count.writer.first(count, value.lanes), value)

    def masked(self, index: Operand, mask: Value) -> Value:
        """Return neighbours, those that are not in a mask as 0."""
        source, kind = self.at(index).pointer, f"<{mask.lanes} x {self.element}>"
        writer, (name, size) = source.writer, self._masked(mask)
        zeros = Value(writer, "zeroinitializer", kind)
        return writer.intrinsic(f"llvm.masked.load.{name}", kind, source, size, mask, zeros)

    def store_masked(self, index: Operand, mask: Value, value: Value) -> None:
        target, (name, size) = self.at(index).pointer, self._masked(mask)
        given = (value, target, size, mask)
        target.writer.intrinsic(f"llvm.masked.store.{name}", "void", *given)

    def _masked(self, mask: Value) -> tuple[str, Value]:
        """Return the suffix of LLVM's function, and the alignment."""
        size = _BYTES[self.element]
        kind = "f" if self.element in ("float", "double") else "i"
        return f"v{mask.lanes}{kind}{8 * size}.p0", mask.writer.literal(size, "i32")

    @property
    def _is_short(self) -> bool:
        return self.element in ("i32", "i16")


@dataclass
class Iteration:
    """Iteration of a loop, whose body sets ``next``; after it, what ``carried`` were at its end."""

    index: Value
    carried: tuple[Value, ...]
    next: tuple[Operand, ...] = ()


def below(stop: Operand) -> Callable[[Sequence[Value]], Value]:
    """Return the condition that the first of what a loop carries is less than ``stop``."""
    return lambda carried: carried[0] < stop


@dataclass
class Writer:
    """Write the lines of one function."""

    declared: set[str] = field(default_factory=set)
    """Declarations of LLVM's own functions that are called."""
    lines: list[str] = field(default_factory=list)
    block: str = "begin"
    """The label of the block that is written."""
    count: int = 0
    """How many names have been given."""

    def line(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def value(self, text: str, kind: str) -> Value:
        result = Value(self, self._fresh("%v"), kind)
        self.line(f"{result.text} = {text}")
        return result

    def named(self, value: Value, name: str) -> Value:
        """Return a value under a name, which no other has, if the last instruction gave it one."""
        start = f"  {value.text} = "
        if not self.lines[-1].startswith(start) or not name.isascii():
            return value
        named = Value(self, f"%v.{name}", value.type)
        self.lines[-1] = f"  {named.text} = {self.lines[-1].removeprefix(start)}"
        return named

    def literal(self, operand: Operand, kind: str) -> Value:
        """Return an operand as a value of a type, in all lanes."""
        if isinstance(operand, Value):
            if operand.type != kind:
                raise TypeError(f"{operand} is not a {kind}.")
            return operand
        empty = Value(self, "", kind)
        text = str(operand).lower() if isinstance(operand, bool) else str(operand)
        if empty.is_real:
            # the bits of the double, for both types
            text = f"0x{struct.unpack('<Q', struct.pack('<d', operand))[0]:016X}"
        is_vector = kind.startswith("<")
        return Value(self, f"splat ({empty.scalar} {text})" if is_vector else text, kind)

    def first(self, count: Value, lanes: int) -> Value:
        """Return the mask of the first ``count`` of some lanes."""
        return self.numbered(lanes, WORD) < self.spread(count, lanes)

    def spread(self, value: Value, lanes: int) -> Value:
        kind = f"<{lanes} x {value.type}>"
        one = self.value(f"insertelement {kind} poison, {value}, i64 0", kind)
        zeros = f"<{lanes} x i32> zeroinitializer"
        return self.value(f"shufflevector {one}, {kind} poison, {zeros}", kind)

    def convert(self, op: str, value: Value, kind: str) -> Value:
        """Return a value as one of another type: ``trunc``, ``zext``, ``sitofp``, ``bitcast``."""
        return self.value(f"{op} {value} to {kind}", kind)

    def numbered(self, lanes: int, kind: str) -> Value:
        numbers = ", ".join(f"{kind} {lane}" for lane in range(lanes))
        return Value(self, f"<{numbers}>", f"<{lanes} x {kind}>")

    def intrinsic(self, name: str, kind: str, *arguments: Value) -> Value:
        """Call a function of LLVM's own."""
        kinds = ", ".join(argument.type for argument in arguments)
        self.declared.add(f"declare {kind} @{name}({kinds})")
        call = f"call {kind} @{name}({', '.join(map(str, arguments))})"
        if kind == "void":
            self.line(call)
            return arguments[0]
        return self.value(call, kind)

    def select(self, condition: Value, first: Operand, second: Operand, kind: str = WORD) -> Value:
        one, other = self.literal(first, kind), self.literal(second, kind)
        return self.value(f"select {condition}, {one}, {other}", kind)

    def least(self, first: Value, second: Operand) -> Value:
        return self.select(first < second, first, second)

    def largest(self, first: Value, second: Operand) -> Value:
        return self.select(first < second, second, first)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        then, after = self._fresh("then"), self._fresh("after")
        self.line(f"br {condition}, label %{then}, label %{after}")
        self._label(then)
        yield
        self.line(f"br label %{after}")
        self._label(after)

    def choose(self, condition: Value, first: Branch, second: Branch) -> list[Value]:
        """Return the results of the branch that a condition chooses."""
        then, other, after = (self._fresh(name) for name in ("then", "else", "after"))
        self.line(f"br {condition}, label %{then}, label %{other}")
        ends: list[tuple[str, Sequence[Value]]] = []
        for name, branch in ((then, first), (other, second)):
            self._label(name)
            results = branch()
            ends.append((self.block, results))
            self.line(f"br label %{after}")
        self._label(after)
        (one, firsts), (two, seconds) = ends
        return [
            self.value(f"phi {a.type} [ {a.text}, %{one} ], [ {b.text}, %{two} ]", a.type)
            for a, b in zip(firsts, seconds, strict=True)
        ]

    @contextmanager
    def loop(
        self, start: Operand, stop: Operand, *carried: Value, step: int = 1
    ) -> Iterator[Iteration]:
        """Run what is written inside for each index of ``start, start + step ... < stop``."""
        first = self.literal(start, WORD)
        with self.repeat(below(stop), first, *carried) as iteration:
            inner = Iteration(iteration.carried[0], iteration.carried[1:])
            yield inner
            iteration.next = (iteration.carried[0] + step, *inner.next)

    @contextmanager
    def repeat(
        self, condition: Callable[[Sequence[Value]], Value], *initial: Value
    ) -> Iterator[Iteration]:
        """Run what is written inside as long as a condition holds of what is carried."""
        head, body, done = (self._fresh(name) for name in ("head", "body", "done"))
        before = self.block
        self.line(f"br label %{head}")
        self._label(head)
        place = len(self.lines)
        inside = tuple(Value(self, self._fresh("%c"), value.type) for value in initial)
        self.lines += [""] * len(inside)
        self.line(f"br {condition(inside)}, label %{body}, label %{done}")
        self._label(body)
        iteration = Iteration(inside[0], inside)
        yield iteration
        if len(iteration.next) != len(inside):
            raise ValueError(f"an iteration sets {len(iteration.next)} of {len(inside)} values.")
        for at, (value, begin, end) in enumerate(zip(inside, initial, iteration.next, strict=True)):
            last = self.literal(end, value.type)
            entries = f"[ {begin.text}, %{before} ], [ {last.text}, %{self.block} ]"
            self.lines[place + at] = f"  {value.text} = phi {value.type} {entries}"
        self.line(f"br label %{head}")
        self._label(done)

    def _fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def _label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name
