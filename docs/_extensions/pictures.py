"""Give the pictures of executed cells their alternative text, and show those of other pages.

A cell that draws says what its picture shows, ``:alt: A membrane leaks.``; the cell behind it, or
the cell itself, asserts it. ``tests/docs/test_pictures.py`` finds drawing cells that do not.

The directive ``gallery`` repeats pictures of other pages, each with a link to the part of the page
that draws it. A line names a page and how the alternative text begins,
``course/2_spikes: The membrane of``. Nothing is drawn a second time.
"""

from __future__ import annotations

import itertools

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)


class GalleryNode(nodes.General, nodes.Element):
    """Stand for the pictures until all pages have been read."""


class Gallery(SphinxDirective):
    """Show pictures of other pages: a line each, the page and the beginning of the text."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a node that :func:`fill_galleries` replaces."""
        chosen = [tuple(line.split(": ", 1)) for line in self.content if line.strip()]
        node = GalleryNode(chosen=chosen)
        self.set_source_info(node)
        return [node]


def fill_galleries(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Replace each gallery by its pictures, with links to where they come from."""
    numbers = itertools.count(1)
    for gallery in list(tree.findall(GalleryNode)):
        shown = nodes.container(classes=["gallery"])
        for source, beginning in gallery["chosen"]:
            pictures = {
                picture["alt"]: picture
                for picture in reversed(list(app.env.get_doctree(source).findall(nodes.image)))
                if picture["alt"].startswith(beginning)
            }
            if len(pictures) != 1:
                logger.warning(
                    "%d pictures of %s begin with %r",
                    len(pictures),
                    source,
                    beginning,
                    location=gallery,
                )
                continue
            (picture,) = pictures.values()
            figure = _figure(
                picture, app.builder.get_relative_uri(page, source), app.env.titles[source].astext()
            )
            figure["ids"] = [f"picture-{next(numbers)}"]
            shown += figure
        gallery.replace_self(shown)


def _figure(picture: nodes.image, address: str, title: str) -> nodes.figure:
    """Return a picture above the names of its page and section; both lead there."""
    section = picture
    while not isinstance(section, nodes.section):
        section = section.parent
    address = f"{address}#{section['ids'][0]}"
    copied = picture.deepcopy()
    copied["classes"] = ["picture"]
    name = nodes.reference("", f"{title}: {section[0].astext()}", internal=True, refuri=address)
    return nodes.figure(
        "",
        nodes.reference("", "", copied, internal=True, refuri=address),
        nodes.caption("", "", name),
    )


def describe_pictures(app: Sphinx, tree: nodes.document) -> None:
    """Set the alternative text of every picture; warn of one that has none."""
    for cell in tree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code":
            text = cell["cell_metadata"].get("alt")
            for picture in cell.findall(nodes.image):
                if text is not None:
                    picture["alt"] = text
    for picture in tree.findall(nodes.image):
        if not picture.get("alt"):
            logger.warning("a picture has no alternative text", location=picture)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_node(GalleryNode)
    app.add_directive("gallery", Gallery)
    app.connect("doctree-read", describe_pictures)
    app.connect("doctree-resolved", fill_galleries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
