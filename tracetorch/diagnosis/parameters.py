"""Parameters that the loss does not reach, that are frozen, or that no optimizer moves."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import Optimizer

from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, some


def findings(evidence: Evidence, optimizer: Optimizer | None) -> Iterator[Finding]:
    """What keeps parameters where they are."""
    asked = list(evidence.gradients)
    if evidence.parameters and not asked:
        yield Finding(
            "error",
            "nothing-to-learn",
            "",
            0.0,
            f"None of the {len(evidence.parameters)} parameters requires a gradient.",
            "There is nothing that training could change.",
            "Undo model.requires_grad_(False), or thaw a part of it.",
        )
    elif asked and all(evidence.gradients[name] is None for name in asked):
        yield Finding(
            "error",
            "loss-without-gradient",
            "",
            0.0,
            f"The loss depends on none of the {len(asked)} parameters.",
            "backward() fails, or changes nothing: somewhere the graph is cut.",
            "Look for .detach(), .item(), .data, torch.no_grad(), argmax, a comparison or a "
            "conversion to integers between the model's layers and the loss.",
        )
    else:
        yield from _cut_off(evidence, asked)
        yield from _frozen(evidence)
    if optimizer is not None:
        yield from _optimizer(evidence, optimizer)


def _cut_off(evidence: Evidence, asked: list[str]) -> Iterator[Finding]:
    unreached = [name for name in asked if evidence.gradients[name] is None]
    if unreached:
        yield Finding(
            "warning",
            "unreached-parameters",
            unreached[0],
            float(len(unreached)),
            f"The loss does not depend on {len(unreached)} of {len(asked)} parameters: "
            f"{some(unreached)}.",
            "They have no gradient, and stay as they are.",
            "The layer is not called, its output is not used, or the graph is cut behind it by "
            ".detach() or torch.no_grad(). Where it is meant, freeze them: requires_grad_(False).",
        )
    zero = [
        name
        for name in asked
        if (g := evidence.gradients[name]) is not None and g.ndim > 1 and not bool(g.any())
    ]
    if zero:
        yield Finding(
            "warning",
            "zero-gradient",
            zero[0],
            float(len(zero)),
            f"The gradient of {len(zero)} weights is exactly zero: {some(zero)}.",
            "They are part of the graph, and nothing comes back to them, or nothing but zeros "
            "goes in.",
            "The layer before is silent, or the one behind passes no gradient: see their findings. "
            "A threshold that is a plain comparison, without a surrogate, does it too.",
        )


def _frozen(evidence: Evidence) -> Iterator[Finding]:
    frozen = [name for name in evidence.parameters if name not in evidence.gradients]
    if frozen:
        yield Finding(
            "note",
            "frozen-parameters",
            frozen[0],
            float(len(frozen)),
            f"{len(frozen)} of {len(evidence.parameters)} parameters do not require a gradient: "
            f"{some(frozen)}.",
            "They stay as they are.",
            "requires_grad_(True), if that is not meant.",
        )


def _optimizer(evidence: Evidence, optimizer: Optimizer) -> Iterator[Finding]:
    groups = optimizer.param_groups
    moved = {id(p): group for group in groups for p in group["params"]}
    asked = list(evidence.gradients)
    missing = [name for name in asked if id(evidence.parameters[name]) not in moved]
    if missing:
        none = len(missing) == len(asked)
        yield Finding(
            "error" if none else "warning",
            "not-in-optimizer",
            missing[0],
            float(len(missing)),
            f"The optimizer has {'none' if none else f'not {len(missing)}'} of the {len(asked)} "
            f"parameters that require a gradient: {some(missing)}.",
            "They get gradients, and are never moved.",
            "Make the optimizer from model.parameters() after the model is complete and on its "
            "device. Layers in a plain list are not among model.parameters(): use nn.ModuleList."
            if not none
            else "The optimizer was made from another model, or before this one was built anew. "
            "Make it from this model's parameters().",
        )
    yield from _rates(evidence, moved, asked)


def _rates(
    evidence: Evidence, moved: dict[int, dict[str, object]], asked: list[str]
) -> Iterator[Finding]:
    def number(name: str, key: str) -> float:
        value = moved.get(id(evidence.parameters[name]), {}).get(key, 1.0 if key == "lr" else 0.0)
        return float(value)  # type: ignore[arg-type]

    still = [name for name in asked if number(name, "lr") == 0]
    if still:
        yield Finding(
            "error" if len(still) == len(asked) else "warning",
            "learning-rate-zero",
            still[0],
            0.0,
            f"The learning rate of {len(still)} of {len(asked)} parameters is 0: {some(still)}.",
            "They are not moved.",
            "Look at the scheduler: a decay that has run out, a warm-up that was never stepped.",
        )
    pulled = [
        name
        for name in asked
        if name.rpartition(".")[2].startswith("raw_") and number(name, "weight_decay") > 0
    ]
    if pulled:
        strongest = max(number(name, "weight_decay") for name in pulled)
        yield Finding(
            "note",
            "weight-decay-on-neurons",
            pulled[0],
            strongest,
            f"The optimizer decays {len(pulled)} parameters of neurons, by up to {strongest:g}: "
            f"{some(pulled)}.",
            "Weight decay pulls what is kept as raw_beta to 0, and so every decay to 0.5 and every "
            "threshold to 0.69, whatever the data say.",
            "tt.param_groups(model, weight_decay) leaves them out of it.",
        )
