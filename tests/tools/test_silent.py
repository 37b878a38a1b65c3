"""Compare what other tools compute with plain PyTorch, for ``docs/use/with_other_tools.md``.

Where a tool is wrong in silence, it is held to being wrong: when that changes, the page has to.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import tracetorch as tt
from tests.tools.page import executed, skip_without
from tracetorch import snn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the tools' own

NAMES = executed()
Whole, network, cross_entropy = NAMES["Whole"], NAMES["network"], NAMES["cross_entropy"]
x, labels = NAMES["x"], NAMES["labels"]
T, B = 20, 12


class Keeping(nn.Module):
    """A model that goes on from the states of the last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = tt.unroll(self.net, x, time_dim=1).mean(1)
        if labels is None:
            return logits
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 6),
        snn.Recurrent(snn.LIF(6), nn.Linear(6, 6)),
        nn.Linear(6, 4),
        snn.Readout(4),
    )


def size(values: Tensor) -> float:
    return float(values.detach().abs().max())


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
        arguments = {"criterion": nn.CrossEntropyLoss()} if mode == "ghost" else {}
        return PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
            data_loader=DataLoader(TensorDataset(x, labels), batch_size=4),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            grad_sample_mode=mode,
            **arguments,
        )[0]

    @pytest.mark.parametrize("mode", ["hooks", "functorch", "ew"])
    @pytest.mark.parametrize("make", [network, recurrent])
    def test_by_step_gradients_of_samples_are_those_of_each_sequence(
        self, mode: str, make: Any
    ) -> None:
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

    def test_ghost_clipping_is_an_error(self) -> None:
        with pytest.raises(NotImplementedError, match="Parameter tying"):
            self.private(Whole(network(), by="step"), "ghost")(x)


class TestCaptum:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        skip_without("Captum")

    def test_batches_inside_change_nothing_from_rest(self) -> None:
        from captum.attr import IntegratedGradients

        whole, keeping = IntegratedGradients(Whole(network())), IntegratedGradients(Keeping())
        options = {"target": labels, "n_steps": 20}
        expected = whole.attribute(x, **options)
        for inside in (7, 24):
            found = whole.attribute(x, internal_batch_size=inside, **options)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        found = keeping.attribute(x, internal_batch_size=24, **options)
        assert size(found - expected) > 0.05 * size(expected)

    def test_what_adds_up(self) -> None:
        from captum.attr import IntegratedGradients, ShapleyValueSampling

        model = Whole(network())
        with torch.no_grad():
            change = (model(x) - model(0 * x)).gather(1, labels[:, None])[:, 0]
        for steps in (20, 200):
            _, delta = IntegratedGradients(model).attribute(
                x, target=labels, n_steps=steps, return_convergence_delta=True
            )
            assert size(delta) > 0.05 * size(change)
        features = torch.arange(8)[None, None]
        shapley = ShapleyValueSampling(model).attribute(
            x, target=labels, feature_mask=features.expand(1, T, 8).contiguous(), n_samples=2
        )
        of_features = shapley[:, 0].sum(1)  # the value of a feature stands at each of its steps
        torch.testing.assert_close(of_features, change, rtol=1e-4, atol=1e-5)

    def test_deep_lift_is_gradient_times_input(self) -> None:
        from captum.attr import DeepLift, InputXGradient

        model = Whole(network())
        found = DeepLift(model).attribute(x, target=labels)
        torch.testing.assert_close(found, InputXGradient(model).attribute(x, target=labels))

    def test_layers_are_cut_and_not_hooked(self) -> None:
        from captum.attr import (
            DeepLift,
            IntegratedGradients,
            LayerActivation,
            LayerDeepLift,
            LayerGradientXActivation,
            LayerIntegratedGradients,
        )

        model = Whole(network())
        first, head = model.net[0], Whole(model.net[1:])
        currents, rest = first(x).detach(), first(0 * x).detach()

        def sorted_rows(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (T, B)).transpose(0, 1)

        options = {"target": labels, "n_steps": 8}
        expected = IntegratedGradients(head).attribute(currents, rest, **options)
        layer = LayerIntegratedGradients(model, first)
        one_by_one = sorted_rows(layer.attribute(x, 0 * x, internal_batch_size=B, **options))
        torch.testing.assert_close(one_by_one, expected, rtol=1e-4, atol=1e-6)
        mixed = sorted_rows(layer.attribute(x, 0 * x, **options))
        assert size(mixed - expected) > 0.2 * size(expected)
        lifted = DeepLift(head).attribute(currents, rest, target=labels)
        mixed = sorted_rows(LayerDeepLift(model, first).attribute(x, 0 * x, target=labels))
        assert size(mixed - lifted) > 0.2 * size(lifted)
        rows = LayerGradientXActivation(model, first).attribute(x, target=labels)
        assert rows.shape == (T * B, 32)
        found = rows.unflatten(0, (T, B)).transpose(0, 1)  # as the page says
        torch.testing.assert_close(
            LayerActivation(model, first).attribute(x).unflatten(0, (T, B)).transpose(0, 1),
            currents,
        )
        currents.requires_grad_()
        chosen = head(currents).gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, currents)
        torch.testing.assert_close(found, gradient * currents, rtol=1e-4, atol=1e-6)


class TestTrainer:
    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        skip_without("Hugging Face Trainer")
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.chdir(tmp_path)

    def trainer(self, model: nn.Module, **options: Any) -> Any:
        from transformers import Trainer, TrainingArguments

        data = [{"x": s, "labels": label} for s, label in zip(x, labels, strict=True)]
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True}
        return Trainer(model, TrainingArguments("run", **quiet, **options), eval_dataset=data)

    def test_its_own_optimizer_shrinks_decays_and_thresholds(self) -> None:
        model = Keeping()
        trainer = self.trainer(model, weight_decay=0.1)
        group = trainer.create_optimizer().param_groups[0]
        names = {id(p): name for name, p in model.named_parameters()}
        shrunk = {names[id(p)] for p in group["params"]}
        assert group["weight_decay"] == 0.1
        assert {"net.1.raw_beta", "net.1.raw_pos_threshold"} <= shrunk
        ours = tt.param_groups(model, weight_decay=0.1)
        spared = [p for g in ours if g["weight_decay"] == 0 for p in g["params"]]
        assert any(p is model.get_parameter("net.1.raw_beta") for p in spared)

    def test_evaluation_goes_on_from_the_last_batch_in_a_model_that_keeps_states(self) -> None:
        with torch.no_grad():
            expected = Whole(network())(x)
        found = self.trainer(Keeping(), per_device_eval_batch_size=4)
        logits = torch.from_numpy(found.predict(found.eval_dataset).predictions)
        torch.testing.assert_close(logits[:4], expected[:4])
        assert size(logits[4:] - expected[4:]) > 0.01
        other = self.trainer(Keeping(), per_device_eval_batch_size=8)  # 8 and 4
        with pytest.raises(ValueError, match="holds the state mem of shape"):
            other.predict(other.eval_dataset)


class TestPeft:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        skip_without("PEFT")

    @pytest.mark.parametrize(
        ("make", "targets", "options"),
        [
            (network, ["net.0", "net.2"], {}),
            (network, ["net.0", "net.2"], {"use_dora": True}),
            (network, ["net.2"], {"modules_to_save": ["net.1"]}),
            (recurrent, ["net.1.connection"], {}),
        ],
        ids=["LoRA", "DoRA", "neuron", "recurrent"],
    )
    def test_adapters_act_by_layer_by_step_and_merged(
        self, make: Any, targets: list[str], options: dict[str, Any]
    ) -> None:
        from peft import LoraConfig, get_peft_model

        with torch.no_grad():
            plain = Whole(make())(x)
            config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **options)
            adapted = get_peft_model(Whole(make()), config)
            found = adapted(x)
            inner = adapted.base_model.model.net
            torch.testing.assert_close(Whole(inner, by="step")(x), found, rtol=1e-4, atol=1e-5)
            assert size(found - plain) > 0.01
            with adapted.disable_adapter():
                torch.testing.assert_close(adapted(x), plain)
            torch.testing.assert_close(adapted.merge_and_unload()(x), found, rtol=1e-4, atol=1e-5)


class TestTonic:
    def test_its_defaults_lose_events_and_the_mask(self) -> None:
        skip_without("Tonic")
        import numpy as np
        from tonic.collation import PadTensors
        from tonic.transforms import ToFrame

        events = np.zeros(50, [("x", int), ("y", int), ("t", int), ("p", int)])
        events["t"] = 190 * np.arange(50)  # to 9310
        size = (1, 1, 1)
        assert ToFrame(size, time_window=1000)(events).sum() == 48
        assert ToFrame(size, n_time_bins=10)(events).sum() == 49
        short = events[:3].copy()
        short["t"] = [0, 10, 19]  # a span of 19 makes 10 bins of 1, not of 1.9
        assert ToFrame(size, n_time_bins=10)(short).sum() == 1
        assert ToFrame(size, time_window=1000, include_incomplete=True)(events).sum() == 50
        assert tt.data.Frames([(events, 0)], size, window=1000.0)[0][0].sum() == 50
        padded = PadTensors(batch_first=False)([(torch.ones(3, 1), 0), (torch.ones(2, 1), 1)])
        assert len(padded) == 2
        assert padded[0][2, 1] == 0
