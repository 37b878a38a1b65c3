"""Adaptive neurons: each spike makes the next one harder."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from tracetorch.core.checks import check_finite, check_flag
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    DEFAULT_SURROGATE,
    DecaySetup,
    SpikeFunction,
    ThresholdSetup,
    WeightSetup,
)
from tracetorch.snn.spiking import describe_neuron


@describe_neuron
class ALIF(Neuron):
    """Adaptive threshold: LIF whose threshold rises with each spike, and falls back slowly.

    ::

        mem = beta * mem + x
        output = H(mem - pos_threshold - strength * adaptation)
        mem = mem - output * pos_threshold
        adaptation = rho * adaptation + output

    The neuron of long short-term memory spiking networks (LSNN). The defaults are those of the
    authors' program for digits pixel by pixel (IGITUGraz/LSNN-official, 2018): the membrane forgets
    in 20 ms (``beta = exp(-1/20)`` at 1 ms per step), the threshold in 700 ms
    (``rho = exp(-1/700)``); one spike raises it by a quarter, ``1.8 (1 - rho) / 0.01``, with 1.8
    for their scale and 0.01 for their threshold. Equations and reset are those of 2020 (2018 takes
    off the raised threshold); the reset is in the step that fires, there one step later. That
    program also scales its input by ``1 - beta``, here left to the weights, and keeps a neuron
    silent for 5 steps after a spike; here it may fire in each (see :class:`RefractoryLIF`).

    Args:
        rho: decay of the adaptation, in (0, 1).
        pos_threshold: threshold of a neuron that has not fired; positive.
        strength: by how much a spike raises the threshold.

    Example:
        >>> layer = ALIF(1, strength=1.0)
        >>> [layer(torch.full((1, 1), 1.1)).item() for _ in range(4)]
        [1.0, 0.0, 1.0, 0.0]

    Reference: Bellec, Salaj, Subramoney, Legenstein, Maass, "Long short-term memory and
    learning-to-learn in networks of spiking neurons", NeurIPS 2018; Bellec et al., "A solution to
    the learning dilemma for recurrent networks of spiking neurons", Nature Communications 11
    (2020).
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "adaptation")

    def __init__(
        self,
        num_neurons: int,
        beta: DecaySetup = 0.9512,
        rho: DecaySetup = 0.9986,
        pos_threshold: ThresholdSetup = 1.0,
        strength: WeightSetup = 0.257,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", beta)
        self.decay("rho", rho)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)
        self.weight("strength", strength)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        adaptation: Tensor,
        *,
        beta: Tensor,
        rho: Tensor,
        pos_threshold: Tensor,
        strength: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        mem = beta * mem + x
        fired = spike(mem - pos_threshold - strength * adaptation)
        return fired, mem - fired * pos_threshold, rho * adaptation + fired


class AdaptiveCurrentNeuron(Neuron):
    """Base of :class:`AdLIF` and :class:`SEAdLIF`, whose parameters are the same."""

    def __init__(
        self,
        num_neurons: int,
        beta: DecaySetup = 0.9355,
        rho: DecaySetup = 0.9945,
        a: WeightSetup = 0.5,
        b: WeightSetup = 1.0,
        pos_threshold: ThresholdSetup = 1.0,
        q: float = 120.0,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        detach_reset: bool = False,
        bounded: bool = False,
    ) -> None:
        super().__init__(num_neurons, dim)
        ends = (0.0, 1.0, 2.0) if check_flag("bounded", bounded) else (None, None, None)
        self.decay("beta", beta)
        self.decay("rho", rho)
        self.weight("a", a, low=ends[0], high=ends[1])
        self.weight("b", b, low=ends[0], high=ends[2])
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)
        self.option("q", q, check=check_finite)
        self.option("detach_reset", detach_reset, check=check_flag)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "q":
            size = abs(self.q)
            self._bound_decay("rho", (size - 1) / (size + 1) if size > 1 else None)


@describe_neuron
class AdLIF(AdaptiveCurrentNeuron):
    """Adaptive LIF (adLIF): a current that follows membrane and spikes works against both.

    ::

        u = beta * mem + (1 - beta) * (x - w)
        output = H(u - pos_threshold)
        w = rho * w + (1 - rho) * q * (a * mem + b * prev_output)
        mem = u * (1 - output);  prev_output = output

    Membrane and current form an oscillator. This is its integration by Euler's forward method;
    :class:`SEAdLIF` integrates it better. Paper and program (IGITUGraz/SE-adlif) draw the time
    constants of spoken digits from 5 to 25 and 60 to 300 ms, a step being called 1 ms whatever the
    frames are, ``a`` from [0, 1] and ``b`` from [0, 2], with ``q = 120`` and a threshold of 1. The
    defaults are the middles: 15 ms (``beta = exp(-1/15)``) and 180 ms (``rho = exp(-1/180)``). The
    program detaches the spike in the reset, and clamps ``a`` and ``b`` to those ranges after each
    step of the optimizer: ``detach_reset=True, bounded=True``. By default the reset has a gradient,
    and ``a`` and ``b`` are free.

    The current moves by ``(1 - rho) * q`` a step, which grows e-fold with each unit that learning
    takes from ``raw_rho``. Learning leads ``rho`` no lower than ``(q - 1) / (q + 1)``, a time
    constant of ``q / 2`` steps, so 60, the lower end of the program; what is given or loaded may be
    lower, and is the bound then; one that is assigned may not. Above ``(q - 1) / (q + 1)``
    :class:`SEAdLIF` does not diverge below its threshold, for any ``beta`` and any ``a`` in [0, 1]:
    ``(1 - rho) * q * a < (1 + beta) * (1 + rho) / (1 - beta)``. ``AdLIF`` does not for ``a`` in
    [0, 0.5]. With a larger ``a`` it can, ``bounded=True`` or not: Euler's method needs
    ``beta * rho + (1 - beta) * (1 - rho) * q * a < 1``, at the default decays ``a`` below 1.6, with
    ``rho`` at its bound below 0.63. Take :class:`SEAdLIF` where ``a`` is learned at a high rate.

    Bittar and Garner, who made the adLIF known (idiap/sparch), draw from 30 to 120 for the second.

    Args:
        rho: decay of the current, in (0, 1).
        a: how strongly the current follows the membrane.
        b: by how much a spike raises the current.
        q: the scale of ``a`` and ``b``, so that both are learned at the rate of other parameters;
            finite.
        detach_reset: cut the gradient through the spike in the reset.
        bounded: hold ``a`` in [0, 1] and ``b`` in [0, 2], also while they are learned; for high
            learning rates.

    Example:
        >>> layer = AdLIF(1, beta=0.5)
        >>> [layer(torch.full((1, 1), 2.5)).item() for _ in range(4)]
        [1.0, 1.0, 0.0, 1.0]

    Reference: Baronig, Ferrand, Sabathiel, Legenstein, "Advancing spatio-temporal processing
    through adaptation in spiking neural networks", Nature Communications 16 (2025); Bittar, Garner,
    "A surrogate gradient spiking baseline for speech command recognition", Frontiers in
    Neuroscience 16 (2022).
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "w", "prev_output")
    reset_states: ClassVar[tuple[str, ...]] = ("mem",)  # w adapts

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        w: Tensor,
        prev_output: Tensor,
        *,
        beta: Tensor,
        rho: Tensor,
        a: Tensor,
        b: Tensor,
        pos_threshold: Tensor,
        q: float,
        detach_reset: bool,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        u = beta * mem + (1 - beta) * (x - w)
        fired = spike(u - pos_threshold)
        w = rho * w + (1 - rho) * q * (a * mem + b * prev_output)
        reset = fired.detach() if detach_reset else fired
        return fired, u * (1 - reset), w, fired


@describe_neuron
class SEAdLIF(AdaptiveCurrentNeuron):
    """Adaptive LIF, integrated by the symplectic Euler method (SE-adLIF).

    ::

        u = beta * mem + (1 - beta) * (x - w)
        output = H(u - pos_threshold)
        mem = u * (1 - output)
        w = rho * w + (1 - rho) * q * (a * mem + b * output)

    As :class:`AdLIF`, but the current follows the membrane of this step, not of the one before:
    stable where Euler's forward method is not, and the best simple neuron of its paper. As there,
    the authors' program has ``detach_reset=True, bounded=True``.

    Args:
        num_neurons, beta, rho, a, b, pos_threshold, q, dim, surrogate_derivative, detach_reset,
            bounded: as those of :class:`AdLIF`, with the same defaults.

    Example:
        >>> layer = SEAdLIF(1, beta=0.5)
        >>> [layer(torch.full((1, 1), 2.5)).item() for _ in range(4)]
        [1.0, 0.0, 1.0, 0.0]

    Reference: as :class:`AdLIF`.
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "w")
    reset_states: ClassVar[tuple[str, ...]] = ("mem",)  # w adapts

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        w: Tensor,
        *,
        beta: Tensor,
        rho: Tensor,
        a: Tensor,
        b: Tensor,
        pos_threshold: Tensor,
        q: float,
        detach_reset: bool,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        u = beta * mem + (1 - beta) * (x - w)
        fired = spike(u - pos_threshold)
        mem = u * (1 - (fired.detach() if detach_reset else fired))
        return fired, mem, rho * w + (1 - rho) * q * (a * mem + b * fired)
