"""Nonlinear neurons in millivolts, whose spike grows by itself: exponential, quadratic, AdEx."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tracetorch.functional import atan_surrogate
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    THRESHOLD,
    DecaySetup,
    SpikeFunction,
    Value,
    WeightSetup,
    resolve_setup,
)

# that of the other layers in units of 20 mV, about the way from rest to threshold
MILLIVOLTS = atan_surrogate(0.1)
# where the exponential is held, beyond the threshold: from there the next step fires anyway, and
# without this a strong input would overflow
HIGHEST_EXPONENT = 10.0


class VoltageNeuron(Neuron):
    """Base of neurons in millivolts: a voltage ``v`` with an initial value, and a spike function.

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension.
        start: initial voltage, in mV.
        surrogate: the spike function, ``u -> spikes``.
    """

    def __init__(self, num_neurons: int, dim: int, start: Value, surrogate: SpikeFunction) -> None:
        super().__init__(num_neurons, dim)
        self.state("v", init=start)
        # a peak is no threshold, which is positive, but it is tested like one
        checked = resolve_setup("the peak", {"surrogate": surrogate}, THRESHOLD)
        self.option("spike", checked.surrogate)


class EIF(VoltageNeuron):
    """Exponential integrate-and-fire: the current that makes a spike grows exponentially.

    ::

        v = v_rest + beta * (v - v_rest) + (1 - beta) * (delta * exp((v - v_t) / delta) + x)
        output = H(v - v_peak);  v = v_reset where it fired

    The input is a current times the resistance, in mV; the voltage starts at the value that
    is given as ``v_rest``. The
    defaults are the paper's (as BrainPy's ``ExpIF`` has them), without its refractory time and but
    for the peak. The membrane has 10 ms, ``beta = exp(-1/10)`` at 1 ms per step: exact for the
    leak, one step of Euler's method for the rest. The exponent is held at 10, where the next step
    fires anyway. A spike is counted at ``v_t + 5 delta``, as programs for Brian do, not at the
    paper's -30 mV: what passes there is far beyond it a step later, and out of reach of a surrogate
    at the peak.

    Args:
        num_neurons: size of the neuron dimension.
        beta: decay of the membrane, in (0, 1).
        v_rest: resting voltage, in mV; a number or a tensor of rank 0 or 1.
        v_t: voltage from which a spike grows, in mV.
        delta: sharpness of the spike, in mV; positive.
        v_reset: voltage after a spike, in mV.
        v_peak: voltage at which a spike is counted, in mV.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        surrogate_derivative: the spike function, ``u -> spikes``, of mV above the peak.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Example:
        >>> layer = EIF(1)
        >>> sum(layer(torch.full((1, 1), 20.0)).item() for _ in range(100))
        10.0

    Reference: Fourcaud-Trocme, Hansel, van Vreeswijk, Brunel, "How spike generation mechanisms
    determine the neuronal response to fluctuating inputs", Journal of Neuroscience 23 (2003).
    """

    states: ClassVar[tuple[str, ...]] = ("v",)

    def __init__(
        self,
        num_neurons: int,
        beta: DecaySetup = 0.9048,
        v_rest: Value = -65.0,
        v_t: WeightSetup = -59.9,
        delta: WeightSetup = 3.48,
        v_reset: WeightSetup = -68.0,
        v_peak: WeightSetup = -42.5,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = MILLIVOLTS,
    ) -> None:
        super().__init__(num_neurons, dim, v_rest, surrogate_derivative)
        self.decay("beta", beta)
        self.weight("v_rest", v_rest)
        self.weight("v_t", v_t)
        self.weight("delta", delta)
        self.weight("v_reset", v_reset)
        self.weight("v_peak", v_peak)

    @staticmethod
    def step(
        x: Tensor,
        v: Tensor,
        *,
        beta: Tensor,
        v_rest: Tensor,
        v_t: Tensor,
        delta: Tensor,
        v_reset: Tensor,
        v_peak: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        growth = delta * torch.exp(((v - v_t) / delta).clamp(max=HIGHEST_EXPONENT))
        v = v_rest + beta * (v - v_rest) + (1 - beta) * (growth + x)
        fired = spike(v - v_peak)
        return fired, v * (1 - fired) + v_reset * fired


class QIF(VoltageNeuron):
    """Quadratic integrate-and-fire: below a critical voltage it falls to rest, above it it spikes.

    ::

        v = v + (1 - beta) * ((v - v_rest) * (v - v_critical) / (v_critical - v_rest) + x)
        output = H(v - v_peak);  v = v_reset where it fired

    The input is a current times the resistance, in mV; the voltage starts at the value that
    is given as ``v_rest``. Euler's
    method with a membrane of 10 ms, ``beta = exp(-1/10)`` at 1 ms per step. The defaults are those
    that BrainPy's ``QuaIF`` takes from the paper: rest and critical voltage give the curvature of
    1/15 per mV, there 0.07.

    Args:
        num_neurons: size of the neuron dimension.
        beta: decay of the membrane, in (0, 1).
        v_rest: resting voltage, in mV; a number or a tensor of rank 0 or 1.
        v_critical: voltage above which it spikes by itself, in mV; above ``v_rest``.
        v_reset: voltage after a spike, in mV.
        v_peak: voltage at which a spike is counted, in mV.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        surrogate_derivative: the spike function, ``u -> spikes``, of mV above the peak.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Example:
        >>> layer = QIF(1)
        >>> sum(layer(torch.full((1, 1), 20.0)).item() for _ in range(100))
        5.0

    Reference: Latham, Richmond, Nelson, Nirenberg, "Intrinsic dynamics in neuronal networks. I.
    Theory", Journal of Neurophysiology 83 (2000).
    """

    states: ClassVar[tuple[str, ...]] = ("v",)

    def __init__(
        self,
        num_neurons: int,
        beta: DecaySetup = 0.9048,
        v_rest: Value = -65.0,
        v_critical: WeightSetup = -50.0,
        v_reset: WeightSetup = -68.0,
        v_peak: WeightSetup = -30.0,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = MILLIVOLTS,
    ) -> None:
        super().__init__(num_neurons, dim, v_rest, surrogate_derivative)
        self.decay("beta", beta)
        self.weight("v_rest", v_rest)
        self.weight("v_critical", v_critical)
        self.weight("v_reset", v_reset)
        self.weight("v_peak", v_peak)

    @staticmethod
    def step(
        x: Tensor,
        v: Tensor,
        *,
        beta: Tensor,
        v_rest: Tensor,
        v_critical: Tensor,
        v_reset: Tensor,
        v_peak: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        growth = (v - v_rest) * (v - v_critical) / (v_critical - v_rest)
        v = v + (1 - beta) * (growth + x)
        fired = spike(v - v_peak)
        return fired, v * (1 - fired) + v_reset * fired


class AdEx(VoltageNeuron):
    """Adaptive exponential integrate-and-fire (AdEx): an EIF with an adaptation current.

    ::

        growth = delta * exp((v - v_t) / delta)
        v' = v_rest + beta * (v - v_rest) + (1 - beta) * (growth - w + x)
        w = rho * w + (1 - rho) * a * (v - v_rest)
        output = H(v' - v_peak);  v' = v_reset where it fired;  w = w + b * output

    The defaults are the paper's (as ModelDB 154770 and Brian 2 have them); Naud et al., "Firing
    patterns in the adaptive exponential integrate-and-fire model" (2008), have others for bursts.
    Currents are divided by the leak conductance and so in mV: with ``g = 30 nS`` the paper's
    ``a = 4 nS`` is ``4 / 30``, its ``b = 80.5 pA`` is ``80.5 / 30`` mV, and a current of 1 nA an
    input of 33.3. The membrane has 281 pF / 30 nS = 9.37 ms, ``beta = exp(-1/9.37)`` at 1 ms per
    step, the adaptation 144 ms, ``rho = exp(-1/144)``. The voltage starts at the value
    that is given as ``v_rest``; the
    exponent is held at 10, where the next step fires anyway. A spike is counted at
    ``v_t + 5 delta``, as programs for Brian do, not at the paper's 20 mV: what passes there is far
    beyond it a step later, and out of reach of a surrogate at the peak.

    Args:
        num_neurons: size of the neuron dimension.
        beta: decay of the membrane, in (0, 1).
        rho: decay of the adaptation current, in (0, 1).
        a: how strongly the adaptation follows the voltage.
        b: by how much a spike raises the adaptation, in mV.
        v_rest: resting voltage, in mV; a number or a tensor of rank 0 or 1.
        v_t: voltage from which a spike grows, in mV.
        delta: sharpness of the spike, in mV; positive.
        v_reset: voltage after a spike, in mV.
        v_peak: voltage at which a spike is counted, in mV.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        surrogate_derivative: the spike function, ``u -> spikes``, of mV above the peak.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Example:
        >>> layer = AdEx(1)
        >>> sum(layer(torch.full((1, 1), 33.3)).item() for _ in range(200))  # 1 nA for 200 ms
        8.0

    Reference: Brette, Gerstner, "Adaptive exponential integrate-and-fire model as an effective
    description of neuronal activity", Journal of Neurophysiology 94 (2005).
    """

    states: ClassVar[tuple[str, ...]] = ("v", "w")
    reset_states: ClassVar[tuple[str, ...]] = ("v",)  # w adapts

    def __init__(
        self,
        num_neurons: int,
        beta: DecaySetup = 0.8987,
        rho: DecaySetup = 0.9931,
        a: WeightSetup = 4 / 30,
        b: WeightSetup = 80.5 / 30,
        v_rest: Value = -70.6,
        v_t: WeightSetup = -50.4,
        delta: WeightSetup = 2.0,
        v_reset: WeightSetup = -70.6,
        v_peak: WeightSetup = -40.4,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = MILLIVOLTS,
    ) -> None:
        super().__init__(num_neurons, dim, v_rest, surrogate_derivative)
        self.decay("beta", beta)
        self.decay("rho", rho)
        self.weight("a", a)
        self.weight("b", b)
        self.weight("v_rest", v_rest)
        self.weight("v_t", v_t)
        self.weight("delta", delta)
        self.weight("v_reset", v_reset)
        self.weight("v_peak", v_peak)

    @staticmethod
    def step(
        x: Tensor,
        v: Tensor,
        w: Tensor,
        *,
        beta: Tensor,
        rho: Tensor,
        a: Tensor,
        b: Tensor,
        v_rest: Tensor,
        v_t: Tensor,
        delta: Tensor,
        v_reset: Tensor,
        v_peak: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        growth = delta * torch.exp(((v - v_t) / delta).clamp(max=HIGHEST_EXPONENT))
        following = rho * w + (1 - rho) * a * (v - v_rest)
        v = v_rest + beta * (v - v_rest) + (1 - beta) * (growth - w + x)
        fired = spike(v - v_peak)
        return fired, v * (1 - fired) + v_reset * fired, following + b * fired
