"""Test ``python -m tracetorch``: ``info``, ``cache``, ``kernels`` and ``tree``."""

import re
from pathlib import Path

import pytest
import torch

import tracetorch as tt
from tests.processes import run_python
from tracetorch.__main__ import info, main
from tracetorch.fuse.runtime.machine_code import folder


def test_info_names_versions_folder_and_backends(capsys, monkeypatch):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"traceTorch {tt.__version__}, torch {torch.__version__}, Python ")
    assert lines[1] == f"kernels are kept in {folder()}"
    assert [line.split()[0] for line in lines[2:]] == ["cpu", "triton", "eager", "events"]
    assert lines[-2].split() == ["eager", "available"]
    assert re.match(r"events  auto, linear .* below 6400 rows [123]\d%, 1024 rows", lines[-1])
    with tt.events.mode("never"):
        assert "events  no: tt.events.mode('never') is requested" in info()
    monkeypatch.setattr(tt.fuse, "unavailable_reason", {"triton": "there is no GPU"}.get)
    assert "triton  no: there is no GPU" in info()


def test_cache_names_folder_number_and_size_and_is_cleared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACETORCH_CACHE", str(tmp_path))
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", "64")
    for name, size in (("forward", 1_000_000), ("step", 200_000)):
        (tmp_path / f"{name}_{'0' * 20}.py").write_bytes(bytes(size))
    (tmp_path / "notes.txt").write_text("kept")
    assert main(["cache"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"folder  {tmp_path}",
        "kernels 2",
        "size    1.2 MB of at most 64 MB",
    ]
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "kernels 0",
        "size    0.0 MB of at most 64 MB",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_cache_folder_that_is_not_there_and_limit_that_is_no_number(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACETORCH_CACHE", str(tmp_path / "none"))
    assert main(["cache", "--clear"]) == 0
    assert "kernels 0" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv("TRACETORCH_CACHE_LIMIT", "lots")
    assert main(["cache"]) == 1
    assert "TRACETORCH_CACHE_LIMIT must be a number of megabytes" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--clear"], ["cache", "--clean"], ["info", "cache"]])
def test_other_arguments_print_the_usage(arguments, capsys):
    assert main(arguments) == 2
    usage = "usage: python -m tracetorch info | cache | cache --clear | kernels LAYER | tree\n"
    assert capsys.readouterr().err == usage


@pytest.mark.parametrize(("argument", "start"), [("info", "traceTorch "), ("cache", "folder ")])
def test_commands(argument: str, start: str) -> None:
    assert run_python("-m", "tracetorch", argument).startswith(start)


def test_tree_names_every_file_and_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    package = Path(tt.__file__).parent
    assert sum(".py" in line for line in lines) == len(list(package.rglob("*.py")))
    (line,) = [line for line in lines if line.strip().startswith("cell.py")]
    assert "describe a neuron as one frozen value" in line
    assert "    dispatch/" in lines


def test_kernels_of_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "LIF"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^void (\w+)\(", out, re.MULTILINE) == ["forward", "backward", "step"]
    assert "p_beta = parameter_beta[lane % neurons]" in out
    assert main(["kernels", "AdEx"]) == 0
    assert "expf(" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["LIFT", "Neuron", "Recurrent"])
def test_kernels_of_what_is_no_neuron(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", name]) == 1
    assert f"there is no neuron '{name}'" in capsys.readouterr().err
