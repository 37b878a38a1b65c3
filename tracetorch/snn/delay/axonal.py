"""``Delay``: a learnable delay for the output of every neuron."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

from tracetorch.core.checks import check_count
from tracetorch.snn.delay.base import DelayingLayer, hat, taps
from tracetorch.snn.parameters import Value


class Delay(DelayingLayer):
    """Delay the output of every neuron by a number of steps of its own, which can be learned.

    ::

        output[t] = sum_k  w[k] * x[t - k],   k = 0 ... max_delay
        sigma = 0:  w[k] = max(0, 1 - |k - delay|)
        sigma > 0:  w[k] = exp(-(k - delay)^2 / (2 sigma^2)),  divided by their sum

    An axonal delay: with ``sigma = 0`` a whole delay is a shift, exactly, and one between two steps
    interpolates them. A gradient tells a delay about the steps that its ``w`` reaches, so learning
    starts best from a wide ``sigma``, which is made smaller during training (``layer.sigma = ...``,
    to about 0.5), and ends with ``round_()``. A delay that an optimizer pushes outside acts as
    the nearest end. What came before the first step is zero.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step.
        max_delay: the largest delay in steps; at least 1.
        delay: initial delays in steps, a number or one per neuron; ``None`` draws them uniformly
            between 0 and ``max_delay``.
        sigma: width of the interpolation in steps, not negative; an attribute that may be assigned
            anew, and is saved in the ``state_dict``.
        learnable: ``raw_delay`` is an ``nn.Parameter`` if true, a buffer if not.

    Shape:
        Input and output have one shape, any that has ``num_neurons`` at ``dim``. The state ``past``
        has it too, and ``max_delay`` behind it.

    Raises:
        TypeError: an argument or the input is of the wrong type.
        ValueError: an argument is out of range; or as any neuron layer.

    Example:
        >>> layer = Delay(2, max_delay=3, delay=torch.tensor([0.0, 2.0]))
        >>> [layer(torch.tensor([[x, x]])).tolist()[0] for x in (1.0, 2.0, 3.0)]
        [[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]]

    Reference: Shrestha and Orchard, SLAYER: spike layer error reassignment in time, NeurIPS 2018
    (axonal delays); for ``sigma`` as :class:`DelayedLinear`.
    """

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        *,
        max_delay: int,
        delay: Value | None = None,
        sigma: float = 0.0,
        learnable: bool = True,
    ) -> None:
        shape = (check_count("num_neurons", num_neurons),)
        super().__init__(num_neurons, dim, shape, max_delay, delay, sigma, learnable)

    def _delayed(self, window: Tensor, ndim: int, steps: int) -> Tensor:
        delay: Tensor = self.step_kwargs(ndim, window.dtype)["delay"]
        # Added up in one order, element by element, so that no cut of a sequence changes a bit.
        return reduce(torch.add, self._parts(window, delay, steps))

    def _parts(self, window: Tensor, delay: Tensor, steps: int) -> Iterator[Tensor]:
        """Yield the terms of the sum over ``k``."""
        largest = self.max_delay
        if self.sigma > 0:
            weights = taps(delay, largest, self.sigma)
            for start in range(largest + 1):
                yield weights[start].unsqueeze(-1) * window[..., start : start + steps]
            return
        # Only the nearest step and its neighbours can have a weight, or a gradient.
        nearest = delay.detach().round()
        time = torch.arange(largest, largest + steps, device=window.device)
        for lag in (nearest - 1, nearest, nearest + 1):
            # NaN is no index; the weight is NaN then
            index = time - lag.nan_to_num(0.0).clamp(0, largest).long().unsqueeze(-1)
            taken = window.gather(-1, index.expand(*window.shape[:-1], steps))
            yield hat(lag - delay).unsqueeze(-1) * taken
