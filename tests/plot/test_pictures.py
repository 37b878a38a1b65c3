"""Compare some plots with the pictures in ``baseline/`` (``python -m tests.plot.cases``)."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

import tracetorch as tt
from tests.plot.cases import BASELINE, PICTURES, PLOTS, baseline, outputs, picture

# root mean square over pixels from 0 to 255: releases of matplotlib blend edges differently
TOLERANCE = 2.0


@pytest.mark.parametrize("name", PICTURES)
def test_plot_matches_its_baseline(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made.png"
    picture(PLOTS[name], made)
    difference = compare_images(str(baseline(name)), str(made), TOLERANCE)
    assert difference is None, difference


def test_baselines_are_complete_and_small_and_one_moved_spike_shows(tmp_path: Path) -> None:
    kept = list(BASELINE.glob("*.png"))
    assert set(kept) == {baseline(name) for name in PICTURES}
    assert all(path.stat().st_size < 8_000 for path in kept)
    moved = outputs()
    sent = moved["0.output"]
    step, neuron = sent[:-1, 0].nonzero()[(sent[1:, 0][sent[:-1, 0] > 0] == 0)][0].tolist()
    sent[step, 0, neuron], sent[step + 1, 0, neuron] = 0, 1
    picture(lambda **k: tt.plot.raster(moved, **k), tmp_path / "moved.png")
    difference = compare_images(
        str(baseline("raster bands")), str(tmp_path / "moved.png"), TOLERANCE
    )
    assert difference is not None
