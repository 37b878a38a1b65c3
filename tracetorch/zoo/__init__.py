"""Trained networks, small and verified: a function that builds each, a file of tensors, a card.

A card says what its network must compute in float64, where rounding moves no spike across its
threshold. ``examples/zoo.py`` trains the networks, and compares them with their cards.
"""

from tracetorch.zoo.networks import Card, card, load, names, sample_batch

__all__ = ["Card", "card", "load", "names", "sample_batch"]
