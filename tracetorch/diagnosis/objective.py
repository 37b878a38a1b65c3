"""Find losses that do not say what is wanted: raised, of bounded logits, of one class."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tracetorch.diagnosis.criteria import BINARY, CLASSIFIES, LOGARITHMS, PROBABILITIES, Criterion
from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, Severity, finder, measured

_WORSE, _FAR_WORSE = 3.0, 10.0  # times the cross entropy of a guess
_FEW = 8  # samples, with fewer of which one class is no surprise
_ROUNDING = 1e-2
_NO_PROBABILITY = 1e-6


@finder
def raised_loss(evidence: Evidence) -> Iterator[Finding]:
    """Find a loss that grows as what it is made of falls."""
    calls = [each for each in evidence.criteria if each.function not in LOGARITHMS]
    losses = [each for each in calls if each.target is not None]
    # of squares alone a negative sum is a fault: one among others may spread what shall differ
    judged = losses or (calls if float(evidence.loss) < 0 else [])
    groups = () if evidence.optimizer is None else evidence.optimizer.param_groups
    sign = -1 if any(group.get("maximize", False) for group in groups) else 1
    if judged and all(each.direction == -sign for each in judged):
        row = "loss-raised" if sign > 0 else "loss-raised/maximized"
        yield measured(row, "", float(evidence.loss), name=_name(judged[0]))
    elif evidence.pull is not None:
        classes, pull = evidence.pull[:, 0], sign * evidence.pull[:, 1]
        by_class = [pull[classes == each] for each in set(classes.tolist())]
        # advantages of reinforcement learning, negative ones too, differ from sample to sample
        alike = all(torch.allclose(each, each[:1], rtol=_ROUNDING) for each in by_class)
        if alike and len(pull) > len(by_class) and bool((pull > 0).all()):
            row = "loss-raised/by-hand" if sign > 0 else "loss-raised/by-hand-maximized"
            yield measured(row, "", float(evidence.loss), count=len(pull))


def _name(criterion: Criterion) -> str:
    return getattr(criterion.function, "__name__", "loss")


@finder
def bounded_logits(evidence: Evidence) -> Iterator[Finding]:
    """Find activations between the output and a loss that takes logits."""
    for criterion in evidence.criteria:
        activation = evidence.activations.get(id(criterion))
        if activation is None or criterion.function in LOGARITHMS:
            continue
        of = {"name": _name(criterion), "activation": activation}
        given = criterion.input.detach()
        if activation != "ReLU":
            yield measured("activation-before-loss", "", float(evidence.loss), **of)
        elif float(given.min()) >= 0:  # not a clamp that keeps the sign
            yield measured("relu-on-logits", "", float((given == 0).double().mean()), **of)


@finder
def logarithms(evidence: Evidence) -> Iterator[Finding]:
    """Find logarithms of what a softmax or a sigmoid makes."""
    for criterion in evidence.criteria:
        activation = evidence.activations.get(id(criterion))
        if criterion.function not in LOGARITHMS or activation not in PROBABILITIES:
            continue
        # of what the loss does not read the gradient is 0
        least = [
            float(criterion.input.detach()[gradient != 0].double().amin())
            for gradient in criterion.gradients
            if gradient.any()
        ]
        if least:
            severity: Severity = "warning" if min(least) < _NO_PROBABILITY else "note"
            yield measured("log-of-softmax", "", min(least), severity, activation=activation)


@finder
def log_probabilities(evidence: Evidence) -> Iterator[Finding]:
    """Find a negative log-likelihood of what are no logarithms of probabilities."""
    for criterion in evidence.criteria:
        x = criterion.input.detach()
        if criterion.function is not CLASSIFIES[1] or x.ndim < 2 or not bool(x.isfinite().all()):
            continue
        total = float(x.double().exp().sum(1).mean())
        if not math.isclose(total, 1.0, abs_tol=_ROUNDING):
            yield measured("no-log-probabilities", "", total)


@finder
def one_class(evidence: Evidence) -> Iterator[Finding]:
    """Find targets that are of one class."""
    for criterion in evidence.criteria:
        labels = _labels(criterion)
        if labels is not None and len(labels) >= _FEW and bool((labels == labels[0]).all()):
            yield measured("one-class", "", float(labels[0]), count=len(labels))
            return


def _labels(criterion: Criterion) -> Tensor | None:
    """Return the classes of a target that are real, ``[n]``; ``None`` where it has none."""
    target = criterion.target
    if target is None:
        return None
    if criterion.function is BINARY:
        alone = target.ndim < 2 or target.shape[-1] == 1
        return target.flatten() if alone and bool(((target == 0) | (target == 1)).all()) else None
    if criterion.function not in CLASSIFIES or criterion.input.ndim < 2:
        return None
    if target.is_floating_point():  # probabilities [B, C, ...]
        return target.argmax(1).flatten() if target.ndim > 1 else None
    return target[target >= 0].flatten()  # others, -100 say, are ignored


@finder
def worse_than_guessing(evidence: Evidence) -> Iterator[Finding]:
    """Find a cross entropy that is far above that of equal probabilities."""
    for criterion in evidence.criteria:
        logits, labels = criterion.input.detach(), _labels(criterion)
        if criterion.function is not CLASSIFIES[0] or labels is None or logits.shape[1] < 2:
            continue
        if criterion.target is None or criterion.target.is_floating_point() or logits.ndim != 2:
            continue
        kept = criterion.target >= 0
        value = float(torch.nn.functional.cross_entropy(logits[kept].double(), labels))
        guess = math.log(logits.shape[1])
        if value > _WORSE * guess:
            severity: Severity = "warning" if value > _FAR_WORSE * guess else "note"
            of = {"classes": logits.shape[1], "guess": guess}
            of["spread"] = float(logits.double().std(1).mean())
            yield measured("worse-than-guessing", "", value, severity, **of)
            return
