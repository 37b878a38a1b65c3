from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tracetorch.fuse.runtime import machine_code


@pytest.fixture
def cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Path:
    """Return a folder of kernels that is not there yet."""
    place = tmp_path / "kernels"
    monkeypatch.setenv("TRACETORCH_CACHE", str(place))
    monkeypatch.delenv("TRACETORCH_CACHE_LIMIT", raising=False)
    monkeypatch.setattr(machine_code, "_reported", set())
    caplog.set_level(logging.INFO, "tracetorch")
    return place
