"""Hooks of PyTorch and of engines by layer: those that keep nothing run, the others are named."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.unrolling.models import Whole
from tracetorch import metrics, snn
from tracetorch.export.program import step_signature

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


class Halved(prune.BasePruningMethod):
    """A method of a user's own, by PyTorch's product."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


class Fading(Halved):
    """A method that keeps something from call to call: each weakens the weight."""

    strength = 1.0

    def apply_mask(self, module: nn.Module) -> Any:
        self.strength *= 0.5
        return super().apply_mask(module) * self.strength


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8),
        snn.LIF(8),
        nn.Linear(8, 6),
        snn.Recurrent(snn.LIF(6), nn.Linear(6, 6)),
        nn.Linear(6, 3),
        snn.Readout(3),
    )


WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "pruned": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "pruned twice": lambda m: (
        prune.random_structured(m[2], "weight", 0.3, dim=0),
        prune.l1_unstructured(m[2], "weight", 0.3),
    ),
    "pruned neuron": lambda m: prune.l1_unstructured(m[1], "raw_beta", 0.5),
    "pruned recurrence": lambda m: prune.random_unstructured(m[3].connection, "weight", 0.5),
    "of a user's own": lambda m: Halved.apply(m[0], "weight"),
    "weight norm": lambda m: nn.utils.weight_norm(m[0]),
    "spectral norm": lambda m: nn.utils.spectral_norm(m[0]),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("segment", [None, 2])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_hooks_compute_anew_run_by_layer(kind: str, segment: int | None) -> None:
    model, x = net(), torch.rand(5, 2, 4) * 3
    WEIGHTS[kind](model)
    model.eval()  # in training a spectral norm moves its vectors
    for _ in range(2):  # the second time what the hook has set is stale
        results = []
        for by in ("layer", "step"):
            y = tt.unroll(model, x, by=by, from_rest=True, segment=segment)
            grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
            results.append([y, *grads])
        torch.testing.assert_close(*results)
        assert results[0][0].abs().sum() > 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    if segment is None:
        assert metrics.profile(model, x, repeats=1).operations.effective > 0
        assert tt.diagnose(model, (x,), lambda y: y.square().sum()).findings is not None
        with torch.no_grad():
            tt.unroll(model, x)
        assert "1.mem" in step_signature(model, x[0]).states


def keep_mask(module: Any, args: Any) -> None:
    module.weight_mask = torch.roll(module.weight_mask, 1)


MEMORIES: dict[str, Callable[[Any], Any]] = {
    "fading": lambda m: Fading.apply(m[0], "weight"),
    "mask": lambda m: (WEIGHTS["pruned"](m), m[0].register_forward_pre_hook(keep_mask)),
}


@pytest.mark.parametrize("kind", MEMORIES)
def test_memory_of_a_hook_is_still_found(kind: str) -> None:
    model, x = net(), torch.rand(5, 2, 4)
    MEMORIES[kind](model)
    with pytest.raises(ValueError, match="the model remembers something from step to step"):
        tt.unroll(model, x)
    tt.unroll(model, x, by="step")


# Engines that compute gradients per sample: Opacus, or a few hooks that do what it does.


class PerSample:
    """Hooks as Opacus has them: inputs kept on the layer, gradients per sample on parameters."""

    def __init__(self, model: nn.Module) -> None:
        for module in model.modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                vars(module)["activations"] = []
                module.register_forward_hook(lambda m, args, y: m.activations.append(args[0]))
                module.register_full_backward_hook(self.capture_backprops)

    def capture_backprops(self, module: Any, grad_input: Any, grad_output: Any) -> None:
        """Compute in a transform of the layer, as for those that Opacus does not know."""
        bare = copy.copy(module)
        bare._forward_hooks, bare._backward_hooks = OrderedDict(), OrderedDict()

        def loss(values: Any, x: Tensor, grad: Tensor) -> Tensor:
            y: Tensor = torch.func.functional_call(bare, values, (x[None],))
            return (y * grad[None]).sum()

        samples = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
            dict(module.named_parameters()), module.activations.pop().detach(), grad_output[0]
        )
        for name, values in samples.items():
            parameter = getattr(module, name)
            parameter.grad_sample = getattr(parameter, "grad_sample", 0.0) + values


def test_gradients_per_sample_by_step_are_those_of_each_sequence() -> None:
    first, neurons, second, *_ = net()
    neurons.requires_grad_(False)
    readout = snn.Readout(6, learn_beta=False)
    model, x = nn.Sequential(first, neurons, second, readout).double(), torch.rand(5, 3, 4).double()
    x, whole = 3 * x, Whole(model)

    def loss(parameters: Any, x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(whole, parameters, (x[:, None],))
        return y.square().sum()

    learned = {n: p.detach() for n, p in whole.named_parameters() if p.requires_grad}
    expected = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(learned, x)
    tt.zero_states(model)
    PerSample(model)
    tt.unroll(model, x.requires_grad_(), by="step").square().sum().backward()
    for name, values in expected.items():
        found = whole.get_parameter(name).grad_sample  # type: ignore[attr-defined]
        torch.testing.assert_close(found, values)
        assert values.abs().sum() > 0
    learning = net()  # its neurons, whose parameters are used at every step
    PerSample(learning)
    y = tt.unroll(learning, torch.rand(5, 3, 4).requires_grad_(), by="step").sum()
    with pytest.raises(RuntimeError, match=r"per sample \(Opacus\).*freeze the param"):
        y.backward()


def test_opacus_is_known_by_its_classes_and_runs_by_step() -> None:
    base = type("AbstractGradSampleModule", (nn.Sequential,), {})
    base.__module__ = "opacus.grad_sample.gsm_base"
    wrapped: Any = type("GradSampleModule", (base,), {})
    none: Any = type("GradSampleModuleNoOp", (base,), {})
    none.__module__ = "opacus.grad_sample.gsm_no_op"
    x, batches = torch.rand(5, 2, 4), []
    for kind in (wrapped, none):
        model = kind(net())
        model.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
        tt.unroll(model, x)
    assert batches[:5] == [2] * 5  # a sample is a sample
    assert batches[5] == 10
