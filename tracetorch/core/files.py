"""Write files atomically: whole, or not at all; and check that what is read is a file."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# what the system says of a full disk, a quota, a limit of the process, or a fault of the medium
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_LONGEST_END = 60  # of a name, in characters: with what stands before it no system's limit is met


@contextmanager
def atomic_replace(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, which becomes the file, with its mode, once the block is done."""
    target = link_target(path)
    _check_folder(target.parent)
    kind = _kind_of(target)
    if kind == "a folder":
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder. Name a file in it.")
    if kind:
        raise OSError(f"{os.fspath(path)!r} is {kind}, which cannot be replaced. Name a file.")
    before = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    # read-only files are replaced, too, as their folder allows it
    unfinished = _new_file_beside(target, 0o666 if before is None else before | 0o600)
    try:
        # a new file shows what the umask and the folder leave; reading the umask would change it
        mode = stat.S_IMODE(unfinished.stat().st_mode) if before is None else before
        yield unfinished
        # safetensors, for one, writes 0600
        if stat.S_IMODE(unfinished.stat().st_mode) != mode:
            # not every file system has modes, and a whole file matters more than its mode
            with suppress(OSError):
                unfinished.chmod(mode)
        os.replace(unfinished, target)
    except OSError as error:
        if error.errno in DISK_ERRORS and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def write_texts(name: str | os.PathLike[str], texts: Mapping[str, str]) -> None:
    """Write files of ASCII into a folder, or one in it, which are made as needed: all or none."""
    if not os.fspath(name):  # a path of it would be the working folder
        raise ValueError("the folder has no name. Name one, '.' for the one you are in.")
    folder = Path(name)
    _check_folder(folder if folder.exists() else folder.absolute().parent)
    with ExitStack() as undo:
        for each in dict.fromkeys([folder, *((folder / file).parent for file in texts)]):
            if not each.exists():
                each.mkdir()
                undo.callback(each.rmdir)
        with ExitStack() as moves:  # each moved once all of them are whole
            for file, text in texts.items():
                unfinished = moves.enter_context(atomic_replace(folder / file))
                unfinished.write_text(text, encoding="ascii")
        undo.pop_all()


def link_target(path: str | os.PathLike[str]) -> Path:
    """Return the file that a path leads to through symbolic links, where there is one or not."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return target


def check_regular_file(path: str | os.PathLike[str], content: str = "a file") -> Path:
    """Return the path of a file to read; raise where it is none: a pipe would wait for ever."""
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"there is no file {str(file)!r}.")
    if kind := _kind_of(file):
        raise ValueError(f"{str(file)!r} is {kind}, not {content}.")
    return file


def _check_folder(folder: Path) -> None:
    """Raise where the folder of a file is none, or is not there."""
    if folder.is_dir():
        return
    if folder.exists():
        raise NotADirectoryError(f"{str(folder)!r} is a file. Name a folder.")
    raise FileNotFoundError(f"there is no folder {str(folder)!r}. Make it first.")


def _kind_of(path: Path) -> str | None:
    """Return what a path is other than a regular file; ``None`` for one, and for nothing."""
    if path.is_file() or not path.exists():
        return None
    return "a folder" if path.is_dir() else "a pipe, socket or device"


def _new_file_beside(target: Path, mode: int) -> Path:
    """Make an empty file in the folder of ``target``, under a name that no other writer has."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    while True:
        # the suffix tells the format
        path = target.with_name(f".{secrets.token_hex(4)}.{target.name[-_LONGEST_END:]}")
        try:
            os.close(os.open(path, flags, mode))
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error
