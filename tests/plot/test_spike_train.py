from __future__ import annotations

import numpy as np
import pytest
import torch

import tracetorch as tt
from tests.plot.cases import spikes


def test_rows_are_shaded_by_absolute_value() -> None:
    ax = tt.plot.spike_train([torch.tensor([0.0, 0.5]), torch.tensor([-1.0, 0.25])])
    (image,) = ax.images
    assert image.get_array().tolist() == [[0, 0.5], [1, 0.25]]
    assert image.get_clim() == (0, 1)
    assert ax.get_ylim() == (1.5, -0.5)
    assert ax.get_title() == "Spike Train Raster"


def test_values_beyond_1_extend_the_scale() -> None:
    assert tt.plot.spike_train([torch.tensor([0.0, 4.0])]).images[0].get_clim() == (0, 4)


def test_positional_arguments_draw_ticks() -> None:
    output = spikes(3, 9)
    ax = tt.plot.spike_train(list(output), 2.0, 1.5, 0.7, "ticks", False)
    (lines,) = ax.collections
    where = [(2.0 * row, step) for row, step in output.nonzero().tolist()]
    found = [(s[:, 1].mean(), s[0, 0]) for s in lines.get_segments()]  # type: ignore[attr-defined]
    assert found == where
    assert {float(np.ptp(s[:, 1])) for s in lines.get_segments()} == {1.5}  # type: ignore[attr-defined]
    assert lines.get_linewidth()[0] == 0.7  # type: ignore[index]
    assert ax.get_title() == "ticks"


@pytest.mark.parametrize(("rows", "every"), [(12, 1), (13, 2), (30, 3)])
def test_rows_are_labelled_from_0_by_at_most_12_numbers(rows: int, every: int) -> None:
    ax = tt.plot.spike_train(list(torch.ones(rows, 2)), 2.0)
    labels = [(tick.get_text(), tick.get_position()[1]) for tick in ax.get_yticklabels()]
    assert labels == [(str(row), 2.0 * row) for row in range(0, rows, every)]
