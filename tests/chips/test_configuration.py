"""A model, its configuration in int64, the simulator and its exports: the same integers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import few
from tests.chips.test_xylo import expected, simulated
from tests.networks import Parallel
from tests.quantize.networks import case
from tracetorch import integers, snn
from tracetorch.chips import xylo
from tracetorch.chips.xylo.target import XyloTarget

WORDS = {
    *("weights_in", "weights_rec", "weights_out", "dash_mem", "dash_mem_out", "dash_syn"),
    *("dash_syn_out", "threshold", "threshold_out", "bias", "bias_out", "weight_shift_in"),
    *("weight_shift_rec", "weight_shift_out", "aliases"),
}


def random_model(seed: int) -> tuple[nn.Sequential, int, int]:
    """Some hidden layers, recurrent or not, of either version, none of which overflows."""
    rng = np.random.default_rng(seed)
    version, inputs = 1 + seed % 2, int(rng.integers(1, 6))
    sizes = [inputs, *rng.integers(1, 7, rng.integers(1, 4)).tolist(), int(rng.integers(1, 5))]
    rec_shift, layers = int(rng.integers(0, 3)), []

    def linear(before: int, after: int, shift: int) -> integers.Linear:
        made = integers.Linear(before, after, bias=False, shift=shift)
        made.weight.copy_(torch.tensor(rng.integers(-25, 60, (after, before))))
        return made

    def integer(low: int, high: int, size: int) -> Any:
        return torch.tensor(rng.integers(low, high, size)).float()

    for index, (before, after) in enumerate(itertools.pairwise(sizes)):
        last = index == len(sizes) - 2
        shift = rec_shift if index > 0 and not last else int(rng.integers(0, 3))
        neuron = xylo.LIF(
            after,
            dash_mem=integer(1, 5, after),
            dash_syn=integer(1, 4, after),
            pos_threshold=integer(60, 600, after),
            bias=integer(-30, 60, after) if version == 2 and rng.random() < 0.7 else None,
            max_spikes=1 if last else 31,
            version=version,
        )
        recurrent = not last and rng.random() < 0.5
        layers += [
            *([] if index == 0 else [xylo.StepDelay(before)]),
            linear(before, after, shift),
            snn.Recurrent(neuron, linear(after, after, rec_shift)) if recurrent else neuron,
        ]
    return nn.Sequential(*layers), inputs, version


def check(seed: int, steps: int, batch: int, run: Any) -> None:
    """Compare spikes and states of a model with those of its arrays."""
    model, inputs, version = random_model(seed)
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (steps, batch, inputs)) * (rng.random((steps, batch, inputs)) < 0.5)
    found = xylo.configuration(model)
    chip = xylo.XYLO_1 if version == 1 else xylo.XYLO_2
    if steps > 60 and XyloTarget(chip, 8).departures(model, torch.tensor(x).float()):
        pytest.skip("a sum saturates on the way")
    assert found.keys() == WORDS
    assert version == (1 if found["bias"] is None else 2)
    layers = [n for n, m in model.named_modules() if isinstance(m, xylo.LIF)]
    record = [f"{name}.{state}" for name in layers for state in ("syn", "mem")]
    with torch.no_grad():
        spikes, seen = tt.unroll(model, torch.tensor(x).float(), record=record, from_rest=True)
    states = {name: [seen[f"{layer}.{name}"] for layer in layers] for name in ("syn", "mem")}
    wanted = run(found, x)
    assert np.array_equal(spikes.numpy(), wanted["output"])
    # a layer is a step behind the one before: in the model, not in the population of the chip
    for name, (*hidden, last) in states.items():
        assert np.array_equal(torch.cat(hidden, -1).numpy(), wanted[f"hidden.{name}"]), name
        assert np.array_equal(last.numpy(), wanted[f"output.{name}"]), name


@pytest.mark.parametrize("run", [expected, simulated])
@pytest.mark.parametrize("seed", few(range(12), *range(4)))
def test_a_model_int64_and_the_simulator_are_equal(seed: int, run: Any) -> None:
    check(seed, 60, 2, run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1040))
def test_a_million_steps_of_random_models_equal_the_simulator(seed: int) -> None:
    """40 models, 25 sequences of 1,000 steps each: none of a million steps differs."""
    check(seed, 1000, 25, simulated)


def test_the_random_models_fire() -> None:
    made = [random_model(seed) for seed in range(12)]
    with torch.no_grad():
        rates = [tt.unroll(model, torch.ones(60, 2, inputs)).mean() for model, inputs, _ in made]
    assert sum(rate > 0.02 for rate in rates) >= 8


@pytest.mark.slow
def test_onnx_runtime_computes_the_integers_of_a_neuron(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    thresholds: dict[str, Any] = {"pos_threshold": 90, "neg_threshold": 80}
    integer = integers.LeakyIntegrator(3, alpha=2, beta=3, **thresholds, decay=integers.Shift())
    chip = xylo.LIF(3, dash_mem=torch.tensor([1.0, 5, 15]), pos_threshold=90, bias=-5)
    model, path = Parallel([integer, chip]), tmp_path / "layers.onnx"
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-100, 200, (50, 2, 3), generator=generator).float()
    with torch.no_grad():
        expected = tt.unroll(model, x, by="step")
    states = tt.get_states(model)
    tt.zero_states(model)
    tt.export.onnx(model, path, x[0, :1])
    stream = tt.export.OnnxStream(path)
    found = zip(*(stream(step).values() for step in x), strict=True)
    for steps, value in zip(found, expected, strict=True):
        assert torch.equal(torch.stack(steps), value)
        assert value.any()
    ends = stream.get_states()
    assert len(states) >= 2
    assert all(torch.equal(ends[state], value) for state, value in states.items())


NETWORKS = ("convolutional", "Xylo 2 1", "along a line", "delayed")


@pytest.mark.parametrize("name", few(NETWORKS))
def test_a_quantised_network_leaves_python(name: str, tmp_path: Path) -> None:
    """C skips silent inputs, behind the border of a chip too."""
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    network, x, arguments = case(name)
    model, _ = tt.quantize.convert(tt.quantize.prepare(network.eval(), x, **arguments))
    with torch.no_grad():
        expected = tt.unroll(model, x, from_rest=True)
    tt.export.onnx(model, tmp_path / "model.onnx", x[0])
    stream = tt.export.OnnxStream(tmp_path / "model.onnx")
    assert torch.equal(torch.stack([stream(step) for step in x]), expected)
    assert expected.any()
    if name.startswith("Xylo"):
        report = tt.export.c(model, tmp_path / "c", x, dtype="int")
        assert "0 (Linear)" in report.events
