"""``DelayedLinear``: a linear layer with a learnable delay for every weight."""

from __future__ import annotations

import math
import operator
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_flag, is_sharded
from tracetorch.core.hooks import hooked_weights
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.delay.base import DelayingLayer, taps
from tracetorch.snn.parameters import Value
from tracetorch.snn.passes import weight_in_loop


class DelayedLinear(DelayingLayer):
    """Linear layer with a delay for every synapse, which can be learned.

    ::

        output[t, o] = bias[o] + sum_i  weight[o, i] * sum_k w[o, i, k] * x[t - k, i]

    with the interpolation ``w`` of ``delay[o, i]`` as for :class:`Delay`, where ``sigma``, its
    schedule and ``round_()`` are explained. Weight and bias are those of ``linear``, an
    ``nn.Linear``. Over time it is one convolution, dense in ``k``: time and memory grow with
    ``max_delay``. ``tt.unroll`` by layer computes it with the events of a sparse input, and the
    gradient of the input by Fourier transforms, on the CPU. ``linear`` is read and not called: a
    parametrization of its weight acts, a hook on it is an error or never runs.

    As the connection of a :class:`Recurrent` it delays the feedback beyond the one step that this
    has itself, in one compiled loop on the CPU.

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

    def kernel_of(self, dtype: torch.dtype) -> Tensor:
        """Return the weight of every synapse at every past step, ``[out, in, max_delay + 1]``."""
        self._check_linear()
        delay: Tensor = self.step_kwargs(0, dtype)["delay"]
        # in memory steps first and outputs last, as products read it
        weight, delay = (each.t().contiguous() for each in (self.linear.weight.to(dtype), delay))
        return (weight * taps(delay, self.max_delay, self.sigma)).permute(2, 1, 0)

    def _check_linear(self) -> None:
        """Raise where a call of ``linear`` would do more than its class: nobody calls it."""
        # not the forward of the instance, nor other pre-hooks: tt.unroll has some of its own
        own = type(self.linear).forward in self._forwards
        sharded = not torch.compiler.is_compiling() and is_sharded(self.linear)
        if not own or sharded or hooked_weights(self.linear):
            raise ValueError(
                f"{self._label()} reads the weight of its linear, and does not call it: pruning, "
                "an old weight norm, another forward (an adapter) or fully_shard of it alone would "
                "have no effect. Use torch.nn.utils.parametrize on linear.weight, make the pruning "
                "permanent, shard the whole layer."
            )

    def _window(self, past: Tensor, x: Tensor) -> Tensor:
        # features last in memory: products with events read it by steps
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
        dtype, bias = window.dtype, cast("Tensor | None", self.linear.bias)
        bias = None if bias is None else bias.to(dtype)
        return self.convolve(window, weight_in_loop(self, self.kernel_of, dtype), bias)

    def convolve(self, window: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution over time ``[..., out_features, steps]``.

        Args:
            window: ``[..., in_features, max_delay + steps]``.
            kernel: ``[out_features, in_features, max_delay + 1]``.
            bias: ``[out_features]``.
        """
        lead, steps = window.shape[:-2], window.shape[-1] - self.max_delay
        if steps == 0:
            return window.new_zeros(*lead, self.out_features, 0)
        if steps == 1:  # one product, of what lies so in memory
            y = window.transpose(-1, -2).flatten(-2) @ kernel.permute(2, 1, 0).flatten(0, 1)
            return (y if bias is None else y + bias).unsqueeze(-1)
        batch = window.reshape(math.prod(lead), *window.shape[-2:])
        return F.conv1d(batch, kernel, bias).reshape(*lead, self.out_features, steps)


# what a step calls, and a user may have set on a layer or patched in the class
_OWN = ("forward", "forward_step", "_delayed", "_window", "_check_input", "_states_for", "convolve")
_code_of = operator.attrgetter(*_OWN)
_CODE = _code_of(DelayedLinear)
