from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tracetorch import snn
from tracetorch.snn import lost_writes


def assign_item(neurons: snn.LIF) -> None:
    neurons.beta[0] = 0.1


def write_under_no_grad(neurons: snn.LIF) -> None:
    with torch.no_grad():
        neurons.beta.mul_(0.5)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize(
    "write",
    [
        lambda neurons: neurons.beta.fill_(0.1),
        lambda neurons: neurons.beta[0].fill_(0.1),
        lambda neurons: neurons.beta[:2].copy_(torch.zeros(2)),
        lambda neurons: nn.init.constant_(neurons.beta, 0.1),
        assign_item,
        write_under_no_grad,
    ],
)
def test_a_write_that_is_lost_is_warned_of(write: Callable[[snn.LIF], None], learn: bool) -> None:
    neurons = snn.LIF(3, learn_beta=learn)
    with pytest.warns(UserWarning, match=r"LIF\(3.* is as it was: .*layer\.beta = value") as seen:
        write(neurons)
    assert seen[0].filename == __file__
    assert neurons.beta.tolist() == pytest.approx([0.9] * 3)


def test_what_is_kept_or_only_read_is_not_warned_of() -> None:
    neurons = snn.BSRLIF(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scratch = neurons.beta
        scratch.mul_(2)
        del scratch
        assert neurons.beta.mul_(2).sum() > 0
        with torch.no_grad():
            neurons.beta *= 0.5
        neurons.beta = neurons.beta.detach().clone().mul_(0.5)
        neurons.beta.sum().backward()
        neurons.bias.data.fill_(0.3)  # no constraint: the parameter itself
        torch.func.grad(lambda raw: torch.sigmoid(raw).sum() + neurons.beta.sum())(torch.zeros(3))
        torch.func.vmap(lambda x: x * neurons.beta)(torch.ones(2, 3))
        with torch.inference_mode():
            neurons.beta.mul(2)
        with torch.no_grad():
            rows, held = torch.zeros(2, 3), [neurons.beta]
            rows[0] = neurons.beta.mul_(2)
            rows[:1] = neurons.beta.mul_(2)
            held[0].mul_(2)
            held.pop()
            for value in [neurons.beta, neurons.gamma]:
                if value.mul_(2).sum() > 0:
                    break
    assert rows[0].tolist() == pytest.approx([0.45] * 3)
    assert neurons.beta.tolist() == pytest.approx([0.225] * 3)
    assert neurons.bias.tolist() == pytest.approx([0.3] * 3)


def test_a_read_that_leaves_nothing_to_write_to_is_not_followed() -> None:
    neurons = snn.LIF(3)

    def returned() -> torch.Tensor:
        return neurons.beta

    held = returned(), neurons.beta
    value = neurons.beta
    neurons.beta  # noqa: B018 (a statement that throws the value away)
    followed = [read.value() for read in lost_writes._reads.values()]
    assert not any(each is value or each is held[0] for each in followed)
    assert any(each is held[1] for each in followed), "an argument may be written to"
