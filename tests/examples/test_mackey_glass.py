"""The chaotic series, the neurons that time its values, the fit, and the recorded results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples import mackey_glass


def small() -> mackey_glass.Predictor:
    return mackey_glass.Predictor(neurons=5, steps=8, seed=1)


def test_the_series_solves_the_equation() -> None:
    """By Heun's method, ten times as fine; the first values are those of NeuroBench's generator."""
    found = mackey_glass.series(30)
    steps = 10 * mackey_glass.PER_LYAPUNOV
    delay = mackey_glass.TAU * steps
    x = [mackey_glass.BEFORE] * (delay + 1)
    for _ in range(mackey_glass.TAU * steps + 29 * 10 * mackey_glass.LYAPUNOV):
        now, old, new = x[-1], x[-1 - delay], x[-delay]
        slope = 0.2 * old / (1 + old**10) - 0.1 * now
        guess = now + slope / steps
        x.append(now + (slope + 0.2 * new / (1 + new**10) - 0.1 * guess) / 2 / steps)
    expected = torch.tensor(x, dtype=torch.float64)[2 * delay :: 10 * mackey_glass.LYAPUNOV]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    # jitcdde 1.8.3, as NeuroBench 2.3 calls it
    theirs = torch.tensor([1.26678336, 1.30340560, 1.28231566], dtype=torch.float64)
    torch.testing.assert_close(found[:3], theirs, rtol=0, atol=1e-4)


def features(net: mackey_glass.Predictor, series: Tensor) -> tuple[Tensor, Tensor]:
    """Values and spikes of ten values each, ``[n, 10]`` and ``[n, 10 * steps * neurons]``."""
    fired = net.encode(series[:, None].float()).double()
    rows = range(9, len(series) - 1)
    return (
        torch.stack([series[t - 9 : t + 1].flip(0) for t in rows]),
        torch.stack([fired[t - 9 : t + 1].flip(0).flatten() for t in rows]),
    )


@pytest.mark.parametrize("spikes", [True, False])
def test_the_fit_is_ridge_regression(spikes: bool) -> None:
    net, series = small(), mackey_glass.series(200)
    net.fit(series, spikes=spikes)
    past, fired = features(net, series)
    levels = net.levels.flatten().double()
    alike = torch.exp(-((levels[:, None] - levels) ** 2) / (2 * mackey_glass.WIDTH**2)) / 25
    values, vectors = torch.linalg.eigh(alike)
    root = torch.block_diag(*[vectors * values.clamp(min=0).sqrt()] * 10)
    # in these coordinates all weights cost the same
    design = torch.cat([1e9**0.5 * past, spikes * fired @ root / mackey_glass.RIDGE**0.5], 1)
    design, change = design - design.mean(0), series[10:] - series[9:-1]
    gram = design.T @ design + torch.eye(design.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, design.T @ (change - change.mean()))
    expected = series[9:-1] + change.mean() + design @ weight
    found = net.of_values.weight[0].double() @ past.T + fired @ net.of_spikes.weight[0].double()
    found = found + net.of_values.bias.double()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert bool(net.of_spikes.weight.any()) == spikes
    # closer with spikes
    assert (float((found - series[10:]).std()) < 3e-3) == spikes
    # and it stands at the end of the series
    with torch.no_grad():
        again = small()
        again.load_state_dict(net.state_dict())
        again.values.zero_()
        again.spikes.zero_()
        for value in series[-11:]:
            wanted = again(value.view(1, 1).float())
        net.fit(series[:-1], spikes=spikes)
        net.of_values.load_state_dict(again.of_values.state_dict())
        net.of_spikes.load_state_dict(again.of_spikes.state_dict())
        torch.testing.assert_close(net(series[-1].view(1, 1).float()), wanted, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_quick_run_is_measured_by_neurobench(tmp_path: Path, capsys) -> None:
    pytest.importorskip("neurobench", reason="of the extra test-peers")
    assert mackey_glass.main(["--quick", "--seeds", "2", "--out", str(tmp_path)]) == 0
    assert "8 neurons, seed 2: sMAPE" in capsys.readouterr().out
    (row,) = mackey_glass.read(tmp_path)
    assert row["scores"] == [pytest.approx(row["smape"], abs=1e-3)]
    assert 5 < row["smape"] < 29  # two values at random differ by 29 %
    # one spike a neuron for each of ten values; products of the pulse and of the ten values
    assert (row["acs"], row["macs"]) == (80, 18)
    assert row["dense"] == 10 * 8 * 16 + 8 * 16 + 10
    assert row["activation_sparsity"] == 1 - 1 / 16
    assert (tmp_path / "mackey_glass-seed2.png").stat().st_size > 10_000
    mackey_glass.write({**row, "smape": 1.0}, tmp_path)
    assert [each["smape"] for each in mackey_glass.read(tmp_path)] == [1.0]
