"""Pages of several versions: which tags, where they lie, how one changes from one to another."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, extension

SITE = "https://example.org/"
THIS = "docs/_extensions/versions.py"
CONF = f"""import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
project, html_baseurl, html_theme, extensions = "p", "{SITE}", "furo", ["versions", "myst_parser"]
html_static_path, templates_path = ["_static"], ["_templates"]
html_sidebars = {{"**": ["versions.html"]}}
"""


@pytest.fixture(scope="module")
def versions() -> Any:
    pytest.importorskip("sphinx")
    return extension("versions")


def git(repository: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(repository), *identity, "-c", "core.hooksPath=/dev/null"]
    subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)


def write(repository: Path, **files: str) -> None:
    """Write files and commit them; ``docs__a`` is ``docs/a.md``."""
    for name, text in files.items():
        path = repository / f"{name.replace('__', '/')}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "pages")


def repository_in(folder: Path) -> Path:
    """Make a repository with tags before and after its pages could be switched."""
    repository = folder / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    write(repository, docs__index="# First\n")
    git(repository, "tag", "v0.8.0")
    for name in (THIS, "docs/_templates/versions.html", "docs/_static/versions.js"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes((ROOT / name).read_bytes())
    (repository / "docs/conf.py").write_text(CONF)
    contents = "\n```{toctree}\na\nsub/gone\n```\n"
    index = f"# Ninth\n{contents}"
    write(repository, docs__index=index, docs__a="# A nine\n", docs__sub__gone="# G")
    git(repository, "tag", "v0.9.0")
    git(repository, "tag", "nightly")
    (repository / "docs/sub/gone.md").unlink()
    index = index.replace("sub/gone", "sub/new").replace("Ninth", "Tenth")
    write(repository, docs__index=index, docs__a="# A ten\n", docs__sub__new="# N\n")
    git(repository, "tag", "v0.10.0")
    write(repository, docs__a="# A now\n")
    return repository


def test_tags_are_releases_with_a_switcher_newest_first_and_pages_must_be_built(
    versions: Any, tmp_path: Path
) -> None:
    assert versions.tags(repository_in(tmp_path)) == ["v0.10.0", "v0.9.0"]
    with pytest.raises(FileNotFoundError, match=r"no index\.html\. Run `make docs` before"):
        versions.add_versions(ROOT, tmp_path, tmp_path / "kept")


def test_a_tag_that_cannot_be_built_is_reported_and_left_out(
    versions, tmp_path, monkeypatch, capfd
) -> None:
    def build(repository: Path, commit: str, name: str, folder: Path) -> None:
        if name == "0.9.0":
            raise subprocess.CalledProcessError(2, "sphinx")
        (folder / "site").mkdir(parents=True)

    monkeypatch.setattr(versions, "_build", build)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").touch()
    repository = repository_in(tmp_path)
    names = versions.add_versions(repository, tmp_path / "site", tmp_path / "kept")
    assert names == ["latest", "0.10.0"]
    assert "v0.9.0 is left out: its pages cannot be built: " in capfd.readouterr().err
    assert not (tmp_path / "site/0.9.0").exists()


@pytest.fixture(scope="module")
def site(versions: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    repository, built = repository_in(folder), folder / "site"
    build = [sys.executable, "-m", "sphinx", "-W", "-q", str(repository / "docs"), str(built)]
    subprocess.run(build, check=True)
    assert json.loads((built / "versions.json").read_text()) == [{"name": "latest", "folder": ""}]
    for _ in range(2):  # a tag that was built is taken from where it is kept
        names = versions.add_versions(repository, built, folder / "kept")
        assert names == ["latest", "0.10.0", "0.9.0"]
        (repository / "docs/conf.py").write_text("broken")
        (next((folder / "kept").iterdir()) / "source/docs/conf.py").write_text("broken")
    return built


@pytest.mark.slow
def test_every_version_has_its_pages_and_names_the_latest(site: Path) -> None:
    assert json.loads((site / "versions.json").read_text()) == [
        {"name": "latest", "folder": ""},
        {"name": "0.10.0", "folder": "0.10.0/"},
        {"name": "0.9.0", "folder": "0.9.0/"},
    ]
    for page, title, canonical, name, root in (
        ("a.html", "A now", "a.html", "latest", "./"),
        ("0.10.0/a.html", "A ten", "a.html", "0.10.0", "./../"),
        ("0.9.0/a.html", "A nine", "a.html", "0.9.0", "./../"),
        ("0.9.0/sub/gone.html", "G", "0.9.0/sub/gone.html", "0.9.0", "../../"),
        ("0.10.0/sub/new.html", "N", "sub/new.html", "0.10.0", "../../"),
    ):
        text = (site / page).read_text()
        assert f"<h1>{title}<" in text
        assert re.findall('rel="canonical" href="(.*?)"', text) == [SITE + canonical]
        assert f'data-name="{name}"' in text
        assert f'data-root="{root}"' in text
    assert not list(site.glob("*/versions.json"))
