from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

import tracetorch as tt
from tests.plot.cases import outputs, recording, spikes
from tracetorch.plot.canvas import COLOURS


def ticks(ax: Axes) -> dict[str, list[tuple[float, float]]]:
    """Where ticks are drawn, as (step, middle), by the colour they have."""
    found: dict[str, list[tuple[float, float]]] = {}
    for lines in ax.collections:
        colour = "down" if lines.get_color()[0][:3].tolist() == rgb(COLOURS[1]) else "up"  # type: ignore[attr-defined]
        found.setdefault(colour, []).extend(
            (float(x), float(low + high) / 2)
            for (x, low), (_, high) in lines.get_segments()  # type: ignore[attr-defined]
        )
    return found


def rgb(colour: str) -> list[float]:
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def test_a_tick_stands_where_a_neuron_fired() -> None:
    sent = recording()["2.output"]
    found = ticks(tt.plot.raster(sent, sample=1))
    for name, sign in (("up", 1), ("down", -1)):
        where = (sent[:, 1] == sign).nonzero().tolist()
        assert [(x, pytest.approx(y)) for x, y in found[name]] == [tuple(w) for w in where]


def test_without_a_batch() -> None:
    sent = recording()["0.output"]
    assert ticks(tt.plot.raster(sent[:, 2], sample=None)) == ticks(tt.plot.raster(sent, sample=-1))


def test_layers_stand_above_each_other_in_bands_of_one_height() -> None:
    ax = tt.plot.raster({"a": torch.ones(2, 1, 1), "b": torch.ones(2, 1, 99)})
    found = ticks(ax)["up"]
    assert ax.get_ylim() == (2, 0)
    assert found[:2] == [(0, pytest.approx(0.5)), (1, pytest.approx(0.5))]
    rows = [y for x, y in found[2:] if x == 0]
    assert len(rows) == 99
    assert 1 < min(rows) < max(rows) < 2
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a\n1 neuron", "b\n99 neurons"]


def test_a_limit_goes_from_the_busiest_neuron_to_the_quietest_that_fires() -> None:
    sent = torch.tensor([[0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1.0], [0, 1, 0, 1]])[:, None]
    ax = tt.plot.raster(sent, limit=9)
    counts = [sum(y == row for _, y in ticks(ax)["up"]) for row in range(3)]
    assert counts == [4, 2, 1]
    assert ax.get_ylabel() == "3 of 4 neurons"


def test_a_limit_shows_few_rows_evenly() -> None:
    many = spikes(20, 1, 1000)
    rows = [y for _, y in ticks(tt.plot.raster(many, limit=30))["up"]]
    counts = torch.tensor([rows.count(row) for row in range(30)])
    order = many.sum((0, 1)).sort(descending=True).values
    assert len(set(rows)) == 30
    assert counts[0] == order[0]
    assert (counts.diff() <= 0).all()
    assert counts[15] == pytest.approx(order[len(order) // 2].item(), abs=1)


@pytest.mark.parametrize("limit", [None, 3])
def test_silence_is_drawn_as_such(limit: int | None) -> None:
    ax = tt.plot.raster(torch.zeros(4, 1, 2), limit=limit)
    assert ticks(ax) in ({}, {"up": []})
    assert ax.get_xlim() == (-0.5, 3.5)


def test_refuses_a_limit_that_is_none() -> None:
    with pytest.raises(ValueError, match="raster: limit must be at least 1, got 0"):
        tt.plot.raster(outputs(), limit=0)


def test_nothing_is_drawn_where_an_argument_is_wrong() -> None:
    ax = tt.plot.line_graph([1.0], "kept")
    before = len(ax.get_children())
    wrong: dict[str, Tensor] = {"a": torch.ones(3, 2, 1), "b": torch.ones(3, 1, 1)}
    with pytest.raises(ValueError, match="raster: sample must lie in 0 to 0, got 1"):
        tt.plot.raster(wrong, sample=1, ax=ax)
    assert len(ax.get_children()) == before
