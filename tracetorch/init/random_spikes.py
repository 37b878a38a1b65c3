"""Make random spikes in the shape that one step of a model takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import named_modules
from tracetorch.fuse import backend
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling import unroll

_NORMED: dict[type, int] = {nn.BatchNorm2d: -3, nn.BatchNorm3d: -4}  # the dimension of the channels
_PLACES = (32, 28, 16, 8, 64, 34, 48, 96, 128, 224, *range(1, 64))  # common ones first
_TRIED = 3  # samples, which no other dimension is likely to be
_SAMPLES = 64
_STEPS = 500
_VALUES = 2_000_000  # of all neurons, steps and samples together
_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError)


def find_shape(model: nn.Module, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of one sample for a model: the one given, or a guess by its layers."""
    if shape is not None and (not isinstance(shape, Sequence) or isinstance(shape, str)):
        raise TypeError(f"shape must be a tuple of integers, got {shape!r}.")
    few = _shapes(model)[: 4 * len(_PLACES)]
    tokens = [(n, *each) for each in few[:1] if len(each) == 1 for n in _PLACES]
    given = None if shape is None else [tuple(check_count("shape", size) for size in shape)]
    failure: Exception | None = None
    for each in given or (*few, *tokens):
        try:
            with restored(model, training=False), torch.no_grad(), backend("eager"):
                unroll(model, zeros_like_input(model, each), by="step", from_rest=True)
            return each
        except _FAILURES as error:
            failure = error
    tried = "the shapes that its layers show" if shape is None else f"one input of {[*shape]}"
    raise ValueError(
        f"{type(model).__name__} does not run on {tried}, the batch in front ({failure}). "
        "fluctuation_ takes shape=, that of one sample at one step; calibrate_ takes a batch."
    ) from failure


def zeros_like_input(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return one step of a few samples."""
    return _like(model, torch.zeros(1, _TRIED, *shape))


def _like(model: nn.Module, x: Tensor) -> Tensor:
    """Convert to the dtype and the device of a model's first parameter."""
    return x.to(next((p for p in model.parameters() if p.is_floating_point()), x))


def random_spikes(model: nn.Module, shape: tuple[int, ...], rate: float) -> Tensor:
    """Return independent spikes ``[T, B, *shape]``, as many as the inputs of all neurons allow."""
    with restored(model, training=False), torch.no_grad(), backend("eager"):
        x = zeros_like_input(model, shape)
        _, seen = unroll(model, x, by="step", record="input", from_rest=True)
    values = max(1, sum(each[0, 0].numel() for each in seen.values()))
    steps = min(_STEPS, max(64, _VALUES // (2 * values)))
    samples = min(_SAMPLES, max(2, _VALUES // (steps * values)))
    generator = torch.Generator().manual_seed(0)
    spikes = torch.rand(steps, samples, *shape, generator=generator) < rate
    return _like(model, spikes)


def _shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Return shapes of one sample that layers take, the first layer's in front."""
    shapes: dict[tuple[int, ...], None] = {}
    for _, module in named_modules(model):
        if isinstance(module, nn.Linear):
            size, dim = module.in_features, -1
        elif isinstance(module, SequenceLayer):
            size, dim = module.num_neurons, module.dim
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            size, dim = module.in_channels, 1 - module.weight.ndim
        elif isinstance(module, BatchNormBase):
            size, dim = module.num_features, _NORMED.get(type(module), -1)
        else:
            continue
        front, behind = max(0, dim - 1), max(0, -1 - dim)
        shapes |= dict.fromkeys((*[n] * front, size, *[n] * behind) for n in _PLACES)
    return list(shapes)
