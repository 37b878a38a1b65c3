from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no fault: no test fails for the time that one of its examples takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--built", type=Path, help="folder of the built documentation: build/docs after make docs"
    )
