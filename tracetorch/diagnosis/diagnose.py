"""Diagnose why a network does not learn: ``diagnose``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import named_modules
from tracetorch.diagnosis import (
    activity,
    data,
    gradients,
    parameters,
)
from tracetorch.diagnosis.evidence import LayerEvidence, Loss, gather, norm_by_step
from tracetorch.diagnosis.finding import SEVERITIES, findings
from tracetorch.diagnosis.report import Diagnosis, LayerFigures
from tracetorch.metrics.activity import firing_shares
from tracetorch.online_learning.learner import split_batch
from tracetorch.probe.layers import call_order
from tracetorch.ragged import check_mask
from tracetorch.snn.module import zero_states
from tracetorch.unrolling.inputs import Inputs, mask_first, parse_inputs, tensors_by_name

# In the order of cause and effect, which the sort by severity keeps among equals
_CAUSES = (data, parameters, activity, gradients)


def diagnose(
    model: nn.Module,
    batch: Sequence[Any],
    loss: Loss,
    *,
    optimizer: Optimizer | None = None,
    mask: Tensor | None = None,
    stream: bool = False,
    steps: int | None = None,
    time_dim: int = 0,
    by: Literal["layer", "step"] = "layer",
) -> Diagnosis:
    """Diagnose why a model does not learn, from one forward and backward pass.

    The findings are of the data, the loss, the parameters and what an optimizer does to them,
    activity, gradients and memory; the page *My network does not learn* shows each.

    The model is run from rest, in its current mode, training mode included. Parameters, gradients,
    states, buffers, modes and the random state are restored afterwards.

    Args:
        model: any ``nn.Module`` with neuron layers.
        batch: a tuple of the input, as for ``tt.unroll``, and the other arguments of the loss, such
            as the target.
        loss: ``loss(y, *rest)``, a scalar tensor, where ``y`` is the output over time,
            ``[T, B, ...]`` or as ``time_dim`` has it, and ``rest`` is what follows the input in
            ``batch``.
        optimizer: an optimizer whose parameters and settings are to be checked.
        mask: ``[T, B]``, true where a step is real, to leave padding out of rates, reach and
            membranes, and to know where each sequence ends; the loss takes its own, by
            ``functools.partial(loss, mask=mask)`` or from ``batch``, and one that reads padding all
            the same is a finding.
        stream: whether states are carried from batch to batch on purpose.
        steps: as for ``tt.unroll``.
        time_dim: as for ``tt.unroll``, where time is in the input, and in the output that the loss
            is given: 1 for ``[B, T, ...]``, with a mask ``[B, T]`` and targets over time so then.
        by: as for ``tt.unroll``.

    Returns:
        A :class:`tt.diagnosis.Diagnosis`: print it, read its ``ok``, or iterate over its findings.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the model has no neuron layer; the batch has no sample; the loss is not a
            scalar; or as ``tt.unroll``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 32), LIF(32), nn.Linear(32, 2), Readout(2))
        >>> _ = net[0].weight.data.mul_(0.01)
        >>> _ = net[0].bias.data.fill_(0.02)
        >>> x, target = torch.rand(25, 8, 4), torch.arange(8) % 2
        >>> found = diagnose(net, (x, target), lambda y, t: nn.functional.cross_entropy(y[-1], t))
        >>> found[0].severity, found[0].name, found[0].layer
        ('error', 'dead-neurons', '1')
        >>> found[0].value, found[0].figure[:60]
        (1.0, '32 of 32 neurons never fire, in 25 steps of 8 samples. At it')
    """
    x, rest = split_batch(batch)
    if not callable(loss):
        raise TypeError(f"loss must be callable, loss(y, target), got {loss!r}.")
    _check_arguments(loss, rest)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}."
        )
    inputs = parse_inputs(x, steps, time_dim)
    if not inputs.batch:
        raise ValueError("the batch has no sample: there is nothing to diagnose.")
    mask = mask_first(mask, inputs, time_dim)
    if mask is not None:
        check_mask(mask, "the input", torch.empty(inputs.steps, inputs.batch, device="meta"))

    def value(y: Any) -> Tensor:
        place = partial(torch.movedim, source=0, destination=time_dim)
        found: Any = loss(pytree.tree_map(place, y) if time_dim else y, *rest)
        if not isinstance(found, Tensor):
            raise TypeError(f"loss must return a tensor, got {type(found).__name__}.")
        if found.numel() != 1:
            raise ValueError(
                f"loss must return one number, got a tensor of shape {list(found.shape)}. Reduce "
                "it, with .mean() say."
            )
        return found.reshape(())

    inputs, dtypes = _castable(model, inputs)
    evidence = gather(model, inputs, value, mask=mask, by=by)
    evidence.dtypes, evidence.stream, evidence.optimizer = dtypes, stream, optimizer
    found = [finding for module in _CAUSES for finding in findings(module, evidence)]
    return Diagnosis(
        findings=tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))),
        layers=tuple(_figures(layer) for layer in evidence.layers),
        loss=float(evidence.loss),
        steps=inputs.steps,
        batch=inputs.batch,
    )


def _check_arguments(loss: Loss, rest: Sequence[Any]) -> None:
    """Raise where the loss does not take what is in the batch, such as the mask of ``collate``."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # of C++
        return
    try:
        signature.bind(None, *rest)
    except TypeError as error:
        mask = isinstance(rest[-1], Tensor) and rest[-1].dtype == torch.bool if rest else False
        names = ", ".join(p.name for p in signature.parameters.values() if p.kind != p.KEYWORD_ONLY)
        raise TypeError(
            f"loss takes ({names}), and is given the output and the {len(rest)} that stand behind "
            f"the input in the batch: {error}."
            + " A mask goes by name: tt.diagnose(model, (x, target), functools.partial(loss, "
            "mask=mask), mask=mask)." * mask
        ) from None


def _castable(model: nn.Module, inputs: Inputs) -> tuple[Inputs, dict[str, torch.dtype]]:
    """Return inputs that the model runs on, and dtypes that were cast."""
    dtype = next((p.dtype for _, m in named_modules(model) for p in m.parameters(False)), None)
    named = tensors_by_name(inputs.tensors)
    dtypes = {name: each.dtype for name, each in named.items() if each.dtype != dtype}
    if dtype is None or not dtype.is_floating_point or not dtypes:
        return inputs, {}

    def refusal(inputs: Inputs) -> Exception | None:
        try:
            with restored(model), torch.inference_mode(False), torch.no_grad():
                zero_states(model)
                call_order(model, inputs)
        except (RuntimeError, TypeError, ValueError) as error:
            return error
        return None

    if refusal(inputs) is None:
        return inputs, {}
    cast = replace(inputs, tensors=inputs.map(lambda each: each.to(dtype)))
    if refusal(cast) is not None:
        return inputs, {}  # for another reason, which the run says
    return cast, dtypes


def _figures(layer: LayerEvidence) -> LayerFigures:
    rate, dead, saturated = (None,) * 3 if layer.counts is None else firing_shares(*layer.counts)
    measured = (layer.reach, layer.gradient_norm, norm_by_step(layer.gradient), layer.halflives)
    return LayerFigures(layer.path, type(layer.module).__name__, rate, dead, saturated, *measured)
