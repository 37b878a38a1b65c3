"""Encode values and signals: repeated, at random, by the time of a spike, by fields, by changes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tracetorch.core.checks import check_choice, check_count, check_positive
from tracetorch.core.torch_private import is_readable
from tracetorch.ragged import check_sequence


def check_values(name: str, x: Tensor) -> None:
    """Raise ``TypeError`` unless ``x`` is a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, got {got}. Convert it, bytes of an image by "
            "x.float() / 255."
        )


def check_range(name: str, x: Tensor, low: float, high: float) -> Tensor:
    """Check that ``x`` lies in [low, high] up to rounding, and return it clamped to the range."""
    if not is_readable(x):
        return x.clamp(low, high)
    slack = 4 * torch.finfo(x.dtype).eps
    # written so that NaN, which compares false, is invalid
    valid = (x >= low - slack) & (x <= high + slack)
    if not bool(valid.all()):
        offender = x[~valid].flatten()[0].item()
        allowed = "not be negative" if high == math.inf else f"lie in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must {allowed}, got {offender}. Scale the input, or clamp it.")
    return x.clamp(low, high)


def repeat(x: Tensor, steps: int) -> Tensor:
    """Repeat ``x`` at every step, as a view without a copy.

    The first neurons of the network turn it into spikes (direct coding). ``tt.unroll(model, x,
    steps=T)`` gives the same result and computes the layers before the first neuron only once.

    Args:
        x: any tensor.
        steps: the number of time steps.

    Shape:
        ``[...]`` to ``[T, ...]``.

    Raises:
        TypeError: ``steps`` is not an integer.
        ValueError: ``steps`` is less than 1.

    Example:
        >>> repeat(torch.tensor([0.1, 0.9]), 3)
        tensor([[0.1000, 0.9000],
                [0.1000, 0.9000],
                [0.1000, 0.9000]])
    """
    return x.expand(check_count("steps", steps), *x.shape)


def rate(
    x: Tensor,
    steps: int,
    *,
    kind: Literal["bernoulli", "poisson"] = "bernoulli",
    gain: float = 1.0,
    offset: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw random spikes, independent at every step, at the rate ``gain * x + offset``.

    ::

        bernoulli:  spikes[t] = 1 with probability  r = gain * x + offset,  0 otherwise
        poisson:    spikes[t] = k with probability  r^k exp(-r) / k!

    Both have the mean ``r``, and the gradient is that of the mean: ``d spikes[t] / d r = 1``.

    Args:
        x: values; for images, brightness in [0, 1].
        steps: the number of time steps.
        kind: ``"bernoulli"``: at most one spike a step; ``"poisson"``: any number of them.
        gain: spikes per step and unit of ``x``.
        offset: spikes per step where ``x`` is 0.
        generator: on ``x``'s device; PyTorch's own if left out.

    Shape:
        ``[...]`` to ``[T, ...]``, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``steps`` not an integer.
        ValueError: a rate is negative, or above 1 for ``"bernoulli"``; ``steps`` is less than 1;
            ``kind`` is unknown.

    Example:
        >>> spikes = rate(torch.tensor([0.0, 0.2, 1.0]), 1000, generator=torch.Generator())
        >>> spikes.shape, spikes.mean(0).round(decimals=1)
        (torch.Size([1000, 3]), tensor([0.0000, 0.2000, 1.0000]))

    Reference:
        D. Heeger, "Poisson model of spike generation", Stanford lecture notes (2000).
    """
    check_values("x", x)
    T = check_count("steps", steps)
    check_choice("kind", kind, ("bernoulli", "poisson"))
    highest = 1.0 if kind == "bernoulli" else math.inf
    r = check_range("the rate gain * x + offset", gain * x + offset, 0.0, highest)
    # drawn in float32 or wider: half precision has too few distinct numbers between 0 and 1
    wide = r.detach().to(torch.promote_types(r.dtype, torch.float32)).expand(T, *r.shape)
    if kind == "bernoulli":
        drawn = torch.rand(wide.shape, dtype=wide.dtype, device=r.device, generator=generator)
        spikes = (drawn < wide).to(r.dtype)
    else:
        spikes = torch.poisson(wide, generator=generator).to(r.dtype)
    # adds zero, and the gradient of the mean
    return spikes + (r - r.detach()) if r.requires_grad else spikes


def latency(
    x: Tensor,
    steps: int,
    *,
    kind: Literal["linear", "exponential"] = "linear",
    threshold: float | None = None,
    tau: float = 20.0,
) -> Tensor:
    """Encode each value above the threshold as one spike, earlier for stronger values.

    ::

        linear:       time = (1 - x) / (1 - threshold) * (T - 1)
        exponential:  time = tau * log(x / (x - threshold))

    rounded to the nearest step. The exponential time is when a leaky membrane, charged by the
    constant current ``x``, reaches the threshold. There is no spike for values at or below it, or
    for times after the last step. Times are whole steps, so there is no gradient.

    Args:
        x: values in [0, 1] for ``"linear"``, not negative for ``"exponential"``.
        steps: the number of time steps.
        kind: the equation for the time, ``"linear"`` or ``"exponential"``.
        threshold: in [0, 1), 0 if left out, for ``"linear"``; positive, 0.2 if left out, for
            ``"exponential"``.
        tau: the membrane's time constant in steps, positive; for ``"exponential"``.

    Shape:
        ``[...]`` to ``[T, ...]``, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``steps`` not an integer.
        ValueError: a value, ``threshold`` or ``tau`` is out of range; ``steps`` is less than 1;
            ``kind`` is unknown.

    Example:
        >>> latency(torch.tensor([1.0, 0.5, 0.0]), 3).T
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])

    Reference:
        S. Thorpe, A. Delorme and R. Van Rullen, "Spike-based strategies for rapid processing",
        Neural Networks 14 (2001); for ``"exponential"`` with these defaults the tutorials of
        F. Zenke's SpyTorch (2019).
    """
    check_values("x", x)
    T = check_count("steps", steps)
    check_choice("kind", kind, ("linear", "exponential"))
    value = x.detach()
    # in float64: half precision cannot tell a few thousand steps apart
    if kind == "linear":
        level = 0.0 if threshold is None else threshold
        if not 0 <= level < 1:
            raise ValueError(f"threshold must lie in [0, 1) for kind='linear', got {level}.")
        time = (1 - check_range("x", value, 0.0, 1.0).double()) / (1 - level) * (T - 1)
    else:
        level = check_positive("threshold", 0.2 if threshold is None else threshold)
        check_positive("tau", tau)
        time = -tau * torch.log1p(-level / check_range("x", value, 0.0, math.inf).double())
    # no step has the index infinity, so values at or below the threshold have no spike
    time = torch.where(value > level, time, math.inf).round()
    index = torch.arange(T, dtype=torch.float64, device=x.device).reshape(-1, *[1] * x.ndim)
    return (time == index).to(x.dtype)


def population(
    x: Tensor, num_neurons: int, *, low: float = 0.0, high: float = 1.0, overlap: float = 1.5
) -> Tensor:
    """Compute the activity of Gaussian receptive fields that tile a range, in (0, 1].

    ::

        activity[i] = exp(-(x - centre[i])² / (2 width²)),   i = 1 … n
        centre[i] = low + (i - 3/2) (high - low) / (n - 2)
        width = (high - low) / (overlap (n - 2))

    The outermost centres lie half a spacing outside the range. Activities are not spikes: encode
    them with :func:`rate` or :func:`latency`. They are differentiable.

    Args:
        x: values, of one sample or over time; best in [low, high].
        num_neurons: neurons for each value, at least 3.
        low: the lower end of the range.
        high: the upper end.
        overlap: beta in the paper, positive: the fields are narrower the larger it is.

    Shape:
        ``[...]`` to ``[..., num_neurons]``, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``num_neurons`` not an integer.
        ValueError: fewer than 3 neurons, ``low`` not below ``high``, ``overlap`` not positive.

    Example:
        >>> population(torch.tensor([0.5]), 5)
        tensor([[0.0111, 0.3247, 1.0000, 0.3247, 0.0111]])
        >>> from tracetorch.encode import latency
        >>> latency(population(torch.rand(8, 4), 6), steps=20).shape
        torch.Size([20, 8, 4, 6])

    Reference:
        S. M. Bohte, J. N. Kok and H. La Poutré, "Error-backpropagation in temporally encoded
        networks of spiking neurons", Neurocomputing 48 (2002), section 4.
    """
    check_values("x", x)
    n = check_count("num_neurons", num_neurons)
    if n < 3:
        raise ValueError(f"num_neurons must be at least 3 to tile a range, got {n}.")
    if not (low < high and abs(low) < float("inf") and high < float("inf")):
        raise ValueError(f"low must be below high, both finite, got {low} and {high}.")
    check_positive("overlap", overlap)
    # n - 2 spacings fit between low and high, since the outermost centres lie outside
    spacing = (high - low) / (n - 2)
    centre = low + (torch.arange(n, dtype=x.dtype, device=x.device) - 0.5) * spacing
    distance = (x.unsqueeze(-1) - centre) * (overlap / spacing)
    return torch.exp(-distance.square() / 2)


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
