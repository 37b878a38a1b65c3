"""Find uncalled, dead, saturated and equal neurons, membranes out of reach, and busy inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tracetorch.diagnosis.evidence import Evidence, LayerEvidence
from tracetorch.diagnosis.finding import Finding, finder, measured
from tracetorch.init.membranes import neurons_last
from tracetorch.init.response import decay_names
from tracetorch.metrics.activity import SATURATED
from tracetorch.ragged import filled
from tracetorch.snn.neuron import spike_functions
from tracetorch.unrolling.inputs import tensors_by_name

_NEARLY_ALL = 0.9  # of the neurons: a warning; all of them: an error
_MOST = 0.5  # of the neurons: a note, and a warning where an optimizer has stepped
_SLOWER = ", or begin with a slower decay ({} nearer to 1), which sums over more steps"
_FASTER = "; begin with a faster decay ({} nearer to 0)"
_MANY = 0.25  # of the neurons dead, and as many saturated: a warning
_RARE = 0.01  # of the membranes
_FAR = 30.0  # thresholds away, by the root mean square; below 5 in networks that learn
_LOOKED_AT = 4096  # steps, samples and places
_FEW_STEPS = 3  # with fewer, any neuron may fire at every step
_NUMBERS = 0.9  # an input of more events than that is one of numbers, which no rate makes sparse
_FEW_NEURONS = 8  # with fewer, as of classes, one at each end may be the answer to the batch


@finder
def uncalled(evidence: Evidence) -> Iterator[Finding]:
    """Find neuron layers that are not called."""
    for path in evidence.uncalled:
        yield measured("layer-not-called", path, 0.0)


def _seen(evidence: Evidence) -> Iterator[tuple[LayerEvidence, Tensor, Tensor]]:
    """Yield layers that fire, with counts, but for those whose input is the finding itself."""
    for layer in evidence.layers:
        if layer.counts is not None and torch.isfinite(layer.input).all():
            yield layer, *layer.counts


@finder
def unfit_activity(evidence: Evidence) -> Iterator[Finding]:
    """Find dead and saturated neurons, both, and membranes out of reach."""
    for layer, fired, total in _seen(evidence):
        yield from _dead_or_saturated(evidence, layer, fired / total)
        yield from _out_of_reach(evidence, layer)
        yield from _far_membranes(evidence, layer)


def _dead_or_saturated(
    evidence: Evidence, layer: LayerEvidence, rates: Tensor
) -> Iterator[Finding]:
    steps, batch = evidence.inputs.steps, evidence.inputs.batch
    dead, saturated = rates == 0, rates >= SATURATED
    # with few steps any neuron may fire at every step
    never = float(dead.double().mean())
    # before the first step of an optimizer a neuron may yet come to fire
    states = [] if evidence.optimizer is None else evidence.optimizer.state.values()
    learnt = any(state.get("step", 1) for state in states)  # Adagrad has states from the start
    always = float(saturated.double().mean()) if steps >= _FEW_STEPS else 0.0
    names = decay_names(layer.module)
    decays = [each.format(names[0]) if names else "" for each in (_SLOWER, _FASTER)]
    silent, often = int(dead.sum()), int(saturated.sum())
    of: dict[str, Any] = {"total": len(rates), "often": often}
    of |= {"steps": steps, "batch": batch, "saturated": 100 * SATURATED, "count": silent}
    verb = {1: "fires"}
    if never >= _MOST:
        distance, advice = _distance_of_dead(layer, dead)
        # A few dead neurons are common; a layer of them blocks everything behind it.
        many = learnt or never >= _NEARLY_ALL
        severity = "error" if never == 1 else "warning" if many else "note"
        of |= {"distance": distance, "advice": advice, "slower": decays[0]}
        kind = "/all" if never == 1 else "/learnt" if learnt else ""
        row, fire = f"dead-neurons{kind}", verb.get(silent, "fire")
        yield measured(row, layer.path, never, severity, fire=fire, **of)
    if always >= _MOST:
        severity, fire = "error" if always == 1 else "warning", verb.get(often, "fire")
        of |= {"rate": 100 * float(rates.mean()), "faster": decays[1]}
        yield measured("saturated-neurons", layer.path, always, severity, fire=fire, **of)
    # what one sample does not change may differ between two
    if min(never, always) >= _MANY and len(rates) >= _FEW_NEURONS and batch > 1:
        rest = len(rates) - silent - often
        between = f"{rest} {'is' if rest == 1 else 'are'}"
        yield measured("dead-and-saturated", layer.path, min(never, always), between=between, **of)


def _distance_of_dead(layer: LayerEvidence, dead: Tensor) -> tuple[str, str]:
    """Describe how near dead neurons come to firing, and by how much to scale their input."""
    peak = _peaks(layer)
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


def _levels(layer: LayerEvidence) -> list[tuple[Tensor, Tensor]]:
    """Return membranes minus threshold and the threshold's size, for those that are known."""
    above = {} if layer.spike_inputs is None else layer.spike_inputs.above
    sides = {name: getattr(layer.module, f"{name[:3]}_threshold", None) for name in above}
    sides |= {"spike": getattr(layer.module, "pos_threshold", None)}
    known = [(u, sides[name]) for name, u in above.items()]
    return [(u, t.detach().to(u).abs()) for u, t in known if isinstance(t, Tensor)]


def _peaks(layer: LayerEvidence) -> Tensor | None:
    """Return each neuron's highest membrane relative to its threshold, the nearer one of two."""
    peaks: list[Tensor] = []
    for u, threshold in _levels(layer):
        # Padding must not hold the maximum.
        above = neurons_last(filled(u, layer.mask, -torch.inf), layer.module)
        peaks.append(1 + above.flatten(0, -2).amax(0) / threshold.reshape(-1))
    return torch.stack(peaks).amax(0) if peaks else None


def _far_membranes(evidence: Evidence, layer: LayerEvidence) -> Iterator[Finding]:
    """Find membranes that are far above and below their thresholds."""
    ratios = [
        float(layer.real(u).double().square().mean().sqrt()) / float(threshold.double().mean())
        for u, threshold in _levels(layer)
    ]
    if ratios and min(ratios) > _FAR:
        yield measured("far-from-threshold", layer.path, min(ratios))


def _out_of_reach(evidence: Evidence, layer: LayerEvidence) -> Iterator[Finding]:
    spike_inputs, share = layer.spike_inputs, layer.reach
    if spike_inputs is None or share is None or share >= _RARE:
        return
    if not spike_inputs.above:
        kind, names = type(layer.module).__name__, spike_functions(layer.module)
        of = {"kind": kind, "names": " and ".join(names), "first": names[0]}
        yield measured("spike-not-called", layer.path, 0.0, **of)
        return
    distance = min(float(layer.real(u).abs().median()) for u in spike_inputs.above.values())
    surrogates = " and ".join(sorted({repr(getattr(layer.module, n)) for n in spike_inputs.above}))
    severity = "error" if share == 0 else "warning"
    texts = {"names": surrogates, "distance": f"{distance:.3g}"}
    yield measured("out-of-reach", layer.path, share, severity, **texts)


@finder
def equal_neurons(evidence: Evidence) -> Iterator[Finding]:
    """Find neurons that have the input and the spikes of another one."""
    for layer, *_ in _seen(evidence):
        columns = []
        for values in (layer.input, layer.output):
            seen = neurons_last(values, layer.module).flatten(0, -2)
            columns.append(seen[:: max(1, len(seen) // _LOOKED_AT)].T)
        both = torch.cat(columns, 1).double()
        # by one number each, a random sum, for a product may round equal columns otherwise
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(both.shape[1], generator=generator, dtype=both.dtype).to(both.device)
        sums, order = (both @ weight).sort()
        apart = sums.diff(prepend=sums[:1]) > 1e-5 * both.norm(dim=1).max()
        kind = apart.cumsum(0)[order.argsort()]
        counts = kind.bincount()
        # an input that does not vary, as of the border of an image, is no sign
        equal = (counts[kind] > 1) & (columns[0] != columns[0][:, :1]).any(1)
        share = float(equal.double().mean())
        if share >= _MOST:
            count = int(equal.sum())
            yield measured("equal-neurons", layer.path, share, count=count, total=len(equal))


@finder
def equal_outputs(evidence: Evidence) -> Iterator[Finding]:
    """Find outputs that are equal for all samples, though the inputs differ."""
    batch_dim = 0 if evidence.inputs.static else 1  # a static input has no time
    given = tensors_by_name(evidence.inputs.tensors).values()
    if all(bool((x == x.narrow(batch_dim, 0, 1)).all()) for x in given):
        return
    # to some last places: a product may round two equal rows otherwise
    floating = [y for y in evidence.outputs if y.is_floating_point() and y.ndim > 1]
    least = [16 * torch.finfo(y.dtype).eps * y.abs().max() for y in floating]
    if floating and all(
        bool(((y - y[:, :1]).abs() <= e).all()) for y, e in zip(floating, least, strict=True)
    ):
        yield measured("output-ignores-input", "", 0.0, batch=evidence.inputs.batch)


@finder
def busy_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Find products that are large enough for events, and were dense for there were too many."""
    for path, products in evidence.products.items():
        busy = [
            (product.density, product.crossover)
            for product in products
            if product.density is not None and 0 < product.crossover < product.density <= _NUMBERS
        ]
        if busy:
            density, crossover = max(busy)
            yield measured("too-busy-for-events", path, density, crossover=100 * crossover)
