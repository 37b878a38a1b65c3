from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as torch_files
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.demo.cases import DIGITS
from tests.processes import run_python
from tracetorch.core import optional
from tracetorch.data.digits import Digits
from tracetorch.demo.network import ConvSNN
from tracetorch.demo.training import Epoch, Score, Settings, evaluate

command = import_module("tracetorch.demo.__main__")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for results that does not exist yet, and replace the digits by bars."""
    monkeypatch.setattr(command, "load_digits", lambda folder: DIGITS)
    return tmp_path / "new" / "out"


def run(out: Path, *arguments: str) -> int:
    short = ("--epochs", "2", "--batch-size", "10", "--steps", "2", "--threads", "1")
    return command.main([*short, "--out", str(out), *arguments])


def test_training_saves_a_model_and_a_figure(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(out) == 0
    text = capsys.readouterr().out
    assert re.search("1 CPU threads", text)
    assert re.search("digits +bars\nsplit +60 train, 20 validation .*, 30 held out", text)
    assert re.search("settings +2 epochs, batches of 10, T=2, lr 0.01\nseeds +0\n", text)
    assert len(re.findall(r"epoch \d +\d+\.\d% +\d+\.\d% +\d+\.\d% +\d+\n", text)) == 2
    assert re.search(r"firing rate +lif1 0\.\d{3}, lif2 0\.\d{3} spikes per neuron and step", text)
    assert {path.name for path in out.iterdir()} == {"seed0.safetensors", "seed0.png"}
    assert str(out / "seed0.safetensors") in text
    assert str(out / "seed0.png") in text

    model = ConvSNN()
    model.load_state_dict(load_file(out / "seed0.safetensors"))
    printed = re.search(r"held-out accuracy +(\S+%) \(epoch \d", text)
    assert printed is not None
    assert printed[1] == f"{evaluate(model, DIGITS.held_out, 2).accuracy:.1%}"


def test_printed_line_loads_the_model(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(out, "--page") == 0
    text = capsys.readouterr().out
    printed = re.search(r"\nto load the model  (.*)\n", text)
    assert printed is not None
    assert f"\npage               {out / 'seed0.html'}\n" in text
    page = (out / "seed0.html").read_text()
    assert all(f'"name":"of a {digit}"' in page for digit in range(10))
    assert '"steps":8' in page
    names: dict[str, Any] = {}
    exec(printed[1], names)
    saved = load_file(out / "seed0.safetensors")
    assert saved
    assert all(torch.equal(saved[k], v) for k, v in names["model"].state_dict().items())


def test_the_model_of_an_earlier_run_is_kept(out, capsys, monkeypatch) -> None:
    monkeypatch.setattr(command, "report", lambda *_: None)
    monkeypatch.setattr(command, "train", training_with_losses(0.3))
    run(out)
    assert "earlier run" not in capsys.readouterr().out
    monkeypatch.setattr(command, "train", training_with_losses(0.9, 0.8, 0.7))
    kept = out / "seed0.previous.safetensors"
    for epoch in (1, 3):  # which the biases are filled with
        run(out)
        assert capsys.readouterr().out.count(f"an earlier run is kept in {kept}.\n") == 1
        assert (load_file(out / "seed0.safetensors")["linear.1.bias"] == 3).all()
        assert (load_file(kept)["linear.1.bias"] == epoch).all()


@pytest.mark.parametrize("where", ["model", "figure"])
def test_full_disk_prints_one_line(out, capsys, monkeypatch, where) -> None:
    def fail(*_: object) -> None:
        if where == "model":
            raise SafetensorError("Error while serializing: I/O error: No space left on device")
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run(out) == 0
    before = load_file(out / "seed0.safetensors")
    place: Any = (torch_files, "save_file") if where == "model" else (command, "draw")
    monkeypatch.setattr(*place, fail)
    capsys.readouterr()
    assert run(out) == 1
    assert re.fullmatch("error: .*No space left on device\n", capsys.readouterr().err)
    if where == "model":
        torch.testing.assert_close(load_file(out / "seed0.safetensors"), before, rtol=0, atol=0)


def test_seeds_print_their_mean_and_spread_and_an_early_interrupt_saves_nothing(
    out, capsys, monkeypatch
) -> None:
    held_out = iter([0.97, 0.98, 0.99])
    with monkeypatch.context() as patched:
        patched.setattr(command, "train_seed", lambda *_: next(held_out))
        assert run(out, "--seeds", "3", "4", "5") == 0
    text = capsys.readouterr().out
    assert "seeds     3, 4, 5" in text
    assert "98.00% on average, standard deviation 1.00%, from 97.00% to 99.00%" in text
    monkeypatch.setattr(command, "train", training_with_losses())
    assert run(out) == 130
    assert "Interrupted. No epoch was finished, so nothing was saved." in capsys.readouterr().out
    assert not list(out.iterdir())


def training_with_losses(*losses: float) -> object:
    """Fake a training loop with these validation losses, then Ctrl-C; epochs mark the model."""

    def train(model: ConvSNN, digits: Digits, settings: Settings, seed: int) -> Iterator[Epoch]:
        for number, loss in enumerate(losses, 1):
            linear: Any = model.linear[1]
            with torch.no_grad():
                linear.bias.fill_(number)
            yield Epoch(number, 0.5, validation=Score(0.5, loss), held_out=Score(0.5, -loss))
        raise KeyboardInterrupt

    return train


@pytest.mark.parametrize(
    ("losses", "best"), [((0.5, 0.9, 0.2, 0.7), 3), ((0.5,), 1), ((math.nan, math.nan), 1)]
)
def test_interrupt_keeps_the_best_model_so_far(out, capsys, monkeypatch, losses, best) -> None:
    monkeypatch.setattr(command, "train", training_with_losses(*losses))
    assert run(out) == 130
    path = out / "seed0.safetensors"
    end = f"\nInterrupted. The best model so far, of epoch {best}, is in {path}.\n"
    assert capsys.readouterr().out.endswith(end)
    assert (load_file(path)["linear.1.bias"] == best).all()


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (KeyboardInterrupt(), 130, "\nInterrupted.\n"),
        (FileNotFoundError("There are no MNIST files"), 1, "error: There are no MNIST files\n"),
        (ValueError("damaged"), 1, "error: damaged\n"),
    ],
)
def test_what_goes_wrong_while_loading_is_one_line(
    out, capsys, monkeypatch, error, code, printed
) -> None:
    def fail(folder: Path | None) -> Digits:
        raise error

    monkeypatch.setattr(command, "load_digits", fail)
    assert run(out) == code
    assert "".join(capsys.readouterr()) == printed


def test_missing_packages_and_a_file_in_the_way_are_named(out, capsys, monkeypatch) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name == "tqdm" else True)
    assert run(out) == 1
    message = r"error: The demo needs tqdm, .* pip install -e '\.\[demo\]'\n"
    assert re.fullmatch(message, capsys.readouterr().err)
    assert not out.exists()
    monkeypatch.undo()
    out.parent.mkdir(parents=True)
    out.write_text("in the way")
    assert run(out) == 1
    assert re.search("error: .*File exists", capsys.readouterr().err)


HELP = """
import runpy, sys
sys.argv[1:] = ['--help']
try:
    runpy.run_module('tracetorch.demo', run_name='__main__')
except SystemExit as end:
    print(end.code, {'matplotlib', 'mlxtend', 'safetensors'} & set(sys.modules))
"""


def test_help_does_not_import_optional_packages() -> None:
    printed = run_python("-c", HELP)  # torch itself loads tqdm
    assert printed.startswith("usage: python -m tracetorch.demo ")
    assert printed.endswith("\n0 set()\n")
