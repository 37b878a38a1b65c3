"""Plan the kernels of one call: a program, and the gradients and trajectories that are needed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from tracetorch.fuse.ir.cotangents import Presence, Presences, presences, readers, without_absent
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.trace import Program

# Most values of recomputed states that a backward kernel holds at a time, for one tile of lanes:
# half of a core's L2 cache, in float32.
SCRATCH = 128 * 1024
ABSENT = "/absent/"  # in the key of a plan, before what is
TILE = 512  # lanes that a CPU kernel walks through time together


@dataclass(frozen=True, eq=False)
class Plan:
    """Specification of the kernels that run a program forward and backward.

    Args:
        program: the step and its vector-Jacobian product.
        backend: name of the backend that runs it.
        dim: the neuron dimension, counted from the end.
        record: the states whose trajectories are returned.
        has_backward: whether there will be a backward pass.
        differentiated, trained: the inputs and parameters whose gradients it computes.
        tile: lanes whose recomputed states the backend holds at a time.
        kernels: what the runtime has compiled of it, by a key of its own; freed with the plan.
        tried: kernels that are believed: whether it is the backward one, and the device.
        absent: those of :attr:`results` to which no cotangent comes back.
        whole: the plan to which all do; its forward pass is also that of this one.
        parts: the plans whose whole this one is, by what is absent.
        steps: of the sequence, where it is shorter than what :attr:`presence` tells.
    """

    program: Program
    backend: str
    dim: int
    record: tuple[str, ...]
    has_backward: bool
    differentiated: tuple[str, ...]
    trained: tuple[str, ...]
    tile: int = TILE
    kernels: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    tried: set[tuple[Any, ...]] = field(default_factory=set, repr=False)
    absent: frozenset[str] = frozenset()
    whole: Plan | None = None
    parts: dict[Hashable, Plan] = field(default_factory=dict, repr=False)
    steps: int | None = None

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
        if part is self or steps is None or not part.presence:
            return part
        length = len(next(iter(part.presence.values())))
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

    @property
    def presence(self) -> dict[str, Presence]:
        """Presence of each cotangent, by its name in the graph."""
        return self.presences.of

    @cached_property
    def presences(self) -> Presences:
        """The same, and how it goes on."""
        program, graph = self.program, self.program.graph
        names = {f"g_{name.removeprefix('next_')}": name for name in program.smooth}
        reading = readers(graph, names)

        def recorded(name: str) -> bool:
            state = name.removeprefix("next_")
            return state in self.record and f"record_{state}" not in self.absent

        def before(now: Mapping[str, bool], reaches: Callable[[str], bool]) -> dict[str, bool]:
            def comes(name: str) -> bool:
                # a zero that is written out is there as well
                zero = name in program.reached and not reading(graph.outputs[f"d_{name}"])
                return zero or reaches(f"d_{name}")

            found: dict[str, bool] = {}
            for cotangent, name in names.items():
                if name == "output":
                    fed = self.feeds_back and (now[cotangent] or comes("x"))
                    found[cotangent] = "output" not in self.absent or fed
                else:
                    found[cotangent] = recorded(name) or comes(f"s_{name.removeprefix('next_')}")
            return found

        last = {g: name not in self.absent or recorded(name) for g, name in names.items()}
        if self.feeds_back and "g_output" in last:
            last["g_output"] = not self.absent.issuperset(("output", "last"))
        return presences(graph, last, before)

    @cached_property
    def reached(self) -> frozenset[str]:
        graph, reached = self.program.graph, self.program.reached
        ever = {name for name, when in self.presence.items() if any(when[: self.steps])}
        reading = readers(graph, self.presence)
        read = {name: reading(graph.outputs[f"d_{name}"]) for name in reached}
        return frozenset(name for name, g in read.items() if not g or g & ever)

    @cached_property
    def gradients(self) -> Graph:
        """Graph of the gradients that are needed, if all cotangents are present."""
        return self.program.backward(self.differentiated, self.trained)

    @cached_property
    def _pruned(self) -> tuple[Graph, dict[str, Presence]]:
        return without_absent(self.gradients, self.presence)

    @property
    def backward(self) -> Graph:
        """Graph of the gradients that are needed, from the cotangents that are present."""
        return self._pruned[0] if self.absent else self.gradients

    @property
    def flags(self) -> dict[str, Presence]:
        """The inputs of :attr:`backward` that say whether a cotangent is present at a step."""
        return self._pruned[1] if self.absent else {}

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
        if not (self.has_backward and self.recomputed):
            return 0
        # The first segment needs none: it begins with the initial states.
        return (steps - 1) // self.checkpoint_interval

    @cached_property
    def smooth_results(self) -> tuple[bool, ...]:
        """Whether each result has a gradient: output, final states, trajectories."""
        ends = ["output" if name == "last" else name for name in self.results]
        ends[len(ends) - len(self.record) :] = [f"next_{name}" for name in self.record]
        return tuple(name in self.program.smooth for name in ends)

    @cached_property
    def key(self) -> str:
        """Key, equal for plans that do the same."""
        names = [",".join(n) for n in (self.record, self.differentiated, self.trained)]
        flags = (str(self.dim), f"{self.has_backward:d}")
        if self.whole is not None:
            return f"{self.whole.key}{ABSENT}{','.join(sorted(self.absent))}"
        return "/".join((self.program.key, self.backend, *flags, *names))


class RecurrentPlan(Plan):
    """Plan of a step whose output returns to its input through a matrix."""

    needs_weight_gradient: ClassVar[bool] = False
    """Whether the matrix has a gradient, for which the backward pass recomputes the outputs."""

    feeds_back = True

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
    """Plan of one whose matrix has a gradient."""

    needs_weight_gradient = True
