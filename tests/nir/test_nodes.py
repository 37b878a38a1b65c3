from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tracetorch.nir.nodes import Clock


@pytest.mark.parametrize("discretization", ["euler", "exponential"])
def test_tau_and_decay_are_inverse(discretization: Any) -> None:
    clock = Clock(1e-4, discretization)
    complement = np.array([1e-9, 0.1, 0.5, 0.999])
    np.testing.assert_allclose(clock.complement(clock.tau(complement)), complement, rtol=1e-12)


def test_the_equations() -> None:
    tau = np.array([1e-3])
    assert Clock(1e-4).complement(tau) == pytest.approx(0.1)
    assert Clock(1e-4, "exponential").complement(tau) == pytest.approx(1 - math.exp(-0.1))


@pytest.mark.parametrize("dt", [0, -1e-4, math.inf, math.nan])
def test_a_step_takes_time(dt: float) -> None:
    with pytest.raises(ValueError, match=r"dt must be positive and finite"):
        Clock(dt)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"dt must be a number of seconds"):
        Clock("1e-4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"discretization must be 'euler'"):
        Clock(1e-4, "midpoint")  # type: ignore[arg-type]
