"""Event data sets on disk: ``EventSet``, and those with one file for each recording."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.core.docstrings import SharedDescriptions
from tracetorch.data.archives import Archive, find
from tracetorch.data.events import Events

describe_event_set = SharedDescriptions(
    {
        "part": '``"train"`` or ``"test"``.',
        "download": "download the files where they are missing.",
    },
    raises={
        "FileNotFoundError": "the files are not there; the message names their address.",
        "ValueError": "the part is unknown, or a file damaged, which may show when a sample is "
        "read.",
    },
)


class EventSet(Dataset[tuple[Events, Tensor]]):
    """Base of the event data sets: a part of each is an archive, found on disk or downloaded."""

    sensor_size: ClassVar[tuple[int, int, int]]
    classes: ClassVar[int]
    archives: ClassVar[dict[str, Archive]]

    labels: Tensor

    def _find(self, folder: str | Path, part: str, download: bool) -> Path:
        """Return the path of a part, downloaded first where it is missing."""
        name = type(self).__name__
        if part not in self.archives:
            allowed = " or ".join(map(repr, self.archives))
            raise ValueError(f"{name} has the parts {allowed}, got {part!r}.")
        return find(self.archives[part], Path(folder), name=name, download=download)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} recordings, {self.classes} classes, "
            f"sensor_size={self.sensor_size})"
        )


class EventFiles(EventSet, ABC):
    """Base of the data sets with one file per recording, read one sample at a time."""

    pattern: ClassVar[str]  # of the paths of the recordings in a part

    paths: list[Path]

    def __init__(
        self,
        folder: str | Path,
        part: Literal["train", "test"] = "train",
        *,
        download: bool = False,
    ) -> None:
        root = self._find(folder, part, download)
        # in an order that no file system changes: 2.npy before 10.npy
        paths = root.glob(self.pattern)
        self.paths = sorted(paths, key=lambda path: (path.parent.name, len(path.stem), path.stem))
        if not self.paths:
            raise FileNotFoundError(
                f"{type(self).__name__} is not in {root}: there is no {self.pattern}. Unpack "
                f"{self.archives[part].url} anew."
            )
        labels = [self._label_of(path) for path in self.paths]
        for path, label in zip(self.paths, labels, strict=True):
            if not 0 <= label < self.classes:
                raise ValueError(
                    f"{path} has the label {label}, expected 0 to {self.classes - 1}. Remove it."
                )
        self.labels = torch.tensor(labels)

    @staticmethod
    @abstractmethod
    def _label_of(path: Path) -> int:
        """Return the label that the path of a recording names."""

    @classmethod
    @abstractmethod
    def _read(cls, path: Path) -> Events:
        """Read the events of a recording; raise ``ValueError`` where the file is damaged."""

    def __getitem__(self, index: int) -> tuple[Events, Tensor]:
        return self._read(self.paths[index]), self.labels[index]
