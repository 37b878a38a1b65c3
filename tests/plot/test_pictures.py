"""Compare some plots with the pictures in ``baseline/`` (``python -m tests.plot.cases``)."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

from tests.plot.cases import PICTURES, PLOTS, baseline, picture

# root mean square over pixels from 0 to 255: releases of matplotlib blend edges differently
TOLERANCE = 2.0


@pytest.mark.parametrize("name", PICTURES)
def test_plot_matches_its_baseline(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made.png"
    picture(PLOTS[name], made)
    difference = compare_images(str(baseline(name)), str(made), TOLERANCE)
    assert difference is None, difference
