"""Object code is compiled once, kept on disk, checked, and compiled again where it is damaged."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from tests.fuse.runtime.forks import forked, forks
from tests.processes import Child
from tracetorch.fuse.runtime import machine_code


@pytest.fixture
def cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Path:
    """Return a folder of kernels that is not there yet."""
    monkeypatch.setenv("TRACETORCH_CACHE", str(tmp_path / "kernels"))
    monkeypatch.delenv("TRACETORCH_CACHE_LIMIT", raising=False)
    monkeypatch.setattr(machine_code, "_reported", set())
    caplog.set_level(logging.INFO, "tracetorch")
    return tmp_path / "kernels"


RUN = """
import torch
from tracetorch import fuse, snn
layer, x = snn.LIF(3), torch.full((6, 2, 3), 0.7, requires_grad=True)
with fuse.backend("cpu"):
    y, _ = layer.forward_sequence(x)
y.sum().backward()
print(y[:, 0, 0].tolist(), [round(g, 6) for g in x.grad[:, 0, 0].tolist()])
"""


def test_concurrent_compiles_and_truncated_cache_files(tmp_path: Path) -> None:
    def start(seed: str) -> Child:
        return Child("-c", RUN, env={"TRACETORCH_CACHE": str(tmp_path), "PYTHONHASHSEED": seed})

    def kept() -> dict[Path, int]:
        return {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}

    # the names of the files do not depend on the hash seed
    both = [start("7"), start("8")]
    for process in both:
        assert process.wait() == 0, process.errors
    (expected,) = {process.output for process in both}
    sizes = kept()
    assert {path.suffix for path in sizes} == {".o"}
    for path in sizes:  # like a process killed while it wrote
        truncate(path)
    third = start("9")
    assert third.wait() == 0, third.errors
    assert (third.output, kept()) == (expected, sizes)


# In this process: each call of `load` is like the first of another process.

TEXT = """
define void @forward(ptr %a) {{
  %before = load double, ptr %a
  %after = fadd double %before, {}
  store double %after, ptr %a
  ret void
}}
"""
ONE = TEXT.format("1.0")
COMPILING = "compiling the kernel"


def load(text: str = ONE) -> float:
    """Run a module as the first call of another process does."""
    machine_code._kernels.clear()
    array = np.zeros(1)
    machine_code.compiled(text, "forward").run(array.ctypes.data)
    return float(array[0])


def cut_at(keep: float, fill: bytes = b"") -> Callable[[Path], object]:
    """Damage a file: keep a share of its bytes, and fill up with others."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        rest = fill * len(content)
        path.write_bytes((content[: int(keep * len(content))] + rest)[: len(content)])

    return damage


truncate = cut_at(0.5)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def load_source(source: str = "x = 1\n") -> float:
    return float(machine_code.module_of(source, "triton_forward").x)


@pytest.mark.parametrize("run", [load, load_source])
@pytest.mark.parametrize(
    "damage", [truncate, cut_at(0), cut_at(0.5, b"\0"), flip_a_bit, Path.unlink]
)
def test_damaged_file_is_replaced(
    damage: Callable[[Path], object], run: Callable[[], float], cache: Path
) -> None:
    run()
    (path,) = cache.iterdir()
    content = path.read_bytes()
    damage(path)
    assert run() == 1.0
    assert path.read_bytes() == content


def test_size_is_bounded_and_the_kernel_unused_for_longest_goes_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [TEXT.format(f"{n}.0") for n in range(1, 5)]
    for source in sources[:3]:
        load(source)
    kernels = machine_code.cached_kernels()
    assert len(kernels) == 3
    assert sum(k.size for k in kernels) == sum(
        path.stat().st_size for path in cache.rglob("*") if path.is_file()
    )
    for days, kernel in enumerate(reversed(kernels)):  # the first of them was used last
        os.utime(kernel.path, (kernel.used - 86400 * (1 + days),) * 2)
    load(sources[1])  # the middle one is used
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", str(2.5 * kernels[0].size / 1e6))
    load(sources[3])
    assert len(machine_code.cached_kernels()) == 2
    caplog.clear()
    load(sources[1])
    load(sources[3])
    assert caplog.text == ""
    load(sources[0])
    assert COMPILING in caplog.text
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", "0")
    assert load(sources[2]) == 3.0
    assert machine_code.cached_kernels() == []


@pytest.mark.parametrize(("value", "expected"), [("", 512e6), ("3", 3e6), ("inf", math.inf)])
def test_limit_in_megabytes(value: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", value)
    assert machine_code.limit() == expected


@pytest.mark.parametrize("value", ["a lot", "-1", "nan"])
def test_limit_must_be_a_number(value: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", value)
    with pytest.raises(ValueError, match=f"must be a number of megabytes, 0 or more, got '{value}"):
        load()


def test_clear_removes_only_files_of_the_cache(cache: Path) -> None:
    load()
    machine_code.module_of("x = 1\n", "triton_forward")
    tag = "0" * 20
    (cache / f".77.forward_{tag}.py").write_text("unfinished")
    others = ["notes.py", "forward_.py", f"Forward-{tag}.py"]
    for name in others:
        (cache / name).write_text("kept")
    assert len(machine_code.cached_kernels()) == 3
    machine_code.clear()
    assert machine_code.cached_kernels() == []
    assert sorted(
        str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()
    ) == sorted(others)


def test_unusable_folder_is_reported_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TRACETORCH_CACHE", str(tmp_path / "file" / "kernels"))
    for _ in range(2):
        assert load() == 1.0
        assert machine_code.module_of("x = 1\n", "triton_forward").x == 1
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "every process compiles its own: NotADirectoryError" in record.getMessage()
    assert "Set TRACETORCH_CACHE to a folder that can be written" in record.getMessage()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TRACETORCH_CACHE": "~/kernels"}, "kernels"),
        ({"TRACETORCH_CACHE": "~"}, "."),
        ({"XDG_CACHE_HOME": "~/caches"}, "caches/tracetorch"),
        ({}, ".cache/tracetorch"),
        ({"TRACETORCH_CACHE": "~nobody-of-this-name/kernels"}, None),
    ],
)
def test_a_tilde_is_the_home_folder(
    variables: dict[str, str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRACETORCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    if expected is not None:
        assert machine_code.folder() == tmp_path / expected
        return
    with pytest.raises(OSError, match="Set TRACETORCH_CACHE to a folder"):
        machine_code.folder()


def test_no_home_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACETORCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    no_home = Mock(side_effect=RuntimeError("Could not determine home directory."))
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert load() == 1.0
    with pytest.raises(OSError, match=r"home directory\. Set TRACETORCH_CACHE to a folder"):
        machine_code.folder()


def test_file_that_another_process_removes_is_not_counted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing of the folder and the look at the file, which ``is_file`` has passed."""
    cache.mkdir()
    for tag in ("0" * 20, "1" * 20):
        (cache / f"forward_{tag}.py").write_text("kept")
    gone = cache / f"forward_{'0' * 20}.py"
    stat = Path.stat

    def vanishing(path: Path, **options: Any) -> os.stat_result:
        if path == gone:
            raise FileNotFoundError(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "stat", vanishing)
    (kernel,) = machine_code.cached_kernels()
    assert kernel.path == cache / f"forward_{'1' * 20}.py"
    assert (kernel.size, kernel.used) == (4, stat(kernel.path).st_mtime)


def test_object_code_is_kept_and_is_of_one_machine(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert load() == 1.0
    assert COMPILING in caplog.text
    caplog.clear()
    assert load() == 1.0
    assert caplog.text == ""
    (kernel,) = machine_code.cached_kernels()
    assert (kernel.path.suffix, kernel.size) == (".o", kernel.path.stat().st_size)
    other = machine_code.this_machine()._replace(features="")
    monkeypatch.setattr(machine_code, "this_machine", lambda: other)
    assert load() == 1.0
    assert len(machine_code.cached_kernels()) == 2


def test_code_under_the_name_of_another_is_not_loaded(cache: Path) -> None:
    load(ONE)
    (one,) = cache.iterdir()
    load(TEXT.format("2.0"))
    (two,) = set(cache.iterdir()) - {one}
    two.write_bytes(one.read_bytes())  # whole, but of another module
    assert [load(ONE), load(TEXT.format("2.0"))] == [1.0, 2.0]


def test_threads_compile_a_module_once(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine_code._kernels.clear()
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: machine_code.compiled(ONE, "forward").address, range(4))
        assert len(set(found)) == 1
    assert caplog.text.count(COMPILING) == 1


@forks
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
    assert forked(lambda: ended.is_set() and [load(ONE), load(TEXT.format("2.0"))] == [1.0, 2.0])()
    thread.join()


def test_text_that_is_no_module_and_a_missing_compiler_are_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="LLVM IR parsing error"):
        load("nonsense")
    assert not cache.exists() or not list(cache.iterdir())
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
