"""Xylo: its neuron and int64 against the published simulator, spikes and states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt
from tests.cases import few
from tests.chips.reference import Xylo
from tests.integers.compiled import assert_compiled_is_eager
from tests.refusals import check, refusals
from tracetorch.chips import xylo

RECORDED = {
    "hidden.syn": "rec_i_syn",
    "hidden.syn2": "rec_i_syn2",
    "hidden.mem": "rec_v_mem",
    "output.syn": "rec_i_syn_out",
    "output.mem": "rec_v_mem_out",
    "previous.spikes": "rec_recurrent_spikes",
}


def random_configuration(seed: int) -> dict[str, Any]:
    """A network of any kind: sparse or dense, quiet or saturated, with aliases or without."""
    rng = np.random.default_rng(seed)
    inputs, hidden, outputs = rng.integers(1, 6), rng.integers(1, 9), rng.integers(1, 5)
    density, aliased = rng.random(), 0.4 * (seed % 3)
    scale = rng.integers(1, 16)  # bits of thresholds and biases
    version = 1 + seed % 2

    def weights(*shape: Any) -> Any:
        return rng.integers(-128, 128, shape) * (rng.random(shape) < density)

    def bias(number: Any) -> Any:
        return rng.integers(-(2**scale), 2**scale, number) * (version == 2)

    return {
        "weights_in": weights(inputs, hidden, 2),
        "weights_rec": weights(hidden, hidden, 2),
        "weights_out": weights(hidden, outputs),
        "threshold": rng.integers(1, 2**scale, hidden) * (np.arange(hidden) != seed),
        "threshold_out": rng.integers(1, 2**scale, outputs),
        "dash_mem": rng.integers(0, 16, hidden),
        "dash_mem_out": rng.integers(0, 16, outputs),
        "dash_syn": rng.integers(0, 16, (hidden, 2)),
        "dash_syn_out": rng.integers(0, 16, outputs),
        "bias": bias(hidden),
        "bias_out": bias(outputs),
        **{f"weight_shift_{part}": int(rng.integers(0, 8)) for part in ("in", "rec", "out")},
        "aliases": [[int(rng.integers(hidden))] * (rng.random() < aliased) for _ in range(hidden)],
        "version": version,
    }


def random_input(configuration: dict[str, Any], steps: int, batch: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    shape = (steps, batch, len(configuration["weights_in"]))
    return rng.integers(0, 18, shape) * (rng.random(shape) < rng.random())


def with_biases(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose biases, where there are none, are 0; of which version it is."""
    zero = {f"bias{e}": 0 * configuration[f"threshold{e}"] for e in ("", "_out")}
    found = {n: zero.get(n) if v is None else v for n, v in configuration.items()}
    return {"version": 1 if configuration["bias"] is None else 2, **found}


def simulated(configuration: dict[str, Any], x: Any) -> dict[str, Any]:
    """Run the published simulator, one sample after the other."""
    configuration = with_biases(configuration)
    simulator = pytest.importorskip(
        f"xylosim.v{configuration['version']}", reason="pip install -e '.[test-chips]'"
    )
    c = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in configuration.items()
    }
    held: list[Any] = []  # it keeps no references to its synapses

    def synapses(weights: Any) -> Any:
        made = [
            [
                simulator.XyloSynapse(target, synapse, weight)
                for target, row in enumerate(source)
                for synapse, weight in enumerate(row if isinstance(row, list) else [row])
                if weight
            ]
            for source in weights
        ]
        held.append(made)
        return made

    biases = [True, c["bias"], c["bias_out"]] if c["version"] == 2 else []
    layer = simulator.XyloLayer(
        *(synapses(c[f"weights_{part}"]) for part in ("in", "rec", "out")),
        *(c["aliases"], c["threshold"], c["threshold_out"], *biases),
        *(c[f"weight_shift_{part}"] for part in ("in", "rec", "out")),
        *(c["dash_mem"], c["dash_mem_out"], c["dash_syn"], [[d] for d in c["dash_syn_out"]]),
        "",
    )
    samples: list[dict[str, Any]] = []
    for sample in range(x.shape[1]):
        layer.reset_all()
        output = layer.evolve(x[:, sample].tolist())
        spikes = np.array(layer.rec_recurrent_spikes)
        seen = {n: np.array(getattr(layer, theirs)).T for n, theirs in RECORDED.items()}
        samples.append({"output": np.array(output), **seen, "previous.spikes": spikes})
    return {name: np.stack([each[name] for each in samples], 1) for name in samples[0]}


def expected(configuration: dict[str, Any], x: Any) -> dict[str, Any]:
    """Run the equations in int64."""
    samples = []
    for sample in range(x.shape[1]):
        model = Xylo(with_biases(configuration))
        rows: dict[str, list[Any]] = {name: [] for name in ("output", *RECORDED)}
        for step in x[:, sample]:
            spikes, output = model.step(step)
            values = (output, *model.syn.T, model.mem, model.syn_out, model.mem_out, spikes)
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value.copy())
        samples.append({name: np.array(each) for name, each in rows.items()})
    return {name: np.stack([each[name] for each in samples], 1) for name in samples[0]}


def assert_same(found: dict[str, Any], wanted: dict[str, Any], label: str) -> None:
    for name, values in wanted.items():
        assert np.array_equal(found[name], values), f"{label}: {name}"


SEEDS = range(12)


@pytest.mark.parametrize("seed", few(SEEDS, *range(4)))
def test_random_networks_in_int64_equal_the_simulator(seed: int) -> None:
    """What models are compared with, where there is no simulator."""
    configuration = random_configuration(seed)
    x = random_input(configuration, 40, 2, seed)
    assert_same(expected(configuration, x), simulated(configuration, x), f"seed {seed}")


def test_the_random_networks_saturate_fire_often_and_copy_spikes() -> None:
    configurations = [random_configuration(seed) for seed in SEEDS]
    inputs = [random_input(c, 40, 2, seed) for seed, c in enumerate(configurations)]
    seen = [expected(c, x) for c, x in zip(configurations, inputs, strict=True)]
    assert any((each["hidden.mem"] == 32767).any() for each in seen)
    assert any((each["hidden.mem"] == -32768).any() for each in seen)
    assert any((each["previous.spikes"] == 31).any() for each in seen)
    assert any(((each["previous.spikes"] > 1) & (each["previous.spikes"] < 31)).any() for each in seen)  # fmt: skip  # noqa: E501
    assert any(any(c["aliases"]) for c in configurations)
    assert any((c["threshold"] == 0).any() for c in configurations)


def test_a_compiled_neuron_is_the_eager_one_with_its_gradients() -> None:
    eager = xylo.LIF(
        3,
        dash_mem=torch.tensor([0.0, 3, 15]),
        dash_syn=2,
        pos_threshold={"value": 300, "learnable": True},
        bias={"value": -17, "learnable": True},
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-300, 500, (40, 2, 3), generator=generator).float()
    x[:9] *= 100
    assert {0.0, 1.0, 31.0} < set(assert_compiled_is_eager(eager, x).unique().tolist())


def test_each_further_spike_has_a_gradient_in_the_window_of_its_level() -> None:
    layer = xylo.LIF(1, dash_mem=15, dash_syn=15, pos_threshold=100, max_spikes=3)
    slopes = []
    for value in (10.0, 120.0, 220.0, 900.0):
        x = torch.tensor([[value]], requires_grad=True)
        layer.zero_states()
        layer(x).sum().backward()
        assert x.grad is not None
        slopes.append(x.grad.item() * 100)
    surrogate = tt.functional.atan_surrogate(2.0).derivative
    u = torch.tensor([9, 119, 219, 899]) / 100 - 1 + 0.005
    assert torch.allclose(
        torch.tensor(slopes), surrogate(u) + torch.tensor([0, 0, 1, 0]), atol=1e-3
    )


@refusals(
    """
    xylo.LIF(1, bias=3, version=1) -> ValueError: Xylo 1 has no bias
    xylo.LIF(1, dash_syn={"learnable": True}) -> ValueError: is a shift, which
    xylo.LIF(1, version=3) -> ValueError: version must be 1 to 2, got 3
    xylo.LIF(1, max_spikes=0) -> ValueError: max_spikes must be at least 1
    xylo.LIF(1, pos_threshold=0.5) -> ValueError: must be integers, got 0.5
    """
)
def test_errors(call: str, error: str) -> None:
    check(call, error, globals())
