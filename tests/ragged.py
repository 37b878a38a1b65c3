"""Strategies for masks, and helpers that pad a batch with NaN or take its sequences apart."""

from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def masks(draw: st.DrawFn, max_steps: int = 6, max_batch: int = 4) -> Tensor:
    """Draw masks ``[T, B]`` with padding anywhere and at least one real step per sequence."""
    steps, batch = draw(st.integers(1, max_steps)), draw(st.integers(1, max_batch))
    columns = st.lists(st.booleans(), min_size=steps, max_size=steps).filter(any)
    return torch.tensor(draw(st.lists(columns, min_size=batch, max_size=batch))).T


def padded_with_nan(x: Tensor, mask: Tensor) -> Tensor:
    """Fill the padded steps of ``x`` ``[T, B, ...]`` with NaN."""
    return x.masked_fill(~mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), torch.nan)


def single_sequences(x: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """Yield each sequence of the batch without its padding, ``[T_b, 1, ...]``."""
    for b in range(x.shape[1]):
        yield x[mask[:, b], b].unsqueeze(1)
