"""Scale what drives each neuron layer until its membranes have a target."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.init.membranes import Membranes, Moments, Trial, measure, root_mean_square
from tracetorch.init.stages import RECURRENT, Stage, outputs_of, scale_rows, weight_of

_LEAST_POWER = 0.2  # of a scale in what it makes of a deviation: below, it is lost on the way
_VARIES = 1e-5  # of a deviation: less is rounding
_MOST_PAST = 0.9  # share of the target that is there without a source, so that no scale reaches it
_LEAST_RATE = 1e-3  # weights for rarer spikes would be huge
_SWEEPS = 3
_ROUNDS = 12
_PROBED = 1.1  # a scale by which it is seen what a scale does
_LEAST_MADE = 1e-4  # of what is measured with it, so that a part is significant
_MOST_FACTOR = 4.0  # in a round, once it is known that the scale is not passed on as it is

# shares of the target by which a layer may miss it
_AIMED = 0.01  # no further round follows
_ACCEPTED = 0.05  # after the last round
_FIXED = 0.1  # once all layers are done


def scale_all(trial: Trial) -> dict[str, Membranes]:
    """Scale what drives each layer, in the order of the calls, and check all at the end."""
    found = trial.calls.stages
    reached: dict[str, Membranes] = {}
    lost: list[str] = []
    for _ in range(_SWEEPS):
        for stage in found:
            reached[stage.path] = _scale_stage(trial, stage)
        if len(found) > 1:
            reached = {path: each.summary for path, each in measure(trial, found).items()}
        missed = {path: abs(each.deviation - trial.target) for path, each in reached.items()}
        lost = [path for path, each in missed.items() if each > _FIXED * trial.target]
        if not lost:
            return reached
    raise ValueError(
        f"{lost[0]!r} does not keep a deviation of {trial.target}: it is at "
        f"{reached[lost[0]].deviation:.3g} once the other layers are scaled. They share a weight "
        "with what comes before it, or feed something back to it. Initialise the network before "
        "you tie them, or its parts by themselves."
    )


def reached_already(trial: Trial) -> dict[str, Membranes] | None:
    """Return what the membranes have, where all layers hold the target already; else ``None``."""
    seen = measure(trial, trial.calls.stages)
    for stage in trial.calls.stages:
        moments = seen[stage.path]
        if not moments.usable or max(_misses(trial, stage, moments)) > _FIXED:
            return None
    return {path: moments.summary for path, moments in seen.items()}


def _scale_stage(trial: Trial, stage: Stage) -> Membranes:
    """Scale the last layer before the neurons alone, then, if that fails, all that add up there."""
    size = outputs_of(stage.source)
    others = [m for m in stage.drivers if m is not stage.source and outputs_of(m) == size]
    group = [stage.source]
    missed, reached = _scale(trial, stage, group)
    if missed > _ACCEPTED and others:
        group = [stage.source, *others]
        missed, reached = _scale(trial, stage, group)
    if missed > _ACCEPTED:
        raise ValueError(_reason(trial, stage, group, reached, _ACCEPTED * trial.target))
    return reached


class _Answer(NamedTuple):
    """Sensitivity of the membranes of a layer to the scale and the bias of its source."""

    past: Tensor  # deviation of what reaches each past the source, as a shortcut does
    power: float  # of the scale, in the rest of the deviation: 1 where it is passed on as it is
    growth: Tensor  # change of each mean for twice the scale
    slope: Tensor  # change of each mean for a bias, relative to one that is added last


def _scale(trial: Trial, stage: Stage, group: list[nn.Module]) -> tuple[float, Membranes]:
    """Scale some layers and the recurrent connection; return by how much they miss, and where.

    Several rounds: what is between may not be linear, and spikes that are fed back change.
    """
    scaled = [*group] if stage.connection is None else [*group, stage.connection]
    written = [t for m in scaled for t in (weight_of(m), m.bias) if isinstance(t, Tensor)]
    # Mishkin and Matas (2016): measure, divide by the deviation, and repeat, layer by layer
    best = torch.inf, Membranes(0.0, 0.0), [t.detach().clone() for t in written]
    for number in range(_ROUNDS + 1):
        seen = measure(trial, [stage])[stage.path]
        if number == 0:
            _check_input(trial, stage, seen)
        elif not seen.usable:
            break
        missed = max(_misses(trial, stage, seen))
        if missed < best[0]:
            best = missed, seen.summary, [t.detach().clone() for t in written]
        if missed <= _AIMED or number == _ROUNDS:
            break
        if number == 0 or stage.connection is not None:
            _move(trial, stage, group, seen, None)
            continue
        answer = _probe(trial, stage, group, seen)
        if answer.power < _LEAST_POWER or root_mean_square(answer.past) > _MOST_PAST * trial.target:
            break  # no scale will do
        _move(trial, stage, group, seen, answer)
    with torch.no_grad():
        for tensor, value in zip(written, best[2], strict=True):
            tensor.copy_(value)
    return best[:2]


def _misses(trial: Trial, stage: Stage, seen: Moments) -> tuple[float, float]:
    """Return by how much deviation and mean miss, relative to the deviation's target."""
    deviation = abs(seen.summary.deviation - trial.target) / trial.target
    if not isinstance(stage.source.bias, Tensor):
        return deviation, 0.0
    missing = (seen.means - trial.mean)[seen.driven]
    return deviation, float(missing.abs().mean()) / trial.target


def _probe(trial: Trial, stage: Stage, group: list[nn.Module], seen: Moments) -> _Answer:
    """Measure what a scale of 0, a slightly larger one, and a larger bias do to the membranes."""
    bias = stage.source.bias

    def variances(moments: Moments) -> Tensor:
        # a bias makes up for a mean, which adds to the deviation while it rises
        return (moments.deviations if bias is None else moments.steady).square()

    nothing, larger = (_scaled_moments(trial, stage, group, by) for by in (0.0, _PROBED))
    past = variances(nothing)
    made, grown = variances(seen) - past, variances(larger) - past
    clear = seen.driven & (made > _LEAST_MADE * past)
    ratio = float((grown / made)[clear].median()) if bool(clear.any()) else _PROBED**2
    # variance = scale^(2 power), from two scales
    power = min(4.0, math.log(max(ratio, 1e-3)) / math.log(_PROBED) / 2)
    growth = (larger.means - seen.means) / (_PROBED - 1)
    slope = torch.ones_like(growth)
    if isinstance(bias, Tensor):
        moved = 0.1 * trial.target
        with restored(trial.model), torch.no_grad():
            bias.add_((moved / seen.gain).to(bias))
            slope = (measure(trial, [stage])[stage.path].means - seen.means) / moved
        slope = slope.sign() * slope.abs().clamp(0.02, 50)
    return _Answer(past.sqrt(), power, growth, slope)


def _move(
    trial: Trial, stage: Stage, group: list[nn.Module], seen: Moments, answer: _Answer | None
) -> None:
    """Scale the layers, and move the bias, to where the target should be; ``None``: all is linear.

    Of a recurrence, the connection makes its share, and the source the rest.
    """
    bias = stage.source.bias
    back, fed_back = 1.0, root_mean_square(seen.fed_back)
    if stage.connection is not None and fed_back > 0:
        # less where spikes are so rare that its weights would be huge
        share = RECURRENT * min(1.0, seen.rate / _LEAST_RATE)
        back = float(trial.target * share**0.5 / fed_back)
    if answer is None:
        growth, slope = seen.own_means, torch.ones_like(seen.means)
        # a bias makes up for a mean, and for that of what is fed back
        alone = bias is not None and stage.connection is None
        varies = alone & (seen.steady > _LEAST_MADE * seen.own_deviations)
        made = torch.where(varies, seen.steady, seen.own_deviations)
        # target^2 = own^2 + 2 own covariance / own_deviation + fed_back^2, for own
        covariance = back * seen.covariance / seen.own_deviations.clamp(min=1e-30)
        free = trial.target**2 - (back * seen.fed_back).square()
        free = free.clamp(min=(trial.target / 2) ** 2)
        wanted = (covariance.square() + free).sqrt() - covariance
        factors = wanted / made.clamp(min=1e-30)
    else:
        _, power, growth, slope = answer
        past = answer.past.square()
        wanted = (trial.target**2 - past).clamp(min=(0.1 * trial.target) ** 2)
        made = seen.deviations.square() - past
        factors = (wanted / made.clamp(min=1e-30)).pow(0.5 / power)
        factors = factors.clamp(1 / _MOST_FACTOR, _MOST_FACTOR)
    # a neuron without an input is scaled as its layer is
    factors = torch.where(seen.driven, factors, factors[seen.driven].median())
    for module in group:
        scale_rows(module, factors)
    if stage.connection is not None:
        scale_rows(stage.connection, back)
    if isinstance(bias, Tensor):
        own = seen.own_means + (factors - 1) * growth
        missing = trial.mean - back * (seen.means - seen.own_means) - own
        with torch.no_grad():
            bias.add_((missing / (seen.gain * slope)).to(bias))


def _check_input(trial: Trial, stage: Stage, seen: Moments) -> None:
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
    varies = seen.steady[seen.driven] > _VARIES * seen.own_deviations[seen.driven]
    # a bias makes up for what does not vary
    constant = isinstance(stage.source.bias, Tensor) and stage.connection is None
    if not bool(seen.driven.any()) or (constant and not bool(varies.any())):
        raise ValueError(
            f"{path!r} gets the same input at every step of every sample, or none: the layers "
            "before it do not spike on this batch, or its samples do not differ. Give one with "
            "input events, or of different samples, or a larger target, at which they do."
        )


def _reason(
    trial: Trial, stage: Stage, group: list[nn.Module], reached: Membranes, accepted: float
) -> str:
    """Say which moment a layer missed by more than ``accepted``, and what is in the way.

    Scales of 0 and 2 of the ``group`` that was scaled show it.
    """
    target, mean = trial.target, trial.mean
    missed = f"a deviation of {target}" if abs(reached.deviation - target) > accepted else ""
    nothing, once, twice = (
        _scaled_moments(trial, stage, group, factor) for factor in (0.0, 1.0, 2.0)
    )
    alone, before, after = (root_mean_square(m.deviations) for m in (nothing, once, twice))
    between = ", ".join([*stage.between, "what forward computes between the two"])
    advice = f"Take out what stands in the way, in {between}; or set the weights yourself."
    channels = _dim_of_channels(stage.source)
    if stage.neuron.dim == -1 and channels is not None and not stage.between:
        advice = (
            f"Its neurons lie along the last dimension, and the channels of {stage.source_path!r} "
            f"do not: build it with dim={channels}, if it has a neuron for each of those."
        )
    elif root_mean_square(nothing.steady) > _MOST_PAST * target:
        advice = "What reaches it past that, as by a shortcut, is too large: scale it down."
    elif not isinstance(stage.source.bias, Tensor) and (alone > _MOST_PAST * target or not missed):
        advice = "It has no bias against a constant that is added: give it one."
    elif stage.connection is not None:
        advice = "Its spikes are fed back: give a larger batch, or choose a smaller target."
    return (
        f"{stage.path!r} does not reach {missed or f'a mean of {mean}'} by a scale of "
        f"{stage.source_path!r}: it is at a deviation of {reached.deviation:.3g} and a mean of "
        f"{reached.mean:.3g}. With a weight of 0 the deviation is {alone:.3g}, with twice the "
        f"weight {after / before:.3g} times as large. {advice}"
    )


def _dim_of_channels(source: nn.Module) -> int | None:
    """Return the dimension of the channels that a layer computes; ``None`` where it has none."""
    if isinstance(source, BatchNormBase):
        return -3 if isinstance(source, nn.BatchNorm2d) else None
    dimensions = weight_of(source).ndim
    return 1 - dimensions if dimensions > 2 else None


def _scaled_moments(trial: Trial, stage: Stage, group: list[nn.Module], factor: float) -> Moments:
    """Return the moments for a multiple of the weights and biases of some layers."""
    with restored(trial.model):
        for module in group:
            scale_rows(module, factor)
        return measure(trial, [stage])[stage.path]
