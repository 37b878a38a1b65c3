"""Read a ``.nir`` file, an HDF5 file, so that a damaged or hostile one does no harm.

Links, virtual and external data sets, and filters that would load a plug-in, are refused. A data
set may be no larger than what its bytes in the file can hold.
"""

from __future__ import annotations

import math
import os
import struct
from typing import Any, BinaryIO

import h5py
import numpy as np

from tracetorch.core.files import check_regular_file

_MAX_DEPTH = 80  # groups in groups: 32 graphs, each with its "nodes"
_MIN_ENTRY = 40  # bytes that the name of a group or data set takes at least
# DEFLATE makes at most 1032 bytes of one, LZF 88 or so; a chunk is padded to its full size.
_MAX_RATIO = 1100
_SMALL = 1 << 16
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the dictionary in a file; raise ``ValueError`` where it is damaged or no NIR file."""
    path = check_regular_file(path, "a NIR file")
    size = path.stat().st_size
    try:
        with h5py.File(path, "r") as file, path.open("rb") as raw:
            if file.userblock_size or file.id.get_create_plist().get_sizes() != (8, 8):
                raise ValueError("its addresses are not those that NIR's writers use.")
            return _Reader(size, raw).group(_member(file, "node", "the file"), "node")
    # h5py reports damage in all of these; only our own errors are plain ValueErrors
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        ours = type(error) is ValueError
        problem = "cannot be read" if ours else "is not a NIR file, or is damaged"
        raise ValueError(f"{str(path)!r} {problem}: {error}") from error


class _Reader:
    """Read a file of ``size`` bytes, and count what was read."""

    def __init__(self, size: int, raw: BinaryIO) -> None:
        self.size, self.raw = size, raw
        # groups and data sets; bytes of numbers, unpacked; bytes of texts and their heaps
        self.parts = self.numbers = self.text = 0
        self.heaps: dict[int, dict[int, bytes]] = {}

    def group(self, group: Any, title: str, *around: int) -> dict[str, Any]:
        """Return a group as a dictionary; ``around`` are the addresses of the groups it lies in."""
        if not isinstance(group, h5py.Group):
            raise ValueError(f"{title} is neither a group nor a data set.")
        address = h5py.h5o.get_info(group.id).addr
        if address in around or len(around) > _MAX_DEPTH:
            raise ValueError(f"{title} holds itself, or lies more than {_MAX_DEPTH} groups deep.")
        content: dict[str, Any] = {}
        for name in group:
            # Two links to one group at every level would make 2^depth parts of a small file.
            self.parts += 1
            if self.parts > self.size // _MIN_ENTRY:
                raise ValueError(f"it declares more than {self.parts} groups and values.")
            part, inner = _member(group, name, title), f"{title}/{name}"
            if isinstance(part, h5py.Dataset):
                content[name] = self.data(part, inner)
            else:
                content[name] = self.group(part, inner, *around, address)
        return content

    def data(self, dataset: Any, title: str) -> Any:
        self.check_size(dataset, title)
        text = h5py.check_string_dtype(dataset.dtype)
        if text is None:
            if dataset.dtype.kind not in "fiub":
                raise ValueError(f"{title} holds {dataset.dtype}, neither numbers nor text.")
            return dataset[()] if dataset.shape else dataset[()].item()
        if text.length is not None:
            return np.char.decode(dataset[()], "utf8").tolist()
        offset = dataset.id.get_offset()
        if offset is None or dataset.chunks is not None:
            raise ValueError(f"{title} keeps its texts in pieces, which no writer of NIR does.")
        # Read texts of variable length by hand, for HDF5 walks a damaged heap forever.
        references = self.bytes(offset, 16 * math.prod(dataset.shape))
        texts = [self.read_text(*parts) for parts in struct.iter_unpack("<IQI", references)]
        return np.array(texts, object).reshape(dataset.shape).tolist()

    def check_size(self, dataset: Any, title: str) -> None:
        """Raise unless what the data set takes in memory is justified by what the file holds."""
        shape, itemsize = dataset.shape, dataset.dtype.itemsize
        if shape is None or 0 in shape[1:]:
            raise ValueError(f"{title} is empty.")
        properties = dataset.id.get_create_plist()
        if dataset.is_virtual or properties.get_external_count():
            raise ValueError(f"{title} keeps its values outside of the file.")
        filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
        for number in filters - _FILTERS.keys():
            readable = ", ".join(_FILTERS.values())
            raise ValueError(f"{title} is packed by filter {number}; {readable} can be read.")
        needed, chunk = (math.prod(n) * itemsize for n in (shape, dataset.chunks or ()))
        stored = dataset.id.get_storage_size()
        most = max(min(stored, self.size) * (_MAX_RATIO if filters else 1), _SMALL)
        self.numbers += needed
        if max(needed, chunk) > most or self.numbers > self.size * _MAX_RATIO + _SMALL:
            declared = f"{title} declares shape {list(shape)} of {dataset.dtype}, {needed} bytes"
            raise ValueError(f"{declared}, of which the file of {self.size} bytes holds {stored}.")

    def read_text(self, length: int, address: int, index: int) -> str:
        """Return object ``index`` of the global heap at ``address``."""
        text = self.heap(address).get(index, b"")[:length] if length else b""
        if len(text) != length:
            raise ValueError(f"a text of {length} bytes is not where the file says it is.")
        self.count_text(length)
        # a writer may count the zero that ends a text in C
        return text.rstrip(b"\x00").decode("utf8")

    def heap(self, address: int) -> dict[int, bytes]:
        """Return the objects of a global heap by index (HDF5 File Format Specification, III.E)."""
        if address not in self.heaps:
            signature, size = struct.unpack("<5s3xQ", self.bytes(address, 16))
            if signature != b"GCOL\x01":
                raise ValueError("the heap of its texts is damaged.")
            data, at = self.bytes(address, size), 16
            self.count_text(size)
            objects = self.heaps[address] = {}
            while at + 16 <= size:
                index, length = struct.unpack_from("<H6xQ", data, at)
                if index == 0:  # what is free, up to the end
                    break
                objects[index] = data[at + 16 : at + 16 + length]
                at += 16 + (length + 7) // 8 * 8
        return self.heaps[address]

    def count_text(self, length: int) -> None:
        """Raise where texts, or heaps one in another, are more than there is file."""
        self.text += length
        if self.text > 2 * self.size:
            raise ValueError("its texts are longer than the file.")

    def bytes(self, offset: int, count: int) -> bytes:
        if offset + count > self.size:
            raise ValueError(f"{count} bytes at {offset} lie beyond the end of the file.")
        self.raw.seek(offset)
        return self.raw.read(count)


def _member(group: Any, name: str, title: str) -> Any:
    if name not in group:
        raise ValueError(f"{title} has no {name!r}.")
    # A soft or external link could lead to any other file.
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{title}/{name} is a link to somewhere else.")
    return group[name]
