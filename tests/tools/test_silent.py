"""Compare what other tools compute with plain PyTorch, for ``docs/use/with_other_tools.md``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tests.tools.page import executed, skip_without
from tracetorch import snn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the tools' own

NAMES = executed()
Whole, network, cross_entropy = NAMES["Whole"], NAMES["network"], NAMES["cross_entropy"]
x, labels = NAMES["x"], NAMES["labels"]
T, B = 20, 12


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 6), snn.Recurrent(snn.LIF(6), nn.Linear(6, 6)), nn.Linear(6, 4), snn.Readout(4)
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

    def test_ghost_clipping_is_an_error(self) -> None:
        with pytest.raises(NotImplementedError, match="Parameter tying"):
            self.private(Whole(network(), by="step"), "ghost")(x)


class TestCaptum:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        skip_without("Captum")

    def test_layers_are_cut_and_not_hooked(self) -> None:
        from captum.attr import (
            IntegratedGradients,
            LayerActivation,
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
        rows = LayerGradientXActivation(model, first).attribute(x, target=labels)
        assert rows.shape == (T * B, 32)
        found = sorted_rows(rows)  # as the page says
        active = sorted_rows(LayerActivation(model, first).attribute(x))
        torch.testing.assert_close(active, currents)
        currents.requires_grad_()
        chosen = head(currents).gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, currents)
        torch.testing.assert_close(found, gradient * currents, rtol=1e-4, atol=1e-6)


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
    def test_adapters_act_by_layer_by_step_and_merged(self, make, targets, options) -> None:
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
