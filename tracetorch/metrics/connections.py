"""How many operations one call of a layer of weights takes, and of which kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tracetorch.metrics.size import WEIGHTED
from tracetorch.snn.neuron import Neuron

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the dimensions of the weight
# Parameters of these scale, look up or normalise; or are seen through the layer that they are of.
_WITHOUT_PRODUCTS = (
    Neuron,
    nn.Embedding,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.PReLU,
    nn.RMSNorm,
    nn.modules.batchnorm._NormBase,
    nn.utils.parametrize.ParametrizationList,
)


@dataclass
class Tally:
    """Operations until now: real-valued, of spikes, and of all there could be."""

    macs: float = 0.0
    acs: float = 0.0
    dense: float = 0.0

    def add(self, layer: nn.Module, x: Tensor, share: float = 1.0) -> None:
        """Count one call on ``x`` ``[S, B, ...]``, each of the ``S`` steps by itself.

        Args:
            layer: a layer of weights.
            x: its input, zero where it is padding.
            share: how much of it is no padding.
        """
        effective, dense = _products(layer, x)
        rest = tuple(range(1, x.ndim))
        spiking = ((x == 0) | (x == 1) | (x == -1)).all(rest) if rest else x == 0
        self.acs += float(effective[spiking].sum())
        self.macs += float(effective[~spiking].sum())
        self.dense += share * dense


def _products(layer: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """Products of a nonzero input and a nonzero weight, by step, and of all of both."""
    if isinstance(layer, nn.Linear):
        there = (x != 0).reshape(len(x), -1, x.shape[-1]).sum(1, dtype=torch.float64)
        fan_out = (layer.weight != 0).sum(0, dtype=torch.float64)
        return there @ fan_out, float(x.numel()) * layer.out_features
    conv = cast("Convolution", layer)
    if x.ndim == conv.weight.ndim:  # without a batch
        x = x.unsqueeze(1)
    # the sum over the batch of a linear map is the map of the sum
    there = (x != 0).sum(1, dtype=torch.float64)
    weight = (conv.weight != 0).to(torch.float64)
    effective = _convolved(conv, there, weight).flatten(1).sum(1)
    every = _convolved(conv, torch.ones_like(there[:1]), torch.ones_like(weight)).sum()
    return effective, float(every) * x.shape[0] * x.shape[1]


def _convolved(layer: Convolution, x: Tensor, weight: Tensor) -> Tensor:
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    convolve: Any = _CONVOLVE[weight.ndim]
    convolved: Tensor = convolve(
        x, weight, None, layer.stride, padding, layer.dilation, layer.groups
    )
    return convolved


def uncounted(modules: list[tuple[str, nn.Module]]) -> str | None:
    """The first module that multiplies by weights in a way that is not counted, or ``None``."""
    for path, module in modules:
        if isinstance(module, (*WEIGHTED, *_WITHOUT_PRODUCTS)):
            continue
        if any(p.ndim > 1 for p in module.parameters(recurse=False)):
            return f"{path or 'the model'} ({type(module).__name__})"
    return None
