"""Parse NIR's dictionaries and files into a checked :class:`NodeGraph`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracetorch.core.files import check_regular_file
from tracetorch.core.walk import join_path
from tracetorch.nir.node_graph import KINDS, OPTIONAL, Node, NodeGraph, naming

# settings that may be zero, or count from the end; all others are at least 1
_LEAST = {"padding": 0, "start_dim": -100, "end_dim": -100}
_POSITIVE = ("tau", "tau_mem", "tau_syn")


def load(path: str | os.PathLike[str]) -> Any:
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
    # h5py reports damage in all of these
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} is not a NIR file, or is damaged: {error}") from error


def parse(dictionary: Any, path: str = "") -> NodeGraph:
    """Check what ``nir.NIRGraph.to_dict`` gives; ``path`` is its name inside other graphs."""
    title = f"graph {path!r}" if path else "the graph"
    parts = dictionary.get("nodes") if isinstance(dictionary, Mapping) else None
    if not isinstance(parts, Mapping) or not parts or dictionary.get("type") != "NIRGraph":
        raise ValueError(f"{title} must be a NIRGraph that has nodes.")
    graph = NodeGraph(metadata=_metadata(dictionary))
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
    node = Node(kind, metadata=_metadata(fields))
    arrays, settings = KINDS[kind]
    with naming(name, kind):
        given = {k: v for k, v in fields.items() if k not in ("type", "metadata") and v is not None}
        # An unknown field could change what the node computes: do not skip it.
        if unknown := given.keys() - {*arrays, *settings}:
            raise ValueError(f"the field {min(unknown)!r} is unknown.")
        if missing := {*arrays, *settings} - given.keys() - {*OPTIONAL}:
            raise ValueError(f"the field {min(missing)!r} is missing.")
        node.settings.update(dict.fromkeys(settings))
        for field, value in given.items():
            if field in settings:
                node.settings[field] = _setting(kind, field, value)
            else:
                node.arrays[field] = _array(field, value)
    return node


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    metadata = fields.get("metadata")
    return dict(metadata) if isinstance(metadata, Mapping) else {}


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
