"""Spikes of a grasshopper's ear: how recordings are read, kept apart, scored and shown."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from examples import common, spike_trains
from tests.cases import few

OPTIONS = argparse.Namespace(quick=True)


def fired(number: int) -> list[int]:
    """Return the milliseconds of spikes: 7 after each loud one, and some that no sound explains."""
    return sorted({*range(97 * number + 7, 10_000, 97), *range(30, 10_000, 61)})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put recordings in the place of nitime's: loud where the time in ms is a multiple of 97."""
    (tmp_path / "data").mkdir()
    loud = np.where(np.arange(200_000) // 20 % 97 == 0, 0.2, 0.02)
    lines = "\n".join(f"{50 * n}  {pressure}" for n, pressure in enumerate(loud))
    for number in (1, 2):
        times = 1000 * np.array(fired(number)) + 300
        (tmp_path / f"data/grasshopper_stimulus{number}.txt").write_text(lines)
        text = "# repetition number: 0\n" + "\n".join(map(str, times)) + "\n\n"
        (tmp_path / f"data/grasshopper_spike_times{number}.txt").write_text(text)
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(spike_trains, "find_spec", lambda name: package)
    return tmp_path


def test_recordings_are_read_in_their_units_and_parts_share_no_step(folder: Path) -> None:
    x, spikes = spike_trains.recordings()
    assert (x.shape, spikes.shape) == ((10_000, 2, 10), (10_000, 2, 1))
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    # 20 dB, in deviations of a level that is so in one of 97 steps
    assert (x[0] - x[1]).flatten().tolist() == pytest.approx([9.8] * 20, rel=0.01)
    for number in (1, 2):
        assert spikes[:, number - 1, 0].nonzero().flatten().tolist() == fired(number)
    data = spike_trains.load(OPTIONS)
    assert [part.x.shape[1] for part in data] == [12, 4, 4]
    sequences = torch.cat([part.spikes for part in data], 1)[..., 0].T
    seconds = spikes[..., 0].T.reshape(20, 1000)
    assert sorted(sequences.tolist()) == sorted(seconds.tolist())
    assert torch.equal(data.test.x[:, 0], x[4000:5000, 0])


def test_bits_per_spike_are_the_gain_over_the_mean_rate() -> None:
    alternating = (torch.arange(100) % 2).float()[:, None, None]
    certain = 50 * (2 * alternating - 1)
    # a spike, and the step without one, are each a bit less surprising
    assert spike_trains.bits_per_spike(certain, alternating) == pytest.approx(2.0)
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(50, 3, 1, generator=generator) < 0.2).float()
    odds = torch.randn(50, 3, 1, generator=generator)
    n, p = spikes.numpy().ravel(), 1 / (1 + np.exp(-odds.numpy().ravel().astype(float)))
    gain = n * np.log2(p / n.mean()) + (1 - n) * np.log2((1 - p) / (1 - n.mean()))
    assert spike_trains.bits_per_spike(odds, spikes) == pytest.approx(gain.sum() / n.sum())
    constant = torch.full_like(odds, math.log(n.mean() / (1 - n.mean())))
    assert spike_trains.bits_per_spike(constant, spikes) == pytest.approx(0, abs=1e-6)


LIF = "--network LIF --delays 3"


@pytest.mark.one_in(2)
@pytest.mark.parametrize("arguments", few([LIF, "--network gru --lr 1e-2", "--network lnp"], LIF))
def test_a_quick_run_saves_a_model_and_a_figure(arguments, folder, tmp_path, capsys) -> None:
    given = [*arguments.split(), "--quick", "--seeds", "3", "--out", str(tmp_path / "out")]
    assert spike_trains.main(given) == 0
    assert "seed 3: bits per spike" in capsys.readouterr().out
    (row,) = common.read(tmp_path / "out/spike_trains.jsonl")
    assert all(math.isfinite(score) for score in row.scores.values())
    assert ("firing rate" in row.scores) == ("LIF" in arguments)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1
    (figure,) = (tmp_path / "out").glob("*.png")
    assert figure.stat().st_size > 10_000
