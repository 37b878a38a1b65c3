from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest
import torch

import tracetorch as tt
from tests.unrolling.models import dyadic, made
from tracetorch import metrics

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


WARNED = pytest.warns(UserWarning, match="compute.* was called before the .*update")


def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for B in (3, 5, 1):
        spikes = (torch.rand(6, B, 4, generator=generator) < 0.3).float()
        spikes[:, :, 3] = 1
        spikes[:, :, 2] = 0
        mask = torch.arange(6)[:, None] < torch.randint(1, 7, (B,), generator=generator)
        made.append((spikes, torch.randint(4, (B,), generator=generator), mask))
    return made


@pytest.mark.parametrize("masked", [False, True])
def test_metrics_over_batches_equal_those_over_all_samples(masked: bool) -> None:
    spikes, targets, masks = (torch.cat(part, -1 if i == 1 else 1) if i != 1 else torch.cat(part)
                              for i, part in enumerate(zip(*batches(), strict=True)))  # fmt: skip
    whole = masks if masked else None
    right = metrics.accuracy(spikes, targets, by="first_spike", mask=whole)
    often = metrics.saturated(spikes, above=0.95, mask=whole)
    wanted = {
        metrics.Accuracy("first_spike"): right,
        metrics.FiringRate(): metrics.firing_rate(spikes, mask=whole),
        metrics.Sparsity(): metrics.sparsity(spikes, mask=whole),
        metrics.DeadNeurons(4): metrics.dead(spikes, mask=whole).float().mean(),
        metrics.SaturatedNeurons(4, above=0.95): often.float().mean(),
    }
    for metric, figure in wanted.items():
        for x, target, mask in batches():
            arguments = (x, target) if isinstance(metric, metrics.Accuracy) else (x,)
            metric.update(*arguments, *([mask] if masked else []))
        torch.testing.assert_close(metric.compute(), figure)
        assert 0 < figure < 1
        metric.reset()
        with pytest.raises(ValueError, match="has seen no batch"), WARNED:
            metric.compute()


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("by", ["layer", "step"])
def test_operations_over_batches(steps: int | None, by: Any) -> None:
    model, x = made("dense"), dyadic(5, 3, 3)
    metric = metrics.Operations(steps=steps, by=by)
    if steps is None:
        metric.update(model, x[:, :2])
        metric.update(model, x[:, 2:])
    else:  # one step, which is repeated
        x = x[:1].expand(5, 3, 3)
        metric.update(model, x[0])
    wanted = metrics.synaptic_operations(model, x)
    updates = metrics.membrane_updates(model, x)
    found = {name: float(value) for name, value in metric.compute().items()}
    names = ("effective_macs", "effective_acs", "dense")
    expected = {name: getattr(wanted, name) for name in names} | {"membrane_updates": updates}
    assert found == pytest.approx(expected)


def test_metrics_work_in_a_collection_and_can_be_pickled() -> None:
    from torchmetrics import Metric, MetricCollection

    both = MetricCollection({"rate": metrics.Accuracy("rate"), "last": metrics.Accuracy("last")})
    for x, target, _ in batches():
        both.update(x, target)
    x, target = (torch.cat([b[i] for b in batches()], 1 - i) for i in (0, 1))
    assert both.compute() == {by: metrics.accuracy(x, target, by=by) for by in ("rate", "last")}
    metric = pickle.loads(pickle.dumps(metrics.DeadNeurons(4)))
    assert isinstance(metric, Metric)
    assert metric(x) == 0.25
    assert metric.half().fired.dtype == torch.float64


def test_error_without_torchmetrics_names_the_extra_and_functions_work(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "tracetorch.metrics.running", raising=False)
    monkeypatch.setattr("tracetorch.core.optional.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"Accuracy needs torchmetrics.*'\.\[metrics\]'"):
        _ = tt.metrics.Accuracy
    assert metrics.firing_rate(torch.ones(2, 1, 3)) == 1


def test_a_collection_keeps_metrics_along_different_dimensions_apart() -> None:
    """Even where their states are equal after the first batch, which has no spikes."""
    along = {
        "last": metrics.DeadNeurons(4),
        "channel": metrics.DeadNeurons(4, dim=-3),
        "often": metrics.SaturatedNeurons(4, above=0.3),
        "channel often": metrics.SaturatedNeurons(4, dim=-3, above=0.3),
    }
    torchmetrics = pytest.importorskip("torchmetrics")
    both = torchmetrics.MetricCollection(along)
    both.update(torch.zeros(3, 2, 4, 4, 4))
    spikes = torch.zeros(3, 2, 4, 4, 4)
    spikes[..., 0, :, :] = 1
    both.update(spikes)
    expected = {"last": 0.0, "channel": 0.75, "often": 0.0, "channel often": 0.25}
    assert {name: float(value) for name, value in both.compute().items()} == expected
