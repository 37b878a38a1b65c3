"""Write files in the formats of the data sets, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

Event = tuple[int, int, int, int]  # x, y, t, p


def write_heidelberg(path, samples, speakers=1) -> None:
    """Write samples of (seconds, unit) like zenkelab.org: ragged float16 and uint16.

    The speakers take turns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        spikes = file.create_group("spikes")
        for name, column, dtype in (("times", 0, np.float16), ("units", 1, np.uint16)):
            data = spikes.create_dataset(name, (len(samples),), h5py.vlen_dtype(np.dtype(dtype)))
            for number, sample in enumerate(samples):
                data[number] = np.array([spike[column] for spike in sample], dtype)
        file["labels"] = np.arange(len(samples), dtype=np.uint16) % 20
        file["extra/speaker"] = np.arange(len(samples), dtype=np.uint16) % speakers


def nmnist_bytes(events: Sequence[Event]) -> bytes:
    """Pack events in the format of N-MNIST, with a row 240 for every overflow of 2^13 us."""
    content = bytearray()
    passed = 0
    for x, y, t, p in events:
        while t - passed >= 1 << 23:
            content += bytes([0, 240, 0, 0, 0])
            passed += 1 << 13
        low = t - passed
        content += bytes([x, y, p << 7 | low >> 16, low >> 8 & 255, low & 255])
    return bytes(content)


def write_nmnist(folder: Path, recordings: Mapping[str, Sequence[Event]]) -> None:
    """Write recordings by their path: ``{"Train/7/00001.bin": events}``."""
    for path, events in recordings.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(nmnist_bytes(events))


def write_gesture(path: Path, events: Sequence[tuple[int, int, int, float]]) -> None:
    """Write rows of x, y, polarity and milliseconds, as Tonic distributes DVS Gesture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(events, dtype=np.float64).reshape(-1, 4))
