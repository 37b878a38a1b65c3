"""``QuantizedReLU``: a clipped ReLU of some levels, whose clip learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_positive
from tracetorch.integers.rounding import clamped, straight_through
from tracetorch.snn.parameters import Clamp

_SMALLEST = 1e-6


class QuantizedReLU(nn.Module):
    """Quantised ReLU (QCFS): a clipped ReLU, rounded to levels; the clip learns.

    ::

        output = clip / levels * floor(levels * min(max(x / clip, 0), 1) + 1/2)

    Train a network with it in the place of ``nn.ReLU``, and :func:`from_ann` converts it without
    loss, or says what is missing. The gradient passes the rounding straight through; the clip
    gets one from what it clips, and from the rounding.

    Args:
        levels: steps between 0 and the clip; at least 1. As many as the time steps of the spiking
            network, or fewer.
        clip: largest output, to start from; positive.

    Shape:
        Input and output have one shape, any.

    Attributes:
        clip: the largest output, a parameter.

    Raises:
        TypeError, ValueError: an argument is out of its range.

    Example:
        >>> relu = QuantizedReLU(4, clip=2.0)
        >>> relu(torch.tensor([-1.0, 0.2, 0.25, 0.8, 1.9, 5.0])).tolist()
        [0.0, 0.0, 0.5, 1.0, 2.0, 2.0]

    Reference: Bu, Fang, Ding, Dai, Yu, Huang, "Optimal ANN-SNN conversion for high-accuracy and
    ultra-low-latency spiking neural networks", ICLR 2022.
    """

    levels: int
    clip: nn.Parameter

    def __init__(self, levels: int, clip: float = 4.0) -> None:
        super().__init__()
        self.levels = check_count("levels", levels)
        self.clip = nn.Parameter(torch.tensor(check_positive("clip", clip)))

    @property
    def largest(self) -> Tensor:
        """The clip, positive wherever learning has led it."""
        return Clamp(_SMALLEST)(self.clip)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values."""
        clip = self.largest.to(x.dtype)
        level = clamped(x / clip, 0, 1) * self.levels
        return straight_through(level, torch.floor(level + 0.5)) * (clip / self.levels)

    def extra_repr(self) -> str:
        """Return the levels and the clip."""
        return f"levels={self.levels}, clip={self.clip.item():.6g}"
