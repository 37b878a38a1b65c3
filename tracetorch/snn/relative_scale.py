"""Compare the scale of weights with PyTorch's default initialisation, for relative rates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.connectivity import RAW_WEIGHT, Connectivity, connectivity, raw_weight
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.sparse_linear import SparseLinear

_LEAST = 0.1
NORMS = (BatchNormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def relative_scales(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Yield path, parameter and ratio of its RMS to the RMS of PyTorch's default start.

    Weights are parameters of rank 2 and more, and those of edges. A bias, a parameter of rank 1
    beside a ``weight``, has the ratio of that weight, for both add up in the same unit. The ratio
    of a weight of zeros is 1, that of a weight that is not finite is not finite; else it is at
    least 0.1, so that a weight that starts near zero learns. A parameter that several modules share
    is found once, under its first path, with the lowest of the ratios that it has in each. Of a
    layer of ``tt.snn.connect`` only the connections that are there count, and their number. Left
    out are norms, the parameters of neurons and delays, and what PyTorch parametrizes otherwise,
    whose originals are in another unit than the weight.

    Raises:
        ValueError: a weight is lazy or on the meta device.
    """
    found: list[tuple[str, nn.Parameter, nn.Parameter]] = []  # each with the weight beside it
    lowest: dict[int, float] = {}
    for path, module in named_modules(model):
        if isinstance(module, (*NORMS, nn.utils.parametrize.ParametrizationList)):
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
    """Return the root mean square of PyTorch's default start of a weight.

    Linear layers and convolutions start uniform within ``1 / sqrt(fan_in)``; so is a weight taken
    for one whose module is not known.
    """
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
