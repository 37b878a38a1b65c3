"""Describe the arguments that many layers have, once for all of their docstrings."""

from __future__ import annotations

from tracetorch.core.docstrings import SharedDescriptions

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
