"""The pages of the project: every path in backticks is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# Made by commands of the pages, not of this repository.
OTHERS = frozenset({"build/docs", "runs/demo"})


def missing_paths(text: str) -> list[str]:
    """Paths in backticks, from the root of the repository or of the package, that are not there."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    missing = []
    for token in re.findall(r"`([^`\s]+)`", text):
        is_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+\.(py|md|toml|html|css|js|cff)", token)
        if not is_path or token in OTHERS:
            continue
        if not (ROOT / token).exists() and not (ROOT / "tracetorch" / token).exists():
            missing.append(token)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_backticks_exist(page: Path) -> None:
    assert missing_paths(page.read_text()) == []


def test_a_planted_path_is_found() -> None:
    assert missing_paths("`core/walk.py` and `tracetorch/core/walk.py` and `tests/`") == []
    assert missing_paths("`core/stroll.py`, `nowhere.md`") == ["core/stroll.py", "nowhere.md"]
