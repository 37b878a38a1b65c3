"""Group parameters for an optimizer: weight decay is for weights alone, rates follow weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tracetorch.core.checks import check_flag, check_module, check_nonnegative
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.connectivity import RAW_WEIGHT, Connectivity, connectivity, raw_weight
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.sparse_linear import SparseLinear

# as declared, or under torch.nn.utils.parametrize
_RAW = re.compile(r"(parametrizations\.)?raw_[^.]*(\.original\d*)?")
_LEAST = 0.1
_NORMS = (BatchNormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


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

    Biases and the scales of norms have no weight decay by default, and neurons never: on
    ``raw_beta`` it would pull every beta towards 0.5, every threshold towards ``log 2``. Adam moves
    every weight by about ``lr`` a step, however large ``tt.init.calibrate_`` has made it, so call
    this after it. With ``relative=True`` each weight has a rate of its own, and so has its bias::

        rate = lr * RMS(weight) / RMS(PyTorch's default for it), at least lr / 10

    Weight decay is divided by that ratio. A weight that modules share has their lowest rate.

    Args:
        model: any module; layers hidden in lists and plain objects are found too.
        weight_decay: for the rest; not negative.
        decay_biases: decay biases and norms too: parameters of rank 0 or 1, and of norm layers.
        lr: the learning rate, written into every group; ``None`` leaves it to the optimizer.
        neuron_lr_scale: the learning rate of neurons' parameters, as a multiple of ``lr``.
        relative: scale the rate of every weight and bias by its size, for Adam, AdamW and their
            like. Parameters of neurons and norms, and what PyTorch parametrizes, stay at ``lr``,
            but for the weights of :func:`tt.snn.connect`, measured over what is connected.

    Returns:
        Groups named ``"weights"``, ``"biases and norms"`` (unless ``decay_biases``), ``"neurons"``,
        empty ones left out; with ``relative`` first one for each weight and bias, named as
        ``"0.weight x 12.5"``. Each parameter is in one; one shared with a neuron is a neuron's.

    Raises:
        TypeError, ValueError: an argument is of another type, negative or infinite,
            ``neuron_lr_scale`` or ``relative`` is given without ``lr``, a weight to be measured is
            not finite or has no values yet, or the model has no parameter.

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
    check_nonnegative("neuron_lr_scale", neuron_lr_scale)
    if lr is not None:
        check_nonnegative("lr", lr)
    elif neuron_lr_scale != 1:
        raise ValueError(
            f"neuron_lr_scale={neuron_lr_scale} is a multiple of lr: give lr= here too."
        )
    elif relative:
        raise ValueError("relative=True scales lr: give lr= here too, 1e-2 for instance.")
    found: list[dict[str, Any]] = []

    def add(name: str, params: list[nn.Parameter], decay: float, scale: float) -> None:
        rate = {} if lr is None else {"lr": lr * scale}
        found.append({"name": name, "params": params, "weight_decay": float(decay), **rate})

    kinds = _kinds(model, decay_biases)
    for path, p, ratio in _relative_scales(model) if relative else ():
        if kinds.get(id(p), (p, "neurons"))[1] == "neurons":
            continue
        if not math.isfinite(ratio):
            raise ValueError(f"{path} is not finite, so it has no scale.")
        is_weight = kinds.pop(id(p))[1] == "weights"
        add(f"{path} x {ratio:.3g}", [p], weight_decay / ratio if is_weight else 0.0, ratio)
    for name, decay, scale in (
        ("weights", weight_decay, 1.0),
        ("biases and norms", 0.0, 1.0),
        ("neurons", 0.0, neuron_lr_scale),
    ):
        if group := [p for p, kind in kinds.values() if kind == name]:
            add(name, group, decay, scale)
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameters to put in groups.")
    return found


def _kinds(model: nn.Module, decay_biases: bool) -> dict[int, tuple[nn.Parameter, str]]:
    """Return each parameter of a model, by its ``id``, with the group it belongs to."""
    modules = [module for _, module in named_modules(model)]
    of_neurons, of_edges, of_norms = set[int](), set[int](), set[int]()
    for module in modules:
        if isinstance(module, SequenceLayer):
            of_neurons.update(map(id, _parameters_of(module)))
        if isinstance(module, SparseLinear):
            of_edges.update(id(p) for name, p in module.named_parameters() if name != "bias")
        if isinstance(module, _NORMS):
            of_norms.update(map(id, module.parameters(recurse=False)))

    def kind(p: nn.Parameter) -> str:
        if id(p) in of_neurons:
            return "neurons"
        if id(p) in of_edges:
            return "weights"
        undecayed = not decay_biases and (p.ndim <= 1 or id(p) in of_norms)
        return "biases and norms" if undecayed else "weights"

    return {id(p): (p, kind(p)) for m in modules for p in m.parameters(recurse=False)}


def _parameters_of(neuron: SequenceLayer) -> list[nn.Parameter]:
    """List the parameters a neuron has declared, and those of its options, a surrogate say."""
    raw = [p for name, p in neuron.named_parameters() if _RAW.fullmatch(name)]
    options = [getattr(neuron, name) for name in neuron._options]
    return raw + [p for o in options if isinstance(o, nn.Module) for p in o.parameters()]


def _relative_scales(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Yield path, parameter and ratio of its RMS to the RMS of PyTorch's default start."""
    found: list[tuple[str, nn.Parameter, nn.Parameter]] = []  # each with the weight beside it
    lowest: dict[int, float] = {}
    for path, module in named_modules(model):
        if isinstance(module, (*_NORMS, nn.utils.parametrize.ParametrizationList)):
            continue
        declared = module._raw_names if isinstance(module, SequenceLayer) else ()
        own = {n: p for n, p in module.named_parameters(recurse=False) if n not in declared}
        names = {name: name for name in own}
        rule = connectivity(module)
        if rule is not None:
            own = {"weight": cast(nn.Parameter, raw_weight(module)), **own}
            names["weight"] = RAW_WEIGHT
        ratios = {
            name: _ratio(join_path(path, names[name]), module, name, p, rule)
            for name, p in own.items()
            if is_lazy(p) or p.ndim > 1 or (name == "weight" and isinstance(module, SparseLinear))
        }
        for name, p in own.items():
            # nn.RNN and its like call theirs bias_ih_l0, beside weight_ih_l0
            beside = name.replace("bias", "weight") if "bias" in name else "weight"
            weight = name if name in ratios else beside
            if weight in ratios:
                found.append((join_path(path, names[name]), p, own[weight]))
                before = lowest.get(id(own[weight]), math.inf)
                lowest[id(own[weight])] = min(ratios[weight], before)
    seen: set[int] = set()
    for path, p, owner in found:
        if id(p) not in seen:
            seen.add(id(p))
            yield path, p, lowest[id(owner)]


def default_rms(module: nn.Module, name: str, weight: Tensor) -> float:
    """Return the RMS of PyTorch's default start of a weight: uniform in ``1 / sqrt(fan_in)``."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return 1.0
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return 1 / math.sqrt(3 * module.hidden_size)
    if isinstance(module, nn.MultiheadAttention) and name.endswith("proj_weight"):
        return math.sqrt(2 / sum(weight.shape))  # Xavier's
    if isinstance(module, SparseLinear):
        return module.default_rms()
    fan_in = weight[0].numel()  # of a bilinear layer PyTorch takes the first factor alone
    return 1 / math.sqrt(3 * (module.in1_features if isinstance(module, nn.Bilinear) else fan_in))


@torch.no_grad()
def _ratio(
    path: str, module: nn.Module, name: str, weight: nn.Parameter, rule: Connectivity | None
) -> float:
    if is_lazy(weight) or weight.is_meta:
        raise ValueError(
            f"{path} has no values yet, so there is nothing to measure. Run the model once, or "
            "load its weights, before relative=True."
        )
    present = weight if rule is None or rule.mask is None else weight[rule.mask]
    rms = float(present.double().square().mean().sqrt()) if present.numel() else 0.0
    # PyTorch's default for as many inputs as there are: its square goes by one over their number
    share = present.numel() / max(1, weight.numel())
    ratio = rms * math.sqrt(share) / default_rms(module, name, weight)
    return max(ratio, _LEAST) if ratio else 1.0
