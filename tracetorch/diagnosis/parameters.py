"""Find parameters that get no gradient or that an optimizer leaves, and modules in ``eval()``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import named_modules
from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, Severity, finder, join_first, measured
from tracetorch.snn.dropout import LockedDropout

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def _listed(row: str, names: list[str], **options: Any) -> Iterator[Finding]:
    """Yield the finding of some parameters, at the first, if there is one."""
    if names:
        of = {"count": len(names), "names": join_first(names)}
        yield measured(row, names[0], **{"value": len(names), **of, **options})


@finder
def unreached(evidence: Evidence) -> Iterator[Finding]:
    """Find parameters that the loss does not depend on, zero gradients, and frozen parameters."""
    gradients = evidence.gradients
    missing = [name for name, gradient in gradients.items() if gradient is None]
    if evidence.parameters and not gradients:
        yield measured("nothing-to-learn", "", 0.0, count=len(evidence.parameters))
    elif gradients and len(missing) == len(gradients):
        yield measured("loss-without-gradient", "", 0.0, count=len(gradients))
    else:
        yield from _listed("unreached-parameters", missing, total=len(gradients))
        still = [n for n, g in gradients.items() if g is not None and g.ndim > 1 and not g.any()]
        yield from _listed("zero-gradient", [] if evidence.closed else still)
        frozen = [name for name in evidence.parameters if name not in gradients]
        yield from _listed("frozen-parameters", frozen, total=len(evidence.parameters))


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
    yield from _listed("in-evaluation-mode", [*left], severity=severity, unseen=unseen)


@finder
def optimizer(evidence: Evidence) -> Iterator[Finding]:
    """Find parameters that the optimizer does not have, or does not move, or decays."""
    groups, total = _groups(evidence), len(evidence.gradients)
    if evidence.optimizer is None:
        return
    missing = [name for name in evidence.gradients if name not in groups]
    row = "not-in-optimizer/none" if len(missing) == total else "not-in-optimizer"
    yield from _listed(row, missing, total=total)
    stopped = [n for n, group in groups.items() if float(group.get("lr", 1.0)) == 0]
    severity = "error" if len(stopped) == total else "warning"
    yield from _listed("learning-rate-zero", stopped, value=0.0, severity=severity, total=total)
    decays = {n: float(group.get("weight_decay", 0.0)) for n, group in groups.items()}
    decayed = [n for n, v in decays.items() if n.rpartition(".")[2].startswith("raw_") and v > 0]
    strongest = max((decays[name] for name in decayed), default=0.0)
    yield from _listed("weight-decay-on-neurons", decayed, value=strongest)


def _groups(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Return the settings of what the optimizer has of the parameters that learn."""
    every = [] if evidence.optimizer is None else evidence.optimizer.param_groups
    by_id = {id(p): group for group in every for p in group["params"]}
    ids = {name: id(evidence.parameters[name]) for name in evidence.gradients}
    return {name: by_id[i] for name, i in ids.items() if i in by_id}
