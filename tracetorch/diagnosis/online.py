"""Find where a rule of online learning leaves the direction of backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tracetorch.diagnosis.evidence import Evidence, Loss
from tracetorch.diagnosis.finding import Finding, join_first, measured
from tracetorch.online_learning import DroppedPath, OnlineLearner
from tracetorch.online_learning.rules import RULES, Rule

_LOW = 0.5  # a cosine: 60 degrees away, where half of a step is lost


def compare(
    evidence: Evidence,
    model: nn.Module,
    batch: Sequence[Any],
    loss: Loss,
    rule: Rule,
    steps: int | None,
) -> tuple[dict[str, float], list[Finding]]:
    """Return the cosine by parameter, and what is found; none of them where a step is refused."""
    learner = OnlineLearner(model, rule)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            cosines = learner.certificate(batch, loss, steps=steps)
    except ValueError as refusal:
        return {}, [_refused(rule, refusal)]
    return cosines, list(_findings(evidence, rule, cosines, learner.dropped))


def _refused(rule: Rule, refusal: ValueError) -> Finding:
    return measured("note", "online-refused", "", 0.0)(
        f"tt.online cannot run the model with the rule {rule!r}: {refusal}",
        "There are no gradients online to compare with those of backpropagation through time.",
        "Do what the reason says, or train by backpropagation through time.",
    )


def _findings(
    evidence: Evidence, rule: Rule, cosines: dict[str, float], dropped: Sequence[DroppedPath]
) -> Iterator[Finding]:
    """Find parameters whose gradient online has little in common with the true one."""
    # where the true gradient is zero there is no direction to keep
    moved = {n for n, g in evidence.gradients.items() if g is not None and bool(g.any())}
    low = sorted((n for n in moved if cosines.get(n, 1.0) < _LOW), key=lambda n: cosines[n])
    if not low:
        return
    worst = low[0]
    values = join_first([f"{name} {cosines[name]:.2f}" for name in low])
    yield measured("warning", "online-gradient", worst, cosines[worst])(
        f"With the rule {rule!r} the gradients of {len(low)} of {len(moved)} parameters have a "
        f"cosine below {_LOW} to those of backpropagation through time: {values}. "
        f"The rule drops {join_first([f'({path})' for path in dropped])}.",
        "Learning online moves them elsewhere: near 0 a step hardly lowers the loss, below 0 it "
        "raises it.",
        _advice(rule),
    )


def _advice(rule: Rule) -> str:
    names = list(RULES)  # from the most to the least exact
    more = [repr(name) for name in names[: names.index(rule)]][::-1]
    listed = " or ".join(filter(None, [", ".join(more[:-1]), *more[-1:]]))
    richer = f"Take a rule that drops less, {listed}. " if more else ""
    return (
        f"{richer}A readout whose neurons share a decay (beta_rank=0) loses nothing of the layer "
        "before it; detach_reset=True leaves a reset out of both gradients; fewer layers "
        "lose less on the way. Or train on parts of the sequence by tt.unroll and detach_states()."
    )
