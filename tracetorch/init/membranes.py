"""Measure the membranes of neuron layers on a batch, and scale what drives them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import join_path
from tracetorch.init.response import ImpulseResponse
from tracetorch.init.stages import RECURRENT, Calls, Stage, outputs_of, scale_rows
from tracetorch.ragged import aligned
from tracetorch.snn.connectivity import raw_weight
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling import unroll

_STILL = 1e-3  # of a layer's mean deviation: a neuron below it gets no input


class Membranes(NamedTuple):
    """Mean and deviation of a layer's membranes, in distances from rest to threshold.

    Args:
        mean: over time, batch and the neurons that get an input.
        deviation: over time and batch, root of its mean square over those neurons.

    Example:
        >>> Membranes(mean=0.0, deviation=0.5).deviation
        0.5
    """

    mean: float
    deviation: float


@dataclass(frozen=True)
class Trial:
    """A batch that a model is run on, and the moments that its membranes shall have there."""

    model: nn.Module
    x: Any  # the batch, as unroll takes it
    steps: int | None  # as in unroll
    calls: Calls  # how it runs, and its calls in one step
    responses: dict[str, ImpulseResponse]  # those of the neuron layers, by path
    target: float  # deviation that the membranes shall have
    mean: float  # mean that they shall have
    mask: Tensor | None = None  # real steps [T, B], in front of each sequence; None: all are
    left: Sequence[tuple[Stage, str]] = ()  # layers behind a norm that stays as it is, and why


class Moments(NamedTuple):
    """Moments of the membranes of one layer, in distances, ``[num_neurons]`` each."""

    means: Tensor  # of each membrane
    deviations: Tensor  # of each
    own_means: Tensor  # of what the source makes of them, without a recurrent connection
    own_deviations: Tensor  # of the same
    steady: Tensor  # the same without what the mean adds while it rises from rest
    fed_back: Tensor  # deviation of what a recurrent connection makes of them; 0 without one
    covariance: Tensor  # of the two parts
    gain: Tensor  # the mean for a constant input of 1
    rate: float  # share of the steps in which the neurons of a recurrence spike

    @property
    def driven(self) -> Tensor:
        return self.deviations > _STILL * self.deviations.mean()

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(torch.cat([self.means, self.deviations])).all())

    @property
    def usable(self) -> bool:
        return self.finite and bool(self.driven.any())

    @property
    def summary(self) -> Membranes:
        return Membranes(
            float(self.means[self.driven].mean()), root_mean_square(self.deviations[self.driven])
        )


def root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def measure(trial: Trial, found: Sequence[Stage]) -> dict[str, Moments]:
    """Run the model from rest and return the moments of the membranes of some layers, by path."""
    names: dict[str, None] = {}
    for stage in found:
        names[join_path(stage.path, "input")] = None
        if stage.loop is not None:
            names |= dict.fromkeys(join_path(stage.loop, end) for end in ("input", "output"))
    # in half precision a bias would not move membranes as far as it should
    device = next(iter(pytree.tree_leaves(trial.x))).device.type
    with restored(trial.model), torch.no_grad(), torch.autocast(device, enabled=False):
        _, seen = unroll(
            trial.model,
            trial.x,
            steps=trial.steps,
            by=trial.calls.by,
            record=[*names],
            from_rest=True,
        )
    return {stage.path: _moments(trial, stage, seen) for stage in found}


def _moments(trial: Trial, stage: Stage, seen: dict[str, Tensor]) -> Moments:
    drive = neurons_last(seen[join_path(stage.path, "input")], stage.neuron)
    response = trial.responses[stage.path]
    kernel = response.kernel[: len(drive)] / response.distance
    mask = None if trial.mask is None else trial.mask.to(drive.device)
    if mask is not None and mask.shape != drive.shape[:2]:
        raise ValueError(f"mask does not fit the steps and samples that {stage.path!r} gets.")

    def flat(values: Tensor) -> Tensor:
        return (values if mask is None else values[mask]).flatten(0, -2)

    # without a loop all that drives a layer comes from outside
    outside, filtered = drive, _filtered(drive, kernel, mask)
    own = whole = flat(filtered)
    own_mean, own_deviation = mean, deviation = whole.mean(0), whole.std(0, correction=0)
    fed_back = covariance = torch.zeros_like(mean)
    rate = 0.0
    if stage.loop is not None:
        outside, spikes = (
            neurons_last(seen[join_path(stage.loop, end)], stage.neuron)
            for end in ("input", "output")
        )
        filtered = _filtered(outside, kernel, mask)
        own = flat(filtered)
        own_mean, own_deviation = own.mean(0), own.std(0, correction=0)
        fed_back = (whole - own).std(0, correction=0)
        covariance = ((own - own_mean) * (whole - own)).mean(0)
        rate = float((flat(spikes) != 0).double().mean())
    samples = torch.full((len(drive),), drive.shape[1]) if mask is None else mask.sum(1)
    shares = (samples / samples.sum()).to(kernel)
    rise = torch.cat([kernel.cumsum(0), kernel.sum(0).expand(len(drive) - len(kernel), -1)])
    risen = (rise * flat(outside).mean(0))[:, None, None]
    return Moments(
        means=mean,
        deviations=deviation,
        own_means=own_mean,
        own_deviations=own_deviation,
        steady=flat(filtered - risen).std(0, correction=0),
        fed_back=fed_back,
        covariance=covariance,
        gain=(rise * shares[:, None]).sum(0),
        rate=rate,
    )


def _filtered(drive: Tensor, kernel: Tensor, mask: Tensor | None) -> Tensor:
    """Convolve over time, for every sample and place, by the product of the spectra."""
    if mask is not None:
        drive = drive.masked_fill(~aligned(mask, drive), 0.0)
    # with fewer the convolution would be circular, and a power of two is quick
    length = 1 << (len(drive) + len(kernel) - 2).bit_length()
    spectrum = torch.fft.rfft(kernel, length, dim=0)[:, None, None]
    spectra = torch.fft.rfft(drive, length, dim=0) * spectrum
    filtered: Tensor = torch.fft.irfft(spectra, length, dim=0)[: len(drive)]
    return filtered


def neurons_last(drive: Tensor, neuron: SequenceLayer) -> Tensor:
    """Return the input ``[T, B, ...]`` as ``[T, B, places, neurons]`` in float64."""
    dim = neuron.dim if neuron.dim < 0 else neuron.dim + 1
    moved = drive.double().movedim(dim, -1)
    return moved.reshape(*moved.shape[:2], -1, neuron.num_neurons)


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
        f"{reached[lost[0]].deviation:.3g} once the other layers are scaled, which share a weight "
        "with what is before it, or feed something back. Initialise its parts by themselves."
    )


def holds_already(trial: Trial) -> bool:
    """Whether the membranes of all layers have the target."""
    seen = measure(trial, trial.calls.stages)
    found = [(stage, seen[stage.path]) for stage in trial.calls.stages]
    return all(each.usable and _missed(trial, s, each) <= _FIXED for s, each in found)


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
        raise ValueError(_reason(stage, trial, reached))
    return reached


class _Answer(NamedTuple):
    """Sensitivity of the membranes of a layer to the scale and the bias of its source."""

    past: Tensor  # deviation of what reaches each past the source, as a shortcut does
    power: float  # of the scale, in the rest of the deviation: 1 where it is passed on as it is
    growth: Tensor  # change of each mean for twice the scale
    slope: Tensor  # change of each mean for a bias, relative to one that is added last


def _scale(trial: Trial, stage: Stage, group: list[nn.Module]) -> tuple[float, Membranes]:
    """Scale some layers and the connection in rounds; return by how much they miss, and where."""
    scaled = [*group] if stage.connection is None else [*group, stage.connection]
    written = [t for m in scaled for t in (raw_weight(m), m.bias) if isinstance(t, Tensor)]
    # Mishkin and Matas (2016): measure, divide by the deviation, and repeat, layer by layer
    best = torch.inf, Membranes(0.0, 0.0), [t.detach().clone() for t in written]
    for number in range(_ROUNDS + 1):
        seen = measure(trial, [stage])[stage.path]
        if number == 0:
            _check_input(trial, stage, seen)
        elif not seen.usable:
            break
        missed = _missed(trial, stage, seen)
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


def _missed(trial: Trial, stage: Stage, seen: Moments) -> float:
    """Return by how much deviation or mean miss, relative to the deviation's target."""
    missed = abs(seen.summary.deviation - trial.target)
    if isinstance(stage.source.bias, Tensor):
        missed = max(missed, float((seen.means - trial.mean)[seen.driven].abs().mean()))
    return missed / trial.target


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
    """Scale the layers and move the bias to the target; without an answer all is linear."""
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
        factors = ((covariance.square() + free).sqrt() - covariance) / made.clamp(min=1e-30)
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
    path = stage.path
    if not seen.finite:
        raise ValueError(
            f"{path!r} gets an input on this batch that is not finite: look at x, and the weights."
        )
    if not bool(raw_weight(stage.source).any()):
        raise ValueError(
            f"the weight of {stage.source_path!r}, before {path!r}, is 0, as after identity_: it "
            "has no scale. Draw it first, or calibrate before identity_."
        )
    varies = seen.steady[seen.driven] > _VARIES * seen.own_deviations[seen.driven]
    # a bias makes up for what does not vary
    constant = isinstance(stage.source.bias, Tensor) and stage.connection is None
    if not bool(seen.driven.any()) or (constant and not bool(varies.any())):
        raise ValueError(
            f"{path!r} gets the same input at every step of every sample, or none: layers before "
            "it do not spike on this batch, or its samples do not differ. Give another batch, or a "
            "larger target, at which they do."
        )


def _reason(stage: Stage, trial: Trial, reached: Membranes) -> str:
    """Say by what a layer missed, and what may be in the way."""
    between = ", ".join([*stage.between, "what forward computes between the two"])
    advice = (
        f"In the way is what stands between, {between}; what reaches it past that, as by a "
        "shortcut; or a constant with no bias against it. Take it out, or set the weights yourself."
    )
    dim = -3 if isinstance(stage.source, nn.BatchNorm2d) else 1 - raw_weight(stage.source).ndim
    if stage.neuron.dim == -1 and dim < -1 and not stage.between:
        advice = (
            f"Its neurons lie along the last dimension, and the channels of {stage.source_path!r} "
            f"do not: build it with dim={dim}, if it has a neuron for each of those."
        )
    return (
        f"{stage.path!r} does not reach a deviation of {trial.target} and a mean of {trial.mean} "
        f"by a scale of {stage.source_path!r}: it is at {reached.deviation:.3g} and "
        f"{reached.mean:.3g}. {advice}"
    )


def _scaled_moments(trial: Trial, stage: Stage, group: list[nn.Module], factor: float) -> Moments:
    with restored(trial.model):
        for module in group:
            scale_rows(module, factor)
        return measure(trial, [stage])[stage.path]
