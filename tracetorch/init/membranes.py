"""Measure the membranes of neuron layers on a batch: their inputs, convolved with the responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import join_path
from tracetorch.init.response import ImpulseResponse
from tracetorch.init.stages import Calls, Stage
from tracetorch.ragged import aligned
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
    highest: Tensor  # of each membrane

    @property
    def driven(self) -> Tensor:
        """True for each neuron that gets an input."""
        return self.deviations > _STILL * self.deviations.mean()

    @property
    def finite(self) -> bool:
        """Whether all are finite."""
        return bool(torch.isfinite(torch.cat([self.means, self.deviations])).all())

    @property
    def usable(self) -> bool:
        """Whether all are finite, and some neuron gets an input."""
        return self.finite and bool(self.driven.any())

    @property
    def summary(self) -> Membranes:
        """Those of the neurons that get an input."""
        return Membranes(
            float(self.means[self.driven].mean()), root_mean_square(self.deviations[self.driven])
        )


def root_mean_square(values: Tensor) -> float:
    """Return the root of the mean of the squares."""
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
        raise ValueError(
            f"mask has the shape {list(mask.shape)}, and {stage.path!r} gets "
            f"{list(drive.shape[:2])} steps and samples: which of them are real is not known. "
            "Calibrate without a mask."
        )

    def flat(values: Tensor) -> Tensor:
        """Return the real steps, in one row."""
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
        highest=whole.amax(0),
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
