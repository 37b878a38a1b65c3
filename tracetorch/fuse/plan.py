"""``Plan``: a program and what one call wants of it, known to the operators by a string."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from tracetorch.fuse.graph import Graph
from tracetorch.fuse.trace import Program

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
    def literals(self) -> tuple[float, ...]:
        """The numbers in the program; kernels are told them, so that another slope needs no other.

        Zero and one stay in the source.
        """
        graph = self.program.graph
        refs = [ref for line in graph.lines for ref in line.args] + list(graph.outputs.values())
        numbers = (ref for ref in refs if isinstance(ref, float) and ref not in (0.0, 1.0))
        return tuple({number.hex(): number for number in numbers}.values())

    @cached_property
    def every(self) -> int:
        """Steps from one kept state to the next; in between, states are computed again."""
        tile = GPU_TILE if self.backend == "triton" else TILE
        return max(1, SCRATCH // (tile * max(1, len(self.recomputed))))

    @cached_property
    def key(self) -> str:
        """Equal for plans that do the same."""
        names = (",".join(self.record), f"{self.graph:d}{self.x:d}", ",".join(self.trained))
        return "/".join((self.program.key, self.backend, str(self.dim), *names))

    def marks(self, steps: int) -> int:
        """How many times the states are kept in ``steps`` steps."""
        return (steps - 1) // self.every if self.graph and self.recomputed else 0


@lru_cache(maxsize=512)
def planned(
    program: Program,
    backend: str,
    dim: int,
    record: tuple[str, ...],
    graph: bool,
    x: bool,
    trained: tuple[str, ...],
) -> Plan:
    """The :class:`Plan` of these, the same object each time; a backward pass holds its own."""
    return Plan(program, backend, dim, record, graph, x, trained)


_plans: dict[str, Plan] = {}


def register(plan: Plan) -> str:
    """The key of ``plan``, by which the operators find it in this process, from now on."""
    _plans.setdefault(plan.key, plan)
    return plan.key


def plan_of(key: str) -> Plan:
    """The plan behind a key.

    Raises:
        KeyError: nobody registered it in this process.

    """
    if key not in _plans:
        raise KeyError(
            f"no plan {key!r} in this process: a fused program was carried over from another. "
            "Export under tt.fuse.backend('eager')."
        )
    return _plans[key]
