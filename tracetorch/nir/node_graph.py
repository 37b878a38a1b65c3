"""Represent a NIR graph as plain data, and list the fields of every kind of node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Edge: TypeAlias = tuple[str, str]
Shape: TypeAlias = tuple[int, ...]  # of one sample, without the batch

CONV = ("input_shape", "stride", "padding", "dilation", "groups")
_POOL = ("kernel_size", "stride", "padding")
_LIF = ("r", "v_leak", "v_threshold", "v_reset")

# Parameters of every kind of node, arrays of real numbers, and its settings: whole numbers, one
# or several, or a word.
KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Affine": (("weight", "bias"), ()),
    "AvgPool2d": ((), _POOL),
    "Conv1d": (("weight", "bias"), CONV),
    "Conv2d": (("weight", "bias"), CONV),
    "CubaLI": (("tau_syn", "tau_mem", "r", "v_leak", "w_in"), ()),
    "CubaLIF": (("tau_syn", "tau_mem", *_LIF, "w_in"), ()),
    "Delay": (("delay",), ()),
    "Flatten": ((), ("input_type", "start_dim", "end_dim")),
    "I": (("r",), ()),
    "IF": (("r", "v_threshold", "v_reset"), ()),
    "Input": ((), ("shape",)),
    "LI": (("tau", "r", "v_leak"), ()),
    "LIF": (("tau", *_LIF), ()),
    "Linear": (("weight",), ()),
    "Output": ((), ("shape",)),
    "Scale": (("scale",), ()),
    "SumPool2d": ((), _POOL),
    "Threshold": (("threshold",), ()),
}
# Fields that older files leave out: zero, one, and two that follow from the rest of the graph.
OPTIONAL = ("v_reset", "w_in", "input_shape", "input_type")
LINEAR = ("Affine", "Conv1d", "Conv2d", "Linear")
LAYER = "traceTorch layer"  # a node that was recognised as one of our own; no file has this kind
_SPIKING = ("CubaLIF", "IF", "LIF", "Threshold")
_HOLDING = ("CubaLI", "Delay", "I", "LI", LAYER, *_SPIKING)


@dataclass(frozen=True)
class Node:
    """Hold a node: its kind, its parameters and settings by NIR's names, its metadata."""

    kind: str
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def spikes(self) -> bool:
        """Whether its output is spikes."""
        return self.kind in _SPIKING or self.settings.get("spikes", False)

    @property
    def silent(self) -> bool:
        """Whether it is a Scale by zero, which hands nothing on."""
        return self.kind == "Scale" and not self.arrays["scale"].any()

    @property
    def holds(self) -> bool:
        """Whether it holds a state, or spikes."""
        return self.kind in _HOLDING


@dataclass(frozen=True)
class NodeGraph:
    """Hold nodes by name, some of them graphs themselves, and the edges between them."""

    nodes: dict[str, Node | NodeGraph] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, node: Node | NodeGraph, *sources: str) -> str:
        """Add a node and edges into it from ``sources``; return its name."""
        self.nodes[name] = node
        self.edges.extend((source, name) for source in sources)
        return name

    def add_constant(self, value: Any, shape: Shape, source: str) -> str:
        """Add three nodes that give ``value`` at every step, whatever ``source`` gives."""
        one = self.add_one(shape, source)
        return self.add("bias", elementwise("Scale", shape, scale=value), one)

    def add_one(self, shape: Shape, source: str) -> str:
        """Add two nodes that give one at every step, whatever ``source`` gives."""
        silence = self.add("silence", elementwise("Scale", shape, scale=0.0), source)
        return self.add("one", elementwise("Threshold", shape, threshold=-1.0), silence)

    def names(self, kind: str) -> list[str]:
        """Return the names of the nodes of a kind."""
        return [n for n, node in self.nodes.items() if getattr(node, "kind", None) == kind]


def reached(roots: Iterable[str], edges: Iterable[Edge]) -> set[str]:
    """Return the nodes that ways lead to from ``roots``, those among them."""
    following: defaultdict[str, set[str]] = defaultdict(set)
    for start, end in edges:
        following[start].add(end)
    seen = set(roots)
    waiting = list(seen)
    while waiting:
        new = following[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def driven(nodes: Mapping[str, Node | NodeGraph], edges: Iterable[Edge]) -> set[str]:
    """Return the nodes that an Input drives: others, behind a Scale by zero, give constants."""
    plain = {name: node for name, node in nodes.items() if isinstance(node, Node)}
    silent = {name for name, node in plain.items() if node.silent}
    inputs = [name for name, node in plain.items() if node.kind == "Input"]
    return reached(inputs, [edge for edge in edges if edge[1] not in silent])


def boundary(kind: str, shape: Shape) -> Node:
    """Return an ``"Input"`` or an ``"Output"``."""
    return Node(kind, settings={"shape": shape})


def elementwise(kind: str, shape: Shape, **values: Any) -> Node:
    """Return a node whose parameters all have the shape of its input, in float64."""
    full = {name: np.broadcast_to(value, shape) for name, value in values.items()}
    return Node(kind, {name: np.array(value, np.float64) for name, value in full.items()})


@contextmanager
def naming(name: str, kind: str) -> Iterator[None]:
    """Put the node's name and kind in front of an error raised inside."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"node {name!r} ({kind}): {error}") from error
