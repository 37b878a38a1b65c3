"""Emit the source of a kernel: an ``Emitter`` spells its statements in words of a ``Target``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

from tracetorch.fuse.ir import kernel as ir
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.kernel import values_read, without_dead_lines


@dataclass(frozen=True)
class Target:
    """Language of a printed kernel: its spelling of operations, literals and blocks."""

    expressions: Mapping[str, str]
    """Template of each operation on numbers of the arithmetic and booleans, with ``{}`` or ``{0}``,
    ``{1}``, ... for operands."""
    integers: Mapping[str, str] = field(default_factory=dict)
    """Template of each operation on integers."""
    true: str = "true"
    false: str = "false"
    zero: str = "zero"
    negative_zero: str = "-zero"
    one: str = "one"
    empty: str = "pass"
    """Statement that fills a block without any."""
    assignment: str = "{} = {}"
    """Template of a line that changes a variable: name, value."""
    end: str | None = None
    """Line that closes a block, where the language has one."""

    def unknown_operation(self, graph: Graph) -> str | None:
        """Return the first operation of ``graph`` that has no template, or ``None``."""
        return next((line.op for line in graph.lines if line.op not in self.expressions), None)


class Emitter(ABC):
    """Print a kernel: a child says how its language declares, loads, stores, and loops."""

    def __init__(self, kernel: ir.Schedule, target: Target) -> None:
        self.kernel = without_dead_lines(kernel)
        self.read = values_read(self.kernel.body)
        self.target = target
        self._lines: list[str] = []
        self._depth = 0

    # Lines

    def line(self, text: str) -> None:
        self._lines.append(" " * 4 * self._depth + text if text else "")

    def lines(self, *texts: str) -> None:
        for text in texts:
            self.line(text)

    @contextmanager
    def indent(self, header: str | None = None) -> Iterator[None]:
        if header is not None:
            self.line(header)
        opened = len(self._lines)
        self._depth += 1
        yield
        # In Python a block needs a statement, and a kernel may leave none.
        if len(self._lines) == opened:
            self.line(self.target.empty)
        self._depth -= 1
        if self.target.end is not None:
            self.line(self.target.end)

    def source(self) -> str:
        return "\n".join(self._lines) + "\n"

    # The language

    @abstractmethod
    def declare(self, value: ir.Var, spelled: str) -> None:
        """Append the line that gives a new name a value."""

    def declare_variable(self, value: ir.Var, spelled: str) -> None:
        """Append the line that gives a new name a value which will change."""
        self.declare(value, spelled)

    def assign(self, values: Mapping[ir.Var, str]) -> None:
        """Assign to variables all at once: a value may be the name of another of them."""
        changed = {name: value for name, value in values.items() if value != self.spell(name)}
        if len(changed) == 1:
            ((name, value),) = changed.items()
            self.line(self.target.assignment.format(self.spell(name), value))
            return
        moved = {name: ir.Var(f"moved_{name}", name.dtype, name.lanes) for name in changed}
        for name, value in changed.items():
            self.declare(moved[name], value)
        for name in changed:
            spelled = self.spell(moved[name])
            self.line(self.target.assignment.format(self.spell(name), spelled))

    @abstractmethod
    def load(self, buffer: ir.Buffer, index: Sequence[ir.Index]) -> str:
        """Return the expression of a value in memory."""

    @abstractmethod
    def store(self, buffer: ir.Buffer, index: Sequence[ir.Index], value: str) -> None:
        """Append the line that writes to memory."""

    @abstractmethod
    def loop(self, each: ir.For) -> AbstractContextManager[None]:
        """Open a loop over an index."""

    @abstractmethod
    def condition(self, condition: str) -> AbstractContextManager[None]:
        """Open a block that is run where a condition holds."""

    def over_lanes(self) -> AbstractContextManager[None]:
        """Open the loop over lanes; by default there is one lane, or a block of them."""
        return nullcontext()

    def barrier(self) -> None:  # noqa: B027 (one lane, or a block of them, needs none)
        """Append a barrier, where lanes run apart."""

    # Statements

    def body(self, body: Sequence[ir.Statement]) -> None:
        for each in body:
            if isinstance(each, ir.Operation):
                self.declare(each.result, self.expression(each))
            elif isinstance(each, ir.Load):
                self.declare(each.result, self.load(each.buffer, each.index))
            elif isinstance(each, ir.Store):
                value = self.spell(each.value)
                if each.buffer.role is ir.Role.SUMS:
                    total = self.load(each.buffer, each.index)
                    value = self.target.expressions["add"].format(total, value)
                self.store(each.buffer, each.index, value)
            elif isinstance(each, ir.For):
                self.walk(each)
            elif isinstance(each, ir.If):
                with self.condition(self.spell(each.condition)):
                    self.body(each.body)
            elif isinstance(each, ir.Lanes):
                with self.over_lanes():
                    self.body(each.body)
            elif isinstance(each, ir.Barrier):
                self.barrier()
            else:  # a product, which the CPU alone has
                raise NotImplementedError(f"{type(self).__name__} prints no {type(each).__name__}")

    def walk(self, each: ir.For) -> None:
        """Append a loop: its variables before it, their next values at its end."""
        for c in each.carried:
            self.declare_variable(c.inside, self.spell(c.initial))
        with self.loop(each):
            self.body(each.body)
            self.assign({c.inside: self.spell(c.next) for c in each.carried})
        for c in each.carried:
            if c.result in self.read:
                self.declare(c.result, self.spell(c.inside))

    def expression(self, each: ir.Operation) -> str:
        dtypes = [arg.dtype for arg in each.args if isinstance(arg, ir.Var)]
        whole = any(dtype.is_integer for dtype in dtypes)
        templates = self.target.integers if whole else self.target.expressions
        return templates[each.op].format(*map(self.spell, each.args))

    def spell(self, operand: ir.Operand) -> str:
        """Return the spelling of a value, a number or a truth value in the target language."""
        if isinstance(operand, ir.Var):
            return operand.name if operand in self.kernel.sizes else f"v_{operand.name}"
        # Before the numbers: True == 1.0.
        if isinstance(operand, bool):
            return self.target.true if operand else self.target.false
        if isinstance(operand, int):
            return str(operand)
        if operand == 1.0:
            return self.target.one
        # Division and atan2 see the sign of zero. Other numbers are loaded.
        positive = math.copysign(1.0, operand) > 0
        return self.target.zero if positive else self.target.negative_zero


class BraceEmitter(Emitter):
    """Print a kernel in a language whose blocks, loops and assignments are those of C."""

    counter: ClassVar[str]
    """How the index of a loop is declared."""

    @abstractmethod
    def place(self, buffer: ir.Buffer, index: Sequence[ir.Index]) -> str:
        """Return the expression of a place in memory, to be read or written."""

    def store(self, buffer: ir.Buffer, index: Sequence[ir.Index], value: str) -> None:
        self.line(f"{self.place(buffer, index)} = {value};")

    def loop(self, each: ir.For) -> AbstractContextManager[None]:
        index = self.spell(each.index)
        start, stop = self.spell(each.start), self.spell(each.stop)
        header = f"{self.counter} {index} = {start}; {index} < {stop}; {index}++"
        if each.reverse:
            header = f"{self.counter} {index} = {stop} - 1; {index} >= {start}; {index}--"
        return self.indent(f"for ({header}) {{")

    def condition(self, condition: str) -> AbstractContextManager[None]:
        return self.indent(f"if ({condition}) {{")
