"""``Noise``: random numbers in a ``step``, from a counter, so that they can be repeated.

Its numbers are a function of a counter, the state ``position``, an int64 with a value per neuron,
so that masks, cuts, copies and segments need no rule of their own, nor gradients and exports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from tracetorch.cell import StateKind
from tracetorch.core.checks import check_choice, check_integer
from tracetorch.fuse.dispatch.trial import draw_uniforms
from tracetorch.fuse.runtime.threefry import threefry
from tracetorch.snn.sequence_layer import SequenceLayer

Distribution = Literal["normal", "uniform"]

_STARTS = 2**62  # counters that a sequence may start from; it never reaches the end of 2**63


class Noise(SequenceLayer):
    """Random numbers, one for each neuron at each step: noise as an input of a neuron's ``step``.

    ::

        noise[t, l] = f(Threefry(key = l, counter = position + t)),   l the place in the tensor

    A ``step`` may not draw random numbers itself: it takes them as an input, and the layer holds a
    ``Noise`` of that name (example), of whose input only the shape matters. The state ``position``
    is the place in the stream of numbers: they are the same for every cut of a sequence, by layer,
    by step, on every backend and device (normal numbers but for the last place).

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step.
        distribution: ``"normal"``, mean 0 and variance 1, or ``"uniform"`` in (0, 1).
        seed: ``None``: the first step after ``zero_states()`` draws where to start from PyTorch's
            generator of the CPU. A number, in the ``state_dict``: frozen noise, always the same.

    Shape:
        Input, output (of float32 or more bits) and the state, an int64, have one shape.

    Raises:
        TypeError, ValueError: an argument is of another type or out of range; as any neuron layer.

    Example:
        A neuron that fires with a probability, the escape rate.

        >>> class EscapeRate(Neuron):
        ...     inputs = ("x", "noise")
        ...     states = ("mem",)
        ...
        ...     def __init__(self, num_neurons):
        ...         super().__init__(num_neurons)
        ...         self.noise = Noise(num_neurons, distribution="uniform", seed=0)
        ...         self.decay("beta", 0.9)
        ...         self.threshold("pos_threshold", 1.0)
        ...
        ...     @staticmethod
        ...     def step(x, noise, mem, *, beta, pos_threshold, spike):
        ...         mem = beta * mem + x
        ...         probability = torch.sigmoid(4 * (mem - pos_threshold))
        ...         fired = spike(probability - noise)
        ...         return fired, mem - fired * pos_threshold
        >>> layer = EscapeRate(5)
        >>> layer(torch.ones(1, 5)).tolist()
        [[1.0, 1.0, 1.0, 0.0, 1.0]]
    """

    states: ClassVar[tuple[str, ...]] = ("position",)
    _state_kind = StateKind(torch.int64, learned=False)

    position: Tensor | None
    distribution: Distribution

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        *,
        distribution: Distribution = "normal",
        seed: int | None = None,
    ) -> None:
        super().__init__(num_neurons, dim)
        allowed = ("normal", "uniform")
        self.option("distribution", distribution, check=partial(check_choice, allowed=allowed))
        if seed is not None:
            start = _start_of(check_integer("seed", seed))
            self.register_buffer("initial_position", torch.tensor(start))

    def initial_state(
        self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return the position before the first step: that of the seed, or one that is drawn."""
        start = self._buffers.get("initial_position")
        if start is None:
            start = torch.randint(_STARTS, ())
        return start.to(device).expand(shape).clone(memory_format=torch.contiguous_format)

    def forward_step(self, x: Tensor) -> Tensor:
        """Draw the numbers of one time step."""
        dtype = self._check_input(x)
        (position,) = cast(list[Tensor], self._states_for(x, dtype))
        noise = self._draw(position, 1, dtype).squeeze(0)
        self.position = position + 1
        return noise

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw the numbers of all the steps of ``x`` ``[T, ...]``."""
        dtype = self._check_input(x, sequence=True)
        self._check_record(record)
        if len(x) == 0:
            return x.to(dtype, copy=True), {name: x.to(torch.int64) for name in record}
        (position,) = cast(list[Tensor], self._states_for(x, dtype, sequence=True))
        noise = self._draw(position, len(x), dtype)
        passed = torch.arange(1, 1 + len(x), device=x.device).reshape(-1, *[1] * position.ndim)
        self.position = position + len(x)
        return noise, dict.fromkeys(record, position + passed)

    def _draw(self, position: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
        """Return the numbers of some steps, the first at ``position``."""
        with torch.no_grad():
            one, other = draw_uniforms(position, steps, dtype)
            if self.distribution == "uniform":
                return one
            # Box and Muller: a radius and an angle
            return (-2 * one.log()).sqrt() * (2 * math.pi * other).cos()


def _start_of(seed: int) -> int:
    """Return where the stream of a seed starts; neighbouring seeds must not overlap."""
    # on the CPU, also where torch.device("meta") is the default, on which nothing has a value
    words = torch.tensor([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], device="cpu")
    zero = torch.zeros((), dtype=torch.int64, device="cpu")
    low, high = threefry((words[0], words[1]), (zero, zero))
    return (int(high) << 32 | int(low)) % _STARTS
