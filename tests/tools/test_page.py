"""Run the recipes of ``docs/use/with_other_tools.md``, and compare with plain PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import tracetorch as tt
from tracetorch import metrics, snn

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/use/with_other_tools.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.M | re.S)

# what a recipe imports, under the heading of its section
TOOLS = {
    "TensorBoard": ("tensorboard",),
    "Weights & Biases": ("wandb",),
    "Accelerate": ("accelerate",),
    "Hugging Face Trainer": ("transformers", "accelerate"),
    "PEFT": ("peft",),
    "Opacus": ("opacus",),
    "Captum": ("captum",),
    "NeuroBench": ("neurobench", "snntorch"),
    "TorchRL": ("torchrl", "gymnasium"),
    "Stable-Baselines3": ("stable_baselines3",),
    "Neo and Elephant": ("elephant", "neo"),
    "NWB": ("pynwb",),
    "Tonic": ("tonic",),
}


def sections() -> dict[str, list[str]]:
    """Return the blocks of code under each heading that has some; the first ones under ``""``."""
    found = {"": BLOCK.findall(PAGE.partition("\n## ")[0])}
    for part in PAGE.split("\n## ")[1:]:
        blocks = BLOCK.findall(part)
        if blocks:
            found[part.partition("\n")[0]] = blocks
    return found


SECTIONS = sections()


def skip_without(tool: str) -> None:
    """Skip the test where a package of a recipe is not installed."""
    extra = "test-peers" if tool == "NeuroBench" else "test-tools"
    for package in TOOLS[tool]:
        reason = f"{package} is not installed: pip install -e '.[{extra}]'"
        pytest.importorskip(package, reason=reason)


def executed(tool: str = "") -> dict[str, Any]:
    """Run the beginning of the page, and then the recipe of a tool; return what they define."""
    names: dict[str, Any] = {"__name__": __name__}
    for heading in dict.fromkeys(("", tool)):
        for block in SECTIONS[heading]:
            exec(compile(block, f"<{heading or 'the beginning'}>", "exec"), names)
    return names


Names = dict[str, Any]


def tensorboard(names: Names, folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs/digits")).Reload()
    assert len(events.Scalars("loss")) == 3
    assert {"rates", "decays"} <= set(events.Tags()["histograms"])
    assert any("LIF" in node.name for node in events.Graph().node)
    assert tt.get_states(names["net"]) == {}


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


def neurobench(names: Names, folder: Path) -> None:
    net, x, results = names["net"], names["x"].transpose(0, 1), names["results"]
    assert results["ActivationSparsity"] == pytest.approx(metrics.activation_sparsity(net, x))
    operations = metrics.synaptic_operations(net, x)
    assert results["SynapticOperations"]["Effective_MACs"] == operations.effective_macs
    assert results["SynapticOperations"]["Effective_ACs"] == operations.effective_acs > 0


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


CHECKS: dict[str, Callable[[Names, Path], None]] = {
    "TensorBoard": tensorboard,
    "Accelerate": accelerate,
    "Hugging Face Trainer": trainer,
    "PEFT": peft,
    "Opacus": opacus,
    "NeuroBench": neurobench,
    "TorchRL": torchrl,
    "Stable-Baselines3": stable_baselines,
    "NWB": nwb,
    "Tonic": tonic,
}


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
    names = executed(tool)
    if tool in CHECKS:
        CHECKS[tool](names, tmp_path)


# Beside plain PyTorch

NAMES = executed()
Whole, network, cross_entropy = NAMES["Whole"], NAMES["network"], NAMES["cross_entropy"]
x, labels = NAMES["x"], NAMES["labels"]


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 6), snn.Recurrent(snn.LIF(6), nn.Linear(6, 6)), nn.Linear(6, 4), snn.Readout(4)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestOpacus:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        skip_without("Opacus")

    def private(self, model: nn.Module, mode: str, freeze: bool = True) -> Any:
        """Wrap a model, with its neurons frozen."""
        from opacus import PrivacyEngine
        from torch.utils.data import DataLoader, TensorDataset

        for layer in model.modules():
            if freeze and isinstance(layer, snn.Neuron):
                layer.requires_grad_(False)
        return PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
            data_loader=DataLoader(TensorDataset(x, labels), batch_size=4),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            grad_sample_mode=mode,
        )[0]

    @pytest.mark.parametrize("mode", ["hooks", "functorch", "ew"])
    @pytest.mark.parametrize("make", [network, recurrent])
    def test_by_step_gradients_of_samples_are_those_of_each_sequence(self, mode, make) -> None:
        single = Whole(make(), by="step")

        def loss(parameters: Any, sample: Tensor, label: Tensor) -> Tensor:
            logits: Tensor = functional_call(single, parameters, (sample[None],))
            return torch.as_tensor(cross_entropy(logits, label[None]))

        values = {name: p.detach() for name, p in single.named_parameters()}
        expected = vmap(grad(loss), in_dims=(None, 0, 0))(values, x, labels)
        model = Whole(make(), by="step")
        private = self.private(model, mode)
        for _ in range(2):
            private.zero_grad()
            cross_entropy(private(x), labels).backward()
            for name, p in model.named_parameters():
                if p.requires_grad:
                    torch.testing.assert_close(p.grad_sample, expected[name], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("mode", ["hooks", "functorch", "ew"])
    @pytest.mark.parametrize(("by", "freeze"), [("layer", True), ("step", False)])
    def test_anything_else_is_an_error(self, mode: str, by: str, freeze: bool) -> None:
        private = self.private(Whole(network(), by=by), mode, freeze)
        with pytest.raises((ValueError, RuntimeError), match=r"By layer|per sample|Expanded"):
            cross_entropy(private(x), labels).backward()
