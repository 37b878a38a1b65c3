"""Plan the kernels of one call: a program, and the gradients and trajectories that are needed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.trace import Program

# Most values of recomputed states that a backward kernel holds at a time, for one tile of lanes:
# half of a core's L2 cache, in float32.
SCRATCH = 128 * 1024
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

    @cached_property
    def backward(self) -> Graph:
        """Graph of the gradients that are needed."""
        return self.program.backward(self.differentiated, self.trained)

    @cached_property
    def recomputed(self) -> tuple[str, ...]:
        """Names of the states whose past values the backward pass recomputes."""
        return self.program.recomputed(self.backward)

    @cached_property
    def advance(self) -> Graph:
        """Graph of the next values of the states of :attr:`recomputed`."""
        return self.program.graph.select([f"next_{name}" for name in self.recomputed])

    @cached_property
    def literals(self) -> tuple[float, ...]:
        """Numbers in the program, except 0.0 and 1.0.

        They are arguments of the kernel, so that one kernel serves every slope of a surrogate.
        """
        numbers = self.program.graph.literals().values()
        return tuple(number for number in numbers if number not in (0.0, 1.0))

    @cached_property
    def checkpoint_interval(self) -> int:
        """Number of steps from one checkpoint to the next; states in between are recomputed."""
        return max(1, SCRATCH // (self.tile * max(1, len(self.recomputed))))

    def checkpoints(self, steps: int) -> int:
        """Return the number of checkpoints that a forward pass over ``steps`` steps stores."""
        if not (self.has_backward and self.recomputed):
            return 0
        # The first segment needs none: it begins with the initial states.
        return (steps - 1) // self.checkpoint_interval

    @cached_property
    def smooth_results(self) -> tuple[bool, ...]:
        """Whether each result has a gradient: output, final states, trajectories."""
        names = ("output", *(f"next_{name}" for name in (*self.program.states, *self.record)))
        return tuple(name in self.program.smooth for name in names)

    @cached_property
    def key(self) -> str:
        """Key, equal for plans that do the same."""
        names = [",".join(n) for n in (self.record, self.differentiated, self.trained)]
        flags = (str(self.dim), f"{self.has_backward:d}")
        return "/".join((self.program.key, self.backend, *flags, *names))


class RecurrentPlan(Plan):
    """Plan of a step whose output returns to its input through a matrix."""

    needs_weight_gradient: ClassVar[bool] = False
    """Whether the matrix has a gradient, for which the backward pass recomputes the outputs."""

    @cached_property
    def backward(self) -> Graph:
        """Graph of the gradients that are needed, and of the output where the matrix learns."""
        graph = self.program.backward(("x",), self.trained)
        names = [*graph.outputs, *(["output"] if self.needs_weight_gradient else [])]
        return self.program.graph.select(names)


class LearningPlan(RecurrentPlan):
    """Plan of one whose matrix has a gradient."""

    needs_weight_gradient = True
