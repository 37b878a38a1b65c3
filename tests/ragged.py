"""Ragged sequences to try functions on, and what "each on its own length" means."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def masks(draw: st.DrawFn, max_steps: int = 6, max_batch: int = 4) -> Tensor:
    """Masks ``[T, B]`` with padding anywhere, at least one real step in every sequence."""
    steps, batch = draw(st.integers(1, max_steps)), draw(st.integers(1, max_batch))
    columns = st.lists(st.booleans(), min_size=steps, max_size=steps).filter(any)
    return torch.tensor(draw(st.lists(columns, min_size=batch, max_size=batch))).T


def poisoned(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` ``[T, B, ...]`` with NaN where a step is not real."""
    return x.masked_fill(~mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), torch.nan)


def alone(x: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """Each sequence of the batch on its own length, ``[T_b, 1, ...]``."""
    for b in range(x.shape[1]):
        yield x[mask[:, b], b].unsqueeze(1)
