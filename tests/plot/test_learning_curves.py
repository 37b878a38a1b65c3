from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt

plot: Any = tt.plot


def test_seeds_are_a_mean_and_a_band() -> None:
    seeds = [[4.0, 2.0, 1.0], torch.tensor([2.0, 4.0])]
    ax = plot.learning_curves({"a": seeds, "b": [3.0, 5.0]}, ylabel="loss", title="x")
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert ax.lines[0].get_ydata().tolist() == [3, 3, 1]  # the second seed has ended before
    assert ax.lines[1].get_ydata().tolist() == [3, 5]
    (band,) = ax.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1, 2), (1, 4), (2, 2), (2, 4), (3, 1)} == corners
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["a\nmean of 2", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    table = plot.learning_curves({"a": torch.tensor([[4.0, 2.0], [2.0, 4.0]])}, xlabel="round")
    assert table.lines[0].get_ydata().tolist() == [3, 3]
    assert table.get_xlabel() == "round"


def test_arrays_are_taken_as_tensors_are() -> None:
    table = np.array([[4.0, 2.0], [2.0, 6.0]])
    for curve in (table, list(table), [table[0], table[1].tolist()], tuple(table)):
        (line,) = plot.learning_curves({"a": curve}).lines
        assert line.get_ydata().tolist() == [3, 4]
    for curve in (table[0], list(table[0]), [np.array(4.0), torch.tensor(2.0)]):
        (line,) = plot.learning_curves({"a": curve}).lines
        assert line.get_ydata().tolist() == [4, 2]


@pytest.mark.parametrize(("best", "epoch"), [("highest", 2), ("lowest", 3)])
def test_the_best_epoch_is_marked(best: Any, epoch: int) -> None:
    ax = plot.learning_curves({"a": [2.0, 3.0, 1.0, math.nan]}, best=best)
    line, mark = ax.lines
    assert np.isnan(line.get_ydata()[3])  # a gap, where the training has diverged
    assert mark.get_xdata() == [epoch]
    assert len(plot.learning_curves({"a": [math.nan]}, best=best).lines) == 1
