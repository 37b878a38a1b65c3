"""traceTorch: ``tt.unroll`` by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tracetorch as tt
from benchmarks.cases import DECAY, Case
from benchmarks.torch_task import TorchTask, inputs, linear
from tracetorch import snn
from tracetorch.demo.network import ConvSNN


def version() -> str:
    return f"{tt.__version__}, torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    return None


def model_of(case: Case) -> nn.Module:
    """Build the model of a case."""
    if case.kind == "conv":
        torch.manual_seed(0)
        return ConvSNN()
    if case.kind == "bsrlif":
        return snn.BSRLIF(case.N)
    if case.kind == "linear":
        return nn.Sequential(linear(case.N), snn.LIF(case.N, beta=DECAY))
    if case.kind == "recurrent":
        return snn.Recurrent(snn.LIF(case.N, beta=DECAY), linear(case.N))
    return snn.LIF(case.N, beta=DECAY)


def prepare(case: Case) -> TorchTask:
    model, x = model_of(case), inputs(case)

    def run(x: Tensor) -> Tensor:
        y: Tensor = tt.unroll(model, x)
        return y

    def first_spikes() -> Tensor:
        spikes: Tensor = tt.unroll(model, x, record="lif1.output")[1]["lif1.output"]
        return spikes

    stream = case.kind == "stream"
    return TorchTask(
        case,
        x[0] if stream else x,
        model if stream else run,
        lambda: tt.zero_states(model),
        list(model.parameters()),
        first_spikes if case.kind == "conv" else None,
    )
