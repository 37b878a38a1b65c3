"""A model's configuration: the model, the whole network and the simulator fire the same spikes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import few
from tests.chips.test_xylo import network, simulated
from tracetorch import integers, snn
from tracetorch.chips import xylo

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


@pytest.mark.parametrize("seed", few(range(12), *range(4)))
def test_a_model_its_network_and_the_simulator_are_equal(seed: int) -> None:
    model, inputs, version = random_model(seed)
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (60, 2, inputs)) * (rng.random((60, 2, inputs)) < 0.5)
    found = xylo.configuration(model)
    assert found.keys() == WORDS
    with torch.no_grad():
        spikes = tt.unroll(model, torch.tensor(x).float(), from_rest=True)
        whole = tt.unroll(
            network({**found, "version": version}) if version == 2 else
            xylo.Network(**found, version=1),
            *(torch.tensor(x).float(),), by="step", from_rest=True,
        )  # fmt: skip
    assert torch.equal(spikes, whole)
    zero = {f"bias{e}": np.zeros_like(found[f"threshold{e}"]) for e in ("", "_out")}
    given = {name: zero.get(name) if value is None else value for name, value in found.items()}
    wanted = simulated({**given, "version": version}, x)
    assert np.array_equal(spikes.numpy(), wanted["output"])


def test_the_random_models_fire() -> None:
    total = 0.0
    for seed in range(12):
        model, inputs, _ = random_model(seed)
        with torch.no_grad():
            total += float(tt.unroll(model, torch.ones(60, 2, inputs)).mean() > 0.02)
    assert total >= 8
