"""Emit the source of a kernel: an ``Emitter`` indents lines and prints graphs for a ``Target``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tracetorch.fuse.ir.graph import Graph, Value


@dataclass(frozen=True)
class Target:
    """Language of a printed kernel: its spelling of operations, literals and types.

    Args:
        real: type of the arithmetic.
        expressions: template of each operation, with ``{}`` or ``{0}``, ``{1}``, ... for operands.
        literal: template that reads number ``{}`` of the kernel's argument ``literals``.
        true: the literal.
        false: the literal.
        zero: the literal 0.0, of type ``real``.
        negative_zero: the literal -0.0.
        one: the literal 1.0.
        empty: statement that fills a block without any.
        assignment: template of a line that gives a name a value.
        end: line that closes a block, where the language has one.
    """

    real: str
    expressions: Mapping[str, str]
    literal: str
    true: str
    false: str
    zero: str = "zero"
    negative_zero: str = "-zero"
    one: str = "one"
    empty: str = "pass"
    assignment: str = "{} = {}"
    end: str | None = None

    def unknown_operation(self, graph: Graph) -> str | None:
        """Return the first operation of ``graph`` that has no template, or ``None``."""
        return next((line.op for line in graph.lines if line.op not in self.expressions), None)


class Emitter:
    """Collect the lines of a source, indented, and print graphs into them.

    Args:
        target: the language.
        literals: numbers that the kernel reads from its argument ``literals``, as ``c0``, ``c1``,
            ...; graphs may hold no others besides 0.0 and 1.0.

    Example:
        >>> from tracetorch.fuse.codegen.targets import javascript_target
        >>> from tracetorch.fuse.ir.graph import Graph, Line
        >>> emitter = Emitter(javascript_target(), [0.9])
        >>> decay = Graph((Line("v0", "mul", (0.9, "mem")),), {"next": "v0"})
        >>> with emitter.indent("(mem, literals) => {"):
        ...     emitter.read_literals([decay])
        ...     results = emitter.graph(decay)
        ...     emitter.line(f"return {results['next']};")
        >>> print(emitter.source(), end="")
        (mem, literals) => {
            const c0 = literals[0];
            const v0 = c0 * mem;
            return v0;
        }

    """

    def __init__(self, target: Target, literals: Sequence[float] = ()) -> None:
        self.target = target
        # by hexadecimal form, in which NaN equals itself
        self._literal_names = {number.hex(): f"c{i}" for i, number in enumerate(literals)}
        self._lines: list[str] = []
        self._depth = 0

    def line(self, text: str) -> None:
        """Append one line at the current indentation."""
        self._lines.append(" " * 4 * self._depth + text if text else "")

    def lines(self, *texts: str) -> None:
        """Append several lines at the current indentation."""
        for text in texts:
            self.line(text)

    @contextmanager
    def indent(self, header: str | None = None) -> Iterator[None]:
        """Indent the lines that are appended inside the ``with`` block.

        Args:
            header: line that opens the block, at the outer indentation; default none.
        """
        if header is not None:
            self.line(header)
        opened = len(self._lines)
        self._depth += 1
        yield
        # In Python a block needs a statement, and a plan may leave none.
        if len(self._lines) == opened:
            self.line(self.target.empty)
        self._depth -= 1
        if self.target.end is not None:
            self.line(self.target.end)

    def read_literals(self, graphs: Iterable[Graph]) -> None:
        """Append one line for each literal that ``graphs`` use: its name and where it is read."""
        used = {number for graph in graphs for number in graph.literals()}
        for i, (number, name) in enumerate(self._literal_names.items()):
            if number in used:
                self.line(self.target.assignment.format(name, self.target.literal.format(i)))

    def graph(
        self, graph: Graph, env: Mapping[str, str] | None = None, suffix: str = ""
    ) -> dict[str, str]:
        """Append the lines of ``graph``, one assignment each.

        Args:
            graph: the arithmetic.
            env: spelling of its inputs; one that is missing is spelled as it is named.
            suffix: appended to the names of its lines, to print a graph twice in one scope.

        Returns:
            The spelling of its outputs, by name.

        """
        env = dict(env or {})
        for line in graph.lines:
            operands = [self.spell(arg, env) for arg in line.args]
            value = self.target.expressions[line.op].format(*operands)
            # Later lines and the outputs find this one under its new name.
            env[line.name] = f"{line.name}{suffix}"
            self.line(self.target.assignment.format(env[line.name], value))
        return {name: self.spell(output, env) for name, output in graph.outputs.items()}

    def spell(self, value: Value, env: Mapping[str, str]) -> str:
        """Return the spelling of a value, a number or a truth value in the target language."""
        if isinstance(value, str):
            return env.get(value, value)
        # Before the numbers: True == 1.0.
        if isinstance(value, bool):
            return self.target.true if value else self.target.false
        if value == 1.0:
            return self.target.one
        # Division and atan2 see the sign of zero.
        if value == 0.0:
            positive = math.copysign(1.0, value) > 0
            return self.target.zero if positive else self.target.negative_zero
        return self._literal_names[value.hex()]

    def source(self) -> str:
        """Return the text of all lines."""
        return "\n".join(self._lines) + "\n"
