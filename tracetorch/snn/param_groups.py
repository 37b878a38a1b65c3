"""Group parameters for an optimizer: weight decay is for weights alone, rates follow weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from tracetorch.core.checks import check_flag, check_module, check_nonnegative
from tracetorch.core.walk import named_modules
from tracetorch.snn.relative_scale import NORMS, relative_scales
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.sparse_linear import SparseLinear

# as declared, or under torch.nn.utils.parametrize
_RAW = re.compile(r"(parametrizations\.)?raw_[^.]*(\.original\d*)?")


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_biases: bool = False,
    lr: float | None = None,
    neuron_lr_scale: float = 1.0,
    relative: bool = False,
) -> list[dict[str, Any]]:
    """Group parameters for an optimizer: weight decay on weights alone, learning rates by scale.

    Weight decay. Biases and the scales of norms have none by default. Decays are kept as ``beta =
    sigmoid(raw_beta)`` and thresholds as a softplus: weight decay on ``raw_beta`` pulls every beta
    towards 0.5, a half-life of one step, and every threshold towards ``log 2``.

    Relative learning rates. Adam and its like move every weight by about ``lr`` a step, however
    large it is. Some neurons need weights 70 times as large as PyTorch's default, which
    ``tt.init.calibrate_`` gives them, and then learn 70 times as slowly. With ``relative=True``
    each weight has a rate of its own::

        rate = lr * RMS(weight) / RMS(PyTorch's default for it), at least lr / 10

    so that one ``lr`` serves every neuron. A bias has the rate of its weight; weight decay is
    divided by the same ratio, so that ``rate * weight_decay`` is the same for all. A weight that
    several modules share, an embedding tied to the last layer say, has the lowest of their rates,
    and so have their biases. Call it after
    ``calibrate_``. Rates are kept in the optimizer's ``state_dict``, and come back with it: there
    are as many groups whatever the ratios are.

    Args:
        model: any module; layers hidden in lists and plain objects are found too.
        weight_decay: for the rest; not negative.
        decay_biases: ``True``: decay biases and norms too, that is parameters of rank 0 or 1 and
            those of norm layers.
        lr: the learning rate, written into every group; ``None`` leaves it to the optimizer.
        neuron_lr_scale: the learning rate of neurons' parameters, as a multiple of ``lr``.
        relative: scale the rate of every weight and bias, those of linear layers, convolutions,
            delays and recurrent connections, by its size. For Adam, AdamW and their like; the
            steps of SGD follow the gradient's size already. Parameters of neurons and norms, and
            what PyTorch parametrizes, stay at ``lr``, but for the weights of
            :func:`tt.snn.connect`, which are measured over the connections that are there.

    Returns:
        Groups named ``"weights"``, ``"biases and norms"`` (unless ``decay_biases`` is ``True``) and
        ``"neurons"``, empty ones left out. With ``relative`` a group for each weight and each bias
        comes first, named by its path and ratio, as ``"0.weight x 12.5"``. Every parameter is in
        exactly one, frozen ones too; one that is shared with a neuron counts as a neuron's.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a number is negative or infinite, ``neuron_lr_scale`` or ``relative`` is given
            without ``lr``, a weight to be measured is not finite or has no values yet, or the
            model has no parameter.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> groups = param_groups(model, weight_decay=0.01)
        >>> [(group["name"], len(group["params"]), group["weight_decay"]) for group in groups]
        [('weights', 1, 0.01), ('biases and norms', 1, 0.0), ('neurons', 2, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
        >>> _ = nn.init.constant_(model[0].weight, 2.0)  # by default 1 / sqrt(3 * 4) in the mean
        >>> groups = param_groups(model, 0.01, lr=1e-2, relative=True)
        >>> [(group["name"], round(group["lr"], 4)) for group in groups]
        [('0.weight x 6.93', 0.0693), ('0.bias x 6.93', 0.0693), ('neurons', 0.01)]
    """
    check_module(model)
    check_nonnegative("weight_decay", weight_decay)
    check_flag("decay_biases", decay_biases)
    check_flag("relative", relative)
    _check_rates(lr, neuron_lr_scale, relative)
    kinds = _kinds(model, decay_biases)
    found = _relative_groups(model, kinds, weight_decay, lr) if relative else []
    for name, scale in (("weights", 1.0), ("biases and norms", 1.0), ("neurons", neuron_lr_scale)):
        if group := [p for p, kind in kinds.values() if kind == name]:
            decay = weight_decay if name == "weights" else 0.0
            found.append(_group(name, group, decay, lr, scale))
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameters to put in groups.")
    return found


def _check_rates(lr: float | None, neuron_lr_scale: float, relative: bool) -> None:
    check_nonnegative("neuron_lr_scale", neuron_lr_scale)
    if lr is not None:
        check_nonnegative("lr", lr)
    elif neuron_lr_scale != 1:
        raise ValueError(
            f"neuron_lr_scale={neuron_lr_scale} is a multiple of lr: give lr= here too."
        )
    elif relative:
        raise ValueError("relative=True scales lr: give lr= here too, 1e-2 for instance.")


def _relative_groups(
    model: nn.Module,
    kinds: dict[int, tuple[nn.Parameter, str]],
    weight_decay: float,
    lr: float | None,
) -> list[dict[str, Any]]:
    """Take every parameter that has a scale out of ``kinds``, and return a group for each."""
    found = []
    for path, p, ratio in relative_scales(model):
        kind = kinds.get(id(p), (p, "neurons"))[1]
        if kind == "neurons":
            continue
        if not math.isfinite(ratio):
            raise ValueError(f"{path} is not finite, so it has no scale.")
        del kinds[id(p)]
        decay = weight_decay / ratio if kind == "weights" else 0.0
        found.append(_group(f"{path} x {ratio:.3g}", [p], decay, lr, ratio))
    return found


def _group(
    name: str, params: list[nn.Parameter], weight_decay: float, lr: float | None, scale: float
) -> dict[str, Any]:
    rate = {} if lr is None else {"lr": lr * scale}
    return {"name": name, "params": params, "weight_decay": float(weight_decay), **rate}


def _kinds(model: nn.Module, decay_biases: bool) -> dict[int, tuple[nn.Parameter, str]]:
    """Return each parameter of a model, by its ``id``, with the group it belongs to."""
    modules = [module for _, module in named_modules(model)]
    of_neurons = {
        id(p)
        for module in modules
        if isinstance(module, SequenceLayer)
        for p in _parameters_of(module)
    }
    sparse = [module for module in modules if isinstance(module, SparseLinear)]
    of_edges = {id(p) for m in sparse for name, p in m.named_parameters() if name != "bias"}
    of_norms = {id(p) for m in modules if isinstance(m, NORMS) for p in m.parameters(recurse=False)}

    def kind(p: nn.Parameter) -> str:
        if id(p) in of_neurons:
            return "neurons"
        if id(p) in of_edges:
            return "weights"
        undecayed = not decay_biases and (p.ndim <= 1 or id(p) in of_norms)
        return "biases and norms" if undecayed else "weights"

    every: Iterator[nn.Parameter] = (p for m in modules for p in m.parameters(recurse=False))
    return {id(p): (p, kind(p)) for p in every}


def _parameters_of(neuron: SequenceLayer) -> list[nn.Parameter]:
    """List the parameters a neuron has declared, and those of its options, a surrogate say."""
    raw = [p for name, p in neuron.named_parameters() if _RAW.fullmatch(name)]
    options = [getattr(neuron, name) for name in neuron._options]
    return raw + [p for o in options if isinstance(o, nn.Module) for p in o.parameters()]
