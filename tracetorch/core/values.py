"""Snapshot and restore objects that no walk enters: arrays, buffers, generators, files, iterators.

Tensors too, which may change without a new version: by ``.data``, or a NumPy array on their memory.
"""

from __future__ import annotations

import array
import ctypes
import hashlib
import io
import marshal
import mmap
import os
import pickle
import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 16
"""Most bytes that are copied where a hash will do."""

_WORDS = 1021  # of a row of a hash: prime, so that values which move by whole rows are seen

Keep = Callable[[Any], bytes]


class Kind(NamedTuple):
    """Reader and writer of objects of a type.

    Args:
        read: return what an object holds, as values to be compared; contiguous memory through a
            function that copies or hashes it.
        write: give an object what was read; ``None`` where nothing can.
    """

    read: Callable[[Any, Keep], object]
    write: Callable[[Any, Any], None] | None


class Values:
    """The values of some objects at one time.

    Args:
        held: the objects with their paths.
        whole: copy what is large too, instead of hashing it, so that it can be restored.

    Example:
        >>> table = np.zeros(3)
        >>> before = Values([("table", table)], whole=True)
        >>> table += 1
        >>> before.changes()
        ['table']
        >>> before.restore(), table
        ([], array([0., 0., 0.]))
    """

    def __init__(self, held: Iterable[tuple[str, object]], *, whole: bool) -> None:
        self._whole = whole
        self._hashed = False
        self._before: list[tuple[str, object, Kind, object]] = []
        for path, each in held:
            listed = listed_kind(type(each)) or CONSUMED  # type: ignore[arg-type]
            kind = _LONG if isinstance(each, (dict, list, deque, set)) else listed
            self._hashed = False
            value = self._read(kind, each)
            # a hash cannot be written
            kind = kind._replace(write=None) if self._hashed else kind
            self._before.append((path, each, kind, value))

    def _keep(self, memory: Any) -> bytes:
        if self._whole:
            return bytes(memory)
        self._hashed = self._hashed or memoryview(memory).nbytes > SMALL
        return hashed(memory)

    def _read(self, kind: Kind, each: object) -> object:
        try:
            return kind.read(each, self._keep)
        except Exception as error:  # a closed file, an operating system's generator
            return type(error)

    def changes(self) -> list[str]:
        """List the paths of the objects that hold something else now."""
        return [path for path, each, kind, value in self._before if self._read(kind, each) != value]

    def restore(self) -> list[str]:
        """Give the objects back what they held; return the paths of those that cannot be given."""
        lost: list[str] = []
        for path, each, kind, value in self._before:
            if self._read(kind, each) == value:
                continue
            try:
                if kind.write is not None:
                    kind.write(each, value)
            except Exception:  # read-only memory, a closed file
                pass
            if self._read(kind, each) != value:
                lost.append(path)
        return lost


def global_generators() -> list[tuple[str, object]]:
    """Return the generators behind the functions of the modules ``random`` and ``numpy.random``."""
    functions: dict[str, Any] = {"random": random.getstate, "numpy.random": np.random.get_state}
    return [(name, function.__self__) for name, function in functions.items()]


def hashed(memory: Any) -> bytes:
    """Return contiguous memory where it is small, else a hash of it: sums of words, column-wise."""
    data = memoryview(memory)
    if data.nbytes <= SMALL:
        return bytes(data)
    values = np.frombuffer(data, np.uint8)
    rows = len(values) // (8 * _WORDS)
    words = values[: 8 * _WORDS * rows].view(np.int64).reshape(rows, _WORDS)
    sums: bytes = np.add.reduce(words, axis=0).tobytes()
    return sums + values[8 * _WORDS * rows :].tobytes()


# Tensors


class MemoryReader:
    """Read the memory of tensors, and remember from one time to the next where they lie.

    Dense ones on the CPU alone. Twenty small ones take six microseconds, for they are read where
    they lie, all at once; an operation of PyTorch on each would take many times as long.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._found: list[int] = []
        self._dense: list[int] = []  # numbers of the tensors that are read
        self._small: dict[int, memoryview] = {}
        self._large: dict[int, Any] = {}
        # words of each large one: a change of the whole of it is seen in them
        self._samples: dict[int, np.ndarray[Any, Any]] = {}

    def read(self, tensors: list[Any], *, exact: bool) -> dict[int, bytes]:
        """Return the memory of some tensors, by number; each may be ``None``.

        Args:
            tensors: the tensors.
            exact: hash the large ones, instead of taking samples.
        """
        if not self._fits(tensors):
            self._find(tensors)
        read = dict(zip(self._small, map(memoryview.tobytes, self._small.values()), strict=True))
        if exact:
            read.update((number, hashed(memory)) for number, memory in self._large.items())
        else:
            read.update((number, words.tobytes()) for number, words in self._samples.items())
        return read

    def _fits(self, tensors: list[Any]) -> bool:
        """Whether these are the same tensors, in the same memory, which therefore is theirs."""
        try:
            return list(map(id, tensors)) == self._ids and self._places(tensors) == self._found
        except RuntimeError:  # another tensor at the same address, without memory
            return False

    def _places(self, tensors: list[Any]) -> list[int]:
        dense = [tensors[number] for number in self._dense]
        return [tensor.data_ptr() for tensor in dense] + [tensor.nbytes for tensor in dense]

    def _find(self, tensors: list[Any]) -> None:
        self.__init__()  # type: ignore[misc]
        for number, tensor in enumerate(tensors):
            place = _place_of(tensor) if type(tensor) in (Tensor, torch.nn.Parameter) else None
            if place is None or not place[1]:
                continue
            self._dense.append(number)
            memory = (ctypes.c_char * place[1]).from_address(place[0])
            if place[1] <= SMALL:
                self._small[number] = memoryview(memory)
            else:
                self._large[number] = memory
                words = np.frombuffer(memoryview(memory), np.int32, count=place[1] // 4)
                self._samples[number] = words[:: len(words) // 256 | 1]
        self._ids, self._found = list(map(id, tensors)), self._places(tensors)


def write_memory(tensor: Any, memory: bytes) -> None:
    """Write what was read of a small tensor, where its memory differs."""
    place = _place_of(tensor)
    if place is not None and len(memory) == place[1] and ctypes.string_at(*place) != memory:
        ctypes.memmove(place[0], memory, len(memory))


def _place_of(tensor: Tensor) -> tuple[int, int] | None:
    """Return address and size of a tensor's memory, of a view with gaps that of all its storage."""
    if not tensor.is_cpu or tensor.layout is not torch.strided or tensor.is_nested:
        return None
    if tensor.is_contiguous():
        address, size = tensor.data_ptr(), tensor.nbytes
    else:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
    # without an address there is nothing: freed by an engine, or only implied by autograd
    return (address, size) if address else None


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of any layout hold the same values, NaN in the same places."""
    if (one.is_nested, one.layout, one.dtype) != (other.is_nested, other.layout, other.dtype):
        return False
    if one.size(0) != other.size(0) if one.is_nested else one.shape != other.shape:
        return False
    if one.layout is not torch.strided or one.is_nested:
        return all(map(same_values, _parts_of(one), _parts_of(other)))
    if torch.equal(one, other):
        return True
    may_hold_nan = one.is_floating_point() or one.is_complex()
    return may_hold_nan and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())


def _parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the dense tensors that a nested tensor, or one of another layout, consists of."""
    if tensor.is_nested:
        return tuple(tensor.unbind())
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)


def set_values(tensor: Tensor, values: Tensor) -> None:
    """Write the values of a tensor, only where they differ: a graph may be waiting for them."""
    with torch.no_grad():
        if not same_values(tensor.detach(), values):
            tensor.copy_(values)


def _read_tensor(tensor: Tensor, keep: Keep) -> object:
    if tensor.layout is not torch.strided or tensor.is_nested:
        return [_read_tensor(each, keep) for each in _parts_of(tensor.detach())]
    values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return tensor.shape, tensor.dtype, keep(values.numpy())


def _write_tensor(tensor: Tensor, value: Any) -> None:
    shape, dtype, memory = value
    tensor.data.copy_(torch.frombuffer(bytearray(memory), dtype=dtype).view(shape))


# Arrays and buffers


class _Beside(list[Any]):
    """Something to be written, which is not compared."""

    def __eq__(self, other: object) -> bool:
        return True


def objects_in(values: Any) -> list[object]:
    """Return the objects that an array holds, also in fields of records."""
    if values.dtype.names:
        return [each for name in values.dtype.names for each in objects_in(values[name])]
    return list(values.ravel().tolist()) if values.dtype.hasobject else []


def _read_array(values: Any, keep: Keep) -> object:
    plain = np.asarray(values)
    mask = np.ma.getmaskarray(values).tobytes() if isinstance(values, np.ma.MaskedArray) else b""
    if plain.dtype.hasobject:
        names = [name for name in plain.dtype.names or () if not plain.dtype[name].hasobject]
        numbers = [plain[name].tobytes() for name in names]
        objects = (list(map(id, objects_in(plain))), numbers)
        return plain.shape, plain.dtype, _Beside([plain.copy()]), mask, objects
    if plain.nbytes > SMALL and not plain.flags.writeable:  # a table, a file mapped to memory
        return plain.shape, plain.dtype
    memory = keep(np.ascontiguousarray(plain).reshape(-1).view(np.uint8))
    return plain.shape, plain.dtype, memory, mask


def _write_array(values: Any, value: Any) -> None:
    shape, dtype, memory, mask, *objects = value
    if values.shape != shape:
        values.resize(shape, refcheck=False)
    plain = values.view(np.ndarray)
    plain[...] = memory[0] if objects else np.frombuffer(memory, dtype).reshape(shape)
    if mask:
        values.mask = np.frombuffer(mask, np.bool_).reshape(shape)


def _read_buffer(buffer: Any, keep: Keep) -> object:
    position = buffer.tell() if isinstance(buffer, mmap.mmap) else 0
    with memoryview(buffer) as view:
        return keep(view), position


def _write_buffer(buffer: Any, value: Any) -> None:
    memory, position = value
    if isinstance(buffer, bytearray):
        buffer[:] = memory
    elif isinstance(buffer, array.array):
        del buffer[:]
        buffer.frombytes(memory)
    else:
        with memoryview(buffer) as view:
            view.cast("B")[:] = memory
    if isinstance(buffer, mmap.mmap):
        buffer.seek(position)


# Files


def _read_text(file: Any, keep: Keep) -> object:
    content = file.getvalue()
    return content if isinstance(content, str) else keep(content), file.tell()


def _write_text(file: Any, value: Any) -> None:
    content, position = value
    file.seek(0)
    file.truncate()
    file.write(content)
    file.seek(position)


def _read_file(file: Any, keep: Keep) -> object:
    """Return the position of a file that can be read; one that is only written is a log."""
    if file.closed or not file.readable():
        return file.closed
    try:
        position = file.tell()
    except OSError:  # text that is iterated over
        position = -1 - file.buffer.tell()
    try:
        size = os.fstat(file.fileno()).st_size if file.writable() else 0
    except OSError:  # no file of the operating system
        size = 0
    return position, size


# Generators of random numbers


def _read_bit_generator(generator: Any, keep: Keep) -> object:
    return pickle.dumps(getattr(generator, "bit_generator", generator).state)


def _write_bit_generator(generator: Any, value: Any) -> None:
    getattr(generator, "bit_generator", generator).state = pickle.loads(value)


def _read_torch_generator(generator: torch.Generator, keep: Keep) -> object:
    if any(generator is each for each in (torch.default_generator, *torch.cuda.default_generators)):
        return None  # that of dropout, no memory of this model
    return generator.get_state().numpy().tobytes()


def _write_torch_generator(generator: torch.Generator, value: Any) -> None:
    generator.set_state(torch.frombuffer(bytearray(value), dtype=torch.uint8))


def _marshalled(owner: Any, keep: Keep) -> bytes:
    """Return all values in a container, however deep, where they are builtin ones."""
    try:
        return marshal.dumps(owner, 2)  # a later version depends on counts of references
    except ValueError:
        return b""


# What can only be consumed: nothing of it can be read

CONSUMED = Kind(lambda each, _: None, None)
"""Of iterators and generators, which :class:`Watched` watches."""

_KINDS: tuple[tuple[Any, Kind], ...] = (
    (np.ndarray, Kind(_read_array, _write_array)),
    (
        (
            bytearray,
            array.array,
            memoryview,
            mmap.mmap,
            ctypes.Array,
            ctypes.Structure,
            ctypes.c_int.__mro__[1],
        ),
        Kind(_read_buffer, _write_buffer),
    ),
    ((io.StringIO, io.BytesIO), Kind(_read_text, _write_text)),
    (io.IOBase, Kind(_read_file, lambda file, value: file.seek(value[0]))),
    (random.Random, Kind(lambda g, _: g.getstate(), lambda g, value: g.setstate(value))),
    (
        (np.random.Generator, np.random.BitGenerator),
        Kind(_read_bit_generator, _write_bit_generator),
    ),
    (
        np.random.RandomState,
        Kind(
            lambda g, _: pickle.dumps(g.get_state(legacy=False)),
            lambda g, value: g.set_state(pickle.loads(value)),
        ),
    ),
    (torch.Generator, Kind(_read_torch_generator, _write_torch_generator)),
    (
        np.nditer,
        Kind(lambda it, _: it.iterindex, lambda it, value: setattr(it, "iterindex", value)),
    ),
    (np.flatiter, Kind(lambda it, _: it.index, None)),
    # can be compared, and not be written
    (np.random.SeedSequence, Kind(lambda each, _: each.n_children_spawned, None)),
    (
        tuple({*map(type, map(hashlib.new, ("md5", "blake2b")))}),
        Kind(lambda h, _: h.digest(), None),
    ),
    (threading.Event, Kind(lambda e, _: e.is_set(), lambda e, on: e.set() if on else e.clear())),
    (queue.SimpleQueue, Kind(lambda q, _: q.qsize(), None)),
    (Tensor, Kind(_read_tensor, _write_tensor)),
)
_LONG = Kind(_marshalled, None)  # of containers whose items are not walked


@lru_cache(maxsize=4096)
def listed_kind(kind: Any) -> Kind | None:
    """Return how objects of a type are read and written, where the type is a known one."""
    return next((entry for base, entry in _KINDS if issubclass(kind, base)), None)


class Watched:
    """Stand in for something that can only be consumed, and note whether it was.

    Args:
        held: the iterator, generator or queue.
    """

    def __init__(self, held: Any) -> None:
        self.held = held
        self.moved = False

    def __iter__(self) -> Watched:
        return self

    def __next__(self) -> Any:
        self.moved = True
        return next(self.held)

    def call(self, name: str, *args: Any) -> Any:
        """Call a method by name."""
        self.moved = True
        return getattr(self.held, name)(*args)

    def __len__(self) -> int:
        return len(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.held, name)
        if callable(value) and name not in _HARMLESS:
            self.moved = True
        return value


_HARMLESS = frozenset({"qsize", "empty"})
_REPLACEABLE = frozenset({*dir(object), "__iter__", "__next__", "__length_hint__", "__setstate__"})
_REPLACEABLE |= {"__len__", "__copy__", "__del__", "__class_getitem__", "__name__", "__qualname__"}
_REPLACEABLE |= {"__module__", "__dict__", "__weakref__"}


@lru_cache(maxsize=1024)
def can_be_watched(kind: Any) -> bool:
    """Whether :class:`Watched` can stand in for objects of a type, which only iterate or queue."""
    consumed = hasattr(kind, "__next__") and listed_kind(kind) is None
    special = {name for name in dir(kind) if name.startswith("__")}
    return issubclass(kind, queue.SimpleQueue) or (consumed and special <= _REPLACEABLE)
