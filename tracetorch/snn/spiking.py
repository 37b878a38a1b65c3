"""The eight spiking layers: an ``__init__`` each over ``LeakyIntegrator``.

Positional use is part of the interface. Names follow one grammar, which ``setups`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracetorch.core.docstrings import SharedDescriptions
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

_EVERY_LAYER = {
    "num_neurons": "size of the neuron dimension.",
    "dim": "the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.",
    "surrogate_derivative": "the spike function, ``u -> spikes``.",
}
_SHAPE = "Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``."
_VALUES = {
    "alpha": "decay of the synaptic trace",
    "beta": "decay of the membrane",
    "gamma": "decay of the recurrent trace",
    "pos_threshold": "upper threshold",
    "neg_threshold": "magnitude of the lower threshold",
    "pos_scale": "size of an upward spike",
    "neg_scale": "size of a downward spike",
    "rec_weight": "weight of the recurrent trace in the drive",
    "bias": "constant drive",
}

describe_wrapper = SharedDescriptions(
    {
        **_EVERY_LAYER,
        **{name: f"{what}; a number or a tensor of rank 0 or 1." for name, what in _VALUES.items()},
        "*_rank": "0 for one value in the layer, 1 for one per neuron.",
        "*_ema": "scale the inflow by ``1 - decay`` (exponential moving average); the equations "
        "above show the default.",
        "learn_*": "whether the optimizer may move it.",
        "*_surrogate_derivative": "the spike function of each threshold, ``u -> spikes``.",
        "reset": 'what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.',
        "detach_reset": "no gradient through the spike in the reset.",
    },
    _SHAPE,
    {"TypeError, ValueError": "as :class:`LeakyIntegrator`."},
)

# the neurons of the literature
describe_neuron = SharedDescriptions(
    {
        **_EVERY_LAYER,
        "beta": "decay of the membrane, in (0, 1).",
        "pos_threshold": "upper threshold; positive.",
        "v_rest": "resting voltage, in mV; a number or a tensor of rank 0 or 1.",
        "v_t": "voltage from which a spike grows, in mV.",
        "delta": "sharpness of the spike, in mV; positive, at least 1e-6.",
        "v_reset": "voltage after a spike, in mV.",
        "v_peak": "voltage at which a spike is counted, in mV.",
        "substeps": "equal parts that a step is computed in; at least 1. The output is their sum: "
        "how often the neuron has fired in the step.",
    },
    _SHAPE,
)


def setups(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the setups, and the reset, that the arguments of a wrapper make, by their grammar."""
    found = {name: given[name] for name in ("reset", "detach_reset") if name in given}
    for name in [each.removesuffix("_rank") for each in given if each.endswith("_rank")]:
        values = given[name], given[f"{name}_rank"], given[f"learn_{name}"]
        if name in ("alpha", "beta", "gamma"):
            found[f"{name}_setup"] = Decay(*values, given.get(f"{name}_ema", True))  # of a readout
        elif name.endswith("_threshold"):
            both = given.get("surrogate_derivative")
            surrogate = given.get(f"{name[:3]}_surrogate_derivative", both)
            found[f"{name}_setup"] = Threshold(*values, surrogate)
        else:
            found[f"{name}_setup"] = Weight(*values)
    return found


@describe_wrapper
class LIF(LeakyIntegrator):
    """Leaky integrate-and-fire. The plain choice: start here.

    ::

        mem = beta * mem + x
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold

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
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class BLIF(LeakyIntegrator):
    """Bipolar LIF: spikes of both signs, for inputs with a sign, such as deltas.

    ::

        mem = beta * mem + x
        p = H(mem - pos_threshold);       mem = mem - p * pos_threshold
        n = -H(neg_threshold - mem);      mem = mem + n * neg_threshold
        output = pos_scale * p + neg_scale * n

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
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class SLIF(LeakyIntegrator):
    """LIF with a synaptic trace before the membrane: a spike counts for longer than a step.

    ::

        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + syn
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold

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
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class RLIF(LeakyIntegrator):
    """LIF with recurrence: each neuron keeps a trace of its own output, which is an input.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        mem = beta * mem + x + rec_weight * rec + bias
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold
        prev_output = output

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
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class BSLIF(LeakyIntegrator):
    """Bipolar LIF with a synaptic trace. BLIF and SLIF in one.

    ::

        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + syn
        p = H(mem - pos_threshold);       mem = mem - p * pos_threshold
        n = -H(neg_threshold - mem);      mem = mem + n * neg_threshold
        output = pos_scale * p + neg_scale * n

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
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class BRLIF(LeakyIntegrator):
    """Bipolar LIF with recurrence: its output returns to its input. BLIF and RLIF in one.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        mem = beta * mem + x + rec_weight * rec + bias
        p = H(mem - pos_threshold);       mem = mem - p * pos_threshold
        n = -H(neg_threshold - mem);      mem = mem + n * neg_threshold
        output = pos_scale * p + neg_scale * n
        prev_output = output

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
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class SRLIF(LeakyIntegrator):
    """LIF with a synaptic trace and recurrence. SLIF and RLIF in one.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + syn + rec_weight * rec + bias
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold
        prev_output = output

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
        super().__init__(num_neurons, dim, **setups(locals()))


@describe_wrapper
class BSRLIF(LeakyIntegrator):
    """Bipolar LIF with a synaptic trace and recurrence, everything at once.

    ::

        rec = gamma * rec + (1 - gamma) * prev_output
        syn = alpha * syn + (1 - alpha) * x
        mem = beta * mem + syn + rec_weight * rec + bias
        p = H(mem - pos_threshold);       mem = mem - p * pos_threshold
        n = -H(neg_threshold - mem);      mem = mem + n * neg_threshold
        output = pos_scale * p + neg_scale * n
        prev_output = output

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
        super().__init__(num_neurons, dim, **setups(locals()))
