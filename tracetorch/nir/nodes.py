"""Represent a NIR graph as plain data, with the fields of every kind of node, and the options."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tracetorch.core.checks import check_choice, check_flag, check_positive

Array: TypeAlias = NDArray[np.float64]
Discretization: TypeAlias = Literal["euler", "exponential"]
Mode: TypeAlias = Literal["exact", "compact"]
Reset: TypeAlias = Literal["zero", "subtract"]
Edge: TypeAlias = tuple[str, str]
Shape: TypeAlias = tuple[int, ...]  # of one sample, without the batch

CONV = ("input_shape", "stride", "padding", "dilation", "groups")
_POOL = ("kernel_size", "stride", "padding")
_LIF = ("r", "v_leak", "v_threshold", "v_reset")

# Parameters of every kind of node, real numbers, and its settings: whole numbers, or a word.
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
LINEAR = ("Affine", "Conv1d", "Conv2d", "Linear")
_SPIKING = ("CubaLIF", "IF", "LIF", "Threshold")
_HOLDING = ("CubaLI", "Delay", "I", "LI", *_SPIKING)


@dataclass(frozen=True)
class Clock:
    """Convert between the decay of one time step and a time constant in seconds.

    ``"euler"``: ``decay = 1 - dt / tau``. ``"exponential"``: ``decay = exp(-dt / tau)``. Both go
    through the complement ``1 - decay``, which keeps its digits where a decay is close to one.
    """

    dt: float
    discretization: Discretization = "euler"

    def __post_init__(self) -> None:
        check_positive("dt", self.dt, unit="seconds")
        check_choice("discretization", self.discretization, ("euler", "exponential"))

    def tau(self, complement: Array) -> Array:
        """Return the time constant of a trace that loses ``complement = 1 - decay`` per step."""
        euler = self.discretization == "euler"
        with np.errstate(divide="ignore"):
            return np.asarray(self.dt / (complement if euler else -np.log1p(-complement)))

    def complement(self, tau: Array) -> Array:
        """Return ``1 - decay`` for a time constant; above 1 where one step is too long for it."""
        steps = np.asarray(self.dt / tau)
        return steps if self.discretization == "euler" else -np.expm1(-steps)


@dataclass(frozen=True)
class Options:
    """Hold what :func:`tracetorch.nir.to_nir` was called with, checked."""

    clock: Clock
    mode: Mode
    allow_hard_reset: bool

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("exact", "compact"))
        check_flag("allow_hard_reset", self.allow_hard_reset)


@dataclass(frozen=True)
class Node:
    """Hold a node: its kind, its parameters and settings by NIR's names."""

    kind: str
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def spikes(self) -> bool:
        """Whether its output is spikes."""
        return self.kind in _SPIKING

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
        silence = self.add("silence", elementwise("Scale", shape, scale=0.0), source)
        one = self.add("one", elementwise("Threshold", shape, threshold=-1.0), silence)
        return self.add("bias", elementwise("Scale", shape, scale=value), one)

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
