from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples import playground
from tests.browser import Page, Visits, interface


@pytest.fixture(scope="session")
def playground_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    interface()  # before seconds of writing
    path = tmp_path_factory.mktemp("page") / "playground.html"
    playground.write(path)
    return path


@pytest.fixture(scope="session")
def network_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    interface()
    path = tmp_path_factory.mktemp("page") / "network.html"
    playground.write_network(path)
    return path


@pytest.fixture
def opened(visits: Visits, playground_page: Path) -> Callable[..., Page]:
    def open_(fragment: str = "", path: Path = playground_page, **options: Any) -> Page:
        page = visits.open(path, fragment=fragment, **options)
        page.wait_for_selector("body[data-ready='true']")
        return page

    return open_
