"""``Delay`` and ``DelayedLinear``: learnable delays, one per neuron or one per synapse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_flag, check_nonnegative, suggestion
from tracetorch.core.double_backward import explain_double_backward
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import Constraint, Value, Weight


@dataclass(frozen=True)
class Clamp:
    """Clamp to ``[0, largest]``; the gradient passes, so that a value can come back from outside.

    Args:
        largest: the upper end.
    """

    largest: int

    __name__: ClassVar[str] = "clamp"

    def __call__(self, raw: Tensor) -> Tensor:
        """Return ``raw`` clamped."""
        return raw.clamp(0, self.largest).detach() + (raw - raw.detach())


class DelayingLayer(Neuron):
    """Base of layers that keep the inputs of the last ``max_delay`` steps.

    The state ``past`` has the shape of one step and time behind it, the oldest input first.

    Args:
        num_neurons: size of the input at ``dim``.
        dim: the dimension of the tensor of one step.
        max_delay: the largest delay in steps; at least 1.
        sigma: width of the interpolation in steps.
        raw_delay: the initial delays, in steps.
        learnable: whether they are learned.
    """

    states: ClassVar[tuple[str, ...]] = ("past",)

    max_delay: int
    sigma: float
    delay: Tensor
    past: Tensor | None

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        max_delay: int,
        sigma: float,
        raw_delay: Tensor,
        learnable: bool,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.option("max_delay", max_delay)
        self.option("sigma", check_nonnegative("sigma", sigma, unit="steps"))
        self.state_tail = (max_delay,)
        if learnable:
            self.raw_delay = nn.Parameter(raw_delay)
        else:
            self.register_buffer("raw_delay", raw_delay)
        clamp: Constraint = Clamp(max_delay)
        self._declared.constraints["delay"] = clamp

    def round_(self) -> None:
        """Round every delay to a whole number of steps, and set ``sigma`` to 0.

        From then on a delay is a shift, in training and evaluation alike. Freeze ``raw_delay``
        (``requires_grad_(False)``) to train the rest further.
        """
        with torch.no_grad():
            self.raw_delay.copy_(self.delay.round())
        self.sigma = 0.0

    def forward_step(self, x: Tensor) -> Tensor:  # type: ignore[override]  # one input
        """Run one time step."""
        dtype = self.check_input(x)
        y, window = self._run(x.unsqueeze(0), dtype)
        return self._finish(y.squeeze(0), window, 1, x.dtype)

    def forward_sequence(  # type: ignore[override]  # one input
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` ``[T, ...]`` as one operation over time.

        Args:
            x: the inputs ``[T, ...]``.
            record: ``"past"``, where its trajectory is wanted too.
        """
        dtype = self.check_input(x, sequence=True)
        for name in record:
            if name != "past":
                raise ValueError(
                    f"{self!r} has no state {name!r}.{suggestion(name, self.states)} It has past."
                )
        y, window = self._run(x, dtype)
        output = self._finish(y, window, len(x), x.dtype)
        # the pasts before every step, and after the last
        pasts = window.unfold(-1, self.max_delay, 1).movedim(-2, 0)
        return output, {name: pasts[1:].clone() for name in record}

    def _run(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the outputs, time first, and past and inputs in one tensor, time last."""
        (past,) = self.states_for(x, dtype, sequence=True)
        check_nonnegative("sigma", self.sigma, unit="steps")
        window = torch.cat([past, x.to(dtype).movedim(0, -1)], -1)  # type: ignore[list-item]
        delay: Tensor = self.step_kwargs(x.ndim - 1, dtype)["delay"]
        return self._delayed(window, delay, len(x)).movedim(-1, 0), window

    def _delayed(self, window: Tensor, delay: Tensor, steps: int) -> Tensor:
        """Return the outputs of the last steps of ``window`` ``[..., max_delay + steps]``."""
        raise NotImplementedError

    def _finish(self, y: Tensor, window: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
        """Keep the last inputs, part of the graph, and return the output."""
        # a copy, for a view would keep the whole window in memory
        past = window[..., steps:].clone()
        output, self.past = explain_double_backward([y, past])
        return output.to(dtype)


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
            anew, and is not in the ``state_dict``.
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
        max_delay = check_count("max_delay", max_delay)
        raw = _initial(delay, (check_count("num_neurons", num_neurons),), max_delay)
        super().__init__(num_neurons, dim, max_delay, sigma, raw, _flag(learnable))

    def _delayed(self, window: Tensor, delay: Tensor, steps: int) -> Tensor:
        # Added up in one order, element by element, so that no cut of a sequence changes a bit.
        return reduce(torch.add, self._parts(window, delay, steps))

    def _parts(self, window: Tensor, delay: Tensor, steps: int) -> Iterator[Tensor]:
        """Yield the terms of the sum over ``k``."""
        largest = self.max_delay
        if self.sigma > 0:
            weights = taps(delay, largest, self.sigma)
            for start in range(largest + 1):
                yield weights[..., start, None] * window[..., start : start + steps]
            return
        # Only the nearest step and its neighbours can have a weight, or a gradient.
        nearest = delay.detach().round()
        time = torch.arange(largest, largest + steps, device=window.device)
        for lag in (nearest - 1, nearest, nearest + 1):
            # NaN is no index; the weight is NaN then
            index = time - lag.nan_to_num(0.0).clamp(0, largest).long().unsqueeze(-1)
            taken = window.gather(-1, index.expand(*window.shape[:-1], steps))
            yield hat(lag - delay).unsqueeze(-1) * taken


class DelayedLinear(DelayingLayer):
    """Linear layer with a delay for every synapse, which can be learned.

    ::

        output[t, o] = bias[o] + sum_i  weight[o, i] * sum_k w[o, i, k] * x[t - k, i]

    with the interpolation ``w`` of ``delay[o, i]`` as for :class:`Delay`, where ``sigma``, its
    schedule and ``round_()`` are explained. Weight and bias are those of ``linear``, an
    ``nn.Linear``. Over time it is one convolution, dense in ``k``: time and memory grow with
    ``max_delay``.

    As the connection of a :class:`Recurrent` it delays the feedback beyond the one step that this
    has itself.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether there is one.
        max_delay: the largest delay in steps; at least 1.
        delay: initial delays in steps, a number or a tensor ``[out_features, in_features]``;
            ``None`` draws them uniformly between 0 and ``max_delay``.
        sigma: width of the interpolation in steps.
        learnable: whether the delays are learned; the weights are.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``; the state ``past`` is
        ``[..., in_features, max_delay]``.

    Raises:
        TypeError: an argument or the input is of the wrong type.
        ValueError: an argument is out of range, or the input has another number of features.

    Example:
        >>> layer = DelayedLinear(2, 1, bias=False, max_delay=3, delay=torch.tensor([[2.0, 0.0]]))
        >>> _ = nn.init.ones_(layer.linear.weight)
        >>> [layer(torch.tensor([x])).item() for x in ([1.0, 0.0], [0.0, 0.0], [0.0, 1.0])]
        [0.0, 0.0, 2.0]

    Reference: Khalfaoui-Hassani, Pellegrini and Masquelier, Dilated convolution with learnable
    spacings, ICLR 2023; Hammouamri, Khalfaoui-Hassani and Masquelier, Learning delays in spiking
    neural networks using dilated convolutions with learnable spacings, ICLR 2024.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        max_delay: int,
        delay: Value | None = None,
        sigma: float = 0.0,
        learnable: bool = True,
    ) -> None:
        in_features = check_count("in_features", in_features)
        out_features = check_count("out_features", out_features)
        max_delay = check_count("max_delay", max_delay)
        raw = _initial(delay, (out_features, in_features), max_delay)
        super().__init__(in_features, -1, max_delay, sigma, raw, _flag(learnable))
        check_flag("bias", bias)
        self.in_features, self.out_features = in_features, out_features
        # for its parameters; its forward is not called
        self.linear = nn.Linear(in_features, out_features, bias)

    def check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        """Return the dtype of the arithmetic; raise where ``x`` does not fit the layer.

        Args:
            x: the input of one step.
            sequence: ``x`` has time in front.
        """
        if isinstance(x, Tensor) and x.ndim > sequence and x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self.label()} takes {self.in_features} features in the last dimension, the "
                f"input has {x.shape[-1]}, shape {list(x.shape)}."
            )
        return super().check_input(x, sequence=sequence)

    def _delayed(self, window: Tensor, delay: Tensor, steps: int) -> Tensor:
        lead = window.shape[:-2]
        if steps == 0:
            return window.new_zeros(*lead, self.out_features, 0)
        weights, bias = self.linear.weight.to(window.dtype), self.linear.bias
        kernel = weights.unsqueeze(-1) * taps(delay, self.max_delay, self.sigma)
        batch = window.reshape(math.prod(lead), *window.shape[-2:])
        y = F.conv1d(batch, kernel, None if bias is None else bias.to(window.dtype))
        return y.reshape(*lead, self.out_features, steps)


def hat(distance: Tensor) -> Tensor:
    """Return ``max(0, 1 - |distance|)``, the weight in linear interpolation.

    Its derivative at a kink is the mean of both sides: ``maximum`` divides a tie, ``relu`` would
    give a whole delay no gradient.
    """
    return torch.maximum(1 - distance.abs(), torch.zeros_like(distance))


def taps(delay: Tensor, max_delay: int, sigma: float) -> Tensor:
    """Return the weights of all steps, ``[..., max_delay + 1]``, the oldest first.

    Args:
        delay: in steps.
        max_delay: the largest delay.
        sigma: the width of a Gaussian, or 0 for linear interpolation.

    Example:
        >>> taps(torch.tensor([0.25, 2.0]), 2, 0.0)
        tensor([[0.0000, 0.2500, 0.7500],
                [1.0000, 0.0000, 0.0000]])
    """
    lags = torch.arange(max_delay, -1, -1, dtype=delay.dtype, device=delay.device)
    distance = lags - delay.unsqueeze(-1)
    # softmax, for the terms of a narrow Gaussian may all be too small for their sum
    return (-0.5 * (distance / sigma).square()).softmax(-1) if sigma > 0 else hat(distance)


def _initial(delay: Value | None, shape: tuple[int, ...], max_delay: int) -> Tensor:
    """Return initial delays of a shape, as given or drawn."""
    if delay is None:
        return torch.empty(shape).uniform_(0, max_delay)
    if isinstance(delay, Tensor) and delay.ndim and delay.shape != shape:
        raise ValueError(
            f"delay must be a number or a tensor of shape {list(shape)}, got shape "
            f"{list(delay.shape)}."
        )
    flat = delay.reshape(-1) if isinstance(delay, Tensor) and delay.ndim else delay
    raw = Weight(flat, 1).raw("delay", math.prod(shape))
    if not bool(((raw >= 0) & (raw <= max_delay)).all()):
        raise ValueError(
            f"delay must lie between 0 and max_delay={max_delay} steps, got values from "
            f"{raw.min().item():g} to {raw.max().item():g}."
        )
    return raw.expand(shape).clone() if raw.ndim == 0 else raw.reshape(shape)


def _flag(learnable: bool) -> bool:
    check_flag("learnable", learnable)
    return learnable
