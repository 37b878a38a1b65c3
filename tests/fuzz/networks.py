"""Compare random networks, unrolled by layer, with the plain loop over time that a user writes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tracetorch as tt
from tests import cases
from tests.fuzz.draw import random_neuron
from tests.networks import Residual
from tests.unrolling.models import dyadic
from tracetorch import snn

WIDTH = 5  # of everything but images


class Populations(nn.Module):
    """Two kinds of neurons side by side."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x[..., :2]), self.second(x[..., 2:])], -1)


class Branches(nn.Module):
    """Multiply the outputs of two bodies, one of which gates the other."""

    def __init__(self, body: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.body, self.gate = body, gate

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * torch.sigmoid(self.gate(x))


@dataclass(frozen=True)
class Case:
    """A network, its input, and how it is unrolled."""

    seed: int
    model: nn.Module
    x: Tensor
    before: Tensor | None
    reset: Tensor | None
    segment: int | None
    record: list[str] | None
    reads: str


def neuron(draw: random.Random, size: int = WIDTH, dim: int = -1) -> snn.Neuron:
    """Draw a neuron layer, at times one whose step is drawn itself."""
    if size == WIDTH and dim == -1 and draw.random() < 0.2:
        return random_neuron(draw.randrange(60))
    name = draw.choice(
        [*cases.LAYERS, "ALIF", "AdLIF", "AlphaLIF", "RefractoryLIF", "QIF", "SigmaDelta"]
    )
    return cases.layer(name, size, dim=dim)


def connection(draw: random.Random) -> nn.Module:
    """Draw what is between two layers of neurons."""
    delay = draw.choice([0, 0, 1, 3])
    if not delay:
        return nn.Linear(WIDTH, WIDTH, bias=draw.random() < 0.7)
    whole = torch.randint(0, delay + 1, (WIDTH, WIDTH), generator=_generator(draw)).float()
    given = whole if draw.random() < 0.5 else whole * 0.75
    return snn.DelayedLinear(WIDTH, WIDTH, max_delay=delay, delay=given)


def stage(draw: random.Random, depth: int = 0) -> nn.Module:
    """Draw a part of a network, which keeps the shape."""
    kinds = ["neuron", "neuron", "connected", "connected", "recurrent", "delay", "norm"]
    kinds += ["populations", "chain in a loop"]
    kinds += ["residual", "branches", "spikes"] * (depth < 2)
    kind = draw.choice(kinds)
    if kind == "neuron":
        return neuron(draw)
    if kind == "connected":
        return nn.Sequential(connection(draw), neuron(draw))
    if kind == "recurrent":
        return snn.Recurrent(neuron(draw), connection(draw))
    if kind == "populations":
        both = Populations(neuron(draw, 2), neuron(draw, 3))
        return snn.Recurrent(both, connection(draw), shape=WIDTH)
    if kind == "chain in a loop":
        return snn.Recurrent(
            nn.Sequential(neuron(draw), nn.Linear(WIDTH, WIDTH), neuron(draw)), connection(draw)
        )
    if kind == "delay":
        delay = torch.randint(0, 4, (WIDTH,), generator=_generator(draw)).float()
        return snn.Delay(WIDTH, max_delay=3, delay=delay * draw.choice([1.0, 0.75]))
    if kind == "norm":
        return draw.choice([nn.LayerNorm(WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()])
    inner = nn.Sequential(*(stage(draw, depth + 1) for _ in range(draw.randrange(1, 3))))
    if kind == "branches":
        return Branches(inner, stage(draw, depth + 1))
    if kind == "spikes":
        body = nn.Sequential(inner, cases.layer("LIF", WIDTH))
        return nn.Sequential(
            cases.layer("LIF", WIDTH), snn.SEWBlock(body, draw.choice(["add", "and", "iand"]))
        )
    return Residual(inner)


def image(draw: random.Random) -> list[nn.Module]:
    """Draw the layers that come before, for images."""
    fold = nn.MaxPool2d(2) if draw.random() < 0.3 else nn.AvgPool2d(2)
    return [nn.Conv2d(1, 3, 3), neuron(draw, 3, -3), fold, nn.Flatten(), nn.Linear(12, WIDTH)]


def _generator(draw: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(draw.randrange(2**31))


def drawn(seed: int) -> Case:
    """Draw a case; sums of products of spikes are exact, for weights are small dyadic numbers."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    images = draw.random() < 0.25
    parts = [*(image(draw) if images else []), *(stage(draw) for _ in range(draw.randrange(1, 5)))]
    model = nn.Sequential(*parts).double().eval()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.copy_((parameter * 16).round() / 16)
    steps, batch = draw.choice([1, 4, 9]), draw.choice([1, 3])
    shape = (steps, batch, 1, 6, 6) if images else (steps, batch, WIDTH)
    x = dyadic(*shape, seed=seed)
    reset = None
    if draw.random() < 0.35:
        reset = torch.rand(steps, batch, generator=_generator(draw)) < 0.3
    segment = draw.choice([1, 2, 4]) if draw.random() < 0.25 else None
    before = x[: draw.randrange(1, steps + 1)].flip(0) if draw.random() < 0.4 else None
    states = [state for m in model.modules() for state in getattr(m, "active_states", ())]
    record = draw.choice(
        [None, ["output"] if states else None, ["mem"] if "mem" in states else None]
    )
    return Case(
        seed, model, x, before, reset, segment, record, draw.choice(["y", "last", "states", "all"])
    )


def looped(case: Case, x: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Run the loop that a user would write; return outputs and states after each step."""
    outputs: list[Tensor] = []
    states: dict[str, list[Tensor]] = {}
    for t, now in enumerate(x.unbind()):
        if case.reset is not None and x is not case.before:
            tt.zero_states(case.model, where=case.reset[t])
        outputs.append(case.model(now))
        for name, state in tt.get_states(case.model).items():
            states.setdefault(name, []).append(state)
    return torch.stack(outputs), states


Run = Callable[[Case, Tensor], "tuple[Tensor, dict[str, Any]]"]


def unrolled(case: Case, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Unroll by layer."""
    options: dict[str, Any] = {"segment": case.segment}
    if x is not case.before:
        options["reset"] = case.reset
        if case.record is not None:
            return tt.unroll(case.model, x, record=case.record, **options)
    return tt.unroll(case.model, x, **options), {}


def results(
    case: Case, run: Run
) -> tuple[dict[str, Tensor], dict[str, Tensor | None], dict[str, Any]]:
    """Return outputs and end states, gradients by name, and trajectories."""
    model, x = case.model, case.x.clone().requires_grad_()
    model.zero_grad()
    tt.zero_states(model)
    if case.before is not None:
        run(case, case.before)
    y, seen = run(case, x)
    ends = dict(tt.get_states(model))
    read = {
        "y": [y],
        "last": [y[-1]],
        "states": [s for s in ends.values() if s.requires_grad] or [y],
        "all": [y, *(s for s in ends.values() if s.requires_grad)],
    }[case.reads]
    torch.stack([cases.weighted_sum(each) for each in read]).sum().backward()
    grads = {"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}
    return {"y": y.detach(), **{n: s.detach() for n, s in ends.items()}}, grads, seen


def check(seed: int) -> str | None:
    """Compare one random network; return why it is refused by layer, if it is."""
    case = drawn(seed)
    values, grads, states = results(case, looped)
    try:
        found, found_grads, seen = results(case, unrolled)
    except ValueError as refused:
        return str(refused)
    near: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": True}
    where = f"network {seed}: {case.model}"
    assert found.keys() == values.keys(), where
    for name, value in values.items():
        torch.testing.assert_close(
            {f"{where} {name}": found[name]}, {f"{where} {name}": value}, **near
        )
    for name, grad in grads.items():
        one = found_grads[name]
        assert (one is None) == (grad is None), f"{name}: absent in {where}"
        if grad is not None:
            scale = {**near, "atol": 1e-9 * (1 + float(grad.abs().nan_to_num(0, 0, 0).max()))}
            torch.testing.assert_close({f"{where} {name}": one}, {f"{where} {name}": grad}, **scale)
    for name, trajectory in seen.items():
        if name in states:
            torch.testing.assert_close(trajectory, torch.stack(states[name]), **near)
    return None
