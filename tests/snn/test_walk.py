from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, Mock

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tracetorch as tt
from tracetorch import snn
from tracetorch.snn.walk import named_modules


@dataclass
class Bag:
    cell: Any


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("cell",)
    cell: Any


class Plain:
    def __init__(self, cell: Any) -> None:
        self.inner = {"deep": [cell]}

    def zero_states(self) -> None:
        raise AssertionError("foreign objects are walked, never called")

    @property
    def trap(self) -> None:
        raise AssertionError("no property is read")

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"no attribute is looked up: {name}")


class Pair(NamedTuple):
    cell: Any
    number: int


class Net(snn.TTModule):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


HIDING_PLACES = {
    "list": (lambda cell: [1, [cell]], "held.1.0"),
    "tuple": (lambda cell: (cell, 2), "held.0"),
    "set": (lambda cell: {cell}, "held.0"),
    "frozenset": (lambda cell: frozenset([cell]), "held.0"),
    "dict": (lambda cell: {"a": {"b": cell}}, "held.a.b"),
    "ordered dict": (lambda cell: OrderedDict(a=cell), "held.a"),
    "deque": (lambda cell: deque([cell]), "held.0"),
    "named tuple": (lambda cell: Pair(cell, 1), "held.0"),
    "dataclass": (Bag, "held.cell"),
    "slots": (Slotted, "held.cell"),
    "namespace": (lambda cell: SimpleNamespace(cell=cell), "held.cell"),
    "object": (Plain, "held.inner.deep.0"),
    "module": (lambda cell: nn.Sequential(nn.Identity(), cell), "held.1"),
    "module list": (lambda cell: nn.ModuleList([cell]), "held.0"),
    "module attribute": (lambda cell: _with_attribute(cell), "held.stash.0"),
}


def _with_attribute(cell: Any) -> nn.Module:
    module = nn.Identity()
    module.stash = [cell]
    return module


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_a_layer_is_found_wherever_it_hides(place: str) -> None:
    hide, path = HIDING_PLACES[place]
    cell = snn.LIF(3)
    net = Net(hide(cell))
    assert dict(named_modules(net))[path] is cell
    cell(torch.ones(2, 3))
    assert list(tt.get_states(net)) == [f"{path}.mem"]
    net.detach_states()
    assert not cell.mem.requires_grad
    net.zero_states()
    assert cell.mem is None
    assert net.get_param_count() == 6


def test_each_module_is_found_once_and_cycles_end() -> None:
    cell = snn.LIF(3)
    net = Net([cell, cell, nn.Sequential(cell)])
    net.held.append(net.held)
    net.held.append(net)
    found = [module for _, module in named_modules(net)]
    assert found.count(cell) == 1
    assert net.get_param_count() == 6


def test_what_is_no_part_of_the_model_does_not_confuse_the_walk() -> None:
    cell = snn.LIF(3)
    held = {
        "module": math,
        "class": snn.LIF,
        "mock": Mock(),
        "magic": MagicMock(spec=snn.LIF),
        "logger": logging.getLogger("tests"),
        "function": lambda: cell,
        "tensor": torch.ones(3),
        "cell": cell,
    }
    net = Net(held)
    assert [path for path, _ in named_modules(net)] == ["", "held.cell"]
    cell(torch.ones(1, 3))
    net.zero_states()
    assert cell.mem is None
    held["mock"].zero_states.assert_not_called()


class Rows(Dataset[Any]):
    def __init__(self) -> None:
        self.rows = [[object()] for _ in range(1000)]
        self.cell = snn.LIF(2)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@pytest.mark.parametrize(
    "held", [Rows(), DataLoader(Rows()), TensorDataset(torch.ones(4)), list(range(1000))]
)
def test_data_is_not_walked(held: Any) -> None:
    net = Net(held)
    assert list(named_modules(net)) == [("", net)]
