"""Object code is compiled once, kept on disk, checked, and compiled again where it is damaged."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.runtime.test_kernel_cache import (
    COMPILING,
    ONE,
    TEXT,
    empty,
    flip_a_bit,
    load,
    truncate,
    zero_the_end,
)
from tests.processes import Child
from tracetorch.fuse.runtime import kernel_cache, machine_code


def test_object_code_is_kept(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load() == 1.0
    assert COMPILING in caplog.text
    caplog.clear()
    assert load() == 1.0
    assert caplog.text == ""
    (kernel,) = kernel_cache.cached_kernels()
    assert kernel.path.suffix == ".o"
    assert kernel.size == kernel.path.stat().st_size
    kernel_cache.clear()
    assert not list(cache.iterdir())


def test_code_under_the_name_of_another_is_not_loaded(cache: Path) -> None:
    load(ONE)
    (one,) = cache.iterdir()
    load(TEXT.format("2.0"))
    (two,) = set(cache.iterdir()) - {one}
    two.write_bytes(one.read_bytes())  # whole, but of another module
    assert [load(ONE), load(TEXT.format("2.0"))] == [1.0, 2.0]


@pytest.mark.parametrize("damage", [truncate, empty, zero_the_end, flip_a_bit, Path.unlink])
def test_damaged_file_is_replaced(
    damage: Callable[[Path], None], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load()
    (path,) = cache.iterdir()
    damage(path)
    caplog.clear()
    assert load() == 1.0
    assert COMPILING in caplog.text
    caplog.clear()
    assert load() == 1.0
    assert caplog.text == ""


def test_code_is_of_one_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    other = machine_code.this_machine()._replace(features="")
    monkeypatch.setattr(machine_code, "this_machine", lambda: other)
    assert load() == 1.0
    assert len(kernel_cache.cached_kernels()) == 2


def test_threads_compile_a_module_once(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine_code._kernels.clear()
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(machine_code.compiled(ONE, "forward").address))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert caplog.text.count(COMPILING) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_child_forked_during_a_compilation_compiles(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork waits: a child that inherited the lock of another thread would wait for ever."""
    compiling, ended = threading.Event(), threading.Event()
    object_code = machine_code.object_code

    def slow(text: str, machine: machine_code.Machine) -> bytes:
        compiling.set()
        time.sleep(0.3)
        found = object_code(text, machine)
        ended.set()
        return found

    monkeypatch.setattr(machine_code, "object_code", slow)
    machine_code._kernels.clear()
    thread = threading.Thread(target=machine_code.compiled, args=(ONE, "forward"))
    thread.start()
    assert compiling.wait(120)
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # ends a child that waits
        right = ended.is_set() and [load(ONE), load(TEXT.format("2.0"))] == [1.0, 2.0]
        os._exit(0 if right else 1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_text_that_is_no_module_is_an_error(cache: Path) -> None:
    with pytest.raises(RuntimeError, match="LLVM IR parsing error"):
        load("nonsense")
    assert not cache.exists() or not list(cache.iterdir())


def test_machine_without_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = machine_code.unavailable_reason.__wrapped__()
    assert reason == "llvmlite is not installed; pip install llvmlite"


@pytest.mark.parametrize(
    ("triple", "features", "processor"),
    [
        ("x86_64-unknown-linux-gnu", "+avx,+avx2,+avx512f", (512, 32)),
        ("x86_64-unknown-linux-gnu", "+avx,+avx2,-avx512f", (256, 16)),
        ("x86_64-unknown-linux-gnu", "", (128, 16)),
        ("aarch64-unknown-linux-gnu", "+neon", (128, 32)),
    ],
)
def test_registers_of_processors(triple: str, features: str, processor: tuple[int, int]) -> None:
    found = machine_code.Machine(triple, "generic", features).processor
    assert (found.bits, found.registers) == processor


# Compile many kernels, and tell how much memory each of the first and of the last half has taken.
MANY = """
import os
import sys
from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.runtime.machine_code import compiled

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def kernel(number):
    k = TaskWriter("fill")
    done = k.array("i32")
    done[k.number] = k.number + number
    return compiled(k.text(), "fill")

count = int(sys.argv[1])
for number in range(100):
    kernel(-1 - number)
taken = [resident()]
for half in range(2):
    for number in range(count // 2):
        assert kernel(half * count + number).address
    taken.append(resident())
print((taken[1] - taken[0]) // (count // 2), (taken[2] - taken[1]) // (count // 2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_thousands_of_kernels_take_the_memory_of_their_code(cache: Path) -> None:
    """Some pages each, with what LLVM keeps of a loaded one; nothing grows with their number."""
    child = Child("-c", MANY, "2000")
    assert child.wait(1800) == 0, child.errors
    first, second = map(int, child.output.split())
    assert second < 96 * 1024
    assert second < 1.1 * first + 4096
