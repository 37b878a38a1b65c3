"""Count the events of a camera or a cochlea in frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracetorch.core.checks import check_count, check_finite, check_positive

Column = npt.NDArray[Any]


def events_to_frames(
    events: npt.NDArray[Any] | Mapping[str, Any],
    size: tuple[int, int],
    *,
    bins: int | None = None,
    window: float | None = None,
    polarities: int = 2,
    start: float | None = None,
    stop: float | None = None,
) -> Tensor:
    """Count events by frame, polarity and pixel.

    ::

        bins:    frame = floor((t - start) / (stop - start) * bins)
        window:  frame = floor((t - start) / window)

    Every event from ``start`` to ``stop`` is in exactly one frame. Integer times are binned in
    integers, without rounding.

    Args:
        events: a structured array with the fields ``x y t p``, as Tonic gives them, or a mapping
            from these names to columns, arrays or tensors, in any order of time. Without ``y``, as
            from a cochlea, all events are in row 0.
        size: height and width of the sensor; ``(1, 700)`` for the Heidelberg digits.
        bins: the number of frames, or
        window: the time that a frame lasts, in the unit of ``t``.
        polarities: 2: off events (0, ``False`` or -1) in channel 0, on events (1) in channel 1;
            1: polarity is ignored.
        start: time at which the first frame begins; that of the first event if left out.
        stop: end of time, itself excluded; right after the last event if left out. Give both
            for recordings of equal length.

    Shape:
        Columns ``[n]`` to ``[T, polarities, H, W]``, counts in float32.

    Raises:
        TypeError: ``events`` is neither a structured array nor a mapping, a count not an integer,
            or a time not a number.
        ValueError: a column is missing or of another length, ``size`` is no pair, an event lies
            off the sensor, a polarity is unknown, a time is not finite, not exactly one of ``bins``
            and ``window`` is given, or there are no events and ``start`` or ``stop`` is left out.

    Example:
        >>> events = {"x": [0, 1, 1], "y": [0, 0, 0], "t": [10, 19, 30], "p": [1, 0, 1]}
        >>> events_to_frames(events, (1, 2), bins=2)[:, :, 0]
        tensor([[[0., 1.],
                 [1., 0.]],
        <BLANKLINE>
                [[0., 0.],
                 [0., 1.]]])
        >>> events_to_frames(events, (1, 2), window=10, start=0, stop=50).sum((1, 2, 3))
        tensor([0., 2., 0., 1., 0.])
    """
    if (bins is None) == (window is None):
        raise ValueError(f"give either bins or window, got bins={bins} and window={window}.")
    if window is not None:
        check_positive("window", window)
    if polarities not in (1, 2):
        raise ValueError(f"polarities must be 1 or 2, got {polarities!r}.")
    for name, time in (("start", start), ("stop", stop)):
        if time is not None:
            check_finite(name, time)
    height, width = (check_count(f"size[{i}]", side) for i, side in enumerate(size))
    x, y, t, channel = _read_columns(events, polarities)
    for name, column, side in (("x", x, width), ("y", y, height)):
        outside = column[(column < 0) | (column >= side)]
        if len(outside):
            raise ValueError(
                f"an event has {name}={outside[0]}, off the sensor of size {(height, width)} "
                "(height, width)."
            )
    frame, T = _assign_frames(t, bins, window, start, stop)
    inside = (frame >= 0) & (frame < T)
    # flat indices, so that one bincount counts over all four dimensions
    flat_index = ((frame * polarities + channel) * height + y) * width + x
    shape = (T, polarities, height, width)
    counts = np.bincount(flat_index[inside], minlength=int(np.prod(shape)))
    return torch.from_numpy(counts.astype(np.float32)).reshape(shape)


def _read_columns(
    events: npt.NDArray[Any] | Mapping[str, Any], polarities: int
) -> tuple[Column, Column, Column, Column]:
    """Return ``x``, ``y``, ``t`` and channel, ``[n]``, as integers (``t`` may be floating)."""
    names = events if isinstance(events, Mapping) else getattr(events, "dtype", np.dtype(int)).names
    if names is None:
        raise TypeError(
            "events must be a structured array with the fields x, y, t, p, or a mapping of "
            f"columns of these names, got {type(events).__name__}."
        )
    needed = ["x", "t", *["y"] * ("y" in names), *["p"] * (polarities == 2)]
    columns = {name: np.asarray(events[name]) for name in needed}
    if len({column.shape for column in columns.values()}) > 1 or columns["t"].ndim != 1:
        lengths = {name: list(column.shape) for name, column in columns.items()}
        raise ValueError(f"columns of events must have one length, got the shapes {lengths}.")
    for name, column in columns.items():
        # unsigned times would wrap round below the start
        if name != "t" or column.dtype.kind in "iub":
            columns[name] = column.astype(np.int64)
        if not (np.isfinite(column).all() and np.array_equal(columns[name], column)):
            kind = "finite" if name == "t" else "an integer"
            raise ValueError(f"{name} of an event must be {kind}, got {column.dtype} values.")
    zeros = np.zeros(len(columns["x"]), np.int64)
    p = columns.get("p", zeros)
    # off (0 or -1) in channel 0, on (1) in channel 1
    values = set(np.unique(p).tolist())
    if not (values <= {0, 1} or values <= {-1, 1}):
        raise ValueError(
            f"polarities must be 0 and 1, or -1 and 1, got {sorted(values)}. With polarities=1 "
            "they are ignored."
        )
    return columns["x"], columns.get("y", zeros), columns["t"], (p > 0).astype(np.int64)


def _assign_frames(
    t: Column, bins: int | None, window: float | None, start: float | None, stop: float | None
) -> tuple[Column, int]:
    """Return the frame of each event, -1 or T where it is outside of time, and the number T."""
    if len(t) == 0 and (start is None or stop is None):
        raise ValueError("there are no events: give start= and stop=.")
    begin = t.min() if start is None else start
    end = t.max() if stop is None else stop
    if end < begin or (end == begin and stop is not None):
        raise ValueError(f"time must stop after it starts, got start={begin} and stop={end}.")
    elapsed = t - begin
    if window is None:
        T = check_count("bins", bins)
        # multiplied before divided, so that integer times are exact; where all events are
        # simultaneous they are in the first frame
        frame = elapsed * T // (end - begin if end > begin else 1)
    else:
        # without a stop the last event is inside, and the last window may be cut short
        T = (
            int((end - begin) // window) + 1
            if stop is None
            else int(np.ceil((end - begin) / window))
        )
        frame = elapsed // window
    # events that rounding puts behind the last frame, and the last event where stop is left out
    frame = np.minimum(frame, T - 1)
    if stop is not None:
        frame = np.where(t < end, frame, T)
    return np.maximum(frame, -1).astype(np.int64), T
