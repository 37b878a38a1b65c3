"""Compute products with the events of their input: linear layers, convolutions.

An event is a value other than 0, a spike for example. The density of events is measured on the
input of a product, which so need not know that its input is spikes.

For the length of a pass by layer every module of exact type ``nn.Linear`` or ``nn.Conv2d`` gets a
``forward`` in its instance, and a layer with delays a ``convolve``
(``tracetorch/events/passes.py``); hooks, ``functional_call`` and engines work as before. The
replacement decides at each call. It samples a few rows, then counts the events. It computes the
dense product above a measured crossover, and wherever something must see PyTorch's own operations:
``torch.compile``, export, transforms, modes, autocast.

Forward, the rows of the transposed weight that the events of an input row name are summed in
registers. The weight's gradient sums rows of the output's gradient in the same way, by the list of
each input. The graph keeps the lists in place of the input: four bytes an event, eight a row, and
the values where one is not 1. The input's gradient is a dense product, because few surrogates are
zero anywhere. A product of 0 with infinity or NaN is skipped as any product with 0.

A convolution of eight channels or more sums rows of its weight for each output of an image, with
channels last, and transposes the result in cache. Its weight's gradient is summed over sixteen
groups of images, and the sums of the groups in their order, so that it does not depend on the
number of threads.
"""

from tracetorch.events.crossover import crossover
from tracetorch.events.observed import Product, observed_products
from tracetorch.events.request import MODES, mode, requested_mode

__all__ = ["MODES", "Product", "crossover", "mode", "observed_products", "requested_mode"]
