"""The page of the tables, and how one takes the place of the last."""

import re
from pathlib import Path

from benchmarks.libraries import ROOT

PAGE = ROOT / "docs" / "use" / "gpu.md"
END = "<!-- end -->"


def write(text: str, begin: str, page: Path = PAGE) -> None:
    """Put what a command has made between its mark and the end.

    Raises:
        ValueError: the page has no place for it.
    """
    after, count = re.subn(
        f"{re.escape(begin)}\n.*?{re.escape(END)}",
        lambda _: f"{begin}\n\n{text}\n\n{END}",
        page.read_text(),
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"{page} has {count} places for the table, there should be one: {begin}.")
    page.write_text(after)


def between(begin: str) -> str:
    """Return what stands there."""
    return PAGE.read_text().partition(begin)[2].partition(END)[0].strip()
