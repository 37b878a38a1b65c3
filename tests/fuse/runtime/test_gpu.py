from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tracetorch.fuse.runtime import gpu


def test_kernels_are_launched_without_contraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contracted, the spikes that backward computes again differ from those of the forward pass."""
    launches: list[tuple[Any, dict[str, Any]]] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda **options: launches.append((grid, options))

    plan: Any = SimpleNamespace(kernels={"forward": Kernel()})
    lanes: Any = SimpleNamespace(lanes=2 * gpu.BLOCK + 1)
    gpu._launch(plan, "forward", lanes, torch.device("cpu"), {"steps": 7})
    ((grid, options),) = launches
    assert grid == (3,)
    assert options["steps"] == 7
    assert options["BLOCK"] == gpu.BLOCK
    assert options["enable_fp_fusion"] is False
