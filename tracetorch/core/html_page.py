"""Write self-contained HTML pages, style, data and script in one file, and show them inline."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tracetorch.core.checks import check_count
from tracetorch.core.files import atomic_replace

SHARED = Path(__file__).parent / "page"


def check_title(caller: str, title: object) -> None:
    """Raise ``TypeError`` where the title of a page is no string."""
    if not isinstance(title, str):
        raise TypeError(f"{caller}: title must be a string, got {type(title).__name__}.")


def write_page(
    path: str | Path, caller: str, folder: Path, title: str, data: str, parts: Sequence[Path] = ()
) -> None:
    """Write a page, as :func:`html_page` fills it, by ``caller``, the public function."""
    check_title(caller, title)
    page = html_page(folder, title, data, parts)
    with atomic_replace(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def html_page(folder: Path, title: str, data: str, parts: Sequence[Path] = ()) -> str:
    """Fill the shared page with a folder's contents, style and script, and data, which are HTML."""
    template = folder / folder.name
    page, texts = (_text(part.with_suffix(".html")) for part in (SHARED, template))
    style, script = (
        "".join(
            _text(part) for part in (*parts, template.with_suffix(suffix)) if part.suffix == suffix
        )
        for suffix in (".css", ".js")
    )
    filling = {
        "{{title}}": html.escape(title),
        "{{style}}": _text(SHARED.with_suffix(".css")) + style,
        "{{contents}}": texts.rstrip(),
        "{{data}}": data,
        "{{script}}": _text(SHARED.with_suffix(".js")) + "{\n" + script + "}\n",
    }
    # in one go, so that inserted content is never searched for placeholders
    return re.sub(r"\{\{\w+\}\}", lambda found: filling[found[0]], page)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def json_element(name: str, value: object) -> str:
    """Return the script element ``name`` that holds ``value`` as JSON; no text in it ends it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json" id="{name}">{text}</script>'


@dataclass(frozen=True)
class InlinePage:
    """A page that a notebook shows where it is the value of a cell: see :func:`show_html`."""

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
        What a notebook shows where it is the last value of a cell.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: ``height`` is below 1, or the file is no HTML.

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
