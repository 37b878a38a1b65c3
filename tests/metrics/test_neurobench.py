"""Compare metrics with NeuroBench's own on the same models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tracetorch as tt
from tests.cases import layer
from tracetorch import metrics, snn

pytest.importorskip("neurobench", reason="NeuroBench is not installed; 'test-peers' brings it")
pytest.importorskip("snntorch", reason="snnTorch, which NeuroBench needs, is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

T, B = 7, 3


def conv() -> nn.Module:
    first = nn.Conv2d(2, 4, 3, padding=1, stride=2)
    second = nn.Conv2d(4, 4, 3, groups=2, padding="same", padding_mode="circular")
    body = (first, layer("LIF", 4, dim=-3), second, layer("BLIF", 4, dim=-3), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 5), layer("LIF", 5))


def conv1d() -> nn.Module:
    first, neurons = nn.Conv1d(2, 4, 3, dilation=2), layer("SLIF", 4, dim=-2)
    return nn.Sequential(first, neurons, nn.Flatten(), nn.Linear(16, 5))


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 20), layer("LIF", 20), nn.Linear(20, 5), layer("LIF", 5))


MODELS = {"conv": (conv, (2, 8, 8)), "conv1d": (conv1d, (2, 8)), "dense": (dense, (9,))}


def made(name: str, kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                module.weight.mul_(torch.rand(module.weight.shape) < 0.6).mul_(3)
    x = 4 * torch.rand(T, B, *shape)
    if kind == "spikes":
        x = (x > 2.8).float()
    elif kind == "mixed":  # some steps real-valued, some of spikes, one silent
        x[::2] = (x[::2] > 2.8).float()
        x[1] = 0
    return model, x


def benchmarked(model: Any, x: Tensor, static: list[str], workload: list[str]) -> dict[str, Any]:
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics import static as of_model
    from neurobench.metrics import workload as of_run

    samples = DataLoader(TensorDataset(x.movedim(0, 1), torch.zeros(B)), batch_size=B)
    lists = [[getattr(of_model, n) for n in static], [getattr(of_run, n) for n in workload]]
    with torch.no_grad():
        return dict(Benchmark(model, samples, [], [], lists).run(quiet=True))


def wrapped(model: nn.Module) -> Any:
    from neurobench.models import NeuroBenchModel

    class Wrapped(NeuroBenchModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.add_activation_module(snn.LeakyIntegrator)

        def __net__(self) -> nn.Module:
            return model

        def __call__(self, data: Tensor) -> Tensor:
            tt.zero_states(model)
            return torch.stack([model(step) for step in data.unbind(1)], 1)

    return Wrapped()


def counts(operations: metrics.SynapticOperations) -> dict[str, float]:
    names = {"Effective_MACs": "effective_macs", "Effective_ACs": "effective_acs", "Dense": "dense"}
    return {theirs: getattr(operations, ours) for theirs, ours in names.items()}


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("kind", ["real", "spikes", "mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_metrics_equal_those_of_neurobench(name: str, kind: str, by: Any) -> None:
    model, x = made(name, kind)
    static = ["ConnectionSparsity", "Footprint", "ParameterCount"]
    theirs = benchmarked(wrapped(model), x, static, ["ActivationSparsity", "SynapticOperations"])
    operations = metrics.synaptic_operations(model, x, by=by)
    assert theirs["SynapticOperations"] == counts(operations)
    assert operations.effective_acs > 0
    assert (operations.effective_macs > 0) == (kind != "spikes" or name == "conv")  # ReLU's
    sparsity = pytest.approx(theirs["ActivationSparsity"], abs=1e-12)
    assert metrics.activation_sparsity(model, x, by=by) == sparsity
    assert round(metrics.connection_sparsity(model), 4) == theirs["ConnectionSparsity"]
    assert metrics.footprint(model) == theirs["Footprint"]
    assert metrics.parameter_count(model) == theirs["ParameterCount"]


@pytest.mark.parametrize("kind", ["real", "spikes", "mixed"])
def test_membrane_updates_equal_those_of_neurobench_on_snntorch(kind: str) -> None:
    import snntorch
    from neurobench.models import SNNTorchModel

    _, x = made("dense", kind)
    torch.manual_seed(0)
    first, second = nn.Linear(9, 20, bias=False), nn.Linear(20, 5, bias=False)
    with torch.no_grad():  # sums of such numbers are exact, in whatever order
        for linear in (first, second):
            linear.weight.copy_((linear.weight * 8).round() / 8).mul_(4)
        x = (x * 16).round() / 16
    lifs = (snn.LIF(n, beta=0.5, beta_rank=0, reset="zero") for n in (20, 5))
    ours = nn.Sequential(first, next(lifs), second, next(lifs))
    leaky: dict[str, Any] = {"beta": 0.5, "threshold": 1.0, "reset_mechanism": "zero"}
    leaky |= {"reset_delay": False, "init_hidden": True}
    last = snntorch.Leaky(**leaky, output=True)
    theirs = SNNTorchModel(nn.Sequential(first, snntorch.Leaky(**leaky), second, last))
    names = ["ActivationSparsity", "MembraneUpdates", "SynapticOperations"]
    results = benchmarked(theirs, x, [], names)
    updates = metrics.membrane_updates(ours, x)
    assert results["MembraneUpdates"] == updates
    assert 25 < updates < 25 * T
    assert metrics.activation_sparsity(ours, x) == pytest.approx(results["ActivationSparsity"])
    assert results["SynapticOperations"] == counts(metrics.synaptic_operations(ours, x))
