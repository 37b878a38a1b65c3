"""Find losses that do not say what is wanted: raised, of bounded logits, of one class."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tracetorch.diagnosis.criteria import BINARY, CLASSIFIES, Criterion
from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, Severity, finder, measured

_WORSE, _FAR_WORSE = 3.0, 10.0  # times the cross entropy of a guess
_FEW = 8  # samples, with fewer of which one class is no surprise
_ROUNDING = 1e-2


@finder
def raised_loss(evidence: Evidence) -> Iterator[Finding]:
    """Find a loss that grows as what it is made of falls."""
    losses = [each for each in evidence.criteria if each.target is not None]
    # of squares alone a negative sum is a fault: one among others may spread what shall differ
    judged = losses or (evidence.criteria if float(evidence.loss) < 0 else [])
    groups = () if evidence.optimizer is None else evidence.optimizer.param_groups
    maximized = any(group.get("maximize", False) for group in groups)
    if judged and all(each.direction == (1 if maximized else -1) for each in judged):
        name = getattr(judged[0].function, "__name__", "loss")
        yield measured("error", "loss-raised", "", float(evidence.loss))(
            f"The optimizer maximizes the {name} of the output (maximize=True)."
            if maximized
            else f"The loss is {float(evidence.loss):.3g}, and falls where the {name} of the "
            "output grows.",
            "Each step of the optimizer makes the answers worse.",
            "Take maximize=True out of the optimizer."
            if maximized
            else "Take the minus sign out of the loss: an optimizer minimizes it.",
        )


@finder
def bounded_logits(evidence: Evidence) -> Iterator[Finding]:
    """Find activations between the output and a loss that takes logits."""
    for criterion in evidence.criteria:
        activation = evidence.activations.get(id(criterion))
        if activation is None:
            continue
        name = getattr(criterion.function, "__name__", "loss")
        if activation == "ReLU":
            given = criterion.input.detach()
            share = float((given == 0).double().mean())
            if float(given.min()) < 0:  # a clamp that keeps the sign
                continue
            yield measured("warning", "relu-on-logits", "", share)(
                f"A ReLU is between the last weights and {name}; {100 * share:.3g} % of what it "
                "is given is 0.",
                "No class can be spoken against: its logit ends at 0, and has no gradient there.",
                "Take the ReLU out: the last layer is linear, or a readout.",
            )
            continue
        yield measured("error", "activation-before-loss", "", float(evidence.loss))(
            f"{name} is given the output of a {activation}, and takes logits: it has a softmax or "
            "a sigmoid of its own.",
            "Of numbers from 0 to 1 (-1 to 1 of a tanh) the second one makes nearly equal "
            "probabilities: the loss cannot come near 0, and its gradient is small.",
            f"Take the {activation} out, and apply it where probabilities are read.",
        )


@finder
def log_probabilities(evidence: Evidence) -> Iterator[Finding]:
    """Find a negative log-likelihood of what are no logarithms of probabilities."""
    for criterion in evidence.criteria:
        x = criterion.input.detach()
        if criterion.function is not CLASSIFIES[1] or x.ndim < 2 or not bool(x.isfinite().all()):
            continue
        total = float(x.double().exp().sum(1).mean())
        if not math.isclose(total, 1.0, abs_tol=_ROUNDING):
            yield measured("error", "no-log-probabilities", "", total)(
                f"nll_loss is given values whose exponentials sum up to {total:.3g}, and takes "
                "logarithms of probabilities, for which that is 1.",
                "The loss falls without end as the output grows, whatever the other classes are.",
                "Use F.cross_entropy, which takes the output as it is, or log_softmax before it.",
            )


@finder
def one_class(evidence: Evidence) -> Iterator[Finding]:
    """Find targets that are of one class."""
    for criterion in evidence.criteria:
        labels = _labels(criterion)
        if labels is not None and len(labels) >= _FEW and bool((labels == labels[0]).all()):
            yield measured("warning", "one-class", "", float(labels[0]))(
                f"All {len(labels)} targets of this batch are of the class {int(labels[0])}.",
                "The network learns to give this answer whatever it sees, and forgets it with the "
                "next class.",
                "Shuffle the data: DataLoader(..., shuffle=True). Where the files are sorted by "
                "class, a subset of the first ones has one class too.",
            )
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
            spread = float(logits.double().std(1).mean())
            severity: Severity = "warning" if value > _FAR_WORSE * guess else "note"
            yield measured(severity, "worse-than-guessing", "", value)(
                f"The cross entropy is {value:.3g}, that of equal probabilities for all "
                f"{logits.shape[1]} classes is {guess:.3g}; logits differ by {spread:.3g} in the "
                "mean.",
                "The network is sure of wrong answers: training begins with unlearning them, by "
                "large gradients.",
                "Before training: scale down the last weights, or the outputs (a mean over time in "
                "place of a sum). Of a trained network: look at the order of the classes, and "
                "whether the inputs are scaled as in training.",
            )
            return
