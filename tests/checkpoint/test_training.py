"""A training resumes exactly from one file of ``torch.save``, as the pages show it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, lr_scheduler
from torch.utils import _pytree as pytree

import tracetorch as tt
from tracetorch import snn

MEMORIES: dict[str, Callable[[], list[nn.Module]]] = {
    "recurrent": lambda: [snn.Recurrent(snn.LIF(4), nn.Linear(4, 4)), nn.Dropout(0.3)],
    "delays": lambda: [snn.DelayedLinear(4, 4, max_delay=3), snn.Delay(4, max_delay=2)],
    "noise": lambda: [snn.LockedDropout(4), snn.Noise(4)],
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: AdamW(p, lr=0.01),
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 4]),  # keeps a Counter
    "two": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


def same(one: Any, other: Any) -> bool:
    """Whether two ``state_dict``s hold the same values, in containers of the same kind."""
    (leaves, spec), (others, other_spec) = map(pytree.tree_flatten, (one, other))
    return spec == other_spec and all(
        torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
        for a, b in zip(leaves, others, strict=True)
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_training_with_live_states_goes_on_bit_equal(
    memory: str, kind: str, schedule: str, cast: Any, tmp_path: Path
) -> None:
    x, file = torch.rand(14, 3, 4), tmp_path / "training"

    def start(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        layers = nn.Linear(4, 4), *MEMORIES[memory](), nn.Linear(4, 2), snn.Readout(2)
        model = nn.Sequential(*layers)
        optimizer = OPTIMIZERS[kind](tt.param_groups(model, 0.0, lr=0.01, relative=True))
        scaler = torch.amp.GradScaler("cpu", 1024.0, growth_interval=2, enabled=cast is not None)
        made = {"model": model, "optimizer": optimizer, "scaler": scaler}
        return {**made, "scheduler": SCHEDULERS[schedule](optimizer)}

    def train(parts: dict[str, Any], x: Tensor) -> list[Tensor]:
        model, optimizer, scaler, scheduler = parts.values()
        outputs = []
        for piece in x.split(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", cast, enabled=cast is not None):
                y = tt.unroll(model, piece)
            scaler.scale(y.float().square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            tt.detach_states(model)
            outputs.append(y.detach())
        return outputs

    parts = start(0)
    train(parts, x[:6])
    content = {name: part.state_dict() for name, part in parts.items()}
    states, numbers = tt.get_states(parts["model"]), torch.get_rng_state()
    torch.save({**content, "states": states, "numbers": numbers}, file)
    expected, number = train(parts, x[6:]), torch.rand(1)

    again, content = start(1), torch.load(file, weights_only=True)
    for name, part in again.items():
        part.load_state_dict(content[name])
    tt.set_states(again["model"], content["states"])
    torch.set_rng_state(content["numbers"])
    assert same(train(again, x[6:]), expected)
    for name, part in again.items():
        assert same(part.state_dict(), parts[name].state_dict())
    assert same(tt.get_states(again["model"]), tt.get_states(parts["model"]))
    assert torch.equal(number, torch.rand(1))
