"""``check=True`` on models that are wrong in fifty ways, and on right ones."""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tracetorch as tt
from tests.cases import layer
from tracetorch import snn

T, B, N = 8, 4, 128


class Says(nn.Module):
    """A module that computes a function, between two layers of neurons."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def column(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A fault in one column of 128."""

    def function(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 5:6] = change(x[:, 5:6])
        return y

    return function


BATCH: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(0),
    "mean": lambda x: x - x.mean(0),
    "mean of all": lambda x: x - x.mean(),
    "std": lambda x: x / (x.std(0) + 1),
    "max": lambda x: x / (x.abs().max() + 1),
    "max of the batch": lambda x: x / (x.abs().amax(0) + 1),
    "norm": lambda x: F.normalize(x, dim=0),
    "cumsum": lambda x: x.cumsum(0),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "sort": lambda x: x.sort(0).values,
    "topk": lambda x: x * (x >= x.topk(2, 0).values[-1]),
    "first sample": lambda x: x + x[0],
    "last sample": lambda x: x + x[-1:],
    "neighbour": lambda x: torch.cat([x[:1], x[1:] + x[:-1]]),
    "attention over samples": lambda x: (x @ x.T).softmax(-1) @ x,
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "group norm of the batch": lambda x: F.group_norm(x.T[None], 4)[0].T,
    "layer norm of all": lambda x: F.layer_norm(x, x.shape),
    "reshaped": lambda x: x.reshape(N, -1).T.contiguous(),
    "median": lambda x: x - x.median(0).values,
    "quantile": lambda x: x - x.quantile(0.3, 0),
    "winner": lambda x: x * F.one_hot(x.argmax(0), len(x)).T,
    "one column": column(lambda x: x - x.mean(0)),
    "one column sorted": column(lambda x: x.sort(0).values),
    "one column of the first": column(lambda x: x + x[0]),
    "a small leak": lambda x: x + 0.01 * x.mean(0),
    "the size of the batch": lambda x: x / len(x),
    "a large batch": lambda x: 2 * x if len(x) > B else x,
    "a sum against a bound": lambda x: x if x.abs().sum() > 1000 else -x,
    "the number of spikes": lambda x: x + x.count_nonzero() / 1000,
    "the position": lambda x: x + torch.arange(len(x), dtype=x.dtype)[:, None],
    "a table by position": lambda x: x * torch.linspace(0, 1, len(x))[:, None],
    "only where silent": lambda x: x if bool((x > 0.9).any()) else x.cumsum(0),
    "convolved over the batch": lambda x: F.avg_pool1d(x.T[None], 3, 1, 1)[0].T,
    "dropped samples": lambda x: x * (torch.arange(len(x)) % 3)[:, None],
    "ranks": lambda x: x.argsort(0).argsort(0).to(x.dtype),
    "covariance": lambda x: x @ (x.T @ x) / 10,
}
SEEN: list[Tensor] = []


def remembers_in_a_global(x: Tensor) -> Tensor:
    SEEN.append(x.mean(1, keepdim=True)[:1])
    return x + torch.stack(SEEN).mean()


def remembers_in_a_default() -> Callable[[Tensor], Tensor]:
    def function(x: Tensor, memory: list[float] = []) -> Tensor:  # noqa: B006 (that is the fault)
        memory.append(1.0)
        return x * len(memory)

    return function


def remembers_in_a_closure() -> Callable[[Tensor], Tensor]:
    last = 0.0

    def function(x: Tensor) -> Tensor:
        nonlocal last
        last = 0.5 * last + float(x.mean())
        return x + last

    return function


def remembers_in_an_array() -> nn.Module:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = np.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * float(self.count[0])

    return Held()


def remembers_on_the_class() -> nn.Module:
    class Held(nn.Module):
        count = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).count += 1
            return x * type(self).count

    return Held()


def remembers_in_a_cache() -> Callable[[Tensor], Tensor]:
    @functools.cache
    def numbers() -> list[int]:
        return []

    def function(x: Tensor) -> Tensor:
        numbers().append(1)
        return x * len(numbers())

    return function


IN_CONTEXT = contextvars.ContextVar("IN_CONTEXT", default=0)
IN_THREAD = threading.local()


def remembers_in_a_context(x: Tensor) -> Tensor:
    IN_CONTEXT.set(IN_CONTEXT.get() + 1)
    return x * IN_CONTEXT.get()


def remembers_in_its_thread(x: Tensor) -> Tensor:
    IN_THREAD.count = getattr(IN_THREAD, "count", 0) + 1
    return x * IN_THREAD.count


def remembers_in_itself(x: Tensor) -> Tensor:
    function: Any = remembers_in_itself
    function.count = getattr(function, "count", 0) + 1
    return x * function.count


def remembers_in_the_environment(x: Tensor) -> Tensor:
    os.environ["TRACETORCH_TEST"] = os.environ.get("TRACETORCH_TEST", "") + "x"
    return x * len(os.environ["TRACETORCH_TEST"])


def counts(calls: list[int], x: Tensor) -> Tensor:
    calls.append(1)
    return x * len(calls)


class Counter:
    """Counts the calls of a method."""

    calls = 0

    def count(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def remembers_in_data() -> nn.Module:
    class Held(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            self.weight.data *= 0.9  # no version tells of it
            return y

    return Held(N, N)


def in_training_only() -> nn.Module:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0) if self.training else x

    return Mixing()


def calls_by_size() -> nn.Module:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(N, N)

        def forward(self, x: Tensor) -> Tensor:
            return self.l(x) if len(x) > B else self.l(self.l(x))

    return Calls()


MEMORY: dict[str, Callable[[], nn.Module]] = {
    "a global": lambda: Says(remembers_in_a_global),
    "a default": lambda: Says(remembers_in_a_default()),
    "a closure": lambda: Says(remembers_in_a_closure()),
    "an array": remembers_in_an_array,
    "a class": remembers_on_the_class,
    "a cache": lambda: Says(remembers_in_a_cache()),
    "a context variable": lambda: Says(remembers_in_a_context),
    "a thread's own": lambda: Says(remembers_in_its_thread),
    "an attribute of a function": lambda: Says(remembers_in_itself),
    "an object of a bound method": lambda: Says(Counter().count),
    "a partial": lambda: Says(functools.partial(counts, [])),
    "the environment": lambda: Says(remembers_in_the_environment),
    "data": remembers_in_data,
}
RANDOM: dict[str, Callable[[], nn.Module]] = {
    "one number for all": lambda: Says(lambda x: x * torch.rand(1)),
    "a mask for all": lambda: Says(lambda x: x * (torch.rand(N) > 0.5)),
    "a shuffled batch": lambda: Says(lambda x: x[torch.randperm(len(x))]),
    "a number of Python's": lambda: Says(lambda x: x * random.random()),
    "a number of NumPy's": lambda: Says(lambda x: x * np.random.rand()),
}
OTHER: dict[str, Callable[[], nn.Module]] = {
    "in training only": in_training_only,
    "calls by size": calls_by_size,
    "batch norm in training": lambda: nn.BatchNorm1d(N),
}


def around(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(N, N), layer("LIF", N), module, nn.Linear(N, N), layer("LIF", N))


def silent_before(module: nn.Module) -> nn.Module:
    """Put neurons that never fire in front, whose output shows nothing."""
    deep = snn.LIF(N, pos_threshold=1e6)
    return nn.Sequential(nn.Linear(N, N), deep, module, nn.Linear(N, N), layer("LIF", N))


def sequence(seed: int) -> Tensor:
    return 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(seed))


def test_there_are_fifty() -> None:
    assert len(BATCH) + len(MEMORY) + len(RANDOM) + len(OTHER) >= 50


@pytest.mark.parametrize("place", [around, silent_before])
@pytest.mark.parametrize("name", BATCH)
def test_a_mixed_batch_is_found(name: str, place: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"2 \(Says\) .*samples of a batch"):
        tt.unroll(place(Says(BATCH[name])), sequence(0), check=True)


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_found(name: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"remembers something from step to step|was changed"):
        tt.unroll(around(MEMORY[name]()), sequence(0), check=True)


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_is_found(name: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="it is random"):
        tt.unroll(around(RANDOM[name]()), sequence(0), check=True)


@pytest.mark.parametrize("name", OTHER)
def test_other_differences_are_found(name: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="by layer than by step"):
        tt.unroll(around(OTHER[name]()), sequence(0), check=True)


def hooked() -> nn.Module:
    """A layer whose hooks replace what goes in and what comes out."""
    module = nn.Linear(N, N)
    module.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    module.register_forward_hook(lambda module, args, y: y + 1)
    return nn.Sequential(module)


def parametrized(change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    """A layer of as many rows as there are steps, whose weight modules compute."""

    def make() -> nn.Module:
        module = nn.Linear(N, N)
        change(module)
        return module

    return make


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "softmax over features": lambda: Says(lambda x: x.softmax(-1)),
    "layer norm": lambda: nn.LayerNorm(N),
    "dropout in training": lambda: nn.Dropout(0.5),
    "noise, sample by sample": lambda: Says(lambda x: x + torch.randn_like(x)),
    "NumPy's noise": lambda: Says(lambda x: x + torch.as_tensor(np.random.randn(*x.shape)).to(x)),
    "a shared layer": lambda: (lambda shared: nn.Sequential(shared, nn.ReLU(), shared))(
        nn.Linear(N, N)
    ),
    "batch norm in evaluation": lambda: nn.BatchNorm1d(N).eval(),
    "a recurrent layer": lambda: snn.Recurrent(layer("LIF", N), nn.Linear(N, N)),
    "a residual": lambda: Says(lambda x: x + x.relu()),
    "in place": lambda: nn.ReLU(inplace=True),
    "hooks with other values": hooked,
    "weight norm": parametrized(parametrizations.weight_norm),
    "spectral norm": parametrized(lambda m: parametrizations.spectral_norm(m.eval())),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name: str) -> None:
    torch.manual_seed(0)
    made = around(RIGHT[name]())
    assert tt.unroll(made, sequence(1), check=True).shape == (T, B, N)


def test_what_was_covered_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    net = silent_before(nn.Dropout(0.5))
    with caplog.at_level(logging.INFO, logger="tracetorch"):
        tt.unroll(net, sequence(0), check=3)
    (text,) = caplog.messages
    assert "compared over 3 steps" in text
    assert "begun on random values" in text
    assert "not called" not in text


def test_integers_are_not_replaced_by_random_values(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Embedding(9, N), layer("LIF", N))
    with caplog.at_level(logging.INFO, logger="tracetorch"):
        tt.unroll(net, torch.arange(T * B).reshape(T, B) % 9, check=True)
    # embedding, neurons, and the model; the neurons alone also on values of either scale
    assert f"5 calls of modules compared over {T} steps; 2 of them begun" in caplog.text


def test_modules_that_were_not_called_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = layer("LIF", N), nn.Linear(N, N)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with caplog.at_level(logging.INFO, logger="tracetorch"):
        tt.unroll(Half(), sequence(0), check=True)
    assert "not called: unused" in caplog.text


@pytest.mark.parametrize("check", [0, -1, 2.0, "yes"])
def test_a_number_of_steps_is_checked(check: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="check must be"):
        tt.unroll(snn.LIF(N), sequence(0), check=check)
