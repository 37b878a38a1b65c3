"""Publish the pages: descriptions for search and previews, ``sitemap.xml``, ``llms.txt``, sources.

The description of a page is its first paragraph. ``llms.txt`` lists all pages with theirs, in the
order of the contents, for programs that read.
"""

from __future__ import annotations

import importlib
import inspect
import re
from html import escape, unescape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

REPOSITORY = "https://github.com/Yegor-men/tracetorch"
SITE = "https://yegor-men.github.io/tracetorch/"
PICTURE = "_static/demo.png"
LONGEST = 300  # of a description, in characters


def description(tree: nodes.document) -> str:
    """Return the first paragraph of a page as text, cut behind a word."""
    for paragraph in tree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = " ".join(paragraph.astext().split())
            if len(text) > LONGEST:
                text = text[:LONGEST].rpartition(" ")[0] + " ..."
            return text
    return ""


def keep_description(app: Sphinx, tree: nodes.document) -> None:
    """Remember the description of a page that was read."""
    app.env.metadata[app.env.docname]["description"] = description(tree)


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Write what search engines and previews show; link to sources that are in the repository."""
    if page.startswith("reference/names/"):  # made by the build
        context["page_source_suffix"] = ""
    text = app.env.metadata.get(page, {}).get("description", "")
    address, title = app.config.html_baseurl, context.get("title", "")
    tags = {
        "og:site_name": app.config.project,
        "og:type": "website",
        "og:title": re.sub("<.*?>", "", unescape(title)) or app.config.project,
        "og:url": f"{address}{page}.html",
        "og:image": f"{address}{PICTURE}",
        "og:image:alt": "A digit, the spikes it causes in two layers, and the readout",
    }
    lines = [f'<meta property="{name}" content="{escape(value)}">' for name, value in tags.items()]
    if text:
        lines.append(f'<meta name="description" content="{escape(text)}">')
        lines.append(f'<meta property="og:description" content="{escape(text)}">')
    lines.append('<meta name="twitter:card" content="summary_large_image">')
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def write_indices(app: Sphinx, error: Exception | None) -> None:
    """Write ``sitemap.xml`` and ``llms.txt`` beside the pages."""
    if error is not None or app.builder.format != "html":
        return
    address, env = app.config.html_baseurl, app.env
    pages = [app.config.root_doc, *_in_order(app, app.config.root_doc)]
    urls = "".join(f"  <url><loc>{address}{page}.html</loc></url>\n" for page in pages)
    Path(app.outdir, "sitemap.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}</urlset>\n'
    )
    lines = [f"# {app.config.project}", "", f"> {env.metadata[pages[0]]['description']}", ""]
    for page in pages[1:]:
        text = env.metadata[page].get("description", "")
        title = env.titles[page].astext()
        lines.append(f"- [{title}]({address}{page}.html){f': {text}' if text else ''}")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines) + "\n")


def _in_order(app: Sphinx, page: str) -> list[str]:
    """Return the pages below one, depth first, each once."""
    found: dict[str, None] = {}
    for below in app.env.toctree_includes.get(page, []):
        found.update(dict.fromkeys([below, *_in_order(app, below)]))
    return list(found)


def source_address(domain: str, info: dict[str, str]) -> str | None:
    """Return the address of the lines that define a documented name; for ``linkcode_resolve``."""
    if domain != "py" or not info["module"]:
        return None
    thing: Any = importlib.import_module(info["module"])
    for name in info["fullname"].split("."):
        thing = inspect.getattr_static(thing, name, None)
        thing = getattr(thing, "fget", None) or getattr(thing, "__func__", None) or thing
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "").resolve()
        lines, first = inspect.getsourcelines(thing)
        relative = path.relative_to(Path(__file__).resolve().parents[2])
    except (TypeError, ValueError, OSError):  # a number, a name of another package
        return None
    return f"{REPOSITORY}/blob/main/{relative}#L{first}-L{first + len(lines) - 1}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("doctree-read", keep_description)
    app.connect("html-page-context", describe)
    app.connect("build-finished", write_indices)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
