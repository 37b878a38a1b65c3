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

pytest.importorskip(
    "neurobench", reason="NeuroBench is not installed: pip install -e '.[test-peers]'"
)
pytest.importorskip("snntorch", reason="snnTorch, which NeuroBench needs, is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

T, B = 7, 3


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        layer("LIF", 4, dim=-3),
        nn.Conv2d(4, 4, 3, groups=2, padding="same", padding_mode="circular"),
        layer("BLIF", 4, dim=-3),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
        layer("LIF", 5),
    )


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, dilation=2), layer("SLIF", 4, dim=-2), nn.Flatten(), nn.Linear(16, 5)
    )


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


def benchmarked(model: nn.Module, x: Tensor, per_neuron: tuple[type, ...]) -> dict[str, Any]:
    """Measure a model with NeuroBench."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import NeuroBenchModel

    class Wrapped(NeuroBenchModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for kind in per_neuron:
                self.add_activation_module(kind)

        def __net__(self) -> nn.Module:
            return model

        def __call__(self, data: Tensor) -> Tensor:
            tt.zero_states(model)
            return torch.stack([model(step) for step in data.unbind(1)], 1)

    samples = TensorDataset(x.movedim(0, 1), torch.zeros(B))
    static = [ConnectionSparsity, Footprint, ParameterCount]
    workload = [ActivationSparsity, SynapticOperations]
    with torch.no_grad():
        bench = Benchmark(Wrapped(), DataLoader(samples, batch_size=B), [], [], [static, workload])
        results = bench.run(quiet=True)
    tt.zero_states(model)
    return dict(results)


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("kind", ["real", "spikes", "mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_metrics_equal_those_of_neurobench(name: str, kind: str, by: Any) -> None:
    model, x = made(name, kind)
    theirs = benchmarked(model, x, (snn.LeakyIntegrator,))
    operations = metrics.synaptic_operations(model, x, by=by)
    assert theirs["SynapticOperations"] == {
        "Effective_MACs": operations.effective_macs,
        "Effective_ACs": operations.effective_acs,
        "Dense": operations.dense,
    }
    assert operations.effective_acs > 0
    assert (operations.effective_macs > 0) == (kind != "spikes" or name == "conv")  # ReLU's
    assert metrics.activation_sparsity(model, x, by=by) == pytest.approx(
        theirs["ActivationSparsity"], abs=1e-12
    )
    assert round(metrics.connection_sparsity(model), 4) == theirs["ConnectionSparsity"]
    assert metrics.footprint(model) == theirs["Footprint"]
    assert metrics.parameter_count(model) == theirs["ParameterCount"]


@pytest.mark.parametrize("kind", ["real", "spikes", "mixed"])
def test_membrane_updates_equal_those_of_neurobench_on_snntorch(kind: str) -> None:
    import snntorch
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import ActivationSparsity, MembraneUpdates, SynapticOperations
    from neurobench.models import SNNTorchModel

    _, x = made("dense", kind)
    torch.manual_seed(0)
    first, second = nn.Linear(9, 20, bias=False), nn.Linear(20, 5, bias=False)
    with torch.no_grad():  # sums of such numbers are exact, in whatever order
        for linear in (first, second):
            linear.weight.copy_((linear.weight * 8).round() / 8).mul_(4)
        x = (x * 16).round() / 16
    arguments = {"beta": 0.5, "threshold": 1.0}
    ours = nn.Sequential(
        first,
        snn.LIF(20, beta=arguments["beta"], beta_rank=0, reset="zero"),
        second,
        snn.LIF(5, beta=arguments["beta"], beta_rank=0, reset="zero"),
    )

    def leaky(last: bool) -> nn.Module:
        return snntorch.Leaky(
            **arguments, reset_mechanism="zero", reset_delay=False, init_hidden=True, output=last
        )

    theirs = nn.Sequential(first, leaky(False), second, leaky(True))
    samples = TensorDataset(x.movedim(0, 1), torch.zeros(B))
    with torch.no_grad():
        results = Benchmark(
            SNNTorchModel(theirs),
            DataLoader(samples, batch_size=B),
            [],
            [],
            [[], [ActivationSparsity, MembraneUpdates, SynapticOperations]],
        ).run(quiet=True)
    updates = metrics.membrane_updates(ours, x)
    assert results["MembraneUpdates"] == updates
    assert 25 < updates < 25 * T
    assert metrics.activation_sparsity(ours, x) == pytest.approx(results["ActivationSparsity"])
    operations = metrics.synaptic_operations(ours, x)
    assert results["SynapticOperations"] == {
        "Effective_MACs": operations.effective_macs,
        "Effective_ACs": operations.effective_acs,
        "Dense": operations.dense,
    }
