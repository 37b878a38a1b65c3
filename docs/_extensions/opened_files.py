"""Hash the files that a page has opened, which ``kernel/sitecustomize.py`` noted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import source_from_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def content(path: Path) -> str:
    """Hash a file, or the names in a folder; empty if there is neither."""
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if each.name != "__pycache__")
        return hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def contents(noted: str, root: Path = ROOT) -> dict[str, str]:
    """Return the contents of noted paths, by name, and of the data beside noted modules.

    The path of a compiled module is that of its source. Data beside a module may be read by a
    library that is not Python's, as weights are. Of folders those of modules count: a page does not
    change because its folder has a new one.
    """
    paths = set()
    for line in noted.splitlines():
        path = Path(line)
        paths.add(Path(source_from_cache(path)) if path.parent.name == "__pycache__" else path)
    for folder in {path.parent for path in paths if path.suffix == ".py"}:
        paths.update(_data(folder))
    modules = [root / "tracetorch", root / "examples"]
    return {
        path.relative_to(root).as_posix(): content(path)
        for path in sorted(paths)
        if not path.is_dir() or any(path.is_relative_to(each) for each in modules)
    }


def _data(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, and of those in it that have no modules, but for modules."""
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".py":
            yield path
        elif path.is_dir() and path.name != "__pycache__" and not any(path.glob("*.py")):
            yield from _data(path)


def unchanged(files: dict[str, str], root: Path = ROOT) -> bool:
    """Whether all files have the contents that they had."""
    return all(content(root / name) == before for name, before in files.items())
