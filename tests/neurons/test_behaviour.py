"""Behaviour of the neurons: adaptation, refractory periods, patterns of spikes, resonance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from tests.cases import stepped
from tracetorch import neurons, snn


def spike_times(layer: snn.Neuron, current: float | Tensor, steps: int) -> Tensor:
    """Return the steps at which one neuron fires."""
    x = torch.as_tensor(current, dtype=torch.float64).expand(steps).reshape(steps, 1, 1)
    with torch.no_grad():
        return stepped(layer.double(), x).flatten().nonzero().flatten()


@pytest.mark.parametrize(
    ("layer", "current"),
    [
        (neurons.ALIF(1, strength=0.1), 0.3),
        (neurons.SEAdLIF(1, a=0.0, b=0.2), 2.0),
        (neurons.AdLIF(1, a=0.0, b=0.2), 2.0),
        (neurons.AdEx(1), 33.3),
        (neurons.Izhikevich(1), 10.0),
    ],
    ids=repr,
)
def test_adaptation_lengthens_the_intervals(layer: snn.Neuron, current: float) -> None:
    intervals = spike_times(layer, current, 400).diff()
    assert len(intervals) >= 4
    assert intervals[-1] > 1.4 * intervals[0]
    assert (intervals[1:] >= intervals[0]).all()


@pytest.mark.parametrize("period", [0, 1, 2, 5])
def test_refractory_period_is_exact(period: int) -> None:
    times = spike_times(neurons.RefractoryLIF(1, period=period, strength=0.0), 100.0, 60)
    assert times[0] == 0
    assert (times.diff() == period + 1).all()


@pytest.mark.parametrize("layer", [neurons.EIF(1), neurons.QIF(1), neurons.AdEx(1)], ids=repr)
def test_a_rheobase_divides_rest_from_firing(layer: Any) -> None:
    rest = float(layer.v_rest.detach())
    assert len(spike_times(layer, 0.0, 300)) == 0
    # the exponential drives a little at rest
    assert float(layer.v) == pytest.approx(rest, abs=1.5)
    counts = []
    for current in (1.0, 20.0, 40.0, 80.0):
        layer.zero_states()
        counts.append(len(spike_times(layer, current, 300)))
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts)


def test_izhikevich_presets_fire_as_in_the_paper() -> None:
    def intervals_of(preset: str, current: float) -> Tensor:
        layer = neurons.Izhikevich(1, **neurons.Izhikevich.presets[preset])
        return spike_times(layer, current, 1000).diff()

    regular, fast, low = (intervals_of(name, 10.0).double() for name in ("RS", "FS", "LTS"))
    # regular spiking adapts after its first spikes
    assert (regular[1:] > 1.5 * regular[0]).all()
    assert 15 <= len(regular) <= 30
    # fast spiking is fast, and does not
    assert len(fast) > 3 * len(regular)
    assert fast[:5].mean() == pytest.approx(fast[-5:].mean(), abs=5)
    # low-threshold spiking starts fast and adapts
    assert low[:2].mean() < 0.5 * low[2:].mean()
    assert len(low) > 2 * len(regular)
    # intrinsically bursting: one burst, then single spikes
    once = intervals_of("IB", 10.0)
    assert once[0] <= 6
    assert (once[1:] > 25).all()
    # chattering: a burst of four, and short bursts again and again
    again = intervals_of("CH", 10.0)
    assert (again[:3] <= 6).all()
    assert ((again <= 6) | (again > 40)).all()
    assert (again <= 6).sum() >= (again > 40).sum() >= 15
    layer = neurons.Izhikevich(1, **neurons.Izhikevich.presets["TC"])
    x = torch.zeros(500)
    x[100:250] = -10.0
    times = spike_times(layer, x, 500)
    assert len(times) >= 1
    assert int(times.min()) >= 250


@pytest.mark.parametrize(("preset", "oscillates"), [("RZ", True), ("RS", False)])
def test_izhikevich_resonator_oscillates_below_the_threshold(preset: str, oscillates: bool) -> None:
    layer = neurons.Izhikevich(1, **neurons.Izhikevich.presets[preset]).double()
    x = torch.zeros(600, 1, 1, dtype=torch.float64)
    x[400] = 0.5
    with tt.fuse.backend("eager"):
        _, seen = tt.unroll(layer, x, record=["v"])
    away = (seen["v"][400:500] - seen["v"][399]).flatten()
    crossings = int((away[1:].sign() != away[:-1].sign()).sum())
    assert (crossings >= 5) == oscillates, crossings


@pytest.mark.parametrize(
    ("layer", "strength", "periods"),
    [
        (neurons.RF(1), 0.12, (8, 20, 60)),
        (neurons.BRF(1, omega=10.0, b_offset=0.5), 3.0, (20, 63, 200)),
    ],
    ids=["RF", "BRF"],
)
def test_resonators_answer_to_their_own_period(layer, strength, periods) -> None:
    counts = []
    for period in periods:
        layer.zero_states()
        wave = strength * torch.sin(2 * math.pi * torch.arange(600) / period)
        counts.append(len(spike_times(layer, wave, 600)))
    assert counts[1] > 0
    assert counts[0] == counts[2] == 0


def test_oscillations_and_two_compartments_neither_diverge_nor_forget() -> None:
    layer = neurons.BRF(1, omega=50.0, b_offset=1e-4, pos_threshold=1e6)
    x = torch.zeros(2000)
    x[0] = 100.0
    spike_times(layer, x, 2000)
    assert 0.1 < math.hypot(float(layer.real), float(layer.imag)) < 1.01
    pulse = torch.zeros(600, 1, 1)
    pulse[0] = 1.0
    with tt.fuse.backend("eager"):
        _, seen = tt.unroll(neurons.TCLIF(1, pos_threshold=10.0), pulse, record=["dendrite"])
    assert seen["dendrite"][-50:].abs().max() > 0.95


def test_a_gated_neuron_of_closed_gates_is_an_lif() -> None:
    x = torch.rand(40, 1, 3, generator=torch.Generator().manual_seed(0))
    gates: Any = {"leak_gate": 1 - 1e-7, "input_gate": 1e-7, "reset_gate": 1 - 1e-7}
    lif = snn.LIF(3, beta=0.8, pos_threshold=0.5, reset="zero")
    assert torch.equal(stepped(neurons.GLIF(3, **gates, beta=0.8), x), stepped(lif, x))
