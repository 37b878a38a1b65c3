"""A network as a graph: products and pools, sums, maxima, and activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Activation:
    """A ReLU: ``min(max(x, 0), clip)``, rounded to levels if it has some.

    Args:
        clip: the largest value; ``None`` for none.
        levels: steps between 0 and the clip; ``None`` where it is not rounded.
    """

    clip: float | None = None
    levels: int | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """Value of a network, computed from others; each is equal to itself alone.

    Args:
        name: in the user's model, for messages and reports.
        kind: ``"input"``; ``"linear"``, a product or a pool that is linear; ``"max"``, a pool;
            ``"sum"``; or ``"activation"``.
        inputs: places of the values it is computed from.
        module: what computes it; of an input and a sum ``None``.
        activation: of that kind.
    """

    name: str
    kind: Literal["input", "linear", "max", "sum", "activation"]
    inputs: tuple[int, ...] = ()
    module: nn.Module | None = None
    activation: Activation | None = None


Compute = Callable[[Node, list[Tensor]], Tensor]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of their computation, and the place of the output among them.

    Args:
        nodes: the first is the input.
        output: place of the output.
    """

    nodes: tuple[Node, ...]
    output: int

    @property
    def is_chain(self) -> bool:
        """Whether each node is computed from the one before, and the last is the output."""
        places = range(1, len(self.nodes))
        return self.output == len(self.nodes) - 1 and all(
            self.nodes[place].inputs == (place - 1,) for place in places
        )

    def run(self, x: Tensor, compute: Compute) -> Tensor:
        """Return the output for an input; values that are no longer needed are dropped.

        Args:
            x: value of the input.
            compute: returns the value of any other node from those of its inputs; not of a sum.
        """
        remaining = Counter(source for node in self.nodes for source in node.inputs)
        remaining[self.output] += 1
        values: dict[int, Tensor] = {}
        for place, node in enumerate(self.nodes):
            inputs = [values[source] for source in node.inputs]
            if node.kind == "input":
                values[place] = x
            elif node.kind == "sum":
                values[place] = sum(inputs[1:], inputs[0])
            else:
                values[place] = compute(node, inputs)
            for source in (*node.inputs, place):
                remaining[source] -= source != place
                if not remaining[source]:
                    values.pop(source, None)
        return values[self.output]
