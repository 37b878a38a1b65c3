"""A NIR graph as plain data: what is read from a file, what is written to one, what is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Shape: TypeAlias = tuple[int, ...]

# Parameters of every kind of node: arrays of floating-point numbers ...
ARRAYS: Mapping[str, tuple[str, ...]] = {
    "Affine": ("weight", "bias"),
    "AvgPool2d": (),
    "Conv1d": ("weight", "bias"),
    "Conv2d": ("weight", "bias"),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    "Delay": ("delay",),
    "Flatten": (),
    "I": ("r",),
    "IF": ("r", "v_threshold", "v_reset"),
    "Input": (),
    "LI": ("tau", "r", "v_leak"),
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "Linear": ("weight",),
    "Output": (),
    "Scale": ("scale",),
    "SumPool2d": (),
    "Threshold": ("threshold",),
}
# ... and settings: whole numbers, one or several, or a word.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "AvgPool2d": ("kernel_size", "stride", "padding"),
    "Conv1d": ("input_shape", "stride", "padding", "dilation", "groups"),
    "Conv2d": ("input_shape", "stride", "padding", "dilation", "groups"),
    "Flatten": ("input_type", "start_dim", "end_dim"),
    "Input": ("shape",),
    "Output": ("shape",),
    "SumPool2d": ("kernel_size", "stride", "padding"),
}
# Those that older files leave out; None: follows from the rest.
OPTIONAL: Mapping[str, Any] = {
    "v_reset": 0.0,
    "w_in": 1.0,
    "input_shape": None,
    "input_type": None,
}
MEMBRANES = ("CubaLI", "CubaLIF", "I", "IF", "LI", "LIF")
# A cycle must pass through one of these; without, it would be an equation, not a network.
BREAKS_CYCLES = (*MEMBRANES, "Delay", "Threshold")


@dataclass(frozen=True)
class Node:
    """One node: its kind, its parameters, and the settings that are not learnt.

    Args:
        kind: one of the kinds of NIR, ``"LIF"``.
        arrays: parameters by NIR's own names.
        settings: the rest by NIR's own names; shapes without a batch.
        metadata: what NIR passes on without reading it.
    """

    kind: str
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Nodes by name, some of them graphs themselves, and the edges between them."""

    nodes: dict[str, Node | Graph]
    edges: list[tuple[str, str]]
    metadata: dict[str, Any] = field(default_factory=dict)

    def named(self, kind: str) -> list[str]:
        """Names of the nodes of a kind, in order of their names."""
        return sorted(n for n, node in self.nodes.items() if getattr(node, "kind", None) == kind)


def membrane(kind: str, shape: Shape, **values: Any) -> Node:
    """A node whose parameters all have the shape of its input."""
    return Node(kind, {name: over(shape, value) for name, value in values.items()})


def over(shape: Shape, value: Any) -> NDArray[np.float64]:
    """``value`` as an array of ``shape``."""
    return np.array(np.broadcast_to(np.asarray(value, np.float64), shape))
