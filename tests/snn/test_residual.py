import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import module, stepped, weighted_sum
from tracetorch import snn


def spikes(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) < 0.5).double()


@pytest.mark.parametrize(
    ("combine", "expected", "first"),
    [("add", [2, 1, 1, 0], 2), ("and", [1, 0, 0, 0], 1), ("iand", [0, 0, 1, 0], 0)],
)
def test_combinations(combine: Any, expected: list[float], first: float) -> None:
    fixed = module(lambda s, x: torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(len(x), 4))
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert snn.SEWBlock(fixed, combine)(x).tolist() == [expected]
    y = snn.SEWBlock(fixed, combine, fixed)(torch.ones(1, 2))
    assert y.tolist() == [[first, first, 0, 0]]


def network(combine: Any) -> Any:
    torch.manual_seed(0)

    def body(into: int, stride: int, kernel: int = 3) -> nn.Sequential:
        conv = nn.Conv2d(into, 4, kernel, stride, kernel // 2)
        return nn.Sequential(conv, nn.BatchNorm2d(4), snn.LIF(4, dim=-3))

    shortcut = body(4, 2, kernel=1)
    return nn.Sequential(
        body(2, 1),
        snn.SEWBlock(body(4, 1), combine),
        snn.SEWBlock(nn.Sequential(body(4, 2)), combine, shortcut),
        *(nn.Flatten(), nn.Linear(16, 3), snn.Readout(3)),
    ).double()


@pytest.mark.parametrize("combine", ["add", "and", "iand"])
@pytest.mark.parametrize("training", [False, True])
def test_blocks_run_by_layer_and_by_step(combine: Any, training: bool) -> None:
    net, x = network(combine).train(training), spikes(5, 3, 2, 4, 4)
    other = copy.deepcopy(net)
    y = tt.unroll(net, x)
    weighted_sum(y).backward()
    if training:  # a batch norm sees all steps by layer
        found = set(tt.unroll(net[:3], x, from_rest=True).unique().tolist())
        assert found == {0.0, 1.0, 2.0} if combine == "add" else found <= {0.0, 1.0}
        net = copy.deepcopy(net).eval()
        assert torch.equal(tt.unroll(net, x, from_rest=True, check=True).isfinite(), y.isfinite())
        return
    stacked = stepped(other, x)
    weighted_sum(stacked).backward()
    torch.testing.assert_close(stacked, y)
    torch.testing.assert_close(*([p.grad for p in each.parameters()] for each in (net, other)))
    net[1].zero_states()
    assert net[1].body[2].mem is None
    assert net[2].body[0][2].mem is not None


def test_nir_adds_and_refuses_products() -> None:
    body = nn.Sequential(nn.Linear(4, 4), snn.LIF(4)).double()
    net, x = nn.Sequential(snn.SEWBlock(body)), spikes(5, 2, 4)
    read = tt.nir.from_nir(tt.nir.to_nir(net, (4,), dt=1e-4), dt=1e-4)
    with torch.no_grad():
        expected = tt.unroll(net, x)
        assert torch.equal(stepped(read, x), expected)
    with pytest.raises(ValueError, match=r"mul\(\) in the model's forward has no counterpart"):
        tt.nir.to_nir(snn.SEWBlock(body, "and"), (4,), dt=1e-4)
