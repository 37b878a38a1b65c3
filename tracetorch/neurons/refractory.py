"""A refractory neuron: silent after a spike for a time, and then harder to excite."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from tracetorch.core.checks import check_integer
from tracetorch.snn.descriptions import describe_neuron
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    DEFAULT_SURROGATE,
    DecaySetup,
    SpikeFunction,
    ThresholdSetup,
    WeightSetup,
)


def check_period(name: str, value: object) -> int:
    """Return a number of steps that is 0 or more; raise ``TypeError`` or ``ValueError``."""
    period = check_integer(name, value)
    if period < 0:
        raise ValueError(f"{name} must not be negative, got {period}.")
    return period


@describe_neuron
class RefractoryLIF(Neuron):
    """LIF with an absolute and a relative refractory period.

    ::

        ready = countdown == 0
        mem = ready * (beta * mem + x)
        output = ready * H(mem - pos_threshold - raised);  mem = mem * (1 - output)
        countdown = max(countdown - 1, 0) + period * output
        raised = rho * raised + strength * output

    After a spike the membrane stays at zero for ``period`` steps (the absolute refractory period)
    while the threshold, raised by ``strength``, falls back (the relative one). So two spikes are at
    least ``period + 1`` steps apart. At 1 ms per step the defaults are a membrane of 20 ms
    (``exp(-1/20)``), 2 ms of silence, and a threshold that is back in some 4 ms (``exp(-1/4)``).
    The 2 ms are those of the book's exercises; the rest, which it leaves open, is of usual size.

    Args:
        rho: decay of the raised threshold, in (0, 1).
        strength: by how much a spike raises the threshold; 0 for an absolute period alone.
        period: steps of silence after a spike; 0 for a relative period alone.

    Raises:
        TypeError, ValueError: ``period`` is not an integer, or negative.

    Example:
        >>> layer = RefractoryLIF(1, period=2)
        >>> [layer(torch.full((1, 1), 5.0)).item() for _ in range(7)]
        [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]

    Reference: Gerstner, Kistler, Naud, Paninski, "Neuronal Dynamics", Cambridge University Press
    (2014), chapters 1.3 and 6.1.
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "raised", "countdown")

    def __init__(
        self,
        num_neurons: int,
        beta: DecaySetup = 0.9512,
        rho: DecaySetup = 0.7788,
        pos_threshold: ThresholdSetup = 1.0,
        strength: WeightSetup = 1.0,
        period: int = 2,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", beta)
        self.decay("rho", rho)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)
        self.weight("strength", strength)
        self.option("period", period, check=check_period)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        raised: Tensor,
        countdown: Tensor,
        *,
        beta: Tensor,
        rho: Tensor,
        pos_threshold: Tensor,
        strength: Tensor,
        period: int,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        ready = (countdown < 0.5).to(x.dtype)
        mem = ready * (beta * mem + x)
        fired = ready * spike(mem - pos_threshold - raised)
        countdown = (countdown - 1).clamp(min=0.0) + period * fired
        return fired, mem * (1 - fired), rho * raised + strength * fired, countdown
