"""From NIR's own dictionaries, which may say anything, to a :class:`Graph` that holds together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracetorch.nir.graph import ARRAYS, OPTIONAL, SETTINGS, Graph, Node, Shape

_DEEPEST = 32  # graphs in graphs; a hostile file could nest them without end
_LARGEST = 2**31 - 1  # of a size or a stride
_WIDEST = 4096  # padding, which takes memory when the model runs
_RANK = 8  # dimensions of one sample
_WEIGHTS = {"Affine": 2, "Linear": 2, "Conv1d": 3, "Conv2d": 4}
_SPATIAL = {"Conv1d": 1, "Conv2d": 2, "AvgPool2d": 2, "SumPool2d": 2}
_POSITIVE = ("tau", "tau_mem", "tau_syn")


def parse(told: object, path: str = "", depth: int = 0) -> Graph:
    """A graph from the dictionary that NIR keeps it in, every field of every node checked.

    Args:
        told: a dictionary of type ``"NIRGraph"``.
        path: the graph's name, where it stands in another one.
        depth: in how many others it stands.

    Raises:
        ValueError: a node, field, value or edge is missing, unknown or out of range.
    """
    here = f"graph {path!r}" if path else "the graph"
    if depth > _DEEPEST:
        raise ValueError(f"{here} lies more than {_DEEPEST} graphs deep.")
    if not isinstance(told, Mapping) or told.get("type") != "NIRGraph":
        got = told.get("type") if isinstance(told, Mapping) else type(told).__name__
        raise ValueError(f"{here} must be a NIRGraph, got {got!r}.")
    given = told.get("nodes")
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{here} has no nodes.")
    nodes: dict[str, Node | Graph] = {}
    for name, node in given.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"{here} has a node with the name {name!r}; names are words.")
        full = f"{path}.{name}" if path else name
        if not isinstance(node, Mapping):
            raise ValueError(f"node {full!r} must be a group of fields, got {node!r}.")
        if node.get("type") == "NIRGraph":
            nodes[name] = parse(node, full, depth + 1)
        else:
            nodes[name] = _node(node, full)
    return Graph(nodes, _edges(told.get("edges"), nodes, here), _metadata(told))


def _node(told: Mapping[str, Any], name: str) -> Node:
    kind = told.get("type")
    if not isinstance(kind, str) or kind not in ARRAYS:
        raise ValueError(
            f"node {name!r} is of the type {kind!r}, which traceTorch does not know. It reads "
            f"{', '.join(ARRAYS)} and NIRGraph."
        )
    fields = (*ARRAYS[kind], *SETTINGS.get(kind, ()))
    for given in told:
        if given not in (*fields, "type", "metadata"):
            raise ValueError(f"node {name!r} ({kind}) has an unknown field {given!r}.")
    for needed in fields:
        if told.get(needed) is None and needed not in OPTIONAL:
            raise ValueError(f"node {name!r} ({kind}) lacks its field {needed!r}.")
    arrays = {
        field: _array(f"node {name!r} ({kind}): {field}", told[field])
        for field in ARRAYS[kind]
        if told.get(field) is not None
    }
    _check_shapes(f"node {name!r} ({kind})", kind, arrays)
    settings = {
        field: _setting(f"node {name!r} ({kind}): {field}", kind, field, told.get(field))
        for field in SETTINGS.get(kind, ())
    }
    if kind in ("Conv1d", "Conv2d") and arrays["weight"].shape[0] % settings["groups"]:
        raise ValueError(
            f"node {name!r} ({kind}): {settings['groups']} groups do not divide "
            f"{arrays['weight'].shape[0]} channels."
        )
    return Node(kind, arrays, settings, _metadata(told))


def _array(told: str, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise ValueError(f"{told} is not an array of numbers: {wrong}") from wrong
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{told} must hold real numbers, got {array.dtype}.")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    if array.size == 0:
        raise ValueError(f"{told} is empty, shape {list(array.shape)}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{told} holds {array[~np.isfinite(array)].flat[0]}.")
    return array


def _check_shapes(told: str, kind: str, arrays: dict[str, NDArray[Any]]) -> None:
    """The arrays of one node fit each other, and their values are possible."""
    if kind in _WEIGHTS:
        weight, bias = arrays["weight"], arrays.get("bias")
        if weight.ndim != _WEIGHTS[kind]:
            raise ValueError(
                f"{told}: weight must have {_WEIGHTS[kind]} dimensions, got shape "
                f"{list(weight.shape)}."
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"{told}: bias must have shape {[weight.shape[0]]}, got {list(bias.shape)}."
            )
        return
    shapes = {value.shape for value in arrays.values() if value.size != 1}
    if len(shapes) > 1:
        told_shapes = {name: list(value.shape) for name, value in arrays.items()}
        raise ValueError(f"{told}: all parameters must have one shape, got {told_shapes}.")
    for name, value in arrays.items():
        if name in _POSITIVE and not (value > 0).all():
            raise ValueError(f"{told}: {name} must be positive, got {value.min()}.")
        if name == "delay" and not (value >= 0).all():
            raise ValueError(f"{told}: delay must not be negative, got {value.min()}.")


def _setting(told: str, kind: str, field: str, value: Any) -> Any:
    if value is None:
        return None
    if field == "padding" and kind in ("Conv1d", "Conv2d") and isinstance(value, str):
        if value not in ("same", "valid"):
            raise ValueError(f"{told} must be a number, 'same' or 'valid', got {value!r}.")
        return value
    if field in ("start_dim", "end_dim"):
        return _whole(told, value, -_RANK, _RANK)[0]
    if field == "groups":
        return _whole(told, value, 1, _LARGEST)[0]
    if field in ("shape", "input_type"):
        return _shape(told, value)
    least, most = (0, _WIDEST) if field == "padding" else (1, _LARGEST)
    numbers = _whole(told, value, least, most)
    spatial = _SPATIAL[kind]
    numbers = numbers * spatial if len(numbers) == 1 else numbers
    if len(numbers) != spatial:
        raise ValueError(f"{told} must be {spatial} numbers, got {list(numbers)}.")
    return numbers


def _whole(told: str, value: Any, least: int, most: int) -> tuple[int, ...]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise ValueError(f"{told} is not a whole number: {wrong}") from wrong
    if array.dtype.kind not in "fiu" or array.ndim > 1 or not 0 < array.size <= _RANK:
        raise ValueError(f"{told} must be a whole number or a few of them, got {value!r}.")
    numbers: list[int] = []
    for number in array.reshape(-1).tolist():
        if not math.isfinite(number) or int(number) != number or not least <= number <= most:
            raise ValueError(f"{told} must be whole and in [{least}, {most}], got {number}.")
        numbers.append(int(number))
    return tuple(numbers)


def _shape(told: str, value: Any) -> Shape:
    if isinstance(value, Mapping):  # NIR's own {"input": shape}
        value = next(iter(value.values()), None)
    if value is None:
        raise ValueError(f"{told} is not given. Name the shape of one sample.")
    shape = _whole(told, value, 1, _LARGEST)
    if math.prod(shape) > _LARGEST:
        raise ValueError(f"{told} is {list(shape)}, more than {_LARGEST} elements.")
    return shape


def _edges(told: Any, nodes: Mapping[str, object], here: str) -> list[tuple[str, str]]:
    if isinstance(told, np.ndarray):
        told = told.tolist()
    if not isinstance(told, Sequence) or isinstance(told, (str, bytes)):
        raise ValueError(f"{here} must have a list of edges, got {told!r}.")
    edges: list[tuple[str, str]] = []
    for edge in told:
        if not isinstance(edge, Sequence) or isinstance(edge, (str, bytes)) or len(edge) != 2:
            raise ValueError(f"{here}: an edge is a pair of names, got {edge!r}.")
        pair = []
        for end in edge:
            try:
                name = end.decode("utf8") if isinstance(end, bytes) else end
            except UnicodeDecodeError as wrong:
                raise ValueError(f"{here}: an edge names {end!r}, which is no text.") from wrong
            if not isinstance(name, str) or name not in nodes:
                raise ValueError(f"{here}: edge {edge!r} names {name!r}, there is no such node.")
            pair.append(name)
        edges.append((pair[0], pair[1]))
    twice = [edge for edge, count in Counter(edges).items() if count > 1]
    if twice:
        raise ValueError(f"{here} has the edge {twice[0]!r} twice.")
    return edges


def _metadata(told: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata is believed by no one here; where it is not even a dictionary, it says nothing."""
    metadata = told.get("metadata")
    return dict(metadata) if isinstance(metadata, Mapping) else {}
