from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import Net, layer, sequence, vary
from tests.networks import Listed
from tests.refusals import unchanged
from tests.unrolling.models import MODELS, By, dyadic, made
from tracetorch import metrics, snn


def products(module: nn.Module, x: Tensor) -> float:
    """Count the nonzero terms of a linear map by brute force, one input at a time."""
    total = 0.0
    with torch.no_grad():
        for i in (x.flatten() != 0).nonzero():
            one = torch.zeros_like(x).flatten()
            one[i] = 1.0
            y = module(one.view_as(x)) - module(torch.zeros_like(x))
            total += float((y.abs() > 1e-6).sum())
    return total


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(5, 4), (2, 5)),
        (nn.Linear(3, 4), (2, 2, 3)),
        (nn.Conv1d(2, 4, 3, stride=2, padding=1, groups=2), (2, 2, 7)),
        (nn.Conv2d(1, 2, 3, dilation=2, padding="same"), (1, 1, 5, 4)),
        (nn.Conv2d(1, 2, 2, padding="same"), (1, 1, 5, 4)),
        (nn.Conv2d(1, 2, 3, padding=2, padding_mode="reflect"), (1, 1, 5, 4)),
        (nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 2)),
    ],
    ids=repr,
)
def test_operations_equal_a_brute_force_count(module: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        module.weight.uniform_(1, 2).mul_(torch.rand(module.weight.shape) < 0.7)
    x = torch.rand(3, *shape) * (torch.rand(3, *shape) < 0.5)
    x[1] = (x[1] > 0).float()
    found = metrics.synaptic_operations(module, x)
    B = shape[0]
    reflected = getattr(module, "padding_mode", "zeros") == "reflect"
    if not reflected:  # with reflection an input may reach one output twice
        assert found.effective_acs * B == products(module, x[1])
        assert found.effective_macs * B == products(module, x[0]) + products(module, x[2])
    nn.init.ones_(module.weight)
    full = metrics.synaptic_operations(module, torch.ones_like(x))
    assert full.dense == full.effective_acs == found.dense
    assert found.effective < found.dense


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("patches", [2, 4])
def test_steps_are_separated_where_patches_are_folded_into_the_batch(patches: int, by: Any) -> None:
    """Also with as many patches as steps; one real-valued patch makes its whole step MACs."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.neurons(m.each(x.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(1))

    net = Net(forward, each=nn.Linear(3, 3), neurons=snn.LIF(3))
    x = torch.ones(4, 2, patches, 3)
    x[0, :, 0] = 0.5
    found = metrics.synaptic_operations(net, x, by=by)
    step = patches * 3 * 3
    assert found == metrics.SynapticOperations(step, 3 * step, 4 * step)
    row = metrics.profile(net, x, by=by).rows[0]
    assert (row.macs, row.acs, row.shape) == (step, 3 * step, (3,))


@pytest.mark.parametrize("name", MODELS)
def test_counts_by_layer_and_by_step_are_equal(name: str) -> None:
    model, x = made(name), dyadic(5, *MODELS[name][1])
    figures: list[Any] = [metrics.synaptic_operations, metrics.membrane_updates]
    figures.append(metrics.activation_sparsity)
    layer, step = ([figure(model, x, by=by) for figure in figures] for by in ("layer", "step"))
    assert layer == step
    assert layer[0].effective > 0
    assert layer[1] > 0


def test_a_constant_input_is_counted_at_every_step() -> None:
    net = nn.Sequential(nn.Linear(4, 3), snn.LIF(3))
    x = torch.ones(2, 4)
    over_time = x.expand(7, 2, 4)
    for figure in (metrics.membrane_updates, metrics.activation_sparsity):
        assert figure(net, x, steps=7) == figure(net, over_time) > 0
    operations = metrics.synaptic_operations(net, over_time)
    assert metrics.synaptic_operations(net, x, steps=7) == operations
    table = metrics.profile(net, x, steps=7, repeats=1)
    assert (table.steps, table.operations) == (7, operations)


def test_metrics_run_from_rest_and_leave_norms_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), layer("SLIF", 4), nn.BatchNorm1d(4))
    x = torch.rand(5, 2, 3)
    before = metrics.synaptic_operations(model, x)
    tt.unroll(model, x)
    with unchanged(model):
        assert metrics.synaptic_operations(model, x) == before


def test_idle_hidden_and_shared_parts_are_counted_as_what_they_are() -> None:
    idle = nn.Sequential(nn.Linear(3, 9), snn.LIF(9))
    net = Net(lambda m, x: m.cell(m.used(x)), used=nn.Linear(3, 2), idle=idle, cell=snn.LIF(2))
    x = torch.rand(4, 2, 3)
    assert metrics.synaptic_operations(net, x).dense == 4 * 6
    row = metrics.profile(net, x).rows[1]
    assert (row.path, row.shape, row.parameters) == ("idle.0", None, 36)
    one, other = (nn.Linear(3, 3, bias=False) for _ in "12")
    other.weight = one.weight
    hidden = nn.Sequential(one, Listed(snn.LIF(3), other))
    assert metrics.parameter_count(hidden) == 9 + 6
    assert metrics.footprint(hidden) == 4 * 15


@pytest.mark.parametrize("by", ["layer", "step"])
def test_whole_delays_cost_what_the_layer_without_them_costs(by: Any) -> None:
    torch.manual_seed(0)
    x = (torch.rand(6, 2, 3) < 0.4).float()
    delayed: Any = snn.DelayedLinear(3, 5, max_delay=4)
    delayed.linear.weight.data[0, 0] = 0.0
    delayed.round_()
    for given in (x, x * 0.5):
        expected, counted = (
            metrics.synaptic_operations(nn.Sequential(each), given, by=by)
            for each in (delayed.linear, delayed)
        )
        assert (counted.effective_acs, counted.effective_macs, counted.dense) == (
            expected.effective_acs, expected.effective_macs, 5 * expected.dense
        )  # fmt: skip
        assert counted.effective > 0
    delayed.sigma = 10.0  # every step has a weight
    spread = metrics.synaptic_operations(nn.Sequential(delayed), x, by=by)
    assert spread.effective == 5 * metrics.synaptic_operations(delayed.linear, x).effective
    (row,) = metrics.profile(nn.Sequential(delayed), x, by=by).rows
    assert (row.kind, row.acs, row.dense) == ("DelayedLinear", spread.effective_acs, spread.dense)
    assert row.parameters == sum(p.numel() for p in delayed.parameters())
    assert row.energy_pj


def test_a_delay_has_no_membrane_and_one_that_does_not_change_is_not_updated() -> None:
    still = torch.zeros(6, 1, 2)
    still[2, 0, 0] = 0.5
    assert metrics.membrane_updates(snn.LIF(2), still) == 2 + 4
    first = snn.Delay(3, max_delay=4, delay=0.0)
    net, x = nn.Sequential(first, snn.LIF(3)), torch.rand(5, 2, 3)
    assert metrics.membrane_updates(net, x) == metrics.membrane_updates(net[1:], x, by="step")
    row = metrics.profile(net, x).rows[0]
    assert (row.kind, row.rate, row.parameters) == ("Delay", None, 3)


def test_energy_is_the_sum_of_operations_times_their_cost_of_any_assumptions() -> None:
    found = metrics.energy(metrics.SynapticOperations(10.0, 100.0, 500.0), updates=3.0)
    assert found.synapses_pj == pytest.approx(10 * 4.6 + 100 * 0.9)
    assert found.neurons_pj == pytest.approx(3 * 4.6)
    assert found.dense_pj == pytest.approx(500 * 4.6)
    assert found.total_pj == found.synapses_pj + found.neurons_pj
    cost = metrics.EnergyAssumptions(mac_pj=2, ac_pj=1, update_pj=0, source="ours")
    found = metrics.energy(metrics.SynapticOperations(1.0, 1.0, 4.0), updates=9.0, assumptions=cost)
    assert (found.total_pj, found.dense_pj, found.assumptions) == (3.0, 8.0, cost)
    assert str(found).endswith("MAC 2 pJ, AC 1 pJ, membrane update 0 pJ (ours)")


# Masks of ragged sequences

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
    x, _ = ragged()
    return [figure(network(), x[:n, i : i + 1], by=by) for i, n in enumerate(LENGTHS)]


def weighted(shares: list[float]) -> float:
    return sum(n * share for n, share in zip(LENGTHS, shares, strict=True)) / sum(LENGTHS)


@pytest.mark.one_in(2)
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
    with pytest.raises(ValueError, match=r"each \(Linear\) works on 15 rows where the batch is 3"):
        metrics.synaptic_operations(patches, x, mask=mask)
