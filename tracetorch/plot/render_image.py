"""Draw a tensor as an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tracetorch.plot.axes import finished, get_axes
from tracetorch.plot.descriptions import describe_plot
from tracetorch.plot.recorded import to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@describe_plot
def render_image(
    tensor: Tensor,
    figsize: tuple[float, float] = (4, 4),
    title: str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw a grey or a colour image.

    Grey values are scaled from ``vmin``, black, to ``vmax``, white, with a colour bar. By default
    colours range from 0 to 1, or to 255 for ``uint8``; values beyond are clipped.

    Args:
        tensor: the image.
        figsize: size of the new figure in inches, if ``ax`` is left out.
        vmin: value of black; by default 0, for grey images the minimum.
        vmax: value of white; by default 1 or 255, for grey images the maximum.

    Shape:
        ``[H, W]``, ``[1, H, W]`` or ``[3, H, W]``.

    Example:
        >>> render_image(torch.rand(1, 28, 28)).images[0].get_array().shape
        (28, 28)
    """
    shape = tensor.shape
    if not (tensor.ndim == 2 or (tensor.ndim == 3 and shape[0] in (1, 3))) or not shape.numel():
        raise ValueError(
            f"render_image takes [H, W], [1, H, W] or [3, H, W], got {list(shape)}. Pick one image "
            "of a batch: x[0]."
        )
    coloured = tensor.ndim == 3 and shape[0] == 3
    image = to_numpy(tensor)
    darkest, brightest = float(image.min()), float(image.max())
    if coloured:
        darkest, brightest = 0.0, 255.0 if tensor.dtype == torch.uint8 else 1.0
    low, high = darkest if vmin is None else vmin, brightest if vmax is None else vmax
    if high < low:
        raise ValueError(f"render_image: vmax must not be less than vmin, got {low} and {high}.")

    ax = get_axes(ax, figsize)
    if coloured:
        # scaled here: imshow ignores vmin and vmax for colour images
        ax.imshow(np.clip((image.transpose(1, 2, 0) - low) / ((high - low) or 1.0), 0.0, 1.0))
    else:
        mappable = ax.imshow(image.reshape(shape[-2:]), cmap="gray", vmin=low, vmax=high)
        ax.figure.colorbar(mappable, ax=ax, fraction=0.046, pad=0.04)
    ax.set(xticks=[], yticks=[])
    return finished(ax, title)
