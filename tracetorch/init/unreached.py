"""Say why the membranes of a neuron layer cannot be brought to a target."""

from __future__ import annotations

from torch import Tensor, nn

from tracetorch.core.snapshot import restored
from tracetorch.init.membranes import Membranes, Moments, Trial, measure, root_mean_square
from tracetorch.init.stages import Stage, scale_rows, weight_of

UNKNOWN = 0.12  # relative standard error of a variance that says nothing
LEAST_POWER = 0.2  # of a scale in what it makes of a deviation: below, it is lost on the way
_VARIES = 1e-5  # of a deviation: less is rounding
MOST_PAST = 0.9  # share of the target that is there without a source, so that no scale reaches it


def check_input(trial: Trial, stage: Stage, seen: Moments) -> None:
    """Raise where a layer has no input that a scale could change."""
    path = stage.path
    if not seen.finite:
        raise ValueError(
            f"{path!r} gets an input on this batch that is not finite: x, or a weight before it, "
            "is infinite or NaN."
        )
    if not bool(weight_of(stage.source).any()):
        raise ValueError(
            f"the weight of {stage.source_path!r}, before {path!r}, is 0, as after identity_: it "
            "has no scale. Draw it first, or calibrate before identity_."
        )
    if not bool(seen.driven.any()):
        ending = (
            "neurons before it do not spike at this target and rate. Choose a larger target."
            if trial.drawn
            else "layers before it do not spike on this batch. Give a batch with input events."
        )
        raise ValueError(
            f"{path!r} gets the same input at every step of every sample, or none: the {ending}"
        )
    if not trial.drawn and isinstance(stage.source.bias, Tensor) and not _varies(stage, seen):
        raise ValueError(
            f"{path!r} gets the same input at every step of every sample, as from one image that "
            f"is repeated: the bias of {stage.source_path!r} makes up for it, and nothing is left "
            "that varies. Give a batch of different samples."
        )
    if trial.drawn and seen.error > UNKNOWN:
        raise ValueError(
            f"{path!r} gets spikes so rarely at this target and rate that its deviation is not "
            "known: weights that make up for it would be huge. Choose a larger target, or a larger "
            "rate."
        )


def _varies(stage: Stage, seen: Moments) -> bool:
    """Whether a membrane does anything but rise from rest by a constant input."""
    own = seen.own_deviations[seen.driven]
    return stage.connection is not None or bool((seen.steady[seen.driven] > _VARIES * own).any())


def reason(
    trial: Trial, stage: Stage, group: list[nn.Module], reached: Membranes, accepted: float
) -> str:
    """Say which moment a layer missed by more than ``accepted``, and what is in the way.

    Scales of 0 and 2 of the ``group`` that was scaled show it.
    """
    target, mean = trial.target, trial.mean
    missed = f"a deviation of {target}" if abs(reached.deviation - target) > accepted else ""
    nothing, once, twice = (
        scaled_moments(trial, stage, group, factor) for factor in (0.0, 1.0, 2.0)
    )
    alone, before, after = (root_mean_square(m.deviations) for m in (nothing, once, twice))
    between = ", ".join([*stage.between, "or what forward computes between the two"])
    advice = f"Take out what stands in the way, in {between}; or set the weights yourself."
    if root_mean_square(nothing.steady) > MOST_PAST * target:
        advice = "What reaches it past that, as by a shortcut, is too large: scale it down."
    elif not isinstance(stage.source.bias, Tensor) and (alone > MOST_PAST * target or not missed):
        advice = "It has no bias against a constant that is added: give it one."
    elif stage.connection is not None:
        advice = "Its spikes are fed back: give a larger batch, or choose a smaller target."
    return (
        f"{stage.path!r} does not reach {missed or f'a mean of {mean}'} by a scale of "
        f"{stage.source_path!r}: it is at a deviation of {reached.deviation:.3g} and a mean of "
        f"{reached.mean:.3g}. With a weight of 0 the deviation is {alone:.3g}, with twice the "
        f"weight {after / before:.3g} times as large. {advice}"
    )


def scaled_moments(trial: Trial, stage: Stage, group: list[nn.Module], factor: float) -> Moments:
    """Return the moments for a multiple of the weights and biases of some layers."""
    with restored(trial.model):
        for module in group:
            scale_rows(module, factor)
        return measure(trial, [stage])[stage.path]
