from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt
from tracetorch.plot.recorded import (
    flat_numbers,
    flatten_neurons,
    select_sample,
)


def test_neurons_are_flattened() -> None:
    x = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).double().requires_grad_()
    assert select_sample("raster", "", x, -1).tolist() == [[8, 9, 10, 11], [20, 21, 22, 23]]
    assert select_sample("raster", "", x, None).shape == (2, 12)
    assert flatten_neurons("raster", "", x).shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16])
def test_dtypes_become_float32(dtype: torch.dtype) -> None:
    x = torch.tensor([[[1]], [[0]]]).to(dtype)
    result = select_sample("raster", "", x, 0)
    assert result.dtype == np.float32
    assert result.tolist() == [[1], [0]]


@pytest.mark.parametrize(
    "draw",
    [
        tt.plot.raster,
        tt.plot.state_trace,
        tt.plot.rate_histogram,
        tt.plot.rate_map,
        lambda x: tt.plot.save_html(x, "run.html"),
        lambda x: tt.plot.state_trace(torch.ones(5, 1, 2), spikes=x, neurons=1),
    ],
    ids=["raster", "state_trace", "rate_histogram", "rate_map", "save_html", "spikes"],
)
def test_neurons_of_one_sample_are_not_taken_for_samples(
    draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = torch.ones(5, 4, 2)  # [T, B, N]
    for wrong in (seen[:, 0], {"1.output": seen[:, 0]}):
        with pytest.raises(
            ValueError, match=r"shape \[5, 2\].*neurons.*\[T, N\].*\[\.\.\., None\]"
        ):
            draw(wrong)
    draw(seen[:, :1])


def test_one_sample_is_drawn_where_it_is_named_one(tmp_path: Path) -> None:
    spikes = torch.ones(5, 3)
    drawn: Any = tt.plot.raster(spikes, sample=None).collections[0]
    assert len(drawn.get_segments()) == 15
    tt.plot.raster(spikes[:, 0], sample=None)
    tt.plot.save_html(spikes, tmp_path / "run.html", batched=False)
    tt.plot.save_html(spikes[:, 0], tmp_path / "run.html", batched=False)


def test_flat_numbers_takes_tensors_arrays_and_lists() -> None:
    for argument in ([1, 2.5], (torch.tensor(1), torch.tensor(2.5)), torch.tensor([[1], [2.5]])):
        assert flat_numbers("line_graph", argument).tolist() == [1.0, 2.5]
    assert flat_numbers("line_graph", np.array([1.0, 2.5])).tolist() == [1.0, 2.5]
