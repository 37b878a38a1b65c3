"""A training resumes exactly from one file of ``torch.save``, as the pages show it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils import _pytree as pytree

import tracetorch as tt
from tracetorch import snn

Optimizer = torch.optim.Optimizer


def network(width: int = 5) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), snn.LIF(width), nn.Dropout(0.3), nn.Linear(width, 2), snn.Readout(2)
    )


def step(model: nn.Module, optimizer: Optimizer, scheduler: Any = None) -> None:
    """Train on a random batch."""
    model.train()
    loss = tt.unroll(model, torch.rand(6, 3, 4), from_rest=True).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()


def write(file: Path, model: nn.Module, **parts: Any) -> None:
    """Write all that resumes a training."""
    content = {name: part.state_dict() for name, part in {"model": model, **parts}.items()}
    states, numbers = tt.get_states(model), torch.get_rng_state()
    torch.save({**content, "states": states, "numbers": numbers}, file)


def resume(file: Path, model: nn.Module, **parts: Any) -> None:
    """Load what :func:`write` has written."""
    content = torch.load(file, weights_only=True)
    for name, part in {"model": model, **parts}.items():
        part.load_state_dict(content[name])
    tt.set_states(model, content["states"])
    torch.set_rng_state(content["numbers"])


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
}
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
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


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_training_that_goes_on_from_a_file_ends_as_one_without_interruption(
    kind, schedule, tmp_path
) -> None:
    def start() -> tuple[Any, Optimizer, Any]:
        model = network()
        made = OPTIMIZERS[kind](tt.param_groups(model, 0.0, lr=0.01, relative=True))
        return model, made, SCHEDULERS[schedule](made)

    torch.manual_seed(1)
    model, optimizer, scheduler = start()
    for _ in range(3):
        step(model, optimizer, scheduler)
    file = tmp_path / "training.pt"
    write(file, model, optimizer=optimizer, scheduler=scheduler)
    for _ in range(4):
        step(model, optimizer, scheduler)
    number = torch.rand(1)

    other, again, following = start()
    with torch.no_grad():
        other[0].weight.add_(1.0)
    resume(file, other, optimizer=again, scheduler=following)
    for _ in range(4):
        step(other, again, following)
    assert same(other.state_dict(), model.state_dict())
    assert same(again.state_dict(), optimizer.state_dict())
    assert same(following.state_dict(), scheduler.state_dict())
    assert torch.equal(number, torch.rand(1))


def memories(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    inside: dict[str, Callable[[], list[nn.Module]]] = {
        "recurrent": lambda: [snn.Recurrent(snn.LIF(4), nn.Linear(4, 4))],
        "delays": lambda: [snn.DelayedLinear(4, 4, max_delay=3), snn.Delay(4, max_delay=2)],
        "noise": lambda: [snn.LockedDropout(4), snn.Noise(4)],
    }
    return nn.Sequential(nn.Linear(4, 4), *inside[kind](), nn.Linear(4, 2), snn.Readout(2))


@pytest.mark.parametrize("cast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["recurrent", "delays", "noise"])
def test_a_live_stream_in_mixed_precision_goes_on_bit_equal(
    kind: str, cast: torch.dtype | None, tmp_path: Path
) -> None:
    x, file = torch.rand(12, 3, 4), tmp_path / "training"

    def start() -> tuple[nn.Sequential, Optimizer, Any]:
        model = memories(kind)
        scaler = torch.amp.GradScaler("cpu", 1024.0, growth_interval=2, enabled=cast is not None)
        return model, torch.optim.Adam(model.parameters(), lr=0.05), scaler

    def train(model: nn.Module, optimizer: Optimizer, scaler: Any, x: Tensor) -> list[Tensor]:
        outputs = []
        for piece in x.split(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", cast, enabled=cast is not None):
                y = tt.unroll(model, piece)
            scaler.scale(y.float().square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            tt.detach_states(model)
            outputs.append(y.detach())
        return outputs

    training = model, optimizer, scaler = start()
    train(*training, x[:6])
    write(file, model, optimizer=optimizer, scaler=scaler)
    expected = train(*training, x[6:])
    again = start()
    resume(file, again[0], optimizer=again[1], scaler=again[2])
    assert same(train(*again, x[6:]), expected)
    assert same(again[0].state_dict(), model.state_dict())
    assert same(tt.get_states(again[0]), tt.get_states(model))
    assert again[2].state_dict() == scaler.state_dict()
