"""Describe the named inputs, states and outputs of an ONNX file in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch

from tracetorch.export.tensor_spec import DTYPES, TensorSpec

METADATA_KEY = "tracetorch"
FORMAT = 1

# Nested outputs in JSON: the name of a tensor, {"tuple": [...]}, {"list": [...]}, {"dict": {...}}
Structure: TypeAlias = str | dict[str, Any]


@dataclass(frozen=True)
class Interface:
    """Names, shapes and dtypes of the inputs, states and outputs of an ONNX file."""

    # specs of the inputs by the names of ``forward``'s arguments, in their order
    inputs: Mapping[str, TensorSpec]
    # specs of the states by path; the next state is the output ``<path>.next``
    states: Mapping[str, TensorSpec]
    # what states start from where it is not zero, by path: nested lists that broadcast
    initial: Mapping[str, Any]
    outputs: Structure  # names of the outputs, nested like the return value of ``forward``
    version: str  # version of traceTorch that wrote the file

    def input_names(self) -> list[str]:
        """List the names of the graph's inputs, in order."""
        return [*self.inputs, *self.states]

    def output_names(self) -> list[str]:
        """List the names of the graph's outputs, in order."""
        return [*leaf_names(self.outputs), *(next_state_name(state) for state in self.states)]

    def dumps(self) -> str:
        """Serialise the interface as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def loads(cls, text: str) -> Interface:
        """Parse an interface from JSON."""
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise ValueError(
                    f"it has format {fields['format']!r}, this version reads {FORMAT}."
                )
            inputs, states = (
                {
                    str(name): TensorSpec(tuple(spec["shape"]), spec["dtype"])
                    for name, spec in fields[kind].items()
                }
                for kind in ("inputs", "states")
            )
            initial = dict(fields.get("initial", {}))
            interface = cls(inputs, states, initial, fields["outputs"], str(fields["version"]))
            names = [*interface.input_names(), *interface.output_names()]
            for name, value in initial.items():
                spec = states[name]
                # raises unless it fits
                spec.full(1, torch.as_tensor(value, dtype=DTYPES[spec.dtype]))
        # These are all that indexing, iterating and nesting of arbitrary JSON can raise.
        except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"a part of it is missing or of the wrong kind ({error!r}).") from None
        # OnnxStream looks up values by name, and reads the batch size from an input.
        if len(set(names)) < len(names) or not interface.inputs:
            raise ValueError("its names are not distinct, or it takes no input.")
        return interface


def next_state_name(state: str) -> str:
    """Name the output of a state's next value: in ONNX it cannot have the input's name."""
    return f"{state}.next"


def leaf_names(structure: Structure) -> list[str]:
    """List the names in a structure, in order."""
    if isinstance(structure, str):
        return [structure]
    ((kind, inside),) = structure.items()
    if kind not in ("tuple", "list", "dict"):
        raise TypeError(kind)
    parts = inside.values() if kind == "dict" else inside
    return [name for part in parts for name in leaf_names(part)]


def name_leaves(name: str, value: Any) -> Structure:
    """Name every tensor in the return value of ``forward``, ``y.0.aux`` for ``y[0]["aux"]``."""
    kind = type(value)
    if kind in (tuple, list):
        return {kind.__name__: [name_leaves(f"{name}.{i}", each) for i, each in enumerate(value)]}
    if kind is dict:
        parts = {str(key): name_leaves(f"{name}.{key}", each) for key, each in value.items()}
        return {"dict": parts}
    if kind is not int:
        raise TypeError(
            f"an ONNX file gives tensors, in tuples, lists and dicts; {name} is a {kind.__name__}."
        )
    return name


def fill_structure(structure: Structure, values: Mapping[str, Any]) -> Any:
    """Replace every name in a structure by its value."""
    if isinstance(structure, str):
        return values[structure]
    ((kind, inside),) = structure.items()
    if kind == "dict":
        return {key: fill_structure(part, values) for key, part in inside.items()}
    parts = [fill_structure(part, values) for part in inside]
    return tuple(parts) if kind == "tuple" else parts
