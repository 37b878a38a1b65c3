"""Optimizer, scheduler, random numbers and progress in a file: exact resuming, refusals."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import tracetorch as tt
from tracetorch import snn

Optimizer = torch.optim.Optimizer


def network(width: int = 5) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), snn.LIF(width), nn.Dropout(0.3), nn.Linear(width, 2), snn.Readout(2)
    )


def step(model: nn.Module, optimizer: Optimizer, scheduler: Any = None) -> None:
    """Train on a random batch, augmented by all three sources of random numbers."""
    x = torch.rand(6, 3, 4) + np.random.rand() * 0.1 + random.random() * 0.1
    model.train()
    loss = tt.unroll(model, x, from_rest=True).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 4]),  # keeps a Counter
    "cosine": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "two": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}
PAIRS = {(name, "cosine") for name in OPTIMIZERS} | {("AdamW", name) for name in SCHEDULERS}


def same(one: Any, other: Any) -> bool:
    """Whether two ``state_dict``s hold the same values, in containers of the same kind."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            type(one) is type(other)
            and one.keys() == other.keys()
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(("kind", "schedule"), sorted(PAIRS))
def test_a_training_that_goes_on_from_a_file_ends_as_one_without_interruption(
    kind, schedule, tmp_path
) -> None:
    def start() -> tuple[Any, Optimizer, Any]:
        model = network()
        made = OPTIMIZERS[kind](tt.param_groups(model, 0.0, lr=0.01, relative=True))
        return model, made, SCHEDULERS[schedule](made)

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    model, optimizer, scheduler = start()
    for _ in range(3):
        step(model, optimizer, scheduler)
    file = tmp_path / "training.safetensors"
    tt.save(model, file, optimizer=optimizer, scheduler=scheduler, rng=True, progress={"epoch": 3})
    for _ in range(4):
        step(model, optimizer, scheduler)
    numbers = [torch.rand(1).item(), np.random.rand(), random.random()]

    other, again, following = start()
    with torch.no_grad():
        other[0].weight.add_(1.0)
    loaded = tt.load(file, other, optimizer=again, scheduler=following, rng=True)
    assert loaded.progress == {"epoch": 3}
    for _ in range(4):
        step(other, again, following)
    assert same(other.state_dict(), model.state_dict())
    assert same(again.state_dict(), optimizer.state_dict())
    assert same(following.state_dict(), scheduler.state_dict())
    assert numbers == [torch.rand(1).item(), np.random.rand(), random.random()]


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
    tt.save(model, file, states=True, optimizer=optimizer, scaler=scaler, rng=True)
    expected = train(*training, x[6:])
    again = start()
    tt.load(file, again[0], states=True, optimizer=again[1], scaler=again[2], rng=True)
    assert same(train(*again, x[6:]), expected)
    assert same(again[0].state_dict(), model.state_dict())
    assert same(tt.get_states(again[0]), tt.get_states(model))
    assert again[2].state_dict() == scaler.state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_stream_goes_on_in_another_dtype_as_the_message_says(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model, x, file = memories("recurrent"), torch.rand(6, 3, 4), tmp_path / "stream"
    with torch.no_grad():
        tt.unroll(model, x)
        tt.save(model, file, states=True)
        other = memories("recurrent").to(dtype)
        with pytest.raises(
            ValueError, match=r"\d more are torch.float32 .* model.to\(torch.float32\), load"
        ):
            tt.load(file, other, states=True)
        tt.load(file, other.float(), states=True)
        expected = tt.unroll(copy.deepcopy(model).to(dtype), x.to(dtype))
        assert torch.equal(tt.unroll(other.to(dtype), x.to(dtype)), expected)


def test_progress_is_written_when_asked_of_numbers_and_text(tmp_path: Path) -> None:
    model, file, progress = network(), tmp_path / "a", ["a", 1, 2.5, None, True, {"nested": (1,)}]
    tt.save(model, file)
    assert tt.load(file, model).progress is None
    tt.save(model, file, progress=progress)
    assert tt.load(file, model).progress == progress
    before = file.read_bytes()
    with pytest.raises(TypeError, match=r"progress\['f'\]\[0\] is a function, which is neither"):
        tt.save(model, file, progress={"f": [lambda: 1]})
    with pytest.raises(TypeError, match="rng must be True or False, got 1"):
        tt.save(model, file, rng=1)  # type: ignore[arg-type]
    assert file.read_bytes() == before


def test_an_optimizer_of_other_parameters_is_refused_and_all_stays(tmp_path: Path) -> None:
    model, file = network(), tmp_path / "training"
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters)
    step(model, optimizer)
    tt.save(model, file, optimizer=optimizer, rng=True)
    step(model, optimizer)
    before, numbers = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    groups = [{"params": parameters[:3]}, {"params": parameters[3:]}]
    for made, message in (
        (torch.optim.Adam(parameters[::-1]), "where the file has '0.weight'"),
        (torch.optim.Adam(parameters[1:]), "has '0.bias' where the file has '0.weight'"),
        (torch.optim.Adam(groups), r"has \[3, 4\] where the file has \[7\]"),
        (torch.optim.Adam([*parameters[:-1], nn.Parameter(torch.zeros(1))]), "has '' where the fi"),
    ):
        with pytest.raises(ValueError, match=message):
            tt.load(file, model, optimizer=made, rng=True)
        assert not made.state_dict()["state"]
    with pytest.raises(ValueError, match=r"holds no scheduler. Save with .* scheduler=scheduler"):
        tt.load(file, model, scheduler=lr_scheduler.StepLR(optimizer, 1))
    tt.save(model, file)
    with pytest.raises(ValueError, match=r"holds no rng. Save with .* rng=True"):
        tt.load(file, model, rng=True)
    assert same(dict(model.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("other", ["SGD", "NAdam", "Adam"])
def test_an_optimizer_or_a_scheduler_of_another_class_is_refused(other, tmp_path) -> None:
    model, file = network(), tmp_path / "training"
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    step(model, optimizer, scheduler)
    tt.save(model, file, optimizer=optimizer, scheduler=scheduler)
    made = OPTIMIZERS[other](model.parameters())
    with pytest.raises(ValueError, match=f"the optimizer is a {other}, in the file it is a AdamW"):
        tt.load(file, model, optimizer=made)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 3)
    with pytest.raises(ValueError, match="the scheduler is a CosineAnnealingLR, in the file it is"):
        tt.load(file, model, optimizer=optimizer, scheduler=cosine)


def test_parameters_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    model, file = network(), tmp_path / "training"
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    tt.save(model, file, optimizer=torch.optim.SGD([*model.parameters(), one]))
    with pytest.raises(ValueError, match=r"2 parameters that are not the model's.*ModuleList"):
        tt.save(model, file, optimizer=torch.optim.SGD([*model.parameters(), one, two]))


def test_a_failure_in_the_middle_restores_all(tmp_path: Path) -> None:
    class Failing:
        """Scheduler that cannot load."""

        def state_dict(self) -> dict[str, Any]:
            return {"a": 1}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            if state_dict["a"] == 2:
                raise RuntimeError("no")

    class Saved(Failing):
        def state_dict(self) -> dict[str, Any]:
            return {"a": 2}

    Saved.__name__ = "Failing"  # the class is compared by its name
    model, file = network(), tmp_path / "training"
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    tt.save(model, file, optimizer=optimizer, scheduler=Saved(), rng=True)
    step(model, optimizer)
    before = [{k: v.clone() for k, v in model.state_dict().items()}, optimizer.state_dict()]
    numbers = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        tt.load(file, model, optimizer=optimizer, scheduler=Failing(), rng=True)
    assert same([dict(model.state_dict()), optimizer.state_dict()], before)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_wrapped_model_has_the_names_of_the_plain_one(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    wrapped: Any = torch.compile(model, backend="eager")
    tt.save(wrapped, tmp_path / "a", optimizer=optimizer)
    fresh = network()
    tt.load(tmp_path / "a", fresh, optimizer=torch.optim.Adam(fresh.parameters()))
