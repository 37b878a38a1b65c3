"""Draw random steps: operations, branches, views, changes in place, and states nothing reads."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)

from tests import cases
from tracetorch import snn

SEEDS = range(60)
# Operations that keep numbers of order 1 of that order, and have no jumps but at whole numbers.
UNARY = (
    *("torch.tanh({a})", "torch.sigmoid({a})", "torch.relu({a})", "F.gelu({a})", "F.silu({a})"),
    *("F.mish({a})", "F.relu6({a})", "torch.expm1({a}.clamp(-2, 2))", "F.hardtanh({a})"),
    *("F.elu({a})", "F.celu({a})", "F.selu({a})", "F.softsign({a})", "F.softplus({a})"),
    *("-F.softplus(-{a})", "F.leaky_relu({a})", "F.tanhshrink({a})", "torch.sin({a})"),
    *("torch.atan({a})", "{a}.abs()", "-{a}", "torch.exp(-{a}.abs())", "torch.log1p({a}.abs())"),
    *("torch.erf({a})", "torch.sqrt({a} * {a} + 0.1)", "torch.square({a}.clamp(-2, 2))"),
    *("torch.asinh({a})", "torch.nan_to_num({a})", "torch.fmod({a}, 3.0)", "{a} % 4.0"),
    "torch.frac({a})",
)
BINARY = (
    *("{a} + {b}", "{a} - {b}", "{a} * torch.tanh({b})", "{a} / (1 + {b}.abs())"),
    *("torch.add({a}, {b}, alpha=0.3)", "torch.lerp({a}, {b}, 0.1)"),
    *("torch.lerp({a}, {b}, torch.sigmoid({b}))", "torch.logaddexp({a}, {b})"),
    "torch.addcmul({a}, {a}.tanh(), {b}.tanh(), value=0.5)",
    "torch.addcdiv({a}, {b}, 1 + {a} * {a}, value=0.2)",
    *("torch.hypot({a}, {b} + 3)", "torch.maximum({a}, {b})", "torch.fmin({a}, {b})"),
    *("torch.atan2({a}, 1 + {b} * {b})", "torch.copysign({a}, {b} + 0.01)"),
    "{a} + torch.div({a}, 1 + {b}.abs(), rounding_mode='trunc')",
    "{a} + torch.div({a}, 1 + {b}.abs(), rounding_mode='floor')",
    "torch.clamp({a}, min=-{b}.abs() - 0.1)",
    "F.huber_loss({a}, {b}, reduction='none')",
)
BRANCHES = (
    "torch.where({a} > {b}, {a}, 0.5 * {b})",
    "torch.where(({a} > -0.2) & ~({b} > 1), {a}, 0.1)",
    "{a} * ({b} > 0.3).to(x.dtype) + {b}",
    "{a}.masked_fill({b} > 1, 0.5)",
    "torch.where({a} > 0, torch.where({b} > 0, 0.2, -0.1), {a})",
    "torch.where({a}.isnan() | {b}.isinf(), 0.0, {a})",
    "torch.round(3 * {a}.clamp(-9, 9)).to(torch.int32).to(x.dtype) * 0.3 + {b}",
    "{a}.detach() * 0.5 + {b}",
)
VIEWS = (
    *("{a}.unsqueeze(-1).squeeze(-1)", "{a}[None].squeeze(0)", "{a}[...]", "{a}.view_as(x)"),
    *("{a}.expand_as(x)", "{a}.flatten().view_as(x)", "{a}.reshape_as(x)"),
    *("{a}.clone()", "({a}.unsqueeze(0) * {b}.unsqueeze(0)).squeeze(0).tanh()"),
)
# Of one name, which is a copy first.
IN_PLACE = (
    "{v} = {a}.clone(); {v} += 0.3 * {b}",
    "{v} = {a} * 0.7; {v}.mul_(0.5).add_({b}, alpha=0.2)",
    "{v} = {a} + {b}; part = {v}.unsqueeze(0); part *= 0.4",
    "{v} = {a} - {b}; part = {v}[...]; part.clamp_(-2, 2)",
    "{v} = torch.tanh({a}).clone(); view = {v}.view(-1); view.mul_(0.5)",
    "{v} = {a} + 0.1; {v}.copy_({b}); {v} -= {a}",
    "{v} = torch.zeros_like(x); {v} += {a}; {v}.lerp_({b}, 0.2)",
)
_TEMPLATE = """
class RandomNeuron(snn.Neuron):
    states = {states}

    def __init__(self):
        super().__init__(5)
        self.decay("beta", 0.8)
        self.threshold("base", 1.0)

    @staticmethod
    def step(x, {arguments}, *, beta, base, spike):
        v0 = beta * mem + x
{body}
        mem = torch.tanh({last} + v0)
        output = spike(mem - 0.5 * base{late})
        trace = torch.lerp(trace, {before}.clamp(-3, 3), 0.1)
{monitors}        return output, {arguments}
"""
_MONITORS = {
    # nothing reads it, or the next step does; their slopes are infinite at silence
    "rms": "rms = torch.sqrt(0.9 * rms**2 + 0.1 * mem**2)",
    "late": "late = torch.sqrt(x * x)",
}


def source(seed: int, *, monitors: bool = False) -> str:
    """Return the code of a neuron whose step is eight random operations."""
    draw = random.Random(seed)
    extra = [name for name in _MONITORS if monitors and draw.random() < 0.6]
    names, body = ["x", "mem", "trace", "v0", *extra], []
    for number in range(1, 9):
        kind = draw.choices((UNARY, BINARY, BRANCHES, VIEWS, IN_PLACE), (5, 4, 2, 1, 1))[0]
        # a monitor is read by no other
        a, b = draw.choice(names[:4] + names[4 + len(extra) :]), draw.choice(names)
        b = a if b in extra and not (kind is BINARY and draw.random() < 0.3) else b
        b = a if b in extra else b
        line, value = draw.choice(kind), f"v{number}"
        body.append((line if kind is IN_PLACE else f"{value} = {line}").format(a=a, b=b, v=value))
        names.append(value)
    states = ("mem", "trace", *extra)
    return _TEMPLATE.format(
        states=states,
        arguments=", ".join(states),
        body="\n".join(f"        {line}" for line in body),
        last=names[-1],
        before=names[-2],
        late=" + 0.1 * late" if "late" in extra else "",
        monitors="".join(f"        {_MONITORS[name]}\n" for name in extra),
    )


def random_neuron(seed: int, *, monitors: bool = False) -> snn.Neuron:
    """Return a neuron of two states, and monitors, whose step is eight random operations."""
    known: dict[str, Any] = {"torch": torch, "F": F, "snn": snn, "__name__": __name__}
    exec(compile(source(seed, monitors=monitors), f"<step {seed}>", "exec"), known)
    # popped: what a class keeps of its step would keep the class by way of these names
    layer: snn.Neuron = known.pop("RandomNeuron")()
    cases.vary(layer)
    return layer
