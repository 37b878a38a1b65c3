"""Find parameters without gradient, frozen ones, and those that no optimizer updates."""

from __future__ import annotations

from collections.abc import Iterator

from torch import optim
from torch.optim import Optimizer

from tracetorch.core.walk import named_modules
from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, join_first, measured
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.relative_scale import relative_scales

# those whose step is about as large as the learning rate, whatever the gradient
_NORMALISING = (optim.Adam, optim.Adamax, optim.NAdam, optim.RAdam, optim.RMSprop)
# a weight this many times as large as PyTorch's default, at a rate that is this for the default
_LARGE, _SLOW = 8.0, 3e-4
_FAST = 0.5  # a rate, where it is above the size of the weight too


def findings(evidence: Evidence, optimizer: Optimizer | None) -> Iterator[Finding]:
    """Find the reasons why parameters do not change in training."""
    trainable = list(evidence.gradients)
    if evidence.parameters and not trainable:
        yield measured("error", "nothing-to-learn", "", 0.0)(
            f"None of the {len(evidence.parameters)} parameters requires a gradient.",
            "Training changes nothing.",
            "Undo model.requires_grad_(False), at least for a part of the model.",
        )
    elif trainable and all(evidence.gradients[name] is None for name in trainable):
        yield measured("error", "loss-without-gradient", "", 0.0)(
            f"The loss depends on none of the {len(trainable)} parameters.",
            "backward() fails, or changes nothing: somewhere the graph is cut.",
            "Look for .detach(), .item(), .data, torch.no_grad(), argmax, a comparison or a "
            "conversion to integers between the model's layers and the loss.",
        )
    else:
        yield from _unreached(evidence, trainable)
        yield from _frozen(evidence)
    if optimizer is not None:
        yield from _optimizer(evidence, optimizer)


def _unreached(evidence: Evidence, trainable: list[str]) -> Iterator[Finding]:
    unreached = [name for name in trainable if evidence.gradients[name] is None]
    if unreached:
        yield measured("warning", "unreached-parameters", unreached[0], len(unreached))(
            f"The loss does not depend on {len(unreached)} of {len(trainable)} parameters: "
            f"{join_first(unreached)}.",
            "They have no gradient, and do not change.",
            "The layer is not called, its output is not used, or the graph is cut behind it by "
            ".detach() or torch.no_grad(). If intended, freeze them: requires_grad_(False).",
        )
    zero = [
        name
        for name in trainable
        if (g := evidence.gradients[name]) is not None and g.ndim > 1 and not bool(g.any())
    ]
    if zero:
        yield measured("warning", "zero-gradient", zero[0], len(zero))(
            f"The gradient of {len(zero)} weights is exactly zero: {join_first(zero)}.",
            "They are part of the graph, but no gradient arrives at their output, or their input "
            "is zero.",
            "The layer before is silent, or the one behind passes no gradient: see their findings. "
            "A threshold that is a plain comparison, without a surrogate, has this effect too.",
        )


def _frozen(evidence: Evidence) -> Iterator[Finding]:
    frozen = [name for name in evidence.parameters if name not in evidence.gradients]
    if frozen:
        yield measured("note", "frozen-parameters", frozen[0], len(frozen))(
            f"{len(frozen)} of {len(evidence.parameters)} parameters do not require a gradient: "
            f"{join_first(frozen)}.",
            "They do not change.",
            "Call requires_grad_(True) on them, if that is not intended.",
        )


def _optimizer(evidence: Evidence, optimizer: Optimizer) -> Iterator[Finding]:
    groups = optimizer.param_groups
    groups_by_id = {id(p): group for group in groups for p in group["params"]}
    trainable = list(evidence.gradients)
    missing = [name for name in trainable if id(evidence.parameters[name]) not in groups_by_id]
    if missing:
        none = len(missing) == len(trainable)
        yield measured(
            "error" if none else "warning", "not-in-optimizer", missing[0], len(missing)
        )(
            f"The optimizer has {'none' if none else f'not {len(missing)}'} of the "
            f"{len(trainable)} parameters that require a gradient: {join_first(missing)}.",
            "They get gradients, and are never updated.",
            "Make the optimizer from model.parameters() after the model is complete and on its "
            "device. Layers in a plain list are not among model.parameters(): use nn.ModuleList."
            if not none
            else "The optimizer was made from another model, or before this one was built anew. "
            "Make it from this model's parameters().",
        )
    yield from _settings(evidence, groups_by_id, trainable)
    if isinstance(optimizer, _NORMALISING):
        yield from _small_steps(evidence, groups_by_id)
        yield from _large_steps(evidence, groups_by_id)


def _settings(
    evidence: Evidence, groups: dict[int, dict[str, object]], trainable: list[str]
) -> Iterator[Finding]:
    """Find learning rates of zero, and weight decay on parameters of neurons."""

    def number(name: str, key: str) -> float:
        # Not every optimizer has both settings.
        value = groups.get(id(evidence.parameters[name]), {}).get(key, 1.0 if key == "lr" else 0.0)
        return float(value)  # type: ignore[arg-type]

    stopped = [name for name in trainable if number(name, "lr") == 0]
    if stopped:
        yield measured(
            "error" if len(stopped) == len(trainable) else "warning",
            "learning-rate-zero",
            stopped[0],
            0.0,
        )(
            f"The learning rate of {len(stopped)} of {len(trainable)} parameters is 0: "
            f"{join_first(stopped)}.",
            "They do not change.",
            "Look at the scheduler: a decay that has run out, a warm-up that was never stepped.",
        )
    decayed = [
        name
        for name in trainable
        if name.rpartition(".")[2].startswith("raw_") and number(name, "weight_decay") > 0
    ]
    if decayed:
        strongest = max(number(name, "weight_decay") for name in decayed)
        yield measured("note", "weight-decay-on-neurons", decayed[0], strongest)(
            f"The optimizer decays {len(decayed)} parameters of neurons, by up to {strongest:g}: "
            f"{join_first(decayed)}.",
            "Weight decay pulls raw parameters such as raw_beta to 0, and so every decay to 0.5 "
            "and every threshold to 0.69, whatever the data.",
            "tt.param_groups(model, weight_decay) excludes them.",
        )


def _small_steps(evidence: Evidence, groups: dict[int, dict[str, object]]) -> Iterator[Finding]:
    """Find weights that are large for an optimizer whose steps do not grow with them."""
    slow = {
        path: float(groups[id(p)]["lr"]) / ratio  # type: ignore[arg-type]
        for path, p, ratio in relative_scales(evidence.model)
        if p.ndim > 1 and p.requires_grad and id(p) in groups and ratio >= _LARGE
    }
    slow = {path: rate for path, rate in slow.items() if 0 < rate < _SLOW}
    if slow:
        slowest = min(slow, key=slow.__getitem__)
        yield measured("warning", "small-steps", slowest, slow[slowest])(
            f"{len(slow)} weights are at least {_LARGE:g} times as large as PyTorch's default: "
            f"{join_first(list(slow))}. For them the learning rate is as {slow[slowest]:.2g} is "
            "for weights of the default size.",
            "The optimizer moves each weight by about the learning rate a step, however large it "
            "is: these hardly change.",
            "tt.param_groups(model, weight_decay, lr=1e-2, relative=True), after "
            "tt.init.calibrate_, gives each weight a rate of its size.",
        )


def _large_steps(evidence: Evidence, groups: dict[int, dict[str, object]]) -> Iterator[Finding]:
    """Find rates so high that one step of an optimizer overwrites the weights."""
    # those of delays are in steps; a parametrization, as of quantize.prepare, keeps the name
    delays = {
        id(p)
        for _, module in named_modules(evidence.model)
        if isinstance(module, DelayingLayer)
        for name, p in module.named_parameters()
        if "raw_delay" in name.split(".")
    }
    weights = {
        path: (float(groups[id(p)]["lr"]), float(p.detach().double().square().mean().sqrt()))  # type: ignore[arg-type]
        for path, p in evidence.parameters.items()
        if p.ndim > 1 and p.requires_grad and id(p) in groups and id(p) not in delays and p.any()
    }
    fast = {path: both for path, both in weights.items() if both[0] >= max(_FAST, both[1])}
    if fast:
        path = max(fast, key=lambda path: fast[path][0])
        rate, size = fast[path]
        count, they = f"{len(fast)} weights", "they are"
        if len(fast) == 1:
            count, they = "one weight", "it is"
        yield measured("warning", "large-steps", path, rate)(
            f"The learning rate of {count} is at least {_FAST:g}, and larger than {they}: "
            f"{join_first(list(fast))}. That of {path} is {rate:.3g}, the root mean square of its "
            f"values {size:.2g}.",
            "The optimizer moves each value by about the learning rate a step, however small its "
            "gradient is: the first step overwrites these weights.",
            "Begin with 1e-2 or 1e-3. tt.param_groups(model, weight_decay, lr=1e-2, relative=True) "
            "gives each weight a rate of its size.",
        )
