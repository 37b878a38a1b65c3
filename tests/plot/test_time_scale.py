"""Time in milliseconds: the same pictures, a step from ``t * dt`` to ``(t + 1) * dt``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import tracetorch as tt
from tests.plot.cases import spikes, uniform

plot: Any = tt.plot

SPIKES, STATES = spikes(6, 2, 3), uniform(6, 2, 3)


def test_a_raster_in_milliseconds() -> None:
    by_step, by_ms = (plot.raster(SPIKES, dt=dt) for dt in (None, 0.5))
    steps, times = ([s[0][0] for s in ax.collections[0].get_segments()] for ax in (by_step, by_ms))
    assert np.allclose(times, (np.array(steps) + 0.5) * 0.5)
    assert by_ms.get_xlim() == (0, 3)
    assert (by_step.get_xlabel(), by_ms.get_xlabel()) == ("time step", "time (ms)")


def test_states_and_spikes_in_milliseconds() -> None:
    ax = plot.state_trace(STATES, spikes=torch.ones(6, 2, 3), dt=2.0)
    assert ax.lines[0].get_xdata().tolist() == [1, 3, 5, 7, 9, 11]
    assert [s[0][0] for s in ax.collections[0].get_segments()] == [1, 3, 5, 7, 9, 11]
    assert ax.get_xlim() == (0, 12)


def test_rates_in_hertz() -> None:
    by_step, by_ms = (plot.rate_map(SPIKES, window=4, dt=dt) for dt in (None, 0.5))
    values = [np.asarray(ax.collections[0].get_array()) for ax in (by_step, by_ms)]
    assert np.allclose(values[1], 2000 * values[0])  # two steps a millisecond
    edges = by_ms.collections[0].get_coordinates()[0, :, 0]
    assert edges.tolist() == [0, 2, 3]
    histogram = plot.rate_histogram(SPIKES, dt=0.5)
    plain = plot.rate_histogram(SPIKES)
    assert np.isclose(histogram.get_xlim()[1], 2000 * plain.get_xlim()[1])
    assert histogram.get_xlabel() == "firing rate (Hz)"
    heights = [ax.patches[0].get_data().values for ax in (histogram, plain)]
    assert np.allclose(*heights)
    silent = plot.rate_histogram(torch.zeros(3, 1, 2), dt=0.5)
    assert silent.get_xlim() == (0, 2000)
