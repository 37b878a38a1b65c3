from __future__ import annotations

import base64
import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tracetorch.core.spike_values import is_events
from tracetorch.plot import viewer_data
from tracetorch.plot.recorded import Array

shapes = array_shapes(min_dims=2, max_dims=2, max_side=8)


def unpack_events(packed: str, steps: int, neurons: int, wide: bool = False) -> Array:
    data = gzip.decompress(base64.b64decode(packed))
    offsets = np.frombuffer(data, "<u4", steps + 1)
    kind = np.dtype("<u4" if wide else "<u2")
    who = np.frombuffer(data, kind, offsets[-1], offset=4 * (steps + 1))
    rest = data[4 * (steps + 1) + kind.itemsize * len(who) :]
    signs = np.frombuffer(rest, "<i1") if rest else np.ones(len(who), "<i1")
    values = np.zeros((steps, neurons))
    for step in range(steps):
        at = slice(offsets[step], offsets[step + 1])
        assert (np.diff(who[at].astype(int)) > 0).all()  # the page searches them by halves
        values[step, who[at]] = signs[at]
    return values


def unpack_trace(packed: str, steps: int, neurons: int) -> tuple[Array, Array]:
    data = gzip.decompress(base64.b64decode(packed))
    low, level = np.frombuffer(data, "<f4", 2 * neurons).reshape(2, neurons)
    codes = np.frombuffer(data, "<u2", offset=8 * neurons).reshape(neurons, steps).T
    return np.where(
        codes == viewer_data.NOT_FINITE, np.nan, low + codes * level.astype(float)
    ), level


@given(arrays(np.int8, shapes, elements=st.sampled_from([-1, 0, 0, 1])))
def test_events_round_trip_exactly(values: Array) -> None:
    assert (unpack_events(viewer_data.pack_events(values), *values.shape) == values).all()


def test_events_of_many_neurons_use_32_bits() -> None:
    values = np.zeros((2, 70_000), np.float32)
    values[1, 69_999] = 0.5
    found = unpack_events(viewer_data.pack_events(values), 2, 70_000, wide=True)
    assert np.argwhere(found).tolist() == [[1, 69_999]]


numbers = st.floats(-1e6, 1e6, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])


@given(arrays(np.float32, shapes, elements=numbers))
def test_traces_round_trip_to_half_a_level(values: Array) -> None:
    found, level = unpack_trace(viewer_data.pack_trace(values), *values.shape)
    finite = np.isfinite(values)
    assert (np.isnan(found) == ~finite).all()
    rounding = 1e-6 * np.abs(values).max(0, initial=0, where=finite) + np.finfo(np.float32).tiny
    allowed = np.broadcast_to(0.51 * level + rounding, values.shape)
    assert (np.abs(found - values)[finite] <= allowed[finite]).all()


def test_levels_of_a_neuron_do_not_depend_on_others() -> None:
    values = np.stack([np.linspace(0, 1e6, 9), np.linspace(0, 1e-3, 9)], 1).astype(np.float32)
    found, _ = unpack_trace(viewer_data.pack_trace(values), 9, 2)
    assert np.allclose(found, values, rtol=1e-4, atol=1e-8)


def spikes(up: float = 1.0, down: float = -1.0) -> Array:
    values = np.zeros((4, 2, 3))
    values[::2, 0] = up
    values[1, 1] = down
    return values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros((4, 2, 3)), True),
        (np.ones((4, 2, 3)), True),
        (spikes(), True),
        (spikes(0.3, -2.5), True),
        (spikes() * np.array([0.5, 1.0, 2.0]), True),  # a learnt scale for each neuron
        (np.full((4, 2, 3), 0.5), False),
        (np.arange(24.0).reshape(4, 2, 3), False),
        (np.where(spikes() == 0, np.nan, 1.0), False),
        (np.maximum(np.sin(np.arange(24.0)), 0).reshape(4, 2, 3), False),
    ],
)
def test_spikes_are_distinguished_from_states(values: Array, expected: bool) -> None:
    assert is_events(values) is expected
