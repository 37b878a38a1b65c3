"""Compute products with the events of their input: linear layers, convolutions.

For the length of a pass by layer every ``nn.Linear`` or ``nn.Conv2d`` gets a ``forward`` in its
instance, which decides at each call: dense above a measured crossover, and wherever something must
see PyTorch's own operations. The graph keeps lists of events in place of the input. The input's
gradient is a dense product. A product of 0 with infinity or NaN is skipped as any product with 0.
"""

from tracetorch.events.choice import (
    MODES,
    Product,
    crossover,
    mode,
    observed_products,
    requested_mode,
)

__all__ = ["MODES", "Product", "crossover", "mode", "observed_products", "requested_mode"]
