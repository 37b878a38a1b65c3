"""Find half-lives that do not match the sequence length."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from tracetorch.diagnosis.evidence import Evidence, halflife_of
from tracetorch.diagnosis.finding import Finding, finder, measured
from tracetorch.snn.leaky_integrator import LeakyIntegrator

_HALVINGS = 10  # after which a thousandth is left
_THOUSANDTH = 1e-3
_END = 0.1  # of the sequence
_MOSTLY = 0.99  # of the gradient's square
_TOO_SLOW = 10  # sequence lengths
_FEW_STEPS = 10


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
