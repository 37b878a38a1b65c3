"""N-MNIST: handwritten digits recorded by a moving event camera."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from tracetorch.core.files import check_regular_file
from tracetorch.data.archives import Archive
from tracetorch.data.event_files import EventFiles, describe_event_set
from tracetorch.data.events import Events, structured_events

FILES = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files"
OVERFLOW_ROW = 240  # beyond the sensor: no event, but a carry into the timestamps
OVERFLOW_TIME = 1 << 13  # microseconds


@describe_event_set
class NMNIST(EventFiles):
    """N-MNIST: digits seen by an event camera in three quick movements, 0.3 seconds in all.

    A sample is a pair of events (fields ``t`` in microseconds, ``x`` and ``y`` from 0 to 33,
    ``p`` 0 or 1) and the digit; there are 60,000 for training and 10,000 for testing.
    :class:`~tracetorch.data.Frames` turns the events into sequences.

    Args:
        folder: folder with ``Train`` and ``Test``, each with a folder of ``.bin`` files per digit.

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

    pattern: ClassVar[str] = "[0-9]/*.bin"

    @staticmethod
    def _label_of(path: Path) -> int:
        """Return the digit that names the folder."""
        return int(path.parent.name)

    @classmethod
    def _read(cls, path: Path) -> Events:
        """Read the events of one ``.bin`` file, five bytes each.

        The bytes are x; y; the polarity as the highest bit, then the time in microseconds as 23
        bits, big-endian. Where y is 240 there is no event: 2^13 microseconds are added to all times
        from there on.
        """
        content = np.fromfile(check_regular_file(path, "a recording"), np.uint8)
        if len(content) % 5:
            raise ValueError(
                f"{path} is damaged: it has {len(content)} bytes, not a multiple of 5. "
                "Remove it or replace it."
            )
        x, y, high, middle, low = content.reshape(-1, 5).astype(np.int64).T
        is_overflow = y == OVERFLOW_ROW
        # the number of overflows so far extends the 23 bits of the time
        t = ((high & 127) << 16 | middle << 8 | low) + OVERFLOW_TIME * np.cumsum(is_overflow)
        columns = {"x": x, "y": y, "p": high >> 7}
        events = {name: column[~is_overflow] for name, column in columns.items()}
        return structured_events(path, cls.sensor_size, t[~is_overflow], **events)
