"""Test ``python -m tracetorch info``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tracetorch as tt
from tracetorch.__main__ import info, main
from tracetorch.fuse.runtime.kernel_cache import folder


def test_info_names_versions_folder_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"traceTorch {tt.__version__}, torch {torch.__version__}, Python ")
    assert lines[1] == f"kernels are kept in {folder()}"
    assert [line.split()[0] for line in lines[2:]] == ["numba", "triton", "eager"]
    assert lines[-1].split() == ["eager", "available"]


def test_info_names_the_reason_of_a_missing_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tt.fuse, "unavailable_reason", lambda name: "there is no GPU" if name == "triton" else None
    )
    assert "triton  no: there is no GPU" in info()


def test_other_arguments_print_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "usage: python -m tracetorch info\n"


def test_info_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tracetorch", "info"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.stdout.startswith("traceTorch ")
