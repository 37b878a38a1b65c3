"""Note the files of this repository that a page opens; Python runs this file when it starts.

``docs/_extensions/executed.py`` puts this folder on the path of pages' kernels, and so of the
processes that they start, and says where to write.
"""

import os
import sys
from pathlib import Path
from threading import get_ident
from typing import Any


def note_files(root: str, place: str) -> None:
    """Write the path of each file below ``root`` to ``place`` when it is first opened to be read.

    Its hash at that time stands before it: a file may be edited while the page runs. A path through
    a symbolic link is noted as it is, and as what it leads to. Of a compiled module its source is
    meant. Data beside a module may be read by a library that is not Python's, as weights are.
    """
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        from opened_files import content, data, source
    finally:
        sys.path.pop(0)
    sys.pycache_prefix = None  # only beside its source does the path of a compiled module tell it
    notes = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    root = os.path.realpath(root)
    left_out = tuple(os.path.join(root, name) + os.sep for name in ("build", ".venv", ".git"))
    seen: set[str] = set()  # everywhere, so that links are followed once
    noted: set[str] = set()
    folders: set[Path] = set()  # of modules
    busy: set[int] = set()  # threads that open files here, to hash them

    def note(name: str) -> None:
        for path in (name, os.path.realpath(name)):
            if path in noted or not path.startswith(root + os.sep) or path.startswith(left_out):
                continue
            noted.add(path)
            os.write(notes, f"{content(Path(path))} ".encode() + os.fsencode(path) + b"\n")
            folder = Path(name).parent
            if name.endswith(".py") and folder not in folders:
                folders.add(folder)
                for each in data(folder):
                    note(str(each))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:  # of every file, so it is short
        if event not in ("open", "os.listdir", "os.scandir") or get_ident() in busy:
            return
        path = arguments[0]
        if isinstance(path, int) or (event == "open" and (arguments[2] or 0) & 3):
            return
        name = source(os.path.abspath(os.fsdecode(path or ".")))
        if name in seen:
            return
        seen.add(name)
        busy.add(get_ident())
        try:
            note(name)
        finally:
            busy.discard(get_ident())

    sys.addaudithook(hook)


if "DOCS_ROOT" in os.environ and "DOCS_OPENED" in os.environ:
    note_files(os.environ["DOCS_ROOT"], os.environ["DOCS_OPENED"])
