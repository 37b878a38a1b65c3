import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer
from tracetorch import snn
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
