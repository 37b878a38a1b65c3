"""Report weights that a batch has made far larger than its neurons need: ``report_large_weights``.

Inputs that hardly vary on a batch, or a batch too short for a neuron, need large weights to reach
the target, and on other data the membranes are then as many times too far.
"""

from __future__ import annotations

import logging
import math

from tracetorch.core.torch_private import BatchNormBase
from tracetorch.init.membranes import Trial
from tracetorch.init.stages import Stage, weight_of
from tracetorch.snn.relative_scale import default_rms

_log = logging.getLogger("tracetorch")

_USUAL = 0.05  # the rate that fluctuation_ takes
# times what spikes at this rate need; of batches that vary it is up to 5
_LARGE = 15.0
_LARGE_AND_SHORT = 3.0  # where the sequence is the reason
_SHORT = 0.1  # of the power of a response, if the rest does not fit into the sequence


def report_large_weights(trial: Trial, steps: int) -> None:
    """Log a warning for each layer whose weights are large for its neurons, with the reason.

    Args:
        trial: the model, its weights scaled, and its responses.
        steps: length of the batch's sequences.
    """
    for stage in trial.calls.stages:
        if isinstance(stage.source, BatchNormBase):
            continue  # its input varies by 1, whatever the batch
        power = trial.responses[stage.path].kernel.square()
        share = float((power[:steps].sum(0) / power.sum(0)).median())
        factor = _factor(trial, stage)
        if factor < (_LARGE_AND_SHORT if share < _SHORT else _LARGE):
            continue
        reason, advice = _VARIES_LITTLE
        if share < _SHORT:
            longer, give = "On longer sequences", "Give whole sequences"
            if trial.steps is not None:  # a constant input, whose steps are chosen
                longer, give = "With more steps than these", "Take more steps"
            reason = (
                f"its neurons are slow, and in {steps} steps from rest they show "
                f"{100 * share:.2g} % of the power of their response. {longer}"
            )
            advice = f"{give}, or begin with a faster decay (beta nearer to 0)."
        _log.warning(
            "calibrate_ made the weight of %r, before %r, %.3g times as large as independent "
            "spikes at a rate of %g need: %s its membranes go far beyond the target. %s",
            stage.source_path,
            stage.path,
            factor,
            _USUAL,
            reason,
            advice,
        )


_VARIES_LITTLE = (
    "what it is given hardly varies on this batch. On data that vary more",
    "Give more samples or longer sequences, scale the input to a deviation of about 1, or choose a "
    "larger target, at which the layers before spike more.",
)


def _factor(trial: Trial, stage: Stage) -> float:
    """Return how many times as large a weight is as it would be for usual spikes."""
    weight = weight_of(stage.source).detach().double()
    size = float(weight.square().mean().sqrt()) / default_rms(stage.source, "weight", weight)
    # by default the squares of a neuron's weights add up to 1/3
    unit = trial.responses[stage.path].deviation(_USUAL)
    return size * float(unit.median()) / (trial.target * math.sqrt(3))
