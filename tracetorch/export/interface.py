"""What goes in and out of an exported file, by name; written into the file's own metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from tracetorch.export.port import Port

KEY = "tracetorch"
FORMAT = 1

# A name where a tensor stands, {"tuple": [...]}, {"list": [...]} or {"dict": {...}}
Structure: TypeAlias = str | dict[str, Any]


@dataclass(frozen=True)
class Interface:
    """Names, shapes and dtypes of what a file takes and gives.

    Args:
        inputs: by the names of ``forward``'s arguments, in their order.
        states: by their paths. They come out as ``<path>.next``.
        outputs: the names, as they stand in what ``forward`` returns.
        version: of traceTorch, when the file was written.
    """

    inputs: Mapping[str, Port]
    states: Mapping[str, Port]
    outputs: Structure
    version: str

    def names_in(self) -> list[str]:
        """Of the inputs of the graph, in order."""
        return [*self.inputs, *self.states]

    def names_out(self) -> list[str]:
        """Of the outputs of the graph, in order."""
        return [*leaves(self.outputs), *(next_of(state) for state in self.states)]

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def loads(cls, text: str) -> Interface:
        """From JSON that may be anybody's.

        Raises:
            ValueError: it is not what :meth:`dumps` writes.
        """
        try:
            told = json.loads(text)
            if told["format"] != FORMAT:
                raise ValueError(f"it has format {told['format']!r}, this version reads {FORMAT}.")
            ports = {
                kind: {
                    str(name): Port(tuple(port["shape"]), port["dtype"])
                    for name, port in told[kind].items()
                }
                for kind in ("inputs", "states")
            }
            found = cls(ports["inputs"], ports["states"], told["outputs"], str(told["version"]))
            names = [*found.names_in(), *found.names_out()]
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"a part of it is missing or of the wrong kind ({error!r}).") from None
        if len(set(names)) < len(names) or not found.inputs:
            raise ValueError("its names are not distinct, or it takes no input.")
        return found


def next_of(state: str) -> str:
    """The output under which a state comes out; one name cannot stand for two values."""
    return f"{state}.next"


def leaves(structure: Structure) -> list[str]:
    """The names in a structure, in order."""
    if isinstance(structure, str):
        return [structure]
    ((kind, inside),) = structure.items()
    if kind not in ("tuple", "list", "dict"):
        raise TypeError(kind)
    parts = inside.values() if kind == "dict" else inside
    return [name for part in parts for name in leaves(part)]


def named(name: str, value: Any) -> Structure:
    """The structure of what ``forward`` returned, every tensor under a name.

    Raises:
        TypeError: it holds something other than tuples, lists and dicts.
    """
    kind = type(value)
    if kind in (tuple, list):
        return {kind.__name__: [named(f"{name}.{i}", each) for i, each in enumerate(value)]}
    if kind is dict:
        return {"dict": {str(key): named(f"{name}.{key}", each) for key, each in value.items()}}
    if kind is not int:  # the place of a tensor
        raise TypeError(
            f"an ONNX file gives tensors, in tuples, lists and dicts; {name} is a {kind.__name__}."
        )
    return name


def filled(structure: Structure, values: Mapping[str, Any]) -> Any:
    """The structure with what stands under each name."""
    if isinstance(structure, str):
        return values[structure]
    ((kind, inside),) = structure.items()
    if kind == "dict":
        return {key: filled(part, values) for key, part in inside.items()}
    parts = [filled(part, values) for part in inside]
    return tuple(parts) if kind == "tuple" else parts
