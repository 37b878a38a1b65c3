"""The eight spiking layers: an ``__init__`` each over ``LeakyIntegrator``.

Wrappers are explicit, typed ``__init__``s and nothing else: positional use is part of the
interface. One test holds the twelve signatures to one grammar.
"""

from __future__ import annotations

from tracetorch.snn.leaky_integrator import LeakyIntegrator, Reset
from tracetorch.snn.parameters import (
    DEFAULT_SURROGATE,
    Decay,
    Rank,
    SpikeFunction,
    Threshold,
    Value,
    Weight,
)


class LIF(LeakyIntegrator):
    """Leaky integrate-and-fire. The plain choice: start here.

    ::

        mem = beta * mem + x
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold

    Args:
        num_neurons: size of the neuron dimension.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        pos_threshold: upper threshold; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        beta_rank, pos_threshold_rank: 0 for one value in the layer, 1 for one per neuron.
        beta_ema: scale the inflow by ``1 - decay`` (exponential moving average); the equations
            above show the default.
        learn_beta, learn_pos_threshold: whether the optimizer may move it.
        surrogate_derivative: the spike function, ``u -> spikes``.
        reset: what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.
        detach_reset: no gradient through the spike in the reset.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

    Example:
        >>> layer = LIF(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).tolist()
        [[0.0, 1.0]]
    """

    def __init__(
        self,
        num_neurons: int,
        beta: Value = 0.9,
        pos_threshold: Value = 1.0,
        dim: int = -1,
        beta_rank: Rank = 1,
        pos_threshold_rank: Rank = 1,
        beta_ema: bool = False,
        learn_beta: bool = True,
        learn_pos_threshold: bool = True,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        *,
        reset: Reset = "subtract",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            num_neurons,
            dim,
            beta_setup=Decay(beta, beta_rank, learn_beta, beta_ema),
            pos_threshold_setup=Threshold(
                pos_threshold, pos_threshold_rank, learn_pos_threshold, surrogate_derivative
            ),
            reset=reset,
            detach_reset=detach_reset,
        )


class BLIF(LeakyIntegrator):
    """Bipolar LIF: spikes of both signs.

    For inputs with a sign, such as images with zero mean or deltas.

    ::

        mem = beta * mem + x
        p = H(mem - pos_threshold);       mem = mem - p * pos_threshold
        n = -H(neg_threshold - mem);      mem = mem + n * neg_threshold
        output = pos_scale * p + neg_scale * n

    with a negative ``neg_threshold`` of which the argument gives the magnitude.

    Args:
        num_neurons: size of the neuron dimension.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        pos_threshold: upper threshold; a number or a tensor of rank 0 or 1.
        neg_threshold: magnitude of the lower threshold; a number or a tensor of rank 0 or 1.
        pos_scale: size of an upward spike; a number or a tensor of rank 0 or 1.
        neg_scale: size of a downward spike; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        beta_rank, pos_threshold_rank, neg_threshold_rank, pos_scale_rank, neg_scale_rank: 0 for
            one value in the layer, 1 for one per neuron.
        beta_ema: scale the inflow by ``1 - decay`` (exponential moving average); the equations
            above show the default.
        learn_beta, learn_pos_threshold, learn_neg_threshold, learn_pos_scale, learn_neg_scale:
            whether the optimizer may move it.
        pos_surrogate_derivative, neg_surrogate_derivative: the spike function of each threshold,
            ``u -> spikes``.
        reset: what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.
        detach_reset: no gradient through the spike in the reset.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

    Example:
        >>> layer = BLIF(2)
        >>> layer(torch.tensor([[0.5, -1.5]])).tolist()
        [[0.0, -1.0]]
    """

    def __init__(
        self,
        num_neurons: int,
        beta: Value = 0.9,
        pos_threshold: Value = 1.0,
        neg_threshold: Value = 1.0,
        pos_scale: Value = 1.0,
        neg_scale: Value = 1.0,
        dim: int = -1,
        beta_rank: Rank = 1,
        pos_threshold_rank: Rank = 1,
        neg_threshold_rank: Rank = 1,
        pos_scale_rank: Rank = 1,
        neg_scale_rank: Rank = 1,
        beta_ema: bool = False,
        learn_beta: bool = True,
        learn_pos_threshold: bool = True,
        learn_neg_threshold: bool = True,
        learn_pos_scale: bool = True,
        learn_neg_scale: bool = True,
        pos_surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        neg_surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        *,
        reset: Reset = "subtract",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            num_neurons,
            dim,
            beta_setup=Decay(beta, beta_rank, learn_beta, beta_ema),
            pos_threshold_setup=Threshold(
                pos_threshold, pos_threshold_rank, learn_pos_threshold, pos_surrogate_derivative
            ),
            neg_threshold_setup=Threshold(
                neg_threshold, neg_threshold_rank, learn_neg_threshold, neg_surrogate_derivative
            ),
            pos_scale_setup=Weight(pos_scale, pos_scale_rank, learn_pos_scale),
            neg_scale_setup=Weight(neg_scale, neg_scale_rank, learn_neg_scale),
            reset=reset,
            detach_reset=detach_reset,
        )


class SLIF(LeakyIntegrator):
    """LIF with a synaptic trace before the membrane.

    For inputs whose spikes should count for longer than a step (two time constants).

    ::

        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + syn
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold

    Args:
        num_neurons: size of the neuron dimension.
        alpha: decay of the synaptic trace; a number or a tensor of rank 0 or 1.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        pos_threshold: upper threshold; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        alpha_rank, beta_rank, pos_threshold_rank: 0 for one value in the layer, 1 for one per
            neuron.
        alpha_ema, beta_ema: scale the inflow by ``1 - decay`` (exponential moving average); the
            equations above show the default.
        learn_alpha, learn_beta, learn_pos_threshold: whether the optimizer may move it.
        surrogate_derivative: the spike function, ``u -> spikes``.
        reset: what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.
        detach_reset: no gradient through the spike in the reset.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

    Example:
        >>> layer = SLIF(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).tolist()
        [[0.0, 0.0]]
    """

    def __init__(
        self,
        num_neurons: int,
        alpha: Value = 0.5,
        beta: Value = 0.9,
        pos_threshold: Value = 1.0,
        dim: int = -1,
        alpha_rank: Rank = 1,
        beta_rank: Rank = 1,
        pos_threshold_rank: Rank = 1,
        alpha_ema: bool = True,
        beta_ema: bool = False,
        learn_alpha: bool = True,
        learn_beta: bool = True,
        learn_pos_threshold: bool = True,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        *,
        reset: Reset = "subtract",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            num_neurons,
            dim,
            alpha_setup=Decay(alpha, alpha_rank, learn_alpha, alpha_ema),
            beta_setup=Decay(beta, beta_rank, learn_beta, beta_ema),
            pos_threshold_setup=Threshold(
                pos_threshold, pos_threshold_rank, learn_pos_threshold, surrogate_derivative
            ),
            reset=reset,
            detach_reset=detach_reset,
        )


class RLIF(LeakyIntegrator):
    """LIF with recurrence: its output returns to its input.

    For sequences: each neuron keeps a trace of its own output.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        mem = beta * mem + x + rec_weight * rec + bias
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold
        prev_output = output

    Args:
        num_neurons: size of the neuron dimension.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        gamma: decay of the recurrent trace; a number or a tensor of rank 0 or 1.
        pos_threshold: upper threshold; a number or a tensor of rank 0 or 1.
        rec_weight: weight of the recurrent trace in the drive; a number or a tensor of rank 0 or 1.
        bias: constant drive; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        beta_rank, gamma_rank, pos_threshold_rank, rec_weight_rank, bias_rank: 0 for one value in
            the layer, 1 for one per neuron.
        beta_ema, gamma_ema: scale the inflow by ``1 - decay`` (exponential moving average); the
            equations above show the default.
        learn_beta, learn_gamma, learn_pos_threshold, learn_rec_weight, learn_bias: whether the
            optimizer may move it.
        surrogate_derivative: the spike function, ``u -> spikes``.
        reset: what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.
        detach_reset: no gradient through the spike in the reset.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

    Example:
        >>> layer = RLIF(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).tolist()
        [[0.0, 1.0]]
    """

    def __init__(
        self,
        num_neurons: int,
        beta: Value = 0.9,
        gamma: Value = 0.5,
        pos_threshold: Value = 1.0,
        rec_weight: Value = 0.0,
        bias: Value = 0.0,
        dim: int = -1,
        beta_rank: Rank = 1,
        gamma_rank: Rank = 1,
        pos_threshold_rank: Rank = 1,
        rec_weight_rank: Rank = 1,
        bias_rank: Rank = 1,
        beta_ema: bool = False,
        gamma_ema: bool = True,
        learn_beta: bool = True,
        learn_gamma: bool = True,
        learn_pos_threshold: bool = True,
        learn_rec_weight: bool = True,
        learn_bias: bool = True,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        *,
        reset: Reset = "subtract",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            num_neurons,
            dim,
            beta_setup=Decay(beta, beta_rank, learn_beta, beta_ema),
            gamma_setup=Decay(gamma, gamma_rank, learn_gamma, gamma_ema),
            pos_threshold_setup=Threshold(
                pos_threshold, pos_threshold_rank, learn_pos_threshold, surrogate_derivative
            ),
            rec_weight_setup=Weight(rec_weight, rec_weight_rank, learn_rec_weight),
            bias_setup=Weight(bias, bias_rank, learn_bias),
            reset=reset,
            detach_reset=detach_reset,
        )


class BSLIF(LeakyIntegrator):
    """Bipolar LIF with a synaptic trace. BLIF and SLIF in one.

    ::

        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + syn
        p = H(mem - pos_threshold);       mem = mem - p * pos_threshold
        n = -H(neg_threshold - mem);      mem = mem + n * neg_threshold
        output = pos_scale * p + neg_scale * n

    with a negative ``neg_threshold`` of which the argument gives the magnitude.

    Args:
        num_neurons: size of the neuron dimension.
        alpha: decay of the synaptic trace; a number or a tensor of rank 0 or 1.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        pos_threshold: upper threshold; a number or a tensor of rank 0 or 1.
        neg_threshold: magnitude of the lower threshold; a number or a tensor of rank 0 or 1.
        pos_scale: size of an upward spike; a number or a tensor of rank 0 or 1.
        neg_scale: size of a downward spike; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        alpha_rank, beta_rank, pos_threshold_rank, neg_threshold_rank, pos_scale_rank,
            neg_scale_rank: 0 for one value in the layer, 1 for one per neuron.
        alpha_ema, beta_ema: scale the inflow by ``1 - decay`` (exponential moving average); the
            equations above show the default.
        learn_alpha, learn_beta, learn_pos_threshold, learn_neg_threshold, learn_pos_scale,
            learn_neg_scale: whether the optimizer may move it.
        pos_surrogate_derivative, neg_surrogate_derivative: the spike function of each threshold,
            ``u -> spikes``.
        reset: what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.
        detach_reset: no gradient through the spike in the reset.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

    Example:
        >>> layer = BSLIF(2)
        >>> layer(torch.tensor([[0.5, -1.5]])).tolist()
        [[0.0, 0.0]]
    """

    def __init__(
        self,
        num_neurons: int,
        alpha: Value = 0.5,
        beta: Value = 0.9,
        pos_threshold: Value = 1.0,
        neg_threshold: Value = 1.0,
        pos_scale: Value = 1.0,
        neg_scale: Value = 1.0,
        dim: int = -1,
        alpha_rank: Rank = 1,
        beta_rank: Rank = 1,
        pos_threshold_rank: Rank = 1,
        neg_threshold_rank: Rank = 1,
        pos_scale_rank: Rank = 1,
        neg_scale_rank: Rank = 1,
        alpha_ema: bool = True,
        beta_ema: bool = False,
        learn_alpha: bool = True,
        learn_beta: bool = True,
        learn_pos_threshold: bool = True,
        learn_neg_threshold: bool = True,
        learn_pos_scale: bool = True,
        learn_neg_scale: bool = True,
        pos_surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        neg_surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        *,
        reset: Reset = "subtract",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            num_neurons,
            dim,
            alpha_setup=Decay(alpha, alpha_rank, learn_alpha, alpha_ema),
            beta_setup=Decay(beta, beta_rank, learn_beta, beta_ema),
            pos_threshold_setup=Threshold(
                pos_threshold, pos_threshold_rank, learn_pos_threshold, pos_surrogate_derivative
            ),
            neg_threshold_setup=Threshold(
                neg_threshold, neg_threshold_rank, learn_neg_threshold, neg_surrogate_derivative
            ),
            pos_scale_setup=Weight(pos_scale, pos_scale_rank, learn_pos_scale),
            neg_scale_setup=Weight(neg_scale, neg_scale_rank, learn_neg_scale),
            reset=reset,
            detach_reset=detach_reset,
        )


class BRLIF(LeakyIntegrator):
    """Bipolar LIF with recurrence: its output returns to its input. BLIF and RLIF in one.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        mem = beta * mem + x + rec_weight * rec + bias
        p = H(mem - pos_threshold);       mem = mem - p * pos_threshold
        n = -H(neg_threshold - mem);      mem = mem + n * neg_threshold
        output = pos_scale * p + neg_scale * n
        prev_output = output

    with a negative ``neg_threshold`` of which the argument gives the magnitude.

    Args:
        num_neurons: size of the neuron dimension.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        gamma: decay of the recurrent trace; a number or a tensor of rank 0 or 1.
        pos_threshold: upper threshold; a number or a tensor of rank 0 or 1.
        neg_threshold: magnitude of the lower threshold; a number or a tensor of rank 0 or 1.
        pos_scale: size of an upward spike; a number or a tensor of rank 0 or 1.
        neg_scale: size of a downward spike; a number or a tensor of rank 0 or 1.
        rec_weight: weight of the recurrent trace in the drive; a number or a tensor of rank 0 or 1.
        bias: constant drive; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        beta_rank, gamma_rank, pos_threshold_rank, neg_threshold_rank, pos_scale_rank,
            neg_scale_rank, rec_weight_rank, bias_rank: 0 for one value in the layer, 1 for one
            per neuron.
        beta_ema, gamma_ema: scale the inflow by ``1 - decay`` (exponential moving average); the
            equations above show the default.
        learn_beta, learn_gamma, learn_pos_threshold, learn_neg_threshold, learn_pos_scale,
            learn_neg_scale, learn_rec_weight, learn_bias: whether the optimizer may move it.
        pos_surrogate_derivative, neg_surrogate_derivative: the spike function of each threshold,
            ``u -> spikes``.
        reset: what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.
        detach_reset: no gradient through the spike in the reset.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

    Example:
        >>> layer = BRLIF(2)
        >>> layer(torch.tensor([[0.5, -1.5]])).tolist()
        [[0.0, -1.0]]
    """

    def __init__(
        self,
        num_neurons: int,
        beta: Value = 0.9,
        gamma: Value = 0.5,
        pos_threshold: Value = 1.0,
        neg_threshold: Value = 1.0,
        pos_scale: Value = 1.0,
        neg_scale: Value = 1.0,
        rec_weight: Value = 0.0,
        bias: Value = 0.0,
        dim: int = -1,
        beta_rank: Rank = 1,
        gamma_rank: Rank = 1,
        pos_threshold_rank: Rank = 1,
        neg_threshold_rank: Rank = 1,
        pos_scale_rank: Rank = 1,
        neg_scale_rank: Rank = 1,
        rec_weight_rank: Rank = 1,
        bias_rank: Rank = 1,
        beta_ema: bool = False,
        gamma_ema: bool = True,
        learn_beta: bool = True,
        learn_gamma: bool = True,
        learn_pos_threshold: bool = True,
        learn_neg_threshold: bool = True,
        learn_pos_scale: bool = True,
        learn_neg_scale: bool = True,
        learn_rec_weight: bool = True,
        learn_bias: bool = True,
        pos_surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        neg_surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        *,
        reset: Reset = "subtract",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            num_neurons,
            dim,
            beta_setup=Decay(beta, beta_rank, learn_beta, beta_ema),
            gamma_setup=Decay(gamma, gamma_rank, learn_gamma, gamma_ema),
            pos_threshold_setup=Threshold(
                pos_threshold, pos_threshold_rank, learn_pos_threshold, pos_surrogate_derivative
            ),
            neg_threshold_setup=Threshold(
                neg_threshold, neg_threshold_rank, learn_neg_threshold, neg_surrogate_derivative
            ),
            pos_scale_setup=Weight(pos_scale, pos_scale_rank, learn_pos_scale),
            neg_scale_setup=Weight(neg_scale, neg_scale_rank, learn_neg_scale),
            rec_weight_setup=Weight(rec_weight, rec_weight_rank, learn_rec_weight),
            bias_setup=Weight(bias, bias_rank, learn_bias),
            reset=reset,
            detach_reset=detach_reset,
        )


class SRLIF(LeakyIntegrator):
    """LIF with a synaptic trace and recurrence. SLIF and RLIF in one.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + syn + rec_weight * rec + bias
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold
        prev_output = output

    Args:
        num_neurons: size of the neuron dimension.
        alpha: decay of the synaptic trace; a number or a tensor of rank 0 or 1.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        gamma: decay of the recurrent trace; a number or a tensor of rank 0 or 1.
        pos_threshold: upper threshold; a number or a tensor of rank 0 or 1.
        rec_weight: weight of the recurrent trace in the drive; a number or a tensor of rank 0 or 1.
        bias: constant drive; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        alpha_rank, beta_rank, gamma_rank, pos_threshold_rank, rec_weight_rank, bias_rank: 0 for
            one value in the layer, 1 for one per neuron.
        alpha_ema, beta_ema, gamma_ema: scale the inflow by ``1 - decay`` (exponential moving
            average); the equations above show the default.
        learn_alpha, learn_beta, learn_gamma, learn_pos_threshold, learn_rec_weight, learn_bias:
            whether the optimizer may move it.
        surrogate_derivative: the spike function, ``u -> spikes``.
        reset: what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.
        detach_reset: no gradient through the spike in the reset.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

    Example:
        >>> layer = SRLIF(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).tolist()
        [[0.0, 0.0]]
    """

    def __init__(
        self,
        num_neurons: int,
        alpha: Value = 0.5,
        beta: Value = 0.9,
        gamma: Value = 0.5,
        pos_threshold: Value = 1.0,
        rec_weight: Value = 0.0,
        bias: Value = 0.0,
        dim: int = -1,
        alpha_rank: Rank = 1,
        beta_rank: Rank = 1,
        gamma_rank: Rank = 1,
        pos_threshold_rank: Rank = 1,
        rec_weight_rank: Rank = 1,
        bias_rank: Rank = 1,
        alpha_ema: bool = True,
        beta_ema: bool = False,
        gamma_ema: bool = True,
        learn_alpha: bool = True,
        learn_beta: bool = True,
        learn_gamma: bool = True,
        learn_pos_threshold: bool = True,
        learn_rec_weight: bool = True,
        learn_bias: bool = True,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        *,
        reset: Reset = "subtract",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            num_neurons,
            dim,
            alpha_setup=Decay(alpha, alpha_rank, learn_alpha, alpha_ema),
            beta_setup=Decay(beta, beta_rank, learn_beta, beta_ema),
            gamma_setup=Decay(gamma, gamma_rank, learn_gamma, gamma_ema),
            pos_threshold_setup=Threshold(
                pos_threshold, pos_threshold_rank, learn_pos_threshold, surrogate_derivative
            ),
            rec_weight_setup=Weight(rec_weight, rec_weight_rank, learn_rec_weight),
            bias_setup=Weight(bias, bias_rank, learn_bias),
            reset=reset,
            detach_reset=detach_reset,
        )


class BSRLIF(LeakyIntegrator):
    """Bipolar LIF with a synaptic trace and recurrence.

    Everything at once: the most memory, the most parameters.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + syn + rec_weight * rec + bias
        p = H(mem - pos_threshold);       mem = mem - p * pos_threshold
        n = -H(neg_threshold - mem);      mem = mem + n * neg_threshold
        output = pos_scale * p + neg_scale * n
        prev_output = output

    with a negative ``neg_threshold`` of which the argument gives the magnitude.

    Args:
        num_neurons: size of the neuron dimension.
        alpha: decay of the synaptic trace; a number or a tensor of rank 0 or 1.
        beta: decay of the membrane; a number or a tensor of rank 0 or 1.
        gamma: decay of the recurrent trace; a number or a tensor of rank 0 or 1.
        pos_threshold: upper threshold; a number or a tensor of rank 0 or 1.
        neg_threshold: magnitude of the lower threshold; a number or a tensor of rank 0 or 1.
        pos_scale: size of an upward spike; a number or a tensor of rank 0 or 1.
        neg_scale: size of a downward spike; a number or a tensor of rank 0 or 1.
        rec_weight: weight of the recurrent trace in the drive; a number or a tensor of rank 0 or 1.
        bias: constant drive; a number or a tensor of rank 0 or 1.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        alpha_rank, beta_rank, gamma_rank, pos_threshold_rank, neg_threshold_rank, pos_scale_rank,
            neg_scale_rank, rec_weight_rank, bias_rank: 0 for one value in the layer, 1 for one
            per neuron.
        alpha_ema, beta_ema, gamma_ema: scale the inflow by ``1 - decay`` (exponential moving
            average); the equations above show the default.
        learn_alpha, learn_beta, learn_gamma, learn_pos_threshold, learn_neg_threshold,
            learn_pos_scale, learn_neg_scale, learn_rec_weight, learn_bias: whether the optimizer
            may move it.
        pos_surrogate_derivative, neg_surrogate_derivative: the spike function of each threshold,
            ``u -> spikes``.
        reset: what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.
        detach_reset: no gradient through the spike in the reset.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: as :class:`LeakyIntegrator`.

    Example:
        >>> layer = BSRLIF(2)
        >>> layer(torch.tensor([[0.5, -1.5]])).tolist()
        [[0.0, 0.0]]
    """

    def __init__(
        self,
        num_neurons: int,
        alpha: Value = 0.5,
        beta: Value = 0.9,
        gamma: Value = 0.5,
        pos_threshold: Value = 1.0,
        neg_threshold: Value = 1.0,
        pos_scale: Value = 1.0,
        neg_scale: Value = 1.0,
        rec_weight: Value = 0.0,
        bias: Value = 0.0,
        dim: int = -1,
        alpha_rank: Rank = 1,
        beta_rank: Rank = 1,
        gamma_rank: Rank = 1,
        pos_threshold_rank: Rank = 1,
        neg_threshold_rank: Rank = 1,
        pos_scale_rank: Rank = 1,
        neg_scale_rank: Rank = 1,
        rec_weight_rank: Rank = 1,
        bias_rank: Rank = 1,
        alpha_ema: bool = True,
        beta_ema: bool = False,
        gamma_ema: bool = True,
        learn_alpha: bool = True,
        learn_beta: bool = True,
        learn_gamma: bool = True,
        learn_pos_threshold: bool = True,
        learn_neg_threshold: bool = True,
        learn_pos_scale: bool = True,
        learn_neg_scale: bool = True,
        learn_rec_weight: bool = True,
        learn_bias: bool = True,
        pos_surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        neg_surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        *,
        reset: Reset = "subtract",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            num_neurons,
            dim,
            alpha_setup=Decay(alpha, alpha_rank, learn_alpha, alpha_ema),
            beta_setup=Decay(beta, beta_rank, learn_beta, beta_ema),
            gamma_setup=Decay(gamma, gamma_rank, learn_gamma, gamma_ema),
            pos_threshold_setup=Threshold(
                pos_threshold, pos_threshold_rank, learn_pos_threshold, pos_surrogate_derivative
            ),
            neg_threshold_setup=Threshold(
                neg_threshold, neg_threshold_rank, learn_neg_threshold, neg_surrogate_derivative
            ),
            pos_scale_setup=Weight(pos_scale, pos_scale_rank, learn_pos_scale),
            neg_scale_setup=Weight(neg_scale, neg_scale_rank, learn_neg_scale),
            rec_weight_setup=Weight(rec_weight, rec_weight_rank, learn_rec_weight),
            bias_setup=Weight(bias, bias_rank, learn_bias),
            reset=reset,
            detach_reset=detach_reset,
        )
