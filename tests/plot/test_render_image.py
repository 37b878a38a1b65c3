from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt
from tests.plot.cases import uniform


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5)])
def test_grey_images_are_scaled_to_their_range(shape: tuple[int, ...]) -> None:
    image = 10 * uniform(*shape) - 3
    ax = tt.plot.render_image(image, title="grey")
    shown = ax.images[0]
    assert np.allclose(shown.get_array(), image.reshape(4, 5))
    assert shown.get_clim() == (image.min().item(), image.max().item())
    assert len(ax.figure.axes) == 2  # and its colour bar
    assert ax.get_title() == "grey"


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_one_value_are_drawn(channels: int) -> None:
    image = torch.full((channels, 2, 2), 0.5)
    shown = tt.plot.render_image(image, vmin=0.5, vmax=0.5).images[0]
    assert np.isfinite(shown.get_array()).all()


def test_range_colours_bytes_and_size() -> None:
    assert tt.plot.render_image(uniform(4, 5), vmin=-1, vmax=2).images[0].get_clim() == (-1, 2)
    image = uniform(3, 4, 5)
    image[0, 0, 0] = 1.5
    shown = tt.plot.render_image(image).images[0].get_array()
    assert np.allclose(shown, image.clamp(0, 1).movedim(0, 2))
    halved = tt.plot.render_image(image, vmax=2.0).images[0].get_array()
    assert np.allclose(halved, image.movedim(0, 2) / 2)
    image = torch.full((3, 2, 2), 51, dtype=torch.uint8)
    assert np.allclose(tt.plot.render_image(image).images[0].get_array(), 0.2)
    image = uniform(4, 5)
    figures: Any = tt.plot.render_image(image).figure, tt.plot.render_image(image, (3, 2)).figure
    assert [figure.get_size_inches().tolist() for figure in figures] == [[4, 4], [3, 2]]
