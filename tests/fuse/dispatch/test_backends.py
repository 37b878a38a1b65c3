from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tracetorch import fuse, snn
from tracetorch.core import requests
from tracetorch.fuse.dispatch import backends


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    yield
    fuse.backend("auto")


def in_thread(function: Callable[[], object]) -> list[object]:
    """Run a function in a thread of its own; its result in a list, empty where it raised."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(120)
    return results


def test_with_blocks_of_two_threads_may_overlap() -> None:
    entered, left = threading.Event(), threading.Event()

    def other() -> str:
        with fuse.backend("cpu"):
            entered.set()
            left.wait(120)
            return fuse.requested_backend()

    seen: list[str] = []
    with fuse.backend("eager"):
        thread = threading.Thread(target=lambda: seen.append(other()))
        thread.start()
        entered.wait(120)
        seen.append(fuse.requested_backend())
    left.set()
    thread.join(120)
    assert seen == ["eager", "cpu"]
    assert fuse.requested_backend() == "auto"
    assert in_thread(fuse.requested_backend) == ["auto"]


def test_with_block_counts_in_its_own_thread() -> None:
    with fuse.backend("eager"), fuse.backend("cpu"):
        assert in_thread(fuse.requested_backend) == ["auto"]
        fuse.backend("triton")  # a default, which the block goes before
        assert fuse.requested_backend() == "cpu"
        assert in_thread(fuse.requested_backend) == ["triton"]
    assert fuse.requested_backend() == "triton"


def test_plain_call_sets_the_default_of_all_threads() -> None:
    in_thread(lambda: fuse.backend("eager"))
    assert fuse.requested_backend() == "eager"
    assert in_thread(fuse.requested_backend) == ["eager"]
    with fuse.backend("auto"):
        assert fuse.requested_backend() == "auto"
    assert fuse.requested_backend() == "eager"


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_default_survives_calls_and_with_blocks_in_any_order(order: tuple[int, ...]) -> None:
    made = [fuse.backend(name) for name in ("eager", "cpu", "triton")]
    for index in order:
        with made[index]:
            assert fuse.requested_backend() == ("eager", "cpu", "triton")[index]
    assert fuse.requested_backend() == "auto"
    pending = fuse.backend("cpu")
    fuse.backend("eager")
    with pending:
        pass
    assert fuse.requested_backend() == "eager"


def test_request_may_be_entered_again() -> None:
    request = fuse.backend("eager")
    for _ in range(2):
        with request, request:
            assert fuse.requested_backend() == "eager"
        assert fuse.requested_backend() == "auto"


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
        assert in_thread(lambda: compiled(x).item()) == [-1]
    assert torch.compile(inside, backend="eager", fullgraph=True)(x) == 1
    assert fuse.requested_backend() == "auto"
    fuse.backend("eager")
    assert compiled(x) == 1
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "wanted"), [("cpu", "cpu"), ("triton", "c(pu|uda)")])
def test_backend_is_unavailable_on_a_device_that_it_has_no_kernels_for(
    name: str, wanted: str
) -> None:
    reason = fuse.unavailable_reason(name, device=torch.device("meta"))
    assert re.fullmatch(f"its kernels are for {wanted}, the input is on meta", str(reason))
    assert fuse.unavailable_reason("eager", device=torch.device("meta")) is None


def test_an_earlier_name_requests_the_same_backend() -> None:
    with fuse.backend("numba"):
        assert fuse.requested_backend() == "cpu"
    device, layer = torch.device("cuda"), snn.LIF(3)
    reasons = [fuse.unavailable_reason(name, device) for name in ("numba", "cpu")]
    assert reasons == ["its kernels are for cpu, the input is on cuda"] * 2
    assert fuse.unsupported_reason("numba", layer, torch.ones(4, 2, 3)) is None
    assert "numba" not in fuse.NAMES


@pytest.mark.parametrize("ask", [fuse.backend, fuse.unavailable_reason])
def test_an_unknown_name_is_refused(ask: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"no backend is called 'llvm'\. There are auto, cpu"):
        ask("llvm")


def test_threads_in_a_hurry_leave_the_default() -> None:
    def work(name: str) -> None:
        for _ in range(2000):
            with fuse.backend(name):
                assert fuse.requested_backend() == name

    threads = [threading.Thread(target=work, args=(n,)) for n in ("eager", "cpu", "triton")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert fuse.requested_backend() == "auto"


def test_plain_calls_leave_nothing_behind() -> None:
    for _ in range(1000):
        fuse.backend("auto")
    assert len(backends._requests.calls) <= requests._MOST_REQUESTS
