from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tracetorch as tt
from tests import cases
from tests.fuse.cases import ends, fused
from tests.processes import run_python
from tracetorch import fuse, snn
from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.runtime import threads as runtime
from tracetorch.fuse.runtime.machine_code import TaskKernel, compiled
from tracetorch.fuse.runtime.threads import run_tasks

LARGE = 1 << 40  # work that is worth several threads
needs_llvmlite = pytest.mark.skipif(
    fuse.unavailable_reason("cpu") is not None, reason="llvmlite is missing"
)
needs_gomp = pytest.mark.skipif(runtime._gomp() is None, reason="PyTorch's OpenMP is not GNU's")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
warns_of_fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


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


@needs_llvmlite
@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 7, 1000])
@pytest.mark.parametrize("work", [0, LARGE])
def test_every_task_of_a_kernel_runs_once(
    work: int, tasks: int, kernel: TaskKernel, way: str
) -> None:
    for number in (1, 2, 5, 2):
        torch.set_num_threads(number)
        assert count(kernel, tasks, work) == [100] * tasks


@needs_llvmlite
def test_kernels_may_run_in_several_threads_at_once(kernel: TaskKernel, way: str) -> None:
    found: list[list[int]] = []
    callers = [
        threading.Thread(target=lambda: found.extend(count(kernel, 50) for _ in range(20)))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [[100] * 50] * 80


@needs_llvmlite
@needs_gomp
def test_kernel_may_run_within_a_parallel_region(kernel: TaskKernel) -> None:
    found: list[list[int]] = []
    outer = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.append(count(kernel, 9)))
    gomp: Any = runtime._gomp()
    gomp.parallel(runtime._address(outer), None, 2, 0)
    assert found == [[100] * 9] * 2


@needs_llvmlite
def test_results_do_not_depend_on_the_number_of_threads(way: str) -> None:
    layer = cases.layer("BSRLIF", 300)
    x = cases.sequence(40, 9, 300, dtype=torch.float32)
    found = []
    for number in (1, 2, 5, 8):
        torch.set_num_threads(number)
        found.append(ends(layer, x, fused("cpu"), live=True))
    for values, gradients in found[1:]:
        for name, value in values.items():
            assert torch.equal(value, found[0][0][name]), name
        for name, gradient in gradients.items():
            assert torch.equal(gradient, found[0][1][name]), name


@needs_llvmlite
def test_a_recurrence_gives_the_same_bits_with_any_number_of_threads(way: str) -> None:
    """Its weight's gradient is one product of PyTorch's, which shares it out as it likes."""
    torch.manual_seed(0)
    net = snn.Recurrent(cases.layer("SLIF", 40), torch.nn.Linear(40, 40))
    found: list[dict[str, torch.Tensor]] = []
    for number in (1, 2, 8):
        torch.set_num_threads(number)
        x = cases.sequence(30, 70, 40, dtype=torch.float32).requires_grad_()
        net.zero_grad()
        y = tt.unroll(net, x, from_rest=True)
        cases.weighted_sum(y).backward()
        assert x.grad is not None
        grads = {n: p.grad for n, p in net.neuron.named_parameters() if p.grad is not None}
        found.append({"y": y.detach(), "x": x.grad, **grads})
    assert len(found[0]) > 3
    for each in found[1:]:
        for name, value in each.items():
            assert torch.equal(value, found[0][name]), name


@needs_llvmlite
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


@needs_llvmlite
@needs_fork
@warns_of_fork
def test_child_forked_after_a_parallel_region_runs_kernels(kernel: TaskKernel, way: str) -> None:
    assert count(kernel, 100) == [100] * 100
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # ends a child that waits
        os._exit(0 if count(kernel, 100) == [100] * 100 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert count(kernel, 100) == [100] * 100


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


@needs_llvmlite
@needs_fork
@warns_of_fork
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
