from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracetorch import fuse

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
    assert any(path.suffix == ".nbi" for path in kept)
    for path in kept:  # like a process killed while it wrote
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert finish(start(tmp_path)) == expected
    assert finish(start(tmp_path)) == expected


def test_cache_folder_that_cannot_be_written(tmp_path: Path, expected: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert finish(start(tmp_path / "file" / "kernels")) == expected
    assert finish(start("/proc/nowhere")) == expected
