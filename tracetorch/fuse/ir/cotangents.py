"""Keep an absent cotangent absent, as autograd does: it is no zero, which times infinity is NaN.

Which cotangents there are may differ from step to step: that of a state which no loss reads at the
end begins where an earlier step reads the state. So a :data:`Presence` is known for each, and a
value of which a step has none is left out of the sums that autograd makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, TypeAlias

from tracetorch.fuse.ir.graph import Builder, Graph, Line, Value

Presence: TypeAlias = tuple[bool, ...]
"""Whether it is there at the last step, the one before it, ..."""


class Presences(NamedTuple):
    """Presence of each cotangent; the last ``period`` entries go round."""

    of: dict[str, Presence]
    period: int


# of zeros they make zeros, whatever else is infinite
_LINEAR = ("add", "sub", "neg", "where")


def presences(
    graph: Graph,
    last: Mapping[str, bool],
    before: Callable[[Mapping[str, bool], Callable[[str], bool]], Mapping[str, bool]],
) -> Presences:
    """Return the presence of each cotangent of a graph, the vector-Jacobian product of one step.

    ``last`` says whether each is there at the last step; ``before`` returns the same of the step
    before, from those of a step and whether one of them reaches an output of the graph.
    """
    reading = readers(graph, last)
    found: list[dict[str, bool]] = []
    now = dict(last)
    while now not in found:
        found.append(now)
        there = {name for name, is_there in now.items() if is_there}
        now = dict(before(now, lambda end: bool(reading(graph.outputs[end]) & there)))  # noqa: B023
    of = {name: tuple([each[name] for each in found]) for name in now}
    return Presences(of, len(found) - found.index(now))


def readers(graph: Graph, names: Collection[str]) -> Callable[[Value], frozenset[str]]:
    """Return a function that tells which of some inputs a value depends on."""
    found: dict[Value, frozenset[str]] = {name: frozenset({name}) for name in names}
    nothing: frozenset[str] = frozenset()
    for line in graph.lines:
        found[line.name] = nothing.union(*(found.get(arg, nothing) for arg in line.args))
    return lambda value: found.get(value, nothing)


def without_absent(
    graph: Graph, presence: Mapping[str, Presence]
) -> tuple[Graph, dict[str, Presence]]:
    """Return a graph in which absent cotangents add nothing, and the inputs that say when."""
    pruned = _Pruning(graph, presence)
    for line in graph.lines:
        pruned.line(line)
    outputs = {name: pruned.guarded(value, None) for name, value in graph.outputs.items()}
    return Graph(tuple(pruned.builder.lines), outputs).select(outputs), pruned.flags


class _Pruning:
    def __init__(self, graph: Graph, presence: Mapping[str, Presence]) -> None:
        self.builder = Builder()
        self.flags: dict[str, Presence] = {}
        self.values: dict[Value, Value] = {}
        # of what depends on cotangents: when it is there, and whether it is 0 when not
        self.presence: dict[Value, Presence] = dict(presence.items())
        self.vanishing: set[Value] = set(presence)

    def line(self, line: Line) -> None:
        """Write a line, or nothing where it is never there."""
        given = [arg for arg in line.args if arg in self.presence]
        if given:
            when = tuple(map(any, zip(*(self.presence[arg] for arg in given), strict=True)))
            self.presence[line.name] = when
            if not any(when):
                return
            if self._vanishes(line, given):
                self.vanishing.add(line.name)
            if line.op == "add":  # autograd's sum of what comes from two sides
                there = [arg for arg in line.args if any(self.presence.get(arg, when))]
                if len(there) == 1:
                    self.values[line.name] = self.guarded(there[0], when)
                    return
            args = [self.guarded(arg, when) for arg in line.args]
        else:
            args = [self.values.get(arg, arg) for arg in line.args]
        self.values[line.name] = self.builder.emit(line.op, *args)

    def guarded(self, arg: Value, when: Presence | None) -> Value:
        """Return a value that is 0 where it is absent, unless it is so where ``when`` says."""
        if arg not in self.presence:
            return self.values.get(arg, arg)
        mine = self.presence[arg]
        if not any(mine):
            return 0.0
        value = self.values.get(arg, arg)
        if all(mine) or mine == when or arg in self.vanishing:
            return value
        flag = "present_" + "".join(str(int(each)) for each in mine)
        self.flags[flag] = mine
        return self.builder.emit("where", flag, value, 0.0)

    def _vanishes(self, line: Line, given: Iterable[Value]) -> bool:
        """Whether a line is 0 where its cotangents are."""
        if not self.vanishing.issuperset(given):
            return False
        others = [arg for arg in line.args if arg not in self.presence]
        if line.op == "where":
            others = others[1:] if line.args[0] in others else [line.args[0]]
        if line.op == "mul" or (line.op == "div" and line.args[0] in given):
            return all(
                isinstance(each, float) and each != 0.0 and math.isfinite(each) for each in others
            )
        return line.op in _LINEAR and all(each == 0.0 for each in others)
