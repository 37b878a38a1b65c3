"""``DelayingLayer``: keep the inputs of the last steps, and the delays that are applied to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tracetorch.cell import StateKind
from tracetorch.core.checks import check_count, check_flag, check_nonnegative
from tracetorch.core.torch_private import FakeTensor, is_tracing, lowest_wrapped, version_of
from tracetorch.snn.parameters import Value, Weight, clamp
from tracetorch.snn.sequence_layer import SequenceLayer


class PastLayer(SequenceLayer):
    """Base of layers whose outputs are sums over this input and the last ``max_delay`` ones.

    The state ``past`` has the shape of one step and time behind it, the oldest input first. Past
    and inputs together are a window.
    """

    states: ClassVar[tuple[str, ...]] = ("past",)

    max_delay: int
    past: Tensor | None
    _time: ClassVar[int] = -1
    """The dimension of time in a window."""

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step."""
        dtype = self._check_input(x)
        y, window = self._run(x.unsqueeze(0), dtype)
        return self._finish(y.squeeze(0), window, 1, x.dtype)

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
        """Return the outputs of the steps of ``x``, time first, and the window."""
        raise NotImplementedError

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
        # A number, for one on a device would have to be waited for at every step, and a buffer, for
        # the state_dict. Whatever else writes to the buffer is noticed by its identity and version.
        self._buffers["sigma"] = torch.zeros(())
        self.__dict__["_sigma"] = 0.0
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

        From then on a delay is a shift, in training and evaluation alike. Freeze ``raw_delay``
        (``requires_grad_(False)``) to train the rest further.

        Raises:
            ValueError: the delays are parametrized: what is written to them would not last.
        """
        if parametrize.is_parametrized(self, "raw_delay"):
            raise ValueError(
                f"{self._label()} has parametrized delays, which cannot be written. Call "
                "torch.nn.utils.parametrize.remove_parametrizations(layer, 'raw_delay') first."
            )
        with torch.no_grad():
            self.raw_delay.copy_(self.delay.round())
        self.sigma = 0.0

    # The width: a number, and its buffer

    def __getattr__(self, name: str) -> Any:
        if name != "sigma":
            return super().__getattr__(name)
        self._read_sigma()
        return self.__dict__["_sigma"]

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "sigma":
            super().__setattr__(name, value)
        elif isinstance(value, nn.Parameter):
            raise TypeError("sigma is not learned: assign a number, or the value of the parameter.")
        elif isinstance(value, Tensor):  # load_state_dict(assign=True) assigns one
            if value.numel() != 1:
                raise ValueError(f"sigma must be one number, got shape {list(value.shape)}.")
            if not value.is_meta:
                check_nonnegative("sigma", value.item(), unit="steps")
            self._buffers["sigma"] = value.detach().clone().reshape(())
            self._read_sigma()
        else:
            self.__dict__["_sigma"] = check_nonnegative("sigma", value, unit="steps")
            self._write_sigma()
            self._declared.note_assigned(type(self), "sigma", self.__dict__["_sigma"])

    def _raw_of(self, name: str, value: Any) -> Tensor:
        return initial_delays(value, tuple(self.raw_delay.shape), self.max_delay)

    def _read_sigma(self) -> None:
        """Take the number from the buffer, if anything else has written to that."""
        buffer = self._buffers["sigma"]
        # a compilation and an export take it for a constant
        if torch.compiler.is_compiling() or is_tracing() or buffer is None:
            return
        known, version = self.__dict__.get("_known_sigma", (None, None))
        if buffer is known and version is not None and version == version_of(buffer):
            return
        values = lowest_wrapped(buffer)
        if values.is_meta or isinstance(values, FakeTensor):
            return
        found = float(values.reshape(-1)[0])
        if bool((values != found).any()):
            raise ValueError(
                f"{self._label()} is one of several models in one vmap, whose sigma differ, "
                f"{values.flatten().tolist()}: their steps are not the same operations. Give all "
                "one sigma, or run them one after the other."
            )
        # a buffer rounds the number that it was written with
        if found != float(values.new_tensor(self.__dict__["_sigma"])):
            self.__dict__["_sigma"] = check_nonnegative("sigma", found, unit="steps")
        version = version_of(buffer)
        # that of a vmap is not kept: nobody could look at it when the vmap is over
        self.__dict__["_known_sigma"] = (None if version is None else buffer, version)

    def _write_sigma(self) -> None:
        buffer = self._buffers["sigma"]
        if buffer is not None and not buffer.is_meta:
            with torch.no_grad():
                buffer.fill_(self.__dict__["_sigma"])
            self.__dict__["_known_sigma"] = (buffer, version_of(buffer))

    def _apply(self, fn: Any, recurse: bool = True) -> DelayingLayer:
        super()._apply(fn, recurse)
        self._write_sigma()  # to_empty() clears it, another dtype rounds it
        return self

    # Running

    def _run(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        past = cast(Tensor, self._states_for(x, dtype, sequence=True)[0])
        window = self._window(past, x.to(dtype))
        return self._delayed(window, x.ndim - 1, len(x)).movedim(-1, 0), window

    def _window(self, past: Tensor, x: Tensor) -> Tensor:
        """Return the past ``[..., max_delay]`` and inputs ``[T, ...]`` in one, time last."""
        return torch.cat([past, x.movedim(0, -1)], -1)

    def _delayed(self, window: Tensor, ndim: int, steps: int) -> Tensor:
        """Return the outputs of the last steps of ``window`` ``[..., max_delay + steps]``.

        The tensor of one step has ``ndim`` dimensions.
        """
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
    """Return ``max(0, 1 - |distance|)``, the weight in linear interpolation.

    Its derivative at a kink is the mean of both sides: ``maximum`` divides a tie, ``relu`` would
    give a whole delay no gradient.
    """
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
