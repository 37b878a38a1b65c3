"""Integer neurons leave Python as they are: ONNX Runtime computes the same integers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import few
from tests.quantize.networks import case
from tracetorch import chips, integers, snn

pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")

LAYERS: dict[str, snn.Neuron] = {
    "integers": integers.LeakyIntegrator(
        3, alpha=2, beta=3, pos_threshold=90, neg_threshold=80, decay=integers.Shift()
    ),
    "Xylo": chips.xylo.LIF(3, dash_mem=torch.tensor([1.0, 5, 15]), pos_threshold=90, bias=-5),
}


NETWORKS = ("convolutional", "Xylo 2 1", "along a line", "delayed")


class Beside(snn.TTModule):
    """All layers on one input: an export takes seconds whatever it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(LAYERS)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers.values()]


@pytest.mark.slow
def test_onnx_runtime_computes_the_same_integers(tmp_path: Path) -> None:
    model, path = Beside(), tmp_path / "layers.onnx"
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-100, 200, (50, 2, 3), generator=generator).float()
    with torch.no_grad():
        expected = tt.unroll(model, x, by="step")
    states = tt.get_states(model)
    model.zero_states()
    tt.export.onnx(model, path, x[0, :1])
    stream = tt.export.OnnxStream(path)
    found = zip(*(stream(step).values() for step in x), strict=True)
    for name, steps, value in zip(LAYERS, found, expected, strict=True):
        assert torch.equal(torch.stack(steps), value), name
        assert value.any(), name
    ends = stream.get_states()
    assert len(states) >= len(LAYERS)
    assert all(torch.equal(ends[state], value) for state, value in states.items())


def test_c_skips_silent_inputs_behind_the_border_of_a_chip(tmp_path: Path) -> None:
    network, x, arguments = case("Xylo 2 1")
    model, _ = tt.quantize.convert(tt.quantize.prepare(network.eval(), x, **arguments))
    report = tt.export.c(model, tmp_path, x, dtype="int")
    assert "0 (Linear)" in report.events


@pytest.mark.parametrize("name", few(NETWORKS, "Xylo 2 1"))
def test_onnx_runtime_computes_a_quantised_network(name: str, tmp_path: Path) -> None:
    network, x, arguments = case(name)
    model, _ = tt.quantize.convert(tt.quantize.prepare(network.eval(), x, **arguments))
    with torch.no_grad():
        expected = tt.unroll(model, x, from_rest=True)
    tt.export.onnx(model, tmp_path / "model.onnx", x[0])
    stream = tt.export.OnnxStream(tmp_path / "model.onnx")
    assert torch.equal(torch.stack([stream(step) for step in x]), expected)
    assert expected.any()
