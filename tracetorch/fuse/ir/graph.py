"""``Graph``: straight-line arithmetic on one lane, what a step becomes before it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Ref: TypeAlias = "str | float | bool"  # the name of a value, or a literal

COMPARISONS = frozenset({"gt", "ge", "lt", "le", "eq", "ne"})
LOGIC = frozenset({"and", "or", "xor", "not"})

# What every printer spells the same.
INFIX = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "and": "{} & {}",
    "or": "{} | {}",
    "xor": "{} ^ {}",
}


class Unfusable(Exception):  # noqa: N818 (a verdict, not a fault)
    """A step cannot become a kernel; the message is the reason, as the user reads it."""


@dataclass(frozen=True)
class Line:
    """``name = op(*args)``."""

    name: str
    op: str
    args: tuple[Ref, ...]

    def __str__(self) -> str:
        return f"{self.name} = {self.op}({', '.join(map(str, self.args))})"


@dataclass(frozen=True)
class Graph:
    """Lines in order, and the values that are asked for, by name.

    Names that no line defines are inputs. Floats are called ``v<i>``, truth values ``b<i>``.

    Example:
        >>> builder = Builder()
        >>> double = builder.emit("add", "x", "x")
        >>> unused = builder.emit("neg", "x")
        >>> print(Graph(tuple(builder.lines), {"y": double}).select(["y"]))
        v0 = add(x, x)
        y: v0

    """

    lines: tuple[Line, ...]
    outputs: Mapping[str, Ref]

    def select(self, names: Iterable[str]) -> Graph:
        """The graph of these outputs alone, without the lines they do not need."""
        outputs = {name: self.outputs[name] for name in names}
        wanted = {ref for ref in outputs.values() if isinstance(ref, str)}
        kept: list[Line] = []
        for line in reversed(self.lines):
            if line.name in wanted:
                kept.append(line)
                wanted.update(arg for arg in line.args if isinstance(arg, str))
        return Graph(tuple(reversed(kept)), outputs)

    def reads(self) -> set[str]:
        """The inputs that the lines and outputs read."""
        read = {arg for line in self.lines for arg in line.args if isinstance(arg, str)}
        read |= {ref for ref in self.outputs.values() if isinstance(ref, str)}
        return read - {line.name for line in self.lines}

    def literals(self) -> dict[str, float]:
        """Return the numbers that the lines and outputs hold, by hexadecimal form."""
        refs = [ref for line in self.lines for ref in line.args] + list(self.outputs.values())
        return {ref.hex(): ref for ref in refs if isinstance(ref, float)}

    def __str__(self) -> str:
        ends = (f"{name}: {ref}" for name, ref in self.outputs.items())
        return "\n".join([*map(str, self.lines), *ends])


@dataclass
class Builder:
    """Writes lines; the same operation on the same values is written once."""

    lines: list[Line] = field(default_factory=list)
    written: dict[tuple[object, ...], str] = field(default_factory=dict)

    def emit(self, op: str, *args: Ref) -> Ref:
        """The value of ``op(*args)``."""
        if op == "mul" and args[1] == 1.0:
            return args[0]
        if op == "mul" and args[0] == 1.0:
            return args[1]
        key = (op, *((type(arg), repr(arg)) for arg in args))
        if key not in self.written:
            kind = "b" if op in COMPARISONS or op in LOGIC else "v"
            name = f"{kind}{len(self.lines)}"
            self.lines.append(Line(name, op, args))
            self.written[key] = name
        return self.written[key]


def is_truth(ref: Ref) -> bool:
    """Whether a value is a truth value rather than a float."""
    return isinstance(ref, bool) or (isinstance(ref, str) and ref[0] == "b" and ref[1:].isdigit())
