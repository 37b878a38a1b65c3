from __future__ import annotations

from collections.abc import Iterator

import pytest

import tracetorch as tt


@pytest.fixture(autouse=True)
def _plain_loops() -> Iterator[None]:
    """Without compiling a kernel for every neuron: kernels are tested to do as the plain loop."""
    with tt.fuse.backend("eager"):
        yield
