"""Run the recipes of ``docs/use/with_other_tools.md``, and look at what they left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.tools.page import SECTIONS, TOOLS, executed, skip_without
from tracetorch import metrics, snn

Names = dict[str, Any]


def tensorboard(names: Names, folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs/digits")).Reload()
    assert len(events.Scalars("loss")) == 3
    assert {"rates", "decays"} <= set(events.Tags()["histograms"])
    assert any("LIF" in node.name for node in events.Graph().node)
    assert tt.get_states(names["net"]) == {}


def wandb(names: Names, folder: Path) -> None:
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert not any(module._forward_hooks for module in names["net"].modules())


def accelerate(names: Names, folder: Path) -> None:
    model, x = names["model"], names["x"]
    plain = names["Whole"](names["network"]())
    assert not torch.equal(model.net[0].weight, plain.net[0].weight)
    plain.load_state_dict(model.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(x)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(model(x), expected.float())
    tt.unroll(model.net, x, time_dim=1)
    assert {state.dtype for state in tt.get_states(model).values()} == {torch.float32}


def trainer(names: Names, folder: Path) -> None:
    model, x = names["model"], names["x"]
    with torch.no_grad():
        logits = model(x)["logits"]
    torch.testing.assert_close(torch.from_numpy(names["predicted"]), logits)
    assert not torch.equal(model.net[0].weight, names["network"]()[0].weight)
    assert tt.get_states(model) == {}


def peft(names: Names, folder: Path) -> None:
    learned = names["learned"]
    assert len(learned) == 6  # two matrices for each of two layers, and two parameters of a neuron
    assert all("lora" in name or "net.1.modules_to_save" in name for name in learned)
    kinds = [type(layer).__name__ for layer in names["merged"].net]
    assert kinds == ["Linear", "LIF", "Linear", "Readout"]


def opacus(names: Names, folder: Path) -> None:
    before = dict(names["Whole"](names["network"]()).named_parameters())
    moved = {n for n, p in names["model"].named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}


def captum(names: Names, folder: Path) -> None:
    assert names["attributed"].shape == (12, 20, 8)
    assert names["of_currents"].shape == (12, 20, 32)
    assert names["attributed"].abs().sum() > 0
    assert names["delta"].shape == (12,)


def neurobench(names: Names, folder: Path) -> None:
    net, x, results = names["net"], names["x"].transpose(0, 1), names["results"]
    assert results["ActivationSparsity"] == pytest.approx(metrics.activation_sparsity(net, x))
    operations = metrics.synaptic_operations(net, x)
    assert results["SynapticOperations"]["Effective_MACs"] == operations.effective_macs
    assert results["SynapticOperations"]["Effective_ACs"] == operations.effective_acs > 0
    benchmarked: Any = names["Benchmarked"]

    class Every(benchmarked):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(net)
            self.add_activation_module(snn.LeakyIntegrator)

    # the readout among them, whose output is never zero
    measured = [[], [names["ActivationSparsity"]]]
    with torch.no_grad():
        wrong = names["Benchmark"](Every(), names["loader"], [], [], measured).run(quiet=True)
    assert wrong["ActivationSparsity"] < results["ActivationSparsity"] - 0.01


def torchrl(names: Names, folder: Path) -> None:
    rollout = names["rollout"]
    assert rollout["is_init"].sum() > 2  # episodes that begin inside
    assert rollout["mem"].any()
    torch.testing.assert_close(names["log_probs"], rollout["action_log_prob"])
    later = rollout[:, 5:]  # from the states of the middle of an episode
    assert later["mem"][:, 0].any()
    torch.testing.assert_close(names["actor"].log_prob(later), later["action_log_prob"])
    flat = rollout.reshape(-1)
    torch.testing.assert_close(names["actor"].log_prob(flat), flat["action_log_prob"])
    module = names["module"].module
    _, mem = module(rollout["observation"], rollout["is_init"], rollout["mem"])
    torch.testing.assert_close(mem, rollout["next", "mem"])
    names["log_probs"].sum().backward()
    assert all(p.grad.any() for p in module.parameters())


def stable_baselines(names: Names, folder: Path) -> None:
    agent = names["agent"]
    assert tt.get_states(agent.policy) == {}
    agent.save(folder / "agent")
    loaded = type(agent).load(folder / "agent", env=names["env"])
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], value)
    extractor = agent.policy.features_extractor
    assert extractor(torch.rand(3, 4)).shape == (3, 32)
    assert all(p.grad.any() for p in extractor.parameters())  # of the last minibatch
    spiking: Any = names["Spiking"]

    class Keeps(spiking):  # type: ignore[misc]
        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return self.net(observations)

    policy = {**names["policy"], "features_extractor_class": Keeps}
    wrong = type(agent)("MlpPolicy", names["env"], n_steps=64, policy_kwargs=policy, device="cpu")
    with pytest.raises(ValueError, match="holds the state mem of shape"):
        wrong.learn(64)


def elephant(names: Names, folder: Path) -> None:
    expected = names["seen"]["1.output"][:, :1]
    assert torch.equal(names["spikes"], expected)
    assert expected.any()


def nwb(names: Names, folder: Path) -> None:
    from pynwb import NWBHDF5IO

    expected = names["seen"]["1.output"][:, 0].detach()
    with NWBHDF5IO("run.nwb", "r") as io:
        file = io.read()
        found = torch.zeros_like(expected)
        for times, neuron in zip(file.units["spike_times"], file.units["neuron"], strict=True):
            found[(torch.as_tensor(times) * 1000 / 0.5).floor().long(), neuron] = 1
        assert torch.equal(found, expected)
        assert expected.any()
        mem = file.acquisition["mem"]
        assert (mem.rate, mem.starting_time) == (2000, 0.00025)
        assert torch.equal(torch.from_numpy(mem.data[:]), names["seen"]["1.mem"][:, 0].detach())


def tonic(names: Names, folder: Path) -> None:
    assert torch.equal(names["padded"], names["same"])
    assert names["padded"].sum() == 400
    assert names["mask"].sum(0).tolist() == [len(sample) for sample, _ in names["samples"]]


LEARNING = (tensorboard, wandb, accelerate, trainer, peft, opacus, captum, neurobench)
OTHERS = (torchrl, stable_baselines, elephant, nwb, tonic)
CHECKS: dict[str, Callable[[Names, Path], None]] = dict(
    zip(TOOLS, (*LEARNING, *OTHERS), strict=True)
)


@pytest.fixture(autouse=True)
def _fresh_accelerate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in a folder of its own; Accelerate keeps its settings for the whole process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    try:
        from accelerate.state import AcceleratorState
    except ImportError:
        return
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_block_belongs_to_a_tool_and_the_beginning_runs() -> None:
    assert len(SECTIONS[""]) == 1
    assert list(SECTIONS)[1:] == list(TOOLS)
    names = executed()
    whole: nn.Module = names["Whole"](names["network"]())
    logits = whole(names["x"])
    assert logits.shape == (12, 4)
    names["cross_entropy"](logits, names["labels"]).backward()
    assert all(p.grad.any() for p in whole.parameters())
    assert tt.get_states(whole) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the tools' own
@pytest.mark.parametrize("tool", TOOLS)
def test_recipe_runs(tool: str, tmp_path: Path) -> None:
    skip_without(tool)
    CHECKS[tool](executed(tool), tmp_path)
