from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt

plot: Any = tt.plot

TRUE = torch.tensor([0, 0, 0, 2, 2, 1])
FOUND = torch.tensor([0, 0, 1, 2, 0, 1])
COUNTS = [[2, 1, 0], [0, 1, 0], [1, 0, 1]]


def shown(ax: Any) -> Any:
    return np.asarray(ax.images[0].get_array())


@pytest.mark.parametrize("scores", [False, True])
def test_rows_are_true_classes_and_columns_predicted_ones(scores: bool) -> None:
    found = torch.eye(3)[FOUND] + 0.1 if scores else FOUND
    ax = plot.confusion_matrix(found, TRUE, share=False)
    assert shown(ax).tolist() == COUNTS
    assert [text.get_text() for text in ax.texts] == ["2", "1", "1", "1", "1"]
    assert [text.get_position() for text in ax.texts][1] == (1, 0)  # class 0, taken for 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    percents = shown(plot.confusion_matrix(found, TRUE))
    assert np.allclose(percents, np.array(COUNTS) * 100 / np.array([[3], [1], [2]]))
    assert np.allclose(percents.sum(1), 100)


def test_arrays_and_lists_are_taken_and_classes_have_names_or_a_number() -> None:
    hot = torch.eye(3)[FOUND]
    for found in (FOUND.numpy(), FOUND.tolist(), hot.numpy(), hot.bool(), hot.bool().tolist()):
        ax = plot.confusion_matrix(found, TRUE.numpy(), classes=np.int64(3), share=False)
        assert shown(ax).tolist() == COUNTS
    ax = plot.confusion_matrix(FOUND, TRUE, classes=["ant", "bee", "cat", "dog"], title="who")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["ant", "bee", "cat", "dog"]
    assert not shown(ax)[3].any()  # without a sample: a row of zeros, not of NaN
    assert shown(plot.confusion_matrix(FOUND, TRUE, classes=5)).shape == (5, 5)
    assert shown(plot.confusion_matrix(torch.eye(7)[FOUND], TRUE)).shape == (7, 7)
    many = torch.arange(100)
    ax = plot.confusion_matrix(many, many)
    assert not ax.texts
    assert len(ax.get_xticks()) == 20


def test_samples_without_a_prediction_have_a_column_of_their_own() -> None:
    """``accuracy`` says of silent samples, and of NaN, that they are undecided: of no class."""
    scores = torch.tensor([[0.0, 0.0], [0.2, 0.1], [torch.nan, 0.5], [0.1, 0.3]])
    true = torch.tensor([0, 0, 1, 1])
    ax = plot.confusion_matrix(scores, true, share=False)
    assert shown(ax).tolist() == [[1, 0, 1], [0, 1, 1]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1", "none"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "1"]
    assert shown(plot.confusion_matrix(scores, true)).tolist() == [[50, 0, 50], [0, 50, 50]]
    right = shown(ax)[:, :2].trace() / 4
    assert right == tt.metrics.accuracy(scores[None], true)


def test_two_classes_may_be_booleans() -> None:
    found, true = torch.tensor([True, False, True]), np.array([True, True, False])
    assert shown(plot.confusion_matrix(found, true, share=False)).tolist() == [[0, 1], [1, 1]]
    ax = plot.confusion_matrix(torch.zeros(3, 2, dtype=torch.bool), true, share=False)
    assert shown(ax).tolist() == [[0, 0, 1], [0, 0, 2]]  # all equal: none
