"""Write files atomically: whole, or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_replace(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace a file atomically: write to the path this gives, which is moved once it is whole.

    When the block fails, or the process is killed in it, the file at ``path`` is unchanged.
    The file has the mode that ``open(path, "w")`` leaves: of the file it replaces, or of a new one.

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
        mode = _mode_of(target, unfinished)
        yield unfinished
        if stat.S_IMODE(unfinished.stat().st_mode) != mode:
            # not every file system has modes, and a whole file matters more than its mode
            with suppress(OSError):
                unfinished.chmod(mode)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _mode_of(target: Path, unfinished: Path) -> int:
    """Return the mode that ``open(target, "w")`` leaves; safetensors, for one, writes 0600."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    # a new file shows what the umask and the folder leave; reading the umask would change it
    unfinished.touch()
    mode = stat.S_IMODE(unfinished.stat().st_mode)
    unfinished.unlink()
    return mode
