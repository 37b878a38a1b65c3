"""Nonlinear neurons, whose spike grows by itself: exponential, quadratic, AdEx, Izhikevich's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from tracetorch.core.checks import check_count
from tracetorch.core.torch_private import has_values
from tracetorch.functional import atan_surrogate
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    THRESHOLD,
    WEIGHT,
    DecaySetup,
    SpikeFunction,
    Value,
    WeightSetup,
    completed,
    resolve_setup,
)
from tracetorch.snn.spiking import describe_neuron

# that of the other layers in units of 20 mV, about the way from rest to threshold
MILLIVOLTS = atan_surrogate(0.1)
# where the exponential is held, beyond the threshold: from there the next step fires anyway, and
# without this a strong input would overflow
HIGHEST_EXPONENT = 10.0
# below this sharpness, in mV, gradients of the exponential leave float32
SHARPEST = 1e-6


class VoltageNeuron(Neuron):
    """Base of neurons in millivolts: a voltage ``v``, its start, and a spike function."""

    def __init__(
        self, num_neurons: int, dim: int, start: Value, surrogate: SpikeFunction, substeps: int
    ) -> None:
        super().__init__(num_neurons, dim)
        self.state("v", init=start)
        self.option("substeps", substeps, check=check_count)
        # a peak is no threshold, which is positive, but it is tested like one
        checked = resolve_setup("the peak", {"surrogate": surrogate}, THRESHOLD)
        self.option("spike", checked.surrogate)


def part_of_step(decay: Tensor, substeps: int) -> tuple[Tensor, Tensor]:
    """Return the decay over one of ``substeps`` equal parts of a step, and 1 minus it."""
    if substeps == 1:
        return decay, 1 - decay
    lost = -torch.expm1(torch.log(decay) / substeps)  # exact where 1 - decay would cancel
    return 1 - lost, lost


def without_overshoot(change: Tensor, slope: Tensor) -> Tensor:
    """Return a change by Euler's method, made smaller where the method is unstable.

    It is where the change falls by more than 2 per unit of the voltage (``slope``). There a voltage
    far below rest would be thrown beyond the peak; divided so, the step is nearly Newton's towards
    the voltage at which nothing changes. Elsewhere the change is the same to the last bit.
    """
    return change / (-slope - 1).clamp(min=1.0)


def all_of(fired: list[Tensor]) -> Tensor:
    """Return the spikes of all parts of a step together."""
    return sum(fired[1:], fired[0])


@describe_neuron
class EIF(VoltageNeuron):
    """Exponential integrate-and-fire: the current that makes a spike grows exponentially.

    ::

        v = v_rest + beta * (v - v_rest) + (1 - beta) * (delta * exp((v - v_t) / delta) + x)
        output = H(v - v_peak);  v = v_reset where it fired

    The input is a current times the resistance, in mV; the voltage starts at the given ``v_rest``.
    The defaults are the paper's (as BrainPy's ``ExpIF`` has them), without its refractory time and
    but for the peak. The membrane has 10 ms, ``beta = exp(-1/10)`` at 1 ms per step: exact for the
    leak, one step of Euler's method for the rest: constant inputs from 8 to 100 mV make it fire 13
    to 32 % less often than the equations do; 0 to 5 % less with ``substeps=16``. The exponent is
    held at 10, where the next step fires anyway. A spike is counted at ``v_t + 5 delta``, as
    programs for Brian do: what passes the paper's -30 mV is out of reach of a surrogate there.

    Args:
        surrogate_derivative: the spike function, ``u -> spikes``, of mV above the peak.

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
        substeps: int = 1,
    ) -> None:
        super().__init__(num_neurons, dim, v_rest, surrogate_derivative, substeps)
        self.decay("beta", beta)
        self.weight("v_rest", v_rest)
        self.weight("v_t", v_t)
        self.weight("delta", delta, low=SHARPEST)
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
        substeps: int,
    ) -> tuple[Any, ...]:
        kept, lost = part_of_step(beta, substeps)
        fired: list[Tensor] = []
        for _ in range(substeps):
            growth = delta * torch.exp(((v - v_t) / delta).clamp(max=HIGHEST_EXPONENT))
            v = v_rest + kept * (v - v_rest) + lost * (growth + x)
            fired.append(spike(v - v_peak))
            v = v * (1 - fired[-1]) + v_reset * fired[-1]
        return all_of(fired), v


@describe_neuron
class QIF(VoltageNeuron):
    """Quadratic integrate-and-fire: below a critical voltage it falls to rest, above it it spikes.

    ::

        v = v + (1 - beta) * ((v - v_rest) * (v - v_critical) / (v_critical - v_rest) + x)
        output = H(v - v_peak);  v = v_reset where it fired

    The input is a current times the resistance, in mV; the voltage starts at the given ``v_rest``.
    Euler's method with a membrane of 10 ms, ``beta = exp(-1/10)`` at 1 ms per step: constant inputs
    from 5 to 100 mV make it fire 9 to 17 % less often than the equations do; 0 to 2 % less with
    ``substeps=16``. Where a step would throw the voltage beyond the peak, below -215 mV, it is made
    smaller: no inhibition makes the neuron fire. The defaults are those that BrainPy's ``QuaIF``
    takes from the paper: rest and critical voltage give a curvature of 1/15 per mV, there 0.07.

    Args:
        v_critical: voltage above which it spikes by itself, in mV; above ``v_rest``.
        surrogate_derivative: the spike function, ``u -> spikes``, of mV above the peak.

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
        substeps: int = 1,
    ) -> None:
        super().__init__(num_neurons, dim, v_rest, surrogate_derivative, substeps)
        self.decay("beta", beta)
        self.weight("v_rest", v_rest)
        self.weight("v_critical", v_critical, above="v_rest")
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
        substeps: int,
    ) -> tuple[Any, ...]:
        _, rate = part_of_step(beta, substeps)
        fired: list[Tensor] = []
        for _ in range(substeps):
            growth = (v - v_rest) * (v - v_critical) / (v_critical - v_rest)
            slope = rate * (2 * v - v_rest - v_critical) / (v_critical - v_rest)
            v = v + without_overshoot(rate * (growth + x), slope)
            fired.append(spike(v - v_peak))
            v = v * (1 - fired[-1]) + v_reset * fired[-1]
        return all_of(fired), v


@describe_neuron
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
    step, the adaptation 144 ms, ``rho = exp(-1/144)``. The voltage starts at the given
    ``v_rest``; the exponent is held at 10, where the next step fires anyway.

    A step is exact for the leaks and Euler's method for the rest. Constant inputs from 33 to 100 mV
    make it fire 5 to 9 % less often than the equations do; 1 % less with ``substeps=16``. Patterns
    need smaller steps: at 1 ms Naud's delayed regular bursting is 27 irregular spikes in 400 ms for
    20 in bursts of four, which ``substeps=16`` has. A spike is counted at ``v_t + 5 delta``, as
    programs for Brian do: what passes the paper's 20 mV is out of reach of a surrogate there.

    Args:
        rho: decay of the adaptation current, in (0, 1).
        a: how strongly the adaptation follows the voltage.
        b: by how much a spike raises the adaptation, in mV.
        surrogate_derivative: the spike function, ``u -> spikes``, of mV above the peak.

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
        substeps: int = 1,
    ) -> None:
        super().__init__(num_neurons, dim, v_rest, surrogate_derivative, substeps)
        self.decay("beta", beta)
        self.decay("rho", rho)
        self.weight("a", a)
        self.weight("b", b)
        self.weight("v_rest", v_rest)
        self.weight("v_t", v_t)
        self.weight("delta", delta, low=SHARPEST)
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
        substeps: int,
    ) -> tuple[Any, ...]:
        kept, lost = part_of_step(beta, substeps)
        kept_w, rate_w = part_of_step(rho, substeps)
        fired: list[Tensor] = []
        for _ in range(substeps):
            growth = delta * torch.exp(((v - v_t) / delta).clamp(max=HIGHEST_EXPONENT))
            following = kept_w * w + rate_w * a * (v - v_rest)
            v = v_rest + kept * (v - v_rest) + lost * (growth - w + x)
            fired.append(spike(v - v_peak))
            v = v * (1 - fired[-1]) + v_reset * fired[-1]
            w = following + b * fired[-1]
        return all_of(fired), v, w


# that of the other layers in units of 100 mV, about the way from rest to the peak
HIGH_PEAK = atan_surrogate(0.02)


@describe_neuron
class Izhikevich(VoltageNeuron):
    """Izhikevich's simple neuron: regular spikes, bursts or chattering by four numbers.

    ::

        v = v + 0.5 * (0.04 * v^2 + 5 * v + 140 - u + x)    twice
        u = u + a * (b * v - u)
        output = H(v - 30);  v = c and u = u + d where it fired

    One step is 1 ms, in two half steps for the voltage, as in the paper's program. ``v`` starts at
    -65 mV and ``u`` at ``-65 b``. The input is in the paper's units, 10 for a strong current.

    The program is far from the equations: at inputs from 5 to 20, regular spiking has 9 to 17 %
    fewer spikes than they, fast spiking 28 to 63 %, and thalamo-cortical 70 to 75 %. With
    ``substeps=16`` these are 0 to 2 %, 2 to 5 % and 5 to 7 %. Below -112.5 mV a half step throws
    the voltage beyond the peak: at an input of -300 the program fires 30 times in 30 steps, the
    equations never. There, and only there, the change of ``v`` is divided by
    ``-(0.08 v + 5) / 2 - 1``, so that no inhibition makes the neuron fire. As ``u`` follows a ``v``
    far beyond the peak, with ``b`` below 0 each spike can make the next larger until they overflow:
    ``b`` is learned no lower than 0, or freely where one below is given.

    ``Izhikevich.presets`` has the named patterns::

        RS  regular spiking          IB  intrinsically bursting    CH  chattering
        FS  fast spiking             LTS low-threshold spiking     TC  thalamo-cortical
        RZ  resonator

    Args:
        a: rate of the recovery ``u``, per ms, in (0, 1): 0.02 to 0.1.
        b: how strongly the recovery follows the voltage: 0.2 to 0.26.
        c: voltage after a spike, in mV: -65 to -50.
        d: by how much a spike raises the recovery: 0.05 to 8.
        surrogate_derivative: the spike function, ``u -> spikes``, of mV above 30.

    Example:
        >>> layer = Izhikevich(1, **Izhikevich.presets["FS"])
        >>> layer
        Izhikevich(1, a=0.1, d=2.0)
        >>> sum(layer(torch.full((1, 1), 10.0)).item() for _ in range(100))
        7.0

    Reference: Izhikevich, "Simple model of spiking neurons", IEEE Transactions on Neural Networks
    14 (2003).
    """

    states: ClassVar[tuple[str, ...]] = ("v", "u")
    reset_states: ClassVar[tuple[str, ...]] = ("v",)  # u recovers

    presets: ClassVar[Mapping[str, dict[str, Any]]] = {
        "RS": {"a": 0.02, "b": 0.2, "c": -65.0, "d": 8.0},
        "IB": {"a": 0.02, "b": 0.2, "c": -55.0, "d": 4.0},
        "CH": {"a": 0.02, "b": 0.2, "c": -50.0, "d": 2.0},
        "FS": {"a": 0.1, "b": 0.2, "c": -65.0, "d": 2.0},
        "LTS": {"a": 0.02, "b": 0.25, "c": -65.0, "d": 2.0},
        "TC": {"a": 0.02, "b": 0.25, "c": -65.0, "d": 0.05},
        "RZ": {"a": 0.1, "b": 0.26, "c": -65.0, "d": 2.0},
    }

    def __init__(
        self,
        num_neurons: int,
        a: DecaySetup = 0.02,
        b: WeightSetup = 0.2,
        c: WeightSetup = -65.0,
        d: WeightSetup = 8.0,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = HIGH_PEAK,
        substeps: int = 1,
    ) -> None:
        super().__init__(num_neurons, dim, -65.0, surrogate_derivative, substeps)
        follows = completed(self, "b", b, WEIGHT)
        value: Any = follows.value
        given = value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
        self.gate("a", a)  # a rate: below 0, or above 1, the recovery diverges
        self.weight("b", follows, low=None if has_values(given) and (given < 0).any() else 0.0)
        self.weight("c", c)
        self.weight("d", d)
        self.state("u", init=-65.0 * follows.value)  # type: ignore[operator]

    @staticmethod
    def step(
        x: Tensor,
        v: Tensor,
        u: Tensor,
        *,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
        spike: SpikeFunction,
        substeps: int,
    ) -> tuple[Any, ...]:
        half = 0.5 / substeps  # of a part, in ms
        rate = a if substeps == 1 else a / substeps
        fired: list[Tensor] = []
        for _ in range(substeps):
            for _ in range(2):
                change = half * (0.04 * v * v + 5 * v + 140 - u + x)
                v = v + without_overshoot(change, half * (0.08 * v + 5))
            u = u + rate * (b * v - u)
            fired.append(spike(v - 30))
            v, u = v * (1 - fired[-1]) + c * fired[-1], u + d * fired[-1]
        return all_of(fired), v, u
