from __future__ import annotations

import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.refusals import check, refusals
from tracetorch import encode

TONIC = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])
H, W = 3, 5


def recording(n: int, seed: int = 0, dtype: np.dtype[Any] = TONIC, last: int = 1000) -> Any:
    rng = np.random.default_rng(seed)
    events = np.zeros(n, dtype)
    events["x"], events["y"] = rng.integers(0, W, n), rng.integers(0, H, n)
    events["t"], events["p"] = np.sort(rng.integers(0, last, n)), rng.integers(0, 2, n)
    return events


def count_one_by_one(events: Any, frame_of: Any, T: int) -> torch.Tensor:
    """Count events one at a time in Python integers, as the reference."""
    frames = torch.zeros(T, 2, H, W)
    for event in events:
        frame = frame_of(int(event["t"]))
        if 0 <= frame < T:
            frames[frame, int(event["p"]), int(event["y"]), int(event["x"])] += 1
    return frames


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 99), st.integers(1, 12), st.integers(1, 1200))
def test_every_event_is_counted_once_in_its_cell(n: int, seed: int, bins: int, window: int) -> None:
    events = recording(n, seed)
    first, last = int(events["t"][0]), int(events["t"][-1])
    by_bins = encode.events_to_frames(events, (H, W), bins=bins)
    span = max(last - first, 1)
    expected = count_one_by_one(events, lambda t: min((t - first) * bins // span, bins - 1), bins)
    assert torch.equal(by_bins, expected)
    by_window = encode.events_to_frames(events, (H, W), window=window)
    T = (last - first) // window + 1
    assert torch.equal(by_window, count_one_by_one(events, lambda t: (t - first) // window, T))
    assert by_bins.sum() == by_window.sum() == n


@pytest.mark.parametrize("division", [{"bins": 7}, {"window": 100}])
def test_start_and_stop_leave_out_events_outside(division: Any) -> None:
    events = recording(300)
    frames = encode.events_to_frames(events, (H, W), start=100, stop=800, **division)
    expected = count_one_by_one(events, lambda t: (t - 100) // 100 if t < 800 else 7, 7)
    assert torch.equal(frames, expected)
    assert frames.sum() == ((events["t"] >= 100) & (events["t"] < 800)).sum() < 300
    early = events[events["t"] < 400]
    assert encode.events_to_frames(early, (H, W), start=100, stop=800, **division).shape[0] == 7


@pytest.mark.parametrize("division", [{"bins": 6}, {"window": 0.15}])
def test_order_column_type_and_time_unit_do_not_matter(division: Any) -> None:
    events = recording(200, last=1024)
    scaled = {key: value * 1024 if key == "window" else value for key, value in division.items()}
    expected = encode.events_to_frames(events, (H, W), start=0, stop=1024, **scaled)
    order = np.random.default_rng(1).permutation(200)
    columns: Any = {
        "x": torch.from_numpy(events["x"][order].astype("int64")),
        "y": events["y"][order].astype("uint8"),
        "t": (events["t"][order] / 1024).tolist(),
        "p": np.where(events["p"][order], 1, -1),
    }
    got = encode.events_to_frames(columns, (H, W), start=0.0, stop=1.0, **division)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_unsigned_times_one_polarity_and_no_rows() -> None:
    wide = recording(50)
    unsigned = wide.astype([("x", "u2"), ("y", "u2"), ("t", "u4"), ("p", "u1")])
    for events in (wide, unsigned):
        frames = encode.events_to_frames(events, (H, W), bins=4, start=500, stop=900)
        assert frames.sum() == ((wide["t"] >= 500) & (wide["t"] < 900)).sum()
    events = np.zeros(4, [("t", "<i8"), ("x", "<i8"), ("p", "<i8")])
    events["t"], events["x"], events["p"] = [0, 10, 20, 30], [699, 0, 0, 0], 1
    frames = encode.events_to_frames(events, (1, 700), bins=2, polarities=1)
    assert frames.shape == (2, 1, 1, 700)
    assert frames[:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert frames[:, 0, 0, 699].tolist() == [1.0, 0.0]


def counts_of(t: Any, **division: Any) -> list[int]:
    """Count events by frame, of times alone."""
    zeros = np.zeros(len(t), int)
    columns = {"x": zeros, "t": np.asarray(t), "p": zeros}
    return encode.events_to_frames(columns, (1, 1), **division).sum((1, 2, 3)).int().tolist()


@pytest.mark.parametrize("window", [0.1, 0.2, 0.05, 0.001, 1 / 3, 0.7])
@pytest.mark.parametrize("begin", [0.0, 0.3, 17.1, -2.3])
def test_each_time_of_a_grid_in_seconds_has_a_frame_of_its_own(window: float, begin: float) -> None:
    n, ones = np.arange(200), [1] * 200
    grids = {
        "products": begin + n * window,
        "sums": np.cumsum([begin, *[window] * 199]),
        "quotients": begin + n / (1 / window),
        "float32": (begin + n * window).astype(np.float32),
        "products in float32": np.float32(begin) + n.astype(np.float32) * np.float32(window),
    }
    stop = begin + 200 * window
    for name, t in grids.items():
        assert counts_of(t, window=window, start=begin, stop=stop) == ones, name
        assert counts_of(t, bins=200, start=begin, stop=stop) == ones, name
        assert counts_of(t, window=window) == ones, name
        # an event within rounding of the stop is at it, and so outside
        few = counts_of(t, window=window, start=float(t[0]), stop=float(t[150]))
        assert few == [1] * 150, name


def test_rounding_makes_and_moves_no_frame() -> None:
    t = (np.arange(200) * 0.01).astype(np.float16)  # spaced by up to 0.001
    assert counts_of(t, window=0.01, start=0, stop=2.0) == [1] * 200
    for window, frames in ((1 / 3, 300), (0.1, 1000), (0.7 / 3, 428 + 1)):  # a stop on the grid
        assert len(counts_of([0.0], window=window, start=0, stop=100)) == frames


@settings(deadline=None)
@given(st.lists(st.floats(0, 100, exclude_max=True), min_size=1, max_size=50), st.floats(0.01, 7))
@example([0.0], 1 / 3)  # a third in floating point is less: 301 frames by exact division
def test_times_off_a_grid_are_counted_by_exact_division(t: list[float], window: float) -> None:
    exact = [Fraction(each) / Fraction(window) for each in (*t, 100)]
    if any(abs(each - round(each)) < 1e-9 for each in exact[:-1] if each):
        return
    counts = counts_of(t, window=window, start=0, stop=100)
    if abs(exact[-1] - round(exact[-1])) < 1e-9:  # the stop is on the grid, but for rounding
        assert len(counts) - round(exact[-1]) in (0, 1)
    else:
        assert len(counts) == math.ceil(exact[-1])
    assert counts == [sum(int(each) == n for each in exact[:-1]) for n in range(len(counts))]


@pytest.mark.parametrize("offset", [0, 10**16, -(10**18)])
def test_integer_times_of_any_size_are_binned_without_rounding(offset: int) -> None:
    """Nanoseconds since 1970 times a number of bins overflow 64 bits."""
    t = np.array([0, 1, 299_999_999_999, 300_000_000_000, 10**15 - 1], np.int64) + offset
    span = {"start": offset, "stop": offset + 10**15}
    frames = [(int(each) - offset) * 10_000 // 10**15 for each in t]
    assert frames == [0, 0, 2, 3, 9999]
    for division in ({"bins": 10_000}, {"window": 10**11}):
        counts = counts_of(t, **division, **span)
        assert [n for n, count in enumerate(counts) for _ in range(count)] == frames
    far = np.array([-(2**63), 2**63 - 1])
    assert counts_of(far, bins=2) == [1, 1]
    assert counts_of(far, window=2**63) == [1, 1]


def test_simultaneous_events_partial_windows_and_empty_recordings() -> None:
    events = recording(3)
    events["t"] = 42
    assert encode.events_to_frames(events, (H, W), bins=3).sum((1, 2, 3)).tolist() == [3, 0, 0]
    assert encode.events_to_frames(events, (H, W), window=9).sum((1, 2, 3)).tolist() == [3]
    events["t"] = [40, 41, 42]  # before the start is out, though the start is the end
    assert encode.events_to_frames(events, (H, W), bins=2, start=42).sum() == 1
    partial = encode.events_to_frames(recording(9), (H, W), window=300, start=0, stop=1000)
    assert partial.shape[0] == 4
    empty = encode.events_to_frames(events[:0], (H, W), window=10, start=0, stop=30)
    assert torch.equal(empty, torch.zeros(3, 2, H, W))


def test_frames_equal_those_of_tonic() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tonic = pytest.importorskip("tonic.transforms", reason="needs tonic, the peer")
    events = recording(500)
    for window in (50, 130):
        theirs = tonic.ToFrame(sensor_size=(W, H, 2), time_window=window)(events.copy())
        ours = encode.events_to_frames(events, (H, W), window=window)
        # tonic leaves out a last window that is not full
        assert 0 <= len(ours) - len(theirs) <= 1
        assert np.array_equal(ours[: len(theirs)].numpy(), theirs)


GOOD: dict[str, Any] = {"x": [0], "y": [0], "t": [0], "p": [0]}
T_IN_US = np.array([5], "timedelta64[us]")
NONE = np.zeros(0, [(name, int) for name in "xytp"])
inf, nan = math.inf, math.nan


def frames(events: Any = None, size: tuple[int, int] = (3, 5), **options: Any) -> torch.Tensor:
    """Count the events of a good recording, or one with other columns."""
    events = {**GOOD, **events} if isinstance(events, dict) else events
    return encode.events_to_frames(GOOD if events is None else events, size, **options)


@refusals(
    r"""
    frames() -> ValueError: either bins or window, got bins=None and window=None
    frames(window=0) -> ValueError: window must be positive and finite, got 0
    frames(bins=0) -> ValueError: bins must be at least 1, got 0
    frames(bins=1, polarities=3) -> ValueError: polarities must be 1 or 2, got 3
    frames(bins=1, stop=inf) -> ValueError: stop must be finite, got inf
    frames(bins=1, size=(0, 2)) -> ValueError: size\[0\] must be at least 1, got 0
    frames([1], bins=1) -> TypeError: a mapping of columns of these names, got list
    frames({"x": [0, 1]}, bins=1) -> ValueError: one length, got .*'x': \[2\]
    frames({"x": [0.5]}, bins=1) -> ValueError: x of an event must be an integer, got 0.5 \(fl
    frames({"x": [1e30]}, bins=1) -> ValueError: x of an event must be an integer, got 1e\+30
    frames({"t": [nan]}, bins=1) -> ValueError: t of an event must be finite, got nan
    frames({"t": [10**9]}, window=1e-6, start=0) -> ValueError: makes 1e\+15 frames .* unit of t
    frames({"x": [5]}, bins=1) -> ValueError: event has x=5, off the sensor .* \(3, 5\)
    frames({"y": [-1]}, bins=1) -> ValueError: event has y=-1, off the sensor
    frames({"p": [2]}, bins=1) -> ValueError: must be 0 and 1.* got \[2\]. With polarities=1
    frames({**{n: [0, 0] for n in "xyt"}, "p": [-1, 0]}, bins=1) -> ValueError: got \[-1, 0\]
    frames(bins=1, start=5, stop=5) -> ValueError: got start=5 and stop=5
    frames({"t": T_IN_US}, bins=1) -> TypeError: t of an event must.*timedelta64\[us\]\. Divide
    frames({"t": T_IN_US + np.datetime64(0, "s")}, bins=1) -> TypeError: got datetime64\[us\]
    frames(window=np.timedelta64(5, "us")) -> TypeError: window must be a number, got timed
    frames(NONE, bins=1, start=0) -> ValueError: no events: give start= and stop=
    """
)
def test_what_does_not_fit_is_named_in_the_error(call: str, error: str) -> None:
    check(call, error, globals())
