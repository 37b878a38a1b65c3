"""Things a module can hold that are neither tensors nor attributes, and how each is changed."""

from __future__ import annotations

import argparse
import array
import atexit
import collections
import csv
import ctypes
import functools
import io
import itertools
import mmap
import queue
import random
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from tests.cases import layer

N = 4
LINES = "".join(f"{i}\n" for i in range(99))


CONNECTION = sqlite3.connect(":memory:")
atexit.register(CONNECTION.close)


class Kind(NamedTuple):
    """A thing that a module can hold: its maker, and a step that changes it and gives a number."""

    make: Callable[[], Any]
    step: Callable[[Any], float]


def add_first(held: Any) -> float:
    held[0] += 1
    return float(held[0])


def add_last(held: Any) -> float:
    held[-1] += 1
    return float(held[-1])


def append(held: Any) -> float:
    held.append(1)
    return float(len(held))


def count(held: Any) -> float:
    held.t += 1
    return float(held.t)


def add_in_middle(held: Any) -> float:
    held[1500] += 1
    return float(held[1500])


def put_number(held: Any) -> float:
    held.put(held.qsize())
    return float(held.qsize())


def take(held: Any) -> float:
    return float(next(held))


def rotate(held: Any) -> float:
    """Take the first of a queue and put it behind the last, so that the length is the same."""
    value = held.get()
    held.put(value)
    return float(value)


def filled(empty: Any) -> Any:
    for value in (1, 2, 3):
        empty.put(value)
    return empty


def write(held: Any) -> float:
    held.write("a" if isinstance(held, io.StringIO) else b"a")
    return float(held.tell())


def read_line(held: Any) -> float:
    return float(held.readline())


def switch(held: threading.Event) -> float:
    held.clear() if held.is_set() else held.set()
    return float(held.is_set())


def cursor() -> Any:
    query = (
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT 99) SELECT i FROM n"
    )
    return CONNECTION.execute(query)


def noise() -> Iterator[float]:
    while True:
        yield random.random()  # nothing of it is in the frame


def sparse_values(held: Tensor) -> float:
    held._values().data.add_(1.0)
    return float(held._values()[0])


def draw(held: torch.Generator) -> float:
    return float(torch.rand((), generator=held))


def mask_next(held: Any) -> float:
    held[int(np.ma.count_masked(held))] = np.ma.masked
    return float(np.ma.count_masked(held))


@dataclass(frozen=True)
class Counted:
    """Equal to others whatever it counts."""

    t: int = field(default=0, compare=False)


class Counter:
    t = 0

    def tick(self) -> float:
        self.t += 1
        return float(self.t)


def replace_equal(held: Any) -> float:
    held.value = Counted(held.value.t + 1)
    return float(held.value.t)


def with_count(kind: Any) -> Callable[[], Any]:
    """Return a maker of a container that has an attribute, of a class of its own."""

    def make() -> Any:
        made = type(f"Own{kind.__name__}", (kind,), {})()
        made.t = 0
        return made

    return make


class OwnArray(np.ndarray[Any, Any]):
    t = 0


def grow(held: collections.UserString) -> float:
    held.data += "a"
    return float(len(held))


def records() -> Any:
    made = np.zeros(2, [("t", "i4"), ("o", "O")])
    made["o"] = [(1, 2), 3]
    return made


def nested() -> Tensor:
    with warnings.catch_warnings():  # a prototype, it says
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2)])


def add_to_nested(held: Tensor) -> float:
    held.unbind()[0].add_(1.0)
    return float(held.unbind()[0][0])


# Can be restored: by layer they are refused and restored, in segments they are right.
RESTORED: dict[str, Kind] = {
    "array": Kind(lambda: np.zeros(3), add_first),
    "array of integers": Kind(lambda: np.zeros((2, 3), np.int8), lambda a: add_last(a[1])),
    "array not contiguous": Kind(lambda: np.zeros((6, 4))[::2, ::-1], lambda a: add_first(a[1])),
    "array of objects": Kind(lambda: np.array([0, None], object), add_first),
    "array of records": Kind(lambda: np.zeros(2, "i4,f8"), lambda a: add_first(a["f1"])),
    "array of records with objects": Kind(records, lambda a: add_first(a["t"])),
    "object in an array of records": Kind(records, lambda a: add_last(a["o"])),
    "list in an array": Kind(lambda: np.array([[0], None], object), lambda a: add_first(a[0])),
    "array in an array": Kind(
        lambda: np.array([np.zeros(2), None], object), lambda a: add_first(a[0])
    ),
    "attribute of a list": Kind(with_count(list), count),
    "attribute of a dict": Kind(with_count(dict), count),
    "attribute of a tuple": Kind(with_count(tuple), count),
    "attribute of a set": Kind(with_count(set), count),
    "attribute of a deque": Kind(with_count(collections.deque), count),
    "attribute of an array": Kind(lambda: np.zeros(2).view(OwnArray), count),
    "UserString": Kind(lambda: collections.UserString("a"), grow),
    "object equal to the last": Kind(lambda: argparse.Namespace(value=Counted()), replace_equal),
    "nested tensor": Kind(nested, add_to_nested),
    "method of an object": Kind(lambda: Counter().tick, lambda method: method()),
    "method of random.Random": Kind(lambda: random.Random(0).random, lambda method: method()),
    "method of a numpy Generator": Kind(
        lambda: np.random.default_rng(0).random, lambda method: method()
    ),
    "method of a list": Kind(lambda: [1.0, 2.0].__iadd__, lambda m: float(len(m([1.0])))),
    "partial of a list": Kind(lambda: functools.partial(add_first, [0]), lambda f: f()),
    "partial by a keyword": Kind(lambda: functools.partial(add_first, held=[0]), lambda f: f()),
    "partial of a torch Generator": Kind(
        lambda: functools.partial(torch.rand, (), generator=torch.Generator().manual_seed(0)),
        lambda f: float(f()),
    ),
    "array masked": Kind(lambda: np.ma.zeros(99), mask_next),
    "array of NaN": Kind(lambda: np.array([0, np.nan]), add_first),
    "bytearray": Kind(lambda: bytearray(3), add_first),
    "bytearray that grows": Kind(bytearray, append),
    "array.array": Kind(lambda: array.array("d", [0, 0]), add_first),
    "array.array that grows": Kind(lambda: array.array("i"), append),
    "memoryview": Kind(lambda: memoryview(bytearray(3)), add_first),
    "mmap": Kind(lambda: mmap.mmap(-1, 16), add_first),
    "ctypes": Kind(lambda: (ctypes.c_double * 2)(), add_first),
    "random.Random": Kind(lambda: random.Random(0), lambda g: g.random()),
    "random.Random, normal": Kind(lambda: random.Random(0), lambda g: g.gauss(0, 1)),
    "numpy Generator": Kind(lambda: np.random.default_rng(0), lambda g: g.random()),
    "numpy Generator, MT": Kind(
        lambda: np.random.Generator(np.random.MT19937(0)), lambda g: g.random()
    ),
    "numpy Generator, Philox": Kind(
        lambda: np.random.Generator(np.random.Philox(0)), lambda g: g.random()
    ),
    "numpy BitGenerator": Kind(lambda: np.random.PCG64(0), lambda g: g.random_raw() / 2**64),
    "numpy RandomState": Kind(lambda: np.random.RandomState(0), lambda g: g.standard_normal()),
    "torch Generator": Kind(lambda: torch.Generator().manual_seed(0), draw),
    "StringIO": Kind(io.StringIO, write),
    "BytesIO": Kind(io.BytesIO, write),
    "StringIO that is read": Kind(lambda: io.StringIO(LINES), read_line),
    "file that is read": Kind(lambda: io.BufferedReader(io.BytesIO(LINES.encode())), read_line),
    "text that is read": Kind(lambda: io.TextIOWrapper(io.BytesIO(LINES.encode())), read_line),
    "Queue": Kind(lambda: filled(queue.Queue()), rotate),
    "LifoQueue": Kind(lambda: filled(queue.LifoQueue()), put_number),
    "Event": Kind(threading.Event, switch),
    "deque": Kind(lambda: collections.deque([1, 2, 3]), lambda d: (d.rotate(), d[0])[1]),
    "large array": Kind(lambda: np.zeros(20000), add_first),
    "large bytearray": Kind(lambda: bytearray(100_000), add_last),
    "long list": Kind(lambda: [0] * 3000, add_in_middle),
    "long deque": Kind(lambda: collections.deque([0] * 3000), add_in_middle),
    "argparse.Namespace": Kind(lambda: argparse.Namespace(t=0), count),
    "sparse tensor": Kind(lambda: torch.eye(3).to_sparse(), sparse_values),
}
# Can only be consumed: refused by name, both ways.
CONSUMED: dict[str, Kind] = {
    "list iterator": Kind(lambda: iter([*range(99)]), take),
    "range iterator": Kind(lambda: iter(range(99)), take),
    "dict iterator": Kind(lambda: iter(dict.fromkeys(range(99))), take),
    "generator": Kind(lambda: (i for i in range(99)), take),
    "generator of random numbers": Kind(noise, take),
    "generator, sent to": Kind(noise, lambda g: g.send(None)),
    "count": Kind(itertools.count, take),
    "cycle": Kind(lambda: itertools.cycle([1, 2]), take),
    "method of a count": Kind(lambda: itertools.count().__next__, lambda f: float(f())),
    "method of a generator": Kind(lambda: cast(Any, noise()).send, lambda f: f(None)),
    "partial of a count": Kind(lambda: functools.partial(next, itertools.count()), lambda f: f()),
    "chain": Kind(lambda: itertools.chain([1] * 9, [2] * 99), take),
    "accumulate": Kind(lambda: itertools.accumulate(range(99)), take),
    "repeat": Kind(lambda: itertools.repeat(1, 99), take),
    "islice": Kind(lambda: itertools.islice(range(99), 50), take),
    "tee": Kind(lambda: itertools.tee(range(99))[0], take),
    "map": Kind(lambda: map(float, range(99)), take),
    "map over a generator": Kind(lambda: map(float, noise()), take),
    "filter": Kind(lambda: filter(None, range(99)), take),
    "zip": Kind(lambda: zip(range(99), range(99), strict=True), lambda z: float(next(z)[0])),
    "enumerate": Kind(lambda: enumerate("x" * 99), lambda z: float(next(z)[0])),
    "reversed": Kind(lambda: reversed([*range(99)]), take),
    "SimpleQueue": Kind(lambda: filled(queue.SimpleQueue()), rotate),
    "cursor": Kind(cursor, lambda c: float(c.fetchone()[0])),
    "csv.reader": Kind(lambda: csv.reader(["1\n"] * 99), lambda r: float(next(r)[0])),
}


# Of these nothing is read: the walk enters what they hold.
ENTERED = {
    name
    for name in (*RESTORED, *CONSUMED)
    if name.startswith(("method of", "partial", "attribute of", "nested"))
} | {"list in an array", "array in an array", "object equal to the last", "UserString"}


@dataclass(frozen=True)
class Frozen:
    value: Any


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


# Where a module holds it: how it is put there, and how it is had.
PLACES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "attribute": (lambda value: value, lambda place: place),
    "list": (lambda value: [value], lambda place: place[0]),
    "dict": (lambda value: {"a": {"b": value}}, lambda place: place["a"]["b"]),
    "tuple": (lambda value: (1, (value,)), lambda place: place[1][0]),
    "deque": (lambda value: collections.deque([value]), lambda place: place[0]),
    "dataclass": (Frozen, lambda place: place.value),
    "slot": (Slotted, lambda place: place.value),
    "long list": (lambda value: [0] * 2000 + [value], lambda place: place[-1]),
}


class Holds(nn.Module):
    """A neuron that is driven by what a held thing gives, which changes in every step."""

    def __init__(self, kind: Kind, place: str = "attribute", moves: bool = True) -> None:
        super().__init__()
        self.linear, self.neuron = nn.Linear(N, N), layer("LIF", N)
        self.place, self.step, self.moves = place, kind.step, moves
        self.held = PLACES[place][0](kind.make())

    @property
    def thing(self) -> Any:
        return PLACES[self.place][1](self.held)

    def forward(self, x: Tensor) -> Tensor:
        number = self.step(self.thing) if self.moves else 1.0
        y: Tensor = self.neuron(self.linear(x) * (1.5 + float(number)))
        return y * (1.0 + float(number))


def holds(kind: Kind, place: str = "attribute", moves: bool = True) -> Any:
    torch.manual_seed(0)
    random.seed(0)
    return Holds(kind, place, moves).double()
