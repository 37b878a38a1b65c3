"""What a page printed is kept until a file that it opened changes, and for no longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.docs.pages import DOCS, extension

# a module imports another, a child process a third; a result is read, and weights lie beside them
FILES = {
    "tracetorch/__init__.py": "",
    "tracetorch/used.py": "from tracetorch import inner",
    "tracetorch/inner.py": "",
    "tracetorch/child.py": "",
    "tracetorch/unused.py": "",
    "tracetorch/weights/net.safetensors": "1",
    "examples/results/rows.json": "{}",
    "docs/use/page.md": "text",
    "docs/use/other.md": "text",
}
PAGE = """
import os, subprocess, sys
import tracetorch.used
subprocess.run([sys.executable, "-c", "import tracetorch.child"], check=True)
open("examples/results/rows.json").close()
open("build/made.txt", "w").close()
os.listdir("docs/use")
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("repository")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "build").mkdir()
    notes = root / "build/opened"
    path = os.pathsep.join([str(DOCS / "_extensions/kernel"), str(root)])
    settings = {"PYTHONPATH": path, "DOCS_ROOT": str(root), "DOCS_OPENED": str(notes)}
    for _ in range(2):  # the second time modules are compiled
        notes.unlink(missing_ok=True)
        subprocess.run(
            [sys.executable, "-c", PAGE], cwd=root, env=os.environ | settings, check=True
        )
    extension_ = extension("opened_files")
    return extension_, root, extension_.contents(notes.read_text(), root)


def test_a_page_opens_what_it_imports_and_reads(opened: Any) -> None:
    extension_, root, files = opened
    folders = {name for name in files if (root / name).is_dir()}
    assert folders == {"tracetorch"}  # the one that Python looked into for modules
    unused = {"tracetorch/unused.py", "docs/use/page.md", "docs/use/other.md"}
    assert files.keys() - folders == FILES.keys() - unused
    assert extension_.unchanged(json.loads(json.dumps(files)), root)


@pytest.mark.parametrize("text", ["changed = True", None])
@pytest.mark.parametrize("name", [*FILES, "tracetorch/new.py", "docs/use/new.md"])
def test_what_it_printed_is_kept_until_one_of_them_changes(name, text, opened) -> None:
    extension_, root, files = opened
    path, before = root / name, FILES.get(name)

    def write(text: str | None) -> None:
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)

    write(text)
    listed = path.parent == root / "tracetorch" and (text is None) != (before is None)
    assert extension_.unchanged(files, root) == (name not in files and not listed)
    write(before)
    assert extension_.unchanged(files, root)


def test_executed_pages_are_read_evenly_among_the_others(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb")
    pages = [*"abcdefgh"]
    for page in pages:
        (tmp_path / page).write_text("---\nfile_format: mystnb\n---\n" if page in "ab" else "text")
    env = SimpleNamespace(doc2path=lambda page: tmp_path / page)
    extension("executed").spread_executed(None, env, pages)
    assert pages == [*"cadefbgh"]
