from __future__ import annotations

import pytest

from tests.fuse.fake_gpu import Launch, fake_gpu


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Return what a fake GPU has run."""
    return fake_gpu(monkeypatch)
