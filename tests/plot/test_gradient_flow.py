from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt


def test_cells_are_the_norms_of_layers_at_steps_and_marked_where_not_finite() -> None:
    gradients = {"a": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "b": torch.ones(2, 2, 2, 4)}
    ax = tt.plot.gradient_flow(gradients)
    (mesh,) = ax.collections
    norms: Any = mesh.get_array()
    assert norms.filled(-1).tolist() == [[5.0, -1.0], [4.0, 4.0]]
    assert mesh.get_clim() == (4.0, 5.0)
    assert ax.get_ylim() == (2, 0)
    gradients = {"a": torch.tensor([1.0, torch.nan, torch.inf, 0.0])}
    drawn: Any = tt.plot.gradient_flow(gradients)
    flow, broken = (mesh.get_array() for mesh in drawn.collections)
    assert flow.mask.tolist() == [[False, True, True, True]]
    assert broken.mask.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("value", [0.0, 1e-30, torch.nan])
def test_equal_or_missing_norms_have_a_colour_scale(value: float) -> None:
    ax = tt.plot.gradient_flow({"a": torch.full((3, 2), value)})
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    low, high = ax.collections[0].get_clim()
    assert 0 < low < high
    assert np.isfinite(high)
