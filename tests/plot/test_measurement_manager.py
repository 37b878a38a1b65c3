from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracetorch.plot import MeasurementManager

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
