"""Parts that the networks share: a convolution with its norm, the kind of images, checks."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor, nn

from tracetorch.core.checks import check_choice, check_count
from tracetorch.core.docstrings import SharedDescriptions
from tracetorch.models.neuron import NeuronBuilder

Images: TypeAlias = Literal["imagenet", "small"]

describe_network = SharedDescriptions(
    {
        "num_classes": "size of the output.",
        "in_channels": "channels of the images.",
        "neuron": "builds each neuron layer; an LIF with a time constant of two steps if left out, "
        "as in the paper.",
        "attention": "builds the neurons behind attention; as ``neuron`` if left out, and where "
        "that is left out too, at half its threshold, as in the paper.",
    },
    "One time step: ``[B, in_channels, H, W]`` to ``[B, num_classes]``. Average over time.",
    {"ValueError": "a depth or kind is unknown, or a size does not fit."},
)


def conv_norm(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, bias: bool = False
) -> list[nn.Module]:
    """Build a convolution that keeps the size of an image, or divides it, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    return [conv, nn.BatchNorm2d(outputs)]


def check_images(images: object) -> None:
    """Raise ``ValueError`` for an unknown kind of images."""
    check_choice("images", images, get_args(Images))


def check_multiple(name: str, value: int, divisor: int, reason: str = "") -> None:
    """Raise ``ValueError`` unless ``value`` is a multiple of ``divisor``, for a ``reason``."""
    check_count(name, value)
    if value % divisor:
        why = f" ({reason})" if reason else ""
        raise ValueError(
            f"{name} must be a multiple of {divisor}{why}, got {value}. "
            f"Try {max(value // divisor, 1) * divisor}."
        )


def check_builder(name: str, build: Any) -> NeuronBuilder:
    """Return ``build``; raise ``TypeError`` unless it is called with a number of neurons."""
    if isinstance(build, nn.Module) or not callable(build):
        kind = f"a module, {type(build).__name__}" if isinstance(build, nn.Module) else repr(build)
        raise TypeError(
            f"{name} must build a layer for each of many sizes, got {kind}. Give a class of "
            "tt.snn, as snn.LIF, or a callable: lambda n, dim: snn.LIF(n, dim=dim)."
        )
    built: NeuronBuilder = build
    return built


def check_image(x: Tensor) -> None:
    """Raise ``ValueError`` unless ``x`` is a batch of images."""
    # torch.fx, with which tt.nir follows a forward, gives what has no shape
    if isinstance(x, Tensor) and x.ndim != 4:
        hint = " Run a sequence [T, B, C, H, W] by tt.unroll(net, x)." if x.ndim == 5 else ""
        raise ValueError(
            f"a time step must be images [B, C, H, W], got {x.ndim} dimensions: "
            f"{list(x.shape)}.{hint}"
        )
