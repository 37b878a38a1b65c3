"""Show a saved page inline in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from tracetorch.core.checks import check_count


@dataclass(frozen=True)
class InlinePage:
    """A page that a notebook shows where it is the value of a cell: see :func:`show_html`.

    Example:
        >>> InlinePage("run.html", "<p>", 480)
        InlinePage('run.html')
    """

    path: str  # of the file that was read
    page: str  # its text
    height: int  # of the frame in pixels

    def __repr__(self) -> str:
        return f"InlinePage({self.path!r})"

    def _repr_html_(self) -> str:
        """Return a frame with the whole page in it, which needs no server and no file."""
        # in a frame of its own, so that neither style nor script touches the notebook
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" title="{html.escape(self.path)}" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )


def show_html(path: str | Path, *, height: int = 600) -> InlinePage:
    """Show a saved page inline in a notebook: a recording, a playground, an animation, a drawing.

    The page is read, and becomes part of the notebook: it is there when the file is not.

    Args:
        path: path of the page.
        height: height of the frame in pixels; its width is that of the cell.

    Returns:
        What Jupyter, VS Code and Colab show where it is the last value of a cell.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: ``height`` is less than 1, or the file is no HTML.

    Example:
        >>> import tempfile
        >>> from tracetorch.plot import save_html
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_html({"0.mem": torch.rand(50, 1, 3)}, f"{folder}/run.html")
        ...     page = show_html(f"{folder}/run.html")
        >>> page._repr_html_()[:36]
        '<iframe srcdoc="&lt;!doctype html&gt'
    """
    height = check_count("show_html: height", height)
    text = Path(path).read_text(encoding="utf-8")
    if "<html" not in text[:2000].lower() and "<!doctype html" not in text[:200].lower():
        raise ValueError(f"show_html: {path} is no HTML page. save_html writes one.")
    return InlinePage(str(path), text, height)
