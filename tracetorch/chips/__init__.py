"""Chips: the limits of each as data, and its neurons as integer steps.

A new chip is a file of this folder that registers itself (see ``target.py``), and its import here.
"""

from tracetorch.chips import xylo
from tracetorch.chips.limits import Chip

__all__ = ["Chip", "xylo"]
