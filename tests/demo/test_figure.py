from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.demo.cases import bars
from tracetorch.demo.figure import draw
from tracetorch.demo.network import ConvSNN


def test_axes_say_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    torch.manual_seed(0)
    draw(ConvSNN(), bars(3)[2][0], 2, 5, tmp_path / "picture.png")
    digit, first, second, readout = figures[0].axes
    assert digit.get_title() == "input: a held-out 2"
    assert digit.get_xlabel() == "the same current at every step"
    assert first.get_title().startswith("lif1: 0.")
    assert first.get_xlabel() == ""
    assert second.get_title().endswith(" spikes per neuron and step")
    assert second.get_xlabel() == "time step"
    assert readout.get_title().startswith("readout: the network says ")
    assert readout.get_xlabel() == "time step (shaded: T=5, as trained)"
    assert readout.get_xticks().tolist() == [0, 5, 10, 15]


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_figure_is_drawn_also_for_a_silent_network(tmp_path: Path, steps: int, gain: float) -> None:
    torch.manual_seed(0)
    image, label = bars(1)[0]
    draw(ConvSNN(), gain * image, int(label), steps, tmp_path / "picture.png")
    height, width, _ = imread(tmp_path / "picture.png").shape
    assert width > 2 * height > 600
    content = (tmp_path / "picture.png").read_bytes()
    assert len(content) < 150_000
    assert b"Software" not in content  # releases of matplotlib write the same file
