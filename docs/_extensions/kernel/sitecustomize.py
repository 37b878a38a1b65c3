"""Note the files of this repository that a page opens; Python runs this file when it starts.

``docs/_extensions/executed.py`` puts this folder on the path of pages' kernels, and so of the
processes that they start, and says where to write.
"""

import os
import sys
from typing import Any


def note_files(root: str, place: str) -> None:
    """Write the path of each file below ``root`` to ``place`` when it is first opened to be read.

    Of a compiled module its source is meant, and of a folder that is listed the folder.
    """
    notes = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    left_out = tuple(os.path.join(root, name) + os.sep for name in ("build", ".venv", ".git"))
    noted: set[str] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:  # of every file, so it is short
        if event not in ("open", "os.listdir", "os.scandir"):
            return
        path = arguments[0]
        if isinstance(path, int) or (event == "open" and (arguments[2] or 0) & 3):
            return
        name = os.path.abspath(os.fsdecode(path or "."))
        if name in noted or not name.startswith(root + os.sep) or name.startswith(left_out):
            return
        noted.add(name)
        os.write(notes, f"{name}\n".encode())

    sys.addaudithook(hook)


if "DOCS_ROOT" in os.environ and "DOCS_OPENED" in os.environ:
    note_files(os.environ["DOCS_ROOT"], os.environ["DOCS_OPENED"])
