"""Represent one time step as a list of stages over arrays: loops, products, pools, copies, sums."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tracetorch.fuse.ir.graph import Graph


class Role(enum.Enum):
    INPUT = "input"  # of the caller, read
    OUTPUT = "output"  # of the caller, written
    STATE = "state"  # of the stream, from step to step
    WORK = "work"  # of the stream, within one step
    TABLE = "table"  # constant


@dataclass(eq=False)
class Array:
    """Memory for ``size`` values in a row; its label is for people."""

    role: Role
    label: str
    size: int
    boolean: bool = False
    # of a table its values, of a state those that it starts from
    values: Any = None


@dataclass(frozen=True)
class View:
    """An array as a tensor without a batch of more than one: sizes and strides."""

    array: Array
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether it is all of its array, in the order of memory."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return self.offset == 0 and expected == self.array.size

    def places(self) -> Tensor:
        """Return the place of every element in the array."""
        found = torch.full(self.shape, self.offset, dtype=torch.int64)
        for dim, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            steps = torch.arange(size) * stride
            found += steps.view(-1, *[1] * (len(self.shape) - dim - 1))
        return found

    def same_places(self, other: View) -> bool:
        """Whether element by element it lies where another view of the same array does."""
        pairs = (
            zip(self.shape, self.strides, strict=True),
            zip(other.shape, other.strides, strict=True),
        )
        mine, theirs = ([pair for pair in each if pair[0] > 1] for each in pairs)
        return mine == theirs and self.offset == other.offset

    def squeezed(self) -> View:
        pairs = [p for p in zip(self.shape, self.strides, strict=True) if p[0] != 1]
        shape, strides = tuple(size for size, _ in pairs), tuple(stride for _, stride in pairs)
        return replace(self, shape=shape, strides=strides)

    def broadcast(self, shape: tuple[int, ...]) -> View:
        """Return the view that repeats what has size 1, or is missing, over ``shape``."""
        lacking = len(shape) - len(self.shape)
        sizes, strides = (1,) * lacking + self.shape, (0,) * lacking + self.strides
        strides = tuple(
            0 if size == 1 else stride for size, stride in zip(sizes, strides, strict=True)
        )
        return View(self.array, shape, strides, self.offset)


@dataclass(frozen=True, eq=False)
class _Stage:
    path: str  # of the module that it belongs to


@dataclass(frozen=True, eq=False)
class Pointwise(_Stage):
    """Compute a graph at every place of ``shape``; its inputs and outputs are where views say."""

    shape: tuple[int, ...]
    reads: Mapping[str, View]
    graph: Graph
    writes: Mapping[str, View]


@dataclass(frozen=True, eq=False)
class Product(_Stage):
    """Multiply by a matrix of weights, or convolve.

    A linear product is the convolution of one row, with kernels of one value. Settings of two
    numbers are of height and width.
    """

    source: View  # [C, H, W]
    target: View  # [O, P, Q]
    weight: Tensor  # [O, C / groups, kh, kw]
    bias: Tensor | None  # [O]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Pool(_Stage):
    """Take the maximum, the average or the sum of windows, from ``[C, H, W]`` to ``[C, P, Q]``."""

    source: View
    target: View
    maximum: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    # of the sum; 0 for the number of places inside the padded input, -1 for those inside the input
    divisor: int = 0


@dataclass(frozen=True, eq=False)
class Copy(_Stage):
    """Copy a view to another of the same number of elements; from chosen places, if ``places``."""

    source: View
    target: View
    places: Array | None = None


@dataclass(frozen=True, eq=False)
class Sum(_Stage):
    """Sum the last ``dims`` dimensions of a view in the order of their places, and divide."""

    source: View  # the kept dimensions, then the summed ones
    target: View
    dims: int
    divisor: int = 1


Stage: TypeAlias = "Pointwise | Product | Pool | Copy | Sum"


def reads_of(stage: Stage) -> Iterator[View]:
    if isinstance(stage, Pointwise):
        yield from stage.reads.values()
    else:
        yield stage.source


def writes_of(stage: Stage) -> Iterator[View]:
    if isinstance(stage, Pointwise):
        yield from stage.writes.values()
    else:
        yield stage.target


def moved(stage: Stage, old: Array, new: Array) -> Stage:
    """Return a stage with another array in the place of one."""

    def view(each: View) -> View:
        return replace(each, array=new) if each.array is old else each

    if isinstance(stage, Pointwise):
        reads = {name: view(each) for name, each in stage.reads.items()}
        writes = {name: view(each) for name, each in stage.writes.items()}
        return replace(stage, reads=reads, writes=writes)
    return replace(stage, source=view(stage.source), target=view(stage.target))


@dataclass
class StepProgram:
    """Program of one time step of a model at a batch of one; arrays are by name."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    states: dict[str, Array]
    # in order; the last ones copy states that could not be written in place
    stages: list[Stage] = field(default_factory=list)
    # whether the arithmetic that was traced is float64
    double: bool = False

    @property
    def ends(self) -> dict[str, Array]:
        return {**self.inputs, **self.states, **self.outputs}
