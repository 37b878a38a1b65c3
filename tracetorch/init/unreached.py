"""Say why the membranes of a neuron layer cannot be brought to a target."""

from __future__ import annotations

from torch import Tensor, nn

from tracetorch.core.snapshot import restored
from tracetorch.core.walk import named_modules
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
    path, source, target, mean = stage.path, stage.source_path, trial.target, trial.mean
    deviates = abs(reached.deviation - target) > accepted
    has_bias = isinstance(stage.source.bias, Tensor)
    missed = f"a deviation of {target} by scaling" if deviates else f"a mean of {mean} behind"
    title = (
        f"{path!r} does not reach {missed} {source!r}: it is at a deviation of "
        f"{reached.deviation:.3g} and a mean of {reached.mean:.3g}."
    )
    nothing, once, twice = (
        scaled_moments(trial, stage, group, factor) for factor in (0.0, 1.0, 2.0)
    )
    alone, before, after = (root_mean_square(m.deviations) for m in (nothing, once, twice))
    if root_mean_square(nothing.steady) > MOST_PAST * target:
        return (
            f"{title} What reaches it past {source!r} has a deviation of {alone:.3g} by itself, as "
            "a shortcut has. Scale that down, or choose a larger target."
        )
    if not has_bias and (alone > MOST_PAST * target or not deviates):
        return (
            f"{title} The layer has no bias, and with a weight of 0 the mean is "
            f"{float(nothing.means.mean()):.3g}, as behind a constant that is added. Give it a "
            "bias, or take the constant out."
        )
    between = _between(trial, stage)
    made, doubled = before**2 - alone**2, after**2 - alone**2
    if made > 0.01 * before**2 and doubled < made * 4**LEAST_POWER:
        return (
            f"{title} Twice the weight hardly changes the deviation: {between} its scale is lost, "
            "as in a norm. Put a batch norm with affine=True there, whose own weight is set, or "
            "take it out."
        )
    if has_bias and abs(reached.mean - mean) > accepted:
        return (
            f"{title} Moving the bias does not bring it there: {between} it is not linear, or "
            "depends on the same weights. Choose a mean that is in reach, or add the bias last."
        )
    if stage.connection is not None:
        return (
            f"{title} The spikes that its connection feeds back change with every scale. Give a "
            "larger batch, or choose a smaller target."
        )
    return (
        f"{title} Twice the weight makes the deviation {after / before:.3g} times as large: "
        f"{between} it is not linear. Set the weights before it yourself."
    )


def scaled_moments(trial: Trial, stage: Stage, group: list[nn.Module], factor: float) -> Moments:
    """Return the moments for a multiple of the weights and biases of some layers."""
    with restored(trial.model):
        for module in group:
            scale_rows(module, factor)
        return measure(trial, [stage])[stage.path]


def _between(trial: Trial, stage: Stage) -> str:
    """Name what is called between a source and its neurons."""
    modules = dict(named_modules(trial.model))
    names: list[str] = []
    order = trial.calls.order
    position = order.index(stage.path) if stage.path in order else 0
    for path in reversed(order[:position]):
        module = modules[path]
        if f"{stage.source_path}.".startswith(f"{path}."):
            break
        computes = "parametrizations" not in path.split(".") and not isinstance(module, nn.Identity)
        if computes and not any(True for _ in module.children()):
            names.append(f"{path!r} ({type(module).__name__})")
    if not names:
        return "in what forward computes between the two,"
    return f"in {', '.join(reversed(names))}, or what forward computes between the two,"
