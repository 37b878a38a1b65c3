"""What a page printed is kept until a file that it opened changes, and for no longer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
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
    """Return the extension, a small repository, and the files that a page of it opened."""
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
def test_what_it_printed_is_kept_until_one_of_them_changes(
    name: str, text: str | None, opened: Any
) -> None:
    extension_, root, files = opened
    path = root / name
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(text)
    listed = path.parent == root / "tracetorch" and path.exists() != (name in FILES)
    assert extension_.unchanged(files, root) == (name not in files and not listed)
    if name in FILES:
        path.write_text(FILES[name])
    else:
        path.unlink(missing_ok=True)
    assert extension_.unchanged(files, root)


CONFIGURATION = """
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_extensions"))
extensions = ["myst_nb", "executed"]
exclude_patterns = ["_extensions"]
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS.parent / "build/notebooks")
nb_execution_show_tb = True
suppress_warnings = ["toc.not_included"]
"""
PRINTS = """
import os, sys
with open("../build/executed", "a") as file:
    file.write("{0}\\n")
sys.path.insert(0, os.path.abspath(".."))
from tracetorch.{0} import VALUE
print("printed", VALUE)
"""
DRAWS = """
import matplotlib.pyplot as plt
plt.plot([0, 2])
plt.ylabel("neuron")
plt.yticks(VALUE);
"""
EDITS = """
with open("../tracetorch/edited.py", "w") as file:
    file.write("VALUE = 'after'")
"""
CELLS = {
    "broken": PRINTS.format("broken"),
    "drawn": PRINTS.format("drawn") + DRAWS,
    "edited": PRINTS.format("edited") + EDITS,
    "first": PRINTS.format("shared"),
    "second": PRINTS.format("shared"),  # the cells of the first
    "compiled": PRINTS.format("compiled"),
    "linked": PRINTS.format("linked").replace('".."', '"../build/link"'),
    "kept": PRINTS.format("kept"),
}
MODULES = dict.fromkeys(CELLS.keys() - {"first", "second"} | {"shared"}, "VALUE = 'before'")
MODULES |= {"broken": "raise RuntimeError('it is broken')", "drawn": "VALUE = [0, 0.5]"}
REPAIRED = dict.fromkeys(MODULES.keys() - {"edited", "kept"}, "VALUE = 'after'")
REPAIRED |= {"drawn": "VALUE = [0, 1]"}
FAILED = {"broken": "it is broken", "drawn": "the axis of 'neuron' has ticks"}


def _compiled(root: Path) -> dict[str, str]:
    prefix = str(root / "build/compiled")
    return {"PYTHONPYCACHEPREFIX": prefix, "PYTHONDONTWRITEBYTECODE": ""}


class Build:
    """A build of pages: its status, what it warned, what it executed, and what pages print."""

    def __init__(self, root: Path) -> None:
        settings = {"PYTHONPATH": str(DOCS.parent), **_compiled(root)}
        (root / "build/executed").write_text("")
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-d", "doctrees"]
        done = subprocess.run(  # in a folder without a package, as the extensions import ours
            [*command, "../docs", "docs"],
            cwd=root / "build",
            env=os.environ | settings,
            capture_output=True,
        )
        self.status, self.warnings = done.returncode, done.stderr.decode()
        self.executed = sorted((root / "build/executed").read_text().split())
        self.printed = {name: (root / f"build/docs/{name}.html").read_text() for name in CELLS}


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[Build]:
    """Build pages, again without a change, and twice when their modules have been repaired."""
    for package in ("myst_nb", "ipykernel", "matplotlib"):
        pytest.importorskip(package, reason="needs the environment of the documentation")
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(DOCS / "_extensions", root / "docs/_extensions")
    (root / "tracetorch").mkdir()
    (root / "build/link").mkdir(parents=True)
    (root / "build/link/tracetorch").symlink_to(root / "tracetorch")
    (root / "docs/conf.py").write_text(CONFIGURATION)
    (root / "docs/index.md").write_text("# Index\n")
    for name, cells in CELLS.items():
        page = f"# {name}\n```{{code-cell}}\n{cells}\n```\n"
        header = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n"
        (root / f"docs/{name}.md").write_text(header + page)
    for name, text in {"__init__": "", **MODULES}.items():
        (root / f"tracetorch/{name}.py").write_text(text)
    command = [sys.executable, "-c", "import tracetorch.compiled"]
    subprocess.run(command, cwd=root, env=os.environ | _compiled(root), check=True)
    built = [Build(root), Build(root)]
    for name, text in REPAIRED.items():
        (root / f"tracetorch/{name}.py").write_text(text)
    return [*built, Build(root), Build(root)]


@pytest.mark.slow
@pytest.mark.parametrize("page", FAILED)
def test_a_page_with_an_error_fails_every_build_until_it_is_repaired(
    page: str, builds: list[Build]
) -> None:
    assert [build.status for build in builds] == [1, 1, 0, 0]
    assert [FAILED[page] in build.warnings for build in builds] == [True, True, False, False]
    assert [build.executed.count(page) for build in builds] == [1, 1, 1, 0]
    assert "it is broken" not in builds[2].printed[page]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(CELLS.keys() - {"drawn", "kept"}))
def test_a_page_prints_what_its_module_has_become(page: str, builds: list[Build]) -> None:
    printed = ["printed before" in build.printed[page] for build in builds]
    assert printed == {"broken": [False] * 4, "edited": [True, False, False, False]}.get(
        page, [True, True, False, False]
    )
    assert "printed after" in builds[-1].printed[page]


@pytest.mark.slow
def test_no_page_is_executed_without_a_change(builds: list[Build]) -> None:
    assert builds[1].executed == sorted([*FAILED, "edited"])
    assert builds[2].executed == sorted(REPAIRED)  # the pages with equal cells once
    assert builds[3].executed == []
