from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import tracetorch as tt
from tests.data.files import write_heidelberg, write_nmnist
from tracetorch.data.fetch import Archive, find


def packed(folder: Path, kind: str, holds: str) -> Archive:
    """An archive of ``folder`` that can be had, from disk."""
    made = Path(
        shutil.make_archive(
            str(folder.parent / "made"), {"zip": "zip", "tar": "gztar"}[kind], folder
        )
    )
    return Archive(made.as_uri(), hashlib.md5(made.read_bytes()).hexdigest(), holds, kind)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_nmnist(tmp_path / "source", {"Train/3/1.bin": [(0, 0, 0, 0)]})
    write_heidelberg(tmp_path / "source/shd_train.h5", [[(0.5, 1)]])
    return tmp_path / "source"


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("holds", ["Train", "shd_train.h5"])
def test_what_is_asked_for_is_fetched_and_unpacked(
    tmp_path: Path, source: Path, kind: str, holds: str
) -> None:
    archive = packed(source, kind, holds)
    path = find(archive, tmp_path / "new", name="It", download=True)
    assert path == tmp_path / "new" / holds
    assert path.exists()
    assert [p.name for p in (tmp_path / "new").iterdir()] == [holds]


def test_what_is_there_is_not_fetched_again(tmp_path: Path, source: Path) -> None:
    archive = Archive("file:///nowhere", "", "Train")
    assert find(archive, source, name="It", download=True) == source / "Train"


def test_nothing_is_fetched_unless_asked_for(tmp_path: Path, source: Path) -> None:
    archive = packed(source, "zip", "Train")
    with pytest.raises(FileNotFoundError, match=r"It is not in .*: there is no Train\. Unpack fil"):
        find(archive, tmp_path / "new", name="It", download=False)
    assert not (tmp_path / "new").exists()


def test_a_set_downloads_itself(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tt.data.SHD.archives, "train", packed(source, "zip", "shd_train.h5"))
    assert len(tt.data.SHD(tmp_path / "new", download=True)) == 1
    monkeypatch.setitem(tt.data.NMNIST.archives, "train", packed(source, "zip", "Train"))
    assert len(tt.data.NMNIST(tmp_path / "new", download=True)) == 1


@pytest.mark.parametrize("trouble", ["damaged", "other", "unreachable", "no archive"])
def test_a_failed_download_leaves_nothing(tmp_path: Path, source: Path, trouble: str) -> None:
    good = packed(source, "zip", "Train")
    made = tmp_path / "made.zip"
    error: type[Exception] = ValueError
    if trouble == "damaged":
        made.write_bytes(made.read_bytes()[:-1])
        archive, message = good, rf"its MD5 is \w+, expected {good.md5}"
    elif trouble == "other":
        archive, message = Archive(good.url, good.md5, "Test"), "holds no Test; nothing was kept"
    elif trouble == "unreachable":
        archive = Archive((tmp_path / "gone.zip").as_uri(), "", "Train")
        error, message = ConnectionError, r"gone\.zip cannot be downloaded: .*Fetch it by other"
    else:
        made.write_bytes(b"<html>")
        md5 = hashlib.md5(b"<html>").hexdigest()
        archive, message = Archive(good.url, md5, "Train"), r"is no zip archive: .*nothing was kept"
    with pytest.raises(error, match=message):
        find(archive, tmp_path / "new", name="It", download=True)
    assert not list((tmp_path / "new").iterdir())
