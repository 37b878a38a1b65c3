from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import ROOT, Child
from tracetorch import fuse
from tracetorch.fuse.runtime import kernel_cache, machine_code

pytestmark = pytest.mark.skipif(
    fuse.unavailable_reason("cpu") is not None, reason="llvmlite is missing"
)

RUN = """
import torch
from tracetorch import fuse, snn
layer, x = snn.LIF(3), torch.full((6, 2, 3), 0.7, requires_grad=True)
with fuse.backend("cpu"):
    y, _ = layer.forward_sequence(x)
y.sum().backward()
print(y[:, 0, 0].tolist(), [round(g, 6) for g in x.grad[:, 0, 0].tolist()])
"""


def start(folder: Path | str) -> Child:
    return Child("-c", RUN, env={"TRACETORCH_CACHE": str(folder)})


def finish(process: Child) -> str:
    assert process.wait() == 0, process.errors
    return process.output


def run_interpreter(folder: Path) -> str:
    env = {**os.environ, "TRACETORCH_CACHE": str(folder), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", RUN]
    found = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, check=True, text=True)
    return found.stdout


def test_concurrent_compiles_and_truncated_cache_files(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(RUN, names)
    expected = printed.getvalue()
    both = [start(tmp_path), start(tmp_path)]
    assert [finish(process) for process in both] == [expected, expected]
    assert not list(tmp_path.rglob("*.tmp"))
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} == {".o"}
    sizes = [path.stat().st_size for path in kept]
    for path in kept:  # like a process killed while it wrote
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    # an interpreter of its own, with another hash seed: the names of the files do not depend on it
    assert run_interpreter(tmp_path) == expected
    assert [path.stat().st_size for path in kept] == sizes


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


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero_the_end(path: Path) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, zero_the_end, flip_a_bit, Path.unlink])
def test_damaged_source_is_replaced(damage: Callable[[Path], None], cache: Path) -> None:
    source = "x = 1\n"
    kernel_cache.module_of(source, "triton_forward")
    (path,) = cache.iterdir()
    damage(path)
    assert kernel_cache.module_of(source, "triton_forward").x == 1
    assert path.read_text() == source


def test_size_is_bounded_and_the_kernel_unused_for_longest_goes_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [TEXT.format(f"{n}.0") for n in range(1, 5)]
    for source in sources[:3]:
        load(source)
    kernels = kernel_cache.cached_kernels()
    assert len(kernels) == 3
    assert sum(k.size for k in kernels) == sum(
        path.stat().st_size for path in cache.rglob("*") if path.is_file()
    )
    for days, kernel in enumerate(reversed(kernels)):  # the first of them was used last
        os.utime(kernel.path, (kernel.used - 86400 * (1 + days),) * 2)
    load(sources[1])  # the middle one is used
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", str(2.5 * kernels[0].size / 1e6))
    load(sources[3])
    assert len(kernel_cache.cached_kernels()) == 2
    caplog.clear()
    load(sources[1])
    load(sources[3])
    assert caplog.text == ""
    load(sources[0])
    assert COMPILING in caplog.text
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", "0")
    assert load(sources[2]) == 3.0
    assert kernel_cache.cached_kernels() == []


@pytest.mark.parametrize("value", ["a lot", "-1", "nan"])
def test_limit_must_be_a_number(value: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", value)
    with pytest.raises(ValueError, match=f"must be a number of megabytes, 0 or more, got '{value}"):
        load()


def test_clear_removes_only_files_of_the_cache(cache: Path) -> None:
    load()
    kernel_cache.module_of("x = 1\n", "triton_forward")
    tag = "0" * 20
    (cache / f".77.forward_{tag}.py").write_text("unfinished")
    others = ["notes.py", "forward_.py", f"Forward-{tag}.py"]
    for name in others:
        (cache / name).write_text("kept")
    assert len(kernel_cache.cached_kernels()) == 3
    kernel_cache.clear()
    assert kernel_cache.cached_kernels() == []
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
        assert kernel_cache.module_of("x = 1\n", "triton_forward").x == 1
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "every process compiles its own: NotADirectoryError" in record.getMessage()
    assert "Set TRACETORCH_CACHE to a folder that can be written" in record.getMessage()


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRACETORCH_CACHE", "~/kernels")
    assert kernel_cache.folder() == tmp_path / "kernels"
    monkeypatch.setenv("TRACETORCH_CACHE", "~")
    assert kernel_cache.folder() == tmp_path
    monkeypatch.delenv("TRACETORCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    assert kernel_cache.folder() == tmp_path / "caches" / "tracetorch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kernel_cache.folder() == tmp_path / ".cache" / "tracetorch"
    monkeypatch.setenv("TRACETORCH_CACHE", "~nobody-of-this-name/kernels")
    with pytest.raises(OSError, match="Set TRACETORCH_CACHE to a folder"):
        kernel_cache.folder()


def test_no_home_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TRACETORCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert load() == 1.0
    with pytest.raises(OSError, match=r"home directory\. Set TRACETORCH_CACHE to a folder"):
        kernel_cache.folder()


@pytest.mark.parametrize(("value", "expected"), [("", 512e6), ("3", 3e6), ("inf", math.inf)])
def test_limit_in_megabytes(value: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", value)
    assert kernel_cache.limit() == expected


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
    (kernel,) = kernel_cache.cached_kernels()
    assert kernel.path == cache / f"forward_{'1' * 20}.py"
    assert (kernel.size, kernel.used) == (4, stat(kernel.path).st_mtime)
