"""A neuron with a second-order synapse: an input spike acts as a smooth bump, not as a jump."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from tracetorch.snn.descriptions import describe_neuron
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import DEFAULT_SURROGATE, DecaySetup, SpikeFunction, ThresholdSetup


@describe_neuron
class AlphaLIF(Neuron):
    """LIF with a second-order synapse: the alpha function, or a double exponential.

    ::

        rise = alpha_rise * rise + (1 - alpha_rise) * x
        syn = alpha * syn + (1 - alpha) * rise
        mem = beta * mem + syn
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold

    With both synaptic decays equal, as they are by default, one input spike becomes the alpha
    function of the literature in discrete time, ``(1 - alpha)^2 (n + 1) alpha^n``, which sums to
    one; with two that differ, a double exponential. The source gives the function and no constants;
    at 1 ms per step the defaults are a fast synapse of 5 ms (``exp(-1/5)``) and a membrane of 20 ms
    (``exp(-1/20)``).

    Args:
        alpha_rise: decay of the rise, in (0, 1).
        alpha: decay of the synaptic current, in (0, 1).

    Example:
        >>> layer = AlphaLIF(1, alpha_rise=0.5, alpha=0.5)
        >>> for x in (1.0, 0.0, 0.0):
        ...     _ = layer(torch.full((1, 1), x))
        ...     print(layer.syn.item())
        0.25
        0.25
        0.1875

    Reference: Rall, "Distinguishing theoretical synaptic potentials computed for different
    soma-dendritic distributions of synaptic input", Journal of Neurophysiology 30 (1967).
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "syn", "rise")

    def __init__(
        self,
        num_neurons: int,
        alpha_rise: DecaySetup = 0.8187,
        alpha: DecaySetup = 0.8187,
        beta: DecaySetup = 0.9512,
        pos_threshold: ThresholdSetup = 1.0,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("alpha_rise", alpha_rise)
        self.decay("alpha", alpha)
        self.decay("beta", beta)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        syn: Tensor,
        rise: Tensor,
        *,
        alpha_rise: Tensor,
        alpha: Tensor,
        beta: Tensor,
        pos_threshold: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        rise = alpha_rise * rise + (1 - alpha_rise) * x
        syn = alpha * syn + (1 - alpha) * rise
        mem = beta * mem + syn
        fired = spike(mem - pos_threshold)
        return fired, mem - fired * pos_threshold, syn, rise
