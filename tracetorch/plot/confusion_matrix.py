"""Draw a confusion matrix: which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.checks import check_count, check_flag
from tracetorch.plot.axes import COLOURMAP, get_axes, set_title
from tracetorch.plot.recorded import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NUMBERS = 20  # classes up to which the cells have their numbers written in


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

    Args:
        predicted: classes that were predicted, integers ``[N]``, or scores ``[N, C]``, the largest
            of which is the prediction: a tensor, an array or a list.
        labels: the true classes, integers ``[N]``; likewise.
        classes: names of the classes, or their number; ``None``: as many as the scores have, or as
            the largest class needs.
        share: colours and numbers are percents of the samples of a true class; ``False``: counts.
        title: title of the axes.
        ax: axes to draw on; if left out, new axes on a new figure.

    Shape:
        ``[N]`` or ``[N, C]``, and ``[N]``; x in predicted classes, y in true classes.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the shapes differ, there is no sample, a score is NaN, or a class is out of
            range.

    Example:
        >>> ax = confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), share=False)
        >>> ax.images[0].get_array().astype(int).tolist()
        [[1, 1], [0, 1]]
    """
    names, counts = _counted(predicted, labels, classes)
    shown = counts.astype(float)
    if check_flag("confusion_matrix: share", share):
        shown = 100 * shown / np.maximum(counts.sum(1, keepdims=True), 1)

    size = 2.6 + 0.28 * min(len(names), _MOST_NUMBERS)
    ax = get_axes(ax, (size + 0.8, size))
    highest = 100.0 if share else max(1.0, float(shown.max()))
    image = ax.imshow(shown, cmap=COLOURMAP, vmin=0.0, vmax=highest)
    every = np.arange(0, len(names), max(1, -(-len(names) // _MOST_NUMBERS)))
    labelled = [names[number] for number in every]
    ax.set_yticks(every, labelled)
    ax.set_xticks(every, labelled, rotation=90 if max(map(len, labelled)) > 2 else 0)
    if len(names) <= _MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            # viridis is dark where values are small
            colour = "white" if shown[row, column] < 0.6 * highest else "black"
            text = f"{shown[row, column]:.0f}"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.figure.colorbar(image, ax=ax, label="share of the class (%)" if share else "samples")
    set_title(ax, title)
    return ax


def _as_tensor(name: str, value: object) -> Tensor:
    """Return a tensor, or an array or a list of numbers, as a tensor."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"confusion_matrix: {name} must be a tensor, an array or a list of integers, got "
            f"{value!r}."
        ) from None


def _counted(
    predicted: object, labels: object, classes: Sequence[str] | int | None
) -> tuple[list[str], Array]:
    """Return the names of the classes, and how often each was taken for each."""
    scores, labels = _as_tensor("predicted", predicted), _as_tensor("labels", labels)
    shapes = f"{list(scores.shape)} and {list(labels.shape)}"
    size = None
    if scores.ndim == 3:
        raise ValueError(
            f"confusion_matrix takes predictions [N] or scores [N, C], got {list(scores.shape)}. "
            "Of outputs over time [T, N, C]: tt.decode.rate(outputs, mask=mask), say."
        )
    if scores.ndim == 2:
        if bool(scores.isnan().any()):
            raise ValueError("confusion_matrix: a score is NaN, which has no class.")
        size, scores = scores.shape[1], scores.argmax(1)
    for name, value in (("predicted", scores), ("labels", labels)):
        if value.is_floating_point() or value.is_complex():
            raise TypeError(f"confusion_matrix: {name} must be integers [N], got {value.dtype}.")
    if scores.ndim != 1 or scores.shape != labels.shape or not len(scores):
        raise ValueError(
            "confusion_matrix takes predictions [N] or [N, C] and labels [N] of some samples, got "
            f"{shapes}."
        )
    found, true = (each.detach().cpu().long().numpy() for each in (scores, labels))
    largest = int(max(found.max(), true.max())) + 1
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        names = [str(name) for name in classes]
    elif classes is None:
        names = [str(n) for n in range(size or largest)]
    elif isinstance(classes, Integral) and not isinstance(classes, bool):
        names = [str(n) for n in range(check_count("confusion_matrix: classes", classes))]
    else:
        raise TypeError(f"confusion_matrix: classes must be names or a number, got {classes!r}.")
    if not names:
        raise ValueError("confusion_matrix: classes must be at least one name, got none.")
    if largest > len(names) or min(found.min(), true.min()) < 0:
        raise ValueError(
            f"confusion_matrix: classes must be 0 to {len(names) - 1}, got "
            f"{int(min(found.min(), true.min()))} to {largest - 1}."
        )
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (true, found), 1)
    return names, counts
