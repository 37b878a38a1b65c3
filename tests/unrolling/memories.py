"""What a module can hold that remembers something from step to step, and where it can hold it."""

import atexit
import collections
import contextvars
import csv
import ctypes
import functools
import io
import itertools
import mmap
import os
import queue
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tests.networks import module

LINES = "".join(f"{i}\n" for i in range(99))
CONNECTION = sqlite3.connect(":memory:")
atexit.register(CONNECTION.close)
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT 99) SELECT i FROM n"


@dataclass
class Box:
    t: int = 0


class Slotted:
    __slots__ = ("t",)

    def __init__(self) -> None:
        self.t = 0


class Counter:
    t = 0
    everywhere: ClassVar[int] = 0

    def tick(self) -> int:
        self.t += 1
        return self.t

    def tick_everywhere(self) -> int:
        type(self).everywhere += 1
        return type(self).everywhere


def function_with_count() -> Callable[[], int]:
    def function() -> int:
        of_function: Any = function
        of_function.t = getattr(function, "t", 0) + 1
        return of_function.t

    return function


def default() -> Callable[[], int]:
    def function(seen: list[int] = []) -> int:  # noqa: B006 (that is the fault)
        return append(seen)

    return function


def noise() -> Iterator[float]:
    generator = random.Random(0)
    while True:
        yield generator.random()  # nothing of it is in the frame


def append(held: Any) -> int:
    held.append(1)
    return len(held)


def first(held: Any) -> Any:
    held[0] += 1
    return held[0]


def count(held: Any) -> int:
    held.t += 1
    return int(held.t)


def add(held: Any) -> Any:
    return held.add_(1.0).max()


def add_to_data(held: Any) -> Any:
    held.data += 1.0  # no version tells of it
    return held.max()


def rotate(held: Any) -> int:
    """Take the first and put it behind the last, so that there are as many."""
    for value in () if held.qsize() else (1, 2, 3):
        held.put(value)
    value = held.get()
    held.put(value)
    return int(value)


def in_environment(name: str) -> int:
    os.environ[name] = os.environ.get(name, "") + "x"
    return len(os.environ[name])


class Local(threading.local):
    t = 0


# Made anew for each test; what is held, and a step that changes it and gives a number.
Kind = tuple[Callable[[], Any], Callable[[Any], Any]]
KINDS: dict[str, Kind] = {
    "list that grows": (list, append),
    "item of a list": (lambda: [0], first),
    "dict": (dict, lambda d: (d.__setitem__(len(d), 1), len(d))[1]),
    "set": (set, lambda s: (s.add(len(s)), len(s))[1]),
    "deque": (lambda: collections.deque([1, 2, 3]), lambda d: (d.rotate(), d[0])[1]),
    "field of a dataclass": (Box, count),
    "slot": (Slotted, count),
    "namespace": (lambda: SimpleNamespace(t=0), count),
    "tensor": (lambda: [torch.zeros(2)], lambda held: add(held[0])),
    "tensor's data": (lambda: [torch.zeros(2)], lambda held: add_to_data(held[0])),
    "sparse tensor": (lambda: torch.eye(3).to_sparse(), lambda t: add_to_data(t._values())),
    "array": (lambda: np.zeros(3), first),
    "array of objects": (lambda: np.array([0, None], object), first),
    "mmap": (lambda: mmap.mmap(-1, 16), first),
    "ctypes": (lambda: (ctypes.c_double * 2)(), first),
    "random.Random": (lambda: random.Random(0), lambda g: g.gauss(0, 1)),
    "numpy Generator": (lambda: np.random.default_rng(0), lambda g: g.random()),
    "torch Generator": (lambda: torch.Generator().manual_seed(0),
     lambda g: torch.rand((), generator=g)),
    "StringIO": (io.StringIO, lambda f: (f.write("a"), f.tell())[1]),
    "file that is read": (lambda: io.BytesIO(LINES.encode()), lambda f: int(f.readline())),
    "Queue": (queue.Queue, rotate),
    "Event": (threading.Event, lambda e: (e.clear() if e.is_set() else e.set(), e.is_set())[1]),
    "iterator": (lambda: iter([*range(99)]), next),
    "generator": (noise, next),
    "itertools.count": (itertools.count, next),
    "itertools.cycle": (lambda: itertools.cycle([1, 2]), next),
    "partial": (lambda: functools.partial(append, []), lambda f: f()),
    "method of an object": (lambda: Counter().tick, lambda f: f()),
    "attribute of a class": (lambda: Counter().tick_everywhere, lambda f: f()),
    "attribute of a function": (function_with_count, lambda f: f()),
    "default of an argument": (default, lambda f: f()),
    "functools.cache": (lambda: functools.cache(list), lambda f: append(f())),
    "context variable": (lambda: contextvars.ContextVar("t"),
     lambda v: (v.set(v.get(0) + 1), v.get())[1]),
    "threading.local": (Local, count),
    "environment": (lambda: "TRACETORCH_TEST", in_environment),
    "cursor": (lambda: CONNECTION.execute(NUMBERS), lambda c: c.fetchone()[0]),
    "csv.reader": (lambda: csv.reader(["1\n", "2\n"] * 50), lambda r: int(next(r)[0])),
}  # fmt: skip

HELD: Any = None
"""What a function holds in a global."""


class Says(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def in_a_module(kind: Kind) -> nn.Module:
    held: nn.Module = module(
        lambda s, x: x * (1.0 + float(s.act(s.held))), held=kind[0](), act=kind[1]
    )
    return held


def in_a_closure(kind: Kind) -> nn.Module:
    held, step = kind[0](), kind[1]
    return Says(lambda x: x * (1.0 + float(step(held))))


def in_a_global(kind: Kind) -> nn.Module:
    global HELD
    HELD, step = kind[0](), kind[1]
    return Says(lambda x: x * (1.0 + float(step(HELD))))


WAYS: dict[str, Callable[[Kind], nn.Module]] = {
    "a module": in_a_module,
    "a closure": in_a_closure,
    "a global": in_a_global,
}
