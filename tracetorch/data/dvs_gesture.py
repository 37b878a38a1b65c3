"""DVS Gesture: eleven hand and arm gestures recorded by an event camera."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from tracetorch.core.files import check_regular_file
from tracetorch.data.archives import Archive
from tracetorch.data.event_files import EventFiles, describe_event_set
from tracetorch.data.events import Events, structured_events


@describe_event_set
class DVSGesture(EventFiles):
    """DVS Gesture: eleven gestures of 29 people in three lights, by a 128 by 128 event camera.

    The files are those that Tonic distributes, which hold a single gesture each. A sample is a pair
    of events (fields ``t`` in microseconds, ``x``, ``y``, ``p`` 0 or 1) and a label from 0 to 10;
    there are 1,077 for training and 264 for testing. :class:`~tracetorch.data.Frames` turns the
    events into sequences.

    Args:
        folder: folder with ``ibmGestureTrain`` and ``ibmGestureTest``, each with a folder of
            ``.npy`` files per person and light.

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

    pattern: ClassVar[str] = "user*/[0-9]*.npy"

    @staticmethod
    def _label_of(path: Path) -> int:
        """Return the number of the gesture, which names the file."""
        return int(path.stem)

    @classmethod
    def _read(cls, path: Path) -> Events:
        """Read an array ``[n, 4]`` of x, y, polarity and time in milliseconds."""
        check_regular_file(path, "a recording")
        try:
            # no pickles: loading one from a download would run code
            x, y, p, milliseconds = np.load(path, allow_pickle=False).T
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is damaged: {error}. Expected [n, 4], of x, y, polarity and milliseconds. "
                "Remove it or replace it."
            ) from error
        # microseconds are the unit of the other data sets
        return structured_events(path, cls.sensor_size, milliseconds * 1000, x=x, y=y, p=p)
