"""Neurons with several inputs: every road gives what a loop over steps gives, gradients too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import PLACES, module, sequence, vary, weighted_sum
from tests.unrolling.models import KEEPING, ROADS, Run
from tracetorch import fuse, snn
from tracetorch.fuse.dispatch.plans import gradient_needs, plan_key


class ThreeFactor(snn.Neuron):
    inputs = ("x", "modulator", "current")
    states = ("mem", "trace")

    def __init__(self, num_neurons: int = 3, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", 0.8)
        self.threshold("base", 0.6)

    @staticmethod
    def step(x, modulator, current, mem, trace, *, beta, base, spike):
        mem = beta * mem + x * modulator + current
        fired = spike(mem - base - trace)
        return fired, mem - fired * base * modulator, 0.9 * trace + 0.1 * current * fired


def made(dim: int = -1) -> ThreeFactor:
    layer = ThreeFactor(dim=dim)
    vary(layer)
    return layer


def inputs_of(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return an input, one value per sample as a modulator, and a current per neuron."""
    x = sequence(7, *shape, dtype=dtype)
    generator = torch.Generator().manual_seed(4)
    modulator = torch.rand(7, shape[0], *[1] * (len(shape) - 1), generator=generator, dtype=dtype)
    current = torch.rand(7, *shape, generator=generator, dtype=dtype)
    return x, modulator + 0.5, 0.3 * current


def stepped(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([layer(*step) for step in zip(*inputs, strict=True)])


def results(layer: Any, inputs: tuple[Tensor, ...], run: Run) -> dict[str, Tensor]:
    """Return outputs, final states, and every gradient by name."""
    layer.zero_states()
    layer.zero_grad()
    leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
    y = run(layer, leaves)
    ends = tt.get_states(layer, detach=False)
    (weighted_sum(y) + sum(weighted_sum(end) for end in ends.values())).backward()
    grads = {f"input {n}": leaf.grad for n, leaf in enumerate(leaves)}
    grads |= {name: p.grad for name, p in layer.named_parameters()}
    return {"output": y.detach(), **{n: e.detach() for n, e in ends.items()}, **grads}


@pytest.mark.parametrize(("dim", "shape"), PLACES)
@pytest.mark.parametrize("road", KEEPING)
def test_every_road_agrees_with_steps(road: str, dim: int, shape: tuple[int, ...]) -> None:
    layer, inputs = made(dim), inputs_of(shape, torch.float32)
    expected = results(layer, inputs, stepped)
    found = results(layer, inputs, ROADS[road])
    assert expected["output"].any()
    for name in ("output", "mem", "trace"):
        assert torch.equal(found[name], expected[name]), name
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learned", [0, 1, 2])
@pytest.mark.parametrize("name", ["cpu", "eager"])
def test_one_input_alone_has_a_gradient(name: str, learned: int) -> None:
    layer, inputs = made(), inputs_of((2, 3), torch.float64)
    layer.double().requires_grad_(False)

    def gradient(run: Run) -> Any:
        layer.zero_states()
        leaves = [x.clone().requires_grad_(n == learned) for n, x in enumerate(inputs)]
        run(layer, tuple(leaves)).sum().backward()
        assert all(leaf.grad is None for n, leaf in enumerate(leaves) if n != learned)
        return leaves[learned].grad

    torch.testing.assert_close(gradient(ROADS[name]), gradient(stepped), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cpu", "eager"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    class Smooth(snn.Neuron):
        inputs = ("x", "gain")
        states = ("mem",)

        @staticmethod
        def step(x: Tensor, gain: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
            mem = 0.8 * mem + torch.tanh(gain * x)
            return mem * gain, mem

    def run(x: Tensor, gain: Tensor) -> Tensor:
        with fuse.backend(name):
            return tt.unroll(Smooth(3), (x, gain), from_rest=True)

    x, gain = (sequence(4, 2, 3, dtype=torch.float64, seed=s).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(run, (x, gain))
    if name == "eager":
        assert torch.autograd.gradgradcheck(run, (x, gain))


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "other order": lambda m: m.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded over time": lambda m: m[:1].expand_as(m),
    "expanded over samples": lambda m: m[:, :1].expand_as(m),
    "gaps": lambda m: torch.stack([m, m], -1)[..., 0],
    "flipped": lambda m: m.flip(0),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("x_last", [False, True])
def test_memory_in_another_order(order: str, x_last: bool) -> None:
    layer = made(dim=-3)
    x, modulator, current = (
        sequence(6, 2, 3, 2, 2, dtype=torch.float32, seed=s) for s in (1, 2, 3)
    )
    if x_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    further = (ORDERS[order](modulator), current)
    expected = stepped(layer, (x, *further))
    layer.zero_states()
    with fuse.backend("cpu"):
        y, _ = layer.forward_sequence(x, further=further)
    assert torch.equal(y, expected)
    assert y.any()


def test_an_input_may_broadcast_and_be_the_same_at_all_steps() -> None:
    torch.manual_seed(0)
    net = module(
        lambda s, x: s.neuron(s.drive(x), s.gain(x).sigmoid(), s.current),
        gain=nn.Linear(5, 1),
        drive=nn.Linear(5, 3),
        neuron=made(),
        current=nn.Parameter(torch.tensor([0.1, 0.2, 0.3])),
    )
    x = sequence(6, 2, 5, dtype=torch.float32)
    expected = stepped(net, (x,))
    assert expected.any()
    parameters = dict(net.named_parameters())
    grads = torch.autograd.grad(expected.sum(), list(parameters.values()))
    for by in ("layer", "step"):
        y = tt.unroll(net, x, by=by, from_rest=True)
        assert torch.equal(y, expected)
        found = torch.autograd.grad(y.sum(), list(parameters.values()))
        torch.testing.assert_close(found, grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by", ["layer", "step"])
def test_an_input_is_what_a_module_of_its_name_computes(by: Any) -> None:
    class Gated(ThreeFactor):
        def __init__(self) -> None:
            super().__init__()
            self.modulator = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Softplus())

    layer, (x, _, current) = Gated(), inputs_of((2, 3), torch.float32)
    expected = stepped(ThreeFactor(), (x, layer.modulator(x), current))
    y = tt.unroll(layer, (x, current), by=by)
    torch.testing.assert_close(y, expected)


# as for one input, see tests/fuse/test_sequence.py
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("learned", [(0, 1, 2), (1,)])
def test_operators_pass_opcheck(learned: tuple[int, ...]) -> None:
    layer = made()
    further = inputs_of((2, 3), torch.float32)
    inputs = [x.expand(7, 2, 3).clone().requires_grad_(n in learned) for n, x in enumerate(further)]
    arguments = layer.step_kwargs(2, torch.float32)
    kwargs = {n: v.detach() if isinstance(v, Tensor) else v for n, v in arguments.items()}
    tensors = [v for v in kwargs.values() if isinstance(v, Tensor)]
    states = [torch.randn(2, 3) for _ in layer.states]
    needs = gradient_needs(layer.cell, inputs, states, kwargs)
    operands = (plan_key(layer, inputs[0], (), needs, kwargs), inputs, states, tensors)
    torch.library.opcheck(torch.ops.tracetorch.forward, operands)
    *ends, checkpoints = (end.detach() for end in torch.ops.tracetorch.forward(*operands))
    plain = [x.detach() for x in inputs]
    cotangents = [torch.randn_like(end) for end in ends]
    backward = (operands[0], plain, states, tensors, checkpoints, cotangents)
    torch.library.opcheck(torch.ops.tracetorch.backward, backward)


def test_half_precision() -> None:
    layer = made()
    halves = tuple(x.bfloat16() for x in inputs_of((2, 3), torch.float32))
    expected = tt.unroll(layer, tuple(x.float() for x in halves), from_rest=True)
    y = tt.unroll(layer, halves, from_rest=True)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y.float(), expected)


def test_profile_and_record() -> None:
    net = module(lambda s, x: s.neuron(x, x.abs(), 0.1 * x), neuron=made())
    x = sequence(6, 2, 3, dtype=torch.float32)
    y, record = tt.unroll(net, x, record=["neuron.input", "neuron.trace"])
    assert torch.equal(record["neuron.input"], x)
    assert torch.equal(record["neuron.trace"][-1], net.neuron.trace)
    tt.zero_states(net)
    found = {row.path: row for row in tt.metrics.profile(net, x).rows}
    assert found["neuron"].rate == pytest.approx(float((y != 0).double().mean()))


def test_inputs_by_name() -> None:
    layer, inputs = made(), inputs_of((2, 3), torch.float32)
    expected = stepped(layer, inputs)
    for way in (
        lambda a, b, c: layer(a, current=c, modulator=b),
        lambda a, b, c: layer(a, b, current=c),
    ):
        layer.zero_states()
        y = [way(*step) for step in zip(*inputs, strict=True)]
        assert torch.equal(torch.stack(y), expected)


def beside(value: Tensor) -> Any:
    return module(lambda s, x: s.neuron(x, value, x), neuron=made())


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 1), (2, 3)])
def test_an_input_may_be_the_same_in_all_steps(shape: tuple[int, ...]) -> None:
    value = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    model, x = beside(value), sequence(4, 2, 3, dtype=torch.float32)
    expected = stepped(model, (x,))
    tt.zero_states(model)
    assert torch.equal(tt.unroll(model, x), expected)


class Gain(snn.Neuron):
    inputs = ("x", "gain")
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, gain: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        return gain * x, mem + x


def test_neurons_are_not_taken_for_samples_or_steps() -> None:
    gain, x = torch.rand(8), torch.rand(4, 2, 8)
    model = module(lambda s, x: s.neuron(x, gain), neuron=Gain(8))
    assert torch.equal(tt.unroll(model, x), x * gain)
    with pytest.raises(ValueError, match="a dimension of size 1 in fr"):
        tt.unroll(model, x.reshape(8, 1, 8))
    x, gain = torch.rand(5, 1, 5), torch.rand(5, 1)
    assert torch.equal(tt.unroll(Gain(5), (x, gain), by="step"), x * gain[..., None])
    with pytest.raises(ValueError, match=r"\[5\] beside one of \[5, 5\].* as many steps"):
        tt.unroll(Gain(5), (x, gain))


def driven(neuron: ThreeFactor) -> Any:
    norm = nn.BatchNorm1d(3)
    return module(lambda s, x: s.neuron(s.norm(x), x, x), norm=norm, neuron=neuron)
