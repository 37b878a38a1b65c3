"""Setting a layer's raw parameters so that the constrained ones are a file's to the last digit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

import numpy as np
import torch

from tracetorch.functional import softplus_inverse
from tracetorch.nir.clock import Array
from tracetorch.snn import Neuron

N = TypeVar("N", bound=Neuron)

# sigmoid(-60) is 1e-26: nothing beside an input in float64, and still not a zero to divide by
_FORGETS_AT_ONCE = -60.0


def fill(
    layer: N,
    values: Mapping[str, Array],
    *,
    decays: Collection[str],
    thresholds: Collection[str] = (),
) -> N:
    """``layer`` in float64 with the given values; a decay is given as its complement.

    The constructor takes the values first, and checks them; it keeps them in the default dtype,
    and moves a decay that touches 0 or 1. Both is undone here.
    """
    layer.to(torch.float64)
    for name, value in values.items():
        if name in decays:
            with np.errstate(divide="ignore"):
                logit = np.log1p(-value) - np.log(value)
            raw = torch.from_numpy(np.array(np.maximum(logit, _FORGETS_AT_ONCE)))
        else:
            raw = torch.from_numpy(np.array(value, np.float64))
            raw = softplus_inverse(raw) if name in thresholds else raw
        if not bool(torch.isfinite(raw).all()):
            raise ValueError(f"{name} is beyond what a layer can hold, got {value.tolist()}.")
        with torch.no_grad():
            getattr(layer, f"raw_{name}").copy_(raw)
    return layer
