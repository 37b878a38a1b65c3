"""Parts that the networks share: a convolution with its norm, the kind of images, checks."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from tracetorch.core.checks import check_count

Images: TypeAlias = Literal["imagenet", "small"]


def conv_norm(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, bias: bool = False
) -> list[nn.Module]:
    """Build a convolution that keeps the size of an image, or divides it, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    return [conv, nn.BatchNorm2d(outputs)]


def check_among(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of those allowed."""
    if value not in allowed:
        listed = ", ".join(repr(each) for each in allowed)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")


def check_images(images: object) -> None:
    """Raise ``ValueError`` for an unknown kind of images."""
    check_among("images", images, get_args(Images))


def check_sizes(**sizes: int) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless all are positive integers."""
    for name, size in sizes.items():
        check_count(name, size)


def check_multiple(name: str, value: int, divisor: int, of: str = "") -> None:
    """Raise ``ValueError`` unless ``value`` is a multiple of ``divisor``, called ``of``."""
    check_count(name, value)
    if value % divisor:
        called = f"{of}={divisor}" if of else str(divisor)
        raise ValueError(
            f"{name} must be a multiple of {called}, got {value}. "
            f"Try {max(value // divisor, 1) * divisor}."
        )
