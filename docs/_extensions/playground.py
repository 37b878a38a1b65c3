"""Write the playgrounds into the built pages, beside the page that shows them."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

from examples.playground import write, write_network


def write_playground(app: Sphinx, error: Exception | None) -> None:
    """Write the pages where ``use/playground.md`` links to them."""
    if error is None and app.builder.format == "html":
        write(Path(app.outdir) / "use" / "neuron_playground.html")
        write_network(Path(app.outdir) / "use" / "network_playground.html")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the writer with Sphinx."""
    app.connect("build-finished", write_playground)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
