from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tracetorch as tt
from tests.data.files import write_heidelberg
from tracetorch.core import checks
from tracetorch.data import heidelberg
from tracetorch.data.heidelberg import Archive, fetch, find

# a float16 holds these exactly
SAMPLES = [[(0.25, 3), (0.5, 699)], [(0.125, 0)], [], [(0.75, 42)] * 5]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_heidelberg(tmp_path / "shd_train.h5", SAMPLES)
    write_heidelberg(tmp_path / "shd_test.h5", SAMPLES[:1])
    write_heidelberg(tmp_path / "ssc_valid.h5", SAMPLES[:2])
    return tmp_path


def test_events_are_read_in_microseconds_and_pickled_with_an_open_file(folder: Path) -> None:
    data: Any = tt.data.SHD(folder)
    events, label = data[0]
    assert events.dtype.names == ("t", "x", "p")
    assert [events[name].tolist() for name in "txp"] == [[250_000, 500_000], [3, 699], [1, 1]]
    assert (label.item(), label.dtype) == (0, torch.int64)
    assert [len(events) for events, _ in data] == [2, 1, 0, 5]
    assert data[-1][1] == 3
    assert data[-1][0]["t"].tolist() == [750_000] * 5
    copy = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy[3][0], data[3][0])
    assert (len(tt.data.SHD(folder, "test")), len(tt.data.SSC(folder, "valid"))) == (1, 2)
    write_heidelberg(folder / "new" / "shd_train.h5", SAMPLES, speakers=3)
    assert tt.data.SHD(folder / "new").speakers.tolist() == [0, 1, 2, 0]


def test_frames_are_collated_to_batches(folder: Path) -> None:
    frames = tt.data.Frames(tt.data.SHD(folder), window=250_000, start=0, stop=1_000_000, flat=True)
    x, y, mask = next(iter(DataLoader(frames, 4, collate_fn=tt.data.collate)))
    assert x.shape == (4, 4, 700)
    assert y.tolist() == [0, 1, 2, 3]
    assert mask.all()
    assert x.nonzero().tolist() == [[0, 1, 0], [1, 0, 3], [2, 0, 699], [3, 3, 42]]
    assert x[3, 3, 42] == 5


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on forks with threads
@pytest.mark.parametrize(
    ("method", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow)]
)
def test_every_worker_of_a_loader_opens_the_file(folder: Path, method: str, workers: int) -> None:
    frames = tt.data.Frames(tt.data.SHD(folder), bins=4, start=0, stop=1_000_000, flat=True)
    expected = [frames[i][0] for i in range(len(frames))]  # the file is open here
    loader = DataLoader(frames, 1, num_workers=workers, multiprocessing_context=method)
    for (x, _), frame in zip(loader, expected, strict=True):
        assert torch.equal(x[0], frame)


def test_missing_files_unknown_parts_and_a_missing_h5py_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = r"no ssc_test\.h5.*https://zenkelab\.org/datasets/ssc_test\.h5\.zip there, or pass"
    with pytest.raises(FileNotFoundError, match=f"{address} download=True"):
        tt.data.SSC(folder / "new", "test")
    assert not (folder / "new").exists()
    with pytest.raises(ValueError, match=r"SHD has the parts 'train' or 'test', got 'valid'"):
        tt.data.SHD(folder, "valid")
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"tt\.data\.SHD needs h5py, .*\[data\]"):
        tt.data.SHD(folder)


def test_file_of_another_format_is_rejected(folder: Path) -> None:
    path = folder / "shd_train.h5"
    with h5py.File(path, "a") as file:
        del file["extra/speaker"]
    with pytest.raises(ValueError, match=r"is not a file of SHD: .*Expected .*extra/speaker"):
        tt.data.SHD(folder)
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"shd_train\.h5 is not a file of SHD: .*Expected HDF5"):
        tt.data.SHD(folder)


@pytest.mark.parametrize(
    ("column", "dtype", "value", "message"),
    [
        ("labels", "f4", np.nan, r"shd_train\.h5 is damaged: it has a label = nan, expected .* 19"),
        ("labels", "i8", 20, r"a label = 20, expected integers from 0 to 19\. Remove it"),
        ("labels", "i8", None, r"is damaged: spikes/times.* lengths \[4, 4, 3, 4\]"),
        ("extra/speaker", "f4", np.inf, r"a speaker = inf, expected integers from 0"),
        ("spikes/times", "f4", np.nan, r"t in microseconds = nan, expected integers"),
        ("spikes/times", "f8", 1e30, r"t in microseconds = 1e\+36, expected integers"),
        ("spikes/units", "i4", 70_000, r"x = 70000, expected integers from 0 to 699"),
        ("spikes/units", "i4", -1, r"x = -1, expected integers from 0 to 699"),
        ("spikes/units", "f4", 3.5, r"x = 3\.5, expected integers from 0 to 699"),
        ("spikes/units", "i4", None, r"is damaged: sample 0 has 2 times and 1 units\. Remove it"),
    ],
)
def test_impossible_values_are_rejected(
    folder: Path, column: str, dtype: str, value: Any, message: str
) -> None:
    with h5py.File(folder / "shd_train.h5", "a") as file:
        kept: list[Any] = [each.astype(dtype) for each in file[column]]
        if column.startswith("spikes"):
            kept[0] = np.array([3] if value is None else [3, value], dtype)
        else:
            kept[:1] = [] if value is None else [value]
        kind = h5py.vlen_dtype(np.dtype(dtype)) if column.startswith("spikes") else dtype
        del file[column]
        data = file.create_dataset(column, (len(kept),), kind)
        for number, each in enumerate(kept):
            data[number] = each
    with pytest.raises(ValueError, match=message):
        tt.data.SHD(folder)[0]


def pack(folder: Path, entry: str = "shd_train.h5") -> Archive:
    """Pack ``folder`` into an archive with a ``file:`` address."""
    file = Path(shutil.make_archive(str(folder.parent / "archive_file"), "zip", folder))
    return Archive(file.as_uri(), hashlib.md5(file.read_bytes()).hexdigest(), entry)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_heidelberg(tmp_path / "source/shd_train.h5", [[(0.5, 1)]])
    return tmp_path / "source"


def test_existing_contents_are_not_downloaded_again_and_nothing_by_default(tmp_path, source):
    archive = Archive("file:///nowhere", "", "shd_train.h5")
    assert find(archive, source, name="It", download=True) == source / "shd_train.h5"
    archive = pack(source)
    with pytest.raises(FileNotFoundError, match=r"It is not in .*: there is no shd.* Unpack fil"):
        find(archive, tmp_path / "new", name="It", download=False)
    assert not (tmp_path / "new").exists()


def test_datasets_download_their_files(tmp_path, source, monkeypatch) -> None:
    monkeypatch.setitem(tt.data.SHD.archives, "train", pack(source))
    assert len(tt.data.SHD(tmp_path / "new", download=True)) == 1
    write_heidelberg(source / "ssc_test.h5", [[(0.5, 1)], []])
    monkeypatch.setitem(tt.data.SSC.archives, "test", pack(source, "ssc_test.h5"))
    assert len(tt.data.SSC(tmp_path / "new", "test", download=True)) == 2
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"shd_train.h5", "ssc_test.h5"}


def test_processes_of_one_training_unpack_one_file(tmp_path, source) -> None:
    """All find nothing, and download."""
    archive = pack(source)
    meeting = threading.Barrier(3)

    def fetch_with_others(_: int) -> None:
        meeting.wait(120)
        fetch(archive, tmp_path / "new")

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(fetch_with_others, range(3))) == [None] * 3
    fetch(archive, tmp_path / "new")  # once more, late
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["shd_train.h5"]
    assert find(archive, tmp_path / "new", name="It", download=False).exists()


@pytest.mark.skipif(os.name != "posix", reason="links are those of POSIX")
def test_contents_are_unpacked_where_a_link_leads(tmp_path: Path, source: Path) -> None:
    there, link = tmp_path / "large disk/shd_train.h5", tmp_path / "here/shd_train.h5"
    link.parent.mkdir()
    link.symlink_to(there)
    path = find(pack(source), link.parent, name="It", download=True)
    assert (path.is_symlink(), path.exists()) == (True, True)
    assert list(there.parent.iterdir()) == [there]


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("damaged", ValueError, r"its MD5 is \w+, expected \w+"),
        ("gone", ConnectionError, r"gone\.zip cannot be downloaded: .*Fetch it by other"),
        ("silent", ConnectionError, r"it\.zip cannot be downloaded: .*timed out"),
    ],
)
def test_failed_download_leaves_no_files(
    tmp_path, source, trouble, error, message, monkeypatch
) -> None:
    """One is of a server that takes the request, and never answers."""
    monkeypatch.setattr(heidelberg, "TIMEOUT", 0.2)
    archive, packed = pack(source), tmp_path / "archive_file.zip"
    packed.write_bytes(packed.read_bytes()[:-1])
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"http://127.0.0.1:{server.getsockname()[1]}/it.zip"
        if trouble != "damaged":
            address = silent if trouble == "silent" else (tmp_path / "gone.zip").as_uri()
            archive = Archive(address, "", "shd_train.h5")
        with pytest.raises(error, match=message):
            find(archive, tmp_path / "new", name="It", download=True)
    assert not list((tmp_path / "new").iterdir())
