from __future__ import annotations

import math

import pytest
import torch

from tracetorch import encode


@pytest.mark.parametrize("beta", [0.3, 1.2])
def test_receptive_fields_equal_those_of_the_paper(beta: float) -> None:
    n, low, high = 7, -2.0, 3.0
    x = torch.linspace(-3, 4, 29, dtype=torch.float64)
    got = encode.population(x, n, low=low, high=high, overlap=beta)
    assert got.shape == (29, n)
    for i in range(1, n + 1):
        centre = low + (2 * i - 3) / 2 * (high - low) / (n - 2)
        width = (high - low) / (beta * (n - 2))
        for k in range(29):
            expected = math.exp(-((x[k].item() - centre) ** 2) / (2 * width**2))
            assert got[k, i - 1].item() == pytest.approx(expected, rel=1e-12)


def test_gradient_dtype_and_shape_of_fields_and_repetition() -> None:
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: encode.population(v, 5), x)
    assert encode.population(torch.rand(4, 2, 3).bfloat16(), 6).dtype == torch.bfloat16
    assert encode.population(torch.rand(4, 2, 3), 6).shape == (4, 2, 3, 6)
    x = torch.rand(2, 3, requires_grad=True)
    y = encode.repeat(x, 5)
    assert y.shape == (5, 2, 3)
    assert y.data_ptr() == x.data_ptr()
    assert all(torch.equal(step, x) for step in y)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((2, 3), 5.0))
