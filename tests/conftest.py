from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.browser import Visits, launched

# As many workers as there are cores, each with threads on all of them: a thread that waits must not
# hold a core that another worker needs. OpenMP reads it when PyTorch is imported, here and in the
# processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A make or a git that a test starts does what it would by itself, also where make started the
# tests, or a hook of git did: the variables of one name the repository of the other.
for _name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(_name, None)

# The servers of tests are on this machine, where no proxy finds them.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

# A busy machine is no fault: no test fails for the time that one of its examples takes.
settings.register_profile("all", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=33)


def pytest_configure(config: pytest.Config) -> None:
    """Draw fewer examples where the slow tests, which draw all, are left out."""
    settings.load_profile("fast" if "not slow" in config.option.markexpr else "all")
    if config.option.rounding == "plain":
        import torch

        torch._C._set_mkldnn_enabled(False)
    elif config.option.rounding is not None:
        from tests import rounding

        rounding.install(int(config.option.rounding))


CASES: Counter[tuple[Any, str]] = Counter()  # how many of a test have been collected


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark slow all but one case in ``n``; two values meet where a third factor has ``n``."""
    thinned = item.get_closest_marker("one_in")
    if thinned is None or not isinstance(item, pytest.Function):
        return
    number = CASES[item.parent, item.originalname]
    CASES[item.parent, item.originalname] += 1
    places = 0
    for each in reversed(list(item.iter_markers("parametrize"))):  # the innermost loop first
        number, place = divmod(number, len(each.args[1]))
        places += place
    if places % thinned.args[0]:
        item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the collector of garbage from the millions of objects that the list of tests is."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _seeds_of_devices_that_are_here() -> None:
    """Keep ``torch.manual_seed`` from a millisecond: for a device that is not there it queues a
    call, and formats the stack for it."""
    import torch

    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            vars(device)["manual_seed_all"] = lambda seed: None


ONE_THREAD = ("examples", "zoo")  # tiny batches lose by more where tests run in parallel
PLAIN_LOOPS = ("diagnosis", "metrics")  # to compile for every neuron is slow, and tested elsewhere


@pytest.fixture(autouse=True)
def _settings_of_a_folder(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the tests of some folders on one thread, or without kernels."""
    folder = request.path.parent.name
    if folder not in (*ONE_THREAD, *PLAIN_LOOPS):
        yield
        return
    import torch

    import tracetorch as tt

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if folder in ONE_THREAD else threads)
    with tt.fuse.backend("eager") if folder in PLAIN_LOOPS else contextlib.nullcontext():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Give the tests of a file one headless browser."""
    with launched() as chromium:
        yield chromium


@pytest.fixture
def visits(browser: Any) -> Iterator[Visits]:
    """Open pages; at the end check that none had errors or requested other addresses."""
    opened = Visits(browser)
    yield opened
    opened.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--built", type=Path, help="folder of the built documentation: build/docs after make docs"
    )
    parser.addoption(
        "--rounding",
        help="round products and functions as another machine may, by a seed; plain: no oneDNN",
    )
