"""Compute products with the events of their input: linear layers, convolutions."""

from tracetorch.events.crossover import crossover
from tracetorch.events.observed import Product, observed_products
from tracetorch.events.request import MODES, mode, requested_mode

__all__ = [
    "MODES",
    "Product",
    "crossover",
    "mode",
    "observed_products",
    "requested_mode",
]
