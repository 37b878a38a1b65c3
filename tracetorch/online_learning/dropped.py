"""Find the paths that a rule drops: by the autograd graph of one step, not by the model's class."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from torch import Tensor


class DroppedPath(NamedTuple):
    """A path through time along which a rule sends no gradient, or a changed one.

    Args:
        origin: path of the parameter, or of the layer, that the path begins at.
        layer: path of the layer whose states it runs through.
        reason: what is missing.

    Example:
        >>> print(DroppedPath("0.weight", "3", "no trace"))
        0.weight -> states of 3: no trace
    """

    origin: str
    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin} -> states of {self.layer}: {self.reason}"


def reached(roots: Iterable[Any], stops: Collection[Any]) -> tuple[set[Any], list[Tensor]]:
    """Walk an autograd graph from some nodes; return the stops that were met, and other leaves."""
    seen: set[Any] = set()
    met: set[Any] = set()
    leaves: list[Tensor] = []
    pending = [*roots]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in stops:
            met.add(node)
            continue
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves.append(variable)
        pending.extend(parent for parent, _ in node.next_functions)
    return met, leaves


def reached_from(node: Any) -> list[Tensor]:
    """Return the leaves that a node of an autograd graph depends on."""
    return reached((parent for parent, _ in node.next_functions), ())[1]
