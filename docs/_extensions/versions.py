"""Build the pages of several versions as one site, with a switcher between them.

The site's root has the pages of the tree that is checked out, the latest; a folder below it, as
``0.10.0``, those of each tag ``v0.10.0`` that has this file. ``make versions``, or
``python docs/_extensions/versions.py build/docs``, adds them to the pages that ``make docs`` has
built, from the tags of this clone and without a network. ``versions.json`` at the root lists what
there is, so that an old page offers versions that came later. Canonical links name the latest.

A tag is built once: ``build/versions`` keeps it. Its pages run its own code, with the packages that
are installed here.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
LATEST = "latest"
THIS = "docs/_extensions/versions.py"  # tags from before it have no pages that could be switched


def tags(repository: Path) -> list[str]:
    """Return the tags of releases whose pages can be switched, the newest first."""
    listed = _git(repository, "tag", "--list", "v*", "--sort=-v:refname").decode().split()
    return [tag for tag in listed if _git(repository, "ls-tree", "--name-only", tag, THIS)]


def add_versions(repository: Path, site: Path, kept: Path) -> list[str]:
    """Build the pages of tags below the site's root, and list them in ``versions.json``.

    A tag whose pages cannot be built is reported and left out: the others are published.

    Args:
        repository: the clone whose tags are built.
        site: folder of the built pages of the latest version.
        kept: folder in which a tag that was built is kept.

    Raises:
        FileNotFoundError: there are no built pages in ``site``.
    """
    if not (site / "index.html").exists():
        raise FileNotFoundError(f"{site} has no index.html. Run `make docs` before.")
    names = [LATEST]
    for tag in tags(repository):
        name = tag.removeprefix("v")
        commit = _git(repository, "rev-parse", f"{tag}^{{commit}}").decode().strip()
        pages = kept / commit / "site"
        if not pages.exists():
            try:
                _build(repository, commit, name, kept / commit)
            except subprocess.CalledProcessError as error:
                sys.stderr.write(f"{tag} is left out: its pages cannot be built: {error}\n")
                continue
        shutil.rmtree(site / name, ignore_errors=True)
        shutil.copytree(pages, site / name)
        (site / name / "sitemap.xml").unlink(missing_ok=True)  # it lists what the latest's lists
        _keep_canonical_links_whole(site, name)
        names.append(name)
    write_list(site, names)
    return names


def write_list(site: Path, names: list[str]) -> None:
    """Write ``versions.json``: each version's name, and its folder from the site's root."""
    listed = [{"name": name, "folder": "" if name == LATEST else f"{name}/"} for name in names]
    (site / "versions.json").write_text(f"{json.dumps(listed)}\n", encoding="utf-8")


def _build(repository: Path, commit: str, name: str, folder: Path) -> None:
    """Build the pages of a commit in ``folder/site``, which is there once they are whole."""
    source, made = folder / "source", folder / "made"
    shutil.rmtree(folder, ignore_errors=True)
    source.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(_git(repository, "archive", commit))) as archive:
        archive.extractall(source, filter="data")
    options = ["-D", f"versions_name={name}", "-D", "versions_root=../"]
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-j", "auto", "-b", "html"]
    subprocess.run(
        [*command, *options, "-d", str(folder / "doctrees"), str(source / "docs"), str(made)],
        check=True,
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source)},  # pages run the code of their version
    )
    made.rename(folder / "site")


def _keep_canonical_links_whole(site: Path, name: str) -> None:
    """Let a page that the latest version has no more be its own canonical page."""
    for page in (site / name).rglob("*.html"):
        path = page.relative_to(site / name).as_posix()
        if not (site / path).exists():
            text = page.read_text(encoding="utf-8")
            before, found, after = text.partition('<link rel="canonical" href="')
            if found:
                address = after.partition('"')[0]
                own = f"{address.removesuffix(path)}{name}/{path}"
                page.write_text(before + found + after.replace(address, own, 1), encoding="utf-8")


def _git(repository: Path, *arguments: str) -> bytes:
    """Return what git prints."""
    return subprocess.run(["git", "-C", str(repository), *arguments], check=True, stdout=-1).stdout


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Tell the switcher which version this is, and where the site's root lies."""
    context["versions_name"] = app.config.versions_name
    context["versions_root"] = app.config.versions_root


def list_this(app: Sphinx, error: Exception | None) -> None:
    """List the latest version alone, in a site that has no other."""
    if error is None and app.builder.format == "html" and not app.config.versions_root:
        write_list(Path(app.outdir), [LATEST])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx; of a tag, the command above sets both values."""
    app.add_config_value("versions_name", LATEST, "html", types=[str])
    app.add_config_value("versions_root", "", "html", types=[str])
    app.add_js_file("versions.js", loading_method="defer")
    app.connect("html-page-context", describe)
    app.connect("build-finished", list_this)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    found = add_versions(ROOT, Path(sys.argv[1]).resolve(), ROOT / "build/versions")
    sys.stdout.write(f"{sys.argv[1]}: {', '.join(found)}\n")
