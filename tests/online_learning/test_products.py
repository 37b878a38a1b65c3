"""Test linear layers and convolutions as products."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import tracetorch as tt
from tests.cases import layer, sequence
from tests.online_learning.cases import (
    assert_exact,
)


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
