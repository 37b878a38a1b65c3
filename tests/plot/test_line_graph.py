from __future__ import annotations

import torch

import tracetorch as tt


def test_values_are_drawn_over_steps() -> None:
    loss = torch.tensor(0.25, requires_grad=True)
    ax = tt.plot.line_graph([1, 0.5, loss], "training", "loss")
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert line.get_ydata().tolist() == [1, 0.5, 0.25]  # type: ignore[union-attr]
    assert (ax.get_title(), ax.get_xlabel()) == ("training", "step")
    assert tt.plot.line_graph([1.0], "t", xlabel="epoch").get_xlabel() == "epoch"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["loss"]


def test_second_line_on_the_same_axes_has_another_colour() -> None:
    ax = tt.plot.line_graph([1.0], "t", "train")
    tt.plot.line_graph(torch.tensor([2.0]), "t", "test", ax=ax)
    assert len({line.get_color() for line in ax.lines}) == 2
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["train", "test"]


def test_there_is_no_legend_without_a_label() -> None:
    assert tt.plot.line_graph([1.0, 2.0], "t").get_legend() is None
