"""``DelayedLinear`` and ``DelayedConv1d`` of integers: a delay in whole steps for each weight.

They are the layers of ``tt.snn`` over a product of integers: a delay in whole steps takes one input
of the past, so that the kernel over time holds the weights and zeros, and sums stay exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import hooked_weights
from tracetorch.integers.layers import (
    Conv1d,
    Linear,
    Product,
    check_holds_integers,
    describe_product,
    exactly,
)
from tracetorch.integers.loading import CheckedLoading, Ends
from tracetorch.snn.delay import DelayedConv1d as FloatDelayedConv1d
from tracetorch.snn.delay import DelayedLinear as FloatDelayedLinear
from tracetorch.snn.delay import SynapticDelays
from tracetorch.snn.parameters import Value
from tracetorch.snn.passes import weight_in_loop


class IntegerDelays(CheckedLoading, SynapticDelays):
    """Base of layers with delays whose product is one of integers."""

    def _hold(
        self, name: str, made: Product, inputs: int, dim: int, max_delay: int, delay: Value
    ) -> None:
        product, delay = cast(nn.Linear, made), _whole(delay)
        SynapticDelays.__init__(self, product, inputs, dim, max_delay, delay, 0.0, learnable=False)
        self.add_module(name, made)

    def _check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        if isinstance(x, Tensor):
            check_holds_integers(x)
        return super()._check_input(x, sequence=sequence)

    def _raw_of(self, name: str, value: Any) -> Tensor:
        return super()._raw_of(name, _whole(value))

    def ends(self) -> Mapping[str, Ends]:
        return {"raw_delay": (0, self.max_delay)}

    def _check_product(self) -> None:
        """Raise where a weight would be computed by a hook: nobody calls the product."""
        if hooked_weights(self.product):
            raise ValueError(
                f"{self._label()} reads the weight of its product, and does not call it: make the "
                "pruning permanent, or use torch.nn.utils.parametrize."
            )

    def _delayed(self, window: Tensor, ndim: int, steps: int) -> Tensor:
        if self.sigma != 0:
            raise ValueError(
                f"{self._label()} has sigma={self.sigma:g}, and integers take delays in whole "
                "steps: sigma must be 0."
            )

        def product(window: Tensor) -> Tensor:
            inner = cast(Product, self.product)
            kernel = weight_in_loop(self, self.kernel_of, window.dtype)
            # places, where there are some, and time are behind the outputs
            behind = inner.weight.ndim - 1
            return inner.shifted(self.convolve(window, kernel, None), inner.bias, behind)

        return exactly(product, window)


def _whole(delay: Value) -> Value:
    values = torch.as_tensor(delay)
    if not values.is_meta and not torch.equal(values, values.round()):
        wrong = values[values != values.round()].flatten()[0].item()
        raise ValueError(f"delay must be whole steps, got {wrong:g}. Round it, delay.round().")
    return delay


@describe_product
class DelayedLinear(IntegerDelays, FloatDelayedLinear):
    """Linear layer of integers with a delay in whole steps for every synapse.

    ::

        output[t, o] = 2^shift sum_i weight[o, i] * x[t - delay[o, i], i] + bias[o]

    ``linear`` is an :class:`Linear` of integers, whose buffers hold weights and bias; ``delay`` is
    a buffer too. All are zero until they are filled: by ``tt.quantize.convert``, by
    ``load_state_dict`` or by hand. Else as ``snn.DelayedLinear``.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``; the state ``past`` is
        ``[..., in_features, max_delay]``.

    Raises:
        ValueError: a delay is not whole.
        TypeError: an input is of half precision.

    Example:
        >>> layer = DelayedLinear(1, 2, False, max_delay=2, delay=torch.tensor([[0.0], [2.0]]))
        >>> _ = layer.linear.weight.fill_(100)
        >>> [layer(torch.tensor([[x]])).tolist()[0] for x in (1.0, 0.0, 0.0)]
        [[100.0, 0.0], [0.0, 0.0], [0.0, 100.0]]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        max_delay: int,
        delay: Value = 0.0,
        shift: int = 0,
        weight_bits: int = 8,
    ) -> None:
        made = Linear(in_features, out_features, bias, shift=shift, weight_bits=weight_bits)
        # of the float class the layer of weight and bias alone differs
        self._hold("linear", made, made.in_features, -1, max_delay, delay)
        self.in_features, self.out_features = made.in_features, made.out_features


@describe_product
class DelayedConv1d(IntegerDelays, FloatDelayedConv1d):
    """Convolution of integers with a delay in whole steps for every weight.

    ``conv`` is a :class:`Conv1d` of integers. For the rest see :class:`DelayedLinear` and
    ``snn.DelayedConv1d``.

    Shape:
        Input ``[..., in_channels, length]``, output ``[..., out_channels, length out]``.

    Example:
        >>> layer = DelayedConv1d(1, 1, 2, bias=False, max_delay=1, delay=1.0)
        >>> _ = layer.conv.weight.copy_(torch.tensor([[[10, -1]]]))
        >>> [layer(torch.tensor([[x]])).tolist() for x in ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])]
        [[[[0.0, 0.0]]], [[[8.0, 17.0]]]]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        max_delay: int,
        delay: Value = 0.0,
        shift: int = 0,
        weight_bits: int = 8,
    ) -> None:
        sizes = in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        made = Conv1d(*sizes, bias, shift=shift, weight_bits=weight_bits)
        self._hold("conv", made, made.in_channels, -2, max_delay, delay)
