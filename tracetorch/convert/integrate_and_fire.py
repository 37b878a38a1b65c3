"""Integrate-and-fire neurons, and what keeps sums over time: biases for some steps, maxima."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tracetorch.core.checks import check_count, check_flag, check_positive
from tracetorch.snn.descriptions import describe_neuron
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import DEFAULT_SURROGATE, SpikeFunction, Value, Weight

_TINIEST = 1e-30  # of a threshold, far below any that float32 membranes could tell from zero


def _check_limit(name: str, value: object) -> int | None:
    return None if value is None else check_count(name, value)


@describe_neuron
class IntegrateAndFire(Neuron):
    """Integrate-and-fire (IF): no leak, spikes of the size of the threshold, reset by subtraction.

    ::

        mem = mem + x
        n = floor(mem / pos_threshold), between 0 and burst
        [signed]  n = floor(mem / pos_threshold), between -burst and burst
        [either]  n between -total and limit - total;  total = total + n
        mem = mem - n * pos_threshold
        output = n * pos_threshold

    The membrane starts at half of the ``pos_threshold`` that the constructor is given. So the sum
    of the outputs is the sum of the inputs, rounded to a multiple of the threshold: the mean over
    time is a ReLU of the mean of the inputs, clipped at ``burst`` thresholds a step. A membrane
    that reaches the threshold fires. With ``signed`` a neuron takes back spikes that came too
    early: it sends a negative one while its membrane is below zero, and never more of them than it
    has sent.

    Args:
        pos_threshold: membrane at which a spike is sent, and its size; a number or a tensor of rank
            0 or 1, positive. It does not learn.
        burst: the most spikes of a neuron in a step; at least 1.
        signed: spikes have a sign, and later ones take back earlier ones.
        limit: the most spikes of a neuron in total, less those taken back; at least 1, or ``None``
            for any number.

    Example:
        >>> layer = IntegrateAndFire(1, pos_threshold=0.5)
        >>> [layer(torch.tensor([[x]])).item() for x in (0.125, 0.25, 0.25, 0.25)]
        [0.0, 0.5, 0.0, 0.5]
        >>> layer = IntegrateAndFire(1, pos_threshold=0.5, signed=True)
        >>> [layer(torch.tensor([[x]])).item() for x in (1.0, -1.0, -1.0)]
        [0.5, -0.5, 0.0]

    Reference: Rueckauer, Lungu, Hu, Pfeiffer, Liu, "Conversion of continuous-valued deep networks
    to efficient event-driven networks for image classification", Frontiers in Neuroscience 11
    (2017). The start at half a threshold: Bu et al., "Optimal ANN-SNN conversion for high-accuracy
    and ultra-low-latency spiking neural networks", ICLR 2022. Negative spikes with a memory: Wang,
    Zhang, Chen, Qu, "Signed neuron with memory: towards simple, accurate and high-efficient ANN-SNN
    conversion", IJCAI 2022. Bursts: Li, Zeng, "Efficient and accurate conversion of spiking neural
    network with burst spikes", IJCAI 2022.
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "total")

    mem: Tensor | None
    total: Tensor | None

    def __init__(
        self,
        num_neurons: int,
        pos_threshold: Value = 1.0,
        burst: int = 1,
        signed: bool = False,
        limit: int | None = None,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        if not isinstance(pos_threshold, Tensor):
            check_positive("pos_threshold", pos_threshold)
        setup = Weight(pos_threshold, 0, False)
        # not by softplus, as other thresholds: the value is the one given, to the last bit
        self.weight("pos_threshold", setup, low=_TINIEST)
        self.state("mem", init=0.5 * self.pos_threshold)
        self.option("burst", burst, check=check_count)
        self.option("signed", signed, check=check_flag)
        self.option("limit", limit, check=_check_limit)
        self.option("spike", surrogate_derivative)

    @property
    def active_states(self) -> tuple[str, ...]:
        """``mem``, and where spikes are counted ``total``."""
        counts = self.signed or self.limit is not None
        return ("mem", "total") if counts else ("mem",)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        total: Any,
        *,
        pos_threshold: Tensor,
        burst: int,
        signed: bool,
        limit: int | None,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        mem = mem + x
        # one minus: a membrane that is exactly at the threshold fires
        n = 1 - spike(pos_threshold - mem)
        for level in range(2, burst + 1):
            n = n + (1 - spike(level * pos_threshold - mem))
        if limit is not None:
            n = torch.minimum(n, limit - total)
        if signed:
            back = spike(-mem)
            for level in range(1, burst):
                back = back + spike(-level * pos_threshold - mem)
            n = n - torch.minimum(back, total)
        output = n * pos_threshold
        return output, mem - output, None if total is None else total + n


class TimedBias(Neuron):
    """Bias for some steps alone: ``x + bias`` until ``steps`` are over, then ``x``."""

    states: ClassVar[tuple[str, ...]] = ("left",)

    left: Tensor | None

    def __init__(self, num_neurons: int, steps: int, dim: int) -> None:
        super().__init__(num_neurons, dim)
        self.weight("bias", 0.0)
        self.state("left", init=float(steps))

    @staticmethod
    def step(x: Tensor, left: Tensor, *, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Run one step."""
        on = left.clamp(max=1)
        return x + bias * on, left - on


class RunningSum(Neuron):
    """Sum over time: ``total = total + x;  output = total``."""

    states: ClassVar[tuple[str, ...]] = ("total",)

    total: Tensor | None

    @staticmethod
    def step(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Run one step."""
        total = total + x
        return total, total


class Change(Neuron):
    """Change since the step before: ``output = x - before;  before = x``, from zero."""

    states: ClassVar[tuple[str, ...]] = ("before",)

    before: Tensor | None

    @staticmethod
    def step(x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Run one step."""
        return x - before, x
