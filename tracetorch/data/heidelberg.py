"""The Heidelberg spiking data sets: spoken digits and commands encoded by a cochlea model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.files import check_regular_file
from tracetorch.core.optional import require
from tracetorch.data.archives import Archive
from tracetorch.data.event_files import EventSet, describe_event_set
from tracetorch.data.events import Events, structured_events, whole_numbers

BASE_URL = "https://zenkelab.org/datasets"


class Heidelberg(EventSet):
    """Base of SHD and SSC: an HDF5 file of spike times and units, read one sample at a time."""

    sensor_size: ClassVar[tuple[int, int, int]] = (700, 1, 1)
    columns: ClassVar[tuple[str, ...]] = ("spikes/times", "spikes/units", "labels")

    path: Path

    def __init__(self, folder: str | Path, part: str = "train", *, download: bool = False) -> None:
        name = type(self).__name__
        require("h5py", extra="data", by=f"tt.data.{name}")
        self.path = self._find(folder, part, download)
        # the process that opened the file, and the open file
        self._open: tuple[int, Any] | None = None
        try:
            columns = [self._file()[name] for name in self.columns]
        except (OSError, KeyError) as error:
            raise ValueError(
                f"{self.path} is not a file of {name}: {error}. Expected HDF5 with "
                f"{', '.join(self.columns)}. Remove it or replace it."
            ) from error
        lengths = [len(column) for column in columns]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"{self.path} is damaged: {', '.join(self.columns)} have the lengths {lengths}. "
                "Remove it or replace it."
            )
        labels = whole_numbers(self.path, "a label", columns[2][:], 0, self.classes)
        self.labels = torch.from_numpy(labels)

    def _file(self) -> Any:
        """Return the open HDF5 file of this process."""
        import h5py

        # HDF5 handles do not survive a fork: every process of a DataLoader opens its own
        if self._open is None or self._open[0] != os.getpid():
            path = check_regular_file(self.path, "an HDF5 file")
            self._open = os.getpid(), h5py.File(path, "r")
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        # an open file cannot be pickled; the copy opens it again
        return {**self.__dict__, "_open": None}

    def __getitem__(self, index: int) -> tuple[Events, Tensor]:
        file = self._file()
        index = range(len(self))[index]  # raises IndexError, which ends a for loop
        times, units = file["spikes/times"][index], file["spikes/units"][index]
        if len(times) != len(units):
            raise ValueError(
                f"{self.path} is damaged: sample {index} has {len(times)} times and {len(units)} "
                "units. Remove it or replace it."
            )
        # times are float16 or float32 seconds in the file; other data sets have microseconds
        microseconds = times.astype(np.float64) * 1e6
        columns = {"x": units, "p": np.ones(len(units), np.int16)}
        events = structured_events(self.path, self.sensor_size, microseconds, **columns)
        return events, self.labels[index]


@describe_event_set
class SHD(Heidelberg):
    """Spiking Heidelberg Digits: 0 to 9 in English and German, as spikes of 700 cochlear channels.

    A sample is a pair of events (fields ``t`` in microseconds, ``x`` the channel, ``p`` 1) and a
    label from 0 to 19, of about one second. There are 8,156 for training and 2,264 for testing, of
    which two speakers are not in the training part; ``speakers`` is a tensor of the speaker of each
    sample, so that validation data can be of other speakers too. :class:`~tracetorch.data.Frames`
    turns the events into sequences.

    Args:
        folder: folder with ``shd_train.h5`` and ``shd_test.h5``.

    Raises:
        ModuleNotFoundError: h5py is missing.

    Example:
        >>> SHD("data")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: SHD is not in data: there is no shd_train.h5. Unpack https://...

    Reference:
        B. Cramer et al., The Heidelberg spiking data sets for the systematic evaluation of spiking
        neural networks, IEEE TNNLS 33 (2022).
    """

    classes: ClassVar[int] = 20
    archives: ClassVar[dict[str, Archive]] = {
        "train": Archive(
            f"{BASE_URL}/shd_train.h5.zip", "f3252aeb598ac776c1b526422d90eecb", "shd_train.h5"
        ),
        "test": Archive(
            f"{BASE_URL}/shd_test.h5.zip", "1503a5064faa34311c398fb0a1ed0a6f", "shd_test.h5"
        ),
    }

    columns: ClassVar[tuple[str, ...]] = (*Heidelberg.columns, "extra/speaker")

    speakers: Tensor

    def __init__(self, folder: str | Path, part: str = "train", *, download: bool = False) -> None:
        super().__init__(folder, part, download=download)
        speakers = self._file()["extra/speaker"][:]
        self.speakers = torch.from_numpy(
            whole_numbers(self.path, "a speaker", speakers, 0, 1 << 16)
        )


@describe_event_set
class SSC(Heidelberg):
    """Spiking Speech Commands: 35 spoken words, as spikes of 700 cochlear channels.

    A sample is a pair of events and a label from 0 to 34, as in :class:`SHD`. There are 75,466 for
    training, 9,981 for validation and 20,382 for testing.

    Args:
        folder: folder with ``ssc_train.h5``, ``ssc_valid.h5`` and ``ssc_test.h5``.
        part: ``"train"``, ``"valid"`` or ``"test"``.

    Raises:
        ModuleNotFoundError: h5py is missing.

    Example:
        >>> SSC("data", "valid")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: SSC is not in data: there is no ssc_valid.h5. Unpack https://...

    Reference:
        As :class:`SHD`.
    """

    classes: ClassVar[int] = 35
    archives: ClassVar[dict[str, Archive]] = {
        "train": Archive(
            f"{BASE_URL}/ssc_train.h5.zip", "d102be95e7144fcc0553d1f45ba94170", "ssc_train.h5"
        ),
        "valid": Archive(
            f"{BASE_URL}/ssc_valid.h5.zip", "b4eee3516a4a90dd0c71a6ac23a8ae43", "ssc_valid.h5"
        ),
        "test": Archive(
            f"{BASE_URL}/ssc_test.h5.zip", "a35ff1e9cffdd02a20eb850c17c37748", "ssc_test.h5"
        ),
    }
