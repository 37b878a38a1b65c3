"""Describe neuron layers without their values, and compare a file's with a model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import nn

from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.states import named_neurons

LayerDescription: TypeAlias = dict[str, Any]
LAYER_PARTS: dict[str, type] = {"call": str, "equations": str, "num_neurons": int, "dim": int}
LAYER_PARTS |= {"states": list, "parameters": dict, "options": dict}

# Options of the backward pass: a model that trains differently may still load the values. The last
# is in the state_dict.
_LEFT_OUT = frozenset({"detach_reset", "unit", "rec_weight_fraction"})
# Options that older files lack, each with the value that those files mean.
_ADDED_OPTIONS = {"substeps": 1, "output_bits": 0}
_TEXTS = (bool, int, float, str, type(None))
_MISSING = object()


def describe_layers(model: nn.Module) -> dict[str, LayerDescription]:
    """Describe every neuron layer of a model by path, in types that JSON has.

    ``equations`` is the class that defines ``step``, so that a wrapper and the ``LeakyIntegrator``
    that it configures are the same. Surrogates, whether a parameter is learnable, and dropout are
    left out: they change no output in evaluation.
    """
    described: dict[str, LayerDescription] = {}
    for path, layer in named_neurons(model):
        if isinstance(layer, LockedDropout):
            continue
        # Options that are functions or tensors have no text to compare: surrogates are among them.
        options = {name: getattr(layer, name) for name in layer._options if name not in _LEFT_OUT}
        kinds = [kind.__name__ for kind in type(layer).__mro__ if "step" in vars(kind)]
        ranks = {raw.removeprefix("raw_"): getattr(layer, raw).ndim for raw in layer._raw_names}
        described[path] = {
            "call": repr(layer).partition("\n")[0],
            "equations": kinds[0] if kinds else type(layer).__name__,
            "num_neurons": layer.num_neurons,
            "dim": layer.dim,
            "states": list(layer.active_states),
            "parameters": ranks,
            "options": {
                name: value
                for name, value in options.items()
                if isinstance(value, _TEXTS) and _ADDED_OPTIONS.get(name, _MISSING) != value
            },
        }
    return described


def differences(
    file: Mapping[str, LayerDescription], model: Mapping[str, LayerDescription], strict: bool
) -> list[str]:
    """List the differences between layers that change outputs, with ``strict`` of any layer."""
    found: list[str] = []
    for path in {**file, **model}:
        name = f"layer {path!r}" if path else "the layer"
        if path not in model or path not in file:
            found += [f"{name}: {only_one_has(path, file, model, 'call')}"] * strict
        elif reasons := list(_mismatches(file[path], model[path])):
            found.append(
                f"{name}: the file has {file[path]['call']}, the model {model[path]['call']}; "
                + ", ".join(reasons)
            )
    return found


def only_one_has(
    path: str, file: Mapping[str, Any], model: Mapping[str, Any], description: str
) -> str:
    """Say that only the file, or only the model, has what is at a path."""
    own, owner = (file, "the file") if path in file else (model, "the model")
    return f"only {owner} has it, {own[path][description]}"


def _mismatches(file: LayerDescription, model: LayerDescription) -> Iterator[str]:
    for part in ("equations", "num_neurons", "dim", "states"):
        if file[part] != model[part]:
            yield f"{part}: {file[part]!r} in the file, {model[part]!r} in the model"
            if part == "equations":
                return  # another neuron, with other parameters and options throughout
    for kind, rank, absent in (("parameters", "rank of ", "absent"), ("options", "", "unset")):
        for name in {**file[kind], **model[kind]}:
            # An option may be None: a missing one needs a default that JSON cannot hold.
            if file[kind].get(name, _MISSING) != model[kind].get(name, _MISSING):
                sides = (file[kind], model[kind])
                saved, built = (repr(each[name]) if name in each else absent for each in sides)
                yield f"{rank}{name}: {saved} in the file, {built} in the model"
