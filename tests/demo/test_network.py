from __future__ import annotations

import torch

from tracetorch import get_states
from tracetorch.demo.network import ConvSNN, record_spikes, run


def test_run_starts_from_empty_states() -> None:
    torch.manual_seed(0)
    model, images = ConvSNN(), torch.rand(3, 1, 28, 28)
    readout = run(model, images, 4)
    assert readout.shape == (4, 3, 10)
    assert not torch.equal(readout[0], readout[1])
    assert set(get_states(model)) == {"lif1.mem", "lif2.mem", "readout.mem"}

    smaller_batch = run(model, images[:2], 4)
    torch.testing.assert_close(smaller_batch, readout[:, :2])
    model.zero_states()
    assert torch.equal(model(images[:2]), smaller_batch[0])


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = ConvSNN()
    run(model, 3 * torch.rand(8, 1, 28, 28), 3).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_recorded_spikes_are_those_of_the_run() -> None:
    torch.manual_seed(0)
    model, images = ConvSNN(), 2 * torch.rand(3, 1, 28, 28)
    spikes, readout = record_spikes(model, images, 4)
    assert torch.equal(readout, run(model, images, 4))
    assert {name: layer_spikes.shape for name, layer_spikes in spikes.items()} == {
        "lif1": (4, 3, 16, 12, 12),
        "lif2": (4, 3, 64, 4, 4),
    }
    for layer_spikes in spikes.values():
        assert set(layer_spikes.unique().tolist()) == {0.0, 1.0}
    model.zero_states()
    assert torch.equal(model.lif1(model.conv1(images)), spikes["lif1"][0])


def test_recording_leaves_no_hooks_behind() -> None:
    model = ConvSNN()
    spikes, _ = record_spikes(model, torch.rand(1, 1, 28, 28), 2)
    run(model, torch.rand(1, 1, 28, 28), 5)
    assert len(spikes["lif1"]) == 2
    assert not model.lif1._forward_hooks
