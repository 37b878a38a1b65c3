"""The playground begins with neurons that fire, and presets that do what they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from examples import playground
from tracetorch import fuse, snn
from tracetorch.plot.playground_data import is_spiking
from tracetorch.plot.playground_story import (
    PRESETS,
    RUNS,
    STARTS,
    STEPS,
    STIMULI,
    Stimulus,
)

ONSET = 10  # as the page has it
NEURONS = playground.neurons()


def drive(stimulus: Stimulus, steps: int, share: float = 1.0) -> Tensor:
    """Return pulses or a constant ``[T, 1, 1]``, as the page makes them."""
    t = torch.arange(steps)
    on = t >= ONSET
    if stimulus.kind == "pulses":
        on &= (t - ONSET) % stimulus.period < stimulus.width
    return (share * stimulus.amplitude * on.double())[:, None, None]


def spikes(layer: snn.Neuron, stimulus: Stimulus, steps: int, share: float = 1.0) -> Tensor:
    layer = layer.double()
    with torch.no_grad(), fuse.backend("eager"):
        return tt.unroll(layer, drive(stimulus, steps, share), from_rest=True).flatten()


def intervals(fired: Tensor) -> list[int]:
    found: list[int] = fired.nonzero().flatten().diff().tolist()
    return found


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [n for n, each in NEURONS.items() if is_spiking(each)])
def test_a_neuron_begins_where_it_fires_and_not_at_an_edge(name: str) -> None:
    steps = RUNS.get(name, STEPS)
    stimulus = STIMULI.get(name, Stimulus())
    counts = [
        int(spikes(NEURONS[name], stimulus, steps, share).count_nonzero())
        for share in (1.0, 0.97, 1.03)
    ]
    assert 2 <= counts[0] <= steps / 2, counts
    assert max(counts) - min(counts) <= max(1, 0.15 * counts[0]), counts


@pytest.mark.parametrize(("name", "state"), [(n, s) for n, each in STARTS.items() for s in each])
def test_initial_states_follow_their_parameter(name: str, state: str) -> None:
    parameter, factor = STARTS[name][state]
    layer = getattr(tt.neurons, name)(1, **{parameter: -0.25 if factor < 0 else -61.0})
    value = float(getattr(layer, parameter).detach())
    assert float(getattr(layer, f"initial_{state}")) == pytest.approx(factor * value, rel=1e-6)


def test_presets_are_those_of_their_papers() -> None:
    for name, presets in PRESETS.items():
        assert len({each.name for each in presets}) == len(presets) >= 5
        for preset in presets:
            layer = getattr(tt.neurons, name)(1, **preset.arguments)
            assert set(preset.arguments) <= set(layer.constraints)
    rows = {each.name: each for each in PRESETS["AdEx"]}
    assert len(rows) == 8
    # 100 pF, 10 nS, 90 ms, -10 nS, 30 pA, 110 pA: table 1, delayed regular bursting
    bursting = rows["delayed bursting"]
    assert bursting.stimulus.amplitude == 11.0
    expected = {"a": -1.0, "b": 3.0, "v_rest": -65.0, "v_reset": -47.0}
    assert {name: bursting.arguments[name] for name in expected} == expected
    assert bursting.arguments["beta"] == pytest.approx(0.9048, abs=1e-4)
    assert bursting.arguments["rho"] == pytest.approx(0.9890, abs=1e-4)


def fired(name: str, preset: str, **arguments: Any) -> Tensor:
    (row,) = [each for each in PRESETS[name] if each.name == preset]
    layer = getattr(tt.neurons, name)(1, **row.arguments, **arguments)
    return spikes(layer, row.stimulus, RUNS[name])


@pytest.mark.slow
def test_presets_of_adex_fire_as_they_are_called() -> None:
    found = {each.name: fired("AdEx", each.name, substeps=4) for each in PRESETS["AdEx"]}
    gaps = {name: intervals(each) for name, each in found.items()}
    first = {name: int(each.argmax()) for name, each in found.items()}
    assert max(gaps["tonic"][1:]) - min(gaps["tonic"][1:]) <= 1
    assert gaps["adapting"][-1] > 2 * gaps["adapting"][0]
    assert gaps["initial burst"][-1] > 3 * gaps["initial burst"][0]
    for name in ("bursting", "delayed bursting"):
        long = [each for each in gaps[name] if each > 3 * min(gaps[name])]
        assert 1 <= len(long) < len(gaps[name]) / 2, (name, gaps[name])
    assert gaps["accelerating"][-1] < gaps["accelerating"][0]
    assert first["accelerating"] > 40
    assert first["delayed bursting"] > first["bursting"]
    assert found["transient"][: ONSET + 50].any()
    assert not found["transient"][ONSET + 50 :].any()
    assert len(set(gaps["irregular"])) > 4


def test_presets_of_izhikevich_fire_as_they_are_called() -> None:
    gaps = {each.name: intervals(fired("Izhikevich", each.name)) for each in PRESETS["Izhikevich"]}
    assert gaps["RS"][-1] > gaps["RS"][0]
    assert gaps["IB"][-1] > 2 * gaps["IB"][0]
    assert max(gaps["CH"]) > 5 * min(gaps["CH"])
    assert sum(each > 5 * min(gaps["CH"]) for each in gaps["CH"]) >= 2
    assert len(gaps["FS"]) > 1.5 * len(gaps["RS"])
