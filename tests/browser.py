"""A headless Chromium for tests of pages, and the check that a page is silent."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT = 120_000  # milliseconds; the machine may be busy with other tests

Page = Any


def interface() -> Any:
    """Return what starts a browser; skip the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return pytest.importorskip("playwright.sync_api", reason="needs the extra test-browser")


@contextmanager
def launched() -> Iterator[Any]:
    """Start a browser for the length of a block; skip the test where there is none."""
    sync_api = interface()
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(OPTIONS), timeout=TIMEOUT
        )
        yield chromium
        chromium.close()


class Visits:
    """Open pages, each in a context of its own, and collect their errors and requests."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.contexts: list[Any] = []
        self.problems: list[str] = []

    def open(self, place: Path, *, fragment: str = "", **options: Any) -> Page:
        """Open a file; ``options`` are those of a browser context."""
        address = place.as_uri()
        options = {"viewport": {"width": 1000, "height": 700}, **options}
        context = self.browser.new_context(**options)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: self._requested(r.url.partition("#")[0], address))
        page.goto(address + fragment)
        return page

    def _requested(self, url: str, address: str) -> None:
        if url != address:
            self.problems.append(url)

    def close(self) -> None:
        """Close the pages; no page has had errors or requested other addresses."""
        for context in self.contexts:
            context.close()
        assert self.problems == []


def wait_for_frame(page: Page) -> None:
    page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")


def wait_until(page: Page, condition: str) -> None:
    """Wait until an expression is true; a page whose policy forbids ``eval`` is polled outside."""
    end = time.monotonic() + TIMEOUT / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)
