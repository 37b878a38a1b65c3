"""DVS Gesture: eleven gestures of the hands and arms, seen by an event camera."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.data.events import Events, structured
from tracetorch.data.fetch import Archive, find


class DVSGesture(Dataset[tuple[Events, Tensor]]):
    """Eleven gestures of 29 people under three lights, as events of a 128 by 128 camera.

    The recordings are those that Tonic distributes: already cut into single gestures, with times in
    milliseconds. A sample is its events (fields ``t`` in microseconds, ``x``, ``y``, ``p`` 0 or 1)
    and a label from 0 to 10; 1,077 to train on, 264 held out.
    :class:`~tracetorch.data.Frames` makes sequences of them.

    Args:
        folder: where ``ibmGestureTrain`` and ``ibmGestureTest`` lie, with a folder of ``.npy``
            files for each person and light.
        part: ``"train"`` or ``"test"``.
        download: fetch the files if they are missing.

    Raises:
        FileNotFoundError: the files are not there; the message says where to get them.
        ValueError: the part is unknown; reading a sample, its file is damaged.

    Example:
        >>> DVSGesture("data")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: DVSGesture is not in data: there is no ibmGestureTrain. Unpack https://...

    Reference:
        A. Amir et al., A low power, fully event-based gesture recognition system, CVPR (2017).
    """

    sensor_size: ClassVar[tuple[int, int, int]] = (128, 128, 2)
    classes: ClassVar[int] = 11
    archives: ClassVar[dict[str, Archive]] = {
        "train": Archive(
            "https://figshare.com/ndownloader/files/38022171",
            "3a8f0d4120a166bac7591f77409cb105",
            "ibmGestureTrain",
            "tar",
        ),
        "test": Archive(
            "https://figshare.com/ndownloader/files/38020584",
            "56070e45dadaa85fff82e0fbfbc06de5",
            "ibmGestureTest",
            "tar",
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
            raise ValueError(f"DVSGesture has the parts 'train' or 'test', got {part!r}.")
        place = find(self.archives[part], Path(folder), name="DVSGesture", download=download)
        found = [path for path in place.glob("user*/*.npy") if path.stem.isdecimal()]
        self.paths = sorted(found, key=lambda path: (path.parent.name, int(path.stem)))
        if not self.paths:
            raise FileNotFoundError(
                f"DVSGesture is not in {place}: there are no .npy files in folders named for "
                f"users. Unpack {self.archives[part].url} anew."
            )
        self.labels = torch.tensor([int(path.stem) for path in self.paths])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Events, Tensor]:
        return read_gesture(self.paths[index]), self.labels[index]


def read_gesture(path: Path) -> Events:
    """The events of one file: an array ``[n, 4]`` of x, y, polarity and time in milliseconds.

    Args:
        path: an ``.npy`` file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}. Remove it or replace it.") from error
    if content.ndim != 2 or content.shape[1] != 4:
        raise ValueError(
            f"{path} does not hold a gesture: its shape is {list(content.shape)}, expected [n, 4] "
            "for x, y, polarity and milliseconds."
        )
    x, y, p = content[:, :3].astype(np.int16).T
    return structured((content[:, 3] * 1000).round(), x=x, y=y, p=p)
