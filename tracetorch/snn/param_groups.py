"""Group parameters for an optimizer, so that weight decay leaves neurons alone."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from tracetorch.core.checks import check_flag, check_module, check_nonnegative
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import modules_of
from tracetorch.snn.sequence_layer import SequenceLayer

# as declared, or under torch.nn.utils.parametrize
_RAW = re.compile(r"(parametrizations\.)?raw_[^.]*(\.original\d*)?")
_NORMS = (BatchNormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_biases: bool = True,
    lr: float | None = None,
    neuron_lr_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Group parameters for an optimizer, with no weight decay on those of neurons.

    Decays are kept as ``beta = sigmoid(raw_beta)`` and thresholds as a softplus: weight decay on
    ``raw_beta`` pulls every beta towards 0.5, a half-life of one step, and every threshold towards
    ``log 2``.

    Args:
        model: any module; layers hidden in lists and plain objects are found too.
        weight_decay: for the rest; not negative.
        decay_biases: ``False``: none on biases and norms either, that is on parameters of rank 0
            or 1 and on those of norm layers.
        lr: the learning rate, written into every group; ``None`` leaves it to the optimizer.
        neuron_lr_scale: the learning rate of neurons' parameters, as a multiple of ``lr``.

    Returns:
        Groups named ``"weights"``, ``"biases and norms"`` (if ``decay_biases`` is ``False``) and
        ``"neurons"``, empty ones left out. Every parameter is in exactly one, frozen ones too; one
        that is shared with a neuron counts as a neuron's.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a number is negative or infinite, ``neuron_lr_scale`` is given without ``lr``,
            or the model has no parameter.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> groups = param_groups(model, weight_decay=0.01)
        >>> [(group["name"], len(group["params"]), group["weight_decay"]) for group in groups]
        [('weights', 2, 0.01), ('neurons', 2, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    check_module(model)
    check_nonnegative("weight_decay", weight_decay)
    _check_rates(lr, neuron_lr_scale)
    check_flag("decay_biases", decay_biases)
    found = [
        {
            "name": name,
            "params": group,
            "weight_decay": float(weight_decay) if name == "weights" else 0.0,
            **({} if lr is None else {"lr": lr * (neuron_lr_scale if name == "neurons" else 1)}),
        }
        for name, group in _grouped(model, decay_biases).items()
        if group
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameters to put in groups.")
    return found


def _parameters_of(neuron: SequenceLayer) -> list[nn.Parameter]:
    """List the parameters a neuron has declared, and those of its options, a surrogate say."""
    raw = [p for name, p in neuron.named_parameters() if _RAW.fullmatch(name)]
    options = [getattr(neuron, name) for name in neuron.options]
    return raw + [p for o in options if isinstance(o, nn.Module) for p in o.parameters()]


def _check_rates(lr: float | None, neuron_lr_scale: float) -> None:
    check_nonnegative("neuron_lr_scale", neuron_lr_scale)
    if lr is not None:
        check_nonnegative("lr", lr)
    elif neuron_lr_scale != 1:
        raise ValueError(
            f"neuron_lr_scale={neuron_lr_scale} is a multiple of lr: give lr= here too."
        )


def _grouped(model: nn.Module, decay_biases: bool) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of a model by the name of their group, each once."""
    modules = [module for _, module in modules_of(model)]
    of_neurons = {
        id(p)
        for module in modules
        if isinstance(module, SequenceLayer)
        for p in _parameters_of(module)
    }
    of_norms = {
        id(p) for m in modules if isinstance(m, _NORMS) for p in m.parameters(recurse=False)
    }
    every = {id(p): p for module in modules for p in module.parameters(recurse=False)}
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "biases and norms": [], "neurons": []}
    for key, p in every.items():
        if key in of_neurons:
            groups["neurons"].append(p)
        elif not decay_biases and (p.ndim <= 1 or key in of_norms):
            groups["biases and norms"].append(p)
        else:
            groups["weights"].append(p)
    return groups
