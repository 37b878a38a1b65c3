from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from tests.demo.cases import bars
from tracetorch.demo.figure import ROWS, draw, raster
from tracetorch.demo.network import ConvSNN


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_the_picture_is_drawn_also_of_a_silent_network(
    tmp_path: Path, steps: int, gain: float
) -> None:
    torch.manual_seed(0)
    image, label = bars(1)[0]
    draw(ConvSNN(), gain * image, int(label), steps, tmp_path / "picture.png")
    height, width, _ = imread(tmp_path / "picture.png").shape
    assert width > 2 * height > 600
    assert (tmp_path / "picture.png").stat().st_size < 150_000


def test_a_raster_goes_from_the_busiest_neuron_to_the_quietest_that_fires() -> None:
    spikes = torch.tensor([[0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1.0], [0, 1, 0, 1]])
    assert raster(spikes).T.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 0]]


def test_a_raster_has_few_rows() -> None:
    many = (torch.rand(20, 1000, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    counts = raster(many).sum(0)
    assert len(counts) == ROWS
    assert counts[0] == many.sum(0).max()
    assert (counts.diff() <= 0).all()
    assert raster(torch.zeros(20, 1000)).shape == (20, 0)
