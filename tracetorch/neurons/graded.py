"""Neurons whose spikes have a size: integers, and changes of an activation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tracetorch.core.checks import check_count
from tracetorch.functional import boxcar_surrogate
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import DEFAULT_SURROGATE, DecaySetup, SpikeFunction, ThresholdSetup
from tracetorch.snn.spiking import describe_neuron

STRAIGHT_THROUGH = boxcar_surrogate(1.0)


@describe_neuron
class MultiLevelLIF(Neuron):
    """Multi-level LIF (I-LIF): spikes are integers, from 0 to the number of levels.

    ::

        mem = beta * mem + x
        output = round(mem / pos_threshold), between 0 and levels
        mem = mem - output * pos_threshold

    It is the sum of ``levels`` spikes with thresholds half a step apart from the integers, and so
    learns by any surrogate; a boxcar of width 1 is the straight-through gradient of the paper. A
    half is rounded down. ``levels = 4`` and ``beta = 0.25`` are those of the authors' program
    (BICLab/SpikeYOLO), for few long steps; its threshold is 1, and it detaches the spike in the
    reset. Levels are as far apart as the threshold, the surrogate is not scaled by it: for another
    threshold, ``boxcar_surrogate(threshold)`` is the straight-through gradient of ``mem /
    pos_threshold``, where a width of 1 overlaps or leaves gaps.

    Args:
        pos_threshold: the membrane that is worth a spike of 1; positive.
        levels: the largest spike; at least 1.
        surrogate_derivative: the spike function of each level, ``u -> spikes``.

    Raises:
        TypeError, ValueError: ``levels`` is not an integer, or below 1.

    Example:
        >>> layer = MultiLevelLIF(4)
        >>> layer(torch.tensor([[-1.0, 0.4, 2.2, 9.0]])).tolist()
        [[0.0, 0.0, 2.0, 4.0]]

    Reference: Luo, Yao, Chou, Xu, Li, "Integer-valued training and spike-driven inference spiking
    neural network for high-performance and energy-efficient object detection", ECCV 2024.
    """

    states: ClassVar[tuple[str, ...]] = ("mem",)

    def __init__(
        self,
        num_neurons: int,
        beta: DecaySetup = 0.25,
        pos_threshold: ThresholdSetup = 1.0,
        levels: int = 4,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = STRAIGHT_THROUGH,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", beta)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)
        self.option("levels", levels, check=check_count)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        *,
        beta: Tensor,
        pos_threshold: Tensor,
        levels: int,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        mem = beta * mem + x
        fired = spike(mem - 0.5 * pos_threshold)
        for level in range(1, levels):
            fired = fired + spike(mem - (level + 0.5) * pos_threshold)
        return fired, mem - fired * pos_threshold


@describe_neuron
class SigmaDelta(Neuron):
    """Sigma-delta: sends the change of its activation, once that is large enough.

    ::

        sigma = sigma + x
        error = max(sigma, 0) - sent
        output = error where |error| > pos_threshold, else 0
        sent = sent + output

    Between two layers, activations travel as their changes: a layer sums up what it receives
    (sigma), applies a rectifier, and sends what differs by more than the threshold from what it has
    sent (delta). A signal that stands still costs nothing, and one that is constant arrives within
    the threshold. It does not forget, so there is no time constant; the default threshold is that
    of lava-dl's PilotNet. What is sent is the change itself, a number, as in lava-dl; the paper
    sends the integer nearest to it, in units of its scale.

    Args:
        pos_threshold: the smallest change that is sent; positive.
        surrogate_derivative: the spike function that decides whether to send, ``u -> spikes``.

    Example:
        >>> layer = SigmaDelta(1, pos_threshold=0.3)
        >>> [layer(torch.full((1, 1), x)).item() for x in (0.25, 0.25, 0.0, -2.0)]
        [0.0, 0.5, 0.0, -0.5]

    Reference: O'Connor, Welling, "Sigma delta quantized networks", ICLR 2017.
    """

    states: ClassVar[tuple[str, ...]] = ("sigma", "sent")

    def __init__(
        self,
        num_neurons: int,
        pos_threshold: ThresholdSetup = 0.1,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)
        self.option("output_bits", 0)

    @staticmethod
    def step(
        x: Tensor,
        sigma: Tensor,
        sent: Tensor,
        *,
        pos_threshold: Tensor,
        spike: SpikeFunction,
        output_bits: int,
    ) -> tuple[Any, ...]:
        """Run one step; ``output_bits`` are the significant bits of a narrower output, or 0."""
        sigma = sigma + x
        error = torch.relu(sigma) - sent
        output = error * spike(error.abs() - pos_threshold)
        if output_bits:  # what is counted as sent is what arrives, rounded by Veltkamp's splitting
            scaled = (2.0 ** (24 - output_bits) + 1) * output
            output = output + (scaled - (scaled - output) - output).detach()
        return output, sigma, sent + output
