"""Turn event recordings into sequences of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.encode import events_to_frames


class EventDataset(Protocol):
    """Protocol of recordings: events ``x t p``, with ``y`` or without, and their label."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class Frames(Dataset[tuple[Tensor, Tensor]]):
    """Event recordings as sequences of frames, for :func:`~tracetorch.data.collate`.

    ``tt.encode.events_to_frames`` counts the events of each recording. The data sets of traceTorch
    and Tonic have a ``sensor_size``; other collections need it as an argument.

    Args:
        recordings: event data sets of ``tt.data`` or Tonic, or any list of ``(events, label)``.
        sensor_size: width, height and polarities, as in Tonic; ``recordings.sensor_size`` if left
            out.
        bins: frames per recording, or
        window: duration of a frame, in the unit of ``t`` (microseconds in all these data sets).
        start: time at which the first frame begins; that of the first event if left out.
        stop: end of time; that of the last event if left out. With ``window`` and without
            ``stop``, recordings have as many frames as they last.
        flat: flatten frames to vectors.
        transform: called with the events of a recording before they are counted, an augmentation
            of ``tonic.transforms`` say.

    Shape:
        ``[T, polarities, height, width]``; if ``flat``, ``[T, polarities * height * width]``.

    Raises:
        TypeError: ``recordings`` has no ``sensor_size``, and the argument is left out; or a label
            is no number.
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
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if sensor_size is None:
            sensor_size = getattr(recordings, "sensor_size", None)
        if sensor_size is None or not hasattr(sensor_size, "__len__") or len(sensor_size) != 3:
            raise TypeError(
                f"sensor_size must be (width, height, polarities), got {sensor_size!r} for a "
                f"{type(recordings).__name__}. Pass sensor_size=(34, 34, 2), say."
            )
        self.recordings = recordings
        self.sensor_size = tuple(sensor_size)
        self.bins, self.window, self.start, self.stop = bins, window, start, stop
        self.flat, self.transform = flat, transform

    def __len__(self) -> int:
        return len(self.recordings)

    def __repr__(self) -> str:
        inside = self.recordings
        # a list would print all its events
        text = repr(inside) if isinstance(inside, Dataset) else f"{len(inside)} recordings"
        given = {name: getattr(self, name) for name in ("bins", "window", "start", "stop")}
        settings = [f"{name}={value}" for name, value in given.items() if value is not None]
        parts = [text, str(self.sensor_size), *settings, *["flat=True"] * self.flat]
        return f"Frames({', '.join(parts)})"

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        events, label = self.recordings[index]
        if self.transform is not None:
            events = self.transform(events)
        if isinstance(label, str):
            raise TypeError(
                f"a label must be a number, got {label!r}. Number the classes: Tonic's data sets "
                "take target_transform=names.index, with the list of the names."
            )
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
