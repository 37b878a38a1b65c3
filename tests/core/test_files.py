from __future__ import annotations

from pathlib import Path

import pytest

from tracetorch.core.files import atomic_replace


def stopped(path: Path) -> None:
    with atomic_replace(path) as unfinished:
        unfinished.write_text("sec")
        raise KeyboardInterrupt


def test_a_file_is_there_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    with atomic_replace(path) as unfinished:
        unfinished.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        stopped(path)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_file_and_must_be_there(tmp_path: Path) -> None:
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
