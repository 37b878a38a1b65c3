"""A ``.nir`` file, an HDF5 file, read so that a damaged or hostile one does no harm.

Nothing is taken from the file before it is known how large it is. What is not a plain group or
data set inside the file, a link elsewhere, a virtual or external data set, a filter that would load
a plug-in, is refused. A data set may be no larger than what its bytes in the file can stand for.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from tracetorch.nir.heap import Heaps

_DEEPEST = 80  # groups in groups: 32 graphs, each with its "nodes"
_ENTRY = 40  # bytes that the name of a group or data set takes at least
# DEFLATE makes at most 1032 bytes of one, LZF 88 or so; a chunk is padded to its full size.
_RATIO = 1100
_SMALL = 1 << 16
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary that a file keeps of its graph.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no HDF5 file, is damaged, or holds what a NIR file does not.
    """
    import h5py

    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder, not a NIR file.")
    size = path.stat().st_size
    try:
        with h5py.File(path, "r") as file, path.open("rb") as raw:
            if file.userblock_size or file.id.get_create_plist().get_sizes() != (8, 8):
                raise ValueError("its addresses are not those that NIR's writers use.")
            reader = _Reader(size, Heaps(raw, size))
            told = reader.group(_member(file, "node", "the file"), "node", 0)
    # h5py speaks of damage in all of these
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeError, OverflowError) as wrong:
        raise ValueError(f"{str(path)!r} is not a NIR file, or is damaged: {wrong}") from wrong
    except ValueError as wrong:
        raise ValueError(f"{str(path)!r} cannot be read: {wrong}") from wrong
    return told


class _Reader:
    """Reads one file, and counts what it has read."""

    def __init__(self, size: int, heaps: Heaps) -> None:
        self.size = size
        self.heaps = heaps
        self.bytes = 0
        self.parts = 0
        self.open: set[int] = set()

    def group(self, group: Any, told: str, depth: int) -> dict[str, Any]:
        """A group as a dictionary."""
        import h5py

        if not isinstance(group, h5py.Group):
            raise ValueError(f"{told} must be a group.")
        address = h5py.h5o.get_info(group.id).addr
        if address in self.open or depth > _DEEPEST:
            raise ValueError(f"{told} holds itself, or lies more than {_DEEPEST} groups deep.")
        self.open.add(address)
        found: dict[str, Any] = {}
        for name in group:
            self.parts += 1
            if self.parts > self.size // _ENTRY:
                raise ValueError(f"it claims more than {self.parts} groups and values.")
            part, inner = _member(group, name, told), f"{told}/{name}"
            if isinstance(part, h5py.Group):
                found[name] = self.group(part, inner, depth + 1)
            else:
                found[name] = self.dataset(part, inner)
        self.open.discard(address)
        return found

    def dataset(self, dataset: Any, told: str) -> Any:
        """A data set as an array, a number or a text."""
        import h5py

        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{told} is neither a group nor a data set.")
        self._check(dataset, told)
        kind = dataset.dtype
        text = h5py.check_string_dtype(kind)
        if text is not None and text.length is None:
            return self._texts(dataset, told)
        if text is not None:
            return _decoded(dataset[()])
        if kind.kind not in "fiub":
            raise ValueError(f"{told} holds {kind}, neither numbers nor text.")
        value = dataset[()]
        return value if isinstance(value, np.ndarray) and value.ndim else value.item()

    def _texts(self, dataset: Any, told: str) -> Any:
        offset = dataset.id.get_offset()
        if offset is None or dataset.chunks is not None or len(dataset.shape) > 2:
            raise ValueError(f"{told} keeps its texts in pieces, which no writer of NIR does.")
        found = self.heaps.texts(offset, math.prod(dataset.shape))
        if dataset.ndim == 0:
            return found[0]
        if dataset.ndim == 1:
            return found
        width = dataset.shape[1]
        return [found[i : i + width] for i in range(0, len(found), width)]

    def _check(self, dataset: Any, told: str) -> None:
        """Raise unless what the data set takes in memory is justified by what the file holds."""
        shape, kind = dataset.shape, dataset.dtype
        if shape is None:
            raise ValueError(f"{told} is empty.")
        plist = dataset.id.get_create_plist()
        if dataset.is_virtual or plist.get_external_count():
            raise ValueError(f"{told} keeps its values outside of the file.")
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        for number in filters:
            if number not in _FILTERS:
                raise ValueError(
                    f"{told} is packed by filter {number}; {', '.join(_FILTERS.values())} can be "
                    "read."
                )
        needs = math.prod(shape) * kind.itemsize
        chunk = math.prod(dataset.chunks or ()) * kind.itemsize
        stored = dataset.id.get_storage_size()
        most = stored * _RATIO if filters else stored
        self.bytes += needs
        if (
            stored > self.size
            or needs > max(most, _SMALL if filters else 0)
            or chunk > max(most, _SMALL)
            or self.bytes > self.size * _RATIO + _SMALL
        ):
            raise ValueError(
                f"{told} claims shape {list(shape)} of {kind}, {needs} bytes, of which the file of "
                f"{self.size} bytes holds {stored}."
            )


def _member(group: Any, name: str, told: str) -> Any:
    """A part of a group that lies in the same file: a link could lead to any other."""
    import h5py

    if name not in group:
        raise ValueError(f"{told} has no {name!r}.")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{told}/{name} is a link to somewhere else.")
    return group[name]


def _decoded(value: Any) -> Any:
    """Texts of fixed length: bytes, or an array of them."""
    if isinstance(value, np.ndarray):
        return [_decoded(each) for each in value]
    return bytes(value).rstrip(b"\x00").decode("utf8")
