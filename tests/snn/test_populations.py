"""``Recurrent`` around several populations, and blocks: on every road the loop of a user."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import LAYERS, NEURONS, layer, module, sequence, stepped, weighted_sum
from tests.networks import Smooth
from tests.refusals import check, refusals, unchanged
from tests.unrolling.models import gradcheck
from tracetorch import snn

T, B = 6, 4


class ExcitatoryInhibitory(snn.TTModule):
    """Two populations of other types, whose outputs are fed back together; drive is slow."""

    drive: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.e, self.i = layer("LIF", 4), layer("SRLIF", 2)
        self.memory("drive", 6)

    def forward(self, x: Tensor) -> Tensor:
        self.drive = 0.5 * self.drive + x
        return torch.cat([self.e(self.drive[..., :4]), self.i(self.drive[..., 4:])], -1)


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), layer("SLIF", 5), nn.Linear(5, 4), layer("BSRLIF", 4))


def images() -> nn.Sequential:
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    return nn.Sequential(conv, layer("LIF", 3, dim=-3), nn.BatchNorm2d(3))


def nested() -> nn.Module:
    inner = snn.Recurrent(layer("LIF", 5), nn.Linear(5, 5))
    return nn.Sequential(nn.Linear(6, 5), inner, snn.DelayedLinear(5, 4, max_delay=2), inner_of(4))


def side_by_side() -> nn.Module:
    kinds = {"e": layer("LIF", 3), "i": layer("ALIF", 2), "r": layer("RefractoryLIF", 4)}
    return snn.Populations(**kinds)


def edges() -> nn.Module:
    places = torch.randint(9, (2, 60), generator=torch.Generator().manual_seed(1))
    signs = torch.where(torch.arange(9) < 6, 1, -1)
    return snn.SparseLinear(9, 9, places, delay=torch.arange(60) % 3, signs=signs)


def inner_of(size: int) -> nn.Module:
    return snn.Recurrent(layer("LIF", size), snn.DelayedLinear(size, size, max_delay=2))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Any, Any]] = {
    "chain": (chain, lambda: nn.Linear(4, 6), None, (6,)),
    "two types": (ExcitatoryInhibitory, lambda: nn.Linear(6, 6), 6, (6,)),
    "delays": (ExcitatoryInhibitory, lambda: snn.DelayedLinear(6, 6, max_delay=3), 6, (6,)),
    "images": (images, lambda: nn.ConvTranspose2d(3, 2, 2, stride=2), (3, 3, 3), (2, 6, 6)),
    "nested": (nested, lambda: nn.Linear(4, 6), None, (6,)),
    "side by side": (side_by_side, edges, 9, (9,)),
}
ROADS: dict[str, dict[str, Any]] = {
    "by layer": {},
    "by step": {"by": "step"},
    "segments": {"segment": 4},
    "segments by step": {"segment": 1, "by": "step"},
    "recorded": {"record": ["*"]},
    "checked": {"check": True},
}
RESET = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.3


def made(name: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    neuron, connection, shape, sizes = MODELS[name]
    model = snn.Recurrent(neuron(), connection(), shape).double()
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.weight.data.mul_(3)  # so that all populations fire
    return model, 3 * sequence(T, B, *sizes)


def by_hand(model: Any, x: Tensor, reset: Tensor | None) -> Tensor:
    """Run the loop that a user would write, with the output in a variable."""
    previous, outputs = x.new_zeros(model._state_shape(x.shape[1:])), []
    for t, step in enumerate(x.unbind(0)):
        if reset is not None:
            tt.zero_states(model, where=reset[t])
            mask = reset[t].reshape(-1, *[1] * (previous.ndim - 1))
            previous = torch.where(mask, 0.0, previous)
        previous = model.neuron(step + model.connection(previous))
        outputs.append(previous)
    return torch.stack(outputs)


def results(model: nn.Module, x: Tensor, run: Any) -> tuple[Any, ...]:
    """Return outputs, gradients by name, and states, from rest; buffers are restored."""
    buffers = copy.deepcopy(dict(model.named_buffers()))
    tt.zero_states(model)
    named = {"x": x.clone().requires_grad_(), **dict(model.named_parameters())}
    y = run(named["x"])
    found = torch.autograd.grad(weighted_sum(y), list(named.values()), allow_unused=True)
    for name, buffer in model.named_buffers():
        buffer.data.copy_(buffers[name])
    grads = {n: g for n, g in zip(named, found, strict=True) if g is not None}
    return y.detach(), grads, tt.get_states(model)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("reset", [None, RESET])
@pytest.mark.parametrize("name", MODELS)
def test_every_road_is_the_loop_with_a_variable(name: str, reset: Tensor | None) -> None:
    model, x = made(name)
    expected, grads, states = results(model, x, lambda x: by_hand(model, x, reset))
    assert expected.count_nonzero() > 10
    assert "connection.weight" in grads or "connection.linear.weight" in grads
    for options in ROADS.values():

        def run(x: Tensor, options: Any = options) -> Any:
            y = tt.unroll(model, x, reset=reset, **options)
            return y[0] if "record" in options else y

        found, found_grads, found_states = results(model, x, run)
        assert torch.equal(found, expected)
        torch.testing.assert_close(found_grads, grads)
        assert torch.equal(found_states.pop("prev_output"), expected[-1])
        torch.testing.assert_close(found_states, states, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYERS, *NEURONS])
def test_every_neuron_in_a_population(name: str) -> None:
    torch.manual_seed(0)
    populations = nn.Sequential(nn.Linear(3, 4), layer(name, 4), nn.Linear(4, 5), layer(name, 5))
    model = snn.Recurrent(populations, nn.Linear(5, 3)).double()
    x = NEURONS.get(name, 1.0) * 3 * sequence(T, B, 3)
    expected = results(model, x, lambda x: by_hand(model, x, RESET))[:2]
    ways: tuple[Any, ...] = {}, {"by": "step"}, {"segment": 2}
    for options in ways:
        run = partial(tt.unroll, model, reset=RESET, **options)
        torch.testing.assert_close(results(model, x, run)[:2], expected)


@pytest.mark.parametrize("reset", [None, RESET[:4, :2]])
def test_gradients_match_finite_differences(reset: Tensor | None) -> None:
    neuron = nn.Sequential(nn.Linear(3, 2), Smooth(2), nn.Linear(2, 3), Smooth(3))
    gradcheck(snn.Recurrent(neuron, nn.Linear(3, 3)).double(), sequence(4, 2, 3), reset=reset)


@pytest.mark.slow
def test_calibration_holds_its_target_inside_a_loop() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(20, 64), snn.LIF(64), nn.Linear(64, 64), snn.LIF(64))
    net = nn.Sequential(snn.Recurrent(inner, nn.Linear(64, 20)))
    found = tt.init.calibrate_(net, (torch.rand(100, 16, 20) < 0.3).float())
    assert all(abs(each.deviation - 0.5) < 0.05 for each in found.values())


def test_a_failed_step_changes_nothing() -> None:
    model, x = made("two types")
    model(x[0])
    model.neuron.register_forward_hook(lambda *_: torch.zeros(4, 5))
    with unchanged(model), pytest.raises(ValueError, match=r"shape \[4, 6\].*got \[4, 5\]"):
        model(x[1])


R, ones = snn.Recurrent, torch.ones


@refusals(r"""
    R(chain(), nn.Linear(4, 5))(ones(2, 6)) -> ValueError: gives the input's shape \[2, 6\], got \[2
    R(images()[:2], nn.Conv2d(3, 2, 1))(ones(2, 2, 6, 6)) -> ValueError: of shape \[2, 3, 6, 6\]
    R(chain(), nn.Linear(4, 6))(ones(())) -> ValueError: takes a batch
    tt.nir.save(net(), "none.nir", x[0, :1]) -> ValueError: 0 \(Recurrent\) feeds an output back
    tt.online(net())(x[0]) -> ValueError: the outputs of the step before are constants
    tt.quantize.prepare(nn.Sequential(nn.Linear(6, 6), *net()), x) -> ValueError: no integer form
""")
def test_refused(call: str, error: str) -> None:
    model, x = made("chain")
    names = {**globals(), "net": lambda: nn.Sequential(model).float(), "x": x.float()}
    check(call, error, names)


def spikes(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) < 0.5).double()


@pytest.mark.parametrize(
    ("combine", "expected", "first"),
    [("add", [2, 1, 1, 0], 2), ("and", [1, 0, 0, 0], 1), ("iand", [0, 0, 1, 0], 0)],
)
def test_combinations(combine: Any, expected: list[float], first: float) -> None:
    fixed = module(lambda s, x: torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(len(x), 4))
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert snn.SEWBlock(fixed, combine)(x).tolist() == [expected]
    y = snn.SEWBlock(fixed, combine, fixed)(torch.ones(1, 2))
    assert y.tolist() == [[first, first, 0, 0]]


def network(combine: Any) -> Any:
    torch.manual_seed(0)

    def body(into: int, stride: int, kernel: int = 3) -> nn.Sequential:
        conv = nn.Conv2d(into, 4, kernel, stride, kernel // 2)
        return nn.Sequential(conv, nn.BatchNorm2d(4), snn.LIF(4, dim=-3))

    shortcut = body(4, 2, kernel=1)
    return nn.Sequential(
        body(2, 1),
        snn.SEWBlock(body(4, 1), combine),
        snn.SEWBlock(nn.Sequential(body(4, 2)), combine, shortcut),
        *(nn.Flatten(), nn.Linear(16, 3), snn.Readout(3)),
    ).double()


@pytest.mark.parametrize("combine", ["add", "and", "iand"])
@pytest.mark.parametrize("training", [False, True])
def test_blocks_run_by_layer_and_by_step(combine: Any, training: bool) -> None:
    net, x = network(combine).train(training), spikes(5, 3, 2, 4, 4)
    other = copy.deepcopy(net)
    y = tt.unroll(net, x)
    weighted_sum(y).backward()
    if training:  # a batch norm sees all steps by layer
        found = set(tt.unroll(net[:3], x, from_rest=True).unique().tolist())
        assert found == {0.0, 1.0, 2.0} if combine == "add" else found <= {0.0, 1.0}
        net = copy.deepcopy(net).eval()
        assert torch.equal(tt.unroll(net, x, from_rest=True, check=True).isfinite(), y.isfinite())
        return
    stacked = stepped(other, x)
    weighted_sum(stacked).backward()
    torch.testing.assert_close(stacked, y)
    torch.testing.assert_close(*([p.grad for p in each.parameters()] for each in (net, other)))
    net[1].zero_states()
    assert net[1].body[2].mem is None
    assert net[2].body[0][2].mem is not None


def test_nir_adds_and_refuses_products() -> None:
    body = nn.Sequential(nn.Linear(4, 4), snn.LIF(4)).double()
    net, x = nn.Sequential(snn.SEWBlock(body)), spikes(5, 2, 4)
    read = tt.nir.from_nir(tt.nir.to_nir(net, (4,), dt=1e-4), dt=1e-4)
    with torch.no_grad():
        expected = tt.unroll(net, x)
        assert torch.equal(stepped(read, x), expected)
    with pytest.raises(ValueError, match=r"mul\(\) in the model's forward has no counterpart"):
        tt.nir.to_nir(snn.SEWBlock(body, "and"), (4,), dt=1e-4)
