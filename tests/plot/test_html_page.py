from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tracetorch import snn


def drawing_page(_: None, path: Path, title: str) -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 4), snn.LIF(4), nn.Linear(4, 2), snn.Readout(2)
    )
    tt.export.page(model.eval(), path, {"a dot": torch.eye(8)[None]}, steps=3, title=title)


# whatever writes a page for a browser, and when the page is ready
READY = "body[data-ready]"
WRITERS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "A run": (tt.plot.save_html, {"0.mem": torch.rand(5, 1, 3)}, READY),
    "A neuron": (tt.plot.save_playground, snn.LIF(1), READY),
    "A drawing": (drawing_page, None, "body[data-ready=true]"),
    "A bar": (tt.plot.save_animation, torch.ones(3, 1, 2, 4, 4), "img[src^=data]"),
}


def write(title: str, path: Path) -> None:
    function, shown, _ = WRITERS[title]
    function(shown, path, title=title)


@pytest.mark.parametrize(
    "writer",
    [
        "A run",
        "A bar",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("A neuron", "A drawing")),
    ],
)
def test_pages_are_shown_whole_and_keep_when_the_file_is_gone(writer: str, tmp_path: Path) -> None:
    path = tmp_path / 'a "page" & <more>.html'
    write(writer, path)
    page = tt.plot.show_html(str(path), height=321)
    text = path.read_text()
    path.unlink()
    frame = page._repr_html_()
    held = re.fullmatch(r'<iframe srcdoc="([^"]*)" title="[^"]*" style="[^"]*"></iframe>', frame)
    assert held is not None
    assert html.unescape(held[1]) == text
    assert "height: 321px" in frame
    assert repr(page) == f"InlinePage({str(path)!r})"
