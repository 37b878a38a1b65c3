from __future__ import annotations

import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tracetorch import functional
from tracetorch.fuse.ir.fingerprint import fingerprint, helpers, reads_nothing
from tracetorch.fuse.ir.graph import Unfusable

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


class Slope:
    def __init__(self, slope: float) -> None:
        self.slope = slope
        self.parent = self

    def __call__(self, u: Tensor) -> Tensor:
        return self.slope * u


def test_settings_of_a_module_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint("spike", reads_settings)
    assert fingerprint("spike", reads_settings) == before
    monkeypatch.setattr(settings, "SLOPE", 3.0)
    assert fingerprint("spike", reads_settings) != before


@pytest.mark.parametrize(
    "make",
    [
        Slope,
        functional.atan_surrogate,
        lambda slope: functools.partial(with_default, slope=slope),
        lambda slope: lambda u: slope * u,
        lambda slope: {"slope": [slope]},
        lambda slope: Slope(slope).__call__,
    ],
    ids=["object", "surrogate", "partial", "closure", "containers", "method"],
)
def test_numbers_are_part_of_the_fingerprint(make: Any) -> None:
    found = [fingerprint("spike", make(slope)) for slope in (2.0, 2.0, 3.0)]
    assert found[0] == found[1] != found[2]
    assert hash(found[0]) == hash(found[1])


@pytest.mark.parametrize(("held", "kind"), [(torch.ones(1), "tensor"), (nn.Linear(1, 1), "Linear")])
def test_error_names_what_cannot_be_seen(held: object, kind: str) -> None:
    with pytest.raises(Unfusable, match=f"its 'spike' holds a {kind}, whose changes"):
        fingerprint("spike", lambda u: held)


def test_functions_that_read_nothing() -> None:
    assert reads_nothing(half)
    assert reads_nothing(calls_half)
    assert reads_nothing(torch.exp)
    assert not reads_nothing(with_default)
    assert not reads_nothing(reads_settings)
    assert not reads_nothing((lambda slope: lambda u: slope * u)(2.0))
    assert not reads_nothing(Slope(2.0))
    assert not reads_nothing(is_even), "two functions that call each other"


def test_helpers_are_the_global_callables() -> None:
    assert helpers(calls_half) == [(globals(), "half", half)]
    assert helpers(torch.exp) == []
