"""Behaviour of the neurons, and of those of voltage beside their equations, solved finely."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import tracetorch as tt
from tests.cases import few, layer, sequence, stepped
from tests.fuse.cases import agree
from tracetorch import fuse, neurons, snn


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


Array = npt.NDArray[np.float64]
Slopes = Callable[..., tuple[Array, ...]]

FINE = 0.02  # ms


def solve(slopes: Slopes, start: list[float], x: Array, peak: float, reset: Any) -> Array:
    """Return the spikes in each millisecond, by the midpoint method; ``x`` is ``[ms, neurons]``."""
    states: list[Array] = [np.full(x.shape[1], value) for value in start]
    spikes = np.zeros_like(x)
    for t, drive in enumerate(x):
        for _ in range(round(1 / FINE)):
            half = [s + 0.5 * FINE * d for s, d in zip(states, slopes(*states, drive), strict=True)]
            change = slopes(*half, drive)
            states = [s + FINE * d for s, d in zip(states, change, strict=True)]
            fired = states[0] > peak
            spikes[t] += fired
            after = reset(*states)
            states = [np.where(fired, a, s) for a, s in zip(after, states, strict=True)]
    return spikes


def eif(x: Array) -> Array:
    """Fourcaud-Trocme et al. 2003, equation 1 with its constants."""

    def slopes(v: Array, drive: Array) -> tuple[Array, ...]:
        grown = 3.48 * np.exp(np.minimum((v + 59.9) / 3.48, 10))
        return ((-(v + 65) + grown + drive) / 10,)

    return solve(slopes, [-65.0], x, -42.5, lambda v: (-68.0,))


def qif(x: Array) -> Array:
    """Latham et al. 2000."""

    def slopes(v: Array, drive: Array) -> tuple[Array, ...]:
        return (((v + 65) * (v + 50) / 15 + drive) / 10,)

    return solve(slopes, [-65.0], x, -30.0, lambda v: (-68.0,))


def adex(x: Array, p: dict[str, float]) -> Array:
    """Brette and Gerstner 2005, in pF, nS, mV, ms and pA."""

    def slopes(v: Array, w: Array, drive: Array) -> tuple[Array, ...]:
        grown = p["g"] * p["delta"] * np.exp(np.minimum((v - p["v_t"]) / p["delta"], 10))
        current = -p["g"] * (v - p["rest"]) + grown - w + drive
        return current / p["c"], (p["a"] * (v - p["rest"]) - w) / p["tau_w"]

    peak = p["v_t"] + 5 * p["delta"]
    return solve(slopes, [p["rest"], 0.0], x, peak, lambda v, w: (p["reset"], w + p["b"]))


PAPER = {"c": 281.0, "g": 30.0, "rest": -70.6, "v_t": -50.4, "delta": 2.0, "tau_w": 144.0}
PAPER |= {"a": 4.0, "b": 80.5, "reset": -70.6}
# Naud et al. 2008, table 1: delayed regular bursting, at 110 pA
BURSTING = {"c": 100.0, "g": 10.0, "rest": -65.0, "v_t": -50.0, "delta": 2.0, "tau_w": 90.0}
BURSTING |= {"a": -10.0, "b": 30.0, "reset": -47.0}


def izhikevich(x: Array) -> Array:
    """Izhikevich 2003, fast spiking."""

    def slopes(v: Array, u: Array, drive: Array) -> tuple[Array, ...]:
        return 0.04 * v * v + 5 * v + 140 - u + drive, 0.1 * (0.2 * v - u)

    return solve(slopes, [-65.0, -13.0], x, 30.0, lambda v, u: (-65.0, u + 2))


def spikes(made: Any, x: Array) -> Array:
    """Return the spikes ``[ms, neurons]`` of a layer, in float64."""
    with torch.no_grad(), fuse.backend("eager"):
        return tt.unroll(made.double(), torch.from_numpy(x)[:, None])[:, 0].numpy()


# Constant inputs, from strong inhibition to a strong drive, in each neuron's unit.
DECLARED = {
    "EIF": (eif, [-300.0, -30.0, 1.0, 8.0, 20.0, 40.0]),
    "QIF": (qif, [-300.0, -30.0, 3.0, 10.0, 40.0, 100.0]),
    "AdEx": (lambda x: adex(30 * x, PAPER), [-300.0, -30.0, 10.0, 33.3, 50.0, 100.0]),
    "Izhikevich": (izhikevich, [-300.0, -30.0, 2.0, 5.0, 10.0, 20.0]),
}


def declared(name: str, num_neurons: int, **arguments: Any) -> Any:
    preset = neurons.Izhikevich.presets["FS"] if name == "Izhikevich" else {}
    return getattr(neurons, name)(num_neurons, **preset, **arguments)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", DECLARED)
def test_spikes_converge_to_the_equations(name: str) -> None:
    reference, inputs = DECLARED[name]
    x = np.tile(inputs, (250, 1))
    expected = reference(x).sum(0)
    assert (expected == 0).sum() == 3
    assert (expected[3:] > 2).all()
    faults = {}
    for substeps in (1, 4, 16):
        found = spikes(declared(name, len(inputs), substeps=substeps), x).sum(0)
        faults[substeps] = np.abs(found - expected)
    assert not any(fault[:3].any() for fault in faults.values())
    assert faults[1].sum() >= 2 * faults[4].sum() >= 2 * faults[16].sum()
    assert faults[1].sum() >= 4
    assert (faults[16] <= 1 + 0.05 * expected).all()


@pytest.mark.parametrize("name", DECLARED)
@pytest.mark.parametrize("x", [-100.0, -300.0, -3000.0, -30000.0])
def test_no_inhibition_makes_it_fire(name: str, x: float) -> None:
    for substeps in (1, 3):
        made = getattr(neurons, name)(1, substeps=substeps)
        assert not spikes(made, np.full((60, 1), x)).any()
        assert -9 * abs(x) - 300 < made.v.item() < -65


@pytest.mark.slow
def test_bursts_need_small_steps() -> None:
    p, x = BURSTING, np.full((240, 1), 110.0)
    expected = np.flatnonzero(adex(x, p))
    names: dict[str, Any] = {"v_rest": p["rest"], "v_t": p["v_t"], "delta": p["delta"]}
    names |= {"beta": math.exp(-p["g"] / p["c"]), "rho": math.exp(-1 / p["tau_w"])}
    names |= {"a": p["a"] / p["g"], "b": p["b"] / p["g"]}
    names |= {"v_reset": p["reset"], "v_peak": p["v_t"] + 5 * p["delta"]}

    def bursts(times: npt.NDArray[Any]) -> list[int]:
        return [len(b) for b in np.split(times, np.flatnonzero(np.diff(times) > 25) + 1)]

    assert bursts(expected) == [4, 4, 4]
    sent = {k: spikes(neurons.AdEx(1, substeps=k, **names), x / p["g"]) for k in (1, 16)}
    found = {k: np.flatnonzero(each) for k, each in sent.items()}
    assert bursts(found[16]) == bursts(expected)
    assert np.abs(found[16] - expected).max() <= 2
    assert len(found[1]) == 15
    assert 4 not in bursts(found[1])
    # several spikes in a step are counted
    assert neurons.EIF(1, substeps=10)(torch.full((1, 1), 3000.0)).item() > 1


@pytest.mark.parametrize("name", few(DECLARED, "QIF"))
def test_kernels_of_substeps_equal_stepping(name: str) -> None:
    scale = {"EIF": 40.0, "QIF": 60.0, "AdEx": 60.0, "Izhikevich": 20.0}[name]
    made, x = layer(name, 3, substeps=2), scale * sequence(16, 2, 3, dtype=torch.float32).abs()
    assert fuse.unsupported_reason("cpu", made, x) is None
    agree(made, x, "cpu")


@pytest.mark.parametrize("name", DECLARED)
def test_gradient_of_substeps_is_that_of_the_value(name: str) -> None:
    flat = tt.functional.boxcar_surrogate(1e-3)  # below the peak nothing jumps
    made = getattr(neurons, name)(1, substeps=4, surrogate_derivative=flat).double()
    x = torch.full((6, 1, 1), 4.0, dtype=torch.float64, requires_grad=True)

    def voltage(x: Tensor) -> Tensor:
        made.zero_states()
        with fuse.backend("eager"):
            assert not tt.unroll(made, x).any()
        return made.v

    assert torch.autograd.gradcheck(voltage, (x,))
