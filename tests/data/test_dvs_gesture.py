from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracetorch as tt
from tests.data.files import write_gesture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "ibmGestureTrain"
    write_gesture(root / "user02_lab" / "10.npy", [(0, 0, 0, 0.0)])
    write_gesture(root / "user02_lab" / "2.npy", [(127, 64, 1, 12.0), (3, 4, 0, 900.0)])
    write_gesture(root / "user01_led" / "7.npy", [])
    (root / "user01_led" / "notes.npy").write_bytes(b"")
    return tmp_path


def test_events_are_read_in_microseconds_and_counted_in_frames(folder: Path) -> None:
    data = tt.data.DVSGesture(folder)
    assert data.labels.tolist() == [7, 2, 10]
    assert len(data[0][0]) == 0
    events, label = data[1]
    columns = zip(*(events[name].tolist() for name in "xytp"), strict=True)
    assert list(columns) == [(127, 64, 12_000, 1), (3, 4, 900_000, 0)]
    assert label == 2
    frames = tt.data.Frames(data, bins=3, start=0, stop=1_000_000)
    x, label = frames[1]
    assert x.shape == (3, 2, 128, 128)
    assert x.nonzero().tolist() == [[0, 1, 64, 127], [2, 0, 4, 3]]
    assert label == 2


def test_missing_files_are_named_with_their_address(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no ibmGestureTest\. Unpack https://figshare"):
        tt.data.DVSGesture(tmp_path, "test")
    (tmp_path / "ibmGestureTest").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no user\*/.*\.npy\. Unpack https"):
        tt.data.DVSGesture(tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"2\.npy is damaged: "),
        (b"<html>", r"2\.npy is damaged: "),
        (None, r"2\.npy is damaged: not enough values .* Expected \[n, 4\], of x, y, polarity"),
    ],
)
def test_damaged_file_is_rejected(folder: Path, content: bytes | None, message: str) -> None:
    path = folder / "ibmGestureTrain/user02_lab/2.npy"
    if content is None:
        np.save(path, np.zeros((5, 3)))
    else:
        path.write_bytes(content)
    data = tt.data.DVSGesture(folder)
    with pytest.raises(ValueError, match=message):
        data[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((np.nan, 0, 0, 0), r"2\.npy is damaged: it has x = nan, expected integers from 0 to 127"),
        ((70_000, 0, 0, 0), r"x = 70000\.0, expected integers from 0 to 127"),
        ((0, 128, 0, 0), r"y = 128\.0, expected integers from 0 to 127"),
        ((0, 0.5, 0, 0), r"y = 0\.5, expected integers"),
        ((0, 0, 2, 0), r"p = 2\.0, expected integers from 0 to 1"),
        ((0, 0, 0, np.nan), r"t in microseconds = nan, expected integers"),
        ((0, 0, 0, np.inf), r"t in microseconds = inf, expected integers"),
    ],
)
def test_impossible_values_are_rejected(folder: Path, row: Any, message: str) -> None:
    write_gesture(folder / "ibmGestureTrain/user02_lab/2.npy", [(0, 0, 0, 0.0), row])
    with pytest.raises(ValueError, match=message):
        tt.data.DVSGesture(folder)[1]


def test_label_that_is_no_gesture_is_rejected(folder: Path) -> None:
    write_gesture(folder / "ibmGestureTrain/user02_lab/11.npy", [])
    with pytest.raises(ValueError, match=r"11\.npy has the label 11, expected 0 to 10\. Remove"):
        tt.data.DVSGesture(folder)
