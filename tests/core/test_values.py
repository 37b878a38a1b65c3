from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unrolling.held import CONSUMED, ENTERED, RESTORED
from tracetorch.core.values import (
    SMALL,
    MemoryReader,
    Values,
    Watched,
    can_be_watched,
    global_generators,
    hashed,
    listed_kind,
    same_values,
)


def is_listed(thing: Any) -> bool:
    kind: Any = type(thing)
    return listed_kind(kind) is not None


def has_stand_in(thing: Any) -> bool:
    kind: Any = type(thing)
    return can_be_watched(kind)


LISTED = [n for n, kind in RESTORED.items() if n not in ENTERED and is_listed(kind.make())]


def test_most_kinds_are_listed() -> None:
    assert {*RESTORED} - {*LISTED} - ENTERED == {
        *("Queue", "LifoQueue", "deque", "long list", "long deque", "argparse.Namespace"),
    }


@pytest.mark.parametrize("name", LISTED)
def test_what_has_changed_is_listed_and_restored(name: str) -> None:
    thing = RESTORED[name].make()
    RESTORED[name].step(thing)
    before = Values([("a.b", thing)], whole=True)
    assert before.changes() == []
    found = [RESTORED[name].step(thing) for _ in range(3)]
    assert before.changes() == ["a.b"]
    if name == "sparse tensor":  # nowhere to write the values to
        assert before.restore() == ["a.b"]
        return
    assert before.restore() == []
    assert before.changes() == []
    assert [RESTORED[name].step(thing) for _ in range(3)] == found


def test_what_was_hashed_or_is_read_only_is_lost() -> None:
    large, locked = np.zeros(SMALL), np.zeros(3)
    view = locked[:]
    locked.flags.writeable = False
    before = Values([("large", large), ("locked", locked)], whole=False)
    large[9], view[0] = 1.0, 1.0
    assert before.changes() == ["large", "locked"]
    assert before.restore() == ["large", "locked"]


def test_a_large_array_that_is_read_only_is_not_read() -> None:
    large = np.zeros(SMALL)
    view = large[:]
    large.flags.writeable = False
    before = Values([("large", large)], whole=True)
    view[0] = 1.0
    assert before.changes() == []


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float64, np.complex128])
def test_a_hash_sees_every_value_and_where_it_lies(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 100, 3 * SMALL).astype(dtype)
    memory = values.view(np.uint8)
    before = hashed(memory)
    assert len(before) < SMALL / 4
    for place in rng.integers(0, len(values), 50):
        old = values[place]
        values[place] += 1
        assert hashed(memory) != before
        values[place] = old
    assert hashed(memory) == before
    for shift in (1, 64, 1024, 4096):
        assert hashed(np.roll(values, shift).view(np.uint8)) != before


def test_global_generators_are_those_of_the_functions() -> None:
    before = Values(global_generators(), whole=True)
    found = random.gauss(0, 1), np.random.standard_normal()
    assert before.changes() == ["random", "numpy.random"]
    assert before.restore() == []
    assert (random.gauss(0, 1), np.random.standard_normal()) == found


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.0, torch.nan]),
        torch.tensor([[0.0, 2.0], [3.0, 0.0]]).to_sparse(),
        torch.tensor([1 + 2j, complex("nan")]),
        torch.arange(6).view(2, 3).t(),
    ],
    ids=["NaN", "sparse", "complex", "transposed"],
)
def test_values_of_every_layout_are_compared(tensor: Tensor) -> None:
    other = copy.deepcopy(tensor)
    assert same_values(tensor, other)
    assert not same_values(tensor, tensor + tensor)
    assert not same_values(tensor, tensor.to(torch.complex128))


def test_memory_is_read_of_dense_tensors_wherever_it_lies_now() -> None:
    reader = MemoryReader()
    small, large = torch.arange(6.0), torch.zeros(300, 300)
    part = torch.zeros(4, 4)[:, 1]  # with gaps
    tensors = [None, small, torch.zeros(0), large, torch.eye(2).to_sparse(), part]
    for exact in (True, False):
        before = reader.read(tensors, exact=exact)
        assert reader.read(tensors, exact=exact) == before
        assert before.keys() == {1, 3, 5}
        assert before[1] == small.numpy().tobytes()
        for number, tensor in ((1, small), (3, large), (5, part)):
            tensor.data.add_(1.0)
            now = reader.read(tensors, exact=exact)
            assert [n for n in now if now[n] != before[n]] == [number]
            tensor.data.sub_(1.0)
        large.data[7, 8] = 1.0
        assert (reader.read(tensors, exact=exact) != before) == exact
        large.data[7, 8] = 0.0
        small.data = small.data.clone()
        assert reader.read(tensors, exact=exact) == before
        small.data = torch.zeros(2)
        assert reader.read(tensors, exact=exact) != before
        small.data = torch.arange(6.0)


@pytest.mark.parametrize("name", [each for each in CONSUMED if each not in ENTERED])
def test_a_stand_in_gives_the_same_and_notes_it(name: str) -> None:
    kind = CONSUMED[name]
    thing, twin = kind.make(), kind.make()
    assert has_stand_in(thing)
    stand_in = Watched(thing)
    assert iter(stand_in) is stand_in
    assert bool(stand_in) == bool(thing)
    assert not stand_in.moved
    random.seed(0)
    found = kind.step(stand_in)
    assert stand_in.moved
    random.seed(0)
    assert found == kind.step(twin)


@pytest.mark.parametrize("thing", [[1], range(3), np.zeros(3), np.nditer(np.zeros(3)), object()])
def test_nothing_else_has_a_stand_in(thing: object) -> None:
    assert not has_stand_in(thing)
