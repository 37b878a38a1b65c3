"""Event recordings as sequences of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.encode import events_to_frames

Events = npt.NDArray[Any]


class EventDataset(Protocol):
    """What :class:`Frames` takes: ``len`` and ``(events, label)`` by number; Tonic's sets fit."""

    def __len__(self) -> int:
        """How many recordings."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """One recording: events with the fields ``x y t p`` (``y`` may lack), and its label."""


class Frames(Dataset[tuple[Tensor, Tensor]]):
    """Recordings of events as sequences of frames, for :func:`~tracetorch.data.collate`.

    Each is counted by ``tt.encode.events_to_frames``. The traceTorch and the Tonic sets know the
    size of their sensor; any other collection of ``(events, label)`` is told it.

    Args:
        recordings: the event sets of ``tt.data``, those of Tonic, or any list of
            ``(events, label)``.
        sensor_size: width, height and polarities, as Tonic has it; ``recordings.sensor_size`` if
            left out.
        bins: frames per recording, or
        window: how long a frame lasts, in the unit of ``t`` (microseconds in all these sets).
        start: where the first frame begins; at the first event if left out.
        stop: where time ends; at the last event if left out. With ``window``, recordings without
            one have as many frames as they last.
        flat: frames as vectors.

    Shape:
        ``[T, polarities, height, width]``; if ``flat``, ``[T, polarities * height * width]``.

    Raises:
        TypeError: ``recordings`` has no ``sensor_size``, and none was given.
        ValueError: as ``tt.encode.events_to_frames``.

    Example:
        >>> import numpy as np
        >>> fields = [("x", int), ("t", int), ("p", int)]
        >>> events = np.array([(0, 1000, 1), (3, 2500, 1)], dtype=fields)
        >>> frames = Frames([(events, 7)], (4, 1, 1), window=1000, start=0, stop=3000, flat=True)
        >>> x, label = frames[0]
        >>> x.tolist(), int(label)
        ([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], 7)
    """

    def __init__(
        self,
        recordings: EventDataset,
        sensor_size: Sequence[int] | None = None,
        *,
        bins: int | None = None,
        window: float | None = None,
        start: float | None = None,
        stop: float | None = None,
        flat: bool = False,
    ) -> None:
        if sensor_size is None:
            sensor_size = getattr(recordings, "sensor_size", None)
        if sensor_size is None or len(sensor_size) != 3:
            raise TypeError(
                f"sensor_size must be (width, height, polarities), got {sensor_size!r} for a "
                f"{type(recordings).__name__}. Pass sensor_size=(34, 34, 2), say."
            )
        self.recordings = recordings
        self.sensor_size = tuple(sensor_size)
        self.bins, self.window, self.start, self.stop = bins, window, start, stop
        self.flat = flat

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        events, label = self.recordings[index]
        width, height, polarities = self.sensor_size
        frames = events_to_frames(
            events,
            (height, width),
            bins=self.bins,
            window=self.window,
            polarities=polarities,
            start=self.start,
            stop=self.stop,
        )
        return frames.flatten(1) if self.flat else frames, torch.as_tensor(label)


def structured(t: Events, **columns: Events) -> Events:
    """Columns as one structured array: ``t`` in whole microseconds, the others in their dtype."""
    columns = {"t": np.asarray(t, dtype=np.int64), **columns}
    made = np.empty(len(t), dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        made[name] = column
    return made
