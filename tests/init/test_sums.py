from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tracetorch.init.sums import Sums, with_sums, with_sums_and_signs

OUTPUTS, INPUTS = 7, 40


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return noise, factors of the squares, and where weights are present."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(OUTPUTS, INPUTS, generator=generator, dtype=torch.float64)
    factors = 0.5 + torch.rand(OUTPUTS, INPUTS, generator=generator, dtype=torch.float64)
    return noise, factors, torch.rand(OUTPUTS, INPUTS, generator=generator) < 0.6


def wanted(mean: float, squares: float = 2.0) -> Sums:
    return Sums(*(torch.full((OUTPUTS,), v, dtype=torch.float64) for v in (mean, squares)))


@pytest.mark.parametrize("mean", [0.0, 1.5, -1.5])
@pytest.mark.parametrize("signed", [False, True])
def test_sums_are_those_that_were_wanted(mean: float, signed: bool) -> None:
    noise, factors, present = drawn()
    if signed:
        weights = with_sums_and_signs(noise * present, factors, wanted(mean))
        assert bool((weights * noise >= 0).all())
    else:
        weights = with_sums(noise, factors, present, wanted(mean))
    assert weights.ne(0).equal(present)
    torch.testing.assert_close(weights.sum(1), wanted(mean).weights)
    torch.testing.assert_close((factors * weights.square()).sum(1), wanted(mean).squares)


def test_sums_that_no_weights_have_and_rows_without_inputs_or_of_one_sign() -> None:
    noise, factors, present = drawn()
    assert with_sums(noise, factors, present, wanted(100.0)) is None
    assert with_sums_and_signs(noise, factors, wanted(100.0)) is None
    assert with_sums_and_signs(noise, factors, wanted(-100.0)) is None
    noise, factors, present = drawn()
    present[2] = False
    present[3] = False
    present[3, 5] = True
    weights = with_sums(noise, factors, present, wanted(0.0))
    assert not weights[2].any()
    torch.testing.assert_close((factors * weights.square()).sum(1)[3].item(), 2.0)
    noise[4] = noise[4].abs()
    weights = with_sums_and_signs(noise * present, factors, wanted(0.0))
    assert not weights[2].any()
    assert bool((weights[4] >= 0).all())
    torch.testing.assert_close((factors * weights.square()).sum(1)[4].item(), 2.0)
