"""Compare some plots with the pictures in ``baseline/`` (``python -m tests.plot.cases``)."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

import tracetorch as tt
from tests.plot.cases import PICTURES, PLOTS, baseline, picture

# root mean square over pixels from 0 to 255: releases of matplotlib blend edges differently
TOLERANCE = 2.0


@pytest.mark.parametrize("name", PICTURES)
def test_plot_matches_its_baseline(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made.png"
    picture(PLOTS[name], made)
    difference = compare_images(str(baseline(name)), str(made), TOLERANCE)
    assert difference is None, difference


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
