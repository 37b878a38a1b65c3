from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from tracetorch.plot.recorded import batch_of, index, one_sample, plain, tensors


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ([1, 2], TypeError, r"raster takes a tensor \[T, B, \.\.\.\] or a dict of them.*got list"),
        ({}, ValueError, "raster: the recording is empty. Name something in record="),
        ({"a": [1.0]}, TypeError, r"from names to tensors, got str 'a' to list"),
        ({1: torch.ones(2)}, TypeError, r"from names to tensors, got int 1 to Tensor"),
        (torch.tensor(1.0), ValueError, r"raster must have time first.*got shape \[\]"),
        ({"a": torch.ones(0, 2)}, ValueError, r"raster: 'a' must have time first.*\[0, 2\]"),
        (torch.ones(2, 1, dtype=torch.complex64), TypeError, "must be real, got torch.complex64"),
        (
            {"a": torch.ones(2, 1), "b": torch.ones(3, 1)},
            ValueError,
            r"same number of steps, got \{'a': 2, 'b': 3\}",
        ),
    ],
)
def test_refuses_what_is_no_recording(given: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        tensors("raster", given)


def test_one_sample_flattens_what_stands_behind_the_batch() -> None:
    x = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).double().requires_grad_()
    assert one_sample("raster", "", x, -1).tolist() == [[8, 9, 10, 11], [20, 21, 22, 23]]
    assert one_sample("raster", "", x, None).shape == (2, 12)
    assert batch_of("raster", "", x).shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16])
def test_every_dtype_becomes_one_that_numpy_knows(dtype: torch.dtype) -> None:
    x = torch.tensor([[1], [0]]).to(dtype)
    made = one_sample("raster", "", x, 0)
    assert made.dtype == np.float32
    assert made.tolist() == [[1], [0]]


def test_refuses_a_sample_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="raster: sample must lie in 0 to 2, got 3"):
        one_sample("raster", "", torch.ones(2, 3, 1), 3)
    with pytest.raises(ValueError, match=r"raster: 'a' has shape \[2\], no batch.*sample=None"):
        one_sample("raster", "a", torch.ones(2), 0)
    with pytest.raises(TypeError, match=r"sample must be an integer, got 0\.5"):
        one_sample("raster", "", torch.ones(2, 3, 1), 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape("'a' must be [T, B, ...], got shape [2]")):
        batch_of("rate_map", "a", torch.ones(2))


def test_indices_count_from_the_end_too() -> None:
    assert [index("n", place, 3) for place in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for place in (3, -4):
        with pytest.raises(ValueError, match=f"n must lie in 0 to 2, got {place}"):
            index("n", place, 3)


def test_numbers_come_in_many_forms() -> None:
    for given in ([1, 2.5], (torch.tensor(1), torch.tensor(2.5)), torch.tensor([[1], [2.5]])):
        assert plain("line_graph", given).tolist() == [1.0, 2.5]
    assert plain("line_graph", np.array([1.0, 2.5])).tolist() == [1.0, 2.5]
    for wrong in (3, "ab", [torch.ones(2)]):
        with pytest.raises(TypeError, match="line_graph takes numbers: a tensor, or a list"):
            plain("line_graph", wrong)
