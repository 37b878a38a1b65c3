"""Delay what reaches neurons by times that can be learned, one per neuron or one per synapse.

Past and inputs together are a window, and an output is a sum over it. ``Delay`` adds element by
element in a fixed order, so that cutting a sequence changes no bit; delays of synapses are
convolutions over time. They are clamped where they are used, with a gradient of one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tracetorch.cell import StateKind
from tracetorch.core.checks import check_count, check_flag, check_nonnegative, is_sharded
from tracetorch.core.hooks import hooked_weights
from tracetorch.core.torch_private import (
    FakeTensor,
    is_tracing,
    lowest_wrapped,
    observed_by,
    version_of,
)
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.parameters import Value, Weight, clamp
from tracetorch.snn.passes import weight_in_loop
from tracetorch.snn.sequence_layer import SequenceLayer


class PastLayer(SequenceLayer):
    """Base of layers whose outputs are sums over this input and the last ``max_delay`` ones."""

    states: ClassVar[tuple[str, ...]] = ("past",)

    max_delay: int
    past: Tensor | None  # of the shape of one step, and time behind it, the oldest input first
    _time: ClassVar[int] = -1  # the dimension of time in a window

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step."""
        dtype = self._check_input(x)
        return self._finish(*self._run_step(x, dtype), 1, x.dtype)

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` ``[T, ...]`` as one operation over time."""
        dtype = self._check_input(x, sequence=True)
        self._check_record(record)
        y, window = self._run(x, dtype)
        output, trajectories = self._finish(y, window, len(x), x.dtype), {}
        for name in record:  # the pasts before every step, and after the last
            pasts = window.movedim(self._time, 0).unfold(0, self.max_delay, 1)
            trajectories[name] = pasts[1:].clone(memory_format=torch.contiguous_format)
        return output, trajectories

    def _run(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _run_step(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        y, window = self._run(x.unsqueeze(0), dtype)
        return y.squeeze(0), window

    def _finish(self, y: Tensor, window: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
        """Keep the last inputs, part of the graph, and return the output."""
        if not self.max_delay:
            return y.to(dtype)
        # a copy, for a view would keep the whole window in memory; time in it as it is read
        last = window.narrow(self._time, steps, self.max_delay)
        past = last.clone(memory_format=torch.contiguous_format).movedim(self._time, -1)
        if torch.compiler.is_compiling() or is_tracing():
            past = past.contiguous()  # as zeros are: a program has its states in one layout
        self.past = past
        return y.to(dtype)

    def keep_inputs(self, x: Tensor) -> None:
        """Keep the last of some inputs ``[T, ...]``, at least ``max_delay`` of them."""
        past = x[len(x) - self.max_delay :].movedim(0, -1)
        self.past = past.clone(memory_format=torch.contiguous_format)


# what single steps without a graph have computed of a layer, and from which values
_kept: WeakKeyDictionary[nn.Module, tuple[Any, list[Tensor], Any]] = WeakKeyDictionary()
# what computes it, and a user may have set on a layer
_PATCHED = ("kernel_of", "step_kwargs", "_lags")


class DelayingLayer(PastLayer):
    """Base of layers with delays that can be learned."""

    sigma: float
    delay: Tensor

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        shape: tuple[int, ...],
        max_delay: int,
        delay: Value | None,
        sigma: float,
        learnable: bool,
    ) -> None:
        max_delay = check_count("max_delay", max_delay)
        raw_delay = initial_delays(delay, shape, max_delay)
        super().__init__(num_neurons, dim)
        check_flag("learnable", learnable)
        self.option("max_delay", max_delay, fixed=True)
        self._buffers["sigma"] = torch.zeros(())
        self.sigma = sigma
        self._declared.note_argument("sigma", sigma)
        self._state_kind = StateKind(tail=(max_delay,))
        if learnable:
            self.raw_delay = nn.Parameter(raw_delay)
        else:
            self.register_buffer("raw_delay", raw_delay)
        self._declared.constrain("delay", clamp(0, max_delay))

    def round_(self) -> None:
        """Round every delay to a whole number of steps, and set ``sigma`` to 0.

        Freeze ``raw_delay`` (``requires_grad_(False)``) to train the rest further.

        Raises:
            ValueError: the delays are parametrized: what is written to them would not last.
        """
        if parametrize.is_parametrized(self, "raw_delay"):
            raise ValueError(
                f"{self._label()} has parametrized delays, which cannot be written. Remove the "
                "parametrizations first."
            )
        with torch.no_grad():
            self.raw_delay.copy_(self.delay.round())
        self.sigma = 0.0

    # The width: a number, for one on a device would have to be waited for at every step, and a
    # buffer, for the state_dict. What else writes to that shows by its identity and version.

    def __getattr__(self, name: str) -> Any:
        if name != "sigma":
            return super().__getattr__(name)
        if torch.compiler.is_compiling() or is_tracing():  # which take it for a constant
            return self.__dict__["_sigma"][0]
        number, known, version = self.__dict__["_sigma"]
        buffer = cast(Tensor, self._buffers["sigma"])
        if buffer is known and version is not None and version == version_of(buffer):
            return number
        values = lowest_wrapped(buffer)
        if values.is_meta or isinstance(values, FakeTensor):
            return number
        found = values.flatten().tolist()
        if len(set(found)) > 1:
            raise ValueError(
                f"{self._label()} is one of several models in one vmap, whose sigma differ, "
                f"{found}: give all one sigma, or run them one after the other."
            )
        # a buffer rounds the number that it was written with
        if found[0] != float(values.new_tensor(number)):
            number = check_nonnegative("sigma", found[0], unit="steps")
        # where nobody counts, the buffer of a vmap say, it is read each time
        version = version_of(buffer)
        self.__dict__["_sigma"] = number, None if version is None else buffer, version
        return number

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "sigma":
            super().__setattr__(name, value)
            return
        if isinstance(value, nn.Parameter):
            raise TypeError("sigma is not learned: assign a number, or the value of the parameter.")
        number = value
        if isinstance(value, Tensor):  # load_state_dict(assign=True) assigns one
            number = self.sigma if value.is_meta else value.item()
        number = check_nonnegative("sigma", number, unit="steps")
        if isinstance(value, Tensor):
            self._buffers["sigma"] = value.detach().clone().reshape(())
        buffer = cast(Tensor, self._buffers["sigma"])
        buffer.detach().fill_(number)
        self.__dict__["_sigma"] = number, buffer, version_of(buffer)
        self._declared.note_assigned(type(self), "sigma", number)

    def _apply(self, fn: Any, recurse: bool = True) -> DelayingLayer:
        number = self.sigma
        super()._apply(fn, recurse)
        self.sigma = number  # to_empty() clears it, another dtype rounds it
        return self

    def _raw_of(self, name: str, value: Any) -> Tensor:
        return initial_delays(value, tuple(self.raw_delay.shape), self.max_delay)

    def _run(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        past = cast(Tensor, self._states_for(x, dtype, sequence=True)[0])
        window = self._window(past, x.to(dtype))
        y = self._delayed(window, x.ndim - 1, len(x))
        y = y.unsqueeze(0) if len(x) == 1 else y.movedim(-1, 0)
        # a view could not be changed in place behind an engine's hooks; time is in front in memory
        return y.clone(memory_format=torch.contiguous_format), window

    def _run_step(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        past = cast(Tensor, self._states_for(x, dtype)[0])
        window = self._window(past, x.to(dtype).unsqueeze(0))
        return self._delayed(window, x.ndim, 1), window

    def _known(
        self, steps: int, key: Any, tensors: Sequence[Tensor], compute: Callable[[], Any]
    ) -> Any:
        """Compute what follows from tensors; for single steps only where a value is another."""
        tensors = (*tensors, cast(Tensor, self._buffers["sigma"]))
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or steps != 1:
            return compute()
        own = type(self).__module__ != __name__ or not vars(self).keys().isdisjoint(_PATCHED)
        if own or not tensors[0].is_cpu or observed_by(tensors) is not None:
            return compute()
        for_key, values, result = _kept.get(self, (None, (), None))
        if for_key != key or not all(map(torch.equal, values, tensors)):
            result = compute()
            _kept[self] = key, [each.clone() for each in tensors], result
        return result

    def _window(self, past: Tensor, x: Tensor) -> Tensor:
        """Return the past ``[..., max_delay]`` and inputs ``[T, ...]`` in one, time last."""
        return torch.cat([past, x.movedim(0, -1)], -1)

    def _delayed(self, window: Tensor, ndim: int, steps: int) -> Tensor:
        """Return the outputs ``[..., steps]``; of one step a new tensor ``[...]``."""
        raise NotImplementedError


def initial_delays(delay: Value | None, shape: tuple[int, ...], max_delay: int) -> Tensor:
    """Return initial delays of a shape, as given, or drawn where ``delay`` is ``None``."""
    if delay is None:
        return torch.empty(shape).uniform_(0, max_delay)
    if isinstance(delay, Tensor) and delay.ndim and delay.shape != shape:
        raise ValueError(
            f"delay must be a number or a tensor of shape {list(shape)}, got shape "
            f"{list(delay.shape)}."
        )
    flat = delay.reshape(-1) if isinstance(delay, Tensor) and delay.ndim else delay
    raw = Weight(flat, 1).raw("delay", math.prod(shape))
    given = raw if isinstance(delay, Tensor) else torch.tensor(float(delay), device="cpu")
    if not given.is_meta and not bool(((given >= 0) & (given <= max_delay)).all()):
        raise ValueError(
            f"delay must lie between 0 and max_delay={max_delay} steps, got values from "
            f"{given.min().item():g} to {given.max().item():g}."
        )
    return raw.expand(shape).clone() if raw.ndim == 0 else raw.reshape(shape)


def hat(distance: Tensor) -> Tensor:
    """Return ``max(0, 1 - |distance|)``, the weight in linear interpolation."""
    # whose derivative at a kink is the mean of both sides: relu would give a whole delay none
    return torch.maximum(1 - distance.abs(), torch.zeros_like(distance))


def taps(delay: Tensor, max_delay: int, sigma: float) -> Tensor:
    """Return the weights of all steps, ``[max_delay + 1, ...]``, the oldest first."""
    lags = torch.arange(max_delay, -1, -1, dtype=delay.dtype, device=delay.device)
    lags = lags.reshape(-1, *[1] * delay.ndim)
    if sigma == 0:
        weights = hat(lags - delay)
        # The steps beyond an end are taken for the end. Their weights are zero, but not their
        # derivatives where a delay is at the end: without them it would have half a gradient there.
        oldest, newest = hat(max_delay + 1 - delay), hat(-1 - delay)
        return torch.cat([weights[:1] + oldest, weights[1:-1], weights[-1:] + newest])
    # scaled before they are subtracted, for there are many distances
    scale = 1 / (sigma * math.sqrt(2))
    # softmin, for the terms of a narrow Gaussian may all be too small for their sum
    return F.softmin((lags * scale - delay * scale).square(), 0)


class Delay(DelayingLayer):
    """Delay the output of every neuron by a number of steps of its own, which can be learned.

    ::

        output[t] = sum_k  w[k] * x[t - k],   k = 0 ... max_delay
        sigma = 0:  w[k] = max(0, 1 - |k - delay|)
        sigma > 0:  w[k] = exp(-(k - delay)^2 / (2 sigma^2)),  divided by their sum

    With ``sigma = 0`` a whole delay is exactly a shift, another one interpolates two steps. Learn
    from a wide ``sigma``, made smaller in training (``layer.sigma = 0.5``), and ``round_()`` last.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step.
        max_delay: the largest delay in steps; at least 1.
        delay: initial delays, a number or one per neuron; ``None``: uniform in [0, max_delay].
        sigma: width of the interpolation in steps; an attribute, saved in the ``state_dict``.
        learnable: ``raw_delay`` is an ``nn.Parameter`` if true, a buffer if not.

    Shape:
        Input and output have one shape, and the state ``past`` has ``max_delay`` behind it.

    Raises:
        TypeError, ValueError: an argument is of another type or out of range; as any neuron layer.

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
        dtype, raws, lead = window.dtype, (self.raw_delay,), window.shape[:-1]
        index, weights = self._known(steps, (ndim, dtype), raws, lambda: self._lags(ndim, dtype))
        # Added up in one order, element by element, so that no cut of a sequence changes a bit.
        if steps == 1:
            taken = window if index is None else window.gather(-1, index.expand(*lead, -1))
            return cast(Tensor, reduce(torch.add, (weights * taken).unbind(-1)))
        time, total = torch.arange(steps, device=window.device), None
        for k, weight in enumerate(weights.unbind(-1)):
            if index is None:
                taken = window[..., k : k + steps]
            else:
                taken = window.gather(-1, (index[..., k, None] + time).expand(*lead, -1))
            term = weight.unsqueeze(-1) * taken
            total = term if total is None else total + term
        return cast(Tensor, total)

    def _lags(self, ndim: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """Return where the first step finds what it adds up, ``None``: everywhere; and weights."""
        delay: Tensor = self.step_kwargs(ndim, dtype)["delay"]
        if self.sigma > 0:
            return None, taps(delay, self.max_delay, self.sigma).movedim(0, -1)
        # Only the nearest step and its neighbours can have a weight, or a gradient.
        lag = delay.detach().round().unsqueeze(-1) + torch.arange(-1, 2, device=delay.device)
        # NaN is no index; the weight is NaN then
        index = self.max_delay - lag.nan_to_num(0.0).clamp(0, self.max_delay).long()
        return index, hat(lag - delay.unsqueeze(-1))


class DelayedLinear(DelayingLayer):
    """Linear layer with a delay for every synapse, which can be learned.

    ::

        output[t, o] = bias[o] + sum_i  weight[o, i] * sum_k w[o, i, k] * x[t - k, i]

    with ``w``, ``sigma`` and ``round_()`` as for :class:`Delay`. Weight and bias are those of
    ``linear``, an ``nn.Linear``, which is read and not called: a parametrization of its weight
    acts, a hook on it is an error or never runs. Time and memory grow with ``max_delay``. In a
    :class:`Recurrent` it delays the feedback beyond the one step that this has itself.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether there is one.
        max_delay: the largest delay in steps; at least 1.
        delay: first in [0, max_delay], one or ``[out_features, in_features]``; ``None``: uniform.
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

    _forwards: ClassVar[tuple[Any, ...]] = (nn.Linear.forward,)  # of what ``linear`` may be

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
        check_flag("bias", bias)
        linear = nn.Linear(in_features, out_features, bias)
        shape = out_features, in_features
        super().__init__(in_features, -1, shape, max_delay, delay, sigma, learnable)
        self.in_features, self.out_features, self.linear = in_features, out_features, linear

    def _read_linear(self) -> nn.Linear:
        """Return ``linear``; raise where its weight is not all that a call of it would use."""
        linear = self.linear
        # not the forward of the instance, nor other pre-hooks: tt.unroll has some of its own
        own = type(linear).forward in self._forwards
        sharded = not torch.compiler.is_compiling() and is_sharded(linear)
        if not own or sharded or hooked_weights(linear):
            raise ValueError(
                f"{self._label()} reads the weight of its linear, and does not call it: pruning, "
                "an old weight norm, another forward (an adapter) or fully_shard of it alone would "
                "have no effect. Use torch.nn.utils.parametrize; shard the whole layer."
            )
        return linear

    def kernel_of(self, dtype: torch.dtype) -> Tensor:
        """Return the weight of every synapse at every past step, ``[out, in, max_delay + 1]``."""
        weight = self._read_linear().weight.to(dtype)
        delay: Tensor = self.step_kwargs(0, dtype)["delay"]
        # in memory steps first and outputs last, as the product of one step reads it
        weight, delay = (each.t().contiguous() for each in (weight, delay))
        return (weight * taps(delay, self.max_delay, self.sigma)).permute(2, 1, 0)

    def _window(self, past: Tensor, x: Tensor) -> Tensor:
        # features last in memory, as the product of one step reads them
        return torch.cat([past.movedim(-1, -2), x.movedim(0, -2)], -2).movedim(-2, -1)

    @property
    def computes_as_its_class(self) -> bool:
        """Whether a step is certain to be a sum over ``kernel_of`` and the last inputs."""
        return (
            type(self) is DelayedLinear
            and plain_class(self.linear) is nn.Linear
            and _code_of(DelayedLinear) == _CODE
            and vars(self).keys().isdisjoint(_OWN)
        )

    def _delayed(self, window: Tensor, ndim: int, steps: int) -> Tensor:
        dtype, linear = window.dtype, self._read_linear()
        bias = None if linear.bias is None else linear.bias.to(dtype)
        tensors = self.raw_delay, linear.weight
        compute = partial(weight_in_loop, self, self.kernel_of, dtype)
        return self.convolve(window, self._known(steps, dtype, tensors, compute), bias)

    def convolve(self, window: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of a window over time; one step has no dimension of time."""
        lead, steps = window.shape[:-2], window.shape[-1] - self.max_delay
        if steps == 0:
            return window.new_zeros(*lead, self.out_features, 0)
        if steps == 1:  # one product, of what lies so in memory
            y = window.transpose(-1, -2).flatten(-2) @ kernel.permute(2, 1, 0).flatten(0, 1)
            return y if bias is None else y + bias
        batch = window.reshape(math.prod(lead), *window.shape[-2:])
        return F.conv1d(batch, kernel, bias).reshape(*lead, self.out_features, steps)


# what a step calls, and a user may have set on a layer or patched in the class
_OWN = ("forward", "forward_step", "_delayed", "_window", "_check_input", "_states_for", "convolve")
_code_of = operator.attrgetter(*_OWN)
_CODE = _code_of(DelayedLinear)
