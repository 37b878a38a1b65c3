from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tracetorch as tt
from tracetorch import snn
from tracetorch.core.files import atomic_replace


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


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Return ``os.umask``, and restore the mask at the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_private(path: Path) -> None:
    with atomic_replace(path) as unfinished:
        unfinished.touch(0o600)  # as safetensors does


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_new_file_has_the_mode_that_open_gives(
    tmp_path: Path, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    write_private(tmp_path / "private")
    (tmp_path / "open").write_text("")
    assert mode(tmp_path / "private") == mode(tmp_path / "open") == 0o666 & ~mask
    assert umask(mask) == mask


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
@pytest.mark.parametrize("kept", [0o600, 0o664, 0o640])
def test_a_replaced_file_keeps_its_mode(
    tmp_path: Path, umask: Callable[[int], int], kept: int
) -> None:
    path = tmp_path / "note.txt"
    path.touch()
    path.chmod(kept)
    write_private(path)
    assert mode(path) == kept
    with atomic_replace(path) as unfinished:
        unfinished.write_text("public")
    assert mode(path) == kept


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_a_saved_model_is_as_readable_as_any_file(
    tmp_path: Path, umask: Callable[[int], int]
) -> None:
    tt.save(snn.LIF(2), tmp_path / "model.safetensors")
    assert mode(tmp_path / "model.safetensors") == 0o644


def test_path_must_be_a_file_in_an_existing_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(IsADirectoryError, match=r"is a folder. Name a file in it"),
        atomic_replace(tmp_path),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError, match=r"there is no folder .*absent.*Make it first"),
        atomic_replace(tmp_path / "absent" / "note.txt"),
    ):
        pass
