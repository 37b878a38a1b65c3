"""Whole sequences through an unchanged model."""

from tracetorch.unrolling.unroll import unroll

__all__ = ["unroll"]
