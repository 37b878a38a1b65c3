"""Scale weights on a batch so that membranes fluctuate below their thresholds: ``calibrate_``."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_has_values, check_module, check_unsharded
from tracetorch.core.snapshot import restored_on_error
from tracetorch.init.large_weights import report_large_weights
from tracetorch.init.membranes import Membranes, Trial
from tracetorch.init.response import response_of
from tracetorch.init.scaling import scale_all
from tracetorch.init.stages import check_moments, follow_calls
from tracetorch.ragged import check_mask, real_steps_first
from tracetorch.unrolling.inputs import Inputs, parse_inputs, tensors_by_name

_log = logging.getLogger("tracetorch")


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
    target's deviation and mean on this batch. The membrane is what the neuron makes of its input
    below the threshold: the input, convolved with the impulse response of its ``step``. What comes
    later sees the spikes that come of it. A neuron that gets no input is scaled as its layer is. A
    layer that is frozen, with ``requires_grad`` false, is scaled as well. Of an
    :class:`~tracetorch.snn.Recurrent` the connection makes a tenth of the variance, less where
    spikes are very rare, and what comes from outside the rest.

    The model runs by layer where it can, or else by step, in its current mode, training mode
    included. A warning is logged, with the reason, where weights become 15 times as large as
    independent spikes at a rate of 0.05 need, because the input hardly varies on this batch, or 3
    times, because it has too few steps for the neurons.

    Args:
        model: any module that :func:`tracetorch.unroll` runs; each neuron layer is driven by the
            linear layer, convolution, attention or batch norm with a weight that is called last
            before it, together with those whose output is added where that one alone is not enough.
            Others are left as they are.
        x: a batch, as ``unroll`` takes it: ``[T, B, ...]``.
        target: deviation of the membranes, in distances from rest to threshold; above 0.
        mean: mean of the membranes in the same unit; out of reach for a layer without a bias.
        steps: as in ``unroll``.
        mask: ``[T, B]`` booleans, true where a step is real: each sequence counts as if its padding
            were cut out, whatever that holds; ``None``: all steps are real. A norm in training sees
            zeros behind each sequence. NaN in padding is logged, for it makes gradients NaN later.

    Returns:
        What was reached, by path of the neuron layer.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; a layer gets no input, or misses its target, which
            the message names with what is in the way; or layers of neurons share what drives them,
            its weight follows from other values or is 0; or as :func:`impulse_response`. Nothing
            has been changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 50), LIF(50), nn.Linear(50, 10), LIF(10))
        >>> reached = calibrate_(net, (torch.rand(30, 8, 20) < 0.1).float())
        >>> [round(membranes.deviation, 2) for membranes in reached.values()]
        [0.5, 0.5]

    Source: the target is that of Rossbroich, Gygax and Zenke (2022); that data set the scale, layer
    by layer, is of Mishkin and Matas, "All you need is a good init", ICLR 2016.
    """
    reached, trial, length = scale_for_batch(
        model, x, target=target, mean=mean, steps=steps, mask=mask
    )
    report_large_weights(trial, length)
    return reached


def scale_for_batch(
    model: nn.Module,
    x: Any,
    *,
    target: float = 0.5,
    mean: float = 0.0,
    steps: int | None = None,
    mask: Tensor | None = None,
) -> tuple[dict[str, Membranes], Trial, int]:
    """Do what ``calibrate_`` does, without a word on the weights.

    Returns:
        What was reached, on what, and the number of its steps.
    """
    check_module(model)
    check_unsharded(model, "tt.init")
    check_has_values(model)
    target, mean = check_moments(target, mean)
    inputs = parse_inputs(x, steps, 0, True)
    if not inputs.batch:
        raise ValueError("x has no sample: its batch is 0, and there is nothing to measure.")
    if mask is not None:
        check_mask(mask, "x", torch.empty(inputs.steps, inputs.batch, device=mask.device))
        # no padding comes before real steps then
        front, real = mask, real_steps_first(mask, mask)
        if not inputs.static:
            _report_nan(inputs, mask)
            moved = inputs.map(lambda x: real_steps_first(x, front.to(x.device)))
            inputs = replace(inputs, tensors=moved)
        mask = real
    calls = follow_calls(model, inputs)
    responses = {stage.path: response_of(stage.neuron, stage.path) for stage in calls.stages}
    trial = Trial(model, inputs.tensors, steps, calls, responses, target, mean, mask)
    with restored_on_error(model.parameters()):
        reached = scale_all(trial)
    return reached, trial, inputs.steps


def _report_nan(inputs: Inputs, mask: Tensor) -> None:
    """Log that padding holds NaN or infinity, which harms gradients in training."""
    for name, x in tensors_by_name(inputs.tensors).items():
        if x.is_floating_point() and not bool(x[~mask.to(x.device)].isfinite().all()):
            _log.warning(
                "The padding of %s is not finite. calibrate_ leaves it out, but in training "
                "gradients of weights become NaN, for 0 * NaN is NaN: fill it, with "
                "x.masked_fill(~mask[..., None], 0).",
                name,
            )
            return
