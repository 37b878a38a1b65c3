"""How a model is to be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tracetorch.nir.clock import Clock

Mode: TypeAlias = Literal["exact", "compact"]


@dataclass(frozen=True)
class Writing:
    """How a model is to be written.

    Args:
        clock: seconds and steps.
        mode: ``"exact"`` or ``"compact"``.
        allow_hard_reset: in compact mode, whether a subtracting layer may be written.
    """

    clock: Clock
    mode: Mode
    allow_hard_reset: bool
