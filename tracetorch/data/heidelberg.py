"""The Heidelberg spiking data sets: spoken words encoded by a cochlea model, in HDF5, from ZIP."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.core.checks import require
from tracetorch.core.docstrings import SharedDescriptions
from tracetorch.core.files import DISK_ERRORS, check_regular_file, link_target

BASE_URL = "https://zenkelab.org/datasets"
TIMEOUT = 60.0  # seconds without a byte, after which a server is taken to be gone
Events = npt.NDArray[Any]

describe_event_set = SharedDescriptions(
    {
        "part": '``"train"`` or ``"test"``.',
        "download": "download the files where they are missing.",
    },
    raises={
        "FileNotFoundError": "the files are not there; the message names their address.",
        "ModuleNotFoundError": "h5py is missing.",
        "ValueError": "the part is unknown, or a file damaged, which may show when a sample is "
        "read.",
    },
)


@dataclass(frozen=True)
class Archive:
    """A downloadable archive, in ZIP, with one part of a data set."""

    url: str  # address of the archive
    md5: str  # its checksum, as the publisher or Tonic gives it
    entry: str  # name of the file that unpacking creates


def find(archive: Archive, folder: Path, *, name: str, download: bool) -> Path:
    """Return the path of what an archive unpacks to, downloaded first where it is missing."""
    path = folder / archive.entry
    if not path.exists():
        if not download:
            raise FileNotFoundError(
                f"{name} is not in {folder}: there is no {archive.entry}. Unpack {archive.url} "
                "there, or pass download=True to have that done."
            )
        fetch(archive, folder)
    return path


def fetch(archive: Archive, folder: Path) -> None:
    """Download an archive and unpack it into ``folder``; a failed call leaves nothing behind."""
    destination = link_target(folder / archive.entry)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # beside its destination, so that what is unpacked can be moved there in one step
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as workspace:
        download, unpacked = Path(workspace) / "archive", Path(workspace) / "unpacked"
        try:
            with urlopen(archive.url, timeout=TIMEOUT) as source, download.open("wb") as target:
                shutil.copyfileobj(source, target)
        except OSError as error:
            if error.errno in DISK_ERRORS:  # of a write, which does not name its file
                raise OSError(error.errno, error.strerror, str(folder)) from error
            raise ConnectionError(
                f"{archive.url} cannot be downloaded: {error}. Fetch it by other means and unpack "
                f"it into {folder}."
            ) from error
        # checked before unpacking: a damaged archive may unpack in part
        md5 = checksum(download)
        if md5 != archive.md5:
            raise ValueError(
                f"{archive.url} has changed or is damaged: its MD5 is {md5}, expected "
                f"{archive.md5}. Nothing was kept; try again, or fetch the data by other means."
            )
        shutil.unpack_archive(download, unpacked, "zip")
        os.replace(unpacked / archive.entry, destination)


def checksum(path: Path) -> str:
    """Compute the MD5 of a file, which only guards against damage, in blocks of 1 MiB."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Heidelberg(Dataset[tuple[Events, Tensor]]):
    """Base of SHD and SSC: an HDF5 file of spike times and units, read one sample at a time."""

    sensor_size: ClassVar[tuple[int, int, int]] = (700, 1, 1)
    columns: ClassVar[tuple[str, ...]] = ("spikes/times", "spikes/units", "labels")
    classes: ClassVar[int]
    archives: ClassVar[dict[str, Archive]]

    path: Path
    labels: Tensor

    def __init__(self, folder: str | Path, part: str = "train", *, download: bool = False) -> None:
        name = type(self).__name__
        require("h5py", extra="data", by=f"tt.data.{name}")
        if part not in self.archives:
            allowed = " or ".join(map(repr, self.archives))
            raise ValueError(f"{name} has the parts {allowed}, got {part!r}.")
        self.path = find(self.archives[part], Path(folder), name=name, download=download)
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
        labels = _whole(self.path, "a label", columns[2][:], 0, self.classes)
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

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} recordings, {self.classes} classes, "
            f"sensor_size={self.sensor_size})"
        )

    def __getitem__(self, index: int) -> tuple[Events, Tensor]:
        file = self._file()
        index = range(len(self))[index]  # raises IndexError, which ends a for loop
        times, units = file["spikes/times"][index], file["spikes/units"][index]
        if len(times) != len(units):
            raise ValueError(
                f"{self.path} is damaged: sample {index} has {len(times)} times and {len(units)} "
                "units. Remove it or replace it."
            )
        # int64: recordings of an hour overflow 32 bits of microseconds
        events = np.ones(len(times), [("t", np.int64), ("x", np.int16), ("p", np.int16)])
        # times are float16 or float32 seconds in the file; other data sets have microseconds
        microseconds = np.round(times.astype(np.float64) * 1e6)
        events["t"] = _whole(self.path, "t in microseconds", microseconds, -(2**62), 2**62)
        events["x"] = _whole(self.path, "x", units, 0, self.sensor_size[0])
        return events, self.labels[index]


def _whole(path: Path, name: str, values: Events, low: int, stop: int) -> Events:
    """Return values of a file in int64; raise ``ValueError`` unless all are in [low, stop)."""
    # NaN fails every comparison, and so these
    right = (values >= low) & (values < stop) & (values == np.floor(values))
    if not right.all():
        raise ValueError(
            f"{path} is damaged: it has {name} = {values[~right][0]}, expected integers from {low} "
            f"to {stop - 1}. Remove it or replace it."
        )
    return values.astype(np.int64)


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
        self.speakers = torch.from_numpy(_whole(self.path, "a speaker", speakers, 0, 1 << 16))


@describe_event_set
class SSC(Heidelberg):
    """Spiking Speech Commands: 35 spoken words, as spikes of 700 cochlear channels.

    A sample is a pair of events and a label from 0 to 34, as in :class:`SHD`. There are 75,466 for
    training, 9,981 for validation and 20,382 for testing.

    Args:
        folder: folder with ``ssc_train.h5``, ``ssc_valid.h5`` and ``ssc_test.h5``.
        part: ``"train"``, ``"valid"`` or ``"test"``.

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
