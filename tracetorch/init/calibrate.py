"""Scale weights on a batch so that membranes fluctuate below their thresholds: ``calibrate_``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module
from tracetorch.core.snapshot import restored, restored_on_error
from tracetorch.core.walk import join_path
from tracetorch.init.driven import driven_modules
from tracetorch.init.response import ImpulseResponse, response_of
from tracetorch.init.stages import Stage, check_moments, scale_rows, sources, stages, weight_of
from tracetorch.probe.layers import call_order, neuron_layers
from tracetorch.snn.neuron import Neuron
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, parse_inputs

_ROUNDS = 8
_AIMED = 0.01  # difference from the target, relative to it, at which no further round follows
_ACCEPTED = 0.05  # and after the last one: spikes that are fed back move by whole spikes
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


def calibrate_(
    model: nn.Module,
    x: Any,
    *,
    target: float = 0.5,
    mean: float = 0.0,
    steps: int | None = None,
) -> dict[str, Membranes]:
    """Scale the weights before neurons, layer by layer, so that membranes fluctuate on a batch.

    Of every neuron the weights are multiplied, and its bias is moved, until its membrane has the
    target's deviation and mean on this batch. The membrane is what the neuron makes of its input
    below the threshold: the input, convolved with the impulse response of its ``step``. What comes
    later sees the spikes that come of it. A neuron that gets no input is scaled as its layer is. A
    layer that is frozen, with ``requires_grad`` false, is scaled as well.

    Args:
        model: any module that runs by layer in :func:`tracetorch.unroll`; each neuron layer is
            driven by the linear layer, convolution or batch norm that is called last before it, and
            a recurrent connection is scaled with it. Others are left as they are.
        x: a batch, as ``unroll`` takes it: ``[T, B, ...]``.
        target: deviation of the membranes, in distances from rest to threshold; above 0.
        mean: mean of the membranes in the same unit; out of reach for a layer without a bias.
        steps: as in ``unroll``.

    Returns:
        What was reached, by path of the neuron layer.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; a layer gets no input, or its deviation does not
            reach the target; or layers of neurons share what drives them, its weight follows from
            other values or is 0; or as :func:`impulse_response`. Nothing has been changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 50), LIF(50), nn.Linear(50, 10), LIF(10))
        >>> reached = calibrate_(net, (torch.rand(30, 8, 20) < 0.1).float())
        >>> [round(membranes.deviation, 2) for membranes in reached.values()]
        [0.5, 0.5]

    Source: the target is that of Rossbroich, Gygax and Zenke (2022); that data set the scale, layer
    by layer, is of Mishkin and Matas, "All you need is a good init", ICLR 2016.
    """
    check_module(model)
    target, mean = check_moments(target, mean)
    inputs = parse_inputs(x, steps, 0, True)
    found = stages(model, _order(model, inputs))
    scaled = [
        parameter
        for stage in found
        for module in (stage.source, stage.connection)
        if module is not None
        for parameter in module.parameters()
    ]
    with restored_on_error(scaled):
        return {stage.path: _calibrate(model, x, steps, stage, target, mean) for stage in found}


def _order(model: nn.Module, inputs: Inputs) -> list[str]:
    """Return the order of the calls, with what drives a neuron layer directly before it."""
    order = call_order(model, inputs, "layer")
    neurons = neuron_layers(model)
    last: dict[str, str] = {}  # the neurons that a source drives, by its path
    for source, paths in driven_modules(model, sources(model), inputs).items():
        driven = [path for path in paths if path in neurons]
        if len(driven) > 1:
            raise ValueError(
                f"{source!r} drives {', '.join(map(repr, driven))}: one scale cannot fit them all. "
                "Give each neuron layer a layer with weights of its own."
            )
        if driven:
            last[source] = driven[0]
    arranged: list[str] = []
    for path in order:
        if path not in last:
            arranged += [source for source in order if last.get(source) == path]
            arranged.append(path)
    return arranged


def _calibrate(
    model: nn.Module, x: Any, steps: int | None, stage: Stage, target: float, mean: float
) -> Membranes:
    """Scale one layer; several rounds, for what is between may not be linear."""
    response = response_of(stage.neuron, stage.path)
    shift = stage.source.bias if isinstance(stage.source.bias, Tensor) else None
    for number in range(_ROUNDS + 1):
        means, deviations, gain = _measure(model, x, steps, stage, response)
        if not bool(torch.isfinite(torch.cat([means, deviations])).all()):
            raise ValueError(
                f"{stage.path!r} gets an input on this batch that is not finite: x, or a weight "
                "before it, is infinite or NaN."
            )
        driven = deviations > _STILL * deviations.mean()
        membranes = Membranes(
            float(means[driven].mean()), float(deviations[driven].square().mean().sqrt())
        )
        if not bool(weight_of(stage.source).any()):
            raise ValueError(
                f"the weight of {stage.source_path!r}, before {stage.path!r}, is 0, as after "
                "identity_: it has no scale. Draw it first, or calibrate before identity_."
            )
        if not bool(driven.any()):
            raise ValueError(
                f"{stage.path!r} gets the same input at every step of every sample, or none: the "
                "layers before it do not spike on this batch. Give a batch with input events."
            )
        moved = 0.0 if shift is None else float((means - mean)[driven].abs().mean())
        error = max(abs(membranes.deviation - target), moved) / target
        if error <= (_AIMED if number < _ROUNDS else _ACCEPTED):
            return membranes
        if number == _ROUNDS:
            break
        usual = target / deviations[driven].median()
        factors = torch.where(driven, target / deviations, usual)
        for module in (stage.source, stage.connection):
            if module is not None:
                scale_rows(module, factors)
        if shift is not None:
            with torch.no_grad():
                shift.add_(((mean - factors * means) / gain).to(shift))
    raise ValueError(
        f"{stage.path!r} does not reach a deviation of {target} by scaling {stage.source_path!r}: "
        f"it is at {membranes.deviation:.3g} and a mean of {membranes.mean:.3g} after {_ROUNDS} "
        "rounds. Something between the two does not pass the scale on."
    )


def _measure(
    model: nn.Module, x: Any, steps: int | None, stage: Stage, response: ImpulseResponse
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and deviation of each membrane, and the mean for a constant input of 1."""
    name = join_path(stage.path, "input")
    with restored(model), torch.no_grad():
        _, seen = unroll(model, x, steps=steps, record=name, from_rest=True)
        drive = _neurons_last(seen[name].double(), stage.neuron)
    kernel = response.kernel[: len(drive)] / response.distance
    # a convolution over time, of every sample and place, by the product of the spectra
    length = len(drive) + len(kernel) - 1
    spectrum = torch.fft.rfft(kernel, length, dim=0)[:, None]
    membranes = torch.fft.irfft(torch.fft.rfft(drive, length, dim=0) * spectrum, length, dim=0)
    flat = membranes[: len(drive)].flatten(0, 1)
    last = len(drive) - len(kernel)
    risen = torch.cat([kernel.cumsum(0), kernel.sum(0).expand(max(0, last), -1)])
    return flat.mean(0), flat.std(0, correction=0), risen.mean(0)


def _neurons_last(drive: Tensor, neuron: Neuron) -> Tensor:
    """Return the input ``[T, B, ...]`` as ``[T, samples and places, neurons]``."""
    dim = neuron.dim if neuron.dim < 0 else neuron.dim + 1
    moved = drive.movedim(dim, -1)
    return moved.reshape(len(drive), -1, neuron.num_neurons)
