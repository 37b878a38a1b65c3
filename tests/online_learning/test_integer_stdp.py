"""Test STDP of integer connections: a reference in Python's integers, every way, and its limits."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.refusals import check, refusals, unchanged
from tracetorch import integers, snn
from tracetorch.online_learning import STDP, PairRule, TripletRule

RULES: dict[str, PairRule | TripletRule] = {
    "pair": PairRule(2.0, 1.7, 5.0, 8.0),
    "pair, nearest": PairRule(2.0, 1.7, 5.0, 8.0, nearest=True),
    "pair, turned": PairRule(-0.4, -1.3),
    "triplet": TripletRule(0.7, 1.1, 1.2, 0.4, 5.0, 8.0, 12.0, 15.0),
    "triplet, nearest": TripletRule(0.7, 1.1, 1.2, 0.4, 5.0, 8.0, 12.0, 15.0, nearest=True),
}
T, B, INPUTS, OUTPUTS = 60, 3, 4, 2
PAIRS = PairRule(0.75, 0.6, 17.0, 34.0)
SLOW = TripletRule(0.3, 0.5, 0.4, 0.2, 17.0, 34.0, 101.0, 114.0)


def connection(bits: int = 8, kind: Any = integers.Linear, *sizes: int, **options: Any) -> Any:
    layer = kind(*(sizes or (INPUTS, OUTPUTS)), weight_bits=bits, **options)
    low, high = integers.limits(bits)
    drawn = torch.randint(low, high + 1, layer.weight.shape, generator=seeded(5))
    layer.weight.copy_(drawn)
    return layer


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def trains(*pre: int, post: tuple[int, ...], signed: bool = False) -> tuple[Tensor, Tensor]:
    drawn = [(torch.rand(T, B, *s, generator=seeded(i)) < 0.3) for i, s in enumerate((pre, post))]
    sizes = [torch.randint(-2, 4, each.shape, generator=seeded(9)) for each in drawn]
    first, second = (
        each.float() * (size if signed else 1) for each, size in zip(drawn, sizes, strict=True)
    )
    return first, second


def reference(
    rule: PairRule | TripletRule,
    pre: Tensor,
    post: Tensor,
    layer: Any,
    bits: int,
    bounds: tuple[int, int],
    updates: int,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Learn weight by weight in integers of Python, from the equations; update now and then."""
    full, most = rule.triplet(), 2 ** (bits + 7)
    taus = (full.tau_plus, full.tau_x, full.tau_minus, full.tau_y)
    decays = [round(2**15 * math.exp(-1 / tau)) for tau in taus]
    a2p, a3p, a2m, a3m = (
        round(2**bits * a) for a in (full.a2_plus, full.a3_plus, full.a2_minus, full.a3_minus)
    )
    weight, rest = layer.weight.long().clone(), torch.zeros(layer.weight.shape, dtype=torch.int64)
    for i, j in itertools.product(range(pre.shape[2]), range(post.shape[2])):
        w, left = int(weight[j, i]), 0
        traces = [[0, 0, 0, 0] for _ in range(pre.shape[1])]
        change = 0
        for t in range(len(pre)):
            for b, old in enumerate(traces):
                if mask is not None and not mask[t, b]:
                    continue
                x, y = int(pre[t, b, i]), int(post[t, b, j])
                # int() of an exact fraction rounds towards zero
                before = [
                    abs(r) * d // 2**15 * (1 if r >= 0 else -1)
                    for r, d in zip(old, decays, strict=True)
                ]
                after = [
                    max(-most, min(most - 1, (0 if full.nearest and s else r) + s * 2**bits))
                    for r, s in zip(before, (x, x, y, y), strict=True)
                ]
                half = 2 ** (bits - 1)
                up = a2p * y + ((a3p * y * before[3] + half) >> bits)
                down = a2m * x + ((a3m * x * before[1] + half) >> bits)
                change += after[0] * up - before[2] * down
                traces[b] = after
            if (t + 1) % updates == 0:
                unit = 4**bits
                total = max(bounds[0] * unit, min(bounds[1] * unit, w * unit + left + change))
                w = (total + unit // 2) // unit
                left, change = total - w * unit, 0
        weight[j, i], rest[j, i] = w, left
    return weight, rest


def learned(stdp: STDP, pre: Tensor, post: Tensor, way: str, updates: int, mask: Any) -> Any:
    """Return weight and remainder after learning by step, over sequences, or over parts of them."""
    for start in range(0, len(pre), updates):
        parts = {"step": 1, "sequence": updates, "parts": 7}[way]
        for at in range(start, start + updates, parts):
            part = slice(at, min(at + parts, start + updates))
            given = None if mask is None else mask[part]
            if way == "step":
                stdp(pre[at], post[at], mask=None if given is None else given[0])
            else:
                stdp.unroll(pre[part], post[part], mask=given)
        stdp.update_()
    return stdp.connection.weight.long(), stdp.remainder.long()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("way", ["step", "sequence", "parts"])
@pytest.mark.parametrize("name", RULES)
def test_weights_are_those_of_the_reference(name: str, way: str, dtype: torch.dtype) -> None:
    signed = dtype is torch.float64
    pre, post = trains(INPUTS, post=(OUTPUTS,), signed=signed)
    layer, bounds = connection(), (-90, 100)
    mask = None if way == "parts" else torch.rand(T, B, generator=seeded(3)) < 0.8
    expected = reference(RULES[name], pre, post, layer, 8, bounds, 20, mask)
    if mask is not None:
        pre[~mask] = torch.nan
    stdp = STDP(layer, RULES[name], bounds=bounds, reduction="sum")
    found = learned(stdp, pre.to(dtype), post.to(dtype), way, 20, mask)
    assert all(map(torch.equal, found, expected))
    assert found[1].any()
    assert layer.weight.dtype is torch.int8


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("fraction_bits", [1, 8, 12])
def test_widths(bits: int, fraction_bits: int) -> None:
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    layer, bounds = connection(bits), integers.limits(bits)
    expected = reference(PAIRS, pre, post, layer, fraction_bits, bounds, 1)
    stdp = STDP(layer, PAIRS, reduction="sum", fraction_bits=fraction_bits)
    assert all(map(torch.equal, learned(stdp, pre, post, "step", 1, None), expected))
    assert f"fraction_bits={fraction_bits}" in repr(stdp)


@pytest.mark.parametrize("rule", [PAIRS, SLOW])
def test_fine_fractions_are_the_rule_of_floats(rule: Any) -> None:
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    exact = nn.Linear(INPUTS, OUTPUTS, bias=False).double().requires_grad_(False)
    nn.init.zeros_(exact.weight)
    stdp = STDP(exact, rule, reduction="sum")
    stdp.unroll(pre.double(), post.double())
    stdp.update_()
    errors = []
    for bits in (4, 8, 12):
        layer = integers.Linear(INPUTS, OUTPUTS, weight_bits=16)
        fixed = STDP(layer, rule, reduction="sum", fraction_bits=bits)
        fixed.unroll(pre, post)
        fixed.update_()
        found = layer.weight + fixed.remainder / 4.0**bits
        errors.append(float((found - exact.weight).abs().max() / exact.weight.abs().max()))
    assert errors[0] > 8 * errors[1] > 16 * errors[2]
    assert errors[2] < 2e-3


def test_traces_and_weights_saturate() -> None:
    layer = integers.Linear(1, 1)
    stdp = STDP(layer, PairRule(5.0, 5.0, tau_plus=65000.0), bounds=(-3, 100))
    ones = torch.ones(300, 1, 1)
    stdp.unroll(ones, 0 * ones)
    assert tt.get_states(stdp)["pre_trace.trace"].item() == 2**15 - 1
    stdp(ones[0], ones[0])
    stdp.update_()
    assert (layer.weight.item(), stdp.remainder.item()) == (100, 0)
    stdp.zero_states()
    for _ in range(20):  # spikes of the output first
        stdp(0 * ones[0], ones[0])
    for number in range(3):
        stdp(ones[0], 0 * ones[0])
        stdp.update_()
        assert ((layer.weight.item(), stdp.remainder.item()) == (-3, 0)) == (number > 0)


def test_changes_below_a_step_of_the_weight_add_up() -> None:
    layer, post = integers.Linear(1, 1), torch.ones(1, 1)
    stdp = STDP(layer, PairRule(2**-8, 2**-8, tau_plus=0.05, tau_minus=0.05))
    for t in range(128):
        assert layer.weight.item() == 0, t
        stdp(post, post)
        stdp.update_()
    assert (layer.weight.item(), stdp.remainder.item()) == (1, -(2**15))


def test_a_mask_and_signs_of_connect_hold() -> None:
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]]).bool()
    signs = torch.tensor([1, -1, 1, -1])
    plain, layer = connection(), connection()
    snn.connect(layer, mask=mask, signs=signs)
    start = layer.weight.clone()
    assert torch.equal(start, torch.where(mask & (plain.weight * signs > 0), plain.weight, 0))
    stdp = STDP(layer, PairRule(9.0, 9.0), reduction="sum")
    learned(stdp, pre, post, "step", 1, None)
    weight = layer.weight
    assert weight.dtype is torch.int8
    assert not torch.equal(weight, start)
    assert not weight[~mask].any()
    assert not stdp.remainder[~mask].any()
    sums = weight.long() * 2**16 + stdp.remainder
    assert (sums * signs >= 0).all()
    assert (sums[mask] == 0).any()  # stopped at zero
    held = copy.deepcopy(layer)
    assert torch.equal(held.weight, weight)
    snn.disconnect(held)
    assert list(held.state_dict()) == list(plain.state_dict())
    assert torch.equal(held(pre[0]), layer(pre[0]))


@pytest.mark.parametrize("name", ["pair", "triplet"])
def test_convolution_is_the_linear_layer_of_its_patches(name: str) -> None:
    conv = connection(8, integers.Conv2d, 2, 3, 2, stride=2, padding=1)
    pre, post = trains(2, 4, 4, post=(3, 3, 3))
    flat = connection(8, integers.Linear, 8, 3)
    flat.weight.copy_(conv.weight.flatten(1))
    patches = nn.functional.unfold(pre.flatten(0, 1), 2, padding=1, stride=2)
    rows = patches.unflatten(0, (T, B)).transpose(2, 3).flatten(1, 2)
    there = STDP(flat, RULES[name], reduction="sum")
    expected = learned(there, rows, post.flatten(3).mT.flatten(1, 2), "sequence", 10, None)
    found = learned(STDP(conv, RULES[name], reduction="sum"), pre, post, "step", 10, None)
    assert all(torch.equal(a.flatten(1), b) for a, b in zip(found, expected, strict=True))


def test_spikes_of_a_size_count_as_one() -> None:
    pre, post = trains(INPUTS, post=(OUTPUTS,), signed=True)
    rules = [STDP(connection(), RULES["triplet"], reduction="sum", spike_sizes=sizes) for sizes in
             ((1, 1), (128, 7))]  # fmt: skip
    plain = learned(rules[0], pre, post, "step", 5, None)
    sized = learned(rules[1], 128 * pre, 7 * post, "sequence", 5, None)
    assert all(map(torch.equal, plain, sized))
    with pytest.raises(ValueError, match=r"^pre holds 100, .* here of size 128"):
        rules[1](100 * torch.ones(1, INPUTS), torch.zeros(1, OUTPUTS))


def test_learning_is_saved_and_resumed() -> None:
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    first = STDP(connection(), RULES["triplet"], reduction="sum")
    first.unroll(pre[:30], post[:30])
    first.update_()
    again = STDP(connection(), RULES["triplet"], reduction="sum")
    assert list(first.state_dict()) == ["remainder"]
    again.load_state_dict(first.state_dict())
    again.connection.load_state_dict(first.connection.state_dict())
    tt.set_states(again, tt.get_states(first))
    ends = [learned(each.half(), pre[30:], post[30:], "step", 5, None) for each in (first, again)]
    assert all(map(torch.equal, *ends))


def test_a_remainder_of_other_bits_is_refused() -> None:
    """It would move weights by many steps at the next update."""
    fine, coarse = (STDP(connection(), PAIRS, fraction_bits=bits) for bits in (12, 4))
    for number in (2**7, -(2**7) - 1):
        fine.remainder[0, 1] = number
        with (
            unchanged(coarse, coarse.connection),
            pytest.raises(
                RuntimeError, match=rf"{number}, .* -128 to 127\. Build .* fraction_bits"
            ),
        ):
            coarse.load_state_dict(fine.state_dict())
    fine.remainder[0, 1] = 2**7 - 1
    coarse.load_state_dict(fine.state_dict())


def test_where_zero_is_out_of_bounds_what_connect_holds_at_zero_leaves_no_remainder() -> None:
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    layer, signs = connection(), torch.tensor([1, 1, -1, 1])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    snn.connect(layer, mask=mask, signs=signs)
    stdp = STDP(layer, PairRule(1.0, 1.0), bounds=(5, 100), reduction="sum")
    learned(stdp, pre, post, "step", 1, None)
    zero = ~mask | (signs < 0)
    assert stdp.remainder[~zero].any()
    assert not stdp.remainder[zero].any()
    assert not layer.weight[zero].any()
    assert (layer.weight[~zero] >= 5).all()


def test_a_quantised_network_learns() -> None:
    torch.manual_seed(0)
    neurons = [snn.LIF(size, pos_threshold=0.1) for size in (8, 3)]
    net: Any = nn.Sequential(nn.Linear(12, 8), neurons[0], nn.Linear(8, 3), neurons[1])
    net.requires_grad_(False)[2].weight.abs_()
    x = (torch.rand(40, 1, 12) < 0.4).float()
    model: Any
    model, _ = tt.quantize.convert(tt.quantize.prepare(net, x))
    rules = [STDP(model[0], PairRule(3.0, 2.0)), STDP(model[2], TripletRule(1.0, 2.0, 1.0))]
    before = [rule.connection.weight.clone() for rule in rules]
    for step in x:
        hidden = model[:2](step)
        rules[0](step, hidden)
        rules[1](hidden, model[2:](hidden))
        for rule in rules:
            rule.update_()
    for rule, old in zip(rules, before, strict=True):
        assert not torch.equal(rule.connection.weight, old)
    integers.check_exact(model, x)


LINEAR = integers.Linear(4, 2)
HALF = PairRule(0.5, 0.5)


@refusals(
    r"""
    STDP(integers.Conv2d(2, 2, 1, groups=2)) -> TypeError: with groups=1 .* or one of tt\.integers
    STDP(integers.Conv1d(2, 2, 1)) -> TypeError: or one of tt\.integers, got Conv1d
    STDP(LINEAR, HALF, bounds=(0, 1), mu=1.0) -> ValueError: mu=1\.0 .* bounds of integers are hard
    STDP(LINEAR, HALF, tau_eligibility=9) -> ValueError: tau_eligibility=9 .* has no integers. Leave
    STDP(LINEAR, HALF, bounds=(0, 128)) -> ValueError: from -128 to 127, got \(0\.0, 128\.0\): one
    STDP(LINEAR, HALF, bounds=(0, 0.5)) -> ValueError: must be integers from -128 to 127
    STDP(LINEAR, HALF, bounds=(0, torch.inf)) -> ValueError: must be integers from -128 to 127
    STDP(LINEAR, HALF, fraction_bits=13) -> ValueError: fraction_bits must be 1 to 12, got 13
    STDP(LINEAR, HALF, fraction_bits=8.0) -> TypeError: fraction_bits must be an integer
    STDP(LINEAR, HALF, spike_sizes=(1, 0)) -> ValueError: a spike size must be at least 1, got 0
    STDP(LINEAR, HALF, spike_sizes=128) -> TypeError: spike_sizes must be .* got 128
    STDP(LINEAR, HALF, bounds=3) -> TypeError: bounds must be \(lowest, highest\), got 3
    STDP(LINEAR, HALF, bounds=(0, 1, 2)) -> TypeError: bounds must be \(lowest, highest\), got
    STDP(nn.Linear(4, 2), spike_sizes=(1, 2)) -> ValueError: fraction_bits and spike_sizes are those
    STDP(nn.Linear(4, 2), fraction_bits=8) -> ValueError: are those of a connection of tt\.integers
    STDP(LINEAR, PairRule(1e-3, 1.0)) -> ValueError: a2_plus must be 0, or from 2\^-8 .* got 0\.001
    STDP(LINEAR, PairRule(1.0, 1e6)) -> ValueError: a2_minus must be 0, .* got 1e\+06
    STDP(LINEAR, PairRule(1.0, 1.0, 7e4)) -> ValueError: tau_plus of 70000 steps .* at most 65000
    """
)
def test_wrong_settings(call: str, error: str) -> None:
    check(call, error, globals())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda pre, post: (3.5 * pre, post), r"^pre holds 3\.5, .* from -128 to 127 spikes"),
        (lambda pre, post: (pre, 128 * post), r"^post holds 128, .* of size 1\. .* spike_sizes"),
        (lambda pre, post: (pre[:, [0, 0]], post[:, [0, 0]]), r"mean over 2 samples is no integer"),
    ],
)
def test_spikes_that_do_not_fit_change_nothing(
    spoil: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], message: str
) -> None:
    pre, post = torch.ones(5, 1, 4), torch.ones(5, 1, 2)
    stdp = STDP(connection(), PairRule(1.0, 1.0))
    with unchanged(stdp, stdp.connection), pytest.raises(ValueError, match=message):
        stdp.unroll(*spoil(pre, post))
    stdp.update_()  # there is nothing


def test_sums_that_could_be_rounded_are_refused_before_anything_changes() -> None:
    stdp = STDP(connection(16), PairRule(3e3, 3e3, 5e3), fraction_bits=12)
    pre, post = 127 * torch.ones(2, 1, 4), 127 * torch.ones(2, 1, 2)
    stdp.unroll(pre[:1], post[:1])
    with (
        unchanged(stdp, stdp.connection),
        pytest.raises(ValueError, match=r"^changes of 100 steps, .* Call update_\(\) more often"),
    ):
        stdp.unroll(pre[:1].expand(100, -1, -1), post[:1].expand(100, -1, -1))
    stdp.update_()
    assert stdp.connection.weight.unique().tolist() == [2**15 - 1]
