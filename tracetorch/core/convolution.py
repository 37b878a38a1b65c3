"""Compute the size of what a convolution or a pool makes of a dimension, and its padding."""

from __future__ import annotations

from collections.abc import Sequence


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Return how many places the kernel has; below 1 where it does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def front_padding(
    padding: str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Return how many zeros stand in front of each dimension, given in numbers or in a word."""
    if padding == "same":  # behind an even kernel stands one more
        return tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    return (0,) * len(kernel) if isinstance(padding, str) else tuple(map(int, padding))
