"""Layers of integers: products, shifted to the left, delays, pools, sums, and the border.

Autocast does not reach them. Where PyTorch may round the factors of float32 (TF32, which is on for
convolutions on CUDA, and bfloat16) they compute in float64, on most cards slow: for speed
``torch.backends.cudnn.allow_tf32 = False``. Compiled for CUDA they always do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_flag, check_integer, check_positive
from tracetorch.core.torch_private import constant_in_compile
from tracetorch.integers import arithmetic
from tracetorch.integers.arithmetic import check_between, describe, limits
from tracetorch.integers.loading import CheckedLoading, Ends, KnownSettings
from tracetorch.snn.delay import DelayedLinear as FloatDelayedLinear
from tracetorch.snn.delay import DelayingLayer
from tracetorch.snn.parameters import Value
from tracetorch.snn.passes import weight_in_loop

_CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d}


def exactly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function of integers outside of autocast and TF32, which round its factors."""
    check_holds_integers(x)
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return exactly(function, x)
    # Not by the switches, which are the whole process's; compiled code outlives a change of them.
    wide = (device == "cuda" and torch.compiler.is_dynamo_compiling()) or rounds_factors(device)
    return function(x.double()).to(x.dtype) if wide else function(x)


def check_holds_integers(x: Tensor) -> None:
    if x.dtype in (torch.float16, torch.bfloat16):  # which hold few
        raise TypeError(f"expected an input of float32 or float64, got {x.dtype}: x.float().")


@constant_in_compile
def rounds_factors(device: str) -> bool:
    """Whether PyTorch may round the factors of products of float32 on a kind of device."""
    of: Any = torch.backends
    cuda, cpu = (of.cuda.matmul, of.cudnn.conv), (of.mkldnn.matmul, of.mkldnn.conv)
    scopes = cuda if device == "cuda" else cpu
    return any(scope.fp32_precision not in ("none", "ieee") for scope in scopes)


class Product(KnownSettings):
    """Base of products with integer weights, of a ``shape`` with the outputs first."""

    weight: Tensor
    bias: Tensor | None
    taken = "shift"

    def __init__(self, shape: tuple[int, ...], bias: bool, shift: int, weight_bits: int) -> None:
        super().__init__()
        self.shift = check_between("shift", shift, 0, 16)
        self.weight_bits = check_between("weight_bits", weight_bits, 2, 16)
        dtype = torch.int8 if weight_bits <= 8 else torch.int16
        self.register_buffer("weight", torch.zeros(shape, dtype=dtype))
        has_bias = check_flag("bias", bias)
        self.register_buffer("bias", torch.zeros(shape[0], dtype=torch.int32) if has_bias else None)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the sum of products, without shift and bias."""
        raise NotImplementedError

    def settings(self) -> Mapping[str, int]:
        return {"shift": self.shift, "weight_bits": self.weight_bits}

    def ends(self) -> Mapping[str, Ends]:
        return {"weight": limits(self.weight_bits), "bias": limits(32)}

    def forward(self, x: Tensor) -> Tensor:
        return exactly(lambda x: self.summed(x, self.weight.to(x.dtype)), x)

    def summed(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.shifted(self.product(x, weight), weight.ndim - 2)

    def shifted(self, sums: Tensor, behind: int) -> Tensor:
        """Shift sums, with ``behind`` dimensions after that of the outputs, and add the bias."""
        y, bias = sums * 2.0**self.shift, self.bias
        return y if bias is None else y + bias.to(y.dtype).reshape(-1, *[1] * behind)

    def extra_repr(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        return f"{bias}, shift={self.shift}, weight_bits={self.weight_bits}"


@describe
class Linear(Product):
    """Linear layer of integers.

    ::

        output = 2^shift W x + bias

    ``W`` and ``bias`` are buffers of integers, zero until ``tt.quantize.convert``,
    ``load_state_dict`` or you fill them. ``tt.quantize.prepare`` makes a layer that learns.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``.

    Example:
        >>> layer = Linear(2, 1, shift=3)
        >>> _ = layer.weight.copy_(torch.tensor([[100, -3]])), layer.bias.fill_(5)
        >>> layer(torch.tensor([[1.0, 2.0]])).tolist()
        [[757.0]]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        shift: int = 0,
        weight_bits: int = 8,
    ) -> None:
        inputs = check_count("in_features", in_features)
        outputs = check_count("out_features", out_features)
        super().__init__((outputs, inputs), bias, shift, weight_bits)
        self.in_features, self.out_features = inputs, outputs

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}{super().extra_repr()}"


class _Convolution(Product):
    """Base of convolutions, over as many dimensions as ``ndim`` says."""

    ndim: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        shift: int = 0,
        weight_bits: int = 8,
    ) -> None:
        inputs = check_count("in_channels", in_channels)
        outputs = check_count("out_channels", out_channels)
        kernel = as_sizes("kernel_size", kernel_size, self.ndim)
        steps = as_sizes("stride", stride, self.ndim)
        zeros = as_sizes("padding", padding, self.ndim)
        apart = as_sizes("dilation", dilation, self.ndim)
        if inputs % check_count("groups", groups) or outputs % groups:
            raise ValueError(
                f"groups must divide both channels, {inputs} and {outputs}, got {groups}."
            )
        super().__init__((outputs, inputs // groups, *kernel), bias, shift, weight_bits)
        self.in_channels, self.out_channels, self.groups = inputs, outputs, groups
        self.kernel_size, self.stride, self.padding, self.dilation = kernel, steps, zeros, apart

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        places = self.stride, self.padding, self.dilation
        y: Tensor = _CONVOLVE[self.ndim](x, weight, None, *places, self.groups)
        return y

    def extra_repr(self) -> str:
        names = "stride", "padding", "dilation", "groups"
        given = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        sizes = f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"
        return f"{sizes}, {given}{super().extra_repr()}"


def as_sizes(name: str, size: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return a size in every dimension, as PyTorch's layers take one for all."""
    each = size if isinstance(size, tuple) else (size,) * ndim
    least = 0 if name == "padding" else 1
    if len(each) != ndim or any(check_integer(name, one) < least for one in each):
        raise ValueError(
            f"{name} must be an integer of at least {least}, or {ndim} of them, got {size}."
        )
    return each


@describe
class Conv1d(_Convolution):
    """Convolution of integers over one dimension; for the rest see :class:`Linear`.

    Shape:
        Input ``[B, in_channels, length]``, output ``[B, out_channels, length out]``.

    Example:
        >>> layer = Conv1d(1, 1, 2, bias=False)
        >>> _ = layer.weight.copy_(torch.tensor([[[10, -1]]]))
        >>> layer(torch.tensor([[[1.0, 2.0, 3.0]]])).tolist()
        [[[8.0, 17.0]]]
    """

    ndim = 1


@describe
class Conv2d(_Convolution):
    """Convolution of integers over two dimensions; for the rest see :class:`Linear`.

    Shape:
        Input ``[B, in_channels, H, W]``, output ``[B, out_channels, H out, W out]``.

    Example:
        >>> layer = Conv2d(1, 2, 3, padding=1, shift=2)
        >>> layer(torch.ones(1, 1, 5, 5)).shape, layer.weight.dtype
        (torch.Size([1, 2, 5, 5]), torch.int8)
    """

    ndim = 2


@describe
class DelayedLinear(CheckedLoading, FloatDelayedLinear):
    """Linear layer of integers with a delay in whole steps for every synapse.

    ::

        output[t, o] = 2^shift sum_i weight[o, i] * x[t - delay[o, i], i] + bias[o]

    ``linear`` is a :class:`Linear` of integers, with the buffers of weights and bias; ``delay`` is
    a buffer too. Else as ``snn.DelayedLinear``.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``; the state ``past`` is
        ``[..., in_features, max_delay]``.

    Example:
        >>> layer = DelayedLinear(1, 2, False, max_delay=2, delay=torch.tensor([[0.0], [2.0]]))
        >>> _ = layer.linear.weight.fill_(100)
        >>> [layer(torch.tensor([[x]])).tolist()[0] for x in (1.0, 0.0, 0.0)]
        [[100.0, 0.0], [0.0, 0.0], [0.0, 100.0]]
    """

    _forwards = (Product.forward,)

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
        made: Any = Linear(in_features, out_features, bias, shift=shift, weight_bits=weight_bits)
        sizes = in_features, -1, (out_features, in_features)
        # of the float class the layer of weight and bias alone differs
        DelayingLayer.__init__(self, *sizes, max_delay, delay, 0.0, learnable=False)
        self._raw_of("delay", delay)
        self.in_features, self.out_features, self.linear = in_features, out_features, made

    def _check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        if isinstance(x, Tensor):
            check_holds_integers(x)
        return super()._check_input(x, sequence=sequence)

    def _raw_of(self, name: str, value: Any) -> Tensor:
        raw = super()._raw_of(name, value)
        if not raw.is_meta and not torch.equal(raw, raw.round()):
            wrong = raw[raw != raw.round()][0].item()
            raise ValueError(f"delay must be whole steps, got {wrong:g}. Round it, delay.round().")
        return raw

    def ends(self) -> Mapping[str, Ends]:
        return {"raw_delay": (0, self.max_delay)}

    def _delayed(self, window: Tensor, ndim: int, steps: int) -> Tensor:
        if self.sigma != 0:
            raise ValueError(
                f"{self._label()} has sigma={self.sigma:g}, and integers take delays in whole "
                "steps: sigma must be 0."
            )

        def product(window: Tensor) -> Tensor:
            kernel = weight_in_loop(self, self.kernel_of, window.dtype)
            behind = int(steps != 1)  # dimensions after the outputs: time, where there is one
            return cast(Linear, self.linear).shifted(self.convolve(window, kernel, None), behind)

        return exactly(product, window)


@describe
class Quantize(KnownSettings):
    """Make integers of real numbers: the border at which an integer network begins.

    ::

        y = saturate(round(x / scale), bits),   dy/dx = 1 / scale where it does not saturate

    Args:
        scale: what one integer stands for; positive, a buffer.
        bits: width of the result.

    Example:
        >>> Quantize(0.5, bits=4)(torch.tensor([0.3, -1.5, 20.0])).tolist()
        [1.0, -3.0, 7.0]
    """

    scale: Tensor

    def __init__(self, scale: float, bits: int = 8, signed: bool = True) -> None:
        super().__init__()
        limits(bits, signed=signed)
        self.register_buffer("scale", torch.tensor(check_positive("scale", scale)))
        self.bits, self.signed = bits, check_flag("signed", signed)

    def settings(self) -> Mapping[str, int]:
        return {"bits": self.bits, "signed": int(self.signed)}

    def forward(self, x: Tensor) -> Tensor:
        whole = arithmetic.round(x / self.scale.to(x.dtype))
        return arithmetic.saturate(whole, self.bits, signed=self.signed)

    def extra_repr(self) -> str:
        return f"{float(self.scale):g}, bits={self.bits}, signed={self.signed}"


class Add(CheckedLoading):
    """Add two branches of integers, each brought to the unit that the sum has.

    ::

        y = factors[0] * first(x) + factors[1] * second(x)

    Args:
        first, second: modules that are given the same input; ``nn.Identity`` for none.
        factors: integers of the sum in one of either branch.

    Example:
        >>> Add(nn.Identity(), SumPool1d(1), (3, 1))(torch.tensor([[[1.0, 2.0]]])).tolist()
        [[[4.0, 8.0]]]
    """

    def __init__(
        self, first: nn.Module, second: nn.Module, factors: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        self.first, self.second, self.factors = first, second, factors

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.factors
        y: Tensor = first * self.first(x) + second * self.second(x)
        return y

    # without them weights mean something else
    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.factors, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        first, second = state.tolist()
        self.factors = first, second

    def ends(self) -> Mapping[str, Ends]:
        return {"_extra_state": limits(53)}

    def extra_repr(self) -> str:
        return f"factors={self.factors}"


class SumPool(nn.Module):
    """Base of sums over windows, of as many dimensions as ``ndim`` says."""

    ndim: ClassVar[int]

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
    ) -> None:
        super().__init__()
        self.kernel_size = as_sizes("kernel_size", kernel_size, self.ndim)
        self.stride = self.kernel_size if stride is None else as_sizes("stride", stride, self.ndim)
        self.padding = as_sizes("padding", padding, self.ndim)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[-self.ndim - 1]
        size, options = (channels, 1, *self.kernel_size), (self.stride, self.padding, 1, channels)
        # an average pool with another divisor is exported to ONNX without it, and rounds
        return exactly(lambda x: _CONVOLVE[self.ndim](x, x.new_ones(size), None, *options), x)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"


@describe
class SumPool1d(SumPool):
    """Sum of the integers in every window: an average pool whose divisor goes into a scale.

    Example:
        >>> SumPool1d(2)(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])).tolist()
        [[[3.0, 7.0]]]
    """

    ndim = 1


@describe
class SumPool2d(SumPool):
    """Sum of the integers in every window of two dimensions; see :class:`SumPool1d`.

    Example:
        >>> SumPool2d(2)(torch.ones(1, 1, 4, 4)).tolist()
        [[[[4.0, 4.0], [4.0, 4.0]]]]
    """

    ndim = 2
