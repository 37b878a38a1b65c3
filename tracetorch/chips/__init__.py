"""Chips: the limits of each as data, and its neurons as integer steps."""

from tracetorch.chips import loihi, xylo
from tracetorch.chips.chip import Chip

__all__ = ["Chip", "loihi", "xylo"]
