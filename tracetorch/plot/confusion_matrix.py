"""Draw a confusion matrix: which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.checks import check_count, check_flag
from tracetorch.metrics.accuracy import decided
from tracetorch.plot.axes import COLOURMAP, finished, get_axes
from tracetorch.plot.descriptions import describe_plot
from tracetorch.plot.recorded import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NUMBERS = 20  # classes up to which the cells have their numbers written in


@describe_plot
def confusion_matrix(
    predicted: Tensor | Array | Sequence[Any],
    labels: Tensor | Array | Sequence[int],
    *,
    classes: Sequence[str] | int | None = None,
    share: bool = True,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a confusion matrix: a row for each class, a column for each class that was predicted.

    Samples with equal scores for all classes, such as those without any spike, or with NaN among
    them, have no prediction, as for :func:`tt.metrics.accuracy <tracetorch.metrics.accuracy>`: they
    are in a further column, "none", where there are any.

    Args:
        predicted: classes that were predicted, integers ``[N]``, or scores ``[N, C]``, the largest
            of which is the prediction: a tensor, an array or a list.
        labels: the true classes, integers ``[N]``; likewise.
        classes: names of the classes, or their number; ``None``: as many as the scores have, or as
            the largest class needs.
        share: colours and numbers are percents of the samples of a true class; ``False``: counts.

    Shape:
        ``[N]`` or ``[N, C]``, and ``[N]``; x in predicted classes, y in true classes.

    Example:
        >>> ax = confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), share=False)
        >>> ax.images[0].get_array().astype(int).tolist()
        [[1, 1], [0, 1]]
    """
    names, counts = _counted(predicted, labels, classes)
    shown = counts.astype(float)
    if check_flag("confusion_matrix: share", share):
        shown = 100 * shown / np.maximum(counts.sum(1, keepdims=True), 1)

    size = 2.6 + 0.28 * min(counts.shape[1], _MOST_NUMBERS)
    ax = get_axes(ax, (size + 0.8, size))
    highest = 100.0 if share else max(1.0, float(shown.max()))
    image = ax.imshow(shown, cmap=COLOURMAP, vmin=0.0, vmax=highest)
    every = np.arange(0, len(names), max(1, -(-len(names) // _MOST_NUMBERS)))
    labelled = [names[number] for number in every]
    ax.set_yticks(every, labelled)
    if counts.shape[1] > len(names):
        every, labelled = np.append(every, len(names)), [*labelled, "none"]
    ax.set_xticks(every, labelled, rotation=90 if max(map(len, labelled)) > 2 else 0)
    if len(names) <= _MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            # viridis is dark where values are small
            colour = "white" if shown[row, column] < 0.6 * highest else "black"
            text = f"{shown[row, column]:.0f}"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.figure.colorbar(image, ax=ax, label="share of the class (%)" if share else "samples")
    return finished(ax, title)


def _counted(
    predicted: Any, labels: Any, classes: Sequence[str] | int | None
) -> tuple[list[str], Array]:
    """Return the names of the classes, and how often each was taken for each, and last for none."""
    scores, labels = torch.as_tensor(predicted), torch.as_tensor(labels)
    shapes = f"{list(scores.shape)} and {list(labels.shape)}"
    size, undecided = None, torch.zeros(scores.shape[:1], dtype=torch.bool)
    if scores.ndim == 2:
        size = scores.shape[1]
        scores, undecided = decided(scores)
    if scores.ndim != 1 or scores.shape != labels.shape or not len(scores):
        raise ValueError(
            "confusion_matrix takes predictions [N] or scores [N, C] and labels [N] of some "
            f"samples, got {shapes}. Of outputs over time [T, N, C]: tt.decode.rate(outputs), say."
        )
    if scores.is_floating_point() or labels.is_floating_point():
        raise TypeError(
            f"confusion_matrix: classes [N] must be integers, got {scores.dtype} and "
            f"{labels.dtype}."
        )
    found, true = (each.detach().cpu().long().numpy() for each in (scores, labels))
    low, high = int(min(found.min(), true.min())), int(max(found.max(), true.max()))
    count = size or high + 1
    if classes is not None and not isinstance(classes, Sequence):
        count = check_count("confusion_matrix: classes", classes)
    names = [str(name) for name in (classes if isinstance(classes, Sequence) else range(count))]
    if low < 0 or high >= len(names):
        raise ValueError(
            f"confusion_matrix: classes must be 0 to {len(names) - 1}, got {low} to {high}."
        )
    counts = np.zeros((len(names), len(names) + 1), np.int64)
    np.add.at(counts, (true, np.where(undecided.cpu().numpy(), len(names), found)), 1)
    return names, counts if bool(undecided.any()) else counts[:, :-1]
