from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tracetorch as tt
from tests.plot.cases import spikes


def test_histogram_counts_neurons_by_rate_silent_ones_too() -> None:
    output = torch.zeros(10, 2, 4)
    output[:5, :, 1] = 1  # rate 0.5
    output[:, :, 2] = -1  # rate 1, downwards
    output[0, 0, 3] = 0.25  # rate 0.05, scaled
    ax = tt.plot.rate_histogram(output, bins=10)
    (bars,) = ax.patches
    data = bars.get_data()  # type: ignore[attr-defined]
    assert data.values.tolist() == [50, 0, 0, 0, 0, 25, 0, 0, 0, 25]
    assert data.edges.tolist() == pytest.approx(np.linspace(0, 1, 11).tolist())
    assert bars.get_label() == "all neurons\nmean 0.388, 25 % silent"
    two: Any = tt.plot.rate_histogram({"a": torch.zeros(4, 1, 2), "b": torch.ones(4, 1, 8)}, bins=4)
    assert two.patches[0].get_data().values.tolist() == [100, 0, 0, 0]
    assert two.patches[1].get_data().values.tolist() == [0, 0, 0, 100]
    quiet = torch.zeros(3, 2, 4)
    assert tt.plot.rate_histogram(quiet).patches[0].get_data().values[0] == 100  # type: ignore[attr-defined]
    mesh = tt.plot.rate_map(quiet).collections[0]
    assert mesh.get_array().max() == 0
    assert mesh.get_clim() == (0, 1)


def test_map_shows_every_neuron_at_every_step_and_layers_share_their_colours() -> None:
    output = spikes(7, 5, 3)
    ax = tt.plot.rate_map(output)
    assert np.allclose(ax.collections[0].get_array(), output.mean(1).T)
    assert ax.get_ylim() == (2.5, -0.5)
    ax = tt.plot.rate_map({"a": torch.zeros(4, 1, 2), "b": torch.ones(4, 1, 8)})
    assert {mesh.get_clim() for mesh in ax.collections} == {(0.0, 1.0)}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a\n2 neurons", "b\n8 neurons"]


@given(steps=st.integers(1, 12), window=st.integers(1, 15))
def test_partial_windows_average_their_own_steps(steps: int, window: int) -> None:
    output = spikes(steps, 2, 3)
    mesh = tt.plot.rate_map(output, window=window).collections[0]
    expected = torch.stack([part.mean((0, 1)) for part in output.split(window)], 1)
    assert np.allclose(mesh.get_array(), expected)
    columns = mesh.get_coordinates()[0, :, 0]  # type: ignore[attr-defined]
    assert columns[0] == -0.5
    assert columns[-1] == steps - 0.5


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
