"""Compute products with the events of their input: linear layers, convolutions.

Events. A spike is an event, and any value but 0 is: density is looked at on the input itself, so a
product need know nothing of spikes. For the length of a pass by layer a ``forward`` is set in the
instance of every module of exact type ``nn.Linear`` or ``nn.Conv2d``, or ``convolve`` where it has
delays (``tracetorch/events/passes.py``), as neurons get their ``LayerPass``; so hooks,
``functional_call`` and engines are as ever. It decides at each call: a few rows are sampled, then
the events are counted, and the dense product stands above a measured crossover, and wherever
something must see PyTorch's own operations: ``torch.compile``, export, transforms, modes, autocast.
The forward pass gathers rows of the transposed weight by the list of a row's events, the weight's
gradient rows of the output's gradient by the list of an input's; both are kept in registers. The
graph keeps the lists (four bytes an event and eight a row, and a value where one is not 1), not the
input. The input's gradient is dense: few surrogates are zero anywhere. What is 0 is skipped, times
infinity or NaN too. A convolution of eight channels or more gathers rows of its weight for each
output of an image, channels last, and transposes it in cache; its weight's gradient is summed over
sixteen groups of images, and those in their order, so it does not depend on threads.
"""

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
