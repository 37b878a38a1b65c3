"""Find targets over time that follow the input by some steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import named_modules
from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, Severity, finder, measured
from tracetorch.init.stages import read_step, sources
from tracetorch.ragged import filled, lengths
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.model_graph import Node

_LEAST_STEPS = 16
_LEAST = 2  # steps: a lag of one is that of a layer that spikes
_NOW = 0.5  # of the squares at the lag, at the same step: above, the lag hardly matters
_HARDLY = 0.3  # of the correlation at the lag: below, the network has nothing else to go by
_LEADS = 1.2  # of the squares at the lag, where the input follows the target
_NEAR = 0.9  # of the highest: the first lag with as much is the one of a rhythm
_CLEAR = 2.0  # of the highest square where each target stands beside another sample's input
_PIECES = 4  # of a single sequence, which are samples then
_FEATURES, _TARGETS = 64, 16  # of which the correlations are taken; the first ones


@finder
def lags(evidence: Evidence) -> Iterator[Finding]:
    """Find a target whose correlation with the input is highest some steps later."""
    inputs = evidence.inputs
    if inputs.static or inputs.steps < _LEAST_STEPS:
        return
    shape, longest = (inputs.steps, inputs.batch), cache(partial(_longest_delay, evidence))
    for target in evidence.targets:
        if target.ndim < 2 or target.shape[:2] != shape or not _is_signal(target, evidence.outputs):
            continue
        for x in pytree.tree_leaves(inputs.tensors):
            given = _varying(x, evidence.mask, _FEATURES)
            found = _lag(given, _varying(target, evidence.mask, _TARGETS))
            if found is not None and found[0] > longest():
                lag, there, now = found
                severity: Severity = "warning" if now < _HARDLY * there else "note"
                of = {"there": there, "now": now, "longest": 2 * lag}
                yield measured("target-lags", "", lag, severity, **of)
                return


def _is_signal(target: Tensor, outputs: Sequence[Tensor]) -> bool:
    """Return whether values over time are a signal, spikes or counts; no classes of each step.

    An integer at each step is a count where the network gives one number there, else a class.
    """
    if target.is_floating_point() or target.dtype == torch.bool or target.ndim > 2:
        return True
    return any(each.numel() == target.numel() for each in outputs)


def _longest_delay(evidence: Evidence) -> int:
    """Return the steps by which the input is delayed along one way through the model, at most."""
    model = evidence.model
    if not any(isinstance(module, DelayingLayer) for _, module in named_modules(model)):
        return 0
    graph = read_step(model, evidence.inputs, sources(model))
    late: dict[Node, int] = {}
    for node in graph.nodes:
        # what is of an earlier step, or came to be unseen, is as late as all before it
        before = node.inputs if node.inputs or node in graph.inputs else [*late]
        own = node.module.max_delay if isinstance(node.module, DelayingLayer) else 0
        late[node] = own + max((late[each] for each in before), default=0)
    return max(late.values())


def _varying(x: Tensor, mask: Tensor | None, most: int) -> Tensor:
    """Return features ``[T, B, F]`` of unit power, without the mean of each sequence."""
    values = filled(x.detach().double().reshape(*x.shape[:2], -1)[..., :most], mask)
    values = filled(values - values.sum(0) / lengths(values, mask), mask)
    power = values.square().sum((0, 1)).sqrt()
    return (values / power.clamp(min=1e-30))[..., power > 0]


def _lag(x: Tensor, y: Tensor) -> tuple[int, float, float] | None:
    """Return the lag of ``y`` behind ``x``, the highest correlation there, and at the same step.

    ``None`` where there is none: all pairs of features count, by the squares of their correlations.
    """
    if not x.shape[-1] or not y.shape[-1] or not bool(x.isfinite().all() and y.isfinite().all()):
        return None
    if x.shape[1] == 1:  # cut into several, side by side
        steps = len(x) // _PIECES
        x, y = (torch.cat(torch.split(v[: steps * _PIECES], steps), 1) for v in (x, y))
    correlations = _correlations(x, y)
    squares = correlations.square().sum((1, 2))
    after, before = squares[: len(squares) // 2], squares[len(squares) // 2 :]
    highest = float(after.max())
    lag = int((after >= _NEAR * highest).nonzero()[0])
    lag = lag + int(after[lag : lag + 2 * _LEAST].argmax())  # the peak beside it
    # in no order: of neighbours the phases may be related
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    one, other = x[:, order], y[:, order]
    others = [_correlations(one, other.roll(k, 1)).square().sum((1, 2)) for k in (1, 2, 3)]
    unrelated = max(float(each.max()) for each in others)
    if (
        lag < _LEAST
        or float(after[0]) > _NOW * float(after[lag])
        or float(before.max()) > _LEADS * highest
        or float(after[lag]) < _CLEAR * unrelated
    ):
        return None
    there, now = (float(correlations[at].abs().max()) for at in (lag, 0))
    return lag, there, now


def _correlations(x: Tensor, y: Tensor) -> Tensor:
    """Return those of features at the lags 0, 1, ... and ..., -2, -1 of ``y`` behind ``x``."""
    T = len(x)
    # circular over twice the length, of which half is zeros
    one, other = (torch.fft.rfft(each, 2 * T, dim=0) for each in (x, y))
    product = torch.einsum("tbf,tbg->tfg", one.conj(), other)
    correlations: Tensor = torch.fft.irfft(product, 2 * T, dim=0)
    return torch.cat([correlations[: T // 2 + 1], correlations[-(T // 2 + 1) :]])
