import errno
import json
import os
import re
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tracetorch as tt
from tests.core.writers import ALL, OLD, SLOW, WRITERS, model, source
from tests.data.files import write_heidelberg
from tests.processes import run_python
from tracetorch.core.files import atomic_replace, check_regular_file

# what makes a file, and what reads it, by its name
READERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "model.safetensors": (ALL["model.safetensors"], lambda path: tt.load(path, model())),
    "model.pt": (lambda path: torch.save(model().state_dict(), path),
     lambda path: tt.load(path, model())),
    "exact.nir": (ALL["exact.nir"], lambda path: tt.nir.from_nir(path, dt=1e-4)),
    "shd_train.h5": (lambda path: write_heidelberg(path, [[(0.5, 1)]]),
     lambda path: tt.data.SHD(path.parent)),
}  # fmt: skip
ALL_READERS = READERS | {"model.onnx": (ALL["model.onnx"], tt.export.OnnxStream)}


@cache
def whole_file(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        ALL_READERS[name][0](path)
        return path.read_bytes()


ALL_WRITERS = [*WRITERS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def interrupted_write(path: Path) -> None:
    with atomic_replace(path) as unfinished:
        unfinished.write_text("sec")
        raise KeyboardInterrupt


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    with atomic_replace(path) as unfinished:
        unfinished.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_new_file_has_the_mode_that_open_gives_and_a_replaced_one_keeps_its(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_replace(tmp_path / "private") as unfinished:
            unfinished.chmod(0o600)  # as safetensors does
        (tmp_path / "open").write_text("")
        assert mode(tmp_path / "private") == mode(tmp_path / "open") == 0o666 & ~mask
        for kept in (0o600, 0o664, 0o640, 0o444, 0o200):
            (tmp_path / "private").chmod(kept)
            with atomic_replace(tmp_path / "private") as unfinished:
                assert mode(unfinished) & 0o600 == 0o600  # whoever reads it only may replace it
                unfinished.chmod(0o600)
            assert mode(tmp_path / "private") == kept
    finally:
        assert os.umask(before) == mask


@pytest.mark.parametrize("name", ["a" * 250 + ".txt", "\N{GRINNING FACE}" * 62 + ".txt"])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, name: str) -> None:
    with atomic_replace(tmp_path / name) as unfinished:
        assert unfinished.suffix == ".txt"
        unfinished.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_names_the_path_that_was_given(tmp_path, monkeypatch):
    def refused(path: Path, *others: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError) as error, atomic_replace(tmp_path / "note.txt"):
        pass
    assert error.value.filename == str(tmp_path / "note.txt")
    absent = pytest.raises(FileNotFoundError, match=r"there is no folder .*absent.*Make it first")
    with absent, atomic_replace(tmp_path / "absent" / "note.txt"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="links are those of POSIX")
@pytest.mark.parametrize("writer", ALL_WRITERS)
def test_a_symbolic_link_stays_a_link(tmp_path: Path, writer: str) -> None:
    real, links = tmp_path / "real" / "place", tmp_path / "links" / "place"
    real.mkdir(parents=True)
    links.mkdir(parents=True)
    path, target = links / writer, real / writer
    path.symlink_to(Path("../../real/place") / writer)
    ALL[writer](path)  # makes the file that the link leads to
    assert path.is_symlink()
    assert target.is_file()
    content = target.read_bytes()
    target.write_bytes(OLD)
    ALL[writer](path)
    assert path.is_symlink()
    assert not target.is_symlink()
    assert len(target.read_bytes()) == pytest.approx(len(content), rel=0.01)
    assert [*real.iterdir(), *links.iterdir()] == [target, path]


@pytest.mark.skipif(os.name != "posix", reason="links are those of POSIX")
def test_links_to_links_and_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(tmp_path / "note.txt")
    with atomic_replace(tmp_path / "first") as unfinished:
        unfinished.write_text("note")
    assert (tmp_path / "note.txt").read_text() == "note"
    assert (tmp_path / "first").is_symlink()
    (tmp_path / "note.txt").unlink()
    (tmp_path / "note.txt").symlink_to("first")
    with pytest.raises(OSError, match=r"ymbolic links.*first"), atomic_replace(tmp_path / "first"):
        pass
    assert (tmp_path / "first").is_symlink()


@pytest.mark.parametrize("writer", ALL_WRITERS)
def test_threads_write_to_one_path(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "place" / writer
    path.parent.mkdir()
    source(path)
    ALL[writer](path)
    first = path.read_bytes()
    calls = 2 if writer in SLOW else 8
    with ThreadPoolExecutor(calls) as pool:
        for result in [pool.submit(ALL[writer], path) for _ in range(calls)]:
            result.result()
    assert len(path.read_bytes()) == pytest.approx(len(first), rel=0.1)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="limits are those of POSIX")
@pytest.mark.slow
@pytest.mark.parametrize(("limit", "names"), [(1000, [*ALL]), (0, [*WRITERS])])
def test_a_full_disk_is_an_os_error(tmp_path: Path, limit: int, names: list[str]) -> None:
    """Each writer fails in a process of its own, which must then end as it always does."""
    for name in names:
        path = tmp_path / name.replace(".", "_") / "place" / name
        path.parent.mkdir(parents=True)
        result = json.loads(run_python("-m", "tests.core.writers", str(path), str(limit)))
        assert "place" in result.pop("text"), name
        assert result == {"errno": errno.EFBIG, "old": True, "others": []}, name


def socket_file(path: Path, whole: bytes) -> None:
    where = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has a hundred characters at most
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(where)


NOT_FILES: dict[str, Callable[[Path, bytes], Any]] = {
    "a folder": lambda path, whole: path.mkdir(),
    "a pipe": lambda path, whole: os.mkfifo(path),
    "a socket": socket_file,
    "a device": lambda path, whole: path.symlink_to("/dev/zero"),
}
DAMAGED: dict[str, Callable[[Path, bytes], Any]] = {
    "empty": lambda path, whole: path.write_bytes(b""),
    "cut in half": lambda path, whole: path.write_bytes(whole[: len(whole) // 2 + 1]),
    "without its end": lambda path, whole: path.write_bytes(whole[:-1]),
}


@pytest.fixture
def at_once() -> Iterator[None]:
    """Interrupt a test that waits."""

    def interrupt(number: int, frame: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(os.name != "posix", reason="pipes are those of POSIX")
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", NOT_FILES)
def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    NOT_FILES[kind](path, b"")
    kind = kind if kind == "a folder" else "a pipe, socket or device"
    with pytest.raises(ValueError, match=rf"thing' is {kind}, not a poem\."):
        check_regular_file(path, "a poem")
    kept = path.lstat().st_ino
    with pytest.raises(OSError, match=rf"thing' is {kind}"), atomic_replace(path):
        pass
    assert path.lstat().st_ino == kept


@pytest.mark.skipif(os.name != "posix", reason="pipes are those of POSIX")
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", [*NOT_FILES, *DAMAGED])
@pytest.mark.parametrize("reader", [*READERS, pytest.param("model.onnx", marks=pytest.mark.slow)])
def test_readers_refuse_what_is_no_file_and_what_is_damaged(tmp_path, reader, kind):
    path, read, whole = tmp_path / reader, ALL_READERS[reader][1], whole_file(reader)
    path.write_bytes(whole)
    read(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read(path)
    (NOT_FILES | DAMAGED)[kind](path, whole)
    said = (
        r"is a (folder|pipe, socket or device), not " if kind in NOT_FILES else re.escape(str(path))
    )
    with pytest.raises(ValueError, match=said):
        read(path)
