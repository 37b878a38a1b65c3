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
        yield measured("online-refused", "", 0.0, rule=evidence.rule, refusal=evidence.refusal)


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
    of = {"rule": rule, "low": _LOW, "count": len(low), "total": len(moved), "values": values}
    of["dropped"] = join_first([f"({path})" for path in evidence.dropped])
    of["richer"] = f"Take a rule that drops less, {listed}. " if more else ""
    yield measured("online-gradient", low[0], cosines[low[0]], **of)
