"""The demo and the example of a stream learn; what they save is what they have learned."""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

import tracetorch as tt
from examples import demo, stream
from examples.demo import ConvSNN, Score, evaluate, learn
from tracetorch.data import Digits


def bars(number: int) -> TensorDataset:
    """Make images with one bright bar whose position is the class, which is easy to learn."""
    labels = torch.arange(number) % 10
    images = torch.zeros(number, 1, 28, 28)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 4 + 2 * label : 6 + 2 * label, 4:24] = 1.0
    return TensorDataset(images, labels)


DIGITS = Digits("bars", train=bars(60), validation=bars(20), held_out=bars(30))


def trained(seed: int, epochs: int = 10, batch_size: int = 10) -> tuple[ConvSNN, Any]:
    torch.manual_seed(seed)
    options = argparse.Namespace(batch_size=batch_size, epochs=epochs, steps=2, lr=1e-2, page=False)
    return learn(options, DIGITS, seed)


@pytest.mark.slow
def test_a_run_saves_the_best_model_a_figure_and_a_page(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tracetorch.data.load_digits", lambda folder: DIGITS)
    short = ("--epochs", "2", "--batch-size", "10", "--steps", "2", "--threads", "1", "--page")
    assert demo.main([*short, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "bars: 60 to train on, 20 to choose the epoch by, 30 held out" in text
    assert len(re.findall(r"epoch \d +\d+\.\d% +\d+\.\d% +\d+\.\d% +\d+\n", text)) == 2
    (path,) = tmp_path.glob("*.safetensors")
    assert path.with_suffix(".png").is_file()
    model = ConvSNN()
    model.load_state_dict(load_file(path))
    printed = re.search(r"seed 0: accuracy (\S+), epoch [12];", text)
    assert printed is not None
    assert float(printed[1]) == pytest.approx(evaluate(model, DIGITS.held_out, 2).accuracy, 1e-3)
    page = (tmp_path / "seed0.html").read_text()
    assert all(f'"name":"of a {digit}"' in page for digit in range(10))
    assert '"steps":8' in page


@pytest.mark.slow
def test_training_learns_and_is_reproducible() -> None:
    model, scores = trained(0)
    assert scores["accuracy"] > 0.8
    assert scores["accuracy"] == evaluate(model, DIGITS.held_out, 2).accuracy
    again, _ = trained(0)
    other, _ = trained(1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    name = "linear.1.weight"
    assert not torch.equal(model.get_parameter(name), other.get_parameter(name))


def test_the_epoch_with_the_lowest_validation_loss_is_kept(monkeypatch) -> None:
    losses = iter([0.5, 0.2, 0.9])

    def measured(model: Any, dataset: TensorDataset, steps: int) -> Score:
        return Score(0.5, next(losses) if dataset is DIGITS.validation else 0.1)

    monkeypatch.setattr(demo, "evaluate", measured)
    assert trained(0, epochs=3, batch_size=60)[1]["epoch"] == 2


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


@pytest.mark.slow
def test_files_go_on_from_the_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    stream.main(["--steps", "60", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "resumed, equal: True" in printed
    assert "at rest: 2 of 8" in printed
    assert float(printed.partition("ONNX differs by ")[2]) < 1e-5
