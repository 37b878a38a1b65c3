"""The built pages in a browser: links, pictures, network and width.

``make docs`` runs it on what it has built: ``pytest tests/docs/test_site.py --built build/docs``.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser import TIMEOUT
from tests.docs.test_reference import public_names
from tests.test_package import ROOT

REPOSITORY = re.compile(
    r"https://(?:github\.com|colab\.research\.google\.com/github)"
    r"/Yegor-men/tracetorch/(?:blob|tree|edit)/main/([^#?]+)"
)
# settings in a fragment, as the playground has them, are no anchors
LINKS = """() => [...document.querySelectorAll('a[href]:not([data-settings])')]
    .map((a) => a.href)"""
# pictures that are not there; what makes a page wider than the window
LOOK = """() => {
    const width = document.documentElement.clientWidth;
    const tooWide = document.documentElement.scrollWidth > width;
    const all = tooWide ? [...document.querySelectorAll('body *')] : [];
    return [...document.images]
        .filter((image) => !(image.complete && image.naturalWidth > 0))
        .map((image) => `picture: ${image.src}`)
        .concat(tooWide ? ['too wide'] : [])
        .concat(all.filter((e) => e.getBoundingClientRect().right > width + 1)
            .map((e) => `${e.tagName}.${e.className}`).slice(0, 5));
}"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        folder: Path | None = metafunc.config.getoption("--built")
        pages = [] if folder is None else sorted(folder.resolve().rglob("*.html"))
        names = [str(page.relative_to(folder.resolve())) for page in pages] if folder else []
        metafunc.parametrize("page", pages, ids=names)


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Path:
    folder: Path | None = request.config.getoption("--built")
    if folder is None:
        pytest.skip("needs built pages: make docs")
    return folder.resolve()


@cache
def anchors(page: Path) -> frozenset[str]:
    names = {"", "top"}

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names.update(value for key, value in attrs if key in ("id", "name") and value)

    Parser().feed(page.read_text())
    return frozenset(names)


def broken_links(targets: list[str]) -> list[str]:
    """Links to files and anchors that are not there, and to missing files of our repository."""
    broken = []
    for target in set(targets):
        parts = urlsplit(target)
        if parts.scheme == "file":
            path = Path(unquote(parts.path))
            whole = path.is_file() and (
                path.suffix != ".html" or unquote(parts.fragment) in anchors(path)
            )
        elif ours := REPOSITORY.match(target):
            whole = (ROOT / ours[1]).exists()
        else:
            whole = parts.scheme in ("https", "mailto")
        if not whole:
            broken.append(f"link: {target}")
    return sorted(broken)


class Tab:
    """A tab that opens pages from the file system, one after the other, and says what is wrong."""

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context(offline=True)
        self.reported: list[str] = []
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(TIMEOUT)
        self.tab.on("pageerror", lambda error: self.reported.append(f"error: {error}"))
        self.tab.on(
            "console", lambda m: self.reported.append(m.text) if m.type == "error" else None
        )
        self.tab.on("request", lambda request: self._requested(request.url))

    def _requested(self, url: str) -> None:
        if urlsplit(url).scheme not in ("file", "data", "blob"):
            self.reported.append(f"network: {url}")

    def visit(self, page: Path, width: int) -> list[str]:
        self.reported.clear()
        self.tab.set_viewport_size({"width": width, "height": 844})
        self.tab.goto(page.as_uri())
        broken = broken_links(self.tab.evaluate(LINKS))
        return [*self.tab.evaluate(LOOK), *broken, *self.reported]


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Tab]:
    opened = Tab(browser)
    yield opened
    opened.context.close()


@pytest.mark.slow
def test_every_page_is_whole(tab, page) -> None:
    # the pages of classes have one template: of each its links and a narrow width
    widths = (390,) if page.parent.name == "names" else (1280, 390)
    assert [tab.visit(page, width) for width in widths] == [[]] * len(widths)


@pytest.mark.slow
def test_every_public_name_has_an_address(site: Path) -> None:
    _, _, _, _, compressed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    names = {line.split(" ")[0] for line in zlib.decompress(compressed).decode().splitlines()}
    assert public_names() - names == set()
