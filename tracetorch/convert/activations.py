"""``QuantizedReLU``, integrate-and-fire neurons, and what keeps sums over time for maxima."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_positive
from tracetorch.integers.arithmetic import clamped, straight_through
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import DEFAULT_SURROGATE, Clamp, SpikeFunction, Value, Weight
from tracetorch.snn.spiking import describe_neuron

_TINIEST = 1e-30  # of a threshold, far below any that float32 membranes could tell from zero
_SMALLEST = 1e-6  # of a clip that learns


class QuantizedReLU(nn.Module):
    """Quantised ReLU (QCFS): a clipped ReLU, rounded to levels; the clip learns.

    ::

        output = clip / levels * floor(levels * min(max(x / clip, 0), 1) + 1/2)

    Train a network with it in the place of ``nn.ReLU``, for :func:`from_ann`. The gradient passes
    the rounding straight through; the clip gets one from what it clips, and from the rounding.

    Args:
        levels: steps between 0 and the clip; at least 1. As many as the time steps of the spiking
            network, or fewer.
        clip: largest output, to start from; positive.

    Shape:
        Input and output have one shape, any.

    Attributes:
        clip: the largest output, a parameter.

    Raises:
        TypeError, ValueError: an argument is out of its range.

    Example:
        >>> relu = QuantizedReLU(4, clip=2.0)
        >>> relu(torch.tensor([-1.0, 0.2, 0.25, 0.8, 1.9, 5.0])).tolist()
        [0.0, 0.0, 0.5, 1.0, 2.0, 2.0]

    Reference: Bu, Fang, Ding, Dai, Yu, Huang, "Optimal ANN-SNN conversion for high-accuracy and
    ultra-low-latency spiking neural networks", ICLR 2022.
    """

    levels: int
    clip: nn.Parameter

    def __init__(self, levels: int, clip: float = 4.0) -> None:
        super().__init__()
        self.levels = check_count("levels", levels)
        self.clip = nn.Parameter(torch.tensor(check_positive("clip", clip)))

    @property
    def largest(self) -> Tensor:
        """The clip, positive wherever learning has led it."""
        return Clamp(_SMALLEST)(self.clip)

    def forward(self, x: Tensor) -> Tensor:
        clip = self.largest.to(x.dtype)
        level = clamped(x / clip, 0, 1) * self.levels
        return straight_through(level, torch.floor(level + 0.5)) * (clip / self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, clip={self.clip.item():.6g}"


@describe_neuron
class IntegrateAndFire(Neuron):
    """Integrate-and-fire (IF): no leak, spikes of the size of the threshold, reset by subtraction.

    ::

        mem = mem + x
        n = floor(mem / pos_threshold), between 0 and burst
        mem = mem - n * pos_threshold
        output = n * pos_threshold

    The membrane starts at half of the ``pos_threshold`` that the constructor is given. So the sum
    of the outputs is the sum of the inputs, rounded to a multiple of the threshold: the mean over
    time is a ReLU of the mean of the inputs, clipped at ``burst`` thresholds a step. A membrane
    that reaches the threshold fires.

    Args:
        pos_threshold: membrane at which a spike is sent, and its size; a number or a tensor of rank
            0 or 1, positive. It does not learn.
        burst: the most spikes of a neuron in a step; at least 1.

    Example:
        >>> layer = IntegrateAndFire(1, pos_threshold=0.5)
        >>> [layer(torch.tensor([[x]])).item() for x in (0.125, 0.25, 0.25, 0.25)]
        [0.0, 0.5, 0.0, 0.5]

    Reference: Rueckauer, Lungu, Hu, Pfeiffer, Liu, "Conversion of continuous-valued deep networks
    to efficient event-driven networks for image classification", Frontiers in Neuroscience 11
    (2017). The start at half a threshold: Bu et al., "Optimal ANN-SNN conversion for high-accuracy
    and ultra-low-latency spiking neural networks", ICLR 2022. Bursts: Li, Zeng, "Efficient and
    accurate conversion of spiking neural network with burst spikes", IJCAI 2022.
    """

    states: ClassVar[tuple[str, ...]] = ("mem",)

    mem: Tensor | None

    def __init__(
        self,
        num_neurons: int,
        pos_threshold: Value = 1.0,
        burst: int = 1,
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
        self.option("spike", surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor, mem: Tensor, *, pos_threshold: Tensor, burst: int, spike: SpikeFunction
    ) -> tuple[Any, ...]:
        mem = mem + x
        # one minus: a membrane that is exactly at the threshold fires
        n = 1 - spike(pos_threshold - mem)
        for level in range(2, burst + 1):
            n = n + (1 - spike(level * pos_threshold - mem))
        output = n * pos_threshold
        return output, mem - output


class RunningSum(Neuron):
    """Sum over time: ``total = total + x;  output = total``."""

    states: ClassVar[tuple[str, ...]] = ("total",)

    total: Tensor | None

    @staticmethod
    def step(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + x
        return total, total


class Change(Neuron):
    """Change since the step before: ``output = x - before;  before = x``, from zero."""

    states: ClassVar[tuple[str, ...]] = ("before",)

    before: Tensor | None

    @staticmethod
    def step(x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return x - before, x
