"""Fill the templates of self-contained HTML pages: style, data and script in one file."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from tracetorch.core.files import atomic_replace

SHARED = Path(__file__).parent / "page"


def check_title(caller: str, title: object) -> None:
    """Raise ``TypeError`` where the title of a page is no string."""
    if not isinstance(title, str):
        raise TypeError(f"{caller}: title must be a string, got {type(title).__name__}.")


def write_page(
    path: str | Path, caller: str, folder: Path, title: str, data: str, parts: Sequence[Path] = ()
) -> None:
    """Write a page, as :func:`html_page` fills it; an existing file is replaced when all is there.

    Args:
        path: of the file.
        caller: the public function, for messages.
        folder: with contents, a style and a script of its own name.
        title: of the page, as plain text.
        data: the elements that hold the data, as HTML.
        parts: styles and scripts beside them, in their order.
    """
    check_title(caller, title)
    page = html_page(folder, title, data, parts)
    with atomic_replace(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def html_page(folder: Path, title: str, data: str, parts: Sequence[Path] = ()) -> str:
    """Fill the page that all pages share with contents, style and script of a folder, and data.

    Style and script are those of the folder, behind those that all pages share and those of parts
    that some do. The scripts of parts and folder have one scope, in which what one declares the
    next ones use.
    """
    template = folder / folder.name
    page, contents = (_text(part.with_suffix(".html")) for part in (SHARED, template))
    style, script = (
        "".join(
            _text(part) for part in (*parts, template.with_suffix(suffix)) if part.suffix == suffix
        )
        for suffix in (".css", ".js")
    )
    filling = {
        "{{title}}": html.escape(title),
        "{{style}}": _text(SHARED.with_suffix(".css")) + style,
        "{{contents}}": contents.rstrip(),
        "{{data}}": data,
        "{{script}}": _text(SHARED.with_suffix(".js")) + "{\n" + script + "}\n",
    }
    pieces: list[str] = []
    for placeholder, content in filling.items():
        # in the order of the page, so that inserted content is never searched for placeholders
        before, page = page.split(placeholder)
        pieces += [before, content]
    return "".join([*pieces, page])


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def json_element(name: str, value: object) -> str:
    r"""Return the script element ``name`` that holds ``value`` as JSON.

    The characters that could end the element are escaped.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold.

    Example:
        >>> json_element("run", {"title": "</script>"})
        '<script type="application/json" id="run">{"title":"\\u003c/script\\u003e"}</script>'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json" id="{name}">{text}</script>'
