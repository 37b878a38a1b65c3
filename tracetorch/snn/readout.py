"""The four readout layers, which do not spike: an ``__init__`` each over ``LeakyIntegrator``."""

from __future__ import annotations

from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.parameters import Decay, Rank, Value, Weight


class Readout(LeakyIntegrator):
    """Leaky average without spikes: the output is the membrane.

    The usual last layer: smooth values to read classes or actions from.

    ::

        mem = beta * mem + (1 - beta) * x
        output = mem

    Args:
        num_neurons: size of the neuron dimension.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        beta_rank: 0 for one value in the layer, 1 for one per neuron.
        learn_beta: whether the optimizer may move it.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

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
        super().__init__(
            num_neurons,
            dim,
            beta_setup=Decay(beta, beta_rank, learn_beta, True),
        )


class SReadout(LeakyIntegrator):
    """Readout with a synaptic trace. A smoother average, of two time constants.

    ::

        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + (1 - beta) * syn
        output = mem

    Args:
        num_neurons: size of the neuron dimension.
        alpha: decay of the synaptic trace; a number or a tensor of rank 0 or 1.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        alpha_rank, beta_rank: 0 for one value in the layer, 1 for one per neuron.
        alpha_ema: scale the inflow by ``1 - decay`` (exponential moving average); the equations
            above show the default.
        learn_alpha, learn_beta: whether the optimizer may move it.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

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
        super().__init__(
            num_neurons,
            dim,
            alpha_setup=Decay(alpha, alpha_rank, learn_alpha, alpha_ema),
            beta_setup=Decay(beta, beta_rank, learn_beta, True),
        )


class RReadout(LeakyIntegrator):
    """Readout with recurrence: its output returns to its input.

    A readout with a second, slower or faster, memory of itself.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        mem = beta * mem + (1 - beta) * (x + rec_weight * rec + bias)
        output = mem
        prev_output = output

    Args:
        num_neurons: size of the neuron dimension.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        gamma: decay of the recurrent trace; a number or a tensor of rank 0 or 1.
        rec_weight: weight of the recurrent trace in the drive; a number or a tensor of rank 0 or 1.
        bias: constant drive; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        beta_rank, gamma_rank, rec_weight_rank, bias_rank: 0 for one value in the layer, 1 for one
            per neuron.
        gamma_ema: scale the inflow by ``1 - decay`` (exponential moving average); the equations
            above show the default.
        learn_beta, learn_gamma, learn_rec_weight, learn_bias: whether the optimizer may move it.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

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
        super().__init__(
            num_neurons,
            dim,
            beta_setup=Decay(beta, beta_rank, learn_beta, True),
            gamma_setup=Decay(gamma, gamma_rank, learn_gamma, gamma_ema),
            rec_weight_setup=Weight(rec_weight, rec_weight_rank, learn_rec_weight),
            bias_setup=Weight(bias, bias_rank, learn_bias),
        )


class SRReadout(LeakyIntegrator):
    """Readout with a synaptic trace and recurrence.

    SReadout and RReadout in one.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + (1 - beta) * (syn + rec_weight * rec + bias)
        output = mem
        prev_output = output

    Args:
        num_neurons: size of the neuron dimension.
        alpha: decay of the synaptic trace; a number or a tensor of rank 0 or 1.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        gamma: decay of the recurrent trace; a number or a tensor of rank 0 or 1.
        rec_weight: weight of the recurrent trace in the drive; a number or a tensor of rank 0 or 1.
        bias: constant drive; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        alpha_rank, beta_rank, gamma_rank, rec_weight_rank, bias_rank: 0 for one value in the
            layer, 1 for one per neuron.
        alpha_ema, gamma_ema: scale the inflow by ``1 - decay`` (exponential moving average); the
            equations above show the default.
        learn_alpha, learn_beta, learn_gamma, learn_rec_weight, learn_bias: whether the optimizer
            may move it.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

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
        super().__init__(
            num_neurons,
            dim,
            alpha_setup=Decay(alpha, alpha_rank, learn_alpha, alpha_ema),
            beta_setup=Decay(beta, beta_rank, learn_beta, True),
            gamma_setup=Decay(gamma, gamma_rank, learn_gamma, gamma_ema),
            rec_weight_setup=Weight(rec_weight, rec_weight_rank, learn_rec_weight),
            bias_setup=Weight(bias, bias_rank, learn_bias),
        )
