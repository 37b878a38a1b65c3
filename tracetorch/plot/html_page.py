"""Fill the templates of self-contained HTML pages: style, data and script in one file."""

from __future__ import annotations

import html
import json
from pathlib import Path

SHARED = Path(__file__).parent / "page"


def check_title(caller: str, title: object) -> None:
    """Raise ``TypeError`` where the title of a page is no string."""
    if not isinstance(title, str):
        raise TypeError(f"{caller}: title must be a string, got {type(title).__name__}.")


def html_page(folder: Path, title: str, data: str) -> str:
    """Fill the page that all pages share with contents, style and script of a folder, and data.

    Style and script are those of the folder, behind those that all pages share.

    Args:
        folder: with contents, a style and a script of its own name.
        title: of the page, as plain text.
        data: the elements that hold the data, as HTML.
    """
    template = folder / folder.name
    (page, contents), style, script = (
        [part.with_suffix(kind).read_text(encoding="utf-8") for part in (SHARED, template)]
        for kind in (".html", ".css", ".js")
    )
    filling = {
        "{{title}}": html.escape(title),
        "{{style}}": "".join(style),
        "{{contents}}": contents.rstrip(),
        "{{data}}": data,
        "{{script}}": "".join(script),
    }
    pieces: list[str] = []
    for placeholder, content in filling.items():
        # in the order of the page, so that inserted content is never searched for placeholders
        before, page = page.split(placeholder)
        pieces += [before, content]
    return "".join([*pieces, page])


def json_element(name: str, value: object) -> str:
    r"""Return the script element ``name`` that holds ``value`` as JSON.

    The characters that could end the element are escaped.

    Example:
        >>> json_element("run", {"title": "</script>"})
        '<script type="application/json" id="run">{"title":"\\u003c/script\\u003e"}</script>'
    """
    text = json.dumps(value, separators=(",", ":"))
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json" id="{name}">{text}</script>'
