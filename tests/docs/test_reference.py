"""The reference documents every public name of every room, and all code of pages is executed."""

from __future__ import annotations

import re

import tracetorch as tt
from tests.test_package import ROOMS, ROOT

PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))


def documented_names(text: str) -> list[str]:
    """Full names that a page documents: by ``.. names::``, by a directive each, or as a module."""
    found: list[str] = re.findall(r"^\.\. py:module:: (\S+)", text, flags=re.MULTILINE)
    data = re.findall(r"^\.\. py:data:: (\S+)\n {3}:module: (\S+)", text, flags=re.MULTILINE)
    found += [f"{module}.{name}" for name, module in data]
    for module, names in re.findall(r"^\.\. names:: (\S+)\n\n((?: {3}.*\n)+)", text, re.MULTILINE):
        found += [f"{module}.{name}" for name in names.split()]
    return found


def public_names() -> set[str]:
    """The package, its rooms, and the names in the ``__all__`` of each."""
    rooms = [tt, *ROOMS]
    return {"tracetorch"} | {f"{room.__name__}.{n}" for room in rooms for n in room.__all__}


def test_every_public_name_is_documented_once() -> None:
    found = [name for page in PAGES for name in documented_names(page.read_text())]
    assert sorted(set(found)) == sorted(found)
    assert set(found) == public_names()
    page = ".. py:module:: a\n\n.. names:: a.b\n\n   c d\n   e\n\n.. py:data:: f\n   :module: a\n"
    assert documented_names(page) == ["a", "a.f", "a.b.c", "a.b.d", "a.b.e"]


def test_every_page_has_its_place_in_the_contents() -> None:
    docs = ROOT / "docs"
    contents = re.findall(r"```\{toctree\}\n(.*?)```", (docs / "index.md").read_text(), re.DOTALL)
    listed = re.findall(r"^([a-z]\S*)$", "".join(contents), flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(listed))
    pages = {path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")}
    assert set(listed) == pages - {"index"}, "list a new page in docs/index.md, in its order"
    assert listed.index("understand/time") < listed.index("understand/states")
    assert next(page for page in listed if page.startswith("tutorials/")) == "tutorials/row_digits"


# pages of plain Python, for other processes or other libraries, and the test that runs each
TESTED = {
    "docs/use/coming_from.md": "tests/docs/test_coming_from.py",
    "docs/use/scale_out.md": "tests/scale_out/test_scripts.py",
    "docs/use/with_other_tools.md": "tests/tools/test_page.py",
}
FENCE = re.compile(r"^[ \t>]*(?:`{3,}|~{3,}|:{3,})\s*(\{?[\w-]*\}?)(.*)$", flags=re.MULTILINE)


def unexecuted_code(text: str) -> list[str]:
    """Fences of Python that no build executes, and cells of a page that is not a notebook."""
    is_notebook = text.startswith("---\nfile_format: mystnb\n")
    found = []
    for kind, rest in FENCE.findall(text):
        is_literal = kind in ("{code}", "{code-block}", "{sourcecode}") and " py" in rest
        is_stray_cell = kind == "{code-cell}" and not is_notebook
        if kind in ("python", "py", "pycon") or is_literal or is_stray_cell:
            found.append(f"{kind}{rest}")
    return found + re.findall("skip-execution", text)


def test_all_code_is_executed() -> None:
    found = {
        page.relative_to(ROOT).as_posix(): unexecuted_code(page.read_text())
        for page in (ROOT / "docs").rglob("*.md")
    }
    for path, test in TESTED.items():
        assert found.pop(path)
        assert path in (ROOT / test).read_text()
    assert {path: code for path, code in found.items() if code} == {}
