"""N-MNIST: the handwritten digits, seen by an event camera that moves."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.data.events import Events, structured
from tracetorch.data.fetch import Archive, find

FILES = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files"
OVERFLOW = 240  # a row that no sensor has: 2^13 microseconds have passed


class NMNIST(Dataset[tuple[Events, Tensor]]):
    """MNIST before an event camera that makes three quick movements, 0.3 seconds in all.

    A sample is its events (fields ``t`` in microseconds, ``x`` and ``y`` from 0 to 33, ``p`` 0 or
    1) and a digit; 60,000 to train on, 10,000 held out. :class:`~tracetorch.data.Frames` makes
    sequences of them.

    Args:
        folder: where ``Train`` and ``Test`` lie, with a folder of ``.bin`` files for each digit.
        part: ``"train"`` or ``"test"``.
        download: fetch the files if they are missing.

    Raises:
        FileNotFoundError: the files are not there; the message says where to get them.
        ValueError: the part is unknown; reading a sample, its file is damaged.

    Example:
        >>> NMNIST("data")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: NMNIST is not in data: there is no Train. Unpack https://...

    Reference:
        G. Orchard et al., Converting static image datasets to spiking neuromorphic datasets using
        saccades, Frontiers in Neuroscience 9 (2015).
    """

    sensor_size: ClassVar[tuple[int, int, int]] = (34, 34, 2)
    classes: ClassVar[int] = 10
    archives: ClassVar[dict[str, Archive]] = {
        "train": Archive(
            f"{FILES}/39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
            "20959b8e626244a1b502305a9e6e2031",
            "Train",
        ),
        "test": Archive(
            f"{FILES}/05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
            "69ca8762b2fe404d9b9bad1103e97832",
            "Test",
        ),
    }

    paths: list[Path]
    labels: Tensor

    def __init__(
        self,
        folder: str | Path,
        part: Literal["train", "test"] = "train",
        *,
        download: bool = False,
    ) -> None:
        if part not in self.archives:
            raise ValueError(f"NMNIST has the parts 'train' or 'test', got {part!r}.")
        place = find(self.archives[part], Path(folder), name="NMNIST", download=download)
        self.paths = sorted(place.glob("[0-9]/*.bin"))
        if not self.paths:
            raise FileNotFoundError(
                f"NMNIST is not in {place}: there are no .bin files in folders 0 to 9. Unpack "
                f"{self.archives[part].url} anew."
            )
        self.labels = torch.tensor([int(path.parent.name) for path in self.paths])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Events, Tensor]:
        return read_nmnist(self.paths[index]), self.labels[index]


def read_nmnist(path: Path) -> Events:
    """The events of one file.

    The format: five bytes an event: x; y; the polarity as the highest bit, then the time in
    microseconds as 23 bits, big-endian. Where y is 240 there is no event, but 2^13 microseconds to
    be added to all times from there on.

    Args:
        path: a ``.bin`` file.

    Raises:
        ValueError: the file is damaged.
    """
    content = np.fromfile(path, np.uint8)
    if len(content) % 5:
        raise ValueError(
            f"{path} is damaged: it has {len(content)} bytes, not a multiple of 5. "
            "Remove it or replace it."
        )
    x, y, high, middle, low = content.reshape(-1, 5).astype(np.int64).T
    passed = y == OVERFLOW
    t = ((high & 127) << 16 | middle << 8 | low) + (1 << 13) * np.cumsum(passed)
    real = ~passed
    columns = {"x": x, "y": y, "p": high >> 7}
    return structured(t[real], **{name: c[real].astype(np.int16) for name, c in columns.items()})
