"""Between a decay per time step and a time constant in seconds."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Discretization: TypeAlias = Literal["euler", "exponential"]


@dataclass(frozen=True)
class Clock:
    """How one time step stands for continuous time.

    ``"euler"``: ``decay = 1 - dt / tau``. ``"exponential"``: ``decay = exp(-dt / tau)``. Both go
    through the complement ``1 - decay``, which keeps its digits where a decay is close to one.

    Args:
        dt: seconds per time step.
        discretization: ``"euler"`` or ``"exponential"``.

    Raises:
        TypeError: ``dt`` is not a number.
        ValueError: ``dt`` is not positive and finite, or ``discretization`` is another word.
    """

    dt: float
    discretization: Discretization = "euler"

    def __post_init__(self) -> None:
        if isinstance(self.dt, bool) or not isinstance(self.dt, numbers.Real):
            raise TypeError(f"dt must be a number of seconds, got {self.dt!r}.")
        if not (self.dt > 0 and math.isfinite(self.dt)):
            raise ValueError(f"dt must be positive and finite, got {self.dt}. Try dt=1e-4.")
        if self.discretization not in ("euler", "exponential"):
            raise ValueError(
                "discretization must be 'euler' (decay = 1 - dt / tau) or 'exponential' "
                f"(decay = exp(-dt / tau)), got {self.discretization!r}."
            )

    def tau(self, complement: Array) -> Array:
        """The time constant of a trace that forgets ``complement = 1 - decay`` in a step."""
        if self.discretization == "euler":
            return np.asarray(self.dt / complement)
        with np.errstate(divide="ignore"):
            return np.asarray(-self.dt / np.log1p(-complement))

    def complement(self, tau: Array) -> Array:
        """``1 - decay`` of a trace with time constant ``tau``; above 1 where a step is too long."""
        if self.discretization == "euler":
            return np.asarray(self.dt / tau)
        return np.asarray(-np.expm1(-self.dt / tau))
