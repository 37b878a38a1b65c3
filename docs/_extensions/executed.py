"""Keep what a page printed for as long as every file that it opened is the same.

MyST-NB's cache compares the cells of a page, not the code that they call. So the kernel of a page,
and every Python that it starts, notes which files of this repository it opens
(``kernel/sitecustomize.py``): the modules that it imports, and what these import; results of
examples, weights, scripts of pages. Their contents, hashed when they are opened, are kept beside
what the page printed. Before pages are read, what was printed from a file that has changed since is
removed, and the page is executed again. A change of one module executes the pages that import it,
and no others.

The pictures of a kernel are looked at when they are drawn (``kernel/look.py``).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.core.read import is_myst_markdown_notebook
from myst_nb.sphinx_ import NbMetadataCollector
from opened_files import ROOT, contents, unchanged
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from notebooks import digest, read

logger = logging.getLogger(__name__)

KERNEL = Path(__file__).parent / "kernel"
CELLS = "executed_cells"  # in a page's metadata: the key of its cells in the cache


def remove_outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Remove what was printed from other contents, and return the pages to read again.

    A page is read until what its cells print is kept: also one that failed, or drew a wrong
    picture, and each of those with equal cells.
    """
    cache = get_cache(app.config.nb_execution_cache_path)
    kept = set()
    for record in cache.list_cache_records():
        files = _files_of(app, record.hashkey)
        if files.exists() and unchanged(json.loads(files.read_text(encoding="utf-8"))):
            kept.add(record.hashkey)
        else:
            cache.remove_cache(record.pk)
    outdated = {page for page, of in env.metadata.items() if of.get(CELLS, "") not in {"", *kept}}
    # the reference repeats docstrings, those of bases in other files too
    sources = digest(ROOT / "tracetorch")
    if getattr(env, "documented_sources", sources) != sources:
        outdated |= {page for page in env.all_docs if page.startswith("reference/")}
    env.documented_sources = sources
    return sorted(outdated & env.found_docs)


def spread_executed(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Put executed pages evenly among the others: a process reads a run of pages, in this order."""
    groups: tuple[list[str], list[str]] = ([], [])
    for page in pages:
        text = Path(env.doc2path(page)).read_text(encoding="utf-8")
        groups[is_myst_markdown_notebook(text)].append(page)
    places = [((k + 0.5) / len(group), page) for group in groups for k, page in enumerate(group)]
    pages[:] = [page for _, page in sorted(places)]


def note_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Let the kernel of a page write what it opens into a file of that page."""
    opened = ROOT / "build/opened" / page.replace("/", ".")
    opened.parent.mkdir(parents=True, exist_ok=True)
    for path in (opened, _of_pictures(opened)):
        path.unlink(missing_ok=True)
    os.environ["DOCS_OPENED"] = str(opened)


def keep_files(app: Sphinx, tree: nodes.document) -> None:
    """Write the files that a page has opened beside what it printed; judge its pictures."""
    page = app.env.docname
    if not NbMetadataCollector.get_exec_data(app.env, page):  # without cells
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    cells = read(Path(app.env.doc2path(page)).read_text(encoding="utf-8"))
    _, key = cache.create_hashed_notebook(cells)
    app.env.metadata[page][CELLS] = key
    opened = Path(os.environ["DOCS_OPENED"])
    if not opened.exists():  # nothing was executed
        return
    pictures = _of_pictures(opened)
    found = pictures.read_text(encoding="utf-8").splitlines() if pictures.exists() else []
    for fault in found:
        logger.warning("a picture is wrong: %s", fault, location=page)
    with suppress(KeyError):  # a cell failed: nothing was kept
        record = cache.match_cache_notebook(cells)
        if found:  # else the next build would find nothing wrong
            cache.remove_cache(record.pk)
        else:
            files = contents(opened.read_text(encoding="utf-8", errors="surrogateescape"))
            _files_of(app, key).write_text(json.dumps(files, indent=1), encoding="utf-8")


def _of_pictures(opened: Path) -> Path:
    """Return where a kernel writes what is wrong in its pictures."""
    return opened.with_name(f"{opened.name}.pictures")


def _files_of(app: Sphinx, key: str) -> Path:
    return Path(app.config.nb_execution_cache_path) / "executed" / key / "files.json"


def setup(app: Sphinx) -> dict[str, int]:
    """Connect to Sphinx, and prepare the environment of the kernels."""
    os.environ["DOCS_ROOT"] = str(ROOT)
    known = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(KERNEL), known]))
    startup = ROOT / "build/ipython/profile_default/startup/watch_pictures.py"
    startup.parent.mkdir(parents=True, exist_ok=True)
    startup.write_text("import look\n\nlook.watch(get_ipython())\ndel look\n", encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(ROOT / "build/ipython")
    # pages are executed side by side; threads that wait for each other would take most of the time
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app.connect("env-get-outdated", remove_outdated)
    app.connect("env-before-read-docs", spread_executed)
    app.connect("source-read", note_page)
    app.connect("doctree-read", keep_files)
    return {"env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
