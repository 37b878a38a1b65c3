"""Find parameters that get no gradient, or do not learn by it, and modules left in ``eval()``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import named_modules
from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, Severity, finder, join_first, measured
from tracetorch.snn.dropout import LockedDropout

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def listed(
    row: str, names: Iterable[str], first: str | None = None, **options: Any
) -> Iterator[Finding]:
    """Yield the finding of some parameters, at the first, if there is one."""
    names = sorted(names, key=lambda name: name != first)
    if names:
        of = {"count": len(names), "names": join_first(names)}
        yield measured(row, names[0], **{"value": len(names), **of, **options})


@finder
def unreached(evidence: Evidence) -> Iterator[Finding]:
    """Find parameters that the loss does not depend on, zero gradients, and frozen parameters."""
    gradients, later = evidence.gradients, evidence.later_gradients
    missing = [name for name, gradient in gradients.items() if gradient is None]
    if evidence.parameters and not gradients:
        yield measured("nothing-to-learn", "", 0.0, count=len(evidence.parameters))
    elif gradients and len(missing) == len(gradients):
        yield measured("loss-without-gradient", "", 0.0, count=len(gradients))
    else:
        yield from listed("unreached-parameters", missing, total=len(gradients))
        moves = {
            name: bool(g.any()) or ((h := later.get(name)) is not None and bool(h.any()))
            for name, g in gradients.items()
            if g is not None and g.ndim > 1
        }
        yield from listed("zero-gradient", [name for name, moved in moves.items() if not moved])
        frozen = [name for name in evidence.parameters if name not in gradients]
        yield from listed("frozen-parameters", frozen, total=len(evidence.parameters))


@finder
def evaluation_mode(evidence: Evidence) -> Iterator[Finding]:
    """Find norms and dropout that are in evaluation mode."""
    kinds = (BatchNormBase, *_DROPOUTS, LockedDropout)
    # a norm that is frozen is left there on purpose
    left = {
        path: module
        for path, module in named_modules(evidence.model)
        if isinstance(module, kinds) and not module.training and getattr(module, "p", 1.0) > 0
        if not (params := list(module.parameters())) or any(p.requires_grad for p in params)
    }
    fresh = [
        path
        for path, module in left.items()
        if isinstance(module, BatchNormBase) and int(module.num_batches_tracked or 0) == 0
    ]
    partly = any(module.training for _, module in named_modules(evidence.model))
    training = fresh or partly or evidence.optimizer is not None
    severity: Severity = "warning" if training else "note"
    unseen = f" {len(fresh)} of them have seen no batch yet." if fresh else ""
    yield from listed("in-evaluation-mode", [*left], severity=severity, unseen=unseen)
