import logging
import math
from collections import OrderedDict, UserDict, deque
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, Mock

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tracetorch as tt
from tests.processes import run_python
from tracetorch import snn
from tracetorch.core.walk import named_modules


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
        raise AssertionError("foreign_object objects are walked, never called")

    @property
    def trap(self) -> None:
        raise AssertionError("no property is read")

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"no attribute is looked up: {name}")


def holding(held: Any) -> Any:
    net: Any = snn.TTModule()
    net.held = held
    return net


class Pair(NamedTuple):
    cell: Any
    number: int


def raises(held: Any) -> Any:
    raise RuntimeError("no code of what is held runs")


CONTAINERS = {
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
    "user dict": (lambda cell: UserDict(a=cell), "held.data.a"),
    "key": (lambda cell: {type("Key", (), {"__str__": raises})(): cell}, "held.<Key>"),
    "long list": (lambda cell: [*range(5000), cell], "held.5000"),
    "namespace": (lambda cell: SimpleNamespace(cell=cell), "held.cell"),
    "object": (Plain, "held.inner.deep.0"),
    "module": (lambda cell: nn.Sequential(nn.Identity(), cell), "held.1"),
    "module list": (lambda cell: nn.ModuleList([cell]), "held.0"),
    "module attribute": (lambda cell: holding([cell]), "held.held.0"),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_layer_is_found_in_any_container(container: str) -> None:
    wrap, path = CONTAINERS[container]
    cell = snn.LIF(3)
    net = holding(wrap(cell))
    assert dict(named_modules(net))[path] is cell
    cell(torch.ones(2, 3))
    assert list(tt.get_states(net)) == [f"{path}.mem"]
    net.detach_states()
    assert not cell.mem.requires_grad
    net.zero_states()
    assert cell.mem is None
    assert net.get_param_count() == 6


def test_each_module_is_found_once_and_cycles_terminate() -> None:
    cell = snn.LIF(3)
    net = holding([cell, cell, nn.Sequential(cell)])
    net.held.append(net.held)
    net.held.append(net)
    found = [module for _, module in named_modules(net)]
    assert found.count(cell) == 1
    assert net.get_param_count() == 6


class Rows(Dataset[Any]):
    def __init__(self) -> None:
        self.rows = [[object()] for _ in range(1000)]
        self.cell = snn.LIF(2)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def foreign_object(package: str) -> Any:
    """Return an object that holds a layer, of a class of the given package."""
    thing = type("Thing", (), {"__module__": package})()
    thing.cell = snn.LIF(2)
    return thing


@pytest.mark.parametrize(
    "held",
    [
        Rows(),
        DataLoader(Rows()),
        TensorDataset(torch.ones(4)),
        *(math, snn.LIF, Mock(), MagicMock(spec=snn.LIF), logging.getLogger("tests")),
        (lambda cell: lambda: cell)(snn.LIF(2)),
        type("RaisingDict", (), {"__dict__": property(raises)})(),
        type("LazyModule", (ModuleType,), {})("lazy"),
        type("CustomLogger", (logging.Logger,), {})("talking"),
        *map(foreign_object, ["lightning.pytorch.trainer", "numpy.lib", "torch.optim", "logging"]),
        deque([(torch.ones(1), {"reward": 1.0})] * 5000),
    ],
)
def test_data_and_objects_of_foreign_packages_are_skipped(held: Any) -> None:
    holder: Any = held
    if type(held).__name__ in ("LazyModule", "CustomLogger"):
        holder.cell = snn.LIF(2)
    net = holding(held)
    assert list(named_modules(net)) == [("", net)]


def test_user_module_that_shares_a_name_with_the_standard_library_is_walked(tmp_path: Path) -> None:
    (tmp_path / "trace.py").write_text("class Bag:\n    pass\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import trace, tracetorch as tt\n"
        "from tracetorch import snn\n"
        "net = snn.TTModule(); net.bag = trace.Bag(); net.bag.cell = snn.LIF(2)\n"
        "print(net.get_param_count())"
    )
    assert run_python("-c", code).strip() == "4"
