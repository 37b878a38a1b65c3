from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import tracetorch as tt
from tests import cases
from tests.fuse.cases import ends, fused
from tests.fuse.runtime.forks import forked, forks
from tests.processes import run_python
from tracetorch import snn
from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.runtime import threads as runtime
from tracetorch.fuse.runtime.machine_code import TaskKernel, compiled
from tracetorch.fuse.runtime.threads import run_tasks

LARGE = 1 << 40  # work that is worth several threads
needs_gomp = pytest.mark.skipif(runtime._gomp() is None, reason="PyTorch's OpenMP is not GNU's")


@pytest.fixture
def kernel() -> TaskKernel:
    """Count in `done` how often each task runs; each worker uses its scratch for it."""
    k = TaskWriter("count")
    add, done, own = k.integer(), k.array("i32"), k.scratch("i64")
    own[0] = done[k.number]
    with k.loop(0, 100):
        own[0] = own[0] + add
    done[k.number] = own[0]
    return compiled(k.text(), "count")


@pytest.fixture(params=["OpenMP", "own threads"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run tasks on each kind of threads, of which PyTorch uses three."""
    if request.param == "own threads":
        monkeypatch.setattr(runtime, "_gomp", lambda: None)
    elif runtime._gomp() is None:
        pytest.skip("PyTorch's OpenMP is not GNU's")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield request.param
    torch.set_num_threads(before)


def count(kernel: TaskKernel, tasks: int, work: int = LARGE) -> list[int]:
    """Return how often each task has run, a hundred for once."""
    done = torch.zeros(tasks, dtype=torch.int32)
    run_tasks(kernel, (1, done.data_ptr(), 0), tasks, work=work, scratch=8)
    return done.tolist()


@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 7, 1000])
@pytest.mark.parametrize("work", [0, LARGE])
def test_every_task_of_a_kernel_runs_once(
    work: int, tasks: int, kernel: TaskKernel, way: str
) -> None:
    for number in (1, 2, 5, 2):
        torch.set_num_threads(number)
        assert count(kernel, tasks, work) == [100] * tasks


def test_kernels_may_run_in_several_threads_at_once(kernel: TaskKernel, way: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: [count(kernel, 50) for _ in range(20)], range(4)))
    assert found == [[[100] * 50] * 20] * 4


@needs_gomp
def test_kernel_may_run_within_a_parallel_region(kernel: TaskKernel) -> None:
    found: list[list[int]] = []
    outer = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.append(count(kernel, 9)))
    gomp: Any = runtime._gomp()
    gomp.parallel(runtime._address(outer), None, 2, 0)
    assert found == [[100] * 9] * 2


def test_results_do_not_depend_on_the_number_of_threads(way: str) -> None:
    """Also those of a recurrence, but for its weight's gradient, a product of PyTorch's."""
    torch.manual_seed(0)
    net = snn.Recurrent(cases.layer("SLIF", 40), torch.nn.Linear(40, 40))
    layer, x = cases.layer("BSRLIF", 300), cases.sequence(40, 9, 300, dtype=torch.float32)

    def run() -> list[torch.Tensor]:
        values, gradients = ends(layer, x, fused("cpu"), live=True)
        fed = cases.sequence(30, 70, 40, dtype=torch.float32).requires_grad_()
        y = tt.unroll(net, fed, from_rest=True)
        leaves = [fed, *net.neuron.parameters()]
        fed_back = torch.autograd.grad(cases.weighted_sum(y), leaves)
        return [*values.values(), *gradients.values(), y, *fed_back]

    found = []
    for number in (1, 2, 5, 8):
        torch.set_num_threads(number)
        found.append(run())
    assert all(torch.equal(*pair) for each in found for pair in zip(each, found[0], strict=True))


@needs_gomp
def test_kernels_run_on_the_runtime_whose_threads_pytorch_sets() -> None:
    library = ctypes.CDLL(
        str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"), os.RTLD_NOLOAD
    )
    before = torch.get_num_threads()
    try:
        for number in (2, 3):
            torch.set_num_threads(number)
            assert library.omp_get_max_threads() == number
    finally:
        torch.set_num_threads(before)


@forks
def test_child_forked_after_a_parallel_region_runs_kernels(kernel: TaskKernel, way: str) -> None:
    assert count(kernel, 100) == [100] * 100
    assert forked(lambda: count(kernel, 100) == [100] * 100)()


class Filtered(torch.utils.data.Dataset[float]):
    """Data that a neuron layer filters in the worker."""

    def __init__(self) -> None:
        self.layer = cases.layer("LIF", 500)
        self.x = cases.sequence(300, 8, 500, dtype=torch.float32)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> float:
        self.layer.zero_states()
        return self.layer.forward_sequence(self.x)[0].sum().item()


@forks
def test_forked_workers_of_a_data_loader_run_kernels() -> None:
    data = Filtered()
    expected = data[0]  # in a parallel region
    loader = torch.utils.data.DataLoader(
        data,
        num_workers=2,
        timeout=240,
        multiprocessing_context=multiprocessing.get_context("fork"),
    )
    assert [value.item() for value in loader] == [expected] * 3


def test_thread_may_outlive_the_main_thread() -> None:
    program = """
import os
import threading
from tracetorch.fuse.runtime.threads import _on_threads

main = threading.main_thread()

def work():
    main.join()
    # only here, where no thread is started any more; a print may be cut between word and line end
    _on_threads(lambda: os.write(1, b"done\\n"), 2)

threading.Thread(target=work).start()
"""
    assert set(run_python("-c", program).split()) == {"done"}, "once for each thread there is"


def test_an_interrupted_call_waits_for_its_threads() -> None:
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(120)
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.2)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        runtime._on_threads(work, 2)
    assert done.is_set(), "a thread still writes to memory that is free by now"
