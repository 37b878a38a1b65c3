from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.plot.cases import model
from tracetorch import snn


def test_decays_are_copies_for_every_layer() -> None:
    net: Any = snn.TTModule()
    net.cells = [snn.SRLIF(3, alpha=0.3, beta=0.8, gamma=0.6), nn.Linear(3, 3)]
    net.readout = snn.Readout(2, beta_rank=0)
    copied = tt.plot.decays(net)
    assert sorted(copied) == ["cells.0.alpha", "cells.0.beta", "cells.0.gamma", "readout.beta"]
    with torch.no_grad():
        for raw in net.cells[0].parameters():
            raw.add_(1.0)
    for path, value in (("alpha", 0.3), ("beta", 0.8), ("gamma", 0.6)):
        torch.testing.assert_close(copied[f"cells.0.{path}"], torch.full((3,), value))
    assert not torch.equal(tt.plot.decays(net)["cells.0.beta"], copied["cells.0.beta"])
    assert list(tt.plot.decays(snn.LIF(2))) == ["beta"]


def test_rows_are_histograms_of_halflives_before_and_after() -> None:
    net = nn.Sequential(snn.LIF(3, beta=tt.functional.halflife_to_decay(torch.tensor([2.0, 2, 8]))))
    ax = tt.plot.halflives(net, bins=10)
    (bars,) = ax.patches
    height, edges, _ = bars.get_data()  # type: ignore[attr-defined]
    filled = np.nonzero(height)[0]
    assert height[filled].tolist() == pytest.approx([0.85, 0.425])
    assert all(edges[i] <= h <= edges[i + 1] for i, h in zip(filled, (2, 8), strict=True))
    assert ax.get_xscale() == "log"
    assert ax.get_legend() is None
    before = tt.plot.decays(model())
    ax = tt.plot.halflives(before, model(2.0))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["before", "after"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.alpha", "0.beta", "1.beta"]
    dots: Any = [line for line in ax.lines if line.get_marker() == "o"]
    halflife = pytest.approx(tt.functional.decay_to_halflife(0.9), rel=1e-5)
    assert [line.get_xdata()[0] for line in dots] == [halflife] * 2
    means = []
    for bars in ax.patches[2:4]:  # of 0.beta
        height, edges, floor = bars.get_data()  # type: ignore[attr-defined]
        means.append(np.average(np.log(edges[:-1]), weights=height - floor))
    assert means[1] - means[0] == pytest.approx(np.log(2), abs=0.15)
