"""Texts of variable length in an HDF5 file, read by hand.

HDF5 keeps them in "global heaps", and its library walks a damaged one without end. A data set
holds, per text, its length (4 bytes), the address of a heap and an index (4 bytes); a heap is
``GCOL``, a version, its size, and objects of 16 bytes of header and as many as they say. From the
HDF5 File Format Specification, section III.E.
"""

from __future__ import annotations

from typing import BinaryIO

_SIGNATURE = b"GCOL\x01"
_HEAD = 16  # of a heap, and of an object in it
_LONGEST = 1 << 20  # of one text


class Heaps:
    """The heaps of one file; each is walked once.

    Args:
        file: the file, opened for reading bytes.
        size: its length.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.known: dict[int, dict[int, bytes]] = {}
        # what is left of the file: heaps do not overlap, nor do texts in them
        self.unread = size
        self.untold = size

    def texts(self, offset: int, count: int) -> list[str]:
        """The texts of a data set whose ``count`` references begin at ``offset``.

        Raises:
            ValueError: a reference, a heap or a text is not what it should be.
        """
        found: list[str] = []
        references = self._bytes(offset, 16 * count)
        for i in range(count):
            one = references[16 * i : 16 * i + 16]
            length, address, index = (_number(one[a:b]) for a, b in ((0, 4), (4, 12), (12, 16)))
            if length == 0:
                found.append("")
                continue
            held = self._heap(address).get(index)
            if held is None or length > min(len(held), _LONGEST):
                raise ValueError(f"a text of {length} bytes is not where the file says it is")
            self.untold -= length
            if self.untold < 0:
                raise ValueError("its texts are longer than the file")
            # a writer may count the zero that ends a text in C
            found.append(held[:length].rstrip(b"\x00").decode("utf8"))
        return found

    def _heap(self, address: int) -> dict[int, bytes]:
        if address not in self.known:
            head = self._bytes(address, _HEAD)
            size = _number(head[8:16])
            if not head.startswith(_SIGNATURE) or not _HEAD <= size <= self.size:
                raise ValueError("the heap of its texts is damaged")
            self.unread -= size
            if self.unread < 0:
                raise ValueError("the heaps of its texts lie one in another")
            self.known[address] = _objects(self._bytes(address, size))
        return self.known[address]

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset < 0 or offset + count > self.size:
            raise ValueError(f"{count} bytes at {offset} lie beyond the end of the file")
        self.file.seek(offset)
        read = self.file.read(count)
        if len(read) != count:
            raise ValueError("the file ends early")
        return read


def _objects(heap: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = _HEAD
    while at + _HEAD <= len(heap):
        index, size = _number(heap[at : at + 2]), _number(heap[at + 8 : at + 16])
        if index == 0:  # what is free, up to the end
            break
        if at + _HEAD + size > len(heap):
            raise ValueError("the heap of its texts is damaged")
        found[index] = heap[at + _HEAD : at + _HEAD + size]
        at += _HEAD + (size + 7) // 8 * 8
    return found


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
