"""Files of the versions that described PyTorch's modules, and kept trainings beside a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer, sequence, stepped
from tests.refusals import unchanged
from tracetorch import neurons, snn
from tracetorch.checkpoint.read import CHECKSUM_KEY, HEADER_KEY, checksum

FILE = Path(__file__).parent.parent / "golden" / "tracetorch_0_10_0.safetensors"


class Everything(snn.TTModule):
    """What a file describes: neurons, delays, a norm, a block, a shared weight, layers in a list.

    ``expected`` in the file is what the model gave for the last six steps, from the states there.
    """

    expected: Tensor

    def __init__(self, reset: str = "subtract", block: Any = "add", act: Any = nn.ReLU) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 3),
            nn.BatchNorm1d(3),
            layer("BSRLIF", 3, reset=reset),
            act(),
            snn.DelayedLinear(3, 3, max_delay=2),
            neurons.AdLIF(3, rho=0.99, bounded=True),
            snn.Delay(3, max_delay=3, delay=torch.tensor([1.0, 2.0, 0.5])),
            snn.SEWBlock(nn.Sequential(nn.Linear(3, 3), snn.LIF(3, pos_threshold=0.3)), block),
            snn.Recurrent(neurons.ALIF(3, pos_threshold=0.3), nn.Linear(3, 3)),
            nn.Linear(3, 3),
        )
        self.hidden: list[Any] = [nn.Linear(3, 3), snn.Readout(3)]
        self.hidden[0].weight = self.net[9].weight
        self.register_buffer("expected", torch.zeros(6, 2, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.hidden[1](self.hidden[0](self.net(x)))
        return y


def test_a_file_with_settings_of_all_modules_and_a_training_loads() -> None:
    model = Everything().eval()
    loaded = tt.load(FILE, model, states=True)
    assert loaded.missing == loaded.unexpected == ()
    assert loaded.version is not None
    assert model.hidden[0].weight is model.net[9].weight
    for part in (model, *model.hidden):  # in a list, they are not moved with the model
        part.double()
    with torch.no_grad():
        found = stepped(model, sequence(12, 2, 4)[6:])
    assert model.expected.abs().sum() > 0
    torch.testing.assert_close(found, model.expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"reset": "none"},
            r"layer 'net\.2': .*reset: 'subtract' in the file, 'none' in the model",
        ),
        ({"block": "and"}, r"'net\.7', tt\.SEWBlock: .*'add' in the file, 'and' in the model"),
        ({"act": nn.Tanh}, r"'net\.3': nn\.ReLU in the file, nn\.Tanh in the model"),
    ],
)
def test_what_such_a_file_says_of_layers_is_compared(change: Any, message: str) -> None:
    model = Everything(**change)
    with unchanged(model), pytest.raises(ValueError, match=message):
        tt.load(FILE, model)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the description in a file."""
    with safe_open(path, "pt") as opened:
        header = json.loads(opened.metadata()[HEADER_KEY])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(header)
    text = json.dumps(header)
    save_file(tensors, path, {HEADER_KEY: text, CHECKSUM_KEY: checksum(text, tensors)})
    return path


def test_a_file_without_a_description_of_modules_loads(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 3), snn.LIF(2, dim=-3))
    tt.save(model, tmp_path / "old.safetensors")
    path = rewritten(tmp_path / "old.safetensors", lambda header: header.pop("modules"))
    other: Any = nn.Sequential(nn.Conv2d(1, 2, 3), snn.LIF(2, dim=-3))
    tt.load(path, other)
    assert torch.equal(other[0].weight, model[0].weight)


def test_traces_of_a_learner_among_states_are_passed_over(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), snn.LIF(2))
    model(torch.rand(1, 3))
    path = tmp_path / "learner.safetensors"
    tt.save(model, path, states=True)

    def with_a_trace(header: dict[str, Any]) -> None:
        header["states"] = [*header["states"], "trace:eprop:1:beta:mem"]

    tt.load(rewritten(path, with_a_trace), model, states=True)
