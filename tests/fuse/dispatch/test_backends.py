from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tracetorch import fuse, snn
from tracetorch.core import requests
from tracetorch.fuse.dispatch import backends
from tracetorch.fuse.runtime.gpu import TritonBackend

NAMES = ("eager", "cpu", "triton")


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    yield
    fuse.backend("auto")


def in_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(120)


def test_with_blocks_of_two_threads_may_overlap() -> None:
    entered, left = threading.Event(), threading.Event()

    def other() -> str:
        with fuse.backend("cpu"):
            entered.set()
            left.wait(120)
            return fuse.requested_backend()

    with ThreadPoolExecutor(1) as pool:
        with fuse.backend("eager"):
            found = pool.submit(other)
            entered.wait(120)
            assert fuse.requested_backend() == "eager"
        left.set()
        assert found.result(120) == "cpu"
    assert fuse.requested_backend() == in_thread(fuse.requested_backend) == "auto"


def test_with_block_counts_in_its_own_thread_and_a_plain_call_in_all() -> None:
    with fuse.backend("eager"), fuse.backend("cpu"):
        assert in_thread(fuse.requested_backend) == "auto"
        fuse.backend("triton")  # a default, which the block goes before
        assert fuse.requested_backend() == "cpu"
        assert in_thread(fuse.requested_backend) == "triton"
    assert fuse.requested_backend() == "triton"
    in_thread(lambda: fuse.backend("eager"))
    with fuse.backend("auto"):
        assert fuse.requested_backend() == "auto"
    assert fuse.requested_backend() == in_thread(fuse.requested_backend) == "eager"


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_default_survives_calls_and_with_blocks_in_any_order(order: tuple[int, ...]) -> None:
    made = [fuse.backend(name) for name in NAMES]
    for index in order:
        with made[index], made[index]:  # one may be entered again
            assert fuse.requested_backend() == NAMES[index]
    assert fuse.requested_backend() == "auto"
    pending = fuse.backend("cpu")
    fuse.backend("eager")
    with pending:
        pass
    assert fuse.requested_backend() == "eager"


def test_compiled_graphs_follow_the_request_of_their_thread() -> None:
    def function(x: Tensor) -> Tensor:
        return x + 1 if fuse.requested_backend() == "eager" else x - 1

    def inside(x: Tensor) -> Tensor:
        with fuse.backend("eager"):
            return function(x)

    torch.compiler.reset()
    x = torch.zeros(())
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(x) == -1
    with fuse.backend("eager"):
        assert compiled(x) == 1
        assert in_thread(lambda: compiled(x)) == -1
    assert torch.compile(inside, backend="eager", fullgraph=True)(x) == 1
    assert fuse.requested_backend() == "auto"
    fuse.backend("eager")
    assert compiled(x) == 1
    torch.compiler.reset()


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_a_backend_is_unavailable_on_a_device_that_it_has_no_kernels_for(device: str) -> None:
    for name, wanted in (("cpu", "cpu"), ("triton", TritonBackend().device_type())):
        reason = fuse.unavailable_reason(name, device=torch.device(device))
        assert reason == f"its kernels are for {wanted}, the input is on {device}"
    assert fuse.unavailable_reason("eager", device=torch.device(device)) is None
    # "auto" selects it there, to say why not
    selected = backends.select_backend(torch.device(device))
    assert selected is not None
    assert selected.unavailable_reason(torch.device(device)) == reason


def test_an_earlier_name_requests_the_same_backend() -> None:
    with fuse.backend("numba"):
        assert fuse.requested_backend() == "cpu"
    reason = fuse.unavailable_reason("numba", torch.device("cuda"))
    assert reason == "its kernels are for cpu, the input is on cuda"
    assert fuse.unsupported_reason("numba", snn.LIF(3), torch.ones(4, 2, 3)) is None
    assert "numba" not in fuse.NAMES


@pytest.mark.parametrize("ask", [fuse.backend, fuse.unavailable_reason])
def test_an_unknown_name_is_refused(ask: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"no backend is called 'llvm'\. There are auto, cpu"):
        ask("llvm")


def test_threads_in_a_hurry_leave_the_default_and_nothing_behind() -> None:
    def work(name: str) -> None:
        for _ in range(2000):
            with fuse.backend(name):
                assert fuse.requested_backend() == name

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, NAMES)) == [None] * 3
    assert fuse.requested_backend() == "auto"
    for _ in range(1000):
        fuse.backend("auto")
    assert len(backends._requests.calls) <= requests._MOST_REQUESTS
