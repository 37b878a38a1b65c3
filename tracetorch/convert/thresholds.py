"""Choose thresholds, and prove what follows: bounds of rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tracetorch.convert.network import PRODUCTS, Network, Node, Scaled, ann

_SILENT = 1e-6  # of the clip of a layer: the share below which a channel's is rounding
_FEW = 32  # values of a channel on the batch, below which the largest of them says little of others


@dataclass(frozen=True)
class Rule:
    """Rule of one activation's neurons: values for all, or for channels, shaped to broadcast."""

    threshold: Tensor  # and size of a spike
    clip: Tensor  # largest rate
    levels: int | None  # of the activation; None where it has none
    excess: Tensor  # largest difference between the activation and the ReLU with this clip
    reach: Tensor  # largest value of the activation: its own clip, or the largest on the batch


Rules = Mapping[Node, Rule]


def rules_of(
    network: Network, batch: Tensor, burst: int, percentile: float, by_channel: bool
) -> dict[Node, Rule]:
    """Return the rule of every activation of a network.

    Where an activation has no clip, it is the ``percentile`` of its values on the batch: those of a
    layer, or ``by_channel`` of each channel that has 32 values or more.
    """
    found: dict[Node, Rule] = {}

    def compute(node: Node, inputs: list[Tensor]) -> Tensor:
        value, activation = ann(node, inputs), node.activation
        if activation is None:
            return value
        levels = activation.levels
        if activation.clip is None:
            clip = _clips(value, percentile, by_channel)
            largest = value.transpose(0, 1).flatten(1).amax(1) if clip.ndim else value.max()
            excess = (largest.view_as(clip) - clip).clamp(min=0.0)
        else:
            clip = value.new_tensor(activation.clip)
            excess = torch.zeros_like(clip)
        reach = clip + excess
        if levels is not None:
            excess = clip / (2 * levels)
        found[node] = Rule(clip / burst, clip, levels, excess, reach)
        return value

    network.run(batch, compute)
    return found


def _clips(value: Tensor, percentile: float, by_channel: bool) -> Tensor:
    """Return the clip of a layer, or of its channels, where these have enough values."""

    def clip_of(values: Tensor) -> float:
        for some in (values, values[values > 0]):
            # the least value that is not below so many of them
            place = max(math.ceil(percentile / 100 * len(some)), 1)
            clip = float(some.kthvalue(place).values) if len(some) else 0.0
            if clip:
                return clip
        return 0.0

    whole = value.new_tensor(clip_of(value.flatten()) or 1.0)
    channels = value.transpose(0, 1).flatten(1)
    if not by_channel or channels.shape[1] < _FEW:
        return whole
    found = value.new_tensor([clip_of(each) for each in channels])
    # of a channel that is silent, but for rounding, the batch says nothing
    found = torch.where(found > _SILENT * whole, found, whole)
    return found.view(-1, *[1] * (value.ndim - 2))


class Bound(NamedTuple):
    """Bound of a layer's rates, neuron by neuron."""

    # how far the sum of the outputs is at most from that of the clipped network's, after any number
    # of steps
    charge: Tensor
    distance: Tensor  # how far the clipped network's value is at most from the model's


def bounds_of(network: Network, sample: Tensor, rules: Rules, steps: int) -> dict[Node, Bound]:
    """Return the bounds of all activations, and of the output under the last node.

    ``D = theta / 2 + |W| D_before``.
    """
    found: dict[Node, Bound] = {}

    def compute(node: Node, inputs: list[Tensor]) -> Tensor:
        # both bounds are one batch of two
        if node.activation is None:
            module = cast(nn.Module, node.module)
            if isinstance(module, PRODUCTS):  # the magnitudes of its weights alone
                module = copy.deepcopy(module)
                module.weight.data.abs_()
                module.bias = None
            elif isinstance(module, Scaled):
                module = Scaled(abs(module.factor))
            return cast(Tensor, module(*inputs))
        rule = rules[node]
        charge, distance = inputs[0]
        # rates lie between 0 and the clip, whatever happens
        charge = (charge + rule.threshold / 2).clamp(max=rule.clip * steps)
        # so do clipped values, and the model's own below their largest
        distance = (distance + rule.excess).clamp(max=rule.reach)
        found[node] = Bound(charge, distance)
        return torch.stack(list(found[node]))

    zeros = torch.zeros_like(sample[:1]).expand(2, *sample.shape[1:])
    output = network.run(zeros, compute)
    found[OUTPUT] = Bound(*output)
    return found


OUTPUT = Node("output", "linear", (), torch.Size())
"""Stands for the output of a network among activations."""
