"""Compute the size of what a convolution or a pool makes of one dimension."""

from __future__ import annotations


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Return how many places the kernel has; below 1 where it does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
