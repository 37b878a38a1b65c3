"""``Plan``: a program and what one call needs of it, ready to be printed as kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.trace import Program

SCRATCH = 128 * 1024  # values of past states that a backward pass keeps at hand: half of an L2
TILE = 512  # lanes that a kernel walks through time together
GPU_TILE = 8 * TILE  # a GPU walks all lanes at once, and has less room for the past of each


@dataclass(frozen=True, eq=False)
class Plan:
    """One way to run a program.

    Args:
        program: the step and its gradient.
        backend: who runs it.
        dim: the neuron dimension, counted from the end.
        record: the states whose trajectories are wanted.
        graph: whether there will be a backward pass.
        x: whether it needs the gradient of the input.
        trained: the parameters of which it needs the gradient.

    """

    program: Program
    backend: str
    dim: int
    record: tuple[str, ...]
    graph: bool
    x: bool
    trained: tuple[str, ...]

    @cached_property
    def backward(self) -> Graph:
        """The gradients that are needed."""
        return self.program.backward(self.x, self.trained)

    @cached_property
    def recomputed(self) -> tuple[str, ...]:
        """The states that the backward pass computes again."""
        return self.program.recomputed(self.backward)

    @cached_property
    def advance(self) -> Graph:
        """The states of :attr:`recomputed` after one step."""
        return self.program.graph.select([f"next_{name}" for name in self.recomputed])

    @cached_property
    def literals(self) -> tuple[float, ...]:
        """The numbers in the program: arguments of the kernel, so that it serves every slope.

        Zero and one stay in the source.
        """
        numbers = self.program.graph.literals().values()
        return tuple(number for number in numbers if number not in (0.0, 1.0))

    @cached_property
    def checkpoint_interval(self) -> int:
        """Steps from one checkpoint to the next; in between, states are computed again."""
        tile = GPU_TILE if self.backend == "triton" else TILE
        return max(1, SCRATCH // (tile * max(1, len(self.recomputed))))

    def checkpoints(self, steps: int) -> int:
        """How many times the forward pass stores the states in ``steps`` steps."""
        if not (self.graph and self.recomputed):
            return 0
        return (steps - 1) // self.checkpoint_interval

    @cached_property
    def smooth_results(self) -> tuple[bool, ...]:
        """Whether each result has a gradient: output, final states, trajectories."""
        names = ("output", *(f"next_{name}" for name in (*self.program.states, *self.record)))
        return tuple(name in self.program.smooth for name in names)

    @cached_property
    def key(self) -> str:
        """Equal for plans that do the same."""
        names = (",".join(self.record), f"{self.graph:d}{self.x:d}", ",".join(self.trained))
        return "/".join((self.program.key, self.backend, str(self.dim), *names))
