"""Plan the kernels of one call: a program, and the gradients and trajectories that are needed.

An absent cotangent stays absent, as in autograd: it is no zero, which times infinity is NaN. That
may differ from step to step, of a state that no loss reads at the end, say: so a :data:`Presence`
is known for each, and what a step has none of is left out of the sums that autograd makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeAlias

from tracetorch.fuse.ir.graph import Builder, Graph, Line, Value
from tracetorch.fuse.ir.trace import Program

# Most values of recomputed states that a backward kernel holds at a time, for one tile of lanes:
# half of a core's L2 cache, in float32.
SCRATCH = 128 * 1024
ABSENT = "/absent/"  # in the key of a plan, before what is
TILE = 512  # lanes that a CPU kernel walks through time together


Presence: TypeAlias = tuple[bool, ...]
"""Whether it is there at the last step, the one before it, ..."""


class Presences(NamedTuple):
    """Presence of each cotangent; the last ``period`` entries go round."""

    of: dict[str, Presence]
    period: int


@dataclass(frozen=True, eq=False)
class Plan:
    """Specification of the kernels that run a program forward and backward."""

    program: Program
    backend: str
    dim: int  # that of the neurons, counted from the end
    record: tuple[str, ...]  # the states whose trajectories are returned
    has_backward: bool
    differentiated: tuple[str, ...]  # the inputs and parameters whose gradients are computed
    trained: tuple[str, ...]
    tile: int = TILE  # lanes whose recomputed states the backend holds at a time
    # what the runtime has compiled of it, by a key of its own
    kernels: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    # kernels that are believed: whether it is the backward one, and the device
    tried: set[tuple[Any, ...]] = field(default_factory=set, repr=False)
    absent: frozenset[str] = frozenset()  # the results to which no cotangent comes back
    whole: Plan | None = None  # the plan to which all do; its forward pass is also that of this one
    parts: dict[Hashable, Plan] = field(default_factory=dict, repr=False)  # whose whole this is
    steps: int | None = None  # of the sequence, where it is shorter than what `presences` tells

    feeds_back: ClassVar[bool] = False
    """Whether what comes back to the input of a step comes back to the output of an earlier one."""

    @cached_property
    def results(self) -> tuple[str, ...]:
        """Names of the results: output, final states, trajectories."""
        ends = [f"next_{name}" for name in self.program.states]
        return ("output", *ends, *(f"record_{name}" for name in self.record))

    def given(self, cotangents: Sequence[object | None], steps: int | None = None) -> Plan:
        """Return the plan of a backward pass, from the cotangents of the results, or ``None``."""
        pairs = zip(self.results, cotangents, self.smooth_results, strict=True)
        absent = frozenset([n for n, g, smooth in pairs if g is None and smooth])
        part = self.without(absent)
        if part is self or steps is None:
            return part
        length = max(map(len, part.presences.of.values()), default=0)
        return self.without(absent, steps) if steps < length else part

    def without(self, absent: frozenset[str], steps: int | None = None) -> Plan:
        """Return the plan of a backward pass to which these cotangents do not come back."""
        key = absent if steps is None else (absent, steps)
        if absent and key not in self.parts:
            fresh: Any = {"kernels": {}, "tried": set(), "parts": {}}
            part = replace(self, **fresh, absent=absent, whole=self, steps=steps)
            # what nothing comes back to has no gradient, as in autograd
            names = tuple([n for n in self.differentiated if n in part.reached])
            trained = tuple([n for n in self.trained if f"p_{n}" in part.reached])
            self.parts[key] = replace(part, differentiated=names, trained=trained)
        return self.parts[key] if absent else self

    @cached_property
    def presences(self) -> Presences:
        """Presence of each cotangent, by its name in the graph, and how it goes on."""
        program, graph = self.program, self.program.graph
        names = {f"g_{name.removeprefix('next_')}": name for name in program.smooth}
        reading = readers(graph, names)

        def recorded(name: str) -> bool:
            state = name.removeprefix("next_")
            return state in self.record and f"record_{state}" not in self.absent

        def before(now: Mapping[str, bool]) -> dict[str, bool]:
            there = {name for name, is_there in now.items() if is_there}

            def comes(name: str) -> bool:
                read = reading(graph.outputs[f"d_{name}"])
                # a zero that is written out is there as well
                return bool(read & there) or (name in program.reached and not read)

            found: dict[str, bool] = {}
            for cotangent, name in names.items():
                if name == "output":
                    fed = self.feeds_back and (now[cotangent] or comes("x"))
                    found[cotangent] = "output" not in self.absent or fed
                else:
                    found[cotangent] = recorded(name) or comes(f"s_{name.removeprefix('next_')}")
            return found

        now = {g: name not in self.absent or recorded(name) for g, name in names.items()}
        if self.feeds_back and "g_output" in now:
            now["g_output"] = not self.absent.issuperset(("output", "last"))
        found: list[dict[str, bool]] = []
        while now not in found:
            found.append(now)
            now = before(now)
        of = {name: tuple([each[name] for each in found]) for name in now}
        return Presences(of, len(found) - found.index(now))

    @cached_property
    def reached(self) -> frozenset[str]:
        graph, reached = self.program.graph, self.program.reached
        presence = self.presences.of
        ever = {name for name, when in presence.items() if any(when[: self.steps])}
        reading = readers(graph, presence)
        read = {name: reading(graph.outputs[f"d_{name}"]) for name in reached}
        return frozenset(name for name, g in read.items() if not g or g & ever)

    @cached_property
    def gradients(self) -> Graph:
        """Graph of the gradients that are needed, if all cotangents are present."""
        return self.program.backward(self.differentiated, self.trained)

    @cached_property
    def _pruned(self) -> tuple[Graph, dict[str, Presence]]:
        if not self.absent:
            return self.gradients, {}
        return without_absent(self.gradients, self.presences.of)

    @property
    def backward(self) -> Graph:
        """Graph of the gradients that are needed, from the cotangents that are present."""
        return self._pruned[0]

    @property
    def flags(self) -> dict[str, Presence]:
        """The inputs of :attr:`backward` that say whether a cotangent is present at a step."""
        return self._pruned[1]

    @cached_property
    def recomputed(self) -> tuple[str, ...]:
        """Names of the states whose past values the backward pass recomputes."""
        return self.whole.recomputed if self.whole else self.program.recomputed(self.gradients)

    @cached_property
    def advance(self) -> Graph:
        return self.program.graph.select([f"next_{name}" for name in self.recomputed])

    @cached_property
    def literals(self) -> tuple[float, ...]:
        """Numbers but 0.0 and 1.0, arguments: one kernel serves every slope of a surrogate."""
        numbers = self.program.graph.literals().values()
        return tuple(number for number in numbers if number not in (0.0, 1.0))

    @cached_property
    def checkpoint_interval(self) -> int:
        """Number of steps from one checkpoint to the next; states in between are recomputed."""
        values = len(self.recomputed)
        if self.backend == "triton":  # one cache for all lanes, of the inputs that are read again
            values += len(self.program.inputs)
        return max(1, SCRATCH // (self.tile * max(1, values)))

    def checkpoints(self, steps: int) -> int:
        """Return the number of checkpoints that a forward pass over ``steps`` steps stores."""
        # The first segment needs none: it begins with the initial states.
        needed = self.has_backward and self.recomputed
        return (steps - 1) // self.checkpoint_interval if needed else 0

    @cached_property
    def smooth_results(self) -> tuple[bool, ...]:
        """Whether each result has a gradient: output, final states, trajectories."""
        ends = ["output" if name == "last" else name for name in self.results]
        ends[len(ends) - len(self.record) :] = [f"next_{name}" for name in self.record]
        return tuple(name in self.program.smooth for name in ends)

    @cached_property
    def key(self) -> str:
        """Key, equal for plans that do the same."""
        if self.whole is not None:
            return f"{self.whole.key}{ABSENT}{','.join(sorted(self.absent))}"
        names = [",".join(n) for n in (self.record, self.differentiated, self.trained)]
        flags = (str(self.dim), f"{self.has_backward:d}")
        return "/".join((self.program.key, self.backend, *flags, *names))


class RecurrentPlan(Plan):
    """Plan of a step whose output returns to its input through a matrix."""

    feeds_back = True
    needs_weight_gradient: ClassVar[bool] = False
    """Whether the matrix has a gradient, for which the backward pass recomputes the outputs."""

    @cached_property
    def results(self) -> tuple[str, ...]:
        """Names of the results: output, last output, final states."""
        return ("output", "last", *super().results[1:])

    @cached_property
    def gradients(self) -> Graph:
        """Graph of the gradients that are needed, and of the output where the matrix learns."""
        graph = self.program.backward(("x",), self.trained)
        names = [*graph.outputs, *(["output"] if self.needs_weight_gradient else [])]
        return self.program.graph.select(names)


class LearningPlan(RecurrentPlan):
    needs_weight_gradient = True


# Absent cotangents

# of zeros they make zeros, whatever else is infinite
_LINEAR = ("add", "sub", "neg", "where")


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
    builder, flags, values = Builder(), dict[str, Presence](), dict[Value, Value]()
    # of what depends on cotangents: when it is there, and whether it is 0 when not
    times: dict[Value, Presence] = dict(presence.items())
    vanishing: set[Value] = set(presence)

    def guarded(arg: Value, when: Presence | None) -> Value:
        """Return a value that is 0 where it is absent, unless it is so where ``when`` says."""
        value = values.get(arg, arg)
        if arg not in times:
            return value
        mine = times[arg]
        if not any(mine):
            return 0.0
        if all(mine) or mine == when or arg in vanishing:
            return value
        flag = "present_" + "".join(str(int(each)) for each in mine)
        flags[flag] = mine
        return builder.emit("where", flag, value, 0.0)

    for line in graph.lines:
        when: Presence | None = None
        if given := [arg for arg in line.args if arg in times]:
            when = tuple(map(any, zip(*(times[arg] for arg in given), strict=True)))
            times[line.name] = when
            if not any(when):
                continue
            others = [arg for arg in line.args if arg not in times]
            if vanishing.issuperset(given) and _vanishes(line, given, others):
                vanishing.add(line.name)
            if line.op == "add":  # autograd's sum of what comes from two sides
                there = [arg for arg in line.args if any(times.get(arg, when))]
                if len(there) == 1:
                    values[line.name] = guarded(there[0], when)
                    continue
        values[line.name] = builder.emit(line.op, *[guarded(arg, when) for arg in line.args])
    outputs = {name: guarded(value, None) for name, value in graph.outputs.items()}
    return Graph(tuple(builder.lines), outputs).select(outputs), flags


def _vanishes(line: Line, given: Collection[Value], others: Sequence[Value]) -> bool:
    """Whether a line is 0 where its cotangents are, ``given``."""
    if line.op == "where":
        others = others[1:] if line.args[0] in others else [line.args[0]]
    if line.op == "mul" or (line.op == "div" and line.args[0] in given):
        return all(isinstance(each, float) and each and math.isfinite(each) for each in others)
    return line.op in _LINEAR and all(each == 0.0 for each in others)
