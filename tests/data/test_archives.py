from __future__ import annotations

import hashlib
import os
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tracetorch as tt
from tests.data.files import write_gesture, write_heidelberg, write_nmnist
from tracetorch.data import archives
from tracetorch.data.archives import Archive, fetch, find


def pack(folder: Path, kind: str, entry: str) -> Archive:
    """Pack ``folder`` into an archive with a ``file:`` address."""
    base, made = folder.parent / "archive_file", {"zip": "zip", "tar": "gztar"}[kind]
    file = Path(shutil.make_archive(str(base), made, folder))
    return Archive(file.as_uri(), hashlib.md5(file.read_bytes()).hexdigest(), entry, kind)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_nmnist(tmp_path / "source", {"Train/3/1.bin": [(0, 0, 0, 0)]})
    write_heidelberg(tmp_path / "source/shd_train.h5", [[(0.5, 1)]])
    return tmp_path / "source"


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("entry", ["Train", "shd_train.h5"])
def test_contents_are_downloaded_and_unpacked(tmp_path, source, kind, entry) -> None:
    archive = pack(source, kind, entry)
    path = find(archive, tmp_path / "new", name="It", download=True)
    assert path == tmp_path / "new" / entry
    assert path.exists()
    assert [p.name for p in (tmp_path / "new").iterdir()] == [entry]


def test_existing_contents_are_not_downloaded_again_and_nothing_by_default(tmp_path, source):
    archive = Archive("file:///nowhere", "", "Train")
    assert find(archive, source, name="It", download=True) == source / "Train"
    archive = pack(source, "zip", "Train")
    with pytest.raises(FileNotFoundError, match=r"It is not in .*: there is no Train\. Unpack fil"):
        find(archive, tmp_path / "new", name="It", download=False)
    assert not (tmp_path / "new").exists()


def test_datasets_download_their_files(tmp_path, source, monkeypatch) -> None:
    monkeypatch.setitem(tt.data.SHD.archives, "train", pack(source, "zip", "shd_train.h5"))
    assert len(tt.data.SHD(tmp_path / "new", download=True)) == 1
    monkeypatch.setitem(tt.data.NMNIST.archives, "train", pack(source, "zip", "Train"))
    assert len(tt.data.NMNIST(tmp_path / "new", download=True)) == 1
    write_heidelberg(source / "ssc_test.h5", [[(0.5, 1)], []])
    write_gesture(source / "ibmGestureTest/user02_lab/2.npy", [(0, 0, 0, 0.0)])
    monkeypatch.setitem(tt.data.SSC.archives, "test", pack(source, "zip", "ssc_test.h5"))
    assert len(tt.data.SSC(tmp_path / "new", "test", download=True)) == 2
    gestures = pack(source, "tar", "ibmGestureTest")
    monkeypatch.setitem(tt.data.DVSGesture.archives, "test", gestures)
    assert len(tt.data.DVSGesture(tmp_path / "new", "test", download=True)) == 1


@pytest.mark.parametrize("entry", ["Train", "shd_train.h5"])
def test_processes_of_one_training_unpack_one_folder(tmp_path, source, entry) -> None:
    """All find nothing, and download; the folder of the first one stays."""
    archive = pack(source, "zip", entry)
    meeting = threading.Barrier(3)

    def fetch_with_others() -> None:
        meeting.wait(120)
        fetch(archive, tmp_path / "new")

    with ThreadPoolExecutor(3) as pool:
        for result in [pool.submit(fetch_with_others) for _ in range(3)]:
            result.result()
    fetch(archive, tmp_path / "new")  # once more, late
    assert [p.name for p in (tmp_path / "new").iterdir()] == [entry]
    assert find(archive, tmp_path / "new", name="It", download=False).exists()


@pytest.mark.skipif(os.name != "posix", reason="links are those of POSIX")
@pytest.mark.parametrize("entry", ["Train", "shd_train.h5"])
def test_contents_are_unpacked_where_a_link_leads(tmp_path: Path, source: Path, entry: str) -> None:
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / entry
    link.symlink_to(tmp_path / "large disk" / entry)
    path = find(pack(source, "zip", entry), tmp_path / "here", name="It", download=True)
    assert path.is_symlink()
    assert path.exists()
    assert [p.name for p in (tmp_path / "large disk").iterdir()] == [entry]


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("damaged", ValueError, r"its MD5 is \w+, expected \w+"),
        ("unreachable", ConnectionError, r"gone\.zip cannot be downloaded: .*Fetch it by other"),
    ],
)
def test_failed_download_leaves_no_files(tmp_path, source, trouble, error, message) -> None:
    archive = pack(source, "zip", "Train")
    if trouble == "damaged":
        archive_file = tmp_path / "archive_file.zip"
        archive_file.write_bytes(archive_file.read_bytes()[:-1])
    else:
        archive = Archive((tmp_path / "gone.zip").as_uri(), "", "Train")
    with pytest.raises(error, match=message):
        find(archive, tmp_path / "new", name="It", download=True)
    assert not list((tmp_path / "new").iterdir())


def test_server_that_falls_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the request, and never answers: without a time-out the call would not return."""
    monkeypatch.setattr(archives, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        archive = Archive(f"http://127.0.0.1:{server.getsockname()[1]}/it.zip", "", "Train")
        with pytest.raises(ConnectionError, match=r"it\.zip cannot be downloaded: .*timed out"):
            find(archive, tmp_path / "new", name="It", download=True)
    assert not list((tmp_path / "new").iterdir())
