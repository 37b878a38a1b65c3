"""A few plots as pictures, against those in ``baseline/`` (``python -m tests.plot.cases``)."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

import tracetorch as tt
from tests.plot.cases import BASELINE, PICTURES, PLOTS, baseline, outputs, picture

# root mean square over all pixels of 0 to 255: releases of matplotlib blend edges differently
TOLERANCE = 2.0


@pytest.mark.parametrize("name", PICTURES)
def test_looks_as_it_did(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made.png"
    picture(PLOTS[name], made)
    told = compare_images(str(baseline(name)), str(made), TOLERANCE)
    assert told is None, told


def test_the_tolerance_would_see_one_spike_that_moved(tmp_path: Path) -> None:
    moved = outputs()
    sent = moved["0.output"]
    step, neuron = sent[:-1, 0].nonzero()[(sent[1:, 0][sent[:-1, 0] > 0] == 0)][0].tolist()
    sent[step, 0, neuron], sent[step + 1, 0, neuron] = 0, 1
    picture(lambda **k: tt.plot.raster(moved, **k), tmp_path / "moved.png")
    told = compare_images(str(baseline("raster bands")), str(tmp_path / "moved.png"), TOLERANCE)
    assert told is not None


def test_the_kept_pictures_are_those_compared_and_small() -> None:
    kept = list(BASELINE.glob("*.png"))
    assert set(kept) == {baseline(name) for name in PICTURES}
    assert all(path.stat().st_size < 8_000 for path in kept)
