"""Measure membranes on a batch, and scale what drives a neuron layer until they have a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.snapshot import restored
from tracetorch.core.walk import join_path, modules_of, named_modules
from tracetorch.init.driven import driven_modules
from tracetorch.init.response import ImpulseResponse
from tracetorch.init.stages import (
    RECURRENT,
    Stage,
    scale_rows,
    sources,
    stages,
    unwrapped,
    weight_of,
)
from tracetorch.probe.layers import call_order, neuron_layers
from tracetorch.ragged import aligned
from tracetorch.snn.delay import Delay
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs
from tracetorch.unrolling.unsupported import unsupported_reason

LEAST_RATE = 1e-3  # weights for rarer spikes would be huge
_ROUNDS = 12
_PROBED = 1.1  # a scale by which it is seen what a scale does
_SWEEPS = 3
_AIMED = 0.01  # difference from the target, relative to it, at which no further round follows
_ACCEPTED = 0.05  # and after the last one: spikes that are fed back move by whole spikes
_HELD = 0.1  # and once all layers are done
_STILL = 1e-3  # of a layer's mean deviation: a neuron below it gets no input
_UNMOVED = 0.05  # power of the scale in the deviation, below which it is not passed on
_UNKNOWN = 0.12  # relative standard error of a variance that says nothing


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
    """A batch that a model is run on, and what its calls have shown.

    Args:
        model: the model.
        x: the batch, as ``unroll`` takes it.
        steps: as in ``unroll``.
        by: how it runs.
        order: paths of the modules in the order of their calls.
        drivers: paths of what drives each neuron layer directly, by its path.
        mask: real steps ``[T, B]``, in front of each sequence; ``None``: all are.
        start: first step that is measured; moments are then those of a run without an end.
        kept: share of the target by which a layer may miss it and is left alone.
    """

    model: nn.Module
    x: Any
    steps: int | None
    by: Any
    order: list[str]
    drivers: dict[str, list[str]] = field(default_factory=dict)
    mask: Tensor | None = None
    start: int = 0
    kept: float = 0.0


class Moments(NamedTuple):
    """Moments of the membranes of one layer, in distances, ``[num_neurons]`` each.

    Args:
        means: of each membrane.
        deviations: of each.
        gain: the mean for a constant input of 1.
        own_means: of what the source makes of them.
        own_deviations: of the same.
        fed_back: deviation of what a recurrent connection makes of them; 0 without one.
        covariance: of the two parts.
        steady: deviations without what the mean adds while it rises from rest.
        rate: share of the steps in which the neurons of a recurrence spike.
        error: relative standard error of the variance of all, over the samples.
    """

    means: Tensor
    deviations: Tensor
    gain: Tensor
    own_means: Tensor
    own_deviations: Tensor
    fed_back: Tensor
    covariance: Tensor
    steady: Tensor
    rate: float
    error: float

    @property
    def driven(self) -> Tensor:
        """Which neurons get an input."""
        return self.deviations > _STILL * self.deviations.mean()

    @property
    def finite(self) -> bool:
        """Whether all are finite."""
        return bool(torch.isfinite(torch.cat([self.means, self.deviations])).all())

    @property
    def summary(self) -> Membranes:
        """Those of the neurons that get an input, together."""
        driven = self.driven
        return Membranes(
            float(self.means[driven].mean()),
            float(self.deviations[driven].square().mean().sqrt()),
        )


def follow_calls(model: nn.Module, inputs: Inputs) -> tuple[list[Stage], dict[str, Any]]:
    """Pair neuron layers with what drives them, in the order of the calls of one step.

    Returns the stages, and the fields of a :class:`Trial` that the calls decide.

    Raises:
        ValueError: a layer drives several layers of neurons; or as :func:`stages`.
    """
    by = "layer" if _runs_by_layer(model, inputs) else "step"
    order = call_order(model, inputs, by)
    neurons = neuron_layers(model)
    last: dict[str, str] = {}  # the neurons that a source drives, by its path
    drivers: dict[str, list[str]] = {}
    for source, paths in driven_modules(model, sources(model), inputs).items():
        driven = [path for path in paths if path in neurons]
        if len(driven) > 1:
            raise ValueError(
                f"{source!r} drives {', '.join(map(repr, driven))}: one scale cannot fit them all. "
                "Give each neuron layer a layer with weights of its own."
            )
        if driven:
            last[source] = driven[0]
            drivers.setdefault(driven[0], []).append(source)
    arranged: list[str] = []
    modules = dict(named_modules(model))
    for path in order:
        if path in last:
            continue
        driving = [source for source in order if last.get(source) == path]
        begun = order.index(driving[-1]) if driving else len(order)
        behind = [p for p in arranged if isinstance(modules[p], Delay) and order.index(p) > begun]
        arranged = [p for p in arranged if p not in behind] + driving + behind + [path]
    return stages(model, arranged), {"by": by, "order": order, "drivers": drivers}


def _runs_by_layer(model: nn.Module, inputs: Inputs) -> bool:
    if unsupported_reason(modules_of(model, closed=Recurrent)) is not None:
        return False
    few = inputs.first(2)
    with restored(model), torch.no_grad(), suppress(ValueError):
        unroll(model, few.tensors, steps=few.steps if few.static else None, from_rest=True)
        return True
    return False


def settle_all(
    trial: Trial,
    found: Sequence[Stage],
    responses: dict[str, ImpulseResponse],
    target: float,
    mean: float,
) -> dict[str, Membranes]:
    """Scale what drives each layer, in the order of the calls, and check all at the end.

    Raises:
        ValueError: a layer does not reach its target, or does not keep it.
    """
    if trial.kept:  # most often all of them hold it as they are drawn
        measured = measure(trial, found, responses)
        if all(_fits(trial, stage, measured[stage.path], target, mean) for stage in found):
            return {path: moments.summary for path, moments in measured.items()}
    reached: dict[str, Membranes] = {}
    lost: list[str] = []
    for _ in range(_SWEEPS):
        for stage in found:
            reached[stage.path] = settle(trial, stage, responses[stage.path], target, mean)
        if len(found) > 1:
            measured = measure(trial, found, responses)
            reached = {path: moments.summary for path, moments in measured.items()}
        lost = [p for p, each in reached.items() if abs(each.deviation - target) > _HELD * target]
        if not lost:
            return reached
    raise ValueError(
        f"{lost[0]!r} does not keep a deviation of {target}: it is at "
        f"{reached[lost[0]].deviation:.3g} once the other layers are scaled. They share a weight "
        "with what comes before it, or feed something back to it. Initialise the network before "
        "you tie them, or its parts by themselves."
    )


def settle(
    trial: Trial, stage: Stage, response: ImpulseResponse, target: float, mean: float
) -> Membranes:
    """Scale what drives one layer until its membranes have the target.

    First the last layer before it alone, then, where that is not enough, all that add up.

    Raises:
        ValueError: the target is not reached; or the layer gets no input, or one that is not
            finite.
    """
    modules = dict(named_modules(trial.model))
    others = [
        product
        for path in trial.drivers.get(stage.path, ())
        for _, product in [unwrapped(path, modules[path])]
        if product is not stage.source and _outputs(product) == _outputs(stage.source)
    ]
    groups = [[stage.source], [stage.source, *others]] if others else [[stage.source]]
    problem = ""
    for group in groups:
        reached, problem = _scale(trial, stage, group, response, target, mean)
        if not problem:
            return reached
    raise ValueError(problem)


def _outputs(module: nn.Module) -> int:
    return weight_of(module).shape[0 if weight_of(module).ndim > 1 else -1]


def _scale(
    trial: Trial,
    stage: Stage,
    group: list[nn.Module],
    response: ImpulseResponse,
    target: float,
    mean: float,
) -> tuple[Membranes, str]:
    """Scale some layers and the recurrent connection; return what is reached, and what is not.

    Several rounds: what is between may not be linear, and spikes that are fed back change.
    """
    path, shift = stage.path, stage.source.bias if _has_bias(stage.source) else None
    scaled = [*group] if stage.connection is None else [*group, stage.connection]
    written = [t for m in scaled for t in (weight_of(m), m.bias) if isinstance(t, Tensor)]
    best = torch.inf, Membranes(0.0, 0.0), [t.detach().clone() for t in written]
    power, slope, growth = 1.0, torch.ones(()), None
    for number in range(_ROUNDS + 1):
        seen = measure(trial, [stage], {path: response})[path]
        if number == 0:
            _check_input(trial, stage, seen)
        elif not seen.finite or not bool(seen.driven.any()):
            break
        driven = seen.driven
        error = max(_misses(trial, seen, target, mean, shift is not None))
        if error < best[0]:
            best = error, seen.summary, [t.detach().clone() for t in written]
        fits = number == 0 and _fits(trial, stage, seen, target, mean)
        if error <= _AIMED or fits or number == _ROUNDS:
            break
        if number > 0 and stage.connection is None:  # what is between is not what it seemed
            power, growth, slope = _probe(trial, stage, group, response, seen, target)
            if power < _UNMOVED:
                break
        back = _connection_factor(stage, response, seen, target)
        wanted = _own_deviation(seen, back, target)
        factors = (wanted / seen.own_deviations.clamp(min=1e-30)).pow(1 / max(power, 0.2))
        factors = torch.where(driven, factors, factors[driven].median())
        for module in group:
            scale_rows(module, factors)
        if stage.connection is not None:
            scale_rows(stage.connection, back.expand_as(factors))
        if shift is not None:
            own = seen.own_means + (factors - 1) * (seen.own_means if growth is None else growth)
            missing = mean - back * (seen.means - seen.own_means) - own
            with torch.no_grad():
                shift.add_((missing / (seen.gain * slope)).to(shift))
    with torch.no_grad():
        for tensor, value in zip(written, best[2], strict=True):
            tensor.copy_(value)
    if best[0] <= (_HELD if trial.kept else _ACCEPTED):
        return best[1], ""
    return best[1], _problem(trial, stage, group, response, target, mean, best[1])


def _has_bias(module: nn.Module) -> bool:
    return isinstance(module.bias, Tensor)


def _misses(
    trial: Trial, seen: Moments, target: float, mean: float, has_bias: bool
) -> tuple[float, float]:
    """Return by how much deviation and mean miss the target, relative to the deviation's."""
    driven = seen.driven
    error = abs(seen.summary.deviation - target) / target
    missing = (seen.means - mean)[driven]
    if trial.kept:  # neurons differ by the rates of what drives them
        allowed = missing.std(correction=0) * 3 / len(missing) ** 0.5
        moved = float((missing.mean().abs() - allowed).clamp(min=0))
        return error, moved / target if has_bias or moved > target / 2 else 0.0
    return error, float(missing.abs().mean()) / target if has_bias else 0.0


def _fits(trial: Trial, stage: Stage, seen: Moments, target: float, mean: float) -> bool:
    """Whether weights that were drawn for the target hold it, but for what chance adds."""
    if not trial.kept or not seen.finite or not bool(seen.driven.any()) or seen.error > _UNKNOWN:
        return False
    misses = _misses(trial, seen, target, mean, _has_bias(stage.source))
    scatter = (seen.deviations[seen.driven] / target - 1).square().mean().sqrt()
    return max(*misses, float(scatter) / 3) <= trial.kept


def _probe(
    trial: Trial,
    stage: Stage,
    group: list[nn.Module],
    response: ImpulseResponse,
    seen: Moments,
    target: float,
) -> tuple[float, Tensor, Tensor]:
    """Measure what a slightly larger scale, and then a larger bias, does to the membranes.

    Returns the power of the scale in the deviation, the change of each mean for twice the scale,
    and that for a bias, relative to one that is added last.
    """

    def measured() -> Moments:
        return measure(trial, [stage], {stage.path: response})[stage.path]

    with restored(trial.model):
        for module in group:
            scale_rows(module, torch.full((_outputs(module),), _PROBED))
        larger = measured()
    ratio = (larger.steady / seen.steady)[seen.driven].median()
    power = min(4.0, math.log(max(float(ratio), 1e-3)) / math.log(_PROBED))
    growth = (larger.means - seen.means) / (_PROBED - 1)
    slope = torch.ones_like(seen.means)
    if isinstance(stage.source.bias, Tensor):
        with restored(trial.model), torch.no_grad():
            stage.source.bias.add_((0.1 * target / seen.gain).to(stage.source.bias))
            slope = ((measured().means - seen.means) / (0.1 * target)).clamp(0.02, 50)
    return power, growth, slope


def _connection_factor(
    stage: Stage, response: ImpulseResponse, seen: Moments, target: float
) -> Tensor:
    """Return the factor by which the connection makes its share of the variance.

    Its share is smaller where spikes are so rare that its weights would be huge.
    """
    one = torch.ones((), dtype=torch.float64, device=seen.means.device)
    usual = seen.fed_back.square().mean().sqrt()
    if stage.connection is None or not bool(usual > 0):
        return one
    rare = min(1.0, seen.rate / LEAST_RATE) ** 0.5
    return target * RECURRENT**0.5 * rare / usual


def _own_deviation(seen: Moments, back: Tensor, target: float) -> Tensor:
    """Return what the source must make, beside what is fed back and varies with it."""
    fed_back = (back * seen.fed_back).square()
    covariance = back * seen.covariance / seen.own_deviations.clamp(min=1e-30)
    free = (target**2 - fed_back).clamp(min=(target / 2) ** 2)
    return (covariance.square() + free).sqrt() - covariance


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
    if not bool(seen.driven.any()):
        ending = (
            "neurons before it do not spike at this target and rate. Choose a larger target."
            if trial.kept
            else "layers before it do not spike on this batch. Give a batch with input events."
        )
        raise ValueError(
            f"{path!r} gets the same input at every step of every sample, or none: the {ending}"
        )
    if trial.kept and seen.error > _UNKNOWN:
        raise ValueError(
            f"{path!r} gets spikes so rarely at this target and rate that its deviation cannot be "
            "told: weights that make up for it would be huge. Choose a larger target, or a larger "
            "rate."
        )


def _problem(
    trial: Trial,
    stage: Stage,
    group: list[nn.Module],
    response: ImpulseResponse,
    target: float,
    mean: float,
    reached: Membranes,
) -> str:
    """Say which quantity a layer missed, and what is in the way, by what scales of 0 and 2 do."""
    path, source, between = stage.path, stage.source_path, _between(trial, stage)
    kept = abs(reached.deviation - target) <= _ACCEPTED * target
    missed = f"a mean of {mean}" if kept else f"a deviation of {target}"
    title = (
        f"{path!r} does not reach {missed} by {'the bias of' if kept else 'scaling'} {source!r}: "
        f"it is at a deviation of {reached.deviation:.3g} and a mean of {reached.mean:.3g}."
    )

    def scaled(factor: float) -> float:
        with restored(trial.model):
            for module in group:
                scale_rows(module, torch.full((_outputs(module),), factor))
            moments = measure(trial, [stage], {path: response})[path]
        return float(moments.deviations.square().mean().sqrt())

    alone, once, twice = (scaled(factor) for factor in (0.0, 1.0, 2.0))
    if alone > 0.9 * target:
        return (
            f"{title} What reaches it past {source!r} has a deviation of {alone:.3g} by itself, as "
            "a shortcut has. Scale that down, or choose a larger target."
        )
    if abs(twice - once) < _UNMOVED * once:
        return (
            f"{title} Twice the weight leaves the deviation as it is: {between} its scale is lost, "
            "as in a norm. Put a batch norm with affine=True there, whose own weight is set, or "
            "take it out."
        )
    if _has_bias(stage.source) and abs(reached.mean - mean) > _ACCEPTED * target:
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
        f"{title} Twice the weight makes the deviation {twice / once:.3g} times as large: "
        f"{between} it is not linear. Set the weights before it yourself."
    )


def _between(trial: Trial, stage: Stage) -> str:
    """Name what is called between a source and its neurons, for messages."""
    modules = dict(named_modules(trial.model))
    names: list[str] = []
    position = trial.order.index(stage.path) if stage.path in trial.order else 0
    for path in reversed(trial.order[:position]):
        module = modules[path]
        if f"{stage.source_path}.".startswith(f"{path}."):
            break
        if not any(True for _ in module.children()) and not isinstance(module, nn.Identity):
            names.append(f"{path!r} ({type(module).__name__})")
    if not names:
        return "in what forward computes between the two,"
    return f"in {', '.join(reversed(names))}, or what forward computes between the two,"


def measure(
    trial: Trial, found: Sequence[Stage], responses: dict[str, ImpulseResponse]
) -> dict[str, Moments]:
    """Run the model from rest and return the moments of the membranes of some layers, by path."""
    names: dict[str, None] = {}
    for stage in found:
        names[join_path(stage.path, "input")] = None
        if stage.loop is not None:
            names |= dict.fromkeys(join_path(stage.loop, end) for end in ("input", "output"))
    with restored(trial.model), torch.no_grad():
        _, seen = unroll(
            trial.model, trial.x, steps=trial.steps, by=trial.by, record=[*names], from_rest=True
        )
    return {stage.path: _moments(trial, stage, responses[stage.path], seen) for stage in found}


def _moments(
    trial: Trial, stage: Stage, response: ImpulseResponse, seen: dict[str, Tensor]
) -> Moments:
    drive = _neurons_last(seen[join_path(stage.path, "input")].double(), stage.neuron)
    kernel = response.kernel[: len(drive)] / response.distance
    mask = _fitting(trial.mask, drive, stage.path)
    all_of_it = _real(_filtered(drive, kernel, mask), mask, trial.start)
    own, rate = all_of_it, 0.0
    if stage.loop is not None:
        outside = _neurons_last(seen[join_path(stage.loop, "input")].double(), stage.neuron)
        own = _real(_filtered(outside, kernel, mask), mask, trial.start)
        output = _neurons_last(seen[join_path(stage.loop, "output")], stage.neuron)
        rate = float((_real(output, mask, trial.start) != 0).double().mean())
    risen, energy = _transient(trial, kernel, len(drive), mask)
    scale = energy.rsqrt()
    size = [each.flatten(0, -2).std(0, correction=0) * scale for each in (all_of_it, own)]
    centred = (own - own.flatten(0, -2).mean(0)) * scale
    feedback = (all_of_it - own).flatten(0, -2)
    fed_back = feedback.std(0, correction=0) * scale
    covariance = (centred.flatten(0, -2) * feedback * scale).mean(0)
    ratio = kernel.sum(0) / risen if trial.start else torch.ones_like(risen)
    ratio = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    means = [each.flatten(0, -2).mean(0) * ratio for each in (all_of_it, own)]
    inputs = _real(drive, mask, trial.start).flatten(0, -2).mean(0)
    rising = kernel.cumsum(0)
    rising = torch.cat([rising, rising[-1:].expand(len(drive) - len(kernel), -1)])
    rising = (rising * inputs)[:, None, None].expand_as(drive)
    steady = (all_of_it - _real(rising, mask, trial.start)).flatten(0, -2).std(0, correction=0)
    return Moments(
        means[0], size[0], risen * ratio, means[1], size[1], fed_back, covariance, steady, rate,
        _standard_error(all_of_it, mask),
    )  # fmt: skip


def _filtered(drive: Tensor, kernel: Tensor, mask: Tensor | None) -> Tensor:
    """Convolve over time, for every sample and place, by the product of the spectra."""
    if mask is not None:
        drive = drive.masked_fill(~aligned(mask, drive), 0.0)
    length = len(drive) + len(kernel) - 1
    spectrum = torch.fft.rfft(kernel, length, dim=0)[:, None, None]
    spectra = torch.fft.rfft(drive, length, dim=0) * spectrum
    return torch.fft.irfft(spectra, length, dim=0)[: len(drive)]


def _real(values: Tensor, mask: Tensor | None, start: int) -> Tensor:
    """Return what is measured: ``[steps, B, places, neurons]``, or real steps in one row."""
    return values[start:] if mask is None else values[mask]


def _transient(
    trial: Trial, kernel: Tensor, steps: int, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the mean for a constant input of 1, and the share of the variance that has risen."""
    counts = torch.ones(steps) if mask is None else mask.sum(1)
    counts = counts.to(kernel)[trial.start :, None]
    last = max(0, steps - len(kernel))

    def risen(values: Tensor) -> Tensor:
        sums = torch.cat([values.cumsum(0), values.sum(0).expand(last, -1)])[trial.start :]
        return (sums * counts).sum(0) / counts.sum()

    squares = kernel.square()
    energy = risen(squares) / squares.sum(0) if trial.start else torch.ones_like(kernel[0])
    return risen(kernel), energy


def _standard_error(membranes: Tensor, mask: Tensor | None) -> float:
    if mask is not None or membranes.shape[1] < 2:
        return 0.0
    squares = (membranes - membranes.flatten(0, -2).mean(0)).square()
    by_sample = squares.mean((0, 2, 3))
    return float(by_sample.std() / len(by_sample) ** 0.5 / by_sample.mean().clamp(min=1e-30))


def _neurons_last(drive: Tensor, neuron: Neuron) -> Tensor:
    """Return the input ``[T, B, ...]`` as ``[T, B, places, neurons]``."""
    dim = neuron.dim if neuron.dim < 0 else neuron.dim + 1
    moved = drive.movedim(dim, -1)
    return moved.reshape(*moved.shape[:2], -1, neuron.num_neurons)


def _fitting(mask: Tensor | None, drive: Tensor, path: str) -> Tensor | None:
    """Return the mask; raise where a layer has another batch than it."""
    if mask is not None and mask.shape != drive.shape[:2]:
        raise ValueError(
            f"mask has the shape {list(mask.shape)}, and {path!r} gets {list(drive.shape[:2])} "
            "steps and samples: which of them are real is not known. Calibrate without a mask."
        )
    return None if mask is None else mask.to(drive.device)
