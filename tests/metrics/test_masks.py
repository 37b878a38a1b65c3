"""Masks of ragged sequences in metrics of a whole run."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases import Net, sequence, vary
from tests.unrolling.models import By
from tracetorch import metrics, snn

LENGTHS = (7, 4, 1)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 6), snn.LIF(6), nn.Linear(6, 4), snn.BSLIF(4), nn.ReLU(), nn.Linear(4, 2)
    )
    vary(net)
    return net


def ragged() -> tuple[Tensor, Tensor]:
    x = sequence(7, 3, 5, dtype=torch.float32)
    x[:, 1] = (x[:, 1] > 0).float()  # one sample of spikes among others
    mask = torch.arange(7)[:, None] < torch.tensor(LENGTHS)
    return x.masked_fill(~mask[..., None], 3.0), mask


def alone(figure: Any, by: By) -> list[Any]:
    """Measure each sequence by itself, without its padding."""
    x, _ = ragged()
    return [figure(network(), x[:n, i : i + 1], by=by) for i, n in enumerate(LENGTHS)]


def weighted(shares: list[float]) -> float:
    return sum(n * share for n, share in zip(LENGTHS, shares, strict=True)) / sum(LENGTHS)


@pytest.mark.parametrize("by", ["layer", "step"])
def test_masked_counts_equal_those_of_the_sequences_without_padding(by: By) -> None:
    x, mask = ragged()
    found = metrics.synaptic_operations(network(), x, by=by, mask=mask)
    single = alone(metrics.synaptic_operations, by)
    # A step is MACs or ACs for all samples of a batch: only their sum is that of the sequences.
    assert found.effective == pytest.approx(sum(each.effective for each in single) / 3)
    assert found.dense == pytest.approx(sum(each.dense for each in single) / 3)
    updates = metrics.membrane_updates(network(), x, by=by, mask=mask)
    assert updates == pytest.approx(sum(alone(metrics.membrane_updates, by)) / 3)
    sparse = metrics.activation_sparsity(network(), x, by=by, mask=mask)
    assert sparse == pytest.approx(weighted(alone(metrics.activation_sparsity, by)))
    assert sparse != pytest.approx(metrics.activation_sparsity(network(), x, by=by))
    profile = partial(metrics.profile, repeats=1)
    table = profile(network(), x, by=by, mask=mask)
    assert table.operations == found
    rates = [each.rows[1].rate or 0.0 for each in alone(profile, by)]
    assert table.rows[1].rate == pytest.approx(weighted(rates))
    assert sum(row.updates or 0 for row in table.rows) == pytest.approx(updates)


def test_masks_may_have_gaps_and_fit_each_layer() -> None:
    recurrent = snn.Recurrent(snn.LIF(5), nn.Linear(5, 5))  # padding reaches no earlier steps
    x, mask = ragged()
    dense = metrics.synaptic_operations(recurrent, x, mask=mask).dense
    assert dense == pytest.approx(25 * sum(LENGTHS) / 3)
    layer, x = snn.Readout(1, beta=0.5), torch.ones(4, 1, 1)
    mask = torch.tensor([True, False, True, True])[:, None]
    assert metrics.membrane_updates(layer, x, mask=mask) == 3.0
    assert metrics.membrane_updates(layer, torch.zeros(4, 1, 1), mask=mask) == 1.0

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.neurons(m.each(x.reshape(-1, 1)).reshape(len(x), -1, 2).sum(1))

    x, mask = ragged()
    patches = Net(forward, each=nn.Linear(1, 2), neurons=snn.LIF(2))
    with pytest.raises(
        ValueError, match=r"mask: each \(Linear\) works on 15 rows where the batch is 3"
    ):
        metrics.synaptic_operations(patches, x, mask=mask)
