"""Find where a rule of online learning leaves the direction of backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterator

from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, finder, join_first, measured
from tracetorch.online_learning.rules import RULES

_LOW = 0.5  # a cosine: 60 degrees away, where half of a step is lost


@finder
def refused(evidence: Evidence) -> Iterator[Finding]:
    """Find why a rule cannot run the model."""
    if evidence.refusal is not None:
        yield measured("note", "online-refused", "", 0.0)(
            f"tt.online cannot run the model with the rule {evidence.rule!r}: {evidence.refusal}",
            "There are no gradients online to compare with those of backpropagation through time.",
            "Do what the reason says, or train by backpropagation through time.",
        )


@finder
def low_cosines(evidence: Evidence) -> Iterator[Finding]:
    """Find parameters whose gradient online has little in common with the true one."""
    cosines, rule = evidence.cosines, evidence.rule
    # where the true gradient is zero there is no direction to keep
    moved = {n for n, g in evidence.gradients.items() if g is not None and bool(g.any())}
    low = sorted((n for n in moved if cosines.get(n, 1.0) < _LOW), key=lambda n: cosines[n])
    if not low or rule is None:
        return
    values = join_first([f"{name} {cosines[name]:.2f}" for name in low])
    names: list[str] = list(RULES)  # from the most to the least exact
    more = [repr(name) for name in names[: names.index(rule)]][::-1]
    listed = " or ".join(filter(None, [", ".join(more[:-1]), *more[-1:]]))
    richer = f"Take a rule that drops less, {listed}. " if more else ""
    yield measured("warning", "online-gradient", low[0], cosines[low[0]])(
        f"With the rule {rule!r} the gradients of {len(low)} of {len(moved)} parameters have a "
        f"cosine below {_LOW} to those of backpropagation through time: {values}. "
        f"The rule drops {join_first([f'({path})' for path in evidence.dropped])}.",
        "Learning online moves them elsewhere: near 0 a step hardly lowers the loss, below 0 it "
        "raises it.",
        f"{richer}A readout whose neurons share a decay (beta_rank=0) loses nothing of the layer "
        "before it; detach_reset=True leaves a reset out of both gradients; fewer layers "
        "lose less on the way. Or train on parts of the sequence by tt.unroll and detach_states().",
    )
