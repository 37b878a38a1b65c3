"""Vector functions are within two last places of their true values, over all of their range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.fuse.kernels import graph_on, lesser_machine
from tracetorch.fuse.codegen.llvm_functions import VECTOR_FUNCTIONS
from tracetorch.fuse.ir.graph import Graph, Line

MOST = 2.0  # last places


def arguments() -> np.ndarray:
    """Return every 60001st float32, of all signs and exponents, and many near 0 and 1."""
    every = np.arange(0, 1 << 32, 60001, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = np.linspace(-20, 20, 20001, dtype=np.float32)
    ones = np.float32(1) + np.arange(-500, 500, dtype=np.float32) * np.float32(2.0**-20)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 2.0, 8.0, 1000.0], np.float32)
    return np.concatenate([every, near, ones, special])


def values(op: str, x: np.ndarray, machine: object = None) -> np.ndarray:
    graph = Graph((Line("v0", op, ("x",)),), {"y": "v0"})
    found = graph_on(graph, {"x": torch.from_numpy(x)}, torch.float32, machine)  # type: ignore[arg-type]
    return found["y"].numpy()


def exact(op: str, x: np.ndarray) -> np.ndarray:
    """Return a function in float64, whose own last places are far below those of float32."""
    with np.errstate(all="ignore"):
        return getattr(np, op)(x.astype(np.longdouble)).astype(float)


def last_places(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the error of float32 numbers in units of the last place of the exact ones."""
    with np.errstate(all="ignore"):
        rounded = wanted.astype(np.float32)
        unit = np.spacing(np.abs(rounded)).astype(float)
        error = np.abs(found.astype(float) - wanted) / unit
    same = (found == rounded) & (np.signbit(found) == np.signbit(rounded))
    return np.where(
        same | (np.isnan(found) & np.isnan(wanted)), 0.0, np.nan_to_num(error, nan=np.inf)
    )


@pytest.mark.parametrize("op", sorted(VECTOR_FUNCTIONS))
def test_function_is_exact_to_its_last_places(op: str) -> None:
    x = arguments()
    found = values(op, x)
    error = last_places(found, exact(op, x))
    worst = int(error.argmax())
    assert error[worst] <= MOST, (op, x[worst], found[worst], error[worst])
    # most are the nearest number
    assert (error <= 0.51).mean() > 0.99


@pytest.mark.parametrize("op", ["exp", "log", "tanh"])
def test_lesser_machine_rounds_alike(op: str) -> None:
    """Without a multiply-add that rounds once, in float64, results differ in the last place."""
    x = arguments()
    mine, lesser = values(op, x), values(op, x, lesser_machine())
    assert np.array_equal(np.isnan(mine), np.isnan(lesser))
    numbers = np.isfinite(mine)
    assert np.array_equal(mine[~numbers], lesser[~numbers], equal_nan=True)
    units = np.spacing(np.abs(mine[numbers]))
    assert (np.abs(mine[numbers] - lesser[numbers]) <= units).all()
