from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import SURROGATES
from tests.plot.cases import model, spikes
from tracetorch import snn
from tracetorch.functional import Surrogate
from tracetorch.plot import MeasurementManager


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


def test_histogram_counts_neurons_by_rate_silent_ones_too() -> None:
    output = torch.zeros(10, 2, 4)
    output[:5, :, 1] = 1  # rate 0.5
    output[:, :, 2] = -1  # rate 1, downwards
    output[0, 0, 3] = 0.25  # rate 0.05, scaled
    ax = tt.plot.rate_histogram(output, bins=10)
    (bars,) = ax.patches
    data = bars.get_data()  # type: ignore[attr-defined]
    assert data.values.tolist() == [50, 0, 0, 0, 0, 25, 0, 0, 0, 25]
    assert data.edges.tolist() == pytest.approx(np.linspace(0, 1, 11).tolist())
    assert bars.get_label() == "all neurons\nmean 0.388, 25 % silent"
    two: Any = tt.plot.rate_histogram({"a": torch.zeros(4, 1, 2), "b": torch.ones(4, 1, 8)}, bins=4)
    assert two.patches[0].get_data().values.tolist() == [100, 0, 0, 0]
    assert two.patches[1].get_data().values.tolist() == [0, 0, 0, 100]
    quiet = torch.zeros(3, 2, 4)
    assert tt.plot.rate_histogram(quiet).patches[0].get_data().values[0] == 100  # type: ignore[attr-defined]
    mesh = tt.plot.rate_map(quiet).collections[0]
    assert mesh.get_array().max() == 0
    assert mesh.get_clim() == (0, 1)


def test_map_shows_every_neuron_at_every_step_and_layers_share_their_colours() -> None:
    output = spikes(7, 5, 3)
    ax = tt.plot.rate_map(output)
    assert np.allclose(ax.collections[0].get_array(), output.mean(1).T)
    assert ax.get_ylim() == (2.5, -0.5)
    ax = tt.plot.rate_map({"a": torch.zeros(4, 1, 2), "b": torch.ones(4, 1, 8)})
    assert {mesh.get_clim() for mesh in ax.collections} == {(0.0, 1.0)}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a\n2 neurons", "b\n8 neurons"]


@given(steps=st.integers(1, 12), window=st.integers(1, 15))
def test_partial_windows_average_their_own_steps(steps: int, window: int) -> None:
    output = spikes(steps, 2, 3)
    mesh = tt.plot.rate_map(output, window=window).collections[0]
    expected = torch.stack([part.mean((0, 1)) for part in output.split(window)], 1)
    assert np.allclose(mesh.get_array(), expected)
    columns = mesh.get_coordinates()[0, :, 0]  # type: ignore[attr-defined]
    assert columns[0] == -0.5
    assert columns[-1] == steps - 0.5


def test_cells_are_the_norms_of_layers_at_steps_and_marked_where_not_finite() -> None:
    gradients = {"a": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "b": torch.ones(2, 2, 2, 4)}
    ax = tt.plot.gradient_flow(gradients)
    (mesh,) = ax.collections
    norms: Any = mesh.get_array()
    assert norms.filled(-1).tolist() == [[5.0, -1.0], [4.0, 4.0]]
    assert mesh.get_clim() == (4.0, 5.0)
    assert ax.get_ylim() == (2, 0)
    gradients = {"a": torch.tensor([1.0, torch.nan, torch.inf, 0.0])}
    drawn: Any = tt.plot.gradient_flow(gradients)
    flow, broken = (mesh.get_array() for mesh in drawn.collections)
    assert flow.mask.tolist() == [[False, True, True, True]]
    assert broken.mask.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("value", [0.0, 1e-30, torch.nan])
def test_equal_or_missing_norms_have_a_colour_scale(value: float) -> None:
    ax = tt.plot.gradient_flow({"a": torch.full((3, 2), value)})
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    low, high = ax.collections[0].get_clim()
    assert 0 < low < high
    assert np.isfinite(high)


def test_values_are_drawn_over_steps_in_a_colour_and_a_legend_of_their_own() -> None:
    loss = torch.tensor(0.25, requires_grad=True)
    ax = tt.plot.line_graph([1, 0.5, loss], "training", "loss", xlabel="epoch")
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert line.get_ydata().tolist() == [1, 0.5, 0.25]  # type: ignore[union-attr]
    assert (ax.get_title(), ax.get_xlabel()) == ("training", "epoch")
    ax = tt.plot.line_graph([1.0], "t", "train")
    tt.plot.line_graph(torch.tensor([2.0]), "t", "test", ax=ax)
    assert len({line.get_color() for line in ax.lines}) == 2
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["train", "test"]
    assert tt.plot.line_graph([1.0, 2.0], "t").get_legend() is None


plot: Any = tt.plot


def test_seeds_are_a_mean_and_a_band_of_tensors_or_arrays() -> None:
    seeds = [[4.0, 2.0, 1.0], torch.tensor([2.0, 4.0])]
    ax = plot.learning_curves({"a": seeds, "b": [3.0, 5.0]}, xlabel="round", ylabel="loss")
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert ax.lines[0].get_ydata().tolist() == [3, 3, 1]  # the second seed has ended before
    assert ax.lines[1].get_ydata().tolist() == [3, 5]
    (band,) = ax.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1, 2), (1, 4), (2, 2), (2, 4), (3, 1)} == corners
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["a\nmean of 2", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("round", "loss")
    table = np.array([[4.0, 2.0], [2.0, 6.0]])
    mixed = [table[0], table[1].tolist()]
    for curve in (table, torch.tensor(table), list(table), mixed, tuple(table)):
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


def test_plot_has_a_line_for_each_decay() -> None:
    measured = MeasurementManager("accuracy", (0.9, 0.0))
    for value in (0.0, 1.0):
        measured.append(value)
    ax = measured.plot("digits")
    assert [line.get_label() for line in ax.lines] == ["decay 0", "decay 0.9\nhalf-life 6.58"]
    assert ax.lines[0].get_ydata().tolist() == [0, 1]  # type: ignore[union-attr]
    assert ax.lines[1].get_ydata().tolist() == pytest.approx([0, 1 / 1.9])  # type: ignore[union-attr]
    assert (ax.get_title(), ax.get_ylabel()) == ("digits", "accuracy")


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
