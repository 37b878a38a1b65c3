"""Find gradients that vanish or explode, and half-lives that do not match the sequence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from tracetorch.diagnosis.evidence import Evidence, LayerEvidence, halflife_of
from tracetorch.diagnosis.finding import Finding, finder, join_first, measured
from tracetorch.snn.leaky_integrator import LeakyIntegrator

_DEPTH = 1e-4  # from one layer to another
_TIME = 1e3  # from the last steps to the first
_ELASTICITY = 1e4  # relative change of the loss for a relative change of the weights,
_NORM = 10.0  # of a gradient that is not small: near zero a loss changes by much of itself
_FEW_STEPS = 10
_HALVINGS = 10  # after which a thousandth is left
_THOUSANDTH = 1e-3
_END = 0.1  # of the sequence
_MOSTLY = 0.99  # of the gradient's square
_TOO_SLOW = 10  # sequence lengths


@finder
def padding_in_loss(evidence: Evidence) -> Iterator[Finding]:
    """Find a loss whose gradient reaches outputs in the padding."""
    mask = evidence.mask
    if mask is None or bool(mask.all()):
        return
    whole = padded = 0.0
    for gradient in evidence.output_gradients:
        if gradient is None or gradient.shape[:2] != mask.shape:
            continue
        squares = gradient.double().square()
        if not bool(squares.isfinite().all()):
            return  # for which there are other findings
        whole += float(squares.sum())
        padded += float(squares[~mask.to(squares.device)].sum())
    if padded == 0:
        return
    row = "padding-in-loss/alone" if padded == whole else "padding-in-loss"
    yield measured(row, "", padded / whole)


@finder
def gradient_not_finite(evidence: Evidence) -> Iterator[Finding]:
    """Find gradients that are not finite though all else is."""
    found = {name: g for name, g in evidence.gradients.items() if g is not None}
    bad = [name for name, g in found.items() if not torch.isfinite(g).all()]
    values = [evidence.loss, *(t for s in evidence.layers for t in (s.input, s.output))]
    # Otherwise the gradient is a consequence of values that other findings report.
    if bad and all(bool(torch.isfinite(t).all()) for t in values):
        of = {"count": len(bad), "total": len(found), "names": join_first(bad)}
        yield measured("gradient-not-finite", bad[-1], len(bad), **of)


def _finite(evidence: Evidence) -> bool:
    """Whether all gradients are finite; else those of layers are a consequence."""
    return all(bool(torch.isfinite(g).all()) for g in evidence.gradients.values() if g is not None)


@finder
def over_layers(evidence: Evidence) -> Iterator[Finding]:
    """Find gradients that vanish or explode from the last layer to the first."""
    norms = [(s, n) for s in evidence.layers if (n := s.gradient_norm) is not None]
    if len(norms) < 2 or evidence.closed or not _finite(evidence):
        return
    # First against last: a factor between neighbours is normal, their product over depth is not.
    (first, low), (last, high) = norms[0], norms[-1]
    if high == 0:
        return
    ratio = low / high
    of = {
        "norms": f"The gradient's norm is {low:.2g} at {_path(first)} and {high:.2g} at "
        f"{_path(last)}, {ratio:.1g}"
    }
    if ratio < _DEPTH:
        weakest = min(norms, key=lambda pair: pair[1])[0]
        # relative to the layer after it
        falls = [(a / b if b else 0.0, s) for (s, a), (_, b) in itertools.pairwise(norms)]
        cause = f"it falls off most at {_path(min(falls, key=lambda fall: fall[0])[1])}"
        if low == 0:
            cause = "a layer on the way passes nothing back, see its other findings"
        of |= {"cause": cause, "weakest": _path(weakest)}
        yield measured("vanishing-gradient", first.path, ratio, **of)
    elif ratio > 1 / _DEPTH:
        yield measured("exploding-gradient/over-layers", first.path, ratio, **of)


@finder
def exploding(evidence: Evidence) -> Iterator[Finding]:
    """Find a gradient along which the loss is far from linear."""
    loss = abs(float(evidence.loss))
    pairs = [(evidence.parameters[n], g) for n, g in evidence.gradients.items() if g is not None]
    if not pairs or loss == 0 or not math.isfinite(loss) or not _finite(evidence):
        return
    # The elasticity of the loss: its relative change for a relative change of the weights
    gradient = math.sqrt(sum(float(g.double().square().sum()) for _, g in pairs))
    weights = math.sqrt(sum(float(p.detach().double().square().sum()) for p, _ in pairs))
    elasticity = gradient * weights / loss
    if elasticity > _ELASTICITY and gradient > _NORM:
        yield measured("exploding-gradient", "", gradient, elasticity=elasticity)


@finder
def exploding_over_time(evidence: Evidence) -> Iterator[Finding]:
    """Find gradients that grow on their way back through time."""
    for layer in evidence.layers if _finite(evidence) else ():
        steps = layer.norms_to_the_end
        if steps is None or len(steps) < _FEW_STEPS or not bool(steps.any()):
            continue
        # The last steps with a gradient: the loss may look at none of the very last ones.
        late = float(steps[steps > 0][-(len(steps) // 10) :].max())
        highest, step = (float(v) for v in steps.max(0))
        if highest / late > _TIME and step < len(steps) / 2:
            of = {"late": late, "highest": highest, "step": int(step)}
            yield measured("exploding-through-time", layer.path, highest / late, **of)


def _path(layer: LayerEvidence) -> str:
    return layer.path or "the layer"


@finder
def short_states(evidence: Evidence) -> Iterator[Finding]:
    """Find half-lives that are too short for the sequence."""
    T = evidence.inputs.steps
    lives = [(span[1], layer.path) for layer in evidence.layers if (span := layer.halflives)]
    # The slowest trace of all layers bounds how far the network remembers.
    longest, path = max(lives, key=lambda pair: pair[0], default=(math.inf, ""))
    if T < _FEW_STEPS or longest * _HALVINGS >= T:
        return
    back = _gradient_span(evidence)
    at_the_end = _reads_the_end(evidence)
    gradient = "" if back is None else f" The gradient falls to a thousandth {back} steps back."
    # It is a fault only where the loss depends on what the layers have forgotten.
    forgets = at_the_end and (back is None or back < T / 2)
    of = {"T": T, "gradient": gradient if at_the_end else "", "life": T / 4}
    yield measured("short-memory/forgets" if forgets else "short-memory", path, longest, **of)


def _reads_the_end(evidence: Evidence) -> bool:
    """Whether the loss depends on the last tenth of each sequence's steps alone."""
    whole = tail = 0.0
    mask = evidence.mask
    for gradient in evidence.output_gradients:
        if gradient is None:
            continue
        # A loss depends on the outputs at which its gradient is not zero.
        squares = gradient.double().square()
        T = len(squares)
        end = torch.arange(T, 0, -1, device=squares.device) <= max(1, round(_END * T))
        if mask is not None and squares.shape[:2] == mask.shape:
            remaining = mask.flip(0).cumsum(0).flip(0)  # real steps from each step to the end
            end = (remaining <= (_END * mask.sum(0)).round().clamp(min=1)) & mask
        whole += float(squares.sum())
        tail += float(squares[end].sum())
    return whole > 0 and tail >= _MOSTLY * whole


def _gradient_span(evidence: Evidence) -> int | None:
    """Count the last steps whose gradient is at least a thousandth of the highest."""
    spans: list[int] = []
    for layer in evidence.layers:
        steps = layer.norms_to_the_end
        if steps is not None and bool(steps.any()) and bool(torch.isfinite(steps).all()):
            first = (steps >= _THOUSANDTH * steps.max()).nonzero()[0]
            spans.append(len(steps) - int(first))
    return max(spans, default=None)


@finder
def slow_average(evidence: Evidence) -> Iterator[Finding]:
    """Find averages that are too slow for the sequence."""
    T = evidence.inputs.steps
    decays = [
        (layer.path, name, getattr(layer.module, name))
        for layer in evidence.layers
        if isinstance(layer.module, LeakyIntegrator)
        for name in ("alpha", "beta", "gamma")
        if getattr(layer.module, name) is not None and getattr(layer.module, f"{name}_ema")
    ]
    for path, name, decay in decays:
        life = float(halflife_of(decay).median())
        if life > _TOO_SLOW * T:
            of = {"name": name, "T": T, "reached": 100 * (1 - 0.5 ** (T / life))}
            yield measured("slow-average", path, life, life=max(1.0, T / 4), **of)
