"""Compute products with the events of their input: linear layers, convolutions.

An event is a value other than 0, a spike for example. For the length of a pass by layer every
module of exact type ``nn.Linear`` or ``nn.Conv2d`` gets a ``forward`` in its instance
(``tracetorch/events/passes.py``); hooks, ``functional_call`` and engines work as before. The
replacement decides at each call. It samples a few rows, then counts the events. It computes the
dense product above a measured crossover, and wherever something must see PyTorch's own operations:
``torch.compile``, export, transforms, modes, autocast.

Forward, the rows of the transposed weight that the events of an input row name are summed in
registers. The weight's gradient sums rows of the output's gradient in the same way, by the list of
each input. The graph keeps the lists in place of the input: four bytes an event, eight a row, and
the values where one is not 1. The input's gradient is a dense product, because few surrogates are
zero anywhere. A product of 0 with infinity or NaN is skipped as any product with 0.
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
