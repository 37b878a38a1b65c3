"""Measure how the images of a data set are drawn: values, size, place and width of strokes."""

from __future__ import annotations

import torch
from torch import Tensor

_MARKED = 0.25  # from this share of the ink on a pixel belongs to the drawing


def measured_pen(images: Tensor) -> dict[str, float | list[float]]:
    """Return how a drawing becomes an image like others: their medians, in pixels.

    ``background`` is the median of the border, ``ink`` the extreme that is farthest from it.
    ``extent`` is the longer side of the box around a drawing, ``centre`` the place ``[x, y]`` of
    its centre of mass, and ``width`` that of its strokes: a stroke's area is its width times its
    length, and its sides are twice as long as it.

    Example:
        >>> images = torch.zeros(1, 28, 28)
        >>> images[0, 4:24, 12:15] = 1.0
        >>> pen = measured_pen(images)
        >>> pen["background"], pen["ink"], pen["extent"], pen["centre"], round(pen["width"], 1)
        (0.0, 1.0, 20.0, [13.5, 14.0], 2.6)
    """
    sides = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    background = torch.cat([side.flatten() for side in sides]).median()
    ends = torch.stack([images.min(), images.max()])
    ink = ends[(ends - background).abs().argmax()]
    if bool(ink == background):
        raise ValueError(f"all values of the samples are {float(ink):g}: nothing is drawn on them.")
    found: list[list[float]] = []
    for marks in ((images.double() - background) / (ink - background)).clamp(0, 1):
        mass = marks.sum()
        rows, columns = (torch.nonzero((marks > _MARKED).any(dim))[:, 0] for dim in (1, 0))
        if not len(rows):
            continue
        extent = max(int(each[-1] - each[0]) + 1 for each in (rows, columns))
        y, x = (
            float((marks.sum(dim) * (torch.arange(marks.shape[1 - dim]) + 0.5)).sum() / mass)
            for dim in (1, 0)
        )
        padded = torch.nn.functional.pad(marks, (1, 1, 1, 1))
        down, across = padded.diff(dim=0)[:, :-1], padded.diff(dim=1)[:-1]
        edge = torch.hypot(down, across).sum()
        found.append([extent, x, y, float(2 * mass / edge)])
    extent, x, y, width = torch.tensor(found, dtype=torch.float64).median(0).values.tolist()
    return {
        "background": float(background),
        "ink": float(ink),
        "extent": extent,
        "centre": [x, y],
        "width": max(width, 1.0),
    }
