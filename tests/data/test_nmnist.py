from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import tracetorch as tt
from tests.data.files import Event, nmnist_bytes, write_nmnist

EVENTS: dict[str, list[Event]] = {
    "Train/3/00002.bin": [(0, 0, 0, 0), (33, 20, 70_000, 1), (1, 2, 299_999, 0)],
    "Train/7/00001.bin": [(5, 6, 150_000, 1)],
    "Test/0/00009.bin": [(5, 6, 150_000, 1)],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_nmnist(tmp_path, EVENTS)
    return tmp_path


def test_recordings_are_read_by_digit(folder: Path) -> None:
    data = tt.data.NMNIST(folder)
    assert len(data) == 2
    events, label = data[0]
    columns = zip(*(events[name].tolist() for name in "xytp"), strict=True)
    assert list(columns) == EVENTS["Train/3/00002.bin"]
    assert label == 3
    assert data[1][1] == 7
    assert tt.data.NMNIST(folder, "test")[0][1] == 0


event = st.tuples(
    st.integers(0, 33), st.integers(0, 33), st.integers(0, (1 << 23) + 40_000), st.integers(0, 1)
)


@given(st.lists(event, max_size=30))
def test_written_events_are_read_back(tmp_path_factory, events) -> None:
    events.sort(key=lambda e: e[2])
    path = tmp_path_factory.mktemp("nmnist") / "one.bin"
    path.write_bytes(nmnist_bytes(events))
    read = tt.data.NMNIST._read(path)
    assert read["t"].dtype == np.int64
    assert list(zip(*(read[name].tolist() for name in "xytp"), strict=True)) == events


def test_frames_are_collated_to_ragged_batches(folder: Path) -> None:
    frames = tt.data.Frames(tt.data.NMNIST(folder), window=100_000, start=0)
    x, y, mask = next(iter(DataLoader(frames, 2, collate_fn=tt.data.collate)))
    assert x.shape == (3, 2, 2, 34, 34)
    assert y.tolist() == [3, 7]
    assert mask.T.tolist() == [[True, True, True], [True, True, False]]
    where = [[0, 0, 0, 0, 0], [0, 0, 1, 20, 33], [1, 1, 1, 6, 5], [2, 0, 0, 2, 1]]
    assert x.nonzero().tolist() == where
    assert torch.equal(x.sum(), torch.tensor(4.0))


def test_empty_folders_and_damaged_files_are_rejected(folder: Path) -> None:
    path = folder / "Train/3/00002.bin"
    path.write_bytes(path.read_bytes()[:-1])
    data = tt.data.NMNIST(folder)
    with pytest.raises(ValueError, match=r"00002\.bin is damaged: it has 14 bytes, not a multiple"):
        data[0]
    (folder / "empty" / "Train" / "3").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"there is no \[0-9\]/\*\.bin\. Unpack https"):
        tt.data.NMNIST(folder / "empty")


def test_event_off_the_sensor_is_rejected(folder: Path) -> None:
    (folder / "Train/3/00002.bin").write_bytes(nmnist_bytes([(34, 0, 5, 0)]))
    with pytest.raises(ValueError, match=r"x = 34, expected integers from 0 to 33\. Remove it"):
        tt.data.NMNIST(folder)[0]
