"""The pages of the project: every path in backticks and every link leads somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "CITATION.cff", *(ROOT / "docs").rglob("*.md")])
PAGES += [ROOT / "examples/README.md"]
OWN_ADDRESS = re.compile(
    r"https://(?:github\.com/Yegor-men/tracetorch/(?:blob|tree)|"
    r"raw\.githubusercontent\.com/Yegor-men/tracetorch)/main/([^\s)#\"'>]+)"
)
# Made by commands of the pages, not of this repository.
OTHERS = frozenset({"build/docs", "runs/demo", "runs/fly", "benchmarks/results/cuda"})


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


def dead_links(page: Path) -> list[str]:
    """Addresses of files of the repository, and links beside a page, that lead nowhere."""
    text = page.read_text()
    dead = [target for target in OWN_ADDRESS.findall(text) if not (ROOT / target).exists()]
    if page.parent in (ROOT, ROOT / "examples"):  # Sphinx follows those of docs
        links = re.findall(r"\]\(([^)#]+)\)", text)
        beside = [target for target in links if not target.startswith("http")]
        dead += [target for target in beside if not (page.parent / target).exists()]
    return dead


def test_paths_and_links_lead_somewhere() -> None:
    found = {str(page): dead_links(page) for page in PAGES}
    for page in PAGES:
        if page.suffix == ".md" and page.name != "CHANGELOG.md" and page.parent.name != "examples":
            found[str(page)] += missing_paths(page.read_text())
    assert {page: targets for page, targets in found.items() if targets} == {}


def test_a_planted_path_is_found(tmp_path: Path) -> None:
    assert missing_paths("`core/walk.py` and `tracetorch/core/walk.py` and `tests/`") == []
    assert missing_paths("`core/stroll.py`, `nowhere.md`") == ["core/stroll.py", "nowhere.md"]
    (tmp_path / "a.md").write_text("https://github.com/Yegor-men/tracetorch/blob/main/nothing.md")
    assert dead_links(tmp_path / "a.md") == ["nothing.md"]
