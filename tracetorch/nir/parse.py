"""Parse NIR's dictionaries, whose content is not trusted, into a checked :class:`NodeGraph`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracetorch.core.walk import join_path
from tracetorch.nir.graph import KINDS, OPTIONAL, Node, NodeGraph, naming

_MAX_DEPTH = 32  # graphs in graphs; a hostile file could nest them without end
_MAX_SIZE = 2**31 - 1  # of a dimension, a stride, a whole sample
_MAX_PADDING = 4096  # padding takes memory when the model runs
_MAX_RANK = 8  # dimensions of one sample
_LIMITS = {
    "start_dim": (-_MAX_RANK, _MAX_RANK),
    "end_dim": (-_MAX_RANK, _MAX_RANK),
    "padding": (0, _MAX_PADDING),
}
_POSITIVE = ("tau", "tau_mem", "tau_syn")


def parse(dictionary: Any, path: str = "", depth: int = 0) -> NodeGraph:
    """Check what ``nir.NIRGraph.to_dict`` gives; ``path`` is its name inside ``depth`` graphs."""
    title = f"graph {path!r}" if path else "the graph"
    if depth > _MAX_DEPTH:
        raise ValueError(f"{title} lies more than {_MAX_DEPTH} graphs deep.")
    kind = dictionary.get("type") if isinstance(dictionary, Mapping) else type(dictionary)
    if kind != "NIRGraph":
        raise ValueError(f"{title} must be a NIRGraph, got {kind!r}.")
    parts = dictionary.get("nodes")
    if not isinstance(parts, Mapping) or not parts:
        raise ValueError(f"{title} has no nodes.")
    graph = NodeGraph(metadata=_metadata(dictionary))
    for name, part in parts.items():
        full = join_path(path, name)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{title} has a node with the name {name!r}; names are words.")
        if not isinstance(part, Mapping):
            raise ValueError(f"node {full!r} must be a group of fields, got {part!r}.")
        is_graph = part.get("type") == "NIRGraph"
        graph.nodes[name] = parse(part, full, depth + 1) if is_graph else _node(part, full)
    graph.edges.extend(_edges(dictionary.get("edges"), graph.nodes, title))
    return graph


def _node(fields: Mapping[str, Any], name: str) -> Node:
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        unknown = f"node {name!r} is of the type {kind!r}, which traceTorch does not know"
        raise ValueError(f"{unknown}. It reads {', '.join(KINDS)} and NIRGraph.")
    node = Node(kind, metadata=_metadata(fields))
    arrays, settings = KINDS[kind]
    with naming(name, kind):
        # An unknown field could change what the node computes: do not skip it.
        for field in fields:
            if field not in (*arrays, *settings, "type", "metadata"):
                raise ValueError(f"there is an unknown field {field!r}.")
        for field in (*arrays, *settings):
            value = fields.get(field)
            if field in ("shape", "input_type") and isinstance(value, Mapping):
                value = next(iter(value.values()), None)  # NIR's own {"input": shape}
            if value is None and field not in OPTIONAL:
                raise ValueError(f"the field {field!r} is missing.")
            if field in settings:
                node.settings[field] = None if value is None else _setting(kind, field, value)
            elif value is not None:
                node.arrays[field] = _array(field, value)
    return node


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    metadata = fields.get("metadata")
    return dict(metadata) if isinstance(metadata, Mapping) else {}


def _array(field: str, value: Any) -> NDArray[Any]:
    array = _as_array(field, value)
    dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    array = array.astype(dtype, order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"{field} holds {array[~np.isfinite(array)].flat[0]}.")
    if field in _POSITIVE and not (array > 0).all():
        raise ValueError(f"{field} must be positive, got {array.min()}.")
    if field == "delay" and not (array >= 0).all():
        raise ValueError(f"{field} must not be negative, got {array.min()}.")
    return array


def _setting(kind: str, field: str, value: Any) -> Any:
    """Return a word, a whole number, or a tuple of them: one per spatial dimension, or a shape."""
    if field == "padding" and kind.startswith("Conv") and isinstance(value, str):
        if value not in ("same", "valid"):
            raise ValueError(f"padding must be a number, 'same' or 'valid', got {value!r}.")
        return value
    least, most = _LIMITS.get(field, (1, _MAX_SIZE))
    array = _as_array(field, value)
    if array.ndim > 1 or array.size > _MAX_RANK:
        raise ValueError(f"{field} must be a whole number or a few of them, got {value!r}.")
    for number in array.reshape(-1).tolist():
        if not math.isfinite(number) or int(number) != number or not least <= number <= most:
            raise ValueError(f"{field} must be whole and in [{least}, {most}], got {number}.")
    sizes = tuple(map(int, array.reshape(-1)))
    if field in ("start_dim", "end_dim", "groups"):
        return sizes[0]
    if field in ("shape", "input_type"):
        if math.prod(sizes) > _MAX_SIZE:
            raise ValueError(f"{field} is {list(sizes)}, more than {_MAX_SIZE} elements.")
        return sizes
    spatial = 1 if kind == "Conv1d" else 2
    if len(sizes) not in (1, spatial):
        raise ValueError(f"{field} must be {spatial} numbers, got {list(sizes)}.")
    return sizes * (spatial // len(sizes))


def _as_array(field: str, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{field} is not an array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{field} must hold real numbers, got {array.dtype}.")
    if array.size == 0:
        raise ValueError(f"{field} is empty, shape {list(array.shape)}.")
    return array


def _edges(pairs: Any, nodes: Mapping[str, object], title: str) -> list[tuple[str, str]]:
    pairs = pairs.tolist() if isinstance(pairs, np.ndarray) else pairs
    if not isinstance(pairs, Sequence) or isinstance(pairs, (str, bytes)):
        raise ValueError(f"{title} must have a list of edges, got {pairs!r}.")
    edges: dict[tuple[str, str], None] = {}  # a set that keeps the order
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"{title}: an edge is a pair of names, got {pair!r}.")
        ends = [end.decode("utf8", "replace") if isinstance(end, bytes) else end for end in pair]
        for end in ends:
            if not isinstance(end, str) or end not in nodes:
                raise ValueError(f"{title}: edge {pair!r} names {end!r}, there is no such node.")
        if (ends[0], ends[1]) in edges:
            raise ValueError(f"{title} has the edge {pair!r} twice.")
        edges[ends[0], ends[1]] = None
    return list(edges)
