from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import tracetorch as tt

GALLERY = Path(__file__).parents[2] / "examples" / "gallery.py"


@pytest.mark.slow
def test_gallery_draws_every_plot(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--out", str(tmp_path), "--rounds", "2"])
    runpy.run_path(str(GALLERY), run_name="__main__")
    made = {path.stem for path in tmp_path.iterdir() if path.stat().st_size > 1_000}
    functions = set(tt.plot.__all__) - {"MeasurementManager", "animate_events", "animate_run"}
    others = {"decays", "save_animation", "save_html", "save_playground", "show_html"}
    assert functions - others <= made
    assert {path.name for path in tmp_path.iterdir()} >= {
        *("events.gif", "events.html", "neuron.html", "run.gif", "run.html")
    }
    assert f"{len(list(tmp_path.iterdir()))} pictures and pages" in capsys.readouterr().out
