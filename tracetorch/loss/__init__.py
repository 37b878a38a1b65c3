"""Losses on outputs of spiking networks."""

from tracetorch.loss.soft_cross_entropy import soft_cross_entropy

__all__ = ["soft_cross_entropy"]
