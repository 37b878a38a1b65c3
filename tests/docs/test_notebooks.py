"""The notebooks for download: the code of their pages, unchanged, and they run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.docs.pages import COURSE, DOCS, ROOT, TUTORIALS, converter, notebook

SITE = "https://example.org/"
PAGE = """---
file_format: mystnb
kernelspec:
  name: python3
---

# A page

See [another](../use/own.md#part), [one beside it](b.md), [code](https://a.org/x.md).

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
"""


def fences(text: str) -> list[str]:
    """Contents of the code cells, found without the parser of the extension."""
    blocks = re.findall(r"^```\{code-cell\}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(r"\A(:\w+:.*\n)+", "", block).strip("\n") for block in blocks]


@pytest.mark.parametrize("page", [*COURSE, *TUTORIALS])
def test_notebook_has_the_code_of_the_page(page: str) -> None:
    codes = [cell.source for cell in notebook(page).cells if cell.cell_type == "code"]
    assert codes == fences((DOCS / f"{page}.md").read_text())
    assert len(codes) > 5


def test_conversion_keeps_text_links_and_folds() -> None:
    made = converter().convert(PAGE, "tutorials/a", SITE)
    assert made == converter().convert(PAGE, "tutorials/a", SITE)
    note, text, hidden, more, shown = made.cells
    assert f"({SITE}tutorials/a.html)" in note.source
    assert f"[another]({SITE}use/own.html#part)" in text.source
    assert f"[one beside it]({SITE}tutorials/b.html)" in text.source
    assert "[code](https://a.org/x.md)" in text.source
    assert hidden.metadata.jupyter.source_hidden
    assert "jupyter" not in shown.metadata
    assert more.source.startswith("<details>")
    assert (hidden.source, shown.source) == ("x = 1", "print(x + 1)")


def test_link_stands_below_the_title(tmp_path: Any) -> None:
    (tmp_path / "a.md").write_text(PAGE)
    app = SimpleNamespace(
        config=SimpleNamespace(
            notebooks_pages=["tutorials/*"],
            html_baseurl=SITE,
            myst_enable_extensions=["colon_fence"],
        ),
        env=SimpleNamespace(doc2path=lambda page: tmp_path / "a.md"),
        builder=SimpleNamespace(get_outfilename=lambda page: str(tmp_path / "out" / "a.html")),
    )
    context = {"body": "<h1>A page</h1>\n<p>text</p>"}
    converter().add_notebook(app, "use/a", "page.html", context, object())
    assert not (tmp_path / "out").exists()
    converter().add_notebook(app, "tutorials/a", "page.html", context, object())
    assert '</h1>\n<p><a href="a.ipynb" download>' in context["body"]
    assert (tmp_path / "out" / "a.ipynb").read_text().count("print(x + 1)") == 1


def test_digest_follows_every_source(tmp_path: Path) -> None:
    def written(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return converter().digest(tmp_path)

    digests = [
        written("a.py", "x = 1"),
        written("a.py", "x = 2"),
        written("inner/b.py", ""),
        written("inner/b.py", "y"),
    ]
    assert len(set(digests)) == 4
    assert written("notes.txt", "no source") == digests[-1]
    (tmp_path / "inner" / "b.py").rename(tmp_path / "inner" / "c.py")
    assert converter().digest(tmp_path) not in digests


@pytest.mark.slow
def test_first_lesson_runs_as_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = notebook("course/1_membrane")
    nbclient.NotebookClient(made, timeout=300, kernel_name="python3").execute()
    assert any(cell.get("outputs") for cell in made.cells)


@pytest.mark.slow
def test_a_false_claim_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    made = converter().convert(PAGE.replace("print(x + 1)", "assert x > 1"), "tutorials/a")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="AssertionError"):
        nbclient.NotebookClient(made, timeout=60, kernel_name="python3").execute()
