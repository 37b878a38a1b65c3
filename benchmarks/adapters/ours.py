"""traceTorch: ``tt.unroll`` by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tracetorch as tt
from benchmarks.cases import (
    ADAPTATION,
    ADAPTATION_DECAY,
    DECAY,
    MAX_DELAY,
    NETWORKS,
    PUBLISHED,
    SIGMA,
    Case,
)
from benchmarks.task import Task
from benchmarks.torch_task import (
    Built,
    DelayedProduct,
    Part,
    Residual,
    TorchTask,
    Training,
    inputs,
    parts,
)
from examples.demo import ConvSNN
from tracetorch import models, neurons, snn


class ResidualBlock(nn.Module):
    """Add the output of some layers to their input."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        y: Tensor = x + self.layers(x)
        return y


def version() -> str:
    return f"{tt.__version__}, torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    return None


def published(case: Case, neuron: models.NeuronBuilder | None = None) -> nn.Module:
    """Build a network that somebody has published, as SpikingJelly has it."""
    torch.manual_seed(0)
    if case.kind.startswith("sew"):
        return models.SEWResNet(18, 10, neuron=neuron)
    return models.Spikformer(4, 384, 12, 10, images="small", pool_first=True, neuron=neuron)


def model_of(case: Case) -> nn.Module:
    """Build the model of a case."""
    if case.kind in PUBLISHED:
        return published(case)
    if case.kind == "conv":
        torch.manual_seed(0)
        return ConvSNN()
    if case.kind == "bsrlif":
        return snn.BSRLIF(case.N)
    if case.kind == "alif":
        return neurons.ALIF(case.N, DECAY, ADAPTATION_DECAY, strength=ADAPTATION)
    if case.kind == "seadlif":
        return neurons.SEAdLIF(case.N, DECAY)
    if case.kind in ("recurrent", "recurrent delays", "stream recurrent"):
        torch.manual_seed(0)
        connection: nn.Module = nn.Linear(case.N, case.N)
        if case.kind == "recurrent delays":
            connection = snn.DelayedLinear(case.N, case.N, max_delay=MAX_DELAY, sigma=SIGMA)
        return snn.Recurrent(snn.LIF(case.N, beta=DECAY), connection)
    layers = parts(case, lambda num, decay, dim: snn.LIF(num, beta=decay, dim=dim))
    return _module(layers[0]) if len(layers) == 1 else _network(layers)


def _network(layers: list[Part]) -> nn.Sequential:
    return nn.Sequential(*map(_module, layers))


def _module(part: Part) -> nn.Module:
    if isinstance(part, Residual):
        return ResidualBlock(_network(part.parts))
    if isinstance(part, DelayedProduct):
        delayed = snn.DelayedLinear(
            *part.layer.weight.shape[::-1],
            max_delay=MAX_DELAY,
            delay=part.delay.detach(),
            sigma=SIGMA,
        )
        delayed.linear.load_state_dict(part.layer.state_dict())
        return delayed
    assert isinstance(part, nn.Module)
    return part


def build(case: Case) -> Built:
    """Build the model of a case, unrolled over time; of one step the model itself."""
    model = model_of(case)
    first = model
    if isinstance(model, nn.Sequential):
        first = model[:2]
    elif isinstance(model, models.SEWResNet):
        first = model.stem[:3]
    elif isinstance(model, models.Spikformer):
        first = model.patches[:3]
    network = first is not model

    def run(x: Tensor) -> Tensor:
        y: Tensor = tt.unroll(model, x)
        return y

    def spikes(x: Tensor) -> Tensor:
        if case.kind == "conv":
            seen: Tensor = tt.unroll(model, x, record="lif1.output")[1]["lif1.output"]
            return seen
        y: Tensor = tt.unroll(first, x)
        return y

    def reset() -> None:
        tt.zero_states(model)

    if case.streams:
        return Built(model, first, reset, [*model.parameters()])
    return Built(
        run, spikes if network or case.kind == "conv" else run, reset, [*model.parameters()]
    )


def prepare(case: Case) -> Task:
    if case.kind == "accuracy":
        return Training(case, lambda: build(case))
    built, x = build(case), inputs(case)
    if case.streams:
        x = x[0]
    spiking = (lambda: built.first(x)) if case.kind in NETWORKS else None
    return TorchTask(case, x, built.model, built.reset, built.learnable, spiking)
