"""Find parameters that an optimizer has not, decays, or moves by too much or too little a step."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from tracetorch.core.snapshot import random_restored
from tracetorch.core.walk import named_modules
from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, finder, measured
from tracetorch.diagnosis.parameters import listed
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.relative_scale import relative_scales

# a weight this many times as large as PyTorch's default, at a rate that is this for the default
_LARGE, _SLOW = 8.0, 3e-4
_FAST = 0.499  # by which a value moves whatever its gradient is, where that is above the weight too
_TINY, _TINY_RATE = 1e-5, 1e-4  # of the size of a weight, for a rate that is tiny
_STEPS = 8  # RAdam's first five follow the gradient
_MOMENTUM = 0.999  # the largest that is known
_FACTOR = 1e6  # of gradients, to see whether steps follow them
_ENDED = 1e-2  # of the highest rate of a schedule
_LEAST = 1e-12  # a share of a weight
_WARM_UP = ", or its warm-up begins"


class _Step(NamedTuple):
    """Movement of a weight by an optimizer, the largest where gradients stay as they are."""

    rate: float
    share: float  # of the norm of the weight
    largest: float  # of its values
    final: float  # norm of the last one


@finder
def optimizer(evidence: Evidence) -> Iterator[Finding]:
    """Find parameters that the optimizer does not have, or does not move, or decays."""
    groups, total = _groups(evidence), len(evidence.gradients)
    if evidence.optimizer is None:
        return
    missing = [name for name in evidence.gradients if name not in groups]
    row = "not-in-optimizer/none" if len(missing) == total else "not-in-optimizer"
    yield from listed(row, missing, total=total)
    stopped = [n for n, group in groups.items() if float(group.get("lr", 1.0)) == 0]
    severity = "error" if len(stopped) == total else "warning"
    yield from listed("learning-rate-zero", stopped, value=0.0, severity=severity, total=total)
    decays = {n: float(group.get("weight_decay", 0.0)) for n, group in groups.items()}
    decayed = [n for n, v in decays.items() if n.rpartition(".")[2].startswith("raw_") and v > 0]
    strongest = max((decays[name] for name in decayed), default=0.0)
    yield from listed("weight-decay-on-neurons", decayed, value=strongest)


def _groups(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Return the settings of what the optimizer has of the parameters that learn."""
    every = [] if evidence.optimizer is None else evidence.optimizer.param_groups
    by_id = {id(p): group for group in every for p in group["params"]}
    ids = {name: id(evidence.parameters[name]) for name in evidence.gradients}
    return {name: by_id[i] for name, i in ids.items() if i in by_id}


@finder
def steps(evidence: Evidence) -> Iterator[Finding]:
    """Find rates at which steps overwrite the weights, or hardly move them."""
    found, groups = _steps(evidence), _groups(evidence)
    if not found:
        return
    kind = type(evidence.optimizer).__name__
    large = {
        name: ratio
        for name, _, ratio in relative_scales(evidence.model)
        if name in found and ratio >= _LARGE * _known(groups[name], name)
    }
    fast = {name: step.share for name, step in found.items() if step.share >= 1}
    fixed = _fixed(evidence, found) if large or fast else set()
    fast = {n: v for n, v in fast.items() if found[n].largest >= _FAST or n not in fixed}
    if fast:
        name = max(fast, key=fast.__getitem__)
        of = {"kind": kind, "rate": found[name].rate, "value": fast[name]}
        of["weights"] = f"{len(fast)} weights by more than they are"
        if len(fast) == 1:
            of["weights"] = "one weight by more than it is"
        yield from listed("large-steps", fast, name, **of)
    moved = {name: step.share for name, step in found.items() if step.rate > 0}
    rates = {name: found[name].rate / large[name] for name in fixed & large.keys()}
    slow = {name: rate for name, rate in rates.items() if 0 < rate < _SLOW}
    tiny = bool(moved) and max(moved.values()) < _TINY
    tiny = tiny and all(found[name].rate <= _TINY_RATE for name in moved)
    rates_before = ("initial_lr", "max_lr")  # as schedulers leave them
    peaks = {n: max(float(groups[n].get(key, 0.0)) for key in rates_before) for n in moved}
    ended = [name for name in moved if found[name].rate < _ENDED * peaks[name]]
    if ended and (slow or tiny):
        name = max(ended, key=lambda name: found[name].rate)
        of = {"value": found[name].rate, "peak": peaks[name], "share": moved[name]}
        begins = "" if evidence.optimizer and evidence.optimizer.state else _WARM_UP
        yield from listed("small-steps/ended", ended, name, begins=begins, **of)
    elif slow:
        name = min(slow, key=slow.__getitem__)
        of = {"value": slow[name], "large": _LARGE}
        yield from listed("small-steps/large-weights", slow, name, **of)
    elif tiny:
        name = max(moved, key=moved.__getitem__)
        of = {"kind": kind, "rate": found[name].rate, "count": 1 / max(moved[name], _LEAST)}
        yield measured("small-steps", name, moved[name], **of)


def _known(group: dict[str, Any], name: str) -> float:
    """Return the ratio to which ``tt.param_groups`` has made the rate of a weight relative.

    ``tt.recipe`` says more about some behind a comma.
    """
    path, times, ratio = str(group.get("name", "")).partition(",")[0].rpartition(" x ")
    return float(ratio) if times and path == name else 1.0


def _weights(evidence: Evidence) -> dict[str, Tensor]:
    """Return the gradients of weights that an optimizer has, but for delays, which are in steps.

    Where one is zero, that behind weights that are not: it comes a step later.
    """
    # a parametrization, as of quantize.prepare, keeps the name
    delays = {
        id(p)
        for _, module in named_modules(evidence.model)
        if isinstance(module, DelayingLayer)
        for name, p in module.named_parameters()
        if "raw_delay" in name.split(".")
    }
    return {
        name: gradient
        for name in _groups(evidence)
        for gradient in (evidence.later_gradients.get(name), evidence.gradients[name])
        if gradient is not None and gradient.any()
        if (p := evidence.parameters[name]).ndim > 1 and p.any() and id(p) not in delays
    }


def _steps(evidence: Evidence, factor: float = 1.0) -> dict[str, _Step]:
    """Let a copy of the optimizer make some steps on copies of the weights, with equal gradients.

    Empty for an optimizer whose step takes more than gradients, a closure say.
    """
    weights, groups = _weights(evidence), _groups(evidence)
    if evidence.optimizer is None or not weights:
        return {}
    devices = {g.device.index for g in weights.values() if g.is_cuda}
    copies: dict[int, Any] = {}
    moves: dict[str, list[Tensor]] = {name: [] for name in weights}
    with random_restored(devices):
        try:
            trial = copy.deepcopy(evidence.optimizer, copies)
            own = {name: copies[id(evidence.parameters[name])] for name in weights}
            _widen(trial)
            for _ in range(_STEPS):
                before = {name: p.detach().clone() for name, p in own.items()}
                for group in trial.param_groups:
                    for p in group["params"]:
                        p.grad = None
                for name, p in own.items():
                    p.grad = weights[name].to(p.dtype, copy=True) * factor
                trial.step()
                for name, p in own.items():
                    moves[name].append(p.detach() - before[name])
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, AssertionError):
            return {}
    return {
        name: _Step(
            float(groups[name].get("lr", 1.0)),
            _most([float(move.double().norm()) for move in each])
            / float(evidence.parameters[name].detach().double().norm()),
            max(float(move.abs().max()) for move in each),
            float(each[-1].double().norm()),
        )
        for name, each in moves.items()
    }


def _widen(optimizer: Optimizer) -> None:
    """Take an optimizer's parameters and states to double precision, which small steps need."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.is_floating_point() and p.device.type != "mps":
                p.data = p.data.double()
                state = optimizer.state.get(p, {})
                for name, each in state.items():
                    if isinstance(each, Tensor) and each.is_floating_point() and each.ndim:
                        state[name] = each.double()


def _most(sizes: list[float]) -> float:
    """Return the largest of some steps, or what they grow to by a momentum."""
    first, second, third = sizes[-3:]
    growth, later = second - first, third - second
    if not 0 < later < growth:
        return max(sizes)
    return max(*sizes, first + growth / (1 - min(later / growth, _MOMENTUM)))


def _fixed(evidence: Evidence, found: dict[str, _Step]) -> set[str]:
    """Return the weights whose steps hardly grow with the gradient, as those of Adam."""
    larger = _steps(evidence, _FACTOR)
    return {n for n, s in larger.items() if s.final < math.sqrt(_FACTOR) * found[n].final}
