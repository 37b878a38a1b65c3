"""Hooks that act within a block, and a model that is restored behind one."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.cases import layer
from tracetorch import snn
from tracetorch.core.hooks import forward_hooks, hooked_weights
from tracetorch.core.snapshot import restored, restored_on_error


class ChangedByARun(snn.TTModule):
    """Model whose run changes weights, buffers, states, attributes and gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.hidden = [layer("SLIF", 4)]
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.net[0].weight.clamp_(-0.1, 0.1)
        self.last = self.hidden[0](self.net(x))
        return self.last


def change(model: ChangedByARun) -> None:
    tt.zero_states(model)
    model.train()
    model(torch.rand(5, 3)).sum().backward()
    model.net[0].requires_grad_(False)
    model.net[0].bias = None
    model(torch.rand(5, 7))


def test_everything_is_restored() -> None:
    model = ChangedByARun()
    model(torch.rand(2, 3)).sum().backward()
    nn.init.uniform_(model.net[0].weight, -1, 1)
    model.net[1].eval()
    with torch.no_grad():
        model.net[0].bias[0] = torch.nan
    state = model.hidden[0].mem
    last, grad = model.last, model.net[0].bias.grad
    before = copy.deepcopy(model.state_dict())
    version = model.net[0].bias._version
    random_state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="cannot be multiplied"), restored(model):
        change(model)
    assert model.hidden[0].mem is state
    assert model.last is last
    assert model.net[0].bias.grad is grad
    assert model.net[0].weight.requires_grad
    assert not model.net[1].training
    assert model.net[2].training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    assert model.net[0].bias._version == version
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_graph_without_its_backward_stays_usable() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), layer("LIF", 4), nn.Linear(4, 2))
    y = model(torch.rand(2, 3)).sum()
    with restored(model):
        tt.zero_states(model)
        model(torch.rand(2, 3))
    y.backward()
    assert model[0].weight.grad is not None


@pytest.mark.filterwarnings("ignore:.torch.jit.*. is deprecated")
@pytest.mark.parametrize("change", [lambda module: module, torch.jit.freeze])
def test_modules_that_torch_jit_has_compiled_are_left_to_it(change: Any) -> None:
    net: Any = nn.Sequential(change(torch.jit.script(nn.BatchNorm1d(3).eval())), layer("LIF", 3))
    net[1](torch.ones(2, 3))
    state = net[1].mem
    with restored(net):
        net.note = "changed"
        net(torch.ones(2, 3))
    assert net[1].mem is state
    assert not hasattr(net, "note")
    assert not getattr(net[0], "training", False)


def test_values_come_back_where_a_block_fails_alone() -> None:
    tensor = nn.Parameter(torch.ones(3))
    with restored_on_error([tensor]), torch.no_grad():
        tensor.fill_(2.0)
    assert bool((tensor == 2).all())
    with pytest.raises(RuntimeError), restored_on_error([tensor]):
        tensor.data.fill_(3.0).view(7)
    assert bool((tensor == 2).all())


# Hooks for a block


def double(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (2 * args[0],)


def hook_count(*modules: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)


def test_hooks_act_within_the_block_beside_those_of_others() -> None:
    module, x, seen = nn.Identity(), torch.tensor([3.0]), list[Any]()
    with forward_hooks(before=[(module, double)], after=[(module, lambda *given: given[3] + 1)]):
        assert module(x).item() == 7.0
    assert module(x).item() == 3.0
    assert hook_count(module) == 0
    with forward_hooks(before=[(module, lambda *_: None)], after=[(module, lambda *_: None)]):
        assert module(x) is x
    module.register_forward_pre_hook(double)  # another's, which stay
    module.register_forward_hook(lambda module, args, y: y + 1)
    note = lambda module, args, kwargs, y: seen.append((y.item(), kwargs))  # noqa: E731
    early = lambda module, args, kwargs: seen.append(args[0].item())  # noqa: E731
    hooks: dict[str, Any] = {"earliest": [(module, early)], "first": [(module, note)]}
    with forward_hooks(**hooks, before=[(module, double)], after=[(module, note)]):
        module(x)
    assert seen == [3.0, (12.0, {}), (13.0, {})]
    assert hook_count(module) == 2
    linear, x = nn.Linear(2, 2), torch.ones(1, 2)
    with forward_hooks(after=[(linear, lambda module, args, kwargs, y: seen.append(kwargs))]):
        linear(input=x)
    assert seen[-1]["input"] is x


def failing(module: nn.Module, hook: Any) -> Iterator[tuple[nn.Module, Any]]:
    yield module, hook
    raise RuntimeError("failed midway")


@pytest.mark.parametrize("argument", ["earliest", "before", "first", "after"])
def test_error_while_registering_removes_all_hooks(argument: str) -> None:
    first, second = nn.Identity(), nn.Identity()
    hooks: dict[str, Any] = {"before": [(first, double)], argument: failing(second, double)}
    with pytest.raises(RuntimeError, match=r"^failed midway$"), forward_hooks(**hooks):
        pytest.fail("the block ran")
    assert hook_count(first, second) == 0


def test_hooked_weights_are_named() -> None:
    layer = nn.Linear(3, 3)
    assert hooked_weights(layer) == set()
    prune.identity(layer, "bias")
    prune.random_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "weight", 0.5)  # by a container of both
    assert hooked_weights(layer) == {"weight", "bias"}
