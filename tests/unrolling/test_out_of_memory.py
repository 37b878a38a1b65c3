"""A device without memory: states and gradients are as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import snn
from tracetorch.fuse.dispatch.backends import backend_named
from tracetorch.fuse.runtime.cpu import CpuBackend


class Full(nn.Module):
    """A device that has no memory left."""

    def forward(self, x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def full(*given: Any) -> Any:
    return Full()(torch.ones(1))


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("segment", [None, 4])
def test_out_of_memory_leaves_the_states(by: Any, segment: int | None) -> None:
    net = nn.Sequential(snn.LIF(3), nn.ModuleDict({"inner": nn.Identity()})["inner"], snn.LIF(3))
    tt.unroll(net, torch.ones(2, 2, 3))
    before = net[0].mem
    net[1] = nn.Sequential(nn.Identity(), Full())
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 2\.00 GiB"):
        tt.unroll(net, torch.ones(8, 2, 3), by=by, segment=segment)
    assert net[0].mem is before


@pytest.mark.parametrize("by", ["layer", "step"])
def test_a_segment_without_memory_leaves_other_graphs_alone(by: Any) -> None:
    net = nn.Sequential(snn.LIF(3), Full())
    with pytest.raises(torch.OutOfMemoryError) as kept:  # as a notebook keeps the last error
        tt.unroll(net, torch.ones(8, 2, 3), by=by, segment=4)
    x = torch.full((3,), 0.5, requires_grad=True)
    x.square().sum().backward()
    assert torch.equal(torch.ones_like(x), x.grad), kept


@pytest.mark.parametrize("tried", [False, True])
def test_out_of_memory_in_a_kernel(tried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, and where a kernel is tried; states and gradients are as before."""
    monkeypatch.setattr(backend_named("cpu"), "tried", tried)
    net = nn.Sequential(nn.Linear(3, 3), snn.LIF(3, beta=0.8125))
    y = tt.unroll(net, torch.ones(8, 2, 3))
    before = net[1].mem
    for kernel in ("forward", "backward"):
        monkeypatch.setattr(CpuBackend, kernel, full)
    with pytest.raises(torch.OutOfMemoryError, match="in the backward pass of LIF, of 8 steps: CU"):
        y.sum().backward()
    assert net[1].raw_beta.grad is None
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        tt.unroll(net, torch.ones(8, 2, 3))
    assert net[1].mem is before
