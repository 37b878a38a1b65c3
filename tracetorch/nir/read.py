"""Read a NIR graph or file as a model: ``from_nir``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tracetorch.core.checks import check_choice, require
from tracetorch.core.files import check_regular_file
from tracetorch.core.walk import join_path
from tracetorch.nir.modules import NIRModel
from tracetorch.nir.node_to_module import modules_of
from tracetorch.nir.nodes import KINDS, Clock, Discretization, Node, NodeGraph, Reset, naming
from tracetorch.nir.wiring import wire
from tracetorch.snn import TTModule

# settings that may be zero, or count from the end; all others are at least 1
_LEAST = {"padding": 0, "start_dim": -100, "end_dim": -100}
_POSITIVE = ("tau", "tau_mem", "tau_syn")
# Fields that older files leave out: zero, one, and two that follow from the rest of the graph.
_OPTIONAL = ("v_reset", "w_in", "input_shape", "input_type")


def from_nir(
    graph: Any, *, dt: float, reset: Reset = "zero", discretization: Discretization = "euler"
) -> TTModule:
    """Make the model that a NIR graph describes, one call per time step.

    Nodes become PyTorch's modules and, where they compute the same, our layers: ``nir.LIF`` without
    leak and reset potentials is ``snn.LIF``, ``nir.LI`` is ``snn.Readout``, CubaLIF and CubaLI are
    ``snn.SLIF`` and ``snn.SReadout``, ``nir.Delay`` is ``snn.Delay``. Others keep all of NIR's
    parameters. Every parameter can be trained on.

    NIR speaks of continuous time and leaves three things open, decided so: a membrane starts at
    rest (``v_leak``; ``v_reset`` for an IF; zero for an I); a synapse moves before its membrane
    does; and a cycle brings what spiked in the step before, none at the first. Which edge is
    late follows from the nodes, in any order of edges: one into a node where the Inputs enter the
    cycle, out of what spikes or from behind it, in a cycle where nothing spikes out of what holds a
    state; then so in what is left of cycles. Two neurons that both get the Inputs and each other's
    spikes get these late. What a Scale by zero makes a constant of enters no cycle. What stands
    between, a Linear with its bias say, is computed of the late spikes, and so of none too.

    Args:
        graph: a ``nir.NIRGraph``, or the path of a file.
        dt: seconds per time step. Decays follow from it: a file written at another ``dt`` describes
            the same continuous network, in other steps and with other spikes.
        reset: what a spike does to the membrane of LIF, CubaLIF and IF: ``"zero"`` sets it to
            ``v_reset``, ``"subtract"`` takes ``v_threshold - v_reset`` off.
        discretization: ``"euler"``, ``decay = 1 - dt / tau``; or ``"exponential"``,
            ``decay = exp(-dt / tau)``.

    Returns:
        A ``TTModule`` in float64 if all parameters in the graph are, else in float32.

    Raises:
        ModuleNotFoundError: the extra ``nir`` is not installed.
        FileNotFoundError: there is no such file.
        TypeError: an argument is of the wrong type.
        ValueError: the file is damaged, or holds what is no graph or cannot be computed; the
            message names the node.

    Example:
        >>> import numpy as np, nir
        >>> lif = nir.LIF(*(np.full(2, x) for x in (1e-3, 10.0, 0.0, 1.0)))
        >>> model = from_nir(nir.NIRGraph.from_list(lif), dt=1e-4)
        >>> [model(torch.tensor([[0.6, 0.2]])).tolist() for _ in range(2)]
        [[[0.0, 0.0]], [[1.0, 0.0]]]
    """
    require("nir", "h5py", extra="nir", by="tt.nir")
    import nir

    clock = Clock(dt, discretization)
    check_choice("reset", reset, ("zero", "subtract"))
    if isinstance(graph, nir.NIRGraph):
        return model_of(graph.to_dict(), clock, reset)
    if isinstance(graph, (str, os.PathLike)):
        return model_of(_load(graph), clock, reset)
    raise TypeError(f"expected a nir.NIRGraph or the path of a file, got {type(graph).__name__}.")


def model_of(dictionary: Any, clock: Clock, reset: Reset) -> NIRModel:
    """Return the model that NIR's dictionary describes."""
    checked = parse(dictionary)
    _check_clock(checked, clock)
    nodes, wiring = wire(checked)
    model = NIRModel(wiring, modules_of(nodes, wiring, clock, reset), clock)
    dtype = _dtype(checked, nodes.values())
    for name, value in model.to(dtype).named_parameters():
        if not value.isfinite().all():
            advice = "A graph is read in float64 where all of its parameters are float64."
            raise ValueError(f"{name} holds values that are infinite in {dtype}. {advice}")
    return model


def _check_clock(graph: NodeGraph, clock: Clock) -> None:
    # The feedback of a soft reset holds for one dt; a compact graph may be read at another.
    fixed = {"exact": ("dt", "discretization"), "compact": ("discretization",)}
    for name in fixed.get(str(graph.metadata.get("mode")), ()):
        written, requested = graph.metadata.get(name), getattr(clock, name)
        if isinstance(written, (str, float)) and written != requested:
            problem = f"the graph was written for {name}={written!r}, and holds for that alone"
            raise ValueError(f"{problem}, got {name}={requested!r}.")


def _dtype(graph: NodeGraph, nodes: Iterable[Node]) -> torch.dtype:
    names = {str(graph.metadata.get("dtype"))}
    if names not in ({"float32"}, {"float64"}):
        names = {array.dtype.name for node in nodes for array in node.arrays.values()}
    return torch.float64 if names == {"float64"} else torch.float32


def _load(path: str | os.PathLike[str]) -> Any:
    """Return the dictionary in a file; raise ``ValueError`` where it is damaged or no NIR file."""
    import h5py

    path = check_regular_file(path, "a NIR file")

    def content(group: Any, name: str) -> Any:
        part = group[name]
        # a soft or external link, or an external data set, could lead to any other file
        inside = isinstance(group.get(name, getlink=True), h5py.HardLink)
        if not inside or (isinstance(part, h5py.Dataset) and (part.is_virtual or part.external)):
            raise ValueError(f"{name!r} leads to somewhere else.")
        if isinstance(part, h5py.Group):
            return {inner: content(part, inner) for inner in part}
        if h5py.check_string_dtype(part.dtype) is not None:
            return part.asstr()[()]
        return part[()].item() if part.shape == () else part[()]

    try:
        with h5py.File(path, "r") as file:
            return content(file, "node")
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} is not a NIR file, or is damaged: {error}") from error


def parse(dictionary: Any, path: str = "") -> NodeGraph:
    """Check what ``nir.NIRGraph.to_dict`` gives; ``path`` is its name inside other graphs."""
    title = f"graph {path!r}" if path else "the graph"
    parts = dictionary.get("nodes") if isinstance(dictionary, Mapping) else None
    if not isinstance(parts, Mapping) or not parts or dictionary.get("type") != "NIRGraph":
        raise ValueError(f"{title} must be a NIRGraph that has nodes.")
    metadata = dictionary.get("metadata")
    graph = NodeGraph(metadata=dict(metadata) if isinstance(metadata, Mapping) else {})
    for name, part in parts.items():
        full = join_path(path, name)
        fields = part if isinstance(part, Mapping) else {}
        is_graph = fields.get("type") == "NIRGraph"
        graph.nodes[name] = parse(part, full) if is_graph else _node(fields, full)
    edges: dict[tuple[str, str], None] = {}  # a set that keeps the order
    for pair in dictionary.get("edges", ()):
        known = len(pair) == 2 and all(end in graph.nodes for end in pair)
        if not known or tuple(pair) in edges:
            raise ValueError(f"{title}: {pair!r} is no edge from node to node, or is there twice.")
        edges[pair[0], pair[1]] = None
    graph.edges.extend(edges)
    return graph


def _node(fields: Mapping[str, Any], name: str) -> Node:
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        problem = f"node {name!r} is of the type {kind!r}, which traceTorch does not know"
        raise ValueError(f"{problem}. It reads {', '.join(KINDS)} and NIRGraph.")
    node = Node(kind)
    arrays, settings = KINDS[kind]
    with naming(name, kind):
        given = {k: v for k, v in fields.items() if k not in ("type", "metadata") and v is not None}
        # An unknown field could change what the node computes: do not skip it.
        if unknown := given.keys() - {*arrays, *settings}:
            raise ValueError(f"the field {min(unknown)!r} is unknown.")
        if missing := {*arrays, *settings} - given.keys() - {*_OPTIONAL}:
            raise ValueError(f"the field {min(missing)!r} is missing.")
        node.settings.update(dict.fromkeys(settings))
        for field, value in given.items():
            if field in settings:
                node.settings[field] = _setting(kind, field, value)
            else:
                node.arrays[field] = _array(field, value)
    return node


def _array(field: str, value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{field} must be finite real numbers, got {value!r}.")
    dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    array = array.astype(dtype, order="C")
    least = array.min()
    if (field in _POSITIVE and least <= 0) or (field == "delay" and least < 0):
        raise ValueError(f"{field} must be positive, got {least}.")
    return array


def _setting(kind: str, field: str, value: Any) -> Any:
    """Return a word, a whole number, or a tuple of them: one per spatial dimension, or a shape."""
    if isinstance(value, str) and field == "padding":
        return value
    if isinstance(value, Mapping):
        value = next(iter(value.values()), None)  # NIR's own {"input": shape}
    array = _array(field, value)
    least, spatial = _LEAST.get(field, 1), 1 if kind == "Conv1d" else 2
    one = field in ("start_dim", "end_dim", "groups")
    fits = array.size in (1, 1 if one else spatial) or field in ("shape", "input_type")
    if not fits or array.ndim > 1 or (array % 1).any() or array.min() < least:
        raise ValueError(f"{field} must be one whole number from {least} or {spatial}: {value!r}")
    sizes = tuple(map(int, array.reshape(-1)))
    if one:
        return sizes[0]
    return sizes * spatial if len(sizes) == 1 and field not in ("shape", "input_type") else sizes
