"""Define the options of a conversion: the length of a time step, and what may be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tracetorch.core.checks import check_choice, check_flag, check_positive

Array: TypeAlias = NDArray[np.float64]
Discretization: TypeAlias = Literal["euler", "exponential"]
Mode: TypeAlias = Literal["exact", "compact"]
Reset: TypeAlias = Literal["zero", "subtract"]


@dataclass(frozen=True)
class Clock:
    """Convert between the decay of one time step and a time constant in seconds.

    ``"euler"``: ``decay = 1 - dt / tau``. ``"exponential"``: ``decay = exp(-dt / tau)``. Both go
    through the complement ``1 - decay``, which keeps its digits where a decay is close to one.
    """

    dt: float
    discretization: Discretization = "euler"

    def __post_init__(self) -> None:
        check_positive("dt", self.dt, unit="seconds")
        if self.discretization not in ("euler", "exponential"):
            allowed = "'euler' (1 - dt / tau) or 'exponential' (exp(-dt / tau))"
            raise ValueError(f"discretization must be {allowed}, got {self.discretization!r}.")

    def tau(self, complement: Array) -> Array:
        """Return the time constant of a trace that loses ``complement = 1 - decay`` per step."""
        euler = self.discretization == "euler"
        with np.errstate(divide="ignore"):
            return np.asarray(self.dt / (complement if euler else -np.log1p(-complement)))

    def complement(self, tau: Array) -> Array:
        """Return ``1 - decay`` for a time constant; above 1 where one step is too long for it."""
        steps = np.asarray(self.dt / tau)
        return steps if self.discretization == "euler" else -np.expm1(-steps)


@dataclass(frozen=True)
class WriteOptions:
    """Hold what :func:`tracetorch.nir.to_nir` was called with, checked."""

    clock: Clock
    mode: Mode
    allow_hard_reset: bool

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("exact", "compact"))
        check_flag("allow_hard_reset", self.allow_hard_reset)
