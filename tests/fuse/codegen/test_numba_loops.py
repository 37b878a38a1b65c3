from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests import cases
from tests.fuse.cases import CONFIGURATIONS, agree, make, name_of
from tracetorch.fuse.codegen.numba_loops import unroll_factors
from tracetorch.fuse.dispatch import plans
from tracetorch.fuse.runtime import cpu


def array_at(address: int, kind: Any) -> Any:
    """Return the memory at an address, longer than any kernel reads."""
    value = np.dtype(str(kind.dtype))
    if address == 0:  # of a tensor without values
        return np.empty(0, value)
    interface = {"data": (address, False), "shape": (1 << 40,), "typestr": value.str, "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=interface))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the printed source as plain Python, without Numba."""

    def uncompiled(source: str, name: str, signature: Any, scratch: int) -> Any:
        namespace: dict[str, Any] = {}
        exec(source, namespace)
        return namespace[name], signature.args[2:]

    def run(kernel: Any, arguments: Any, tasks: int, *, work: int, scratch: Any) -> None:
        function, kinds = kernel
        own = [np.empty(size, np.uint8) for size in scratch]
        values = zip([*arguments, *(area.ctypes.data for area in own)], kinds, strict=True)
        function(0, tasks, *(array_at(v, k) if hasattr(k, "dtype") else v for v, k in values))

    monkeypatch.setattr(cpu, "compiled_tasks", uncompiled)
    monkeypatch.setattr(cpu, "run_tasks", run)
    plans._planned.cache_clear()
    with np.errstate(all="ignore"):
        yield
    plans._planned.cache_clear()


@pytest.mark.parametrize("case", CONFIGURATIONS, ids=name_of)
def test_source_runs_as_python(case: Any, interpreted: None) -> None:
    shape = tuple(min(size, 3) for size in case[2])
    small = (case[0], case[1], shape)
    agree(make(small), cases.sequence(3, *shape, dtype=torch.float32), "numba", live=True)


@pytest.mark.parametrize(("lines", "factors"), [(1, [2, 1]), (16, [2, 1]), (17, [1])])
def test_short_steps_are_printed_twice_in_a_row(lines: int, factors: list[int]) -> None:
    graph: Any = SimpleNamespace(lines=[object()] * lines)
    assert unroll_factors(graph) == factors
