"""Test the derivatives by lane: what is more than a pointwise step is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fuse.test_sequence import MixingNeuron
from tests.online_learning.cases import assert_refused
from tracetorch import snn


class Drawing(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = 0.5 * mem + x + torch.rand_like(x)
        return mem, mem


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (MixingNeuron, "has a step that mixes neurons or samples"),
        (Drawing, "has other states than its step computes from the same input"),
    ],
)
def test_more_than_a_pointwise_step_is_refused(kind: type[snn.Neuron], message: str) -> None:
    assert_refused(kind(6), message)
