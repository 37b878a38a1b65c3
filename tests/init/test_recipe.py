"""Test ``tt.recipe`` and ``spread_``: what is spread and what is left, twice, and refusals."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import tracetorch as tt
from tests.cases import PUBLISHED, Net, few, module_and_step, through_save
from tests.networks import Leaky
from tests.refusals import check, refusals, unchanged
from tracetorch import snn
from tracetorch.init import calibrate_, impulse_response, spread_
from tracetorch.init.response import to_first_spike

T, B, F, N = 12, 16, 6, 10
x = torch.rand(T, B, F, generator=torch.Generator().manual_seed(0))
images = torch.rand(T, B, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Own(snn.Neuron):
    """A neuron whose decay has no argument of its name."""

    states = ("mem",)

    def __init__(self, num_neurons: int, tau: float = 10.0) -> None:
        super().__init__(num_neurons)
        self.decay("beta", float(torch.tensor(-1 / tau).exp()))
        self.threshold("base", 1.0)

    step = staticmethod(Leaky.step)


class Wide(Own):
    """Its constructor wants more than a number of neurons."""

    def __init__(self, num_neurons: int, width: int) -> None:
        super().__init__(num_neurons)
        self.width = width


def assigned() -> nn.Module:
    layer: Any = snn.LIF(N)
    layer.beta = 0.8
    return layer


def learned() -> nn.Module:
    layer = snn.LIF(N)
    with torch.no_grad():
        layer.raw_beta[3] += 1e-6
    return layer


def network(neuron: nn.Module, norm: bool = False, width: int = N) -> Any:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(F, width), *norms, neuron, nn.Linear(width, 3), snn.Readout(3))


def image_network() -> Any:
    return nn.Sequential(
        nn.Conv2d(2, N, 3), snn.LIF(N, dim=-3), nn.Flatten(), nn.Linear(36 * N, 3), snn.Readout(3)
    )


@pytest.fixture(autouse=True)
def _short_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no layer here does a response end after so many steps, and before all that are allowed."""
    monkeypatch.setattr("tracetorch.init.response._MOST_STEPS", 2500)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


SPREAD: dict[str, Callable[[], nn.Module]] = {
    "LIF": lambda: snn.LIF(N),
    "the default, given": lambda: snn.LIF(N, beta=0.9),
    "an integrator": lambda: snn.LeakyIntegrator(N, pos_threshold_setup={}),
    "own neuron": lambda: Own(N),
    "a setup without a value": lambda: tt.neurons.SEAdLIF(N, beta={"learnable": True}),
    "in double precision": lambda: snn.LIF(N).double().float().double(),
    "in a loop": lambda: snn.Recurrent(snn.SLIF(N), nn.Linear(N, N)),
    "every neuron of its own": lambda: Net(lambda m, x: m.a(x), a=tt.neurons.AdEx(N)),
}


def parametrized() -> nn.Module:
    return parametrize.register_parametrization(snn.LIF(N), "raw_beta", nn.Identity())


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "given": (lambda: snn.LIF(N, beta=0.5), "given, or learned"),
    "given as a tensor": (lambda: snn.LIF(N, beta=torch.full((N,), 0.9)), "given"),
    "assigned": (assigned, "given, or learned"),
    "given by a setup": (
        lambda: snn.LeakyIntegrator(N, beta_setup={"value": 0.5}, pos_threshold_setup={}),
        "given, or learned",
    ),
    "given by another name": (lambda: Own(N, tau=20.0), "given, or learned"),
    "learned": (learned, "given, or learned"),
    "one for all": (lambda: snn.LIF(N, beta_rank=0), "one for the layer; beta_rank=1 gives"),
    "parametrized": (parametrized, "parametrized"),
    "fixed": (lambda: snn.LIF(N, learn_beta=False), "fixed"),
    "fixed by a setup": (lambda: tt.neurons.SEAdLIF(N, beta={"learnable": False}), "fixed"),
    "frozen": (lambda: snn.LIF(N).requires_grad_(False), "fixed"),
    "one neuron": (lambda: snn.LIF(1), "one neuron"),
    "no membrane decay": (lambda: tt.neurons.BRF(N), "no decay beta"),
    "no spikes": (lambda: snn.SReadout(N), "does not spike"),
    "more arguments": (lambda: Wide(N, 3), "not known whether it was given"),
}


@pytest.mark.parametrize("name", SPREAD)
def test_defaults_are_spread_over_the_steps_once(name: str) -> None:
    model = nn.Sequential(nn.Linear(F, N), SPREAD[name]())
    layer = next(m for m in model.modules() if isinstance(m, snn.Neuron))
    (found,) = spread_(model, T).values()
    halflives = tt.functional.decay_to_halflife(layer.beta.detach())
    wanted = torch.logspace(0, torch.tensor(float(T)).log2().item(), N, base=2)
    torch.testing.assert_close(halflives.sort().values.float(), wanted, rtol=1e-4, atol=0)
    assert found == pytest.approx((1, T))
    before = values(model)
    assert spread_(model, 2 * T) == {}
    assert all(torch.equal(value, before[key]) for key, value in values(model).items())


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_and_why(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    made, reason = LEFT[name]
    layer: Any = made()
    model = network(layer, width=layer.num_neurons)
    before = {key: value for key, value in values(model).items() if "beta" in key}
    assert spread_(model, T) == {}
    tt.recipe(model, x, 10)
    after = values(model)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("1 ")]
    assert f"left: {reason}" in line


def test_layers_draw_their_order_one_after_the_other_from_the_generator() -> None:
    models: list[Any] = [
        nn.Sequential(nn.Linear(F, N), snn.LIF(N), nn.Linear(N, N), snn.LIF(N)) for _ in range(3)
    ]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        assert list(spread_(model, T, generator=torch.Generator().manual_seed(seed))) == ["1", "3"]
    one, other, third = ([model[at].beta for at in (1, 3)] for model in models)
    assert all(map(torch.equal, one, other))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], third[0])


def test_a_shared_decay_and_channels_and_files(tmp_path: Any) -> None:
    model: Any = nn.Sequential(nn.Linear(F, N), snn.LIF(N), nn.Linear(N, N), snn.LIF(N))
    model[3].raw_beta = model[1].raw_beta
    assert list(spread_(model, T)) == ["1"]
    conv = image_network()
    assert list(spread_(conv, T)) == ["1"]
    assert conv[1].beta.unique().numel() == N
    tt.save(conv, tmp_path / "file.safetensors")
    other = image_network()
    tt.load(tmp_path / "file.safetensors", other)
    assert torch.equal(other[1].beta, conv[1].beta)
    assert spread_(other, T) == {}


TRAINED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "plain": (lambda: network(snn.LIF(N)), x, {}),
    "norm": (lambda: network(snn.LIF(N), norm=True), x, {}),
    "loop": (lambda: network(SPREAD["in a loop"]()), x, {}),
    "delays": (
        lambda: nn.Sequential(
            snn.DelayedLinear(F, N, max_delay=3), snn.LIF(N), nn.Linear(N, 3), snn.Readout(3)
        ),
        x,
        {},
    ),
    "convolution": (image_network, images, {}),
    "ragged": (
        lambda: network(snn.LIF(N)),
        x,
        {"mask": torch.arange(T)[:, None] < torch.arange(B) % (T - 4) + 2},
    ),
    "static": (lambda: network(snn.LIF(N)), x[0], {"steps": T}),
    "one step": (lambda: network(snn.LIF(N)), x[:1], {}),
    "adaptive": (lambda: network(tt.neurons.SEAdLIF(N), norm=True), x, {}),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", TRAINED)
def test_a_model_is_prepared_once_and_learns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, batch, options = TRAINED[name]
    torch.manual_seed(0)
    model = build()
    tt.recipe(model, batch, 20, **options)
    first, before = capsys.readouterr().out, values(model)
    optimizer, schedule = tt.recipe(model, batch, 20, **options)
    again = capsys.readouterr().out
    assert all(torch.equal(value, before[key]) for key, value in values(model).items())
    longest = 9 if name == "ragged" else T
    assert (f"1 to {longest} steps, spread" in first) is (name != "one step")
    assert "spread" not in again
    lr = 3e-2 if name in ("norm", "adaptive") else 1e-2
    assert f"up to {lr:g}, " in first
    highest = [group["max_lr"] for group in optimizer.param_groups if group["name"] == "neurons"]
    assert highest == [pytest.approx(lr)]
    y = torch.arange(B) % 3
    losses = []
    for _ in range(20):
        out = tt.unroll(model, batch, steps=options.get("steps"), from_rest=True)
        mask = options.get("mask")
        loss = tt.loss.membrane_cross_entropy(out, y, over="mean", mask=mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["plain", "convolution", "ragged", "static"])
@pytest.mark.parametrize("time_dim", [1, -1])
def test_time_may_be_in_another_dimension(
    name: str, time_dim: int, capsys: pytest.CaptureFixture[str]
) -> None:
    build, batch, options = TRAINED[name]
    turned = batch if name == "static" else batch.movedim(0, time_dim)
    other = {n: v.T if n == "mask" else v for n, v in options.items()}
    found, printed = [], []
    for given, named in ((batch, options), (turned, {**other, "time_dim": time_dim})):
        torch.manual_seed(0)
        model = build()
        tt.recipe(model, given, 20, **named)
        found.append(values(model))
        printed.append(capsys.readouterr().out)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert printed[0] == printed[1]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("LIF", 1, 1), ("SRLIF", 1, 1), ("AdLIF", 1, 1), ("EIF", 0.2, 0.5), ("Izhikevich", 0.1, 0.3)],
)
def test_the_distance_is_that_of_the_first_spike(name: str, low: float, high: float) -> None:
    """A pulse a little larger makes the neuron fire, one a little smaller does not."""
    kind = getattr(snn, name, None) or getattr(tt.neurons, name)
    response = impulse_response(kind(2))
    found = to_first_spike(kind(2), response, None)
    share = found.distance / response.distance
    assert low <= float(share.min()) <= float(share.max()) <= high
    largest, at = response.kernel.abs().max(0)
    pulse = found.distance / largest * response.kernel.gather(0, at[None])[0].sign()
    for factor, fires in ((0.97, False), (1.03, True)):
        layer, x = kind(2).double(), torch.zeros(500, 1, 2, dtype=torch.float64)
        tt.unroll(layer, x)  # to rest
        x[0] = factor * pulse
        assert bool(tt.unroll(layer, x).any()) is fires


@pytest.mark.parametrize(
    ("neuron", "line"),
    [
        (tt.neurons.TCLIF(N), "left: no decay beta "),
        (snn.LIF(N, beta=1 - 1e-9), " steps, left: given"),  # 1 in float32, or as good as
    ],
)
def test_a_norm_before_neurons_that_do_not_forget_keeps_its_weight(
    neuron: nn.Module, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network(neuron, norm=True)
    tt.recipe(model, x, 10)
    assert torch.equal(model[1].weight, torch.ones(N))
    said = capsys.readouterr().out
    assert line in said
    assert "batch norms before all that spike" in said
    assert "1.weight as it is: the neurons do not forget" in said


def residual() -> Any:
    """Return neurons behind a stream to which norms add."""
    return Net(
        lambda m, x: m.last(m.second(m.b(m.first(m.a(x))) + m.a(x))),
        a=nn.Sequential(nn.Linear(F, N), nn.BatchNorm1d(N)),
        b=nn.Sequential(nn.Linear(N, N), nn.BatchNorm1d(N)),
        first=snn.LIF(N),
        second=snn.LIF(N),
        last=nn.Linear(N, 3),
    )


def test_a_norm_that_drives_several_layers_keeps_its_weight(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = residual()
    with pytest.raises(ValueError, match=r"'a\.1' drives 'first', 'second': one"):
        calibrate_(model, x)
    tt.recipe(model, x, 10)
    assert torch.equal(model.a[1].weight, torch.ones(N))
    assert torch.equal(model.b[1].weight, torch.ones(N))
    said = capsys.readouterr().out
    assert said.count("as it is: it drives other neurons too") == 2
    assert "batch norms before all that spike" in said
    model = residual()
    model.a[1] = nn.Identity()  # what no norm bounds is refused, as by calibrate_
    with unchanged(model), pytest.raises(ValueError, match=r"'a\.0' drives 'first', 'second'"):
        tt.recipe(model, x, 10)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "name", few(PUBLISHED, "models.SEWResNet", "models.MSResNet", "models.Spikformer")
)
def test_published_networks_are_prepared(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = module_and_step(name)[0].train()
    optimizer, _ = tt.recipe(model, torch.rand(4, 1, 32, 32), 10, steps=4)
    assert "steps up to 0.0" in capsys.readouterr().out
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}


def frozen() -> nn.Module:
    model = network(snn.LIF(N))
    model[0].weight.requires_grad_(False)
    return cast(nn.Module, model)


def before(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, snn.LIF(N))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: network(snn.LIF(N), norm=True), r"1\.weight x 0\.\d+, at 0\.03"),
        (lambda: network(snn.LIF(N), norm=True).eval(), r"1\.weight .*0\.03, in eval\(\): by its"),
        (frozen, r"0\.weight as it is: it is frozen"),
        (
            lambda: before(snn.connect(nn.Linear(F, N), mask=torch.ones(N, F) > 0)),
            r", at 0\.0[1-9]",
        ),
        (lambda: before(snn.DelayedLinear(F, N, max_delay=3)), r"0\.linear\.weight .*at 0\.0[1-9]"),
    ],
)
def test_the_line_says_at_which_rate_the_weight_learns(
    build: Callable[[], nn.Module], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tt.recipe(build(), x, 10)
    assert re.search(said, capsys.readouterr().out)


def test_a_seed_gives_the_same_start_and_another_seed_another() -> None:
    starts = []
    for seed in (1, 1, 2):
        model = network(snn.LIF(N), norm=True)
        torch.manual_seed(seed)
        tt.recipe(model, x, 8)
        starts.append(values(model))
    first, again, other = starts
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["2.raw_beta"], other["2.raw_beta"])


@pytest.mark.parametrize(("norm", "share"), [(True, 1 / 3), (False, 1.0)])
@pytest.mark.parametrize("connection", [nn.Linear, snn.DelayedLinear])
def test_what_is_recurrent_behind_a_norm_learns_at_a_third(
    connection: Any, norm: bool, share: float
) -> None:
    delay = {"max_delay": 3} if connection is snn.DelayedLinear else {}
    model = network(snn.Recurrent(snn.LIF(N), connection(N, N, **delay)), norm=norm)
    optimizer, _ = tt.recipe(model, x, 10, lr=0.02)
    names = {id(p): name for name, p in model.named_parameters()}
    by_hand = tt.param_groups(model, 0.01, lr=0.02, relative=True)
    wanted = {id(p): group["lr"] for group in by_hand for p in group["params"]}
    for group in optimizer.param_groups:
        for p in group["params"]:
            inside = ".connection." in names[id(p)] or ".neuron." in names[id(p)]
            factor = 10.0 if names[id(p)].endswith("raw_delay") else share if inside else 1.0
            assert group["max_lr"] == pytest.approx(factor * wanted[id(p)]), names[id(p)]


# the lag at which the autocorrelation of the signal is a half: arccos(0.5) of a period of 30 steps;
# log(2) / -log(0.9) of an autoregressive one
def _periodic() -> Tensor:
    phases = torch.arange(90.0)[:, None, None] / 30 + torch.rand(1, 40, 1)
    return 5 + (2 * torch.pi * phases).sin()


def _autoregressive() -> Tensor:
    y = torch.zeros(200, 400, 2)
    for t in range(1, 200):
        y[t] = 0.9 * y[t - 1] + torch.randn(400, 2)
    return y[100:]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("time_dim", few([0, 1], 1))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("build", "lag"), [(_periodic, 5), (_autoregressive, 7)])
def test_half_lives_go_to_that_of_the_target(
    build: Any, lag: int, masked: bool, time_dim: int, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    target = build()
    steps, batch = target.shape[:2]
    inputs = torch.rand(steps, batch, F)
    chosen = torch.linspace(0.1, 0.9, 3)
    head = [nn.Linear(N, 3), snn.Readout(3, beta=chosen), nn.Linear(3, 1), snn.Readout(1)]
    loop = snn.Recurrent(snn.LIF(N), nn.Linear(N, N))
    model: Any = nn.Sequential(nn.Linear(F, N), loop, *head, nn.Linear(1, N), snn.LIF(N))
    mask = None
    if masked:
        mask = torch.arange(steps)[:, None] < torch.randint(steps // 2, steps, (batch,))
        target = target.where(mask[..., None], torch.nan)
    laid = [None if each is None else each.movedim(0, time_dim) for each in (inputs, target, mask)]
    tt.recipe(model, laid[0], 10, target=laid[1], mask=laid[2], time_dim=time_dim)
    said = capsys.readouterr().out
    assert f"the target's half-life is {lag} steps" in said
    assert re.search(rf"\n1.neuron +LIF +1 to {lag} steps, spread", said)
    longest = steps if mask is None else int(mask.sum(0).max())
    assert re.search(rf"\n7 +LIF +1 to {longest} steps, spread", said)
    assert re.search(r"\n3 .*left: given", said)
    assert re.search(rf"\n5 +Readout +{lag / 8:.3g} steps, of the target", said)
    torch.testing.assert_close(model[3].beta.detach(), chosen)
    half = tt.functional.halflife_to_decay(lag / 8)
    assert model[5].beta.item() == pytest.approx(float(half), rel=1e-5)
    slowest = tt.functional.halflife_to_decay(float(lag))
    assert model[1].neuron.beta.max().item() == pytest.approx(float(slowest), rel=1e-5)


def test_a_target_that_never_changes_leaves_the_length_of_the_sequence() -> None:
    model = network(snn.Recurrent(snn.LIF(N), nn.Linear(N, N)))
    tt.recipe(model, x, 10, target=torch.ones(T, B, 1))
    longest = tt.functional.halflife_to_decay(float(T))
    assert model[1].neuron.beta.max().item() == pytest.approx(float(longest), rel=1e-5)


def test_delays_learn_ten_times_as_quickly() -> None:
    model = nn.Sequential(snn.DelayedLinear(F, N, max_delay=3), snn.LIF(N))
    optimizer, _ = tt.recipe(model, x, 10)
    rates = {group["name"]: group["max_lr"] for group in optimizer.param_groups}
    assert rates["delays"] == pytest.approx(0.1)
    assert rates["neurons"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("first", "scale"),
    [
        (lambda: nn.Linear(F, N), 1.0),
        (lambda: nn.Linear(512, N), 0.25),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (4, 128)), nn.Conv1d(4, N, 128), nn.Flatten()),
            0.25,
        ),
        (lambda: snn.connect(nn.Linear(512, N), mask=torch.ones(N, 512) > 0), 0.25),
        (lambda: nn.Sequential(nn.Embedding(300, 512), nn.Linear(512, N)), 0.25),
    ],
)
def test_weights_of_many_inputs_learn_more_slowly(first: Any, scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(first(), snn.LIF(N), nn.Linear(N, 3), snn.Readout(3))
    batch = torch.rand(T, B, 512 if scale < 1 else F)
    if isinstance(model[0], nn.Sequential) and isinstance(model[0][0], nn.Embedding):
        batch = (300 * batch[..., 0]).long()
    optimizer, _ = tt.recipe(model, batch, 10)
    by_hand = tt.param_groups(model, 0.01, lr=1e-2, relative=True)
    wanted = {id(p): group["lr"] for group in by_hand for p in group["params"]}
    for group in optimizer.param_groups:
        for p in group["params"]:
            slow = p.ndim > 1 and p[0].numel() > 128 and len(p) == N
            assert group["max_lr"] == pytest.approx(wanted.pop(id(p)) * (scale if slow else 1))
            assert ("inputs" in group["name"]) is slow
    assert not wanted


def slowed(inputs: int, *behind: nn.Module, outputs: int = N) -> bool:
    """Whether weights of so many inputs learn more slowly, before what stands behind them."""
    torch.manual_seed(0)
    first = [nn.Linear(F, inputs), snn.LIF(inputs)] if outputs != N else []
    model = nn.Sequential(*first, nn.Linear(inputs, outputs), *behind)
    optimizer, _ = tt.recipe(model, torch.rand(T, 4, F if first else inputs), 10)
    return any(f"{inputs} inputs" in group["name"] for group in optimizer.param_groups)


def test_wide_weights_keep_their_rate_behind_norms_and_where_nothing_spikes_behind_them() -> None:
    for last in ([], [snn.Readout(3)], [nn.BatchNorm1d(3), snn.Readout(3)]):
        assert not slowed(512, *last, outputs=3), last
    assert slowed(512, snn.LIF(3), outputs=3)
    assert slowed(200, snn.LIF(N))
    assert not slowed(200, nn.BatchNorm1d(N), snn.LIF(N))


def train(model: Any, optimizer: Any, schedule: Any, x: Tensor, steps: int) -> None:
    y = torch.arange(x.shape[1]) % 3
    for _ in range(steps):
        loss = tt.loss.membrane_cross_entropy(tt.unroll(model, x, from_rest=True), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["norm", "delays", "adaptive"])
def test_a_training_goes_on_where_it_was_saved(name: str, tmp_path: Path) -> None:
    def prepared() -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        model = TRAINED[name][0]()
        return model, *tt.recipe(model, x, 8)

    whole = prepared()
    train(*whole, x, 8)
    first = prepared()
    train(*first, x, 4)
    torch.save([part.state_dict() for part in first], tmp_path / "half")
    second = prepared()
    for part, state in zip(second, torch.load(tmp_path / "half", weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, x, 4)
    wanted = values(whole[0])
    assert all(torch.equal(value, wanted[key]) for key, value in values(second[0]).items())


def test_it_is_the_lines_that_it_stands_for() -> None:
    model = network(snn.LIF(N), norm=True)
    by_hand = copy.deepcopy(model)
    torch.manual_seed(1)
    optimizer, schedule = tt.recipe(model, x, 20, lr=0.02)
    torch.manual_seed(1)
    spread_(by_hand, T)
    calibrate_(by_hand, x, target=1.0)
    groups = tt.param_groups(by_hand, weight_decay=0.01, lr=0.02, relative=True)
    wanted = torch.optim.AdamW(groups, fused=True)
    rates = [group["lr"] for group in groups]
    cycle = torch.optim.lr_scheduler.OneCycleLR(wanted, rates, 20)
    after = values(by_hand)
    assert all(torch.equal(value, after[key]) for key, value in values(model).items())
    for one, other in zip(optimizer.param_groups, wanted.param_groups, strict=True):
        assert {k: v for k, v in one.items() if k != "params"} == {
            k: v for k, v in other.items() if k != "params"
        }
    found, expected = schedule.state_dict(), cycle.state_dict()
    assert {k: v for k, v in found.items() if k != "_anneal_func"} == {
        k: v for k, v in expected.items() if k != "_anneal_func"
    }


@refusals(r"""
    tt.recipe(3, x, 10) -> TypeError: expected an nn.Module
    tt.recipe(network(snn.LIF(N)), x, 0) -> ValueError: total_steps must be
    tt.recipe(network(snn.LIF(N)), x, 10, lr=0.0) -> ValueError: lr must be
    tt.recipe(network(snn.LIF(N)), x[0, 0], 10) -> ValueError: x needs time and a batch
    tt.recipe(network(snn.LIF(N)), x, 10, mask=[True]) -> TypeError: mask must be a tensor
    tt.recipe(network(snn.LIF(N)), x, 10, mask=[True], target=x) -> TypeError: mask must be a tensor
    tt.recipe(network(snn.LIF(N)), x, 10, target=x[0, :, 0].long()) -> TypeError: labels give none
    tt.recipe(network(snn.LIF(N)), x, 10, target=x[1:]) -> ValueError: target must have 12 steps
    tt.recipe(network(snn.LIF(N)), x, 10, mask=x[..., 0]) -> TypeError: mask must be a tensor
    tt.recipe(network(snn.LIF(N)), x, 10, mask=x[:, :, 0] > 2) -> ValueError: has no real step
    tt.recipe(network(snn.LIF(N)), x, 10, time_dim=3) -> ValueError: time_dim is 3, but x has shape
    tt.recipe(network(snn.LIF(N)), x, 10, time_dim="T") -> TypeError: time_dim must be an integer
    tt.recipe(network(snn.LIF(N)), x.movedim(0, 1), 10, mask=x[..., 0] > 0, time_dim=1)
        -> ValueError: mask must have the shape \[B, T\] = \[16, 12\], got \[12, 16\]
    spread_(network(snn.LIF(N)), 0) -> ValueError: steps must be
    spread_(network(snn.LIF(N)), 2.5) -> TypeError: steps must be
""")
def test_errors_of_arguments(call: str, error: str) -> None:
    check(call, error, globals())


def pruned() -> nn.Module:
    """Return a layer whose decay is at its default, and computed before every call."""
    return prune.custom_from_mask(snn.LIF(N), "raw_beta", torch.ones(N))


@pytest.mark.parametrize(
    ("second", "error"),
    [
        (lambda: [nn.LayerNorm(N), snn.LIF(N)], "'4' does not reach .* 3 .LayerNorm"),
        (lambda: [tt.neurons.TCLIF(N)], "'3', TCLIF.* does not forget"),
        (lambda: [pruned()], "computes raw_beta before every call"),
    ],
)
def test_a_layer_that_cannot_be_calibrated_is_refused_and_nothing_is_changed(
    second: Callable[[], list[nn.Module]], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(F, N), snn.LIF(N), nn.Linear(N, N), *second())
    with unchanged(model), pytest.raises(ValueError, match=error):
        tt.recipe(model, x, 10)
    assert repr(model[1]) == f"LIF({N})"
    assert not capsys.readouterr().out


def test_neurons_along_the_wrong_dimension_of_an_image_are_told_where_channels_are() -> None:
    images = torch.zeros(T, 4, 1, 5, 8)
    images[:, :, :, 1, 6] = 3 * torch.rand(T, 4, 1)  # one place differs, so rows of neurons do
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), snn.LIF(8))
    error = "'2' does not reach .* the channels of '1' do not: build it with dim=-3"
    with unchanged(model), pytest.raises(ValueError, match=error):
        tt.recipe(model, images, 10)
    for layers in ([snn.LIF(8, dim=-3)], [nn.Flatten(2), nn.Linear(40, N), snn.LIF(N, dim=-1)]):
        tt.recipe(nn.Sequential(model[0], model[1], *layers), images, 10)


def test_what_is_frozen_stays_and_the_rest_is_prepared() -> None:
    model = network(snn.LIF(N), norm=True)
    model[:3].requires_grad_(False).eval()
    before = values(model)
    optimizer, _ = tt.recipe(model, x, 10)
    changed = {
        name for name, value in values(model).items() if not torch.equal(value, before[name])
    }
    assert changed == {"3.weight", "3.bias"}
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    assert held == {id(p) for p in model[3:].parameters()}


def test_few_active_inputs_are_no_reason_to_learn_slowly() -> None:
    dense = torch.rand(T, 4, 200, generator=torch.Generator().manual_seed(0))
    sparse = torch.zeros_like(dense).scatter_(-1, dense.topk(10).indices, 1.0)  # ten at once
    for given, slowed in ((dense, 128 / 200), (sparse, 1.0)):
        model = nn.Sequential(nn.Linear(200, N), snn.LIF(N))
        optimizer, _ = tt.recipe(model, given, 10)
        usual = tt.param_groups(model, weight_decay=0.01, lr=0.01, relative=True)
        (rate,) = [g["max_lr"] for g in optimizer.param_groups if g["params"][0].ndim == 2]
        (whole,) = [g["lr"] for g in usual if g["params"][0].ndim == 2]
        assert rate == pytest.approx(slowed * whole)


def loaded_state(trained: Any) -> Any:
    model, optimizer = trained
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return model, optimizer


COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda trained: trained,
    "copy": lambda trained: (trained[0], copy.copy(trained[1])),
    "deepcopy": copy.deepcopy,
    "pickle": lambda trained: pickle.loads(pickle.dumps(trained)),
    "torch.save": through_save,
    "state_dict": loaded_state,
    "copy of a copy": lambda trained: loaded_state(copy.deepcopy(copy.deepcopy(trained))),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("steps", [0, 1])
def test_a_graph_of_weights_that_were_written_to_raises(steps: int, way: str) -> None:
    model: nn.Module = network(snn.LIF(N))
    optimizer: torch.optim.Optimizer = tt.recipe(model, x, 10)[0]
    for _ in range(steps):
        tt.unroll(model, x, from_rest=True).sum().backward()
        optimizer.step()
    model, optimizer = COPIES[way]((model, optimizer))
    calls: list[str] = []
    optimizer.register_step_post_hook(lambda *_: calls.append("once"))
    earlier = tt.unroll(model, x, from_rest=True).sum()
    tt.unroll(model, x, from_rest=True).sum().backward()
    before = values(model)
    optimizer.step()
    assert calls == ["once"]
    assert not all(torch.equal(value, before[key]) for key, value in values(model).items())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        earlier.backward()


def test_the_optimizer_of_a_wide_layer_is_diagnosed() -> None:
    model = nn.Sequential(nn.Linear(200, N), snn.LIF(N), nn.Linear(N, 3), snn.Readout(3))
    given = torch.rand(T, 4, 200)
    optimizer, _ = tt.recipe(model, given, 10)
    batch = (given, torch.tensor([0, 1, 2, 0]))
    report = tt.diagnose(model, batch, tt.loss.membrane_cross_entropy, optimizer=optimizer)
    assert not [finding for finding in report.findings if "steps" in finding.name]


def test_what_follows_the_voltage_of_izhikevich_stays_bounded() -> None:
    """With ``b`` below 0 each spike can make the next larger, until ``u`` and ``v`` overflow."""
    layer = tt.neurons.Izhikevich(2)
    with torch.no_grad():
        layer.raw_b.fill_(-1.0)
    assert layer.b.tolist() == [0.0, 0.0]
    with torch.device("meta"):
        given = tt.neurons.Izhikevich(2, b=-0.1)
    assert given.constraints["b"] == tt.neurons.Izhikevich(2, b=-0.1).constraints["b"]
    assert given.constraints["b"] != layer.constraints["b"]


@pytest.mark.slow
def test_a_recipe_at_three_times_its_rate_stays_finite() -> None:
    torch.manual_seed(1)
    first, second = nn.BatchNorm1d(16), nn.BatchNorm1d(16)
    before, between = (nn.Linear(6, 16), first), (nn.Linear(16, 16), second)
    neurons = [tt.neurons.Izhikevich(16) for _ in range(2)]
    model = nn.Sequential(
        *before, neurons[0], *between, neurons[1], nn.Linear(16, 3), snn.Readout(3)
    )
    x = torch.rand(50, 16, 6)
    train(model, *tt.recipe(model, x, 100, lr=0.09), x, 100)
    assert all(p.isfinite().all() for p in model.parameters())
