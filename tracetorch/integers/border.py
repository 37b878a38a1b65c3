"""``Quantize``, the border of an integer network, sums of windows, and ``Add`` of branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tracetorch.core.checks import check_flag, check_positive
from tracetorch.integers.layers import as_sizes, exactly
from tracetorch.integers.loading import CheckedLoading, KnownSettings
from tracetorch.integers.rounding import round  # noqa: A004
from tracetorch.integers.width import limits, saturate


class Quantize(KnownSettings):
    """Make integers of real numbers: the border at which an integer network begins.

    ::

        y = saturate(round(x / scale), bits),   dy/dx = 1 / scale where it does not saturate

    Args:
        scale: what one integer stands for; positive, a buffer.
        bits: width of the result.
        signed: whether it is that of signed integers.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

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

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        scale = given.get("scale", self.scale)
        if not scale.is_meta and not bool(((scale > 0) & scale.isfinite()).all()):
            yield "scale", f"holds {scale.flatten()[0]:g}, and a scale is positive and finite."
        yield from super().objections(given)

    def forward(self, x: Tensor) -> Tensor:
        return saturate(round(x / self.scale.to(x.dtype)), self.bits, signed=self.signed)

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

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        factors = given.get("_extra_state", torch.zeros(2))
        if factors.numel() != 2 or not torch.equal(factors, factors.round()):
            yield "_extra_state", f"holds {factors.tolist()}, and the factors are two integers."

    def extra_repr(self) -> str:
        return f"factors={self.factors}"


class SumPool(nn.Module):
    """Base of sums over windows, of as many dimensions as ``ndim`` says."""

    ndim: ClassVar[int]
    _convolve: ClassVar[Callable[..., Tensor]]

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
        return exactly(lambda x: self._convolve(x, *self.ones(x)), x)

    def ones(self, x: Tensor) -> tuple[Any, ...]:
        """Return the arguments of a convolution that sums windows of each channel.

        An average pool with another divisor is exported to ONNX without it, and its mean rounds.
        """
        channels = x.shape[-len(self.kernel_size) - 1]
        kernel = x.new_ones(channels, 1, *self.kernel_size)
        return kernel, None, self.stride, self.padding, 1, channels

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"


class SumPool1d(SumPool):
    """Sum of the integers in every window: an average pool whose divisor goes into a scale.

    Args:
        kernel_size: of the window.
        stride: from one window to the next; ``None`` for the kernel's size.
        padding: zeros at both ends.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        >>> SumPool1d(2)(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])).tolist()
        [[[3.0, 7.0]]]
    """

    ndim = 1
    _convolve = staticmethod(F.conv1d)


class SumPool2d(SumPool):
    """Sum of the integers in every window of two dimensions; see :class:`SumPool1d`.

    Args:
        kernel_size: of the window.
        stride: from one window to the next; ``None`` for the kernel's size.
        padding: zeros at the border.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        >>> SumPool2d(2)(torch.ones(1, 1, 4, 4)).tolist()
        [[[[4.0, 4.0], [4.0, 4.0]]]]
    """

    ndim = 2
    _convolve = staticmethod(F.conv2d)
