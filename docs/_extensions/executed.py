"""Keep what a page printed for as long as every file that it opened is the same.

MyST-NB's cache compares the cells of a page, not the code that they call. So the kernel of a page,
and every Python that it starts, notes which files of this repository it opens
(``kernel/sitecustomize.py``): the modules that it imports, and what these import; results of
examples, weights, scripts of pages. Their contents are hashed beside what the page printed. Before
pages are read, what was printed from a file that has changed since is removed, and the page is
executed again. A change of one module executes the pages that import it, and no others.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from docutils import nodes
from jupyter_cache import get_cache
from opened_files import ROOT, contents, unchanged
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from notebooks import digest

KERNEL = Path(__file__).parent / "kernel"


def remove_outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Remove what was printed from other contents, and return the pages to read again."""
    cache = get_cache(app.config.nb_execution_cache_path)
    current, outdated = set(), set()
    for record in cache.list_cache_records():
        files = _files_of(app, record.hashkey)
        page = env.path2doc(record.uri)
        if files.exists() and unchanged(json.loads(files.read_text(encoding="utf-8"))):
            current.add(page)
        else:
            cache.remove_cache(record.pk)
            outdated.add(page)
    # the reference repeats docstrings, those of bases in other files too
    sources = digest(ROOT / "tracetorch")
    if getattr(env, "documented_sources", sources) != sources:
        outdated |= {page for page in env.all_docs if page.startswith("reference/")}
    env.documented_sources = sources  # type: ignore[attr-defined]
    return sorted((outdated - current) & env.found_docs)


def note_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Let the kernel of a page write what it opens into a file of that page."""
    opened = Path(app.config.nb_execution_cache_path) / "opened" / page.replace("/", ".")
    opened.parent.mkdir(parents=True, exist_ok=True)
    opened.unlink(missing_ok=True)
    os.environ["DOCS_OPENED"] = str(opened)


def keep_files(app: Sphinx, tree: nodes.document) -> None:
    """Hash what a page that was executed has opened, beside what it printed."""
    opened = Path(os.environ["DOCS_OPENED"])
    if not opened.exists():  # no page with cells, or nothing was executed
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    path = app.env.doc2path(app.env.docname)
    records = [record for record in cache.list_cache_records() if record.uri == str(path)]
    files = contents(opened.read_text(encoding="utf-8"))
    if records:  # one whose cells failed is not kept
        newest = max(records, key=lambda record: record.created)
        _files_of(app, newest.hashkey).write_text(json.dumps(files, indent=1), encoding="utf-8")


def _files_of(app: Sphinx, key: str) -> Path:
    return Path(app.config.nb_execution_cache_path) / "executed" / key / "files.json"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx, and prepare the environment of the kernels."""
    os.environ["DOCS_ROOT"] = str(ROOT)
    known = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(KERNEL), known]))
    # pages are executed side by side; threads that wait for each other would take most of the time
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app.connect("env-get-outdated", remove_outdated)
    app.connect("source-read", note_page)
    app.connect("doctree-read", keep_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
