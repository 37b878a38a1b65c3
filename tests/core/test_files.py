from __future__ import annotations

from pathlib import Path

import pytest

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
