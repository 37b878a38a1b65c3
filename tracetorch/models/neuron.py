"""The neurons of published networks at their constants, and what a network asks of one."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from tracetorch.functional import boxcar_surrogate, sigmoid_surrogate
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import DEFAULT_SURROGATE, SpikeFunction, Threshold
from tracetorch.snn.spiking import LIF, describe_neuron


class NeuronBuilder(Protocol):
    """Callable that builds the activation behind a layer: a class of ``snn``, a ``lambda``.

    ``snn.LIF`` is one, as all neurons of the package are; ``functools.partial(snn.LIF, beta=0.5)``;
    ``lambda num_neurons, dim: nn.ReLU()``.

    Example:
        >>> build: NeuronBuilder = LIF
        >>> build(3, dim=-3)
        LIF(3, dim=-3)
    """

    def __call__(self, num_neurons: int, /, *, dim: int) -> nn.Module:
        """Build a module for ``num_neurons`` channels at ``dim``."""
        ...


@describe_neuron
class IF(Neuron):
    """Integrate-and-fire (IF): no leak, a reset to zero, a threshold that does not learn.

    ::

        mem = mem + x
        output = H(mem - pos_threshold);  mem = mem * (1 - output)

    The neuron of SEW-ResNet on ImageNet. No gradient flows through the spike in the reset.

    Args:
        pos_threshold: the threshold; positive.

    Example:
        >>> layer = IF(1)
        >>> [layer(torch.full((1, 1), 0.4)).item() for _ in range(6)]
        [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]

    Reference: Fang, Yu, Chen, Huang, Masquelier and Tian, Deep residual learning in spiking neural
    networks, NeurIPS 2021.
    """

    states: ClassVar[tuple[str, ...]] = ("mem",)

    def __init__(
        self,
        num_neurons: int,
        pos_threshold: float = 1.0,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        setup = Threshold(pos_threshold, rank=0, learnable=False)
        self.threshold("pos_threshold", setup, surrogate=surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor, mem: Tensor, *, pos_threshold: Tensor, spike: SpikeFunction
    ) -> tuple[Any, ...]:
        mem = mem + x
        fired = spike(mem - pos_threshold)
        return fired, mem * (1 - fired.detach())


_FIXED: dict[str, Any] = {
    "beta_rank": 0,
    "pos_threshold_rank": 0,
    "learn_beta": False,
    "learn_pos_threshold": False,
    "reset": "zero",
    "detach_reset": True,
}


def transformer_neuron(num_neurons: int, /, *, dim: int, pos_threshold: float = 1.0) -> LIF:
    """Build the LIF of the spiking transformers: a time constant of two steps, fixed."""
    surrogate = sigmoid_surrogate(4.0)
    options = {"beta_ema": True, "surrogate_derivative": surrogate, **_FIXED}
    return LIF(num_neurons, 0.5, pos_threshold, dim, **options)


def attention_neuron(num_neurons: int, /, *, dim: int) -> LIF:
    """Build the LIF behind a product of spikes: the same at half the threshold."""
    # It fires at 0.5 and above in the papers' code; with sums of spikes a membrane is there often.
    return transformer_neuron(num_neurons, dim=dim, pos_threshold=0.5 * (1 - 1e-6))


def membrane_neuron(num_neurons: int, /, *, dim: int) -> LIF:
    """Build the LIF of MS-ResNet: a quarter of the membrane is kept, a threshold of a half."""
    surrogate = boxcar_surrogate(1.0)
    return LIF(num_neurons, 0.25, 0.5, dim, surrogate_derivative=surrogate, **_FIXED)
