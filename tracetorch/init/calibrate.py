"""Scale weights on a batch so that membranes fluctuate below their thresholds: ``calibrate_``."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_has_values, check_module, check_unsharded
from tracetorch.core.snapshot import restored, restored_on_error
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import join_path
from tracetorch.init.membranes import Membranes, Trial, measure, neurons_last
from tracetorch.init.response import EndlessResponseError, decay_names, response_of
from tracetorch.init.scaling import scale_all
from tracetorch.init.stages import check_moments, follow_calls, weight_of
from tracetorch.ragged import check_mask, filled, real_steps_first
from tracetorch.snn.relative_scale import default_rms
from tracetorch.snn.spike_functions import spike_functions
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, parse_inputs

_log = logging.getLogger("tracetorch")

_USUAL = 0.05  # the rate that fluctuation_ takes
# times what spikes at this rate need; of batches that vary it is up to 5
_LARGE = 15.0
_LARGE_AND_SHORT = 3.0  # where the sequence is the reason
_SILENT = 0.9  # of the neurons of a layer
_SHORT = 0.1  # of the power of a response, if the rest does not fit into the sequence


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
    times, because it has too few steps for the neurons; and where nine of ten neurons of a layer
    never fire, though their membranes have the target: a sine never goes far beyond its deviation.

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
            zeros behind each sequence.

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
    warn_of_scales(trial, reached, length)
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
    """Do what ``calibrate_`` does, without a word; return what was reached, on what, its steps."""
    check_module(model)
    check_unsharded(model, "tt.init")
    check_has_values(model)
    inputs = parse_inputs(x, steps, 0, True)
    trial = trial_on(model, inputs, *check_moments(target, mean), steps=steps, mask=mask)
    with restored_on_error(model.parameters()):
        reached = scale_all(trial)
    return reached, trial, inputs.steps


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
    """Follow a model on a batch; ``calibrate_`` scales it so that it has a target there.

    With ``may_leave`` a weight is left that is frozen, and a batch norm that drives several neuron
    layers, as through a shortcut, or whose neurons' response does not end.
    """
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
    for stage in calls.stages:
        try:
            responses[stage.path] = response_of(stage.neuron, stage.path)
        except EndlessResponseError:
            if not may_leave or not isinstance(stage.source, BatchNormBase):
                raise
    endless = [stage for stage in calls.stages if stage.path not in responses]
    left = [(stage, "the neurons do not forget") for stage in endless]
    left += [(stage, "it drives other neurons too") for stage in calls.left]
    if may_leave:
        for stage in [s for s in calls.stages if not weight_of(s.source).requires_grad]:
            left.append((stage, "it is frozen"))
            responses.pop(stage.path, None)
    calls = calls._replace(stages=[s for s in calls.stages if s.path in responses])
    trial = Trial(model, inputs.tensors, steps, calls, responses, target, mean, mask)
    return replace(trial, left=left)


def warn_of_scales(trial: Trial, reached: dict[str, Membranes], steps: int) -> None:
    """Log the warnings of ``calibrate_``, of what it has reached."""
    _report_large_weights(trial, steps)
    _report_silent_neurons(trial, reached)


def _report_large_weights(trial: Trial, steps: int) -> None:
    """Log a warning for each layer whose weights are far larger than its neurons need.

    Inputs that hardly vary, or a batch too short for a neuron, need such weights to reach the
    target, and on other data the membranes are then as many times too far.
    """
    for stage in trial.calls.stages:
        if isinstance(stage.source, BatchNormBase):
            continue  # its input varies by 1, whatever the batch
        response = trial.responses[stage.path]
        power = response.kernel.square()
        share = float((power[:steps].sum(0) / power.sum(0)).median())
        weight = weight_of(stage.source).detach().double()
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
                f"in {steps} steps from rest its neurons show {100 * share:.2g} % of the power of "
                "their response"
                if share < _SHORT
                else "what it is given hardly varies on this batch",
                ", longer sequences" + " or a faster decay" * bool(decay_names(stage.neuron)),
            )


def _report_silent_neurons(trial: Trial, reached: dict[str, Membranes]) -> None:
    """Log a warning for each layer that reached the target, and does not fire all the same."""
    stages = [stage for stage in trial.calls.stages if spike_functions(stage.neuron)]
    names = [join_path(stage.path, "output") for stage in stages]
    with restored(trial.model), torch.no_grad():
        options: dict[str, Any] = {"steps": trial.steps, "by": trial.calls.by, "from_rest": True}
        _, seen = unroll(trial.model, trial.x, record=names, **options)
    for stage, name in zip(stages, names, strict=True):
        spikes = filled(neurons_last(seen[name], stage.neuron), trial.mask)
        silent = ~(spikes != 0).flatten(0, -2).any(0)
        if float(silent.double().mean()) < _SILENT:
            continue
        highest = float(measure(trial, [stage])[stage.path].highest[silent].median())
        _log.warning(
            "calibrate_ gave the membranes of %r the deviation %.3g, and %d of its %d neurons "
            "never fire on this batch all the same: at its highest, half of their membranes reach "
            "%.2g of the threshold. The input is no sum of many spikes, whose peaks are several "
            "deviations high. Choose a target of %.2g or more.",
            stage.path,
            reached[stage.path].deviation,
            int(silent.sum()),
            len(silent),
            highest,
            1.1 * trial.target / max(highest, 0.1),
        )
