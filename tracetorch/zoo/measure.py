"""Measure what a network of the zoo computes: correct samples, spikes, output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tracetorch.core.checks import check_count
from tracetorch.data.ragged import Batch
from tracetorch.metrics.accuracy import correct
from tracetorch.snn.spike_functions import spike_functions
from tracetorch.snn.states import named_neurons
from tracetorch.unrolling import unroll
from tracetorch.zoo.networks import network, usual_defaults
from tracetorch.zoo.tasks import Task

BATCH = 64  # samples of which spikes are counted
_AT_ONCE = 250  # samples


@dataclass(frozen=True)
class Numbers:
    """Numbers that a network gives on test data, in float64."""

    correct: int  # samples that are classified correctly
    samples: int  # all of them
    spikes: dict[str, int]  # by path of a spiking layer, of the first samples' real steps
    output: float  # mean absolute output over those


@usual_defaults()
def sample_batch(name: str, size: int = BATCH) -> Batch:
    """Return the first test samples of a network's task, as a batch ``(x, y, mask)``.

    Args:
        name: one of :func:`names`.
        size: number of samples; at least 1, and no more than there are.

    Shape:
        ``x`` ``[T, size, ...]``, for :func:`tt.unroll`; ``y`` ``[size]``; ``mask`` ``[T, size]``.

    Raises:
        ValueError: there is no such network, or not that number of samples.
        ModuleNotFoundError: the package that brings the data is missing.

    Example:
        >>> x, y, mask = sample_batch("words-adlif", 8)
        >>> x.shape, y.shape
        (torch.Size([50, 8, 40]), torch.Size([8]))
    """
    task = network(name).task
    size, test = check_count("size", size), task.load()[1]
    if size > len(test.y):
        raise ValueError(
            f"{name!r} has {len(test.y)} test samples, size must be 1 to that: {size}."
        )
    return Batch(*(each.clone() for each in task.batch(test, slice(size))))


@torch.no_grad()
def measure(model: nn.Module, task: Task, test: Batch) -> Numbers:
    """Measure a network in float64, where rounding moves no spike across its threshold."""
    model = model.double()
    right = 0
    for index in torch.split(torch.arange(len(test.y)), _AT_ONCE):
        batch = task.batch(test, index)
        y = unroll(model, batch.x.double(), from_rest=True)
        right += int(correct(y, batch.y, by=task.by, mask=batch.mask).sum())
    first = task.batch(test, slice(BATCH))
    layers = [path for path, layer in named_neurons(model) if spike_functions(layer)]
    names = [f"{path}.output" for path in layers]
    y, seen = unroll(model, first.x.double(), from_rest=True, record=names)
    # of real steps, all of a neuron that fires several a step
    spikes = {path: int(seen[f"{path}.output"][first.mask].abs().sum()) for path in layers}
    return Numbers(right, len(test.y), spikes, float(y[first.mask].abs().mean()))
