import types
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.functions import helpers, reads_nothing

settings = types.ModuleType("my_settings")
settings.SLOPE = 2.0  # type: ignore[attr-defined]


def half(u: Tensor) -> Tensor:
    return u / 2


def reads_settings(u: Tensor) -> Any:
    return settings.SLOPE * u


def calls_half(u: Tensor) -> Tensor:
    return half(u) + torch.exp(u)


def with_default(u: Tensor, slope: float = 2.0) -> Tensor:
    return slope * u


def is_even(steps: int) -> bool:
    return steps == 0 or is_odd(steps - 1)


def is_odd(steps: int) -> bool:
    return steps != 0 and is_even(steps - 1)


def test_functions_that_read_nothing_and_their_helpers() -> None:
    assert reads_nothing(half)
    assert reads_nothing(calls_half)
    assert reads_nothing(torch.exp)
    assert not reads_nothing(with_default)
    assert not reads_nothing(reads_settings)
    assert not reads_nothing((lambda slope: lambda u: slope * u)(2.0))
    assert not reads_nothing(types.SimpleNamespace(slope=2.0))
    assert not reads_nothing(is_even), "two functions that call each other"
    assert helpers(calls_half) == [(globals(), "half", half)]
    assert helpers(torch.exp) == []
