"""The demo learns, keeps its best epoch, and draws what its axes say."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import TensorDataset

from examples import demo
from examples.demo import ConvSNN, Score, augment, draw, evaluate, learn
from tracetorch import unroll
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


class PerfectButOne(ConvSNN):
    """A perfect classifier of the bars, except for class 3."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x[:, 0, 4:24:2, 10]
        return logits * (torch.arange(10) != 3)


def test_evaluate_averages_over_all_digits() -> None:
    score = evaluate(PerfectButOne(), bars(300), steps=2)
    # softmax of one 1 among nine 0, and for class 3 of ten 0
    loss = 0.9 * (math.log(math.e + 9) - 1) + 0.1 * math.log(10)
    assert score == pytest.approx(Score(0.9, loss))


def test_augmentation_shifts_rotates_and_scales_a_little() -> None:
    images = torch.zeros(50, 1, 28, 28)
    images[:, :, 13:15, 13:15] = 1.0
    augmented = augment(images, torch.Generator().manual_seed(0))
    assert augmented.shape == images.shape
    assert torch.equal(augmented, augment(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(augmented, augment(images, torch.Generator().manual_seed(1)))

    places = torch.arange(28.0)
    mass = augmented.sum((1, 2, 3))
    for dim in (2, 3):
        centre = (augmented.sum((1, 5 - dim)) * places).sum(1) / mass
        assert (centre - 13.5).abs().max() < 2.5
        assert (centre - 13.5).abs().max() > 1.0
        assert centre.std() > 0.5
    images = torch.zeros(50, 1, 28, 28)
    images[:, :, 13:15, 4:24] = 1.0
    augmented = augment(images, torch.Generator().manual_seed(0))[:, 0]
    length = (augmented.amax(1) > 0.5).sum(1)
    assert length.float().std() > 0.5
    assert ((length - 20).abs() <= 4).all()
    left, right = augmented[:, :, 8].argmax(1), augmented[:, :, 19].argmax(1)
    assert (left > right).any()
    assert (left < right).any()


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = ConvSNN()
    readout = unroll(model, 3 * torch.rand(8, 1, 28, 28), steps=3)
    readout.square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_axes_say_what_they_show() -> None:
    torch.manual_seed(0)
    figure = draw(argparse.Namespace(steps=5), DIGITS, ConvSNN())
    digit, first, second, readout = figure.axes
    assert digit.get_title() == "input: a held-out 0"
    assert digit.get_xlabel() == "the same current at every step"
    assert first.get_title().startswith("lif1: 0.")
    assert first.get_xlabel() == ""
    assert second.get_title().endswith(" spikes per neuron and step")
    assert second.get_xlabel() == "time step"
    assert readout.get_title().startswith("readout: the network says ")
    assert readout.get_xlabel() == "time step (shaded: T=5, as trained)"
    assert readout.get_xticks().tolist() == [0, 5, 10, 15]


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_figure_is_drawn_also_for_a_silent_network(tmp_path: Path, steps: int, gain: float) -> None:
    torch.manual_seed(0)
    images, labels = bars(1).tensors
    few = TensorDataset(gain * images, labels)
    figure: Figure = draw(argparse.Namespace(steps=steps), Digits("few", few, few, few), ConvSNN())
    figure.savefig(tmp_path / "picture.png")
    height, width, _ = imread(tmp_path / "picture.png").shape
    assert width > 2 * height > 600
    assert (tmp_path / "picture.png").stat().st_size < 150_000
