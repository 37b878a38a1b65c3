from __future__ import annotations

import mmap
import sys
import threading
from typing import Any

import pytest
import torch

from tests.fuse.runtime.forks import forked, forks
from tracetorch.fuse.runtime import allocation
from tracetorch.fuse.runtime.allocation import large_empty

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mappings of Linux")
LARGE = (3, 1 << 18)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Any:
    fresh = allocation._Pool()
    monkeypatch.setattr(allocation, "_pool", fresh)
    return fresh


def test_pages_are_reused_only_after_the_tensor_is_freed(pool: Any) -> None:
    first = large_empty(LARGE, torch.float32)
    address = first.data_ptr()
    second = large_empty(LARGE, torch.float32)
    assert second.data_ptr() != address
    view = first[1:]
    del first
    assert large_empty(LARGE, torch.float32).data_ptr() not in (address, second.data_ptr())
    view.fill_(1.0)
    assert view.sum() == view.numel()
    del view
    assert large_empty(LARGE, torch.float32).data_ptr() == address


def test_pool_size_is_bounded(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_POOL_LIMIT", 8 << 20)
    for rows in (1, 5, 8, 11):
        del_me = large_empty((rows, 1 << 18), torch.float32)
        del del_me
        assert 0 <= pool.kept <= 8 << 20
        assert pool.kept == sum(size * len(free) for size, free in pool.free.items())


@forks
def test_forked_child_writes_into_its_own_pages() -> None:
    tensor = large_empty(LARGE, torch.float32).fill_(1.0)

    def work() -> bool:
        torch.set_num_threads(1)  # as a DataLoader's worker does: PyTorch's own pool is gone
        return bool(tensor.fill_(2.0).any())

    assert forked(work)()
    assert tensor.sum() == tensor.numel()


@forks
def test_child_forked_while_the_pool_is_locked_can_allocate() -> None:
    held, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with allocation._pool.lock:
            held.set()
            ended.wait(120)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(120)
    is_right = forked(lambda: large_empty(LARGE, torch.float32).shape == LARGE)
    ended.set()
    holder.join()
    assert is_right()


@pytest.mark.parametrize("fails", ["madvise", "take"])
def test_pytorch_allocates_where_the_system_refuses_pages(fails, pool, monkeypatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *_: Any) -> None:
            raise OSError(22, "Invalid argument")

    def refuse(*_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", Refusing if fails == "madvise" else refuse)
    tensor = large_empty(LARGE, torch.float32).fill_(1.0)
    assert tensor.sum() == tensor.numel()
