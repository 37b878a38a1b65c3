"""Bring membranes to a level below their thresholds: on a batch, or drawn, on random spikes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import (
    check_count,
    check_finite,
    check_has_values,
    check_module,
    check_number,
    check_positive,
    check_unsharded,
)
from tracetorch.core.snapshot import restored, restored_on_error
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import named_modules
from tracetorch.fuse import backend
from tracetorch.init.membranes import Membranes, Trial, scale_all
from tracetorch.init.response import EndlessResponseError, decay_names, response_of
from tracetorch.init.stages import Stage, follow_calls
from tracetorch.ragged import check_mask, real_steps_first
from tracetorch.snn.connectivity import connectivity, raw_weight
from tracetorch.snn.param_groups import default_rms
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.sparse_linear import SparseLinear
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, parse_inputs

_log = logging.getLogger("tracetorch")

_USUAL = 0.05  # the rate that fluctuation_ takes
_LARGE = 15.0  # times what such spikes need; of batches that vary it is up to 5
_LARGE_AND_SHORT = 3.0  # where the sequence is the reason
_SHORT = 0.1  # of the power of a response, if the rest does not fit into the sequence
_NORMED: dict[type, int] = {nn.BatchNorm2d: -3, nn.BatchNorm3d: -4}  # the dimension of the channels
_PLACES = (32, 28, 16, 8, 64, 34, 48, 96, 128, 224, *range(1, 64))  # common ones first
_TRIED = 3  # samples, which no other dimension is likely to be
_SAMPLES = 64
_STEPS = 500
_VALUES = 2_000_000  # of all neurons, steps and samples together
_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError)


def calibrate_(
    model: nn.Module,
    x: Any,
    *,
    target: float = 0.5,
    mean: float = 0.0,
    steps: int | None = None,
    mask: Tensor | None = None,
) -> dict[str, Membranes]:
    """Scale the weights before neurons, layer by layer, so that membranes fluctuate on a batch.

    Of every neuron the weights are multiplied, and its bias is moved, until its membrane has the
    target's deviation and mean on this batch: the input, convolved with the impulse response of its
    ``step``. What comes later sees the spikes that come of it. A neuron that gets no input is
    scaled as its layer is, a frozen layer as well. Of a :class:`~tracetorch.snn.Recurrent` the
    connection makes a tenth of the variance, less where spikes are very rare.

    The model runs by layer where it can, in its current mode. A warning is logged where weights
    become 15 times as large as independent spikes at a rate of 0.05 need, because the input hardly
    varies on this batch, or 3 times, because it has too few steps for the neurons.

    Args:
        model: any module that :func:`tracetorch.unroll` runs; a neuron layer is driven by the
            linear layer, convolution, attention or batch norm that is called last before it, and
            those whose output is added where it alone is not enough. Others stay as they are.
        x: a batch, as ``unroll`` takes it: ``[T, B, ...]``.
        target: deviation of the membranes, in distances from rest to threshold; above 0.
        mean: mean of the membranes in the same unit; out of reach for a layer without a bias.
        steps: as in ``unroll``.
        mask: ``[T, B]`` booleans, true where a step is real: padding counts as if it were cut out;
            ``None``: all are. A norm in training sees zeros behind each sequence.

    Returns:
        What was reached, by path of the neuron layer.

    Raises:
        TypeError, ValueError: an argument is of another type or out of range; a layer gets no
            input, or misses its target, which the message names with what is in the way; or layers
            of neurons share what drives them, its weight follows from other values or is 0; or as
            :func:`impulse_response`. Nothing has been changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 50), LIF(50), nn.Linear(50, 10), LIF(10))
        >>> reached = calibrate_(net, (torch.rand(30, 8, 20) < 0.1).float())
        >>> [round(membranes.deviation, 2) for membranes in reached.values()]
        [0.5, 0.5]

    Source: the target is that of Rossbroich, Gygax and Zenke (2022); that data set the scale, layer
    by layer, is of Mishkin and Matas, "All you need is a good init", ICLR 2016.
    """
    return scale_for_batch(model, x, target, mean, steps=steps, mask=mask, warn=True)


def scale_for_batch(
    model: nn.Module,
    x: Any,
    target: float = 0.5,
    mean: float = 0.0,
    *,
    steps: int | None = None,
    mask: Tensor | None = None,
    warn: bool = False,
) -> dict[str, Membranes]:
    """Do what ``calibrate_`` does, with or without a word."""
    check_module(model)
    check_unsharded(model, "tt.init")
    check_has_values(model)
    inputs = parse_inputs(x, steps)
    target, mean = check_positive("target", target), check_finite("mean", mean)
    trial = trial_on(model, inputs, target, mean, steps=steps, mask=mask)
    with restored_on_error(model.parameters()):
        reached = scale_all(trial)
    if warn:
        warn_of_large_weights(trial, inputs.steps)
    return reached


def trial_on(
    model: nn.Module,
    inputs: Inputs,
    target: float,
    mean: float,
    *,
    steps: int | None,
    mask: Tensor | None,
    may_leave: bool = False,
) -> Trial:
    """Follow a model on a batch; what is ``left`` with ``may_leave`` is named with the reason."""
    if not inputs.batch:
        raise ValueError("x has no sample: its batch is 0, and there is nothing to measure.")
    if mask is not None:
        check_mask(mask, "x", torch.empty(inputs.steps, inputs.batch, device="meta"))
        # no padding comes before real steps then
        front, real = mask, real_steps_first(mask, mask)
        if not inputs.static:
            moved = inputs.map(lambda x: real_steps_first(x, front.to(x.device)))
            inputs = replace(inputs, tensors=moved)
        mask = real
    calls = follow_calls(model, inputs, norms_as_they_are=may_leave)
    responses = {}
    left = [(stage, "it drives other neurons too") for stage in calls.left]
    for stage in calls.stages:
        if may_leave and not raw_weight(stage.source).requires_grad:
            left.append((stage, "it is frozen"))
            continue
        try:
            responses[stage.path] = response_of(stage.neuron, stage.path)
        except EndlessResponseError:
            if not may_leave or not isinstance(stage.source, BatchNormBase):
                raise
            left.append((stage, "the neurons do not forget"))
    calls = calls._replace(stages=[s for s in calls.stages if s.path in responses])
    return Trial(model, inputs.tensors, steps, calls, responses, target, mean, mask, left)


def warn_of_large_weights(trial: Trial, steps: int) -> None:
    """Log a warning for each layer whose weights are far larger than its neurons need."""
    for stage in trial.calls.stages:
        if isinstance(stage.source, BatchNormBase):
            continue  # its input varies by 1, whatever the batch
        response = trial.responses[stage.path]
        power = response.kernel.square()
        share = float((power[:steps].sum(0) / power.sum(0)).median())
        short = f"in {steps} steps its neurons show {100 * share:.2g} % of their response's power"
        weight = raw_weight(stage.source).detach().double()
        # by default the squares of a neuron's weights add up to 1/3
        size = float(weight.square().mean().sqrt()) / default_rms(stage.source, "weight", weight)
        factor = size * float(response.deviation(_USUAL).median()) / (trial.target * math.sqrt(3))
        if factor >= (_LARGE_AND_SHORT if share < _SHORT else _LARGE):
            _log.warning(
                "calibrate_ made the weight of %r, before %r, %.3g times as large as independent "
                "spikes at a rate of %g need: %s. On other data its membranes go far beyond the "
                "target. Give more samples%s, or scale the input to a deviation of about 1.",
                stage.source_path,
                stage.path,
                factor,
                _USUAL,
                short if share < _SHORT else "what it is given hardly varies on this batch",
                ", longer sequences" + " or a faster decay" * bool(decay_names(stage.neuron)),
            )


def fluctuation_(
    model: nn.Module,
    *,
    rate: float = 0.05,
    target: float = 0.5,
    mean: float = 0.0,
    generator: torch.Generator | None = None,
    shape: Sequence[int] | None = None,
) -> None:
    """Draw all weights before neurons so that their membranes fluctuate below the threshold.

    The weights of a neuron are normal and add up to 0, and its bias is 0; the model is run on
    random spikes of this rate, and :func:`calibrate_` scales weights and moves biases there. So it
    holds behind delays, pooling, a factor or a shortcut too, and for the rates that hidden layers
    have; for a linear layer in front of the neurons it is::

        deviation^2 = sum_j w_j^2 * rate (1 - rate) * sum_s kernel(s)^2 = (target * distance)^2

    with the kernel the membrane's impulse response. In an :class:`~tracetorch.snn.Recurrent` a
    tenth of the variance comes from the connection. A batch norm before a neuron gets its weight
    and bias instead. Of a layer of :func:`tt.snn.connect` the connections that are there are drawn,
    of their signs: excitation and inhibition of a neuron balance, and where all its inputs have one
    sign, its bias makes up for their mean. Frozen layers are drawn too. No data are needed.

    Args:
        model: any module; each neuron layer is driven by the linear layer, convolution, attention
            or batch norm that is called last before it. Others are left as they are.
        rate: share of the model's inputs that spike in a step, in (0, 1).
        target: deviation of the membranes, in distances from rest to threshold; above 0.
        mean: mean of the membranes in the same unit; other than 0 only behind a bias.
        generator: source of the random weights; PyTorch's own where it is ``None``.
        shape: of one sample at one step, ``(2, 34, 34)`` say; ``None``: guessed from the layers.

    Raises:
        TypeError, ValueError: an argument is of another type or out of range, the model runs on no
            shape that was tried, a neuron has no bias for a mean or inputs of one sign, or as
            :func:`calibrate_`. Nothing has been changed then.

    Example:
        >>> from tracetorch.init import impulse_response
        >>> net = nn.Sequential(nn.Linear(100, 50), LIF(50), nn.Linear(50, 10), Readout(10))
        >>> fluctuation_(net, rate=0.02)
        >>> deviations = net[0].weight.norm(dim=1) * impulse_response(net[1]).deviation(0.02)
        >>> round(deviations.mean().item(), 1)
        0.5

    Source: Rossbroich, Gygax and Zenke, Neuromorphic Computing and Engineering 2, 044016 (2022),
    in discrete time.
    """
    check_module(model)
    check_unsharded(model, "tt.init")
    check_has_values(model)
    rate = check_number("rate", rate)
    if not 0 < rate < 1:
        raise ValueError(f"rate must be in (0, 1), the share of inputs that spike, got {rate}.")
    check_positive("target", target)
    mean = check_finite("mean", mean)
    found = find_shape(model, shape)
    calls = follow_calls(model, parse_inputs(zeros_like_input(model, found)))
    with restored_on_error(model.parameters()):
        for stage in calls.stages:
            _draw(stage, generator, mean)
        calibrate_(model, _random_spikes(model, found, rate), target=target, mean=mean)


@torch.no_grad()
def _draw(stage: Stage, generator: torch.Generator | None, mean: float) -> None:
    """Draw what drives one layer of neurons, of any size."""
    biased = isinstance(stage.source.bias, Tensor)
    alone = False  # whether all inputs of some neuron have one sign
    for module in [m for m in (stage.source, stage.connection) if m is not None]:
        weight = raw_weight(module)
        if isinstance(module, BatchNormBase):
            weight.fill_(1.0)
        elif isinstance(module, SparseLinear):
            raise ValueError(
                f"{stage.path!r} is driven by a SparseLinear, whose weights are a list of edges: "
                "fluctuation_ draws matrices. Use calibrate_ with a batch, which scales what is "
                "there."
            )
        else:
            rows, rule = _balanced_rows(module, generator), connectivity(module)
            if rule is not None and rule.signs is not None:
                alone |= bool((rows.sum(1).abs() > 0.5 * rows.abs().sum(1)).any())
            weight.copy_(rows.view_as(weight))
        if isinstance(module.bias, Tensor):
            module.bias.zero_()
    if (mean or alone) and not biased:
        raise ValueError(
            f"{stage.path!r} has no bias before it, for a mean of {mean}, or neurons whose inputs "
            f"all have one sign. Give {stage.source_path!r} a bias."
        )


def _balanced_rows(module: nn.Module, generator: torch.Generator | None) -> Tensor:
    """Draw rows of weights, one for each output, whose squares add up to 1 and which to 0."""
    weight = raw_weight(module)
    rows: Tensor = torch.empty_like(weight).normal_(generator=generator).double().flatten(1)
    rule = connectivity(module)
    if rule is not None and rule.mask is not None:
        rows = rows * rule.mask.flatten(1)
    if rule is not None and rule.signs is not None:
        rows = rows.abs() * rule.signs.expand_as(weight).flatten(1)
        up, down = rows.clamp(min=0), rows.clamp(max=0)
        share = (up.sum(1, keepdim=True) / -down.sum(1, keepdim=True)).nan_to_num(1.0, 1.0)
        rows = up + down * torch.where(share > 0, share, 1.0)
    else:
        count = (rows != 0).sum(1, keepdim=True)
        centre = rows.sum(1, keepdim=True) / count.clamp(min=1)
        rows = torch.where((rows != 0) & (count > 1), rows - centre, rows)
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp(min=1e-30)


def find_shape(model: nn.Module, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of one sample for a model: the one given, or a guess by its layers."""
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
    x = torch.zeros(1, _TRIED, *shape)
    return x.to(next((p for p in model.parameters() if p.is_floating_point()), x))


def _random_spikes(model: nn.Module, shape: tuple[int, ...], rate: float) -> Tensor:
    """Return independent spikes ``[T, B, *shape]``, as many as the inputs of all neurons allow."""
    with restored(model, training=False), torch.no_grad(), backend("eager"):
        x = zeros_like_input(model, shape)
        _, seen = unroll(model, x, by="step", record="input", from_rest=True)
    values = max(1, sum(each[0, 0].numel() for each in seen.values()))
    steps = min(_STEPS, max(64, _VALUES // (2 * values)))
    samples = min(_SAMPLES, max(2, _VALUES // (steps * values)))
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(steps, samples, *shape, generator=generator) < rate).to(x)


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
