from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases import layer
from tests.unrolling import held
from tracetorch.unrolling.own_code import is_known, may_write


def decayed(w: Tensor) -> None:
    w.data.mul_(0.9)


def twice_removed(w: Tensor) -> None:
    inner(w)


def inner(w: Tensor) -> None:
    def innermost() -> None:
        decayed(w)

    innermost()


class Rule:
    """A class of its own."""

    def __call__(self, w: Tensor) -> None:
        decayed(w)


class Base(nn.Module):
    def __init__(self, function: Any = None) -> None:
        super().__init__()
        self.linear, self.neuron = nn.Linear(2, 2), layer("LIF", 2)
        self.linear.weight.data.mul_(0.5)  # in no pass
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.neuron(self.linear(x))


class Writes(Base):
    @property
    def weight(self) -> Tensor:
        return self.linear.weight.data

    def forward(self, x: Tensor) -> Any:
        self.weight.mul_(0.9)
        return super().forward(x)


class Inherits(Writes):
    pass


class Static(Base):
    @staticmethod
    def write(w: Tensor) -> None:
        w.detach().numpy()[0] += 1


class Asks(Base):
    def forward(self, x: Tensor) -> Any:
        return held.add_first(self.linear.weight)


class MakesRule(Base):
    def forward(self, x: Tensor) -> Any:
        Rule()(self.linear.weight)


def closed_over(function: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    @functools.wraps(twice_removed)
    def wrapper(w: Tensor) -> None:
        function(w)

    return wrapper


@pytest.mark.parametrize(
    "part",
    [
        Writes(),
        Inherits(),
        Static(),
        MakesRule(),
        Base(decayed),
        Base(twice_removed),
        Base(Rule()),
        Base(Rule().__call__),
        Base(functools.partial(decayed)),
        Base(closed_over(decayed)),
        Base(lambda w: getattr(w, "data")),  # noqa: B009 (that is the point)
        Rule(),
    ],
)
def test_code_that_leads_to_such_a_name_may_write(part: object) -> None:
    assert may_write([part])


@pytest.mark.parametrize("part", [Base(), Base(torch.relu), Base(len), Asks(), nn.Linear(2, 2)])
def test_other_code_may_not(part: object) -> None:
    assert not may_write([part])


def test_code_of_pytorch_and_of_the_package_is_known() -> None:
    net = nn.Sequential(nn.Linear(2, 2), layer("LIF", 2), nn.ReLU())
    assert all(map(is_known, net.modules()))
    assert not is_known(Base())
    net[0].forward = lambda x: x
    assert not is_known(net[0])
