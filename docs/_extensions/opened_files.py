"""Hash the files that a page opens, which ``kernel/sitecustomize.py`` notes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import source_from_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def content(path: Path) -> str:
    """Hash a file, or the names in a folder; empty if there is nothing that can be read."""
    try:
        if path.is_dir():
            names = sorted(each.name for each in path.iterdir() if each.name != "__pycache__")
            return hashlib.sha256("\0".join(names).encode(errors="replace")).hexdigest()[:16]
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
    except OSError:
        return ""


def source(path: str) -> str:
    """Return the path of the source of a compiled module, and any other path as it is."""
    if path.endswith(".pyc") and Path(path).parent.name == "__pycache__":
        with suppress(ValueError):  # not a name of Python's own
            return source_from_cache(path)
    return path


def data(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, and of those in it that have no modules, but for modules."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and path.suffix != ".py":
            yield path
        elif path.is_dir() and path.name != "__pycache__" and not any(path.glob("*.py")):
            yield from data(path)


def contents(noted: str, root: Path = ROOT) -> dict[str, str]:
    """Return what noted paths held when they were first opened, by name.

    A file that was changed while the page ran has other contents by now, and is not ``unchanged``.
    Of folders those of modules count: a page does not change because its folder has a new one.
    """
    modules = [root / "tracetorch", root / "examples"]
    files: dict[str, str] = {}
    for line in noted.splitlines():
        before, _, name = line.partition(" ")
        path = Path(name)
        if not path.is_dir() or any(path.is_relative_to(each) for each in modules):
            files.setdefault(path.relative_to(root).as_posix(), before)
    return dict(sorted(files.items()))


def unchanged(files: dict[str, str], root: Path = ROOT) -> bool:
    """Whether all files have the contents that they had."""
    return all(content(root / name) == before for name, before in files.items())
