"""The example of a stream: it learns from what it acted on, and its files go on from its states."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

import tracetorch as tt
from examples import stream


@pytest.mark.slow
def test_controller_learns_past_lost_packets() -> None:
    torch.manual_seed(0)
    net = stream.network()
    received, target = stream.signals(3000)
    assert 0.02 < received[:, 0, 0].isnan().float().mean() < 0.08
    losses, _ = stream.run(net, received, target)
    assert statistics.mean(losses[-600:]) < 0.5 * statistics.mean(losses[:600])
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_gradients_are_those_of_truncated_backpropagation() -> None:
    torch.manual_seed(0)
    net, twin = stream.network(), stream.network()
    twin.load_state_dict(net.state_dict())
    received, target = stream.signals(2 * stream.CHUNK)
    received = received.nan_to_num(0.1)
    stream.run(net, received, target)
    optimizer = torch.optim.Adam(twin.parameters(), lr=3e-3)
    for x, wanted in zip(received.split(stream.CHUNK), target.split(stream.CHUNK), strict=True):
        (torch.stack([twin(step) for step in x]) - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        tt.detach_states(twin)
    for (name, one), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_files_go_on_from_the_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    stream.main(["--steps", "60", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "resumed, equal: True" in printed
    assert "at rest: 2 of 8" in printed
    assert float(printed.partition("ONNX differs by ")[2]) < 1e-5
