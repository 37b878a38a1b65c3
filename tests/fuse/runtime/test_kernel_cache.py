from __future__ import annotations

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

from tracetorch import fuse
from tracetorch.fuse.runtime import kernel_cache

pytestmark = pytest.mark.skipif(
    fuse.unavailable_reason("numba") is not None, reason="Numba is missing"
)

RUN = """
import torch
from tracetorch import fuse, snn
layer, x = snn.LIF(3), torch.full((6, 2, 3), 0.7, requires_grad=True)
with fuse.backend("numba"):
    y, _ = layer.forward_sequence(x)
y.sum().backward()
print(y[:, 0, 0].tolist(), [round(g, 6) for g in x.grad[:, 0, 0].tolist()])
"""


def start(folder: Path | str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN],
        env={**os.environ, "TRACETORCH_CACHE": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finish(start(tmp_path_factory.mktemp("kernels")))


def test_concurrent_compiles_and_truncated_cache_files(tmp_path: Path, expected: str) -> None:
    both = [start(tmp_path), start(tmp_path)]
    assert [finish(process) for process in both] == [expected, expected]
    assert not list(tmp_path.rglob("*.tmp"))
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} == {".o"}
    for path in kept:  # like a process killed while it wrote
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert finish(start(tmp_path)) == expected
    assert finish(start(tmp_path)) == expected


def test_cache_folder_that_cannot_be_written(tmp_path: Path, expected: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert finish(start(tmp_path / "file" / "kernels")) == expected


# In this process: each call of `load` is like the first of another process.

SOURCE = """
from numba import carray

def forward(at):
    a = carray(at, 1)
    a[0] += 1.0
"""
COMPILING = "compiling the kernel"


@pytest.fixture
def cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Path:
    place = tmp_path / "kernels"
    monkeypatch.setenv("TRACETORCH_CACHE", str(place))
    monkeypatch.delenv("TRACETORCH_CACHE_LIMIT", raising=False)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(kernel_cache, "_reported", set())
    caplog.set_level(logging.INFO, "tracetorch")
    return place


def load(source: str = SOURCE) -> float:
    from numba import float64, types, void

    kernel_cache._kernels.clear()
    array = np.zeros(1)
    signature = void(types.CPointer(float64))
    kernel_cache.compiled_at(source, "forward", signature)(array.ctypes.data)
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
@pytest.mark.parametrize("pattern", ["*.py", "*.sha256", "__pycache__/*.nbi", "__pycache__/*.nbc"])
def test_damaged_file_is_replaced(
    pattern: str,
    damage: Callable[[Path], None],
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert load() == 1.0
    (path,) = cache.glob(pattern)
    damage(path)
    assert load() == 1.0
    caplog.clear()
    assert load() == 1.0
    assert caplog.text == "", "the next process finds a good one"


def test_every_file_damaged_is_replaced(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    load()
    for path in cache.rglob("*.*"):
        truncate(path)
    assert load() == 1.0
    caplog.clear()
    assert load() == 1.0
    assert caplog.text == ""


def test_machine_code_of_before_the_checksums_is_kept(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load()
    (checksum,) = cache.glob("*.sha256")
    checksum.unlink()
    caplog.clear()
    load()
    assert caplog.text == ""
    assert checksum.exists()


def test_size_is_bounded_and_the_kernel_unused_for_longest_goes_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [f"{SOURCE}    a[0] += {n}.0\n" for n in range(4)]
    for source in sources[:3]:
        load(source)
    kernels = kernel_cache.cached_kernels()
    assert len(kernels) == 3
    assert sum(k.size for k in kernels) == sum(
        path.stat().st_size for path in cache.rglob("*") if path.is_file()
    )
    for days, kernel in enumerate(reversed(kernels)):  # the first of them was used last
        for path in kernel.files:
            os.utime(path, (path.stat().st_mtime - 86400 * (1 + days),) * 2)
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


@pytest.mark.parametrize(("value", "expected"), [("", 512e6), ("3", 3e6), ("inf", math.inf)])
def test_limit_in_megabytes(value: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", value)
    assert kernel_cache.limit() == expected


def test_clear_removes_only_files_of_the_cache(cache: Path) -> None:
    load()
    kernel_cache.module_of("x = 1\n", "triton_forward")
    tag = "0" * 20
    for name in (f".77.forward_{tag}.py", f"__pycache__/forward_{tag}.forward-1.py311.nbi.tmp.ab"):
        (cache / name).write_text("unfinished")
    others = ["notes.py", "forward_.py", f"Forward-{tag}.py", "__pycache__/notes.cpython-311.pyc"]
    for name in others:
        (cache / name).write_text("kept")
    assert len(kernel_cache.cached_kernels()) == 3
    kernel_cache.clear()
    assert kernel_cache.cached_kernels() == []
    assert sorted(
        str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()
    ) == sorted(others)


def test_file_that_another_process_removes_is_not_counted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing of the folder and the look at the file, which ``is_file`` has passed."""
    cache.mkdir()
    for tag in ("0" * 20, "1" * 20):
        (cache / f"forward_{tag}.py").write_text("kept")
    (cache / f"forward_{'1' * 20}.sha256").write_text("kept")
    gone = {cache / f"forward_{'0' * 20}.py", cache / f"forward_{'1' * 20}.sha256"}
    stat = Path.stat

    def vanishing(path: Path, **options: Any) -> os.stat_result:
        if path in gone:
            raise FileNotFoundError(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "stat", vanishing)
    (kernel,) = kernel_cache.cached_kernels()
    assert kernel.files == [cache / f"forward_{'1' * 20}.py"]
    assert (kernel.size, kernel.used) == (4, stat(kernel.files[0]).st_mtime)


def test_folder_of_numba_is_counted_and_cleared(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numba

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "numba"))
    load()
    assert not list(cache.rglob("*.nbi"))
    (machine_code,) = (tmp_path / "numba").rglob("*.nbc")
    assert machine_code in kernel_cache.cached_kernels()[0].files
    flip_a_bit(machine_code)
    assert load() == 1.0
    kernel_cache.clear()
    assert not machine_code.exists()


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


@pytest.mark.parametrize(
    "block", [lambda path: path.write_text("not a folder"), lambda path: path.symlink_to("/proc")]
)
def test_machine_code_is_not_written_where_nobody_bounds_it(
    block: Callable[[Path], object], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Numba goes on to a folder of its own where ``__pycache__`` cannot be written."""
    cache.mkdir()
    block(cache / "__pycache__")
    assert load() == 1.0
    assert "every process compiles its own: File" in caplog.text


def test_no_home_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TRACETORCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert load() == 1.0
    with pytest.raises(OSError, match=r"home directory\. Set TRACETORCH_CACHE to a folder"):
        kernel_cache.folder()


def test_error_of_the_source_is_raised(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NameError, match="nothing"):
        load("nothing\n")
    assert "every process" not in caplog.text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "level", "lines"),
    [
        (Terminal, logging.WARNING, 1),
        (Terminal, logging.INFO, 0),
        (io.StringIO, logging.WARNING, 0),
    ],
    ids=["terminal", "logged", "no terminal"],
)
def test_compiling_is_announced_once(
    stream: type[io.StringIO],
    level: int,
    lines: int,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(level, "tracetorch")
    errors = stream()
    monkeypatch.setattr(sys, "stderr", errors)
    load()
    load(f"{SOURCE}    a[0] += 1.0\n")
    load()
    monkeypatch.undo()
    assert errors.getvalue().count("traceTorch compiles kernels") == lines
    assert errors.getvalue().count("\n") == lines
    assert caplog.text.count(COMPILING) == (2 if level == logging.INFO else 0)
