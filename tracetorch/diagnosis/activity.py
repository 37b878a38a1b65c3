"""Neurons that say nothing, say the same always, or cannot be told by how much they missed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tracetorch.diagnosis.evidence import Evidence, LayerEvidence
from tracetorch.diagnosis.finding import Finding
from tracetorch.metrics.activity import firings
from tracetorch.ragged import filled
from tracetorch.snn.leaky_integrator import LeakyIntegrator

SATURATED = 0.9  # of the steps
_NEARLY_ALL = 0.9  # of the neurons: a warning; all of them: an error
_MOST = 0.5
_RARE = 0.01  # of the membranes
_FEW_STEPS = 3  # with fewer a neuron fires always, or never, by chance


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Dead and saturated neurons, and membranes out of the surrogate's reach."""
    for path in evidence.idle:
        yield Finding(
            "warning",
            "layer-not-called",
            path,
            0.0,
            "The layer was not called at the first step.",
            "It takes no part in what the model computes, and is not trained.",
            "Call it in forward, or take it out of the model.",
        )
    for seen in evidence.layers:
        if not seen.fires or not torch.isfinite(seen.input).all():
            continue
        rates = neuron_rates(seen, evidence.mask)
        yield from _dead(evidence, seen, rates)
        if evidence.given.steps >= _FEW_STEPS:
            yield from _saturated(seen, rates)
        yield from _out_of_reach(seen, evidence.mask)


def neuron_rates(seen: LayerEvidence, mask: Tensor | None) -> Tensor:
    """Firing rate of every neuron, ``[N]``, over the steps that are real."""
    fired, chances = firings(seen.output, dim=seen.layer.dim, mask=mask)
    return fired / chances


def reach(seen: LayerEvidence, mask: Tensor | None) -> float | None:
    """Share of membranes within the surrogate's reach, over the steps that are real."""
    if seen.approach is None:
        return None
    reached = seen.approach.reached
    return float((reached if mask is None else reached[mask]).double().mean())


def _dead(evidence: Evidence, seen: LayerEvidence, rates: Tensor) -> Iterator[Finding]:
    dead = rates == 0
    share = float(dead.double().mean())
    if share < _MOST:
        return
    steps, batch = evidence.given.steps, evidence.given.batch
    told, advice = _how_far(seen, dead, evidence.mask)
    all_of_them = share == 1
    yield Finding(
        "error" if all_of_them else "warning" if share >= _NEARLY_ALL else "note",
        "dead-neurons",
        seen.path,
        share,
        f"{int(dead.sum())} of {len(rates)} neurons never fire, in {steps} steps of {batch} "
        f"samples.{told}",
        "Nothing passes this layer forward."
        if all_of_them
        else "They add nothing to the output, and the weights that lead away from them get no "
        "gradient.",
        f"{advice} Or lower its threshold, or begin with a slower decay (beta nearer to 1), which "
        "adds up more steps. A batch norm before the layer keeps the drive where it should be.",
    )


def _how_far(seen: LayerEvidence, dead: Tensor, mask: Tensor | None) -> tuple[str, str]:
    """How near the dead neurons came, and by how much their drive should grow."""
    peak = _peaks(seen, mask)
    usual = "Scale up the weights before it, or its input."
    if peak is None:
        return "", usual
    median = float(peak[dead].median())
    if median <= 0:
        return (
            " The membranes of most of them never rise above zero.",
            "Its drive is negative or zero: give the layer before it a bias, or inputs of both "
            "signs.",
        )
    told = f" At its highest, half of their membranes reach {100 * median:.3g} % of the threshold."
    return told, f"Scale up the weights before it, or its input, by about {1.5 / median:.2g}."


def _peaks(seen: LayerEvidence, mask: Tensor | None) -> Tensor | None:
    """How near each neuron came in real steps to a threshold of its, 1 being there.

    Upwards or, where it fires downwards too, in that direction. Of built-in layers alone.
    """
    layer, near = seen.layer, seen.approach
    if near is None or not isinstance(layer, LeakyIntegrator):
        return None
    at = layer.dim if layer.dim < 0 else layer.dim + 1
    peaks: list[Tensor] = []
    for name, threshold in (
        ("pos_spike", layer.pos_threshold),
        ("neg_spike", layer.neg_threshold),
    ):
        if threshold is None or name not in near.above:
            continue
        above = filled(near.above[name], mask, -torch.inf)
        highest = above.movedim(at, -1).reshape(-1, layer.num_neurons).amax(0)
        peaks.append(1 + highest / threshold.detach().to(highest).abs())
    return torch.stack(peaks).amax(0) if peaks else None


def _saturated(seen: LayerEvidence, rates: Tensor) -> Iterator[Finding]:
    often = rates >= SATURATED
    share = float(often.double().mean())
    if share < _MOST:
        return
    yield Finding(
        "error" if share == 1 else "warning",
        "saturated-neurons",
        seen.path,
        share,
        f"{int(often.sum())} of {len(rates)} neurons fire at {100 * SATURATED:.0f} % of the steps "
        f"or more; the layer's mean rate is {100 * float(rates.mean()):.3g} %.",
        "A neuron that fires always tells no more than one that never does.",
        "Scale down the weights before it, or its input; raise its threshold; begin with a faster "
        "decay (beta nearer to 0). tt.loss.rate_bounds keeps rates in a range while it learns.",
    )


def _out_of_reach(seen: LayerEvidence, mask: Tensor | None) -> Iterator[Finding]:
    near, share = seen.approach, reach(seen, mask)
    if near is None or share is None or share >= _RARE:
        return
    heard = (u if mask is None else u[mask] for u in near.above.values())
    distance = min(float(u.abs().median()) for u in heard)
    surrogates = sorted({repr(getattr(seen.layer, name)) for name in near.above})
    yield Finding(
        "error" if share == 0 else "warning",
        "out-of-reach",
        seen.path,
        share,
        f"{100 * share:.3g} % of the membranes are where the derivative of "
        f"{' and '.join(surrogates)} is at least a tenth of its peak; their median distance to the "
        f"threshold is {distance:.3g}.",
        "Elsewhere the surrogate tells a neuron next to nothing of how it should change: hardly "
        "any gradient comes through this layer.",
        "Use a wider surrogate (atan_surrogate(2.0), or a smaller slope or larger width), or scale "
        "the drive so that membranes come near the threshold.",
    )
