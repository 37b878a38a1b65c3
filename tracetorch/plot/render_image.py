"""A tensor as an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tracetorch.plot.canvas import canvas, titled
from tracetorch.plot.recorded import array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def render_image(
    tensor: Tensor,
    figsize: tuple[float, float] = (4, 4),
    title: str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """A grey or a colour image.

    Grey is stretched from ``vmin``, black, to ``vmax``, white, and gets a colour bar. Colour runs
    from 0 to 1, or to 255 for ``uint8``, unless told otherwise; what lies beyond is cut off.

    Args:
        tensor: the image.
        figsize: of the figure that is made where ``ax`` is left out, in inches.
        title: above the axes.
        vmin: the darkest value; for grey the smallest there is.
        vmax: the brightest value; for grey the largest there is.
        ax: axes to draw on; left out, they are made, with a figure of their own.

    Shape:
        ``[H, W]``, ``[1, H, W]`` or ``[3, H, W]``.

    Raises:
        TypeError: ``tensor`` is no tensor.
        ValueError: it has another shape, or ``vmax`` is less than ``vmin``.

    Example:
        >>> render_image(torch.rand(1, 28, 28)).images[0].get_array().shape
        (28, 28)

    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"render_image takes a tensor, got {type(tensor).__name__}.")
    shape = tensor.shape
    if not (tensor.ndim == 2 or (tensor.ndim == 3 and shape[0] in (1, 3))) or not shape.numel():
        raise ValueError(
            f"render_image takes [H, W], [1, H, W] or [3, H, W], got {list(shape)}. Pick one image "
            "of a batch: x[0]."
        )
    coloured = tensor.ndim == 3 and shape[0] == 3
    image = array(tensor)
    if coloured:
        ends = (0.0, 255.0 if tensor.dtype == torch.uint8 else 1.0)
    else:
        ends = (float(image.min()), float(image.max()))
    low, high = (ends[0] if vmin is None else vmin), (ends[1] if vmax is None else vmax)
    if high < low:
        raise ValueError(f"render_image: vmax must not be less than vmin, got {low} and {high}.")

    ax = canvas(ax, figsize)
    if coloured:
        ax.imshow(np.clip((image.transpose(1, 2, 0) - low) / ((high - low) or 1.0), 0.0, 1.0))
    else:
        grey = image if image.ndim == 2 else image[0]
        drawn = ax.imshow(grey, cmap="gray", vmin=low, vmax=high)
        ax.figure.colorbar(drawn, ax=ax, fraction=0.046, pad=0.04)
    ax.set(xticks=[], yticks=[])
    titled(ax, title)
    return ax
