"""Delta modulation: encode the changes of a signal as on and off spikes."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.checks import check_positive
from tracetorch.core.torch_private import is_readable
from tracetorch.encode.values import check_values
from tracetorch.ragged import check_sequence


def delta(
    x: Tensor, threshold: float, *, start: float | Tensor | None = None, dim: int = 2
) -> Tensor:
    """Encode a signal by delta modulation: an on or off spike when it has moved by the threshold.

    ::

        on[t]  = 1 where x[t] - reference >= threshold
        off[t] = 1 where reference - x[t] >= threshold
        reference = x[t] where either fired

    so the reference is always within ``threshold`` of the signal. There is no gradient.

    Args:
        x: a signal over time.
        threshold: the change that causes a spike, positive.
        start: the reference before the first step, a number or a tensor like one step; ``x[0]``
            if left out, so that the first step has no spike. To go on with a signal that was cut
            give each element's value at its last spike, which is not its last value.
        dim: the dimension of the result that holds the two channels, on and off.

    Shape:
        ``[T, B, ...]`` to ``[T, B, 2, ...]``, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: ``threshold`` is not positive, or ``x`` has no time step, begins with NaN or
            holds infinity.

    Example:
        >>> x = torch.tensor([[0.0], [0.4], [1.2], [1.1], [0.1]])
        >>> delta(x, 1.0)[:, 0]
        tensor([[0., 0.],
                [0., 0.],
                [1., 0.],
                [0., 0.],
                [0., 1.]])

    Reference:
        F. Corradi and G. Indiveri, "A neuromorphic event-based neural recording system for smart
        brain-machine-interfaces", IEEE TBioCAS 9 (2015).
    """
    check_values("x", x)
    check_sequence("x", x)
    check_positive("threshold", threshold)
    signal = x.detach()
    reference = signal[0]
    if start is not None:
        start = torch.as_tensor(start, dtype=signal.dtype, device=signal.device)
        reference = start.expand_as(reference)
    # nothing differs from either by a threshold: the channel would stay silent from there on; NaN
    # later, as of padding, is no spike
    if is_readable(x) and (bool(signal.isinf().any()) or not bool(reference.isfinite().all())):
        raise ValueError(
            "x must begin with a number, or start= be one, and hold no infinity: nothing differs "
            "from NaN or infinity by a threshold. Fill such gaps, with the next value say."
        )
    # sequential: each reference depends on the spikes before it
    steps: list[Tensor] = []
    for value in signal.unbind(0):
        change = value - reference
        on, off = change >= threshold, -change >= threshold
        # to the value itself, not by the threshold: one spike per step, whatever the change
        reference = torch.where(on | off, value, reference)
        steps.append(torch.stack((on, off)))
    return torch.stack(steps).to(x.dtype).movedim(1, dim)
