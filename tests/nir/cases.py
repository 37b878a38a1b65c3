"""Shared helpers of the NIR tests: sequences, how to run and compare, graphs without metadata."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.nir.simulator import Simulator

DT = 1e-4


def double(module: nn.Module) -> nn.Module:
    """The module in float64, where nothing but a wrong equation makes two spikes differ."""
    return module.to(torch.float64)


def run(model: nn.Module, x: Tensor, by: Any = "step") -> Tensor:
    """``x`` ``[T, B, ...]`` from empty states, by the reference; kernels have their own tests."""
    tt.zero_states(model)
    with torch.no_grad(), tt.fuse.backend("eager"):
        y: Tensor = tt.unroll(model, x, by=by)
    tt.zero_states(model)
    return y


def simulated(graph: nir.NIRGraph, x: Tensor, reset: str = "zero", dt: float = DT) -> Tensor:
    """The same by the simulator of the paper's equations, sample by sample."""
    outputs = [Simulator(graph, dt, reset).run(sample) for sample in x.transpose(0, 1).numpy()]
    return torch.from_numpy(np.stack(outputs, 1))


def through_file(model: nn.Module, sample: Any, path: Path, **how: Any) -> nn.Module:
    """Saved and read again."""
    tt.nir.save(model, path, sample, **how)
    back = {key: how[key] for key in ("discretization",) if key in how}
    return tt.nir.from_nir(path, dt=how.get("dt", DT), **back)


def full(shape: tuple[int, ...], low: float, high: float, seed: int) -> np.ndarray:
    """Values that differ everywhere."""
    return np.random.default_rng(seed).uniform(low, high, shape)


def graph(edges: list[tuple[str, str]], **nodes: Any) -> nir.NIRGraph:
    """Nodes and edges, unchecked."""
    return nir.NIRGraph(nodes, edges, type_check=False)


def ways(*chains: str) -> list[tuple[str, str]]:
    """Edges along chains of names."""
    return [edge for chain in chains for edge in itertools.pairwise(chain.split())]


def line(*nodes: Any, into: tuple[int, ...], out: tuple[int, ...]) -> nir.NIRGraph:
    """Chain nodes, each after the one before."""
    names = ["input", *(f"n{i}" for i in range(len(nodes))), "output"]
    ends = nir.Input(np.array(into)), nir.Output(np.array(out))
    parts = dict(zip(names, [ends[0], *nodes, ends[1]], strict=True))
    return graph(list(itertools.pairwise(names)), **parts)


NEURONS: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "I": lambda s: nir.I(r=full(s, 500, 2000, 0)),
    "IF": lambda s: nir.IF(full(s, 3000, 9000, 0), full(s, 0.5, 1.5, 1), full(s, -0.5, 0.3, 2)),
    "LI": lambda s: nir.LI(full(s, 3e-4, 3e-3, 0), full(s, 0.5, 9, 1), full(s, -1, 1, 2)),
    "LIF": lambda s: nir.LIF(full(s, 3e-4, 3e-3, 0), full(s, 3, 9, 1), full(s, -1, 0.2, 2),
     full(s, 0.3, 1, 3), full(s, -1, 0.2, 4)),
    "CubaLI": lambda s: nir.CubaLI(full(s, 2e-4, 1e-3, 0), full(s, 3e-4, 3e-3, 1), full(s, 2, 9, 2),
     full(s, -1, 1, 3)),
    "CubaLIF": lambda s: nir.CubaLIF(full(s, 2e-4, 1e-3, 0), full(s, 3e-4, 3e-3, 1),
     full(s, 2, 9, 2), full(s, -1, 0.2, 3), full(s, 0.3, 1, 4), full(s, -1, 0.2, 5),
     full(s, 1, 4, 6)),
}  # fmt: skip
