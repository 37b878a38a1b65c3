"""Resonators: neurons that answer to a rhythm, not to a sum."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tracetorch.core.checks import check_positive
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    DEFAULT_SURROGATE,
    DecaySetup,
    SpikeFunction,
    ThresholdSetup,
    WeightSetup,
    clamp,
)
from tracetorch.snn.spiking import describe_neuron

LARGEST_ANGLE = 3.1415925  # the float32 below pi
LARGEST_PHASE = 1 - 1e-6  # dt times omega, where the derivative of its square root is still finite


@describe_neuron
class RF(Neuron):
    """Resonate-and-fire: a damped oscillation that grows where the input has its frequency.

    ::

        real' = beta * (cos(omega) * real - sin(omega) * imag) + x
        imag' = beta * (sin(omega) * real + cos(omega) * imag)
        output = H(imag' - pos_threshold)
        real' = 0 and imag' = pos_threshold where it fired

    The exact solution over one step of ``z' = (b + i w) z + x`` with ``beta = exp(b dt)`` and
    ``omega = w dt``, an angle per step; the state starts at rest. The paper leaves the unit of time
    open and has ``b = -1`` and ``w = 10`` (as BrainPy transcribes it). By default ``dt`` is
    ``pi / 100`` of that unit: a period of 20 steps (50 Hz at 1 ms per step), ``omega = 2 pi / 20``,
    and a damping of 31.8 steps, ``beta = exp(-pi / 100)``.

    Args:
        beta: decay of the oscillation, in (0, 1).
        omega: angle per step, ``2 pi`` over the period in steps; of a size below pi.
        pos_threshold: threshold of the imaginary part; positive.

    Example:
        >>> layer = RF(1)
        >>> [layer(torch.full((1, 1), x)).item() for x in (1.5, 0.0, 0.0, 0.0)]
        [0.0, 0.0, 0.0, 1.0]

    Reference: Izhikevich, "Resonate-and-fire neurons", Neural Networks 14 (2001).
    """

    states: ClassVar[tuple[str, ...]] = ("real", "imag")

    def __init__(
        self,
        num_neurons: int,
        beta: DecaySetup = 0.9691,
        omega: WeightSetup = 0.3142,
        pos_threshold: ThresholdSetup = 1.0,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", beta)
        self.weight("omega", omega, low=-LARGEST_ANGLE, high=LARGEST_ANGLE)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor,
        real: Tensor,
        imag: Tensor,
        *,
        beta: Tensor,
        omega: Tensor,
        pos_threshold: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        cos, sin = beta * torch.cos(omega), beta * torch.sin(omega)
        real, imag = cos * real - sin * imag + x, sin * real + cos * imag
        fired = spike(imag - pos_threshold)
        return fired, real * (1 - fired), imag * (1 - fired) + pos_threshold * fired


@describe_neuron
class BRF(Neuron):
    """Balanced resonate-and-fire (BRF): an oscillation that neither diverges nor is reset.

    ::

        b = (sqrt(1 - (dt * omega)^2) - 1) / dt - |b_offset| - q
        real' = real + dt * (b * real - omega * imag + x)
        imag' = imag + dt * (omega * real + b * imag)
        output = H(real' - pos_threshold - q)
        q = gamma * q + output

    ``b`` is at most what keeps Euler's method from diverging; after a spike, ``q`` raises the
    threshold and damps the oscillation for a while. The authors' program
    (AdaptiveAILab/brf-neurons) has ``dt = 0.01``, ``gamma = 0.9`` and a threshold of 1, and draws
    ``omega`` from 5 to 10 and ``b_offset`` from 0 to 3 (for digits pixel by pixel from 15 to 50 and
    0.1 to 1), in radians per unit of time, so 63 to 126 steps to a period; the defaults are the
    middles. In milliseconds: at 1 ms per step the unit of time is 100 ms, and
    ``omega = 2 pi f / 10`` for ``f`` hertz.

    Args:
        omega: angular frequency; of a size below ``1 / dt``, for beyond it nothing is balanced.
        b_offset: damping beyond the boundary, of either sign.
        gamma: decay of the refractory ``q``, in (0, 1).
        dt: length of a step; positive.

    Raises:
        ValueError: ``dt`` times ``omega`` is 1 or more.

    Example:
        >>> layer = BRF(1)
        >>> [layer(torch.full((1, 1), x)).item() for x in (60.0, 60.0, 0.0, 0.0)]
        [0.0, 1.0, 0.0, 0.0]

    Reference: Higuchi, Kairat, Bohte, Otte, "Balanced resonate-and-fire neurons", ICML 2024.
    """

    states: ClassVar[tuple[str, ...]] = ("real", "imag", "q")

    def __init__(
        self,
        num_neurons: int,
        omega: WeightSetup = 7.5,
        b_offset: WeightSetup = 1.5,
        gamma: DecaySetup = 0.9,
        pos_threshold: ThresholdSetup = 1.0,
        dt: float = 0.01,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.option("dt", dt, check=check_positive)
        largest = LARGEST_PHASE / self.dt
        self.weight("omega", omega, low=-largest, high=largest)
        self.weight("b_offset", b_offset)
        self.decay("gamma", gamma)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "dt":
            largest = LARGEST_PHASE / self.dt
            self._declared.constrain("omega", clamp(-largest, largest))

    @staticmethod
    def step(
        x: Tensor,
        real: Tensor,
        imag: Tensor,
        q: Tensor,
        *,
        omega: Tensor,
        b_offset: Tensor,
        gamma: Tensor,
        pos_threshold: Tensor,
        dt: float,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        phase = dt * omega
        b = (torch.sqrt(1 - phase * phase) - 1) / dt - b_offset.abs() - q
        grown = real + dt * (b * real - omega * imag + x)
        imag = imag + dt * (omega * real + b * imag)
        fired = spike(grown - pos_threshold - q)
        return fired, grown, imag, gamma * q + fired
