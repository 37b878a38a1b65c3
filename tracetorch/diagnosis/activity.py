"""Find dead and saturated neurons, and membranes beyond the reach of the surrogate."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tracetorch.diagnosis.evidence import Evidence, LayerEvidence
from tracetorch.diagnosis.finding import Finding, measured
from tracetorch.metrics.activity import SATURATED, count_spikes
from tracetorch.ragged import filled
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.spike_functions import spike_functions

_NEARLY_ALL = 0.9  # of the neurons: a warning; all of them: an error
_MOST = 0.5  # of the neurons: a note
_MANY = 0.25  # of the neurons dead, and as many saturated: a warning
_RARE = 0.01  # of the membranes
_FEW_STEPS = 3  # with fewer, any neuron may fire at every step
_FEW_NEURONS = 8  # with fewer, as of classes, one at each end may be the answer to the batch


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Find uncalled layers, dead and saturated neurons, both, and membranes out of reach."""
    for path in evidence.uncalled:
        yield measured("warning", "layer-not-called", path, 0.0)(
            "The layer was not called at the first step.",
            "It takes no part in what the model computes, and is not trained.",
            "Call it in forward, or take it out of the model.",
        )
    for layer in evidence.layers:
        # Where the input is not finite, that is the finding; the activity follows from it.
        if not layer.fires or not torch.isfinite(layer.input).all():
            continue
        fired, total = spike_counts(layer, evidence.mask)
        rates = fired / total
        yield from _dead(evidence, layer, rates)
        if evidence.inputs.steps >= _FEW_STEPS:
            yield from _saturated(evidence, layer, rates)
            yield from _dead_and_saturated(evidence, layer, rates)
        yield from _out_of_reach(evidence, layer)


def spike_counts(layer: LayerEvidence, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the spikes of every neuron, and the real steps at which it could fire, ``[N]``."""
    return count_spikes(layer.output, dim=layer.module.dim, mask=mask)


def reach(layer: LayerEvidence, mask: Tensor | None) -> float | None:
    """Return the share of membranes within the surrogate's reach, over the real steps."""
    if layer.spike_inputs is None:
        return None
    in_reach = layer.spike_inputs.in_reach
    return float((in_reach if mask is None else in_reach[mask]).double().mean())


def _dead(evidence: Evidence, layer: LayerEvidence, rates: Tensor) -> Iterator[Finding]:
    dead = rates == 0
    share = float(dead.double().mean())
    if share < _MOST:
        return
    steps, batch = evidence.inputs.steps, evidence.inputs.batch
    distance, advice = _distance_of_dead(layer, dead, evidence.mask)
    # A few dead neurons are common; a layer of them blocks everything behind it.
    all_of_them = share == 1
    yield measured(
        "error" if all_of_them else "warning" if share >= _NEARLY_ALL else "note",
        "dead-neurons",
        layer.path,
        share,
    )(
        f"{int(dead.sum())} of {len(rates)} neurons never {_fire(dead)}, in {steps} steps of "
        f"{batch} samples.{distance}",
        "Nothing passes this layer in the forward pass."
        if all_of_them
        else "They contribute nothing to the output, and the weights behind them get no gradient.",
        f"{advice}{_for_all(evidence)} Or lower its threshold, or "
        "begin with a slower decay (beta nearer to 1), which sums over more steps. A batch norm "
        "before the layer keeps its input in a useful range.",
    )


def _distance_of_dead(layer: LayerEvidence, dead: Tensor, mask: Tensor | None) -> tuple[str, str]:
    """Describe how near dead neurons come to firing, and by how much to scale their input."""
    peak = _peaks(layer, mask)
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
    # Scaled to 1.5 times the threshold, most neurons fire and few at every step.
    return (
        f" At its highest, half of their membranes reach {100 * median:.3g} % of the threshold.",
        f"Scale up the weights before it, or its input, by about {1.5 / median:.2g}.",
    )


def _peaks(layer: LayerEvidence, mask: Tensor | None) -> Tensor | None:
    """Return the highest membrane of each neuron in real steps, relative to its threshold.

    In the direction, upwards or downwards, in which it comes nearer to firing. ``None`` for layers
    that are not built in, whose thresholds are unknown.
    """
    module, distances = layer.module, layer.spike_inputs
    if distances is None or not isinstance(module, LeakyIntegrator):
        return None
    neuron_dim = module.dim if module.dim < 0 else module.dim + 1
    peaks: list[Tensor] = []
    for name, threshold in (
        ("pos_spike", module.pos_threshold),
        ("neg_spike", module.neg_threshold),
    ):
        if threshold is None or name not in distances.above:
            continue
        # Padding must not hold the maximum.
        above = filled(distances.above[name], mask, -torch.inf)
        highest = above.movedim(neuron_dim, -1).reshape(-1, module.num_neurons).amax(0)
        peaks.append(1 + highest / threshold.detach().to(highest).abs())
    return torch.stack(peaks).amax(0) if peaks else None


def _for_all(evidence: Evidence) -> str:
    """Name the call that scales all layers, where it runs."""
    call = evidence.calibration
    return "" if call is None else f" {call} does it for all layers."


def _fire(neurons: Tensor) -> str:
    """Return the verb for the neurons that are marked."""
    return "fires" if int(neurons.sum()) == 1 else "fire"


def _saturated(evidence: Evidence, layer: LayerEvidence, rates: Tensor) -> Iterator[Finding]:
    saturated = rates >= SATURATED
    share = float(saturated.double().mean())
    if share < _MOST:
        return
    yield measured("error" if share == 1 else "warning", "saturated-neurons", layer.path, share)(
        f"{int(saturated.sum())} of {len(rates)} neurons {_fire(saturated)} at "
        f"{100 * SATURATED:.0f} % of the steps or more; the layer's mean rate is "
        f"{100 * float(rates.mean()):.3g} %.",
        "A neuron that always fires carries no more information than one that never does.",
        f"Scale down the weights before it, or its input.{_for_all(evidence)} Or raise its "
        "threshold; begin with a faster decay (beta nearer to 0). tt.loss.rate_bounds keeps rates "
        "in a range while it learns.",
    )


def _dead_and_saturated(
    evidence: Evidence, layer: LayerEvidence, rates: Tensor
) -> Iterator[Finding]:
    # what one sample does not change may differ between two
    if len(rates) < _FEW_NEURONS or evidence.inputs.batch < 2:
        return
    dead, saturated = rates == 0, rates >= SATURATED
    share = min(float(each.double().mean()) for each in (dead, saturated))
    if share < _MANY:
        return
    between = len(rates) - int(dead.sum()) - int(saturated.sum())
    yield measured("warning", "dead-and-saturated", layer.path, share)(
        f"{int(dead.sum())} of {len(rates)} neurons never fire, and {int(saturated.sum())} fire at "
        f"{100 * SATURATED:.0f} % of the steps or more: {between} "
        f"{'is' if between == 1 else 'are'} between.",
        "Only those between tell one input from another; the others are constants.",
        "One factor for the layer helps one side and harms the other: the weights or biases before "
        f"it differ too much from neuron to neuron. Draw them anew, smaller.{_for_all(evidence)} A "
        "batch norm before the layer does too. If training has brought it here, lower the learning "
        "rate.",
    )


def _out_of_reach(evidence: Evidence, layer: LayerEvidence) -> Iterator[Finding]:
    mask = evidence.mask
    spike_inputs, share = layer.spike_inputs, reach(layer, mask)
    if spike_inputs is None or share is None or share >= _RARE:
        return
    if not spike_inputs.above:
        names = " and ".join(spike_functions(layer.module))
        yield measured("error", "spike-not-called", layer.path, 0.0)(
            f"The step of {type(layer.module).__name__} calls no spike function: it receives "
            f"{names} and leaves it out, and autograd finds no way from the output back.",
            "A comparison, mem > theta, has no gradient: none passes back through this layer, and "
            "what lies before it does not learn by it.",
            f"Write {spike_functions(layer.module)[0]}(mem - theta) in step: the same spikes, with "
            "a surrogate gradient.",
        )
        return
    real = (u if mask is None else u[mask] for u in spike_inputs.above.values())
    distance = min(float(u.abs().median()) for u in real)
    surrogates = sorted({repr(getattr(layer.module, name)) for name in spike_inputs.above})
    yield measured("error" if share == 0 else "warning", "out-of-reach", layer.path, share)(
        f"{100 * share:.3g} % of the membranes are where the derivative of "
        f"{' and '.join(surrogates)} is at least a tenth of its peak; their median distance to the "
        f"threshold is {distance:.3g}.",
        "Elsewhere the surrogate's derivative is nearly zero: hardly any gradient passes through "
        "this layer.",
        "Use a wider surrogate (atan_surrogate(2.0), or a smaller slope or larger width), or scale "
        f"the weights before it so that membranes come near the threshold.{_for_all(evidence)}",
    )
