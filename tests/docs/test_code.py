"""Code in the pages of ``docs`` is executed: by the build, or by a test of its own."""

from __future__ import annotations

import re

from tests.test_package import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
# pages of plain Python, for other processes or other libraries, and the test that runs each
TESTED = {
    "docs/use/coming_from.md": "tests/docs/test_coming_from.py",
    "docs/use/scale_out.md": "tests/scale_out/test_page.py",
    "docs/use/with_other_tools.md": "tests/tools/test_page.py",
}
FENCE = re.compile(r"^[ \t>]*(?:`{3,}|~{3,}|:{3,})\s*(\{?[\w-]*\}?)(.*)$", flags=re.MULTILINE)


def unexecuted_code(text: str) -> list[str]:
    """Fences of Python that no build executes, and cells of a page that is not a notebook."""
    is_notebook = text.startswith("---\nfile_format: mystnb\n")
    found = []
    for kind, rest in FENCE.findall(text):
        is_literal = kind in ("{code}", "{code-block}", "{sourcecode}")
        is_python = kind in ("python", "py", "pycon") or (is_literal and " py" in rest)
        is_stray_cell = kind == "{code-cell}" and not is_notebook
        if is_python or is_stray_cell:
            found.append(f"{kind}{rest}")
    return found + re.findall("skip-execution", text)


def test_all_code_is_executed() -> None:
    found = {page.relative_to(ROOT).as_posix(): unexecuted_code(page.read_text()) for page in PAGES}
    for path, test in TESTED.items():
        assert found.pop(path)
        assert path in (ROOT / test).read_text()
    assert {path: code for path, code in found.items() if code} == {}
