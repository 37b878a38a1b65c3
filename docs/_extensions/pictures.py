"""Give the pictures of executed cells their alternative text, from the option ``:alt:``.

A cell that draws says what its picture shows, ``:alt: A membrane leaks.``; the cell behind it, or
the cell itself, asserts it. ``tests/docs/test_pictures.py`` finds drawing cells that do not.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


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
    app.connect("doctree-read", describe_pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
