"""Kernels written by hand give the same results on processors with narrower registers."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.events.cases import events, results
from tests.fuse.kernels import lesser_machine
from tracetorch.fuse.runtime import machine_code, threads, threefry
from tracetorch.snn import SparseLinear
from tracetorch.unrolling import unroll


def linear() -> tuple[nn.Module, Tensor]:
    return nn.Linear(50, 244), events(300, 50, density=0.1)


def convolution() -> tuple[nn.Module, Tensor]:
    layer = nn.Conv2d(3, 20, 3, stride=2, padding=1, dilation=(1, 2))
    return layer, events(5, 3, 9, 8, density=0.1, weighted=True)


def compile_for_less(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Compile from now on for a processor without vector extensions, beside other caches."""
    patch.setenv("TRACETORCH_CACHE", str(folder))
    patch.setattr(machine_code, "this_machine", lesser_machine)
    patch.setattr(machine_code, "_kernels", {})
    patch.setattr(threads, "_kernel", functools.cache(threads._kernel.__wrapped__))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [linear, convolution])
def test_products_do_not_depend_on_the_processor(make, dtype, tmp_path, monkeypatch):
    layer, x = make()
    layer, x = layer.to(dtype), x.to(dtype)
    expected = list(results(layer, x, by_events=True).values())
    compile_for_less(tmp_path, monkeypatch)
    found = list(results(layer, x, by_events=True).values())
    assert any(path.suffix == ".o" for path in tmp_path.iterdir())
    assert len(found) == 4
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("delay", [None, torch.arange(900) % 4])
def test_sums_over_edges_do_not_depend_on_the_processor(dtype, delay, tmp_path, monkeypatch):
    edges = torch.stack([torch.arange(900) * 7 % 50, torch.arange(900) * 11 % 44])
    layer = SparseLinear(50, 44, edges, delay=delay).to(dtype)
    x = events(9, 3, 50, density=0.2, weighted=True).to(dtype).requires_grad_()

    def found():
        y = unroll(layer, x, from_rest=True)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    expected = found()
    compile_for_less(tmp_path, monkeypatch)
    torch.testing.assert_close(found(), expected, rtol=0, atol=0)
    assert len([path for path in tmp_path.iterdir() if path.suffix == ".o"]) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_numbers_do_not_depend_on_the_processor(dtype, tmp_path, monkeypatch):
    position = torch.arange(1050) * 5_000_000_000
    compile_for_less(tmp_path, monkeypatch)
    found = threefry.compiled_uniforms(position, 3, dtype)
    assert list(tmp_path.iterdir())
    torch.testing.assert_close(found, threefry.uniforms(position, 3, dtype), rtol=0, atol=0)
