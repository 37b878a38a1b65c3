"""Choose thresholds, and prove what follows: bounds of rates, and where they are equal."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tracetorch.convert.network import PRODUCTS, Network, Node, Scaled, ann

# of the clip of a layer: the share below which a channel's is rounding
_SILENT = 1e-6
# values of a channel on the batch, below which the largest of them says little of others
_FEW = 32


@dataclass(frozen=True)
class Times:
    """Steps and spikes of a conversion."""

    steps: int  # in which the input is there
    quiet: int  # steps behind them, without an input
    burst: int  # the most spikes of a neuron in a step
    signed: bool  # neurons take back spikes


@dataclass(frozen=True)
class Rule:
    """Rule of one activation's neurons: values for all, or for channels, shaped to broadcast."""

    threshold: Tensor  # and size of a spike
    clip: Tensor  # largest rate
    levels: int | None  # of the activation; None where it has none
    limit: int | None  # the most spikes in total; None where nothing limits them
    excess: Tensor  # largest difference between the activation and the ReLU with this clip
    reach: Tensor  # largest value of the activation: its own clip, or the largest on the batch
    suffices: bool  # whether the steps and bursts are enough for all levels


Rules = Mapping[Node, Rule]


def rules_of(
    network: Network, batch: Tensor, times: Times, percentile: float, by_channel: bool
) -> dict[Node, Rule]:
    """Return the rule of every activation of a network.

    Where an activation has no clip, it is the ``percentile`` of its values on the batch: those of a
    layer, or ``by_channel`` of each channel that has 32 values or more.
    """
    found: dict[Node, Rule] = {}
    most = times.steps * times.burst

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
        suffices = levels is not None and most >= levels
        spikes = levels if levels is not None and suffices else most
        limited = times.quiet > 0 or (suffices and (times.signed or most > spikes))
        limit = spikes if limited else None
        threshold = clip * times.steps / spikes
        found[node] = Rule(threshold, clip, levels, limit, excess, reach, suffices)
        return value

    network.run(batch, compute)
    return found


def _clips(value: Tensor, percentile: float, by_channel: bool) -> Tensor:
    """Return the clip of a layer, or of its channels, where these have enough values."""

    def clip_of(values: Tensor) -> float:
        """Return a percentile of all values, of those that are active where it is 0."""
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


def bounds_of(network: Network, sample: Tensor, rules: Rules, times: Times) -> dict[Node, Bound]:
    """Return the bounds of all activations, and of the output under the last node.

    ``D = theta / 2 + |W| D_before``, and with a clip that is reached before all steps are over at
    least ``clip (T - limit / burst)``, by which a neuron can run ahead.
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
        charge = charge + rule.threshold / 2
        if rule.limit is not None:
            ahead = rule.clip * (times.steps - rule.limit / times.burst)
            charge = charge.clamp(min=ahead)
        # rates lie between 0 and the clip, whatever happens
        charge = charge.clamp(max=rule.clip * times.steps)
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


_INHERITED = "what it receives is not"


class Ready(NamedTuple):
    """Step after which a value is complete."""

    step: float  # the number of steps; infinite where none is enough
    constant: bool  # it is the same at every step of the input
    reason: str  # why it may never be; empty where it is complete at last


def ready_of(network: Network, rules: Rules, times: Times) -> dict[Node, Ready]:
    """Return when the rates of every activation, and the output, are the model's."""
    values: list[Ready] = []
    found: dict[Node, Ready] = {}
    most = times.steps * times.burst
    for node in network.nodes:
        inputs = [values[place] for place in node.inputs]
        before = Ready(times.steps, True, "")
        if inputs:
            latest = max(inputs, key=lambda each: each.step)
            before = Ready(latest.step, all(each.constant for each in inputs), latest.reason)
        if node.activation is not None:
            rule, reason, step = rules[node], "", before.step
            if before.reason:
                reason = _INHERITED
            elif rule.levels is None:
                reason = "it is no quantised ReLU"
            elif not rule.suffices:
                reason = f"{rule.levels} levels need as many spikes, it has {most}"
            elif not before.constant and not times.signed:
                reason = "its inputs vary: it needs signed=True"
            elif not before.constant:
                step += math.ceil(rule.levels / times.burst) - 1
            before = found[node] = Ready(math.inf if reason else step, False, reason)
        values.append(before)
    last = values[network.output]
    found[OUTPUT] = last._replace(reason=_INHERITED if last.reason else "")
    return found
