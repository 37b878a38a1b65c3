from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tracetorch as tt
from tests.browser import TIMEOUT, Visits
from tracetorch import snn


def test_pages_are_shown_whole_and_keep_when_the_file_is_gone(tmp_path: Path) -> None:
    recorded, playground = tmp_path / "run.html", tmp_path / 'a "neuron".html'
    tt.plot.save_html({"0.mem": torch.rand(5, 1, 3)}, recorded, title="<a> & 'b'")
    tt.plot.save_playground(snn.LIF(1), playground)
    for path in (recorded, str(playground)):
        page = tt.plot.show_html(path, height=321)
        text = Path(path).read_text()
        Path(path).unlink()
        frame = page._repr_html_()
        held = re.fullmatch(
            r'<iframe srcdoc="([^"]*)" title="[^"]*" style="[^"]*"></iframe>', frame
        )
        assert held is not None
        assert html.unescape(held[1]) == text
        assert "height: 321px" in frame
        assert repr(page) == f"InlinePage({str(path)!r})"


WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda d: tt.plot.show_html(d / "missing.html"), FileNotFoundError, "missing.html"),
    (lambda d: tt.plot.show_html(3), TypeError, "path must be a string or a Path, got 3"),  # type: ignore[arg-type]
    (
        lambda d: tt.plot.show_html(d / "run.html", height=0),
        ValueError,
        "height must be at least 1",
    ),
    (lambda d: tt.plot.show_html(d / "run.txt"), ValueError, "run.txt is no HTML page"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_arguments(call: Any, error: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text("spikes")
    (tmp_path / "run.html").write_text("<!doctype html>")
    with pytest.raises(error, match=message):
        call(tmp_path)


@pytest.mark.slow
def test_frames_run_inside_a_page(visits: Visits, tmp_path: Path) -> None:
    tt.plot.save_html({"0.mem": torch.rand(5, 1, 3)}, tmp_path / "run.html", title="A run")
    tt.plot.save_playground(snn.LIF(1), tmp_path / "neuron.html", title="A neuron")
    frames = [tt.plot.show_html(tmp_path / n)._repr_html_() for n in ("run.html", "neuron.html")]
    notebook = tmp_path / "notebook.html"
    notebook.write_text("<!doctype html><body>" + "".join(frames))
    page = visits.open(notebook)
    found = [frame for frame in page.frames if frame is not page.main_frame]
    for frame in found:
        frame.wait_for_selector("body[data-ready]", timeout=TIMEOUT)
    assert [frame.title() for frame in found] == ["A run", "A neuron"]
