from __future__ import annotations

import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tracetorch import functional
from tracetorch.fuse.ir.fingerprint import fingerprint
from tracetorch.fuse.ir.graph import Unfusable

settings = types.ModuleType("my_settings")
settings.SLOPE = 2.0  # type: ignore[attr-defined]


def reads_settings(u: Tensor) -> Any:
    return settings.SLOPE * u


def with_default(u: Tensor, slope: float = 2.0) -> Tensor:
    return slope * u


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
