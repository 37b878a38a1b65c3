"""Represent a step as a ``Graph``: straight-line arithmetic on one lane, before it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Value: TypeAlias = "str | float | bool"  # the name of an input or of a line, or a literal

COMPARISONS = frozenset({"gt", "ge", "lt", "le", "eq", "ne"})
LOGIC = frozenset({"and", "or", "xor", "not"})
BOOLEAN = COMPARISONS | LOGIC
# Operations on floats, by the number of their operands.
UNARY = frozenset(
    {
        *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf"),
        *("erfc", "exp", "exp2", "expm1", "floor", "log", "log10", "log1p", "log2", "neg"),
        *("round", "sigmoid", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
    }
)
BINARY = frozenset(
    {
        *("add", "sub", "mul", "div", "max", "min", "pow", "atan2", "copysign", "fmod", "hypot"),
        "nextafter",
    }
)


class Unfusable(Exception):  # noqa: N818 (a reason, shown to the user, not an error)
    """A step cannot become a kernel; the message is the reason, as the user reads it."""


@dataclass(frozen=True)
class Line:
    """Assignment of one operation: ``name = op(*args)``."""

    name: str
    op: str
    args: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.name} = {self.op}({', '.join(map(str, self.args))})"


@dataclass(frozen=True)
class Graph:
    """Lines in order, floats unless :data:`BOOLEAN`, outputs by name; other names are inputs."""

    lines: tuple[Line, ...]
    outputs: Mapping[str, Value]

    def select(self, names: Iterable[str]) -> Graph:
        """Return the graph of these outputs alone, without the lines they do not need."""
        outputs = {name: self.outputs[name] for name in names}
        wanted = {value for value in outputs.values() if isinstance(value, str)}
        kept: list[Line] = []
        for line in reversed(self.lines):
            if line.name in wanted:
                kept.append(line)
                wanted.update(arg for arg in line.args if isinstance(arg, str))
        return Graph(tuple(reversed(kept)), outputs)

    def reads(self) -> set[str]:
        """Return the inputs that the lines and outputs read."""
        read = {arg for line in self.lines for arg in line.args if isinstance(arg, str)}
        read |= {value for value in self.outputs.values() if isinstance(value, str)}
        return read - {line.name for line in self.lines}

    def literals(self) -> dict[str, float]:
        """Return the numbers that the lines and outputs hold, by hexadecimal form."""
        values = [value for line in self.lines for value in line.args] + list(self.outputs.values())
        return {value.hex(): value for value in values if isinstance(value, float)}

    def __str__(self) -> str:
        ends = (f"{name}: {value}" for name, value in self.outputs.items())
        return "\n".join([*map(str, self.lines), *ends])


@dataclass
class Builder:
    """Append lines to a graph; the same operation on the same values gives one line."""

    lines: list[Line] = field(default_factory=list)
    names: dict[tuple[object, ...], str] = field(default_factory=dict)
    booleans: set[str] = field(default_factory=set)

    def emit(self, op: str, *args: Value) -> Value:
        """Return the value of ``op(*args)``, from an earlier line where there is one."""
        # Exact for every operand. Adding 0.0 is not: it turns -0.0 into 0.0.
        if op == "mul" and args[1] == 1.0:
            return args[0]
        if op == "mul" and args[0] == 1.0:
            return args[1]
        # By type and repr: True == 1.0 and 0.0 == -0.0, but they are different operands.
        key = (op, *((type(arg), repr(arg)) for arg in args))
        if key not in self.names:
            name = f"{'b' if op in BOOLEAN else 'v'}{len(self.lines)}"
            self.lines.append(Line(name, op, args))
            self.names[key] = name
            if op in BOOLEAN:
                self.booleans.add(name)
        return self.names[key]

    def is_boolean(self, value: Value) -> bool:
        return value in self.booleans if isinstance(value, str) else isinstance(value, bool)
