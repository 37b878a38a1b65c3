"""Connections with masks and signs: equal to dense ones that are zero there, by every road."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import tracetorch as tt
from tests.cases import layer, sequence, weighted_sum
from tests.refusals import check, refusals
from tracetorch import snn
from tracetorch.events import observed_products
from tracetorch.snn.connectivity import RAW_WEIGHT, plain_class, write_weight

INPUTS, OUTPUTS = 6, 5
SIGNS = torch.tensor([1, -1, 1, 1, -1, 1])


def mask_like(weight: Tensor, seed: int = 0) -> Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def rules(weight: Tensor, kind: str) -> dict[str, Tensor]:
    """Return the arguments of ``connect`` for a kind of connection."""
    every = {"mask": mask_like(weight), "signs": SIGNS}
    return {name: value for name, value in every.items() if name in kind}


KINDS = ("mask", "signs", "mask and signs")


# how the connection is used: the module that holds it, the connection inside, its inputs
HOLDERS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(INPUTS, OUTPUTS), lambda m: m, ()),
    "conv1d": (lambda: nn.Conv1d(INPUTS, 4, 3), lambda m: m, (7,)),
    "conv2d": (lambda: nn.Conv2d(INPUTS, 4, 3, padding=1), lambda m: m, (5, 4)),
    "groups": (lambda: nn.Conv2d(INPUTS, 4, 2, groups=2), lambda m: m, (5, 4)),
    "delays": (lambda: snn.DelayedLinear(INPUTS, OUTPUTS, max_delay=4), lambda m: m.linear, ()),
    "recurrent": (lambda: snn.Recurrent(layer("SLIF", INPUTS), nn.Linear(INPUTS, INPUTS)),
     lambda m: m.connection, ()),
    "recurrent delays": (lambda: snn.Recurrent(layer("LIF", INPUTS),
     snn.DelayedLinear(INPUTS, INPUTS, max_delay=3, delay=2.0)), lambda m: m.connection.linear, ()),
}  # fmt: skip


def pair(holder: str, kind: str) -> tuple[Any, Any, Any, Any, Tensor]:
    """Return a module with a connection, its dense twin, both connections, and an input."""
    make, inside, shape = HOLDERS[holder]
    torch.manual_seed(0)
    made: Any = make().double()
    connection = inside(made)
    dense = copy.deepcopy(made)
    assert snn.connect(connection, **rules(connection.weight, kind)) is connection
    with torch.no_grad():
        inside(dense).weight.copy_(connection.weight)
    spikes = (sequence(9, 3, INPUTS, *shape) > 0.5).double()
    return made, dense, connection, inside(dense), spikes


def factor(kind: str, connection: Any) -> Tensor:
    """Return the derivative of the weight by its raw value."""
    rule = connection.parametrizations.weight[0]
    found = torch.ones_like(connection.weight)
    if "signs" in kind:
        raw = connection.parametrizations.weight.original
        found = torch.where(raw < 0, -rule.signs, rule.signs) * found
    return found * rule.mask if "mask" in kind else found


@pytest.mark.one_in(3)
@pytest.mark.parametrize("road", ["step", "layer", "events"])
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_a_dense_layer_that_is_zero_there(holder: str, kind: str, road: str) -> None:
    made, dense, connection, twin, x = pair(holder, kind)
    if "mask" in kind:
        masked = ~connection.parametrizations.weight[0].mask
        assert masked.any()
        assert bool((connection.weight[masked] == 0).all())
    results = []
    by: Any = "step" if road == "step" else "layer"
    for module in (made, dense):
        given = x.clone().requires_grad_()
        with tt.events.mode("always" if road == "events" else "never"):
            y = tt.unroll(nn.Sequential(module), given, by=by)
        weighted_sum(y).backward()
        results.append((y, given.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    raw = connection.parametrizations.weight.original.grad
    assert torch.equal(raw, twin.weight.grad * factor(kind, connection))
    others = {n: p.grad for n, p in dense.named_parameters() if p is not twin.weight}
    found = {n: p.grad for n, p in made.named_parameters() if RAW_WEIGHT not in n}
    torch.testing.assert_close(found, others, rtol=0, atol=0)


def test_a_masked_layer_uses_events_and_the_compiled_loop(monkeypatch: Any) -> None:
    made, _, connection, _, x = pair("recurrent", "mask and signs")
    monkeypatch.setattr(snn.Recurrent, "_run_stepped", None)
    tt.unroll(made, x)
    assert plain_class(connection) is nn.Linear
    for holder in ("linear", "conv2d"):
        net, *_, x = pair(holder, "mask and signs")
        with tt.events.mode("always"), observed_products() as products:
            tt.unroll(net, x)
        assert [product.events for _, product in products] == [True]


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.5, weight_decay=0.1, centered=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_stay_zero_and_signs_stay(name: str) -> None:
    torch.manual_seed(0)
    net: Any = nn.Linear(INPUTS, OUTPUTS)
    mask, original = mask_like(net.weight), net.weight
    snn.connect(net, mask=mask, signs=SIGNS)
    assert net.parametrizations.weight.original is original  # as an optimizer made before holds it
    before = net.weight.detach().clone()
    x, goal = torch.randn(20, INPUTS), torch.randn(20, OUTPUTS)
    optimizer: Any = OPTIMIZERS[name](net.parameters())
    losses = []

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = (net(x) - goal).square().mean()
        error.backward()
        losses.append(error.item())
        return error

    for _ in range(30):
        optimizer.step(loss)
        assert not net.weight[~mask].any()
        assert bool((net.weight * SIGNS >= 0).all())
    assert losses[-1] < losses[0]
    assert bool((net.weight != before)[mask].all())


def test_gradient_at_zero_is_alive() -> None:
    net: Any = snn.connect(nn.Linear(3, 2, bias=False), signs=torch.tensor([1, -1, 1]))
    write_weight(net, torch.zeros(2, 3))
    optimizer: Any = torch.optim.SGD(net.parameters(), 0.1)
    (net(torch.ones(1, 3)) * torch.tensor([[-1.0, 1.0]])).sum().backward()
    optimizer.step()
    expected = torch.tensor([[0.1, -0.1, 0.1], [0.1, -0.1, 0.1]])
    assert torch.equal(net.weight.abs(), expected.abs())
    assert bool((net.weight * torch.tensor([1, -1, 1]) > 0).all())


def test_what_is_infinite_or_nan_in_a_masked_place_stays_there() -> None:
    net: Any = snn.connect(
        nn.Linear(3, 2, bias=False), mask=torch.tensor([[True, False, True]] * 2)
    )
    with torch.no_grad():
        net.parametrizations.weight.original[0, 1] = torch.inf
    x = torch.ones(1, 3, requires_grad=True)
    (net(x) * torch.tensor([[torch.nan, 1.0]])).sum().backward()
    grad = net.parametrizations.weight.original.grad
    assert net.weight[0, 1] == 0
    assert grad[:, 1].tolist() == [0, 0]
    assert bool(grad[0, 0].isnan())


def test_assigned_weights_are_checked() -> None:
    mask, signs = torch.tensor([[True, False]]), torch.tensor([-1, 1])
    net: Any = snn.connect(nn.Linear(2, 1), mask=mask, signs=signs)
    net.weight = torch.tensor([[-2.0, 0.0]])
    assert net.parametrizations.weight.original.tolist() == [[-2, 0]]
    for each in (net, copy.deepcopy(net)):
        for wrong in ([[-2.0, 1.0]], [[2.0, 0.0]]):
            with pytest.raises(ValueError, match="mask is false or has another sign"):
                each.weight = torch.tensor(wrong)
        with torch.no_grad():
            each.weight *= 2  # assigned
        assert each.weight.tolist() == [[-4, 0]]
    for refused in (
        lambda: setattr(net, "weight", nn.Parameter(torch.zeros(1, 2))),
        lambda: prune.random_unstructured(net, "weight", 0.5),
    ):
        with pytest.raises((KeyError, TypeError), match="weight"):
            refused()
    assert net.weight.tolist() == [[-4, 0]]
    net.register_parameter("other", nn.Parameter(torch.zeros(1)))
    write_weight(net, torch.tensor([[3.0, 4.0]]))
    assert net.weight.tolist() == [[0, 0]]


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net: Any = nn.Sequential(nn.Linear(INPUTS, 5), snn.LIF(5), nn.Linear(5, 2), snn.Readout(2))
    with torch.no_grad():
        net[0].weight.mul_(4)
    snn.connect(net[0], mask=mask_like(net[0].weight, seed), signs=SIGNS)
    return net


def plain(net: Any) -> Any:
    """Take mask and signs from a network; the weights stay."""
    parametrize.remove_parametrizations(net[0], "weight")
    return net


def test_files_and_removal(tmp_path: Path) -> None:
    net, other, x = network(), network(1), sequence(5, 2, INPUTS, dtype=torch.float32)
    expected = tt.unroll(net, x, from_rest=True)
    rule = "parametrizations.weight.0."
    assert set(net[0].state_dict()) == {"bias", RAW_WEIGHT, f"{rule}mask", f"{rule}signs"}
    tt.save(net, tmp_path / "net.safetensors")
    tt.load(tmp_path / "net.safetensors", other)  # the mask is that of the file then
    assert torch.equal(tt.unroll(other, x, from_rest=True), expected)
    assert net.double()[0].weight.dtype == torch.float64
    weight = net[0].weight.detach().clone()
    assert type(plain(net)[0]) is nn.Linear
    assert torch.equal(net[0].weight, weight)


@pytest.mark.parametrize("holder", ["linear", "conv2d", "delays"])
def test_disconnected_it_is_plain_and_its_copy_is_connected(holder: str) -> None:
    made, _, connection, _, x = pair(holder, "mask and signs")
    raw = connection.parametrizations.weight.original
    with torch.no_grad():
        raw.mul_(-1).add_(0.01)  # as an optimizer may leave them
    copied, expected = copy.deepcopy(made), connection.weight.detach().clone()
    y = tt.unroll(nn.Sequential(made), x, from_rest=True)
    assert snn.disconnect(made) is made
    product = getattr(made, "linear", made)
    assert type(product) in (nn.Linear, nn.Conv2d)
    assert torch.equal(product.weight, expected)
    assert product.weight is raw
    assert [*product._parameters] == ["weight", "bias"]
    for each in (made, copied, pickle.loads(pickle.dumps(made))):
        assert torch.equal(tt.unroll(nn.Sequential(each), x, from_rest=True), y)
    snn.connect(made, mask=expected != 0)


def test_second_derivatives() -> None:
    net: Any = snn.connect(nn.Linear(3, 2).double(), mask=mask_like(torch.empty(2, 3), 3))
    x = torch.randn(4, 3, dtype=torch.float64)
    raw = net.parametrizations.weight.original.detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda w: torch.func.functional_call(net, {RAW_WEIGHT: w}, (x,)).pow(3), raw
    )


@pytest.mark.parametrize("kind", KINDS)
def test_relative_rates_measure_the_connections_that_are_there(kind: str) -> None:
    torch.manual_seed(0)
    net: Any = nn.Linear(200, 300)
    given = {"mask": mask_like(net.weight), "signs": torch.randint(0, 2, (200,)) * 2 - 1}
    snn.connect(net, **{name: value for name, value in given.items() if name in kind})
    with torch.no_grad():
        net.parametrizations.weight.original.mul_(3)
    groups = tt.param_groups(net, 0.01, lr=1e-2, relative=True)
    assert len(groups) == 2  # the weight, and the bias with its ratio
    assert groups[0]["params"][0] is net.parametrizations.weight.original
    assert groups[0]["name"].startswith(RAW_WEIGHT)
    # PyTorch's default for half as many inputs is larger by the root of two
    expected = 3e-2 / (2**0.5 if "mask" in kind else 1)
    assert all(abs(group["lr"] / expected - 1) < 0.03 for group in groups)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("kind", ["mask and signs", "mask", "signs"])
def test_fluctuation_counts_the_connections_that_are_there(kind: str, recurrent: bool) -> None:
    torch.manual_seed(0)
    neuron: Any = snn.LIF(30, beta=0.9)
    if recurrent:
        neuron = snn.Recurrent(neuron, nn.Linear(30, 30))
    net: Any = nn.Sequential(nn.Linear(80, 30), neuron, nn.Linear(30, 5), snn.Readout(5))
    signs = torch.where(torch.arange(80) % 5 < 4, 1, -1)
    mask = snn.in_degree_mask(30, 80, 25, generator=torch.Generator().manual_seed(1))
    snn.connect(net[0], **{k: v for k, v in {"mask": mask, "signs": signs}.items() if k in kind})
    if recurrent:
        snn.connect(neuron.connection, signs=signs[:30])
    tt.init.fluctuation_(net, rate=0.05, target=0.5)
    weight = net[0].weight.detach().double()
    lif = neuron.neuron if recurrent else neuron
    deviation = weight.norm(dim=1) * tt.init.impulse_response(lif).deviation(0.05)
    own = 0.5 * (0.9**0.5 if recurrent else 1.0)
    # it holds for the random spikes of the run, of which each neuron sees a sample
    torch.testing.assert_close(deviation, torch.full_like(deviation, own), rtol=0.15, atol=0)
    assert float(deviation.square().mean().sqrt()) == pytest.approx(own, rel=0.05)
    assert weight.sum(1).abs().max().item() < 1e-5
    if "mask" in kind:
        assert (weight != 0).equal(mask)
    if "signs" in kind:
        assert bool((weight * signs >= 0).all())
    if recurrent:
        return
    # with a mean, the bias makes it
    tt.init.fluctuation_(net, rate=0.05, target=0.5, mean=0.2)
    mean = net[0].bias.detach().double() * tt.init.impulse_response(lif).mean(1.0)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.2), rtol=0.2, atol=0)
    assert float(mean.mean()) == pytest.approx(0.2, rel=0.1)


def test_inputs_of_one_sign_need_a_bias_and_those_without_none() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(80, 30), snn.LIF(30))
    snn.connect(net[0], signs=torch.ones(80))
    tt.init.fluctuation_(net, rate=0.05)
    x = (torch.rand(400, 16, 80) < 0.05).float()
    reached = tt.init.calibrate_(copy.deepcopy(net), x)
    assert abs(reached["1"].mean) < 0.05
    response = tt.init.impulse_response(net[1])
    drive = net[0].weight.sum(1) * 0.05 + net[0].bias
    assert (drive * response.kernel.sum(0)).abs().max().item() < 0.05
    bare: Any = nn.Sequential(nn.Linear(80, 30, bias=False), snn.LIF(30))
    snn.connect(bare[0], signs=-torch.ones(80))
    before = bare[0].weight.clone()
    with pytest.raises(ValueError, match=r"'1' has no bias before it, .* neurons whose inputs"):
        tt.init.fluctuation_(bare)
    assert torch.equal(bare[0].weight, before)
    mask = torch.ones(30, 80, dtype=torch.bool)
    mask[3] = False  # a neuron without any input
    net = nn.Sequential(snn.connect(nn.Linear(80, 30), mask=mask), snn.LIF(30))
    tt.init.fluctuation_(net)
    assert net[0].weight.isfinite().all()
    assert not net[0].weight[3].any()


@pytest.mark.slow
def test_the_bias_before_makes_up_for_a_connection_of_one_sign() -> None:
    torch.manual_seed(0)
    hidden: Any = snn.Recurrent(snn.LIF(100), nn.Linear(100, 100, bias=False))
    signs = torch.where(torch.arange(100) < 80, 1.0, -1.0)
    snn.connect(hidden.connection, mask=snn.in_degree_mask(100, 100, 8), signs=signs)
    net: Any = nn.Sequential(nn.Linear(20, 100), hidden)
    tt.init.fluctuation_(net, rate=0.15)
    excited = ~(hidden.connection.weight < 0).any(1)
    assert 0 < int(excited.sum()) < 50
    assert bool((net[0].bias[excited] < 0).all())
    assert bool(net[0].bias[excited].mean() < net[0].bias[~excited].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_calibrate_scales_what_is_there(kind: str) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(INPUTS, OUTPUTS), snn.LIF(OUTPUTS))
    snn.connect(net[0], **rules(net[0].weight, kind))
    before = net[0].weight.detach().clone()
    x = (torch.rand(50, 16, INPUTS) < 0.2).float()
    reached = tt.init.calibrate_(net, x)
    assert abs(reached["1"].deviation - 0.5) < 0.03
    ratio = net[0].weight / before
    live = before != 0
    rows = [row[there] for row, there in zip(ratio, live, strict=True) if there.any()]
    assert all(torch.allclose(row, row[:1].expand_as(row), rtol=1e-4) for row in rows)
    assert not net[0].weight[~live].any()


@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("conv", [False, True])
def test_stdp_moves_what_is_there_within_its_sign(conv: bool, reward: bool) -> None:
    torch.manual_seed(0)
    made: Any = nn.Conv2d(3, 4, 2, bias=False) if conv else nn.Linear(3, 4, bias=False)
    shape = (3, 4, 4) if conv else (3,)
    dense = copy.deepcopy(made)
    mask, signs = mask_like(made.weight), torch.tensor([1, 1, -1])
    snn.connect(made, mask=mask, signs=signs)
    dense.load_state_dict({"weight": made.weight.detach()})
    options: Any = {"tau_eligibility": 5.0} if reward else {}
    pre = (torch.rand(30, 2, *shape) < 0.4).float()
    post = (torch.rand(30, 2, *made(pre[0]).shape[1:]) < 0.4).float()
    each = torch.randn(30) if reward else None
    rules = [tt.STDP(m, tt.online_learning.PairRule(0.05, 0.06), **options) for m in (made, dense)]
    shaped = signs.reshape(1, 3, *[1] * (made.weight.ndim - 2))
    for _ in range(3):
        for rule in rules:
            rule.unroll(pre, post, each)
            rule.update_()
        with torch.no_grad():  # the dense one is clipped by hand
            clipped = torch.where(dense.weight * shaped < 0, 0.0, dense.weight) * mask
            dense.weight.copy_(clipped)
        assert torch.equal(made.weight, dense.weight)
    assert bool((made.weight == 0)[mask].any()), "no weight has reached its sign's end"


@pytest.mark.parametrize("rule", ["eprop", "ottt"])
def test_online_rules_follow_a_connected_product(rule: Any) -> None:
    made, dense = network().double(), plain(network().double())
    for net in (made, dense):
        learner = tt.online(net, rule=rule)
        for step in sequence(6, 2, INPUTS):
            weighted_sum(learner(step)).backward()
    raw = made[0].parametrizations.weight.original
    assert raw.grad.any()
    expected = dense[0].weight.grad * factor("mask and signs", made[0])
    torch.testing.assert_close(raw.grad, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made[0].bias.grad, dense[0].bias.grad)


GOOD = torch.ones(2, 3, dtype=torch.bool)
L, connect, ones = lambda: nn.Linear(3, 2), snn.connect, torch.ones
norms = nn.utils.parametrizations


@refusals("""
    connect(nn.ReLU(), mask=GOOD) -> TypeError: connect takes an nn.Linear, .* got ReLU
    connect(L()) -> ValueError: needs mask=, signs=, or both
    connect(L(), mask=GOOD.float()) -> TypeError: booleans, got torch.float32. Try mask != 0
    connect(L(), mask=[[1]]) -> TypeError: booleans, got list
    connect(L(), mask=GOOD.T) -> ValueError: shape .2, 3., got .3, 2.
    connect(L(), signs=ones(2)) -> ValueError: one value for each input, .3., got .2.
    connect(L(), signs=torch.tensor([1, 0, -1])) -> ValueError: must be 1 .excitatory. or -1
    connect(L(), signs=[1, 1, 1]) -> TypeError: tensor of 1 and -1, got list
    connect(L().to("meta"), mask=GOOD) -> ValueError: no values yet
    connect(connect(L(), mask=GOOD), mask=GOOD) -> ValueError: parametrized, pruned
    connect(prune.identity(L(), "weight"), mask=GOOD) -> ValueError: parametrized, pruned
    snn.disconnect(snn.LIF(3)) -> ValueError: LIF has no weight with the mask and signs
    tt.init.fluctuation_(nn.Sequential(norms.weight_norm(L()), snn.LIF(2))) -> ValueError: '1', is
    tt.init.fluctuation_(nn.Sequential(norms.spectral_norm(connect(L(), mask=GOOD)), snn.LIF(2)))
        -> ValueError: is parametrized
""")
def test_refused(call: str, error: str) -> None:
    check(call, error, globals())


def test_channels_of_a_convolution_are_masked_and_a_layer_with_delays_is_connected() -> None:
    conv: Any = nn.Conv2d(3, 2, 2)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    snn.connect(conv, mask=mask)
    assert (conv.weight != 0).all((2, 3)).equal(mask)
    assert tt.metrics.connection_sparsity(conv) == pytest.approx(1 / 3)
    mask[:] = False  # a copy was kept
    assert conv.weight.any()
    assert "8 of 24 connections" not in repr(conv)
    assert "16 of 24 connections" in repr(conv)
    name, kept = next(conv.named_buffers())
    shown: list[str] = []

    def called(mask: Tensor, x: Tensor) -> Any:
        return torch.func.functional_call(conv, {name: mask}, (x,))

    with conv.register_forward_hook(lambda module, *_: shown.append(repr(module))):
        torch.func.vmap(called)(torch.stack([kept, ~kept]), torch.rand(2, 1, 3, 4, 4))
    assert "some of 24 connections" in shown[0]  # where nobody can count them
    assert "16 of 24 connections" in repr(conv)
    assert "some of 24 connections" in repr(conv.to("meta"))
    delayed: Any = snn.DelayedLinear(3, 2, max_delay=2)
    assert snn.connect(delayed, mask=GOOD & False) is delayed
    assert not delayed.linear.weight.any()


def exported_pair() -> tuple[Any, Any, Tensor]:
    """Return a network with a connected layer, its dense twin, and spikes as input."""
    x = (sequence(9, 3, INPUTS, dtype=torch.float32) > 0.3).float()
    return network(), plain(network()), x


@pytest.mark.slow
def test_nir_and_c_have_the_weights_that_act(tmp_path: Path) -> None:
    made, dense, x = exported_pair()
    files = []
    for name, net in (("made", made), ("dense", dense)):
        tt.export.c(net, tmp_path / name, x[:, :1])
        files.append((tmp_path / name / "model.c").read_text())
    assert files[0].replace("ParametrizedLinear", "Linear") == files[1]
    pytest.importorskip("nir", reason="needs the extra nir")
    graphs = [tt.nir.to_nir(net, x[0], dt=1e-3) for net in (made, dense)]
    weights = [graph.nodes["0"].weight for graph in graphs]
    assert (weights[0] == weights[1]).all()
    assert (weights[0] == 0).any()
    back: Any = tt.nir.from_nir(graphs[0], dt=1e-3)
    found = tt.unroll(back, x, by="step")
    torch.testing.assert_close(found, tt.unroll(made, x, from_rest=True), rtol=0, atol=1e-9)
