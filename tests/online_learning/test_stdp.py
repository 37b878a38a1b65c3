"""Test STDP: textbook windows, a scalar reference, and steps against whole sequences."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.refusals import check, refusals
from tracetorch.online_learning import STDP, PairRule, TripletRule

RULES: dict[str, PairRule | TripletRule] = {
    "pair": PairRule(0.1, 0.2, 5.0, 8.0),
    "pair, nearest": PairRule(0.1, 0.2, 5.0, 8.0, nearest=True),
    "triplet": TripletRule(0.1, 0.3, 0.2, 0.4, 5.0, 8.0, 12.0, 15.0),
    "triplet, nearest": TripletRule(0.1, 0.3, 0.2, 0.4, 5.0, 8.0, 12.0, 15.0, nearest=True),
    "triplet, minimal": TripletRule.presets["visual cortex, minimal"],
}
T, B, INPUTS, OUTPUTS = 30, 3, 4, 2


def linear(**arguments: Any) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(INPUTS, OUTPUTS, **arguments).double()


def spikes(*shape: int, seed: int = 0, rate: float = 0.3) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).double()


def trains(*pre: int, post: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return spikes(T, B, *pre), spikes(T, B, *post, seed=1)


def moved(stdp: STDP, learn: Callable[[STDP], None]) -> Tensor:
    """Learn, update, and return by how much the weights have moved; they are restored."""
    before = stdp.connection.weight.detach().clone()
    learn(stdp)
    stdp.update_()
    change = stdp.connection.weight.detach() - before
    with torch.no_grad():
        stdp.connection.weight.copy_(before)
    return change


def in_steps(pre: Tensor, post: Tensor, **others: Tensor | None) -> Callable[[STDP], None]:
    def learn(stdp: STDP) -> None:
        for t in range(len(pre)):
            stdp(pre[t], post[t], **{n: x[t] for n, x in others.items() if x is not None})

    return learn


def test_constants_of_rules() -> None:
    full = TripletRule.presets["visual cortex"]
    assert dataclasses.astuple(full) == (5e-10, 6.2e-3, 7e-3, 2.3e-4, 16.8, 33.7, 101, 125, False)
    assert TripletRule.presets["visual cortex, minimal"] == TripletRule()


@pytest.mark.parametrize("lag", [*range(-40, 41, 8), -1, 1])
@pytest.mark.parametrize("nearest", [False, True])
def test_a_pair_of_spikes_moves_the_weight_by_the_window(lag: int, nearest: bool) -> None:
    rule = PairRule(0.02, 0.03, tau_plus=17.0, tau_minus=34.0, nearest=nearest)
    pre, post = torch.zeros(100, 1, 1).double(), torch.zeros(100, 1, 1).double()
    pre[50], post[50 + lag] = 1, 1
    expected = 0.02 * np.exp(-lag / 17) if lag >= 0 else -0.03 * np.exp(lag / 34)
    change = moved(STDP(nn.Linear(1, 1).double(), rule), lambda s: s.unroll(pre, post))
    assert change.item() == pytest.approx(expected, abs=1e-15, rel=1e-12)


def pairing(rule: PairRule | TripletRule, lag: int, period: int, pairs: int = 60) -> float:
    """Repeat pairs of spikes, in steps of a millisecond, as Sjostrom et al. (2001) did."""
    steps = pairs * period + 2 * abs(lag)
    pre, post = torch.zeros(steps, 1, 1).double(), torch.zeros(steps, 1, 1).double()
    at = torch.arange(pairs) * period + abs(lag)
    pre[at], post[at + lag] = 1, 1
    return moved(STDP(nn.Linear(1, 1).double(), rule), lambda s: s.unroll(pre, post)).item()


def test_triplets_depend_on_the_rate_of_pairs_as_in_cortex() -> None:
    """The minimal and the full rule against the data that they were fitted to, qualitatively.

    Sjostrom, Turrigiano and Nelson, Neuron 32, 1149 (2001), figures 1D and 7B, as in table 1 of
    Pfister and Gerstner: at 10 and 50 Hz 0.14 and 0.56 for a lag of 10 ms, -0.41 and 0.75 for -10.
    """
    for preset in TripletRule.presets.values():
        periods = (100, 50, 25, 20)
        causal, acausal = ([pairing(preset, lag, p) for p in periods] for lag in (10, -10))
        assert causal == sorted(causal)
        assert acausal[0] < -0.2
        assert causal[0] == pytest.approx(0.14, abs=0.15)
        assert causal[-1] == pytest.approx(0.56, abs=0.26)
        assert acausal[-1] > 0.4  # potentiation, whatever the order
    # pairs alone cannot: the higher the rate, the more each spike finds on its other side
    pair = PairRule(0.0065, 0.0071, 16.8, 33.7)
    assert pairing(pair, 10, 20) < pairing(pair, 10, 100)


def reference(rule, pre, post, mask=None, reward=None, tau=None):
    """Sum potentiation and depression, one weight and one sample at a time, from the equations."""
    full = rule.triplet() if isinstance(rule, PairRule) else rule
    (steps, batch, inputs), outputs = pre.shape, post.shape[2]
    up, down = np.zeros((outputs, inputs)), np.zeros((outputs, inputs))
    for b, i, j in itertools.product(range(batch), range(inputs), range(outputs)):
        r1 = r2 = o1 = o2 = eligible = 0.0
        for t in range(steps):
            if mask is not None and not mask[t, b]:
                continue
            r1, r2 = r1 * np.exp(-1 / full.tau_plus), r2 * np.exp(-1 / full.tau_x)
            o1, o2 = o1 * np.exp(-1 / full.tau_minus), o2 * np.exp(-1 / full.tau_y)
            gain = cost = 0.0
            if pre[t, b, i]:
                cost = o1 * (full.a2_minus + full.a3_minus * r2)
                r1, r2 = (1.0, 1.0) if full.nearest else (r1 + 1, r2 + 1)
            if post[t, b, j]:
                gain = r1 * (full.a2_plus + full.a3_plus * o2)
                o1, o2 = (1.0, 1.0) if full.nearest else (o1 + 1, o2 + 1)
            if tau is None:
                up[j, i] += gain
                down[j, i] += cost
            else:
                eligible = eligible * np.exp(-1 / tau) + gain - cost
                up[j, i] += reward[t, b] * eligible
    return up, down


@pytest.mark.one_in(2)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rewarded", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_weights_are_those_of_the_reference(name, masked, rewarded, reduction):
    """In steps and over a sequence; padding holds anything."""
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    mask = spikes(T, B, seed=2, rate=0.7).bool() if masked else None
    draw = torch.Generator().manual_seed(3)
    reward = torch.randn(T, B, generator=draw).double() if rewarded else None
    tau = 9.0 if rewarded else None
    stdp = STDP(linear(), RULES[name], reduction=reduction, tau_eligibility=tau)
    others = {"reward": reward, "mask": mask}
    arrays = {name: x if x is None else x.numpy() for name, x in others.items()}
    up, down = reference(RULES[name], pre.numpy(), post.numpy(), **arrays, tau=tau)
    expected = torch.from_numpy(up - down) / (B if reduction == "mean" else 1)
    if mask is not None:
        pre[~mask], post[~mask] = torch.nan, torch.inf
    states = []
    for learn in (in_steps(pre, post, **others), lambda s: s.unroll(pre, post, **others)):
        stdp.zero_states()
        torch.testing.assert_close(moved(stdp, learn), expected, rtol=1e-10, atol=1e-12)
        states.append(tt.get_states(stdp))
    torch.testing.assert_close(*states, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_bounds_are_those_of_the_reference(mu: float, signs: tuple[int, int]) -> None:
    rule = PairRule(0.01 * signs[0], 0.02 * signs[1], 5.0, 8.0)
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    connection = linear(bias=False)
    with torch.no_grad():
        connection.weight.uniform_(-0.4, 1.4)
        connection.weight[0, :2] = torch.tensor([-0.5, 1.5])
    w = connection.weight.detach().clone()
    up, down = (torch.from_numpy(x) for x in reference(rule, pre.numpy(), post.numpy()))
    stdp = STDP(connection, rule, bounds=(-0.5, 1.5), mu=mu, reduction="sum")
    stdp.unroll(pre, post)
    shares = [torch.where(each > 0, 1.5 - w, w + 0.5).div(2) ** mu for each in (up, -down)]
    expected = (w + up * shares[0] - down * shares[1]).clamp(-0.5, 1.5)
    for _ in range(2):  # after the first, nothing is left
        stdp.update_()
        found = connection.weight.detach()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["pair", "triplet"])
@pytest.mark.parametrize("tau", [None, 9.0])
def test_convolution_is_the_linear_layer_of_its_patches(name: str, tau: float | None) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 2, stride=2, padding=1).double()
    pre, post = trains(2, 4, 4, post=(3, 3, 3))
    reward = None if tau is None else torch.linspace(-1, 2, T).double()
    patches = nn.functional.unfold(pre.flatten(0, 1), 2, padding=1, stride=2)  # [T B, 8, places]
    patches = patches.unflatten(0, (T, B)).transpose(2, 3).flatten(1, 2)
    places = post.flatten(3).transpose(2, 3).flatten(1, 2)
    flat, stdp = (
        STDP(each, RULES[name], reduction="sum", tau_eligibility=tau)
        for each in (nn.Linear(8, 3).double(), conv)
    )
    expected = moved(flat, lambda s: s.unroll(patches, places, reward))
    each_sample = None if reward is None else reward[:, None].expand(T, B)
    for learn in (lambda s: s.unroll(pre, post, reward), in_steps(pre, post, reward=each_sample)):
        stdp.zero_states()
        found = moved(stdp, learn).flatten(1)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_sequence_may_be_cut_samples_restarted_and_a_reward_come_later() -> None:
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    reward = torch.linspace(-1, 1, T).double()[:, None].expand(-1, B).clone()
    reward[11:12] = 0
    changes = []
    for by_step in (False, True):
        stdp = STDP(linear(), RULES["triplet"], tau_eligibility=9.0)

        def learn(stdp: STDP, by_step: bool = by_step) -> None:
            for part in (slice(0, 11), slice(11, 12), slice(12, T)):
                given = None if part.start == 11 and not by_step else reward[part]
                if by_step:
                    in_steps(pre[part], post[part], reward=given)(stdp)
                else:
                    stdp.unroll(pre[part], post[part], given)
                if part.stop == 11:
                    stdp.zero_states(where=torch.tensor([True, False, True]))

        changes.append((moved(stdp, learn), tt.get_states(stdp)))
    torch.testing.assert_close(changes[1], changes[0], rtol=1e-10, atol=1e-12)
    number, one = (STDP(linear(), RULES["pair"], tau_eligibility=9.0) for _ in "12")
    expected = moved(one, lambda s: s(pre[0], post[0], torch.full((B,), -2.0)))
    torch.testing.assert_close(moved(number, lambda s: s(pre[0], post[0], -2.0)), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_arithmetic_is_single_at_least(dtype: torch.dtype, tolerance: float) -> None:
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    expected = moved(STDP(linear(), RULES["pair"]), lambda s: s.unroll(pre, post))
    connection = linear().to(dtype)
    before = connection.weight.detach().clone()
    stdp = STDP(connection, RULES["pair"])
    stdp.unroll(pre.to(dtype), post.to(dtype))
    assert all(state.dtype == torch.float32 for state in tt.get_states(stdp).values())
    stdp.update_()
    assert connection.weight.dtype == dtype
    found = (connection.weight - before).double()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_the_connection_is_the_model_s_alone() -> None:
    connection = nn.Linear(INPUTS, OUTPUTS)
    model: Any = nn.ModuleDict({"connection": connection})
    model["stdp"] = STDP(connection, RULES["pair"], tau_eligibility=5.0)
    assert set(model.state_dict()) == {"connection.weight", "connection.bias"}
    assert not list(model["stdp"].parameters())
    copied = copy.deepcopy(model).double()
    assert copied["stdp"].connection is copied["connection"] is not connection
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    reward = torch.ones(T - 9).double()
    changes = []
    for each, dtype in ((model, torch.float32), (copied, torch.float64)):
        each["stdp"].unroll(pre[:9].to(dtype), post[:9].to(dtype))
        each.double()  # traces and changes go along
        changes.append(moved(each["stdp"], lambda s: s.unroll(pre[9:], post[9:], reward)))
    torch.testing.assert_close(*changes, rtol=1e-5, atol=1e-6)
    assert changes[1].any()


@pytest.mark.parametrize("tau", [None, 5.0])
def test_an_empty_batch_changes_nothing(tau: float | None) -> None:
    pre, post = trains(INPUTS, post=(OUTPUTS,))
    stdp = STDP(linear(), RULES["triplet"], bounds=(-1, 1), mu=1.0, tau_eligibility=tau)
    stdp.unroll(pre, post)
    stdp.update_()
    states = tt.get_states(stdp)
    assert not moved(stdp, lambda s: s.unroll(pre[:, :0], post[:, :0])).any()
    assert not moved(stdp, lambda s: s(pre[0, :0], post[0, :0], mask=pre[0, :0, 0] > 0)).any()
    torch.testing.assert_close(tt.get_states(stdp), states, rtol=0, atol=0)


LINEAR, PRE, POST = nn.Linear(2, 2), torch.ones(5, 3, 4), torch.ones(5, 3, 2)
NAN = torch.tensor([0.0, 1.0, torch.nan])


def rewarded() -> STDP:
    return STDP(nn.Linear(4, 2), tau_eligibility=5.0)


def pruned(layer: Any) -> Any:
    return prune.random_unstructured(layer, "weight", 0.5)


@refusals(
    r"""
    STDP(nn.ReLU()) -> TypeError: connection must be an nn\.Linear, .* got ReLU
    STDP(nn.Conv2d(2, 2, 1, groups=2)) -> TypeError: with groups=1 and
    STDP(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))) -> ValueError: is parametrized
    STDP(LINEAR, rule="pair") -> TypeError: rule must be a PairRule or a TripletRule
    STDP(LINEAR, reduction="max") -> ValueError: reduction must be 'mean' or 'sum'
    STDP(LINEAR, bounds=(1, 0)) -> ValueError: bounds must be \(lowest, highest\)
    STDP(LINEAR, bounds=(0, torch.inf), mu=1.0) -> ValueError: soft, and \(0\.0, inf\) are not
    STDP(LINEAR, bounds=(0, "1")) -> TypeError: bounds must be .lowest, highest., got
    STDP(LINEAR, mu=1.0) -> ValueError: makes bounds soft, and there are none
    STDP(LINEAR, mu=-1.0, bounds=(0, 1)) -> ValueError: mu must be finite and not
    STDP(LINEAR, tau_eligibility=0) -> ValueError: tau_eligibility must be above 0
    PairRule(tau_plus=0) -> ValueError: tau_plus must be above 0, in steps, got 0
    PairRule(tau_minus="20") -> TypeError: tau_minus must be a number
    PairRule(tau_plus=torch.nan) -> ValueError: tau_plus must be finite, got nan
    PairRule(nearest=1) -> TypeError: nearest must be True or False
    PairRule(a_plus=torch.nan) -> ValueError: a_plus must be finite, got nan
    STDP(pruned(nn.Linear(2, 2))) -> ValueError: its weight follows from other values
    STDP(nn.utils.spectral_norm(nn.Linear(2, 2))) -> ValueError: its weight follows from other val
    rewarded()(PRE[0].numpy(), POST[0]) -> TypeError: must be a tensor|expects a tensor|takes a ten
    rewarded()(PRE[0], POST[0], torch.ones(2)) -> ValueError: a value for each step
    rewarded()(PRE[0], POST[0], torch.nan) -> ValueError: reward must be finite, got nan
    rewarded()(PRE[0], POST[0], NAN) -> ValueError: reward must be finite
    rewarded()(PRE[0], POST[0], "1") -> TypeError: reward must be a number
    rewarded()(PRE[0], POST[0], mask=PRE[0]) -> TypeError: booleans \[B\] in a step
    rewarded()(PRE[0], POST[0], mask=NAN[:2] == 1) -> ValueError: mask has 2 samples, pre has 3
    rewarded().unroll(PRE, POST, reward=1.0) -> TypeError: reward must be a tensor over time, got
    """
)
def test_wrong_arguments(call: str, error: str) -> None:
    check(call, error, globals())


@pytest.mark.parametrize("options", [{"stride": 2, "padding": (0, 2)}, {"dilation": (1, 2)}])
def test_output_of_a_convolution_may_not_be_transposed(options: Any) -> None:
    conv, pre = nn.Conv2d(1, 2, 3, **options), torch.ones(2, 1, 7, 10)
    stdp, post = STDP(conv), conv(pre).detach()
    with pytest.raises(ValueError, match=r"have the places .* for an input of \[1, 7, 10"):
        stdp(pre, post.mT)
    assert tt.get_states(stdp) == {}
    stdp(pre, post)


@refusals(
    r"""
    5, POST -> TypeError: pre must be a tensor, got int
    PRE, POST[:4] -> ValueError: of one length and batch, got steps of
    PRE[:, 0], POST[:, 0] -> ValueError: must be \[B, inputs\] in a step
    PRE, PRE -> ValueError: has 2 neurons, one step of the input
    PRE, POST, reward=torch.ones(5) -> ValueError: needs an eligibility trace
    PRE, POST, mask=torch.ones(5, 3) -> TypeError: mask must be a tensor of booleans
    PRE, POST, mask=torch.zeros(5, 3).bool() -> ValueError: sequence 0 of the batch has no re
    PRE[:, :2], POST[:, :2] -> ValueError: holds the state trace of shape
    """
)
def test_spikes_that_do_not_fit_change_nothing(call: str, error: str) -> None:
    stdp, other = (STDP(nn.Linear(4, 2), TripletRule()) for _ in range(2))
    other.connection.load_state_dict(stdp.connection.state_dict())
    for each in (stdp, other):
        each.unroll(PRE, POST)
    check(f"stdp.unroll({call})", error, {**globals(), "stdp": stdp})
    torch.testing.assert_close(tt.get_states(stdp), tt.get_states(other), rtol=0, atol=0)
    stdp.update_()
    other.update_()
    assert torch.equal(stdp.connection.weight, other.connection.weight)


def test_spikes_are_not_looked_at_inside_vmap() -> None:
    stdp = STDP(nn.Linear(4, 2))

    def summed(pre: Tensor, post: Tensor) -> Tensor:
        stdp(pre, post)
        stdp.zero_states()
        return pre.sum()

    pre, post = torch.ones(3, 1, 4), torch.ones(3, 1, 2)
    assert torch.func.vmap(summed)(pre, post).tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize("name", ["pre", "post"])
def test_spikes_of_no_numbers_are_refused_but_in_padding(name: str) -> None:
    stdp, given = rewarded(), {"pre": PRE[0].clone(), "post": POST[0].clone()}
    given[name][0, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"^{name} has NaN or infinite values, which would"):
        stdp(**given)
    assert tt.get_states(stdp) == {}
    stdp(**given, mask=torch.tensor([False, True, True]))
