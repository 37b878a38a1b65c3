"""Find parameters that do not learn, or not as they should: gradients, optimizers, modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn, optim
from torch.optim import Optimizer

from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import named_modules
from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, Severity, finder, join_first, measured
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.relative_scale import relative_scales

# those whose step is about as large as the learning rate, whatever the gradient
_NORMALISING = (optim.Adam, optim.Adamax, optim.NAdam, optim.RAdam, optim.RMSprop)
# a weight this many times as large as PyTorch's default, at a rate that is this for the default
_LARGE, _SLOW = 8.0, 3e-4
_FAST = 0.5  # a rate, where it is above the size of the weight too
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_TINY = 1e-6  # of the size of a weight, for a rate that is
_TINY_RATE = 1e-4


@finder
def unreached(evidence: Evidence) -> Iterator[Finding]:
    """Find parameters that the loss does not depend on, and zero gradients."""
    trainable = list(evidence.gradients)
    unreached = [name for name, gradient in evidence.gradients.items() if gradient is None]
    if evidence.parameters and not trainable:
        yield measured("error", "nothing-to-learn", "", 0.0)(
            f"None of the {len(evidence.parameters)} parameters requires a gradient.",
            "Training changes nothing.",
            "Undo model.requires_grad_(False), at least for a part of the model.",
        )
        return
    if trainable and unreached == trainable:
        yield measured("error", "loss-without-gradient", "", 0.0)(
            f"The loss depends on none of the {len(trainable)} parameters.",
            "backward() fails, or changes nothing: somewhere the graph is cut.",
            "Look for .detach(), .item(), .data, torch.no_grad(), argmax, a comparison or a "
            "conversion to integers between the model's layers and the loss.",
        )
        return
    if unreached:
        yield measured("warning", "unreached-parameters", unreached[0], len(unreached))(
            f"The loss does not depend on {len(unreached)} of {len(trainable)} parameters: "
            f"{join_first(unreached)}.",
            "They have no gradient, and do not change.",
            "The layer is not called, its output is not used, or the graph is cut behind it by "
            ".detach() or torch.no_grad(). If intended, freeze them: requires_grad_(False).",
        )
    found = [(name, g) for name, g in evidence.gradients.items() if g is not None]
    opened = evidence.opened
    later = {} if opened is None else {n: g for n, g in opened.gradients.items() if g is not None}
    zero = [
        name
        for name, g in found
        if g.ndim > 1 and not bool(g.any()) and not (name in later and bool(later[name].any()))
    ]
    if zero:
        yield measured("warning", "zero-gradient", zero[0], len(zero))(
            f"The gradient of {len(zero)} weights is exactly zero: {join_first(zero)}.",
            "They are part of the graph, but no gradient arrives at their output, or their input "
            "is zero.",
            "The layer before is silent, or the one behind passes no gradient: see their findings. "
            "A threshold that is a plain comparison, without a surrogate, has this effect too.",
        )
    frozen = [name for name in evidence.parameters if name not in evidence.gradients]
    if frozen:
        yield measured("note", "frozen-parameters", frozen[0], len(frozen))(
            f"{len(frozen)} of {len(evidence.parameters)} parameters do not require a gradient: "
            f"{join_first(frozen)}.",
            "They do not change.",
            "Call requires_grad_(True) on them, if that is not intended.",
        )


def _groups(optimizer: Optimizer | None) -> dict[int, dict[str, Any]]:
    """Return the settings of every parameter, if the size of a step follows from the rate alone."""
    if not isinstance(optimizer, _NORMALISING):
        return {}
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


@finder
def optimizer(evidence: Evidence) -> Iterator[Finding]:
    """Find parameters that the optimizer does not have, or does not move, or decays."""
    if evidence.optimizer is None:
        return
    trainable = list(evidence.gradients)
    by_id = {id(p): g for g in evidence.optimizer.param_groups for p in g["params"]}
    ids = {name: id(evidence.parameters[name]) for name in trainable}
    groups = {name: by_id[ids[name]] for name in trainable if ids[name] in by_id}
    missing = [name for name in trainable if name not in groups]
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
    stopped = [n for n, group in groups.items() if float(group.get("lr", 1.0)) == 0]
    if stopped:
        severity: Severity = "error" if stopped == trainable else "warning"
        yield measured(severity, "learning-rate-zero", stopped[0], 0.0)(
            f"The learning rate of {len(stopped)} of {len(trainable)} parameters is 0: "
            f"{join_first(stopped)}.",
            "They do not change.",
            "Look at the scheduler: a decay that has run out, a warm-up that was never stepped.",
        )
    decays = {n: float(group.get("weight_decay", 0.0)) for n, group in groups.items()}
    decayed = [n for n, v in decays.items() if n.rpartition(".")[2].startswith("raw_") and v > 0]
    if decayed:
        strongest = max(decays[name] for name in decayed)
        yield measured("note", "weight-decay-on-neurons", decayed[0], strongest)(
            f"The optimizer decays {len(decayed)} parameters of neurons, by up to {strongest:g}: "
            f"{join_first(decayed)}.",
            "Weight decay pulls raw parameters such as raw_beta to 0, and so every decay to 0.5 "
            "and every threshold to 0.69, whatever the data.",
            "tt.param_groups(model, weight_decay) excludes them.",
        )


@finder
def small_steps(evidence: Evidence) -> Iterator[Finding]:
    """Find weights that are large for an optimizer whose steps do not grow with them."""
    groups = _groups(evidence.optimizer)
    rates = {
        path: float(groups[id(p)]["lr"]) / ratio
        for path, p, ratio in relative_scales(evidence.model)
        if p.ndim > 1 and p.requires_grad and id(p) in groups and ratio >= _LARGE
    }
    slow = {path: rate for path, rate in rates.items() if 0 < rate < _SLOW}
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


@finder
def large_steps(evidence: Evidence) -> Iterator[Finding]:
    """Find rates so high that one step of an optimizer overwrites the weights."""
    groups = _groups(evidence.optimizer)
    # those of delays are in steps; a parametrization, as of quantize.prepare, keeps the name
    delays = {
        id(p)
        for _, module in named_modules(evidence.model)
        if isinstance(module, DelayingLayer)
        for name, p in module.named_parameters()
        if "raw_delay" in name.split(".")
    }
    weights = {
        path: (float(groups[id(p)]["lr"]), float(p.detach().double().square().mean().sqrt()))
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


@finder
def gradient_steps(evidence: Evidence) -> Iterator[Finding]:
    """Find rates of SGD by which a step overwrites the weights, or does not move them."""
    if not isinstance(evidence.optimizer, optim.SGD):
        return
    steps: dict[str, tuple[float, float]] = {}  # relative to the weight, and the rate
    for group in evidence.optimizer.param_groups:
        ids = {id(p) for p in group["params"]}
        # what momentum sums up of equal gradients
        rate = float(group["lr"]) / max(1e-3, 1 - float(group.get("momentum", 0.0)))
        for name, gradient in evidence.gradients.items():
            p = evidence.parameters[name]
            if id(p) in ids and p.ndim > 1 and p.any() and gradient is not None and gradient.any():
                sizes = [float(each.detach().double().norm()) for each in (gradient, p)]
                steps[name] = rate * sizes[0] / sizes[1], rate
    fast = {name: step for name, (step, _) in steps.items() if step >= 1}
    if fast:
        name = max(fast, key=fast.__getitem__)
        yield measured("warning", "large-steps", name, fast[name])(
            f"A step of SGD changes {len(fast)} weights by more than they are: "
            f"{join_first([*fast])}. At the rate {steps[name][1]:.3g} that of {name} is "
            f"{fast[name]:.3g} times the weight.",
            "The gradient is valid near the weights alone: such a step lands anywhere.",
            "Lower the learning rate, until a step changes a weight by a hundredth of it or less.",
        )
    slow = {name: step for name, (step, rate) in steps.items() if 0 < rate <= _TINY_RATE}
    if slow and max(slow.values()) < _TINY and len(slow) == len(steps):
        name = max(slow, key=slow.__getitem__)
        yield measured("warning", "small-steps", name, slow[name])(
            f"A step of SGD changes no weight by more than {slow[name]:.2g} of it, at the rate "
            f"{steps[name][1]:.3g}.",
            "It would take a million steps to change what the network does.",
            "Raise the learning rate: 0.1 is usual for SGD, 1e-3 for Adam. A warm-up may begin "
            "here, where the scheduler is stepped.",
        )


@finder
def evaluation_mode(evidence: Evidence) -> Iterator[Finding]:
    """Find norms and dropout that are in evaluation mode."""
    kinds = (BatchNormBase, *_DROPOUTS, LockedDropout)
    found = {
        path: module
        for path, module in named_modules(evidence.model)
        if isinstance(module, kinds) and not module.training and getattr(module, "p", 1.0) > 0
    }
    # a norm that is frozen is left there on purpose
    left = {
        path: module
        for path, module in found.items()
        if not (params := list(module.parameters())) or any(p.requires_grad for p in params)
    }
    if not left:
        return
    fresh = [
        path
        for path, module in left.items()
        if isinstance(module, BatchNormBase) and int(module.num_batches_tracked or 0) == 0
    ]
    partly = any(module.training for _, module in named_modules(evidence.model))
    training = fresh or partly or evidence.optimizer is not None
    severity: Severity = "warning" if training else "note"
    unseen = f" {len(fresh)} of them have seen no batch yet." if fresh else ""
    yield measured(severity, "in-evaluation-mode", next(iter(left)), len(left))(
        f"{len(left)} norms and dropouts are in evaluation mode: {join_first(list(left))}.{unseen}",
        "A norm then takes the statistics that it has gathered, and not those of the batch; "
        "dropout does nothing.",
        "Call model.train() before training, and model.eval() before testing. Where a norm is left "
        "so on purpose, freeze it: requires_grad_(False).",
    )
