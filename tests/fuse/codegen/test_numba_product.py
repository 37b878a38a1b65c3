from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tracetorch.fuse.codegen import numba_product
from tracetorch.fuse.codegen.numba_product import PANEL, QUAD, multiply
from tracetorch.fuse.runtime.recurrence import _panels


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (4, 3), (6, 5), (5, 66)])
def test_product_is_numpys(
    rows: int, size: int, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    source = random.integers(-3, 4, (rows, size)) * (random.random((rows, size)) < density)
    matrix = random.integers(-8, 9, (size, size)).astype(float)
    taken: list[str] = []
    for function in (numba_product.multiply_densely, numba_product.multiply_events):

        def spy(*args: Any, function: Any = function) -> None:
            taken.append(function.__name__)
            function(*args)

        monkeypatch.setattr(numba_product, function.__name__, spy)
    target = np.full(rows * size, np.nan)
    scratch = np.full(QUAD * PANEL, np.nan), np.zeros(size + 1, int)
    panels = _panels(torch.from_numpy(matrix)).numpy().ravel()
    multiply(source.astype(float).ravel(), panels, target, rows, size, *scratch)
    assert np.array_equal(target.reshape(rows, size), source @ matrix)
    # groups of four rows are multiplied at once where they are dense
    dense = taken.count("multiply_densely")
    assert dense == (rows // QUAD if density == 1.0 else 0)
    assert taken.count("multiply_events") == rows - QUAD * dense
