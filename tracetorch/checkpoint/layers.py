"""Describe neuron layers without their values, and compare a file's with a model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import nn

from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import named_neurons

LayerDescription: TypeAlias = dict[str, Any]

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

    Example:
        >>> describe_layers(LIF(3, reset="zero"))[""]["options"]["reset"]
        'zero'
    """
    return {
        path: _describe(layer)
        for path, layer in named_neurons(model)
        if not isinstance(layer, LockedDropout)
    }


def _describe(layer: SequenceLayer) -> LayerDescription:
    # Options that are functions or tensors have no text to compare: surrogates are among them.
    options: dict[str, Any] = {}
    for name in layer.options:
        value = getattr(layer, name)
        if name in _LEFT_OUT or not isinstance(value, _TEXTS):
            continue
        if _ADDED_OPTIONS.get(name, _MISSING) != value:
            options[name] = value
    return {
        "call": repr(layer).partition("\n")[0],
        "equations": next(
            (kind.__name__ for kind in type(layer).__mro__ if "step" in vars(kind)),
            type(layer).__name__,
        ),
        "num_neurons": layer.num_neurons,
        "dim": layer.dim,
        "states": list(layer.active_states),
        "parameters": {
            raw.removeprefix("raw_"): getattr(layer, raw).ndim for raw in layer.raw_names
        },
        "options": options,
    }


def differences(
    file: Mapping[str, LayerDescription], model: Mapping[str, LayerDescription], strict: bool
) -> list[str]:
    """List the differences between the layers of a file and of a model that change outputs.

    Args:
        file: descriptions in the file.
        model: descriptions of the model, from :func:`describe_layers`.
        strict: whether a layer that only one of them has is a difference too.
    """
    found: list[str] = []
    for path in {**file, **model}:
        name = f"layer {path!r}" if path else "the layer"
        if path not in model or path not in file:
            if strict:
                layers, owner = (file, "the file") if path in file else (model, "the model")
                found.append(f"{name}: only {owner} has it, {layers[path]['call']}")
            continue
        reasons = list(_mismatches(file[path], model[path]))
        if reasons:
            found.append(
                f"{name}: the file has {file[path]['call']}, the model {model[path]['call']}; "
                + ", ".join(reasons)
            )
    return found


def _mismatches(file: LayerDescription, model: LayerDescription) -> Iterator[str]:
    for part in ("equations", "num_neurons", "dim", "states"):
        if file[part] != model[part]:
            yield f"{part}: {file[part]!r} in the file, {model[part]!r} in the model"
            if part == "equations":
                return  # another neuron, with other parameters and options throughout
    for kind, absent in (("parameters", "absent"), ("options", "unset")):
        in_file, in_model = file[kind], model[kind]
        for name in {**in_file, **in_model}:
            # An option may be None: a missing one needs a default that JSON cannot hold.
            if in_file.get(name, _MISSING) != in_model.get(name, _MISSING):
                saved = f"{in_file[name]!r}" if name in in_file else absent
                built = f"{in_model[name]!r}" if name in in_model else absent
                rank = "rank of " if kind == "parameters" else ""
                yield f"{rank}{name}: {saved} in the file, {built} in the model"
