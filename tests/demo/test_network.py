from __future__ import annotations

import torch

from tracetorch import unroll
from tracetorch.demo.network import ConvSNN, record_spikes


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = ConvSNN()
    readout = unroll(model, 3 * torch.rand(8, 1, 28, 28), steps=3)
    readout.square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_recorded_spikes_are_those_of_a_run_from_rest() -> None:
    torch.manual_seed(0)
    model, images = ConvSNN(), 2 * torch.rand(3, 1, 28, 28)
    spikes, readout = record_spikes(model, images, 4)
    assert torch.equal(readout, unroll(model, images, steps=4))
    assert readout.shape == (4, 3, 10)
    assert torch.equal(record_spikes(model, images, 4)[1], readout)
    shapes = {"lif1": (4, 3, 16, 12, 12), "lif2": (4, 3, 64, 4, 4)}
    assert {name: layer_spikes.shape for name, layer_spikes in spikes.items()} == shapes
    for layer_spikes in spikes.values():
        assert set(layer_spikes.unique().tolist()) == {0.0, 1.0}
    model.zero_states()
    assert torch.equal(model.lif1(model.conv1(images)), spikes["lif1"][0])
