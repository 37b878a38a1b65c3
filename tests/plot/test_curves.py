from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt


def test_values_are_drawn_over_steps_in_a_colour_and_a_legend_of_their_own() -> None:
    loss = torch.tensor(0.25, requires_grad=True)
    ax = tt.plot.line_graph([1, 0.5, loss], "training", "loss")
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert line.get_ydata().tolist() == [1, 0.5, 0.25]  # type: ignore[union-attr]
    assert (ax.get_title(), ax.get_xlabel()) == ("training", "step")
    assert tt.plot.line_graph([1.0], "t", xlabel="epoch").get_xlabel() == "epoch"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["loss"]
    ax = tt.plot.line_graph([1.0], "t", "train")
    tt.plot.line_graph(torch.tensor([2.0]), "t", "test", ax=ax)
    assert len({line.get_color() for line in ax.lines}) == 2
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["train", "test"]
    assert tt.plot.line_graph([1.0, 2.0], "t").get_legend() is None


plot: Any = tt.plot


def test_seeds_are_a_mean_and_a_band_of_tensors_or_arrays() -> None:
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
