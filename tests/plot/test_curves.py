from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tracetorch as tt
from tests.cases import SURROGATES
from tracetorch.functional import Surrogate
from tracetorch.plot import MeasurementManager


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


finite = st.floats(-100, 100)


@given(values=st.lists(finite, min_size=1, max_size=12), decay=st.floats(0, 0.999))
def test_averages_are_exponentially_weighted(values: list[float], decay: float) -> None:
    measured = MeasurementManager("m", [decay])
    for value in values:
        measured.append(value)
    weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert measured.measurement[-1].item() == pytest.approx(expected, abs=1e-6)


def test_first_average_is_the_first_value_and_pickles_go_on() -> None:
    measured = MeasurementManager("loss")
    measured.append(torch.tensor([2.5], requires_grad=True))
    assert measured.measurement[0].tolist() == pytest.approx([2.5] * 4)
    assert measured.decay.tolist() == [0.0, 0.9, 0.99, 0.999]
    measured = MeasurementManager("m", [0.5])
    measured.append(4.0)
    again = pickle.loads(pickle.dumps(measured))
    again.append(1.0)
    assert again.measurement[-1].item() == 2.0
    assert len(measured.measurement) == 1


def test_plot_has_a_line_for_each_decay_the_slowest_the_strongest() -> None:
    measured = MeasurementManager("accuracy", (0.9, 0.0))
    for value in (0.0, 1.0):
        measured.append(value)
    ax = measured.plot("digits")
    assert [line.get_label() for line in ax.lines] == ["decay 0", "decay 0.9\nhalf-life 6.58"]
    assert ax.lines[0].get_ydata().tolist() == [0, 1]  # type: ignore[union-attr]
    assert ax.lines[1].get_ydata().tolist() == pytest.approx([0, 1 / 1.9])  # type: ignore[union-attr]
    assert (ax.get_title(), ax.get_ylabel()) == ("digits", "accuracy")
    measured = MeasurementManager("accuracy", (0.9, 0.0, 0.5))
    measured.append(1.0)
    *others, slowest = measured.plot().lines
    assert str(slowest.get_label()).startswith("decay 0.9")
    assert slowest.get_alpha() == 1
    assert [line.get_alpha() for line in others] == pytest.approx([0.35, 0.55])
    assert all(line.get_linewidth() < slowest.get_linewidth() for line in others)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_curves_are_the_derivatives(surrogate: Surrogate) -> None:
    (line,) = [
        line
        for line in tt.plot.surrogate_curves(surrogate).lines
        if line.get_label() == repr(surrogate)
    ]
    u = torch.as_tensor(np.asarray(line.get_xdata()))
    assert np.allclose(line.get_ydata(), surrogate.derivative(u).expand_as(u))


def test_callables_are_labelled_and_the_default_is_every_surrogate() -> None:
    def soft(u: Tensor) -> Tensor:
        return torch.sigmoid(u)

    ax: Any
    with torch.no_grad():
        ax = tt.plot.surrogate_curves({"mine": soft}, reach=3.0)
        again = tt.plot.surrogate_curves([soft], reach=3.0)
    assert max(np.asarray(ax.lines[0].get_ydata())) == pytest.approx(0.25)
    assert ax.get_xlim() == (-3, 3)
    assert [ax.lines[0].get_label(), again.lines[0].get_label()] == ["mine", "soft"]
    ax = tt.plot.surrogate_curves([lambda u: torch.sigmoid(u), lambda u: torch.sigmoid(2 * u)])
    assert [max(line.get_ydata()) for line in ax.lines[:2]] == pytest.approx([0.25, 0.5])
    labels = [line.get_label() for line in tt.plot.surrogate_curves().lines]
    names = [n for n in tt.functional.__all__ if n.endswith("_surrogate")]
    assert sorted(str(label).partition("(")[0] for label in labels[:-1]) == sorted(names)
