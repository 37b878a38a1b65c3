"""Describe the arguments that many losses have, once for all of their docstrings."""

from __future__ import annotations

from tracetorch.core.docstrings import SharedDescriptions

_WRONG_TYPE = {"TypeError": "an argument is of the wrong type."}
_EVERY_LOSS = {
    "spikes": "the output.",
    "mem": "the membrane, the output of a readout.",
    "mask": "``[T, B]`` booleans, true where a step is real.",
    "reduction": '``"mean"`` or ``"sum"`` over the batch, or ``"none"``.',
}
_UNLIKE_CLASSES = {
    "ValueError": "shapes do not fit, a class or probability is out of range, or a sequence has no "
    "real step."
}
_ACTIVITY = {**_EVERY_LOSS, "spikes": "spikes, or a mapping of them by layer."}
_UNLIKE_LAYERS = {
    "ValueError": "shapes do not fit, the mapping is empty or has states beside outputs, or a "
    "sequence has no real step."
}

describe_cross_entropy = SharedDescriptions(
    {
        **_EVERY_LOSS,
        "target": "classes, or probabilities of classes.",
        "weight": 'weight of each class, ``[C]``, not negative; for ``"mean"`` the sum is '
        "divided by the weights of the target's classes, as in PyTorch.",
        "label_smoothing": "share of the target that is spread over all classes, in [0, 1].",
    },
    "``spikes`` ``[T, B, C, ...]``; ``target`` ``[B, ...]`` or ``[B, C, ...]``; a scalar, or\n"
    '``[B]`` for ``"none"``.',
    _WRONG_TYPE | _UNLIKE_CLASSES,
)
describe_mse = SharedDescriptions(
    _EVERY_LOSS,
    "``spikes`` ``[T, B, N, ...]``; ``target`` ``[B, N, ...]``, or integers ``[B, ...]``; a\n"
    'scalar, or ``[B]`` for ``"none"``.',
    _WRONG_TYPE | _UNLIKE_CLASSES,
)
describe_activity = SharedDescriptions(
    _ACTIVITY, '``[T, B, ...]``; a scalar, or ``[B]`` for ``"none"``.', _WRONG_TYPE | _UNLIKE_LAYERS
)
describe_pooled_activity = SharedDescriptions(
    _ACTIVITY,
    '``[T, B, ...]``; a scalar, or for ``"none"`` ``[B]``, ``[1]`` if ``pooled``.',
    _WRONG_TYPE | _UNLIKE_LAYERS,
)
