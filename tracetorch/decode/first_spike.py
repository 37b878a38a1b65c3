"""When a neuron fired first."""

from __future__ import annotations

from torch import Tensor

from tracetorch.decode.magnitude import magnitude
from tracetorch.ragged import aligned, check_mask, check_sequence, floating


def first_spike(spikes: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The time of the first spike, in steps from 0; the sequence's length where there is none.

    The number of steps that pass before anything has fired::

        time = sum_t prod_(u <= t) (1 - fired[u]),   fired = 1 where spikes != 0

    It is differentiable: ``fired`` passes the gradient on to the spikes. For spikes of 0 and 1 the
    gradient at a step is *exactly* how much later the first spike would be for one spike more
    there: ``k - time`` at a silent step ``k`` before the first, 0 after it, and at the first spike
    minus the steps until the next one.

    Args:
        spikes: anything but 0 counts as a spike, downward ones too.
        mask: ``[T, B]`` booleans, true where a step is real; time counts real steps.

    Shape:
        ``[T, B, ...]`` to ``[B, ...]``, in steps; float32 for half precision.

    Raises:
        TypeError: ``spikes`` or ``mask`` is not a tensor of the right kind.
        ValueError: they do not fit, or a sequence has no real step.

    Example:
        >>> spikes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        >>> first_spike(spikes)
        tensor([1., 3.])

    Reference:
        The product is the survival function of discrete time, as in D. R. Cox, "Regression models
        and life-tables", JRSS B 34 (1972), section 6.

    """
    check_sequence("spikes", spikes)
    check_mask(mask, "spikes", spikes)
    signal = floating(spikes)
    upwards = magnitude(signal)
    # the value of the test, the gradient of the spike
    fired = (signal != 0).to(signal.dtype) + (upwards - upwards.detach())
    if mask is None:
        return (1 - fired).cumprod(0).sum(0)
    real = aligned(mask, signal)
    silent = (1 - fired).masked_fill(~real, 1.0).cumprod(0)
    return silent.masked_fill(~real, 0.0).sum(0)
