"""Test linear layers and convolutions as products."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.cases import layer, sequence
from tests.online_learning.cases import assert_exact


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False, "stride": 2}, {"dilation": 2, "padding": "valid"}],
    ids=["plain", "stride", "dilation"],
)
def test_convolution_is_exact(options: Any) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), **{"padding": (1, 0), **options}),
        nn.BatchNorm2d(3, affine=False),
        layer("LIF", 3, dim=-3),
        nn.Flatten(),
        nn.LazyLinear(2),
    ).double()
    net(sequence(2, 2, 5, 6))
    tt.zero_states(net)
    assert_exact(net.eval(), sequence(10, 2, 2, 5, 6))


def test_pruned_product_has_no_trace() -> None:
    net = nn.Sequential(nn.Linear(6, 5), layer("LIF", 5), nn.Linear(5, 4))
    prune.random_unstructured(net[0], "weight", 0.3)
    with pytest.raises(ValueError, match=r"0.weight_orig -> states of 1: no trace of earlier"):
        tt.online(net)(torch.rand(2, 6))
    tt.zero_states(net)
    learner = tt.online(net, "eprop")
    for step in torch.rand(3, 2, 6):
        learner(step).sum().backward()
