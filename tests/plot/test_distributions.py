from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tracetorch as tt


def normal(count: int, mean: float = 0.0, seed: int = 0) -> Tensor:
    return mean + torch.randn(count, generator=torch.Generator().manual_seed(seed))


def curve(line: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_curves_are_densities_of_the_values() -> None:
    ax = tt.plot.distributions({"a": normal(4000), "b": normal(4000, 5.0, 1)}, "two")
    for line, mean in zip(ax.lines, (0.0, 5.0), strict=True):
        x, density = curve(line)
        assert density.sum() * (x[1] - x[0]) == pytest.approx(1.0, abs=1e-3)
        exact = np.exp(-0.5 * (x - mean) ** 2) / math.sqrt(2 * math.pi)
        assert np.abs(density - exact).max() < 0.03


def test_bandwidth_is_the_standard_deviation_of_the_kernel_by_silvermans_rule() -> None:
    ax = tt.plot.distributions([torch.tensor([-10.0, 10.0])], "two", bandwidths=[0.5])
    _, density = curve(ax.lines[0])
    assert density.max() == pytest.approx(0.5 / (0.5 * math.sqrt(2 * math.pi)), rel=1e-3)
    values = [torch.tensor([0.0, 2.0]), torch.tensor([1.0, 10.0])]
    ax = tt.plot.distributions(values, "two", bandwidths=[0.5, 1.0])
    assert ax.get_xlim() == pytest.approx((-2.0, 13.0))
    assert ax.get_ylim()[0] == 0
    x = normal(200)
    width = x.std().item() * (4 / (3 * 200)) ** 0.2
    left, right = (tt.plot.distributions([x], "t", bandwidths=b) for b in (None, [width]))
    assert np.allclose(curve(left.lines[0]), curve(right.lines[0]))


def test_subsampled_values_have_the_same_density_and_equal_ones_are_lines() -> None:
    many = normal(50_000)
    few = tt.plot.distributions([many], "few", max_kde_samples=500, n_grid=101, bandwidths=[0.2])
    all_ = tt.plot.distributions([many], "all", n_grid=101, bandwidths=[0.2])
    x, density = curve(few.lines[0])
    assert len(x) == 101
    assert np.abs(np.interp(x, *curve(all_.lines[0])) - density).max() < 0.01
    ax: Any = tt.plot.distributions(
        [torch.ones(5), torch.arange(101.0)], "t", show_percentile_lines=True
    )
    assert list(ax.lines[0].get_xdata()) == [1, 1]
    assert [line.get_xdata()[0] for line in ax.lines[2:]] == [25, 50, 75]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["layer 0", "layer 1"]
