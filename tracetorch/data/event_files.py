"""Event recordings in one file each, in folders that name the label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.data.archives import Archive, check_part, find
from tracetorch.data.events import Events


class EventFiles(Dataset[tuple[Events, Tensor]], ABC):
    """Base of the data sets with one file per recording, read one sample at a time.

    A subclass lists the files, names the label of one, and reads its events.

    Example:
        >>> from tracetorch.data import NMNIST, DVSGesture
        >>> issubclass(NMNIST, EventFiles), DVSGesture.sensor_size
        (True, (128, 128, 2))
    """

    sensor_size: ClassVar[tuple[int, int, int]]
    classes: ClassVar[int]
    archives: ClassVar[dict[str, Archive]]
    layout: ClassVar[str]  # the files that a part has, for the message where there are none

    paths: list[Path]
    labels: Tensor

    def __init__(self, folder: str | Path, part: str, download: bool) -> None:
        name = type(self).__name__
        check_part(part, self.archives, name=name)
        archive = self.archives[part]
        root = find(archive, Path(folder), name=name, download=download)
        self.paths = list(self._list_files(root))
        if not self.paths:
            raise FileNotFoundError(
                f"{name} is not in {root}: there are no {self.layout}. Unpack {archive.url} anew."
            )
        self.labels = torch.tensor([self._label_of(path) for path in self.paths])

    @staticmethod
    @abstractmethod
    def _list_files(root: Path) -> Iterable[Path]:
        """List the recordings in a folder, in an order that no file system changes."""

    @staticmethod
    @abstractmethod
    def _label_of(path: Path) -> int:
        """Return the label that the path of a recording names."""

    @staticmethod
    @abstractmethod
    def _read(path: Path) -> Events:
        """Read the events of a recording; raise ``ValueError`` where the file is damaged."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Events, Tensor]:
        return self._read(self.paths[index]), self.labels[index]
