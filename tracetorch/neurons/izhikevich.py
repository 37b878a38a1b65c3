"""Izhikevich's neuron: two equations that fire in the patterns of cortical neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from tracetorch.functional import atan_surrogate
from tracetorch.neurons.voltage import VoltageNeuron, all_of, without_overshoot
from tracetorch.snn.declarations import completed
from tracetorch.snn.descriptions import describe_neuron
from tracetorch.snn.parameters import WEIGHT, DecaySetup, SpikeFunction, WeightSetup

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
    ``substeps=16`` these are 0 to 2 %, 2 to 5 % and 5 to 7 %. Below -112.5 mV a half step is
    unstable, and throws the voltage beyond the peak: at an input of -300 the program fires 30 times
    in 30 steps, the equations never. There, and only there, the change of ``v`` is divided by
    ``-(0.08 v + 5) / 2 - 1``, so that no inhibition makes the neuron fire.

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
        # a rate: below 0, or above 1, the recovery diverges
        self.gate("a", a)
        self.weight("b", follows)
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
        """Run one step."""
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
