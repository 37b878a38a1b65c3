from __future__ import annotations

from collections.abc import Iterator

import pytest

import tracetorch as tt


@pytest.fixture(autouse=True)
def _plain_loops() -> Iterator[None]:
    """Run plain loops: compiling a kernel for every neuron is slow, and kernels have own tests."""
    with tt.fuse.backend("eager"):
        yield
