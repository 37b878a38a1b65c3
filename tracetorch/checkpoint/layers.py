"""What a neuron layer is, apart from its numbers: told in a file, compared with a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import nn

from tracetorch.snn.neuron import Neuron
from tracetorch.snn.states import named_neurons

Told: TypeAlias = dict[str, Any]

# Options of the backward pass: a model that trains otherwise may still load the values.
_TRAINING = frozenset({"detach_reset"})


def described(model: nn.Module) -> dict[str, Told]:
    """Every neuron layer in a model, by its path, in what JSON can say.

    ``equations`` is the class that defines ``step``, so that a wrapper and the ``LeakyIntegrator``
    that it stands for are the same. Surrogates and whether a parameter learns are left out, for
    they change no output.

    Example:
        >>> described(LIF(3, reset="zero"))[""]["options"]["reset"]
        'zero'
    """
    return {path: _described(layer) for path, layer in named_neurons(model)}


def _described(layer: Neuron) -> Told:
    options: dict[str, Any] = {}
    for name in layer.options:
        value = getattr(layer, name)
        if name not in _TRAINING and isinstance(value, (bool, int, float, str, type(None))):
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


def differences(file: Mapping[str, Told], model: Mapping[str, Told], strict: bool) -> list[str]:
    """What must not differ between the layers of a file and those of a model, and does.

    Args:
        file: what the file tells.
        model: what :func:`described` gives for the model.
        strict: a layer that only one of them has is a difference too.
    """
    found: list[str] = []
    for path in {**file, **model}:
        name = f"layer {path!r}" if path else "the layer"
        if path not in model or path not in file:
            if strict:
                has, there = (file, "the file") if path in file else (model, "the model")
                found.append(f"{name}: only {there} has it, {has[path]['call']}")
            continue
        reasons = list(_unlike(file[path], model[path]))
        if reasons:
            found.append(
                f"{name}: the file has {file[path]['call']}, the model {model[path]['call']}; "
                + ", ".join(reasons)
            )
    return found


def _unlike(file: Told, model: Told) -> Iterator[str]:
    for part in ("equations", "num_neurons", "dim", "states"):
        if file[part] != model[part]:
            yield f"{part}: {file[part]!r} in the file, {model[part]!r} in the model"
    for kind, absent in (("parameters", "absent"), ("options", "unset")):
        one, other = file[kind], model[kind]
        for name in {**one, **other}:
            if one.get(name, _Absent) != other.get(name, _Absent):
                mine = f"{one[name]!r}" if name in one else absent
                yours = f"{other[name]!r}" if name in other else absent
                rank = "rank of " if kind == "parameters" else ""
                yield f"{rank}{name}: {mine} in the file, {yours} in the model"


class _Absent:
    """Equal to nothing that a file can say."""
