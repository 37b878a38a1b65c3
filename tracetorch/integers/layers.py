"""Products with integer weights: ``Linear``, ``Conv1d`` and ``Conv2d``, shifted to the left.

Weights of few bits make currents of a coarse step, and states that decay need a finer one: so the
sum of products is shifted before a bias of full width is added. Weights are kept in integers of
their width, and so is a file of them.

Autocast does not reach them, nor pools of integers. Where products of float32 may be computed from
rounded factors (TF32 keeps 11 bits, and PyTorch has it on for convolutions on CUDA; bfloat16 keeps
8, by ``torch.set_float32_matmul_precision``) they are computed in float64, which is right and on
most cards slow: switch it off for speed, ``torch.backends.cudnn.allow_tf32 = False``. What
``torch.compile`` makes for CUDA always computes in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from tracetorch.core.checks import check_count, check_flag, check_integer
from tracetorch.core.docstrings import SharedDescriptions
from tracetorch.core.torch_private import constant_in_compile
from tracetorch.integers.loading import Ends, KnownSettings
from tracetorch.integers.width import check_between, limits

_MOST_SHIFT = 16

describe_product = SharedDescriptions(
    {
        "in_features": "size of the last dimension of the input.",
        "out_features": "size of the last dimension of the output.",
        "in_channels": "channels of the input.",
        "out_channels": "channels of the output.",
        "kernel_size": "weights along each of the last dimensions.",
        "stride": "from one output to the next.",
        "padding": "zeros at both ends.",
        "dilation": "from one weight to the next.",
        "groups": "of channels.",
        "bias": "whether there is one, of 32 bits; it is not shifted.",
        "max_delay": "the largest delay in steps; at least 1.",
        "delay": "whole steps, a number or a tensor of the weight's shape.",
        "shift": "by how many bits the product is shifted to the left, 0 to 16.",
        "weight_bits": "width of a weight, 2 to 16; it is int8, above 8 bits int16.",
    },
    raises={"TypeError, ValueError": "an argument is of another kind or out of range."},
)


def exactly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function of integers outside of autocast and TF32, which round its factors."""
    check_holds_integers(x)
    device = x.device.type
    if device == "meta":
        return function(x)
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return exactly(function, x)
    compiled = device == "cuda" and torch.compiler.is_dynamo_compiling()
    # compiled code may be run after a change of the switches
    if x.dtype is torch.float32 and (compiled or rounds_factors(device)):
        # not by the switches, which are the whole process's: another thread may need them on
        return function(x.double()).to(x.dtype)
    return function(x)


def check_holds_integers(x: Tensor) -> None:
    """Raise ``TypeError`` where a tensor is of half precision, which holds few integers."""
    if x.dtype in (torch.float16, torch.bfloat16):
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
    required, taken = 2, "shift"

    def __init__(self, shape: tuple[int, ...], bias: bool, shift: int, weight_bits: int) -> None:
        super().__init__()
        self.shift = check_between("shift", shift, 0, _MOST_SHIFT)
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
        """Return the product with given weights, shifted, and the bias added."""
        return self.shifted(self.product(x, weight), self.bias, weight.ndim - 2)

    def shifted(self, sums: Tensor, bias: Tensor | None, behind: int) -> Tensor:
        """Shift sums, with ``behind`` dimensions after that of the outputs, and add a bias."""
        y = sums * 2.0**self.shift
        return y if bias is None else y + bias.to(y.dtype).reshape(-1, *[1] * behind)

    def extra_repr(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        return f"{bias}, shift={self.shift}, weight_bits={self.weight_bits}"


@describe_product
class Linear(Product):
    """Linear layer of integers.

    ::

        output = 2^shift W x + bias

    ``W`` and ``bias`` are buffers of integers, zero until they are filled: by
    ``tt.quantize.convert``, by ``load_state_dict`` or by hand. They do not learn:
    ``tt.quantize.prepare`` makes a layer that does, through the same forward.

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
    _convolve: ClassVar[Callable[..., Tensor]]

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
        return self._convolve(x, weight, None, *places, self.groups)

    def extra_repr(self) -> str:
        given = f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            given += "" if set(value) == {default} else f", {name}={value}"
        given += "" if self.groups == 1 else f", groups={self.groups}"
        return f"{given}{super().extra_repr()}"


def as_sizes(name: str, size: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return a size in every dimension, as PyTorch's layers take one for all."""
    each = size if isinstance(size, tuple) else (size,) * ndim
    least = 0 if name == "padding" else 1
    if len(each) != ndim or any(check_integer(name, one) < least for one in each):
        raise ValueError(
            f"{name} must be an integer of at least {least}, or {ndim} of them, got {size}."
        )
    return each


@describe_product
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
    _convolve = staticmethod(F.conv1d)


@describe_product
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
    _convolve = staticmethod(F.conv2d)
