"""The quantised ReLU rounds to its levels, and its clip learns."""

from __future__ import annotations

import copy

import pytest
import torch

from tracetorch.convert import QuantizedReLU


@pytest.mark.parametrize("levels", [1, 3, 8])
def test_values_are_the_formula(levels: int) -> None:
    relu = QuantizedReLU(levels, 2.0).double()
    x = torch.linspace(-3, 5, 257).double()
    wanted = torch.floor(levels * x / 2 + 0.5).clamp(0, levels) * 2 / levels
    assert torch.allclose(relu(x), wanted, atol=1e-12)
    assert len(relu(x).unique()) == levels + 1


def test_gradient_passes_the_rounding_and_reaches_the_clip() -> None:
    relu = QuantizedReLU(4, 2.0)
    x = torch.tensor([-1.0, 0.8, 1.9, 5.0], requires_grad=True)
    y = relu(x)
    assert y.tolist() == [0.0, 1.0, 2.0, 2.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    # what is clipped counts whole, what is rounded by how much, as a share of the clip
    assert relu.clip.grad is not None
    assert relu.clip.grad.item() == pytest.approx(1.0 + 0.1 + 0.05)


def test_clip_below_zero_stays_usable_and_comes_back() -> None:
    relu = QuantizedReLU(4)
    relu.clip.data.fill_(-1.0)
    y = relu(torch.ones(3))
    assert (y > 0).all()
    y.sum().backward()
    assert relu.clip.grad is not None
    assert relu.clip.grad.item() == 3.0


def test_it_prints_copies_and_keeps_a_narrow_dtype() -> None:
    relu = copy.deepcopy(QuantizedReLU(4, 2.0))
    assert repr(relu) == "QuantizedReLU(levels=4, clip=2)"
    assert relu(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert relu(torch.ones(0, 3)).shape == (0, 3)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="levels must be at least 1"):
        QuantizedReLU(0)
    with pytest.raises(ValueError, match="clip must be positive"):
        QuantizedReLU(4, 0.0)
