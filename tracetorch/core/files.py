"""Write files atomically: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_replace(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace a file atomically: write to the path this gives, which is moved once it is whole.

    When the block fails, or the process is killed in it, the file at ``path`` is unchanged.

    Args:
        path: the file to make or to replace; its folder exists.

    Raises:
        FileNotFoundError: there is no such folder.
        IsADirectoryError: ``path`` is a folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_replace(f"{folder}/note.txt") as unfinished:
        ...         _ = unfinished.write_text("whole")
        ...     Path(folder, "note.txt").read_text()
        'whole'
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(target.parent)!r}. Make it first.")
    if target.is_dir():
        raise IsADirectoryError(f"{str(target)!r} is a folder. Name a file in it.")
    unfinished = target.with_name(f".{os.getpid()}.{target.name}")  # the suffix tells the format
    try:
        yield unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
