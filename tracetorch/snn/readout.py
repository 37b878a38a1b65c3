"""The four readout layers, which do not spike: an ``__init__`` each over ``LeakyIntegrator``."""

from __future__ import annotations

from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.parameters import Rank, Value
from tracetorch.snn.spiking import describe_wrapper, setups


@describe_wrapper
class Readout(LeakyIntegrator):
    """Leaky average without spikes, the usual last layer: the output is the membrane.

    ::

        mem = beta * mem + (1 - beta) * x
        output = mem

    Example:
        >>> layer = Readout(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).detach()
        tensor([[0.0500, 0.1500]])
    """

    def __init__(
        self,
        num_neurons: int,
        beta: Value = 0.9,
        dim: int = -1,
        beta_rank: Rank = 1,
        learn_beta: bool = True,
    ) -> None:
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class SReadout(LeakyIntegrator):
    """Readout with a synaptic trace. A smoother average, of two time constants.

    ::

        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + (1 - beta) * syn
        output = mem

    Example:
        >>> layer = SReadout(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).detach()
        tensor([[0.0250, 0.0750]])
    """

    def __init__(
        self,
        num_neurons: int,
        alpha: Value = 0.5,
        beta: Value = 0.9,
        dim: int = -1,
        alpha_rank: Rank = 1,
        beta_rank: Rank = 1,
        alpha_ema: bool = True,
        learn_alpha: bool = True,
        learn_beta: bool = True,
    ) -> None:
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class RReadout(LeakyIntegrator):
    """Readout with recurrence: its output returns to its input by a second memory.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        mem = beta * mem + (1 - beta) * (x + rec_weight * rec + bias)
        output = mem
        prev_output = output

    Example:
        >>> layer = RReadout(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).detach()
        tensor([[0.0500, 0.1500]])
    """

    def __init__(
        self,
        num_neurons: int,
        beta: Value = 0.9,
        gamma: Value = 0.5,
        rec_weight: Value = 0.0,
        bias: Value = 0.0,
        dim: int = -1,
        beta_rank: Rank = 1,
        gamma_rank: Rank = 1,
        rec_weight_rank: Rank = 1,
        bias_rank: Rank = 1,
        gamma_ema: bool = True,
        learn_beta: bool = True,
        learn_gamma: bool = True,
        learn_rec_weight: bool = True,
        learn_bias: bool = True,
    ) -> None:
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class SRReadout(LeakyIntegrator):
    """Readout with a synaptic trace and recurrence, SReadout and RReadout in one.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + (1 - beta) * (syn + rec_weight * rec + bias)
        output = mem
        prev_output = output

    Example:
        >>> layer = SRReadout(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).detach()
        tensor([[0.0250, 0.0750]])
    """

    def __init__(
        self,
        num_neurons: int,
        alpha: Value = 0.5,
        beta: Value = 0.9,
        gamma: Value = 0.5,
        rec_weight: Value = 0.0,
        bias: Value = 0.0,
        dim: int = -1,
        alpha_rank: Rank = 1,
        beta_rank: Rank = 1,
        gamma_rank: Rank = 1,
        rec_weight_rank: Rank = 1,
        bias_rank: Rank = 1,
        alpha_ema: bool = True,
        gamma_ema: bool = True,
        learn_alpha: bool = True,
        learn_beta: bool = True,
        learn_gamma: bool = True,
        learn_rec_weight: bool = True,
        learn_bias: bool = True,
    ) -> None:
        super().__init__(num_neurons, dim, **setups(locals()))
