"""Models that change between two walks: what is remembered must not be believed too long."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from tracetorch import snn
from tracetorch.core import walk_memo
from tracetorch.core.walk import Walk, walk
from tracetorch.core.walk_memo import remembered_walk


@dataclass
class Box:
    cell: Any = None
    items: list[Any] = field(default_factory=list)


class Net(nn.Module):
    """A model with parts in every kind of place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.cell = snn.LIF(2)
        self.nested = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
        self.empty: nn.Module | None = None
        self.cells = [snn.LIF(2), (snn.LIF(2), 1.0)]
        self.table: dict[Any, Any] = {"a": {"deep": [snn.LIF(2)]}, "n": 3}
        self.box = Box(snn.LIF(2), [1, 2])
        self.shared = self.cells
        self.number: Any = 1
        self.mask: Any = None


class Sub(snn.LIF):
    """Another class with the same attributes."""


def _replace_dict(net: Any) -> None:
    net.__dict__ = {**net.__dict__, "_modules": {**net._modules, "cell": snn.LIF(2)}}


def _same_address(net: Any) -> None:
    # the list of the remembered walk is gone, and another may take its place in memory
    net.box.items = net.cells = net.shared = None
    net.cells = [snn.LIF(2), (snn.LIF(2), 1.0)]


CHANGES: dict[str, Callable[[Any], object]] = {
    "a module replaced": lambda net: setattr(net, "cell", snn.LIF(2)),
    "a module replaced in a sequential": lambda net: net.nested.__setitem__(1, nn.ReLU()),
    "a module added": lambda net: net.add_module("more", snn.LIF(2)),
    "a module appended": lambda net: net.nested.append(snn.LIF(2)),
    "a module removed": lambda net: delattr(net, "first"),
    "a module set to None": lambda net: setattr(net, "first", None),
    "a module where None was": lambda net: setattr(net, "empty", snn.LIF(2)),
    "a module renamed": lambda net: net._modules.update(renamed=net._modules.pop("nested")),
    "modules swapped": lambda net: net._modules.update(cell=net.first, first=net.cell),
    "modules in another order": lambda net: net._modules.update(first=net._modules.pop("first")),
    "the class of a module": lambda net: setattr(net.cell, "__class__", Sub),
    "the dict of a module": _replace_dict,
    "an item of a list": lambda net: net.cells.__setitem__(0, snn.LIF(2)),
    "an item appended": lambda net: net.cells.append(snn.LIF(2)),
    "an item removed": lambda net: net.cells.pop(0),
    "items swapped": lambda net: net.cells.reverse(),
    "an item of a tuple": lambda net: net.cells.__setitem__(1, (snn.LIF(2), 1.0)),
    "another list": lambda net: setattr(net, "cells", list(net.cells)),
    "another list at the same place": _same_address,
    "a list no longer shared": lambda net: setattr(net, "shared", list(net.shared)),
    "an item of a dict": lambda net: net.table.update(b=snn.LIF(2)),
    "an item of a dict replaced": lambda net: net.table.update(n=[snn.LIF(2)]),
    "an item of a dict renamed": lambda net: net.table.update(z=net.table.pop("a")),
    "an item deep in a dict": lambda net: net.table["a"]["deep"].append(snn.LIF(2)),
    "a field of an object": lambda net: setattr(net.box, "cell", snn.LIF(2)),
    "a new field of an object": lambda net: setattr(net.box, "other", snn.LIF(2)),
    "a list of numbers that takes a module": lambda net: net.box.items.append(snn.LIF(2)),
    "a list of numbers that takes a tensor": lambda net: net.box.items.append(torch.ones(1)),
    "a setting that takes a module": lambda net: setattr(net.nested[0], "stride", (snn.LIF(2),)),
    "a tensor among plain objects": lambda net: net.table.update(t=torch.ones(1)),
    "another object": lambda net: setattr(net, "box", Box(snn.LIF(2))),
    "an attribute that becomes a list": lambda net: setattr(net, "number", [snn.LIF(2)]),
    "an attribute that becomes a tensor": lambda net: setattr(net, "mask", torch.ones(2)),
    "a new attribute": lambda net: setattr(net, "more", [snn.LIF(2)]),
    "a new attribute of a child": lambda net: setattr(net.first, "more", Box(snn.LIF(2))),
    "a module hidden from registration": lambda net: vars(net).update(number=snn.LIF(2)),
    "a live state": lambda net: net.cell(torch.ones(1, 2)),
}


def content(found: Walk) -> tuple[list[tuple[str, int, type]], ...]:
    """Return what a walk has found by path, identity and type."""
    parts: tuple[list[tuple[str, Any]], ...] = (
        found.modules,
        found.owners,
        found.held.tensors,
        found.held.values,
    )
    return tuple([(path, id(each), type(each)) for path, each in part] for part in parts)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    before = content(remembered_walk(net))
    assert before == content(walk(net))
    CHANGES[name](net)
    after = content(walk(net))
    assert after != before, "a memo that is believed too long would pass"
    seen = remembered_walk(net)
    assert content(seen) == after
    with monkeypatch.context() as patch:  # and what is remembered now is enough
        patch.setattr(walk_memo, "walk", None)
        assert content(remembered_walk(net)) == after


@pytest.mark.parametrize("name", CHANGES)
def test_conclusions_are_dropped_with_the_walk(name: str) -> None:
    net = Net()
    remembered_walk(net).facts["pass"] = "old"
    assert remembered_walk(net).facts == {"pass": "old"}
    CHANGES[name](net)
    kept = "tensor among" in name or name in ("a live state", "an attribute that becomes a tensor")
    assert remembered_walk(net).facts == ({"pass": "old"} if kept else {})


STEADY: dict[str, Callable[[Any], object]] = {
    "nothing": lambda net: None,
    "a weight": lambda net: setattr(net.first, "weight", nn.Parameter(torch.ones(2, 2))),
    "the mode": lambda net: net.eval(),
    "a number": lambda net: setattr(net, "number", 2),
    "a hook": lambda net: net.first.register_forward_hook(print),
    "a list of numbers that grows": lambda net: net.box.items.append(3),
}


@pytest.mark.parametrize("name", STEADY)
def test_what_does_not_concern_a_walk_needs_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    remembered_walk(net)
    STEADY[name](net)
    after = content(walk(net))
    monkeypatch.setattr(walk_memo, "walk", None)
    assert content(remembered_walk(net)) == after


@pytest.mark.parametrize("name", ["forward", "_compiled_call_impl", "step_kwargs"])
def test_an_override_on_an_instance_drops_conclusions(name: str) -> None:
    net = Net()
    remembered_walk(net).facts["pass"] = "old"
    vars(net.cell)[name] = print
    assert remembered_walk(net).facts == {}


@pytest.mark.parametrize("name", ["forward", "zero_states", "forward_step", "forward_sequence"])
def test_a_patched_class_drops_conclusions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    remembered_walk(net).facts["pass"] = "old"
    monkeypatch.setattr(type(net.cell), name, print)
    assert remembered_walk(net).facts == {}


def test_closed_modules_are_not_entered() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(snn.LIF(2)))
    for closed in (None, nn.Sequential, snn.LIF):
        for _ in range(2):
            found = remembered_walk(net, closed=closed)
            assert content(found) == content(walk(net, closed=closed))


def test_no_model_is_kept_alive() -> None:
    net: Any = Net()
    net.parent = [net]  # refers back to itself
    for closed in (None, snn.LIF):
        remembered_walk(net, closed=closed)
    gc.collect()  # models of other tests
    count = len(walk_memo._memos)
    part, whole = weakref.ref(net.cells[0]), weakref.ref(net)
    net.cells.pop(0)
    assert part() is None
    del net
    gc.collect()
    assert whole() is None
    assert len(walk_memo._memos) == count - 2


class Slotted(nn.Module):
    """A module with a slot, which is not compared."""

    __slots__ = ("inner",)


def test_what_cannot_be_compared_is_walked() -> None:
    net: Any = Slotted()
    net.inner = [snn.LIF(2)]
    for _ in range(2):
        assert content(remembered_walk(net)) == content(walk(net))
        net.inner.append(snn.LIF(2))
