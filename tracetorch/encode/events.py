"""Count the events of a camera or a cochlea in frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracetorch.core.checks import check_count, check_finite, check_positive

Column = npt.NDArray[Any]

_DRIFT = 1e-12  # relative: a time that is the sum of ten thousand windows is that far off
_MOST_FRAMES = 1 << 31


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
    integers, without rounding. A time in floating point that rounding has moved off the start of a
    frame, or off ``stop``, is there: ``3 * 0.1`` and 0.3 are in the fourth of the frames of 0.1.

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
            or a time not a number, of ``timedelta64`` say.
        ValueError: a column is missing or of another length, ``size`` is no pair, an event lies
            off the sensor, a polarity is unknown, a time is not finite, not exactly one of ``bins``
            and ``window`` is given, ``window`` makes 2^31 frames or more, or there are no events
            and ``start`` or ``stop`` is left out.

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
    for name, time in (("window", window), ("start", start), ("stop", stop)):
        if isinstance(time, np.generic):
            _refuse_durations(name, time.dtype)
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
        _refuse_durations(f"{name} of an event", column.dtype)
        integer = name != "t" or column.dtype.kind in "iub"
        wrong = column != column
        if column.dtype.kind == "f":
            whole = column == np.floor(column) if integer else np.isfinite(column)
            wrong = ~(whole & (np.abs(column.astype(np.float64)) < 2.0**63))
        elif column.dtype.kind == "u":
            wrong = column > np.iinfo(np.int64).max
        if wrong.any():
            kind = "an integer" if integer else "finite"
            raise ValueError(
                f"{name} of an event must be {kind}, got {column[wrong][0]} ({column.dtype})."
            )
        # unsigned times would wrap round below the start
        columns[name] = column.astype(np.int64) if integer else column
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


def _refuse_durations(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind in "mM":
        raise TypeError(
            f"{name} must be a number, got {dtype}. Divide durations by their unit, as in "
            't / np.timedelta64(1, "us"), and give window, start and stop in it.'
        )


def _assign_frames(
    t: Column, bins: int | None, window: float | None, start: float | None, stop: float | None
) -> tuple[Column, int]:
    """Return the frame of each event, -1 or T where it is outside of time, and the number T."""
    if len(t) == 0 and (start is None or stop is None):
        raise ValueError("there are no events: give start= and stop=.")
    given = t.min() if start is None else start, t.max() if stop is None else stop, window or 1
    begin, end, width = (int(each) if float(each).is_integer() else float(each) for each in given)
    span = end - begin
    if span < 0 or (span == 0 and stop is not None):
        raise ValueError(f"time must stop after it starts, got start={begin} and stop={end}.")
    T = 0 if bins is None else check_count("bins", bins)
    if window is not None and not span / width < _MOST_FRAMES:
        raise ValueError(
            f"window={window} makes {span / width:.3g} frames of the time from {begin} to {end}. "
            "Give it in the unit of t, 1e3 for a millisecond of microseconds."
        )
    if t.dtype.kind == "i" and all(isinstance(each, int) for each in (begin, end, width)):
        begin, end, span, width = int(begin), int(end), int(span), int(width)
        T = T or (span // width + 1 if stop is None else -(-span // width))
        # as Python's integers where 64 bits would overflow
        factor, divisor = (1, width) if window is not None else (T, span or 1)
        ends = begin, end, t.min(initial=0), t.max(initial=0)
        largest = max(abs(int(each)) for each in ends)
        elapsed = (t.astype(object) if 2 * largest * factor + divisor >> 62 else t) - begin
        # multiplied before divided, so that nothing is rounded
        frame = elapsed * factor // divisor
    else:
        frame, length = _rounded_frames(t, begin, span, width if window is not None else span / T)
        T = T or (int(frame.max()) + 1 if stop is None else length)
    # without a stop the last event is inside
    frame = np.minimum(frame, T - 1) if stop is None else np.where(t < end, frame, T)
    return np.clip(frame, -1, T).astype(np.int64), T


def _rounded_frames(t: Column, begin: float, span: float, width: float) -> tuple[Column, int]:
    """Return the frame of each floating-point time, and the number of frames of the span.

    Neither 0.3 // 0.1 nor floor(0.3 / 0.1) is 3: a quotient is the integer from which rounding
    alone keeps it.
    """
    whole, width = math.floor(begin), width or 1.0
    # half precision holds what was measured, to its nearest; others what was computed, by sums even
    eps = 64 * float(np.finfo(np.float64).eps)
    if t.dtype.kind == "f":
        few = {2: 0.5, 4: 8.0}.get(t.itemsize)
        eps = eps if few is None else few * float(np.finfo(t.dtype).eps)
        t = t.astype(np.float64)
    elapsed = (t - whole).astype(np.float64) - (begin - whole)  # exact of integers

    def rounded(time: Any, size: Any, rounding: Callable[[Any], Any]) -> Any:
        position = time / width
        slack = (eps * size + _DRIFT * np.abs(time)) / width
        nearest = np.round(position)
        return np.where(np.abs(position - nearest) <= slack, nearest, rounding(position))

    frame = rounded(elapsed, np.abs(elapsed) + abs(begin), np.floor)
    return frame, int(rounded(span, span + abs(begin), np.ceil))
