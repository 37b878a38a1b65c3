"""What layers remember: of a sequence, against its length, and of the one before it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tracetorch.diagnosis.evidence import Evidence, unfit
from tracetorch.diagnosis.finding import Finding, some
from tracetorch.diagnosis.gradients import norm_by_step
from tracetorch.ragged import aligned, filled
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import Decay

_HALVINGS = 10  # after which a thousandth is left
_THOUSANDTH = 1e-3
_END = 0.1  # of the sequence
_MOSTLY = 0.99  # of the gradient's square
_TOO_SLOW = 10  # sequence lengths
_FEW_STEPS = 10


def carried(evidence: Evidence, stream: bool) -> Iterator[Finding]:
    """States that are left over from an earlier run."""
    held, batch = evidence.held, evidence.given.batch
    if not any(bool(state.any()) or state.requires_grad for state in held.values()):
        return  # there are none, or they are at rest
    wrong = unfit(held, evidence.fresh)
    if wrong:
        name = wrong[0]
        yield Finding(
            "error",
            "states-do-not-fit",
            name.rpartition(".")[0],
            float(len(wrong)),
            f"The model holds {name} of shape {list(held[name].shape)}, {held[name].dtype}; this "
            f"batch of {batch} needs {list(evidence.fresh[name].shape)}, "
            f"{evidence.fresh[name].dtype}.",
            "The next call of the model raises an error. (Here it was run from rest.)",
            "Call zero_states() before each new batch.",
        )
        return
    if stream:
        graph = [name for name, state in held.items() if state.requires_grad]
        if graph:
            yield Finding(
                "warning",
                "states-hold-a-graph",
                graph[0].rpartition(".")[0],
                float(len(graph)),
                f"{len(graph)} of {len(held)} states, {graph[0]} first, are part of the graph of "
                "an earlier run.",
                "backward() goes through all earlier chunks too, or fails because they are freed.",
                "Call detach_states() after each chunk: truncated backpropagation through time.",
            )
        return
    then = evidence.loss_carried
    told = (
        ""
        if then is None
        else f" From them the loss is {then:.4g}, from rest {float(evidence.loss):.4g}."
    )
    yield Finding(
        "warning",
        "states-carried",
        next(iter(held)).rpartition(".")[0],
        math.nan if then is None else then,
        f"The model holds {len(held)} states of an earlier run, {next(iter(held))} first.{told}",
        "A run goes on from them: what one batch has left behind is noise to the next.",
        "Call zero_states() before each new batch, and diagnose after it. For a stream that is "
        "meant to go on, say diagnose(..., stream=True).",
    )


def emptied(evidence: Evidence) -> Iterator[Finding]:
    """States that do not last from one step to the next."""
    if evidence.emptied:
        yield Finding(
            "warning",
            "states-emptied",
            evidence.emptied[0],
            float(len(evidence.emptied)),
            f"The states of {len(evidence.emptied)} of {len(evidence.layers)} neuron layers are "
            f"gone when the second step begins: {some(evidence.emptied)}.",
            "Called step by step, the network begins every step from rest: it remembers nothing, "
            "and no gradient goes back in time. (tt.unroll by layer calls forward() once for all "
            "steps, and gives other outputs.)",
            "Call zero_states() once before each sequence, outside forward().",
        )


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Half-lives against the length of the sequence."""
    T = evidence.given.steps
    lives = [
        (seen.path, span) for seen in evidence.layers if (span := halflives(seen.layer)) is not None
    ]
    if T >= _FEW_STEPS and lives:
        path, (_, longest) = max(lives, key=lambda pair: pair[1][1])
        if longest * _HALVINGS < T:
            yield from _short(evidence, path, longest)
    for seen in evidence.layers:
        yield from _slow(seen.path, seen.layer, T)


def _short(evidence: Evidence, path: str, longest: float) -> Iterator[Finding]:
    T = evidence.given.steps
    back = _reaches_back(evidence)
    at_the_end = _reads_the_end(evidence)
    gradient = "" if back is None else f" The gradient falls to a thousandth {back} steps back."
    forgets = at_the_end and (back is None or back < T / 2)
    yield Finding(
        "warning" if forgets else "note",
        "short-memory",
        path,
        longest,
        f"The longest half-life of all layers is {longest:.3g} steps, the sequence has {T}."
        f"{gradient if at_the_end else ''}",
        "The loss is read off the last steps, and what came in the first half of the sequence has "
        "been forgotten by then: it can be neither used nor learned from."
        if forgets
        else "Each output tells of the last few steps only. That is enough where the loss looks at "
        "all of them and their order does not matter; it is not where it does.",
        f"Start from half-lives up to the sequence's length: beta="
        f"tt.functional.halflife_to_decay({T / 4:.3g}), or a tensor of several timescales, one per "
        "neuron. Recurrence, or a coarser time step, help too.",
    )


def _reads_the_end(evidence: Evidence) -> bool:
    """Whether the loss looks at the last tenth of each sequence's steps alone."""
    whole = tail = 0.0
    for gradient in evidence.output_gradients:
        if gradient is None:
            continue
        squares = gradient.double().square()
        end = _last_tenth(gradient, evidence.mask)
        whole += float(squares.sum())
        tail += float(squares[end].sum())
    return whole > 0 and tail >= _MOSTLY * whole


def _last_tenth(x: Tensor, mask: Tensor | None) -> Tensor:
    """Which steps ``[T]``, or ``[T, B]`` of ragged sequences, are the last tenth of all of them."""
    if mask is None or x.shape[:2] != mask.shape:
        return torch.arange(len(x), 0, -1, device=x.device) <= max(1, round(_END * len(x)))
    left = mask.flip(0).cumsum(0).flip(0)  # real steps from here to the end
    most = (_END * mask.sum(0)).round().clamp(min=1)
    return (left <= most) & mask


def _reaches_back(evidence: Evidence) -> int | None:
    """Over how many of its last steps the gradient is at least a thousandth of its highest."""
    reach: list[int] = []
    for seen in evidence.layers:
        gradient, mask = seen.gradient, evidence.mask
        if gradient is not None and mask is not None:
            gradient = _ending_together(gradient, mask)
        steps = norm_by_step(gradient)
        if steps is not None and bool(steps.any()) and bool(torch.isfinite(steps).all()):
            there = (steps >= _THOUSANDTH * steps.max()).nonzero()
            reach.append(len(steps) - int(there[0]))
    return max(reach, default=None)


def _ending_together(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` with the real steps of every sequence last, in their order, and zero before them."""
    order = aligned(mask.byte().argsort(stable=True, dim=0), x)
    return filled(x, mask).gather(0, order.expand_as(x))


def _slow(path: str, layer: Neuron, T: int) -> Iterator[Finding]:
    if not isinstance(layer, LeakyIntegrator):
        return
    for name in ("alpha", "beta", "gamma"):
        decay = getattr(layer, name)
        if decay is None or not getattr(layer, f"{name}_ema"):
            continue
        life = float(_halflife(decay).median())
        if life > _TOO_SLOW * T:
            reached = 100 * (1 - 0.5 ** (T / life))
            yield Finding(
                "warning",
                "slow-average",
                path,
                life,
                f"Half of its decays {name} have a half-life above {life:.3g} steps; the sequence "
                f"has {T}, in which such an average reaches {reached:.2g} % of its input.",
                "Its inflow is scaled by 1 - decay: the trace stays near zero to the end, and so "
                "does the gradient through it.",
                f"Start from half-lives around the sequence's length: {name}="
                f"tt.functional.halflife_to_decay({max(1.0, T / 4):.3g}).",
            )


def halflives(layer: Neuron) -> tuple[float, float] | None:
    """Shortest and longest half-life of the decays of a layer, in steps; ``None`` without any."""
    decays = [
        _halflife(getattr(layer, name))
        for name, constraint in layer.constraints.items()
        if constraint is Decay.constraint
    ]
    if not decays:
        return None
    return min(float(d.min()) for d in decays), max(float(d.max()) for d in decays)


def _halflife(decay: Tensor) -> Tensor:
    """``log(0.5) / log(decay)``, infinite where the decay has rounded to 1."""
    return -math.log(2) / torch.log(decay.detach().double())
