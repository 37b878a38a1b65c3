from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from tests.demo.cases import bars
from tracetorch.demo.figure import draw
from tracetorch.demo.network import ConvSNN


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_figure_is_drawn_also_for_a_silent_network(tmp_path: Path, steps: int, gain: float) -> None:
    torch.manual_seed(0)
    image, label = bars(1)[0]
    draw(ConvSNN(), gain * image, int(label), steps, tmp_path / "picture.png")
    height, width, _ = imread(tmp_path / "picture.png").shape
    assert width > 2 * height > 600
    assert (tmp_path / "picture.png").stat().st_size < 150_000
