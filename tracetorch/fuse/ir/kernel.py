"""Represent a whole kernel as typed data: loops over time and lanes, loads, stores, arithmetic.

Every value is assigned once. *Uniform* ones are the same for all lanes (indices, sizes, literals),
those of *lanes* stand for as many as the printer computes at a time, which know nothing of each
other. Memory is reached through buffers: an index is a uniform integer, or an :class:`Axis`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from tracetorch.fuse.ir.graph import BOOLEAN


class _Word(enum.Enum):
    """Member of a vocabulary; a set or a dictionary finds it without a call of Python."""

    # the members are the only objects equal to themselves, and Enum hashes their names
    __hash__ = object.__hash__


class Dtype(_Word):
    """Type of a value."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BOOL = "bool"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"

    @property
    def is_float(self) -> bool:
        return self in (Dtype.FLOAT32, Dtype.FLOAT64)

    @property
    def is_integer(self) -> bool:
        return not self.is_float and self is not Dtype.BOOL


class Role(_Word):
    """Purpose of a buffer; ``value`` is its word in printed source."""

    INPUT = "input"
    PARAMETER = "parameter"
    LITERALS = "literals"
    START = "start"
    END = "end"
    OUTPUT = "output"
    RECORD = "record"
    CHECKPOINTS = "checkpoints"
    PAST = "past"
    SUMS = "sums"
    GRAD_OUTPUT = "grad_output"
    GRAD_END = "grad_end"
    GRAD_RECORD = "grad_record"
    GRAD_INPUT = "grad_input"
    GRAD_START = "grad_start"
    # of a linear recurrence
    MATRIX = "matrix"
    BIAS = "bias"
    DRIVE = "drive"
    FIRST_OUTPUT = "first_output"
    LAST_OUTPUT = "last_output"
    GRAD_LAST_OUTPUT = "grad_last_output"
    GRAD_FIRST_OUTPUT = "grad_first_output"
    SCRATCH = "scratch"


# Scratch of a task: nobody else sees it, and nothing is in it before the task begins.
PRIVATE = frozenset({Role.PAST, Role.SCRATCH})
# Sequences that the caller may lay out as it likes: strides of time and of rows are arguments.
STRIDED = frozenset({Role.INPUT, Role.GRAD_OUTPUT, Role.GRAD_RECORD, Role.DRIVE})


class Axis(_Word):
    """The place of a lane in a dimension of a buffer."""

    LANE = "lane"
    NEURON = "neuron"


@dataclass(frozen=True)
class Var:
    """A value of a kernel: its name, unique there; its type; whether every lane has its own."""

    name: str
    dtype: Dtype
    lanes: bool = False

    def __str__(self) -> str:
        return self.name


Operand: TypeAlias = "Var | float | int | bool"
Index: TypeAlias = "Var | int | Axis"


class Extent(_Word):
    """Size of a dimension that only the printer knows."""

    LANES = "lanes"
    NEURONS = "neurons"


@dataclass(frozen=True)
class Size:
    """Size of a dimension: an argument of the kernel, plus a number."""

    value: Var
    plus: int = 0

    def __str__(self) -> str:
        return f"{self.value}{f' {self.plus:+d}' if self.plus else ''}"


Dimension: TypeAlias = "int | Size | Extent"


@dataclass(frozen=True)
class Buffer:
    """Memory given to a kernel, its last dimension contiguous; ``name`` is empty if it is alone."""

    role: Role
    name: str
    dtype: Dtype
    shape: tuple[Dimension, ...]

    @property
    def is_strided(self) -> bool:
        """Whether strides of time and rows are arguments."""
        return self.role in STRIDED and len(self.shape) > 1

    @property
    def label(self) -> str:
        """Name that no other buffer of the kernel has."""
        return f"{self.role.value}_{self.name}" if self.name else self.role.value


# Statements


@dataclass(frozen=True)
class Operation:
    """``result = op(*args)``, in every lane if the result has lanes."""

    result: Var
    op: str
    args: tuple[Operand, ...]


@dataclass(frozen=True)
class Load:
    """``result = buffer[index]``."""

    result: Var
    buffer: Buffer
    index: tuple[Index, ...]


@dataclass(frozen=True)
class Store:
    """``buffer[index] = value``; to sums, which lanes of a neuron may share, it is added."""

    buffer: Buffer
    index: tuple[Index, ...]
    value: Operand


@dataclass(frozen=True)
class Carried:
    """A value of a loop: ``inside`` is ``initial``, then the last ``next``; behind, ``result``."""

    inside: Var
    initial: Operand
    next: Operand
    result: Var


@dataclass(frozen=True)
class For:
    """Run ``body`` for each ``index`` of ``start ... stop - 1``, from the last one if reversed."""

    index: Var
    start: Operand
    stop: Operand
    reverse: bool
    carried: tuple[Carried, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class If:
    """Run ``body`` where a uniform condition holds."""

    condition: Var
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Lanes:
    """Run ``body`` for all lanes of the task, in any order and as many at a time as one likes."""

    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Barrier:
    """Order memory: lanes read behind it what other lanes wrote before it."""


@dataclass(frozen=True)
class Multiply:
    """Multiply the rows of one step by several matrices, and add that to several steps.

    ``target[i + j] += source[index] @ matrix[first + j]`` for ``j`` of ``0 ... count - 1``, and all
    rows of neurons of the task; ``target[i - j]`` where it is reversed. The product of the buffer's
    last matrix overwrites the target.
    """

    target: Buffer
    target_index: tuple[Index, ...]
    source: Buffer
    source_index: tuple[Index, ...]
    matrix: Buffer
    first: Operand
    count: Operand
    reverse: bool = False


Statement: TypeAlias = "Operation | Load | Store | For | If | Lanes | Barrier | Multiply"


@dataclass(frozen=True)
class Schedule:
    """A kernel: a function of integers, its sizes, and buffers, for the lanes of one task."""

    name: str
    title: str
    dtype: Dtype
    sizes: tuple[Var, ...]
    buffers: tuple[Buffer, ...]
    body: tuple[Statement, ...]

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles of its buffers, each once, in their order."""
        return tuple(dict.fromkeys(buffer.role for buffer in self.buffers))


def statements(body: Sequence[Statement]) -> Iterator[Statement]:
    """Yield all statements of a body, those of inner bodies behind their own."""
    for statement in body:
        yield statement
        if isinstance(statement, (For, If, Lanes)):
            yield from statements(statement.body)


def operands(statement: Statement) -> tuple[Operand, ...]:
    """Return what a statement reads itself, not its body; of a loop what it begins with."""
    if isinstance(statement, Operation):
        return statement.args
    if isinstance(statement, (Load, Store)):
        value = () if isinstance(statement, Load) else (statement.value,)
        return (*(i for i in statement.index if not isinstance(i, Axis)), *value)
    if isinstance(statement, For):
        return (statement.start, statement.stop, *(c.initial for c in statement.carried))
    if isinstance(statement, If):
        return (statement.condition,)
    if isinstance(statement, Multiply):
        both = (*statement.target_index, *statement.source_index)
        indices = tuple(i for i in both if not isinstance(i, Axis))
        return (*indices, statement.first, statement.count)
    return ()


def written(kernel: Schedule) -> frozenset[Buffer]:
    """Return the buffers that a kernel writes to."""
    found: set[Buffer] = set()
    for each in statements(kernel.body):
        if isinstance(each, Store):
            found.add(each.buffer)
        elif isinstance(each, Multiply):
            found.add(each.target)
    return frozenset(found)


# Building


@dataclass
class OpenLoop:
    """A loop while its body is written, which sets ``next``: what it carries, within and after."""

    index: Var
    carried: dict[str, Var]
    results: dict[str, Var]
    next: dict[str, Operand] = field(default_factory=dict)


class KernelBuilder:
    """Write a kernel statement by statement."""

    def __init__(self, name: str, title: str, dtype: Dtype) -> None:
        self.name, self.title, self.dtype = name, title, dtype
        self._sizes: list[Var] = []
        self._buffers: list[Buffer] = []
        self._blocks: list[list[Statement]] = [[]]
        self._names: set[str] = set()

    def size(self, name: str) -> Var:
        value = self._value(name, Dtype.INT64, False)
        self._sizes.append(value)
        return value

    def buffer(
        self, role: Role, name: str, shape: tuple[Dimension, ...], dtype: Dtype | None = None
    ) -> Buffer:
        """Add memory, of the dtype of the arithmetic unless another is given."""
        buffer = Buffer(role, name, dtype or self.dtype, shape)
        self._buffers.append(buffer)
        return buffer

    def op(self, op: str, *args: Operand, dtype: Dtype | None = None) -> Var:
        """Append an operation and return its result, by default of its last operand's dtype."""
        dtypes = [_dtype_of(arg, self.dtype) for arg in args]
        if dtype is not None:
            pass
        elif op in BOOLEAN:
            dtype = Dtype.BOOL
        elif op == "float":
            dtype = self.dtype
        elif op == "double":
            dtype = Dtype.FLOAT64
        else:
            dtype = dtypes[-1]
        lanes = any(isinstance(arg, Var) and arg.lanes for arg in args)
        prefix = "i" if dtype.is_integer else ("b" if dtype is Dtype.BOOL else "v")
        result = self._value(prefix, dtype, lanes, numbered=True)
        self.append(Operation(result, op, args))
        return result

    def load(self, buffer: Buffer, index: tuple[Index, ...], name: str) -> Var:
        lanes = any(isinstance(i, Axis) for i in index)
        result = self._value(name, buffer.dtype, lanes)
        self.append(Load(result, buffer, index))
        return result

    def store(self, buffer: Buffer, index: tuple[Index, ...], value: Operand) -> None:
        self.append(Store(buffer, index, value))

    @contextmanager
    def loop(
        self,
        name: str,
        start: Operand,
        stop: Operand,
        carried: Mapping[str, Operand] | None = None,
        *,
        reverse: bool = False,
    ) -> Iterator[OpenLoop]:
        """Append a loop whose body is what is appended inside."""
        carried = carried or {}
        inside: dict[str, Var] = {}
        results: dict[str, Var] = {}
        for each, initial in carried.items():
            dtype = _dtype_of(initial, self.dtype)
            # a number that it begins with may become one of each lane
            lanes = not isinstance(initial, Var) or initial.lanes
            inside[each] = self._value(each, dtype, lanes)
            results[each] = self._value(f"{each}_end", dtype, lanes)
        opened = OpenLoop(self._value(name, Dtype.INT64, False), inside, results)

        def made(body: tuple[Statement, ...]) -> For:
            pairs = tuple(
                Carried(inside[each], initial, opened.next.get(each, inside[each]), results[each])
                for each, initial in carried.items()
            )
            return For(opened.index, start, stop, reverse, pairs, body)

        with self._block(made):
            yield opened

    def when(self, condition: Var) -> AbstractContextManager[None]:
        return self._block(lambda body: If(condition, body))

    def lanes(self) -> AbstractContextManager[None]:
        return self._block(Lanes)

    @contextmanager
    def _block(self, made: Callable[[tuple[Statement, ...]], Statement]) -> Iterator[None]:
        self._blocks.append([])
        yield
        self.append(made(tuple(self._blocks.pop())))

    def kernel(self) -> Schedule:
        (body,) = self._blocks
        sizes, buffers = tuple(self._sizes), tuple(self._buffers)
        return Schedule(self.name, self.title, self.dtype, sizes, buffers, tuple(body))

    def append(self, statement: Statement) -> None:
        self._blocks[-1].append(statement)

    def _value(self, name: str, dtype: Dtype, lanes: bool, *, numbered: bool = False) -> Var:
        unique = f"{name}{len(self._names)}" if numbered or name in self._names else name
        self._names.add(unique)
        return Var(unique, dtype, lanes)


def _dtype_of(operand: Operand, real: Dtype) -> Dtype:
    """Return the dtype of an operand; a float stands for a number of the arithmetic."""
    if isinstance(operand, Var):
        return operand.dtype
    if isinstance(operand, bool):
        return Dtype.BOOL
    return Dtype.INT64 if isinstance(operand, int) else real


# Simplifying


def values_read(body: Sequence[Statement]) -> frozenset[Var]:
    """Return the values that the statements of a body read, and what its loops carry on."""
    read: set[Var] = set()
    for each in statements(body):
        read |= {v for v in operands(each) if isinstance(v, Var)}
        if isinstance(each, For):
            read |= {c.next for c in each.carried if isinstance(c.next, Var)}
    return frozenset(read)


def without_dead_lines(kernel: Schedule) -> Schedule:
    """Return a kernel without operations, loads and carried values that nothing reads."""
    while True:
        body = _living(kernel.body, values_read(kernel.body))
        if body == kernel.body:
            return kernel
        kernel = replace(kernel, body=body)


def _living(body: Sequence[Statement], read: frozenset[Var]) -> tuple[Statement, ...]:
    """Return the statements without those of dead values, and without empty blocks."""
    found: list[Statement] = []
    for each in body:
        if isinstance(each, (Operation, Load)) and each.result not in read:
            continue
        if isinstance(each, For):
            carried = tuple(c for c in each.carried if c.inside in read or c.result in read)
            each = replace(each, carried=carried, body=_living(each.body, read))
        elif isinstance(each, (If, Lanes)):
            each = replace(each, body=_living(each.body, read))
            if not each.body:
                continue
        found.append(each)
    return tuple(found)
