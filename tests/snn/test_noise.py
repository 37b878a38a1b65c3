"""Noise from a counter, fresh or frozen, and dropout of one mask: the same by every road."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import PLACES, few, sequence, stepped, vary, weighted_sum
from tests.refusals import unchanged
from tests.unrolling.models import KEEPING, ROADS, Run
from tracetorch import fuse, snn


class EscapeRate(snn.Neuron):
    inputs = ("x", "noise")
    states = ("mem",)

    def __init__(self, num_neurons: int = 3, dim: int = -1, seed: int | None = None) -> None:
        super().__init__(num_neurons, dim)
        self.noise = snn.Noise(num_neurons, dim, distribution="uniform", seed=seed)
        self.decay("beta", 0.9)
        self.threshold("base", 1.0)

    @staticmethod
    def step(x, noise, mem, *, beta, base, spike):
        mem = beta * mem + x
        fired = spike(torch.sigmoid(4 * (mem - base)) - noise)
        return fired, mem - fired * base


def made(**arguments: Any) -> EscapeRate:
    layer = EscapeRate(**arguments)
    vary(layer)
    return layer


def net(seed: int | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 3), EscapeRate(seed=seed), nn.Linear(3, 3), EscapeRate(seed=seed)
    )


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("road", KEEPING)
def test_every_road_has_the_same_noise(road: str, seed: int | None) -> None:
    model, x = net(seed), 2 * sequence(6, 2, 4, dtype=torch.float32)

    def results(run: Run) -> dict[str, Any]:
        tt.zero_states(model)
        model.zero_grad()
        torch.manual_seed(7)
        y = run(model, x)
        y.square().sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        return {"output": y.detach(), **tt.get_states(model), **grads}

    expected, found = results(stepped), results(ROADS[road])
    assert expected["output"].any()
    for name in ("output", "1.noise.position", "3.noise.position"):
        assert torch.equal(found[name], expected[name]), name
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dim", "shape"), PLACES)
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_a_sequence_is_what_its_steps_are(distribution, dim, shape):
    layer = snn.Noise(3, dim, distribution=distribution, seed=1)
    y, records = layer.forward_sequence(torch.ones(0, *shape), ["position"])
    assert y.shape == records["position"].shape == (0, *shape)
    assert tt.get_states(layer) == {}
    expected = stepped(layer, torch.zeros(5, *shape))
    layer.zero_states()
    y, records = layer.forward_sequence(torch.zeros(5, *shape), ["position"])
    torch.testing.assert_close(y, expected, rtol=0, atol=0 if distribution == "uniform" else 1e-6)
    assert torch.equal(records["position"][-1], layer.position)
    assert torch.equal(records["position"][0], layer.position - 4)
    assert not y.requires_grad


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_distribution_of_normal_numbers(backend: str) -> None:
    with fuse.backend(backend):
        drawn = snn.Noise(100, seed=3)(torch.zeros(1000, 100)).double()
    count = drawn.numel()
    assert abs(float(drawn.mean())) < 5 / count**0.5
    assert float(drawn.var()) == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=5 * (96 / count) ** 0.5)
    assert bool(drawn.isfinite().all())


def test_without_a_seed_every_sequence_has_other_numbers_and_manual_seed_repeats_them() -> None:
    layer, x = snn.Noise(3), torch.zeros(2, 3)
    first = layer(x)
    assert not torch.equal(layer(x), first)
    layer.zero_states()
    assert not torch.equal(layer(x), first)
    drawn = []
    for each in (layer, layer, snn.Noise(3)):
        each.zero_states()
        torch.manual_seed(1)
        drawn.append(each(x))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(snn.Noise(3)(x), snn.Noise(3)(x))


def test_with_a_seed_the_noise_is_frozen() -> None:
    layer, x = snn.Noise(3, seed=4), torch.zeros(2, 3)
    state = torch.get_rng_state()
    first = stepped(layer, torch.zeros(3, 2, 3))
    layer.zero_states()
    assert torch.equal(stepped(layer, torch.zeros(3, 2, 3)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(snn.Noise(3, seed=5)(x), first[0])
    assert len(first.unique()) == first.numel()
    few, many = (snn.Noise(3, seed=0)(torch.zeros(batch, 3)) for batch in (2, 5))
    assert torch.equal(many[:2], few)
    another = snn.Noise(3, seed=2)
    another.load_state_dict(layer.state_dict())
    assert torch.equal(another(x), first[0])
    assert not list(layer.parameters())
    assert not snn.Noise(3).state_dict()


def test_streams_and_restores() -> None:
    layer, x = made(), sequence(6, 2, 3, dtype=torch.float32)
    tt.unroll(layer, x[:2])
    saved = tt.get_states(layer)
    expected = tt.unroll(layer, x[2:])
    with pytest.raises(TypeError, match=r"keeps position in int64, got torch\.float32"):
        tt.set_states(layer, {**saved, "noise.position": saved["noise.position"].float()})
    for run in (lambda: tt.unroll(layer, x[2:]), torch.no_grad()(lambda: stepped(layer, x[2:]))):
        tt.set_states(layer, saved)
        assert torch.equal(run(), expected)


def test_a_failed_call_leaves_the_noise_where_it_was() -> None:
    class Failing(EscapeRate):
        @staticmethod
        def step(*tensors: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
            raise ArithmeticError("no step")

    layer, x = made(), torch.ones(2, 3)
    layer(x)
    with unchanged(layer.noise), pytest.raises(ValueError, match="Call zero_states"):
        layer(torch.ones(5, 3))
    layer.__class__ = Failing
    for run in (layer, lambda x: tt.unroll(layer, x[None])):
        with unchanged(layer.noise), pytest.raises(ArithmeticError, match="no step"):
            run(x)


@pytest.mark.parametrize("seed", [None, 2])
def test_samples_restart_alone(seed: int | None) -> None:
    layer, x = snn.Noise(3, seed=seed), torch.zeros(2, 3)
    first, second = layer(x), layer(x)
    layer.zero_states(where=torch.tensor([True, False]))
    third = layer(x)
    assert torch.equal(third[0], first[0]) == (seed is not None)
    assert not torch.equal(third[0], second[0])


def test_the_numbers_are_the_same_in_every_dtype() -> None:
    layer = snn.Noise(3, distribution="uniform", seed=0)
    expected = layer(torch.zeros(2, 3))
    layer.zero_states()
    assert torch.equal(layer.half()(torch.zeros(2, 3, dtype=torch.float16)), expected)
    assert layer.bfloat16().position.dtype == torch.int64
    layer.zero_states()
    assert torch.equal(layer(torch.zeros(2, 3, dtype=torch.float64)).float(), expected)


@pytest.mark.parametrize("by", ["layer", "step"])
def test_in_a_recurrent_layer(by: Any) -> None:
    layer = snn.Recurrent(made(seed=1), nn.Linear(3, 3))
    x = sequence(6, 2, 3, dtype=torch.float32)
    expected = stepped(layer, x)
    assert torch.equal(tt.unroll(layer, x, by=by, from_rest=True), expected)


def test_channels_last_has_the_noise_of_the_same_places() -> None:
    layer, x = made(dim=-3, seed=1), sequence(4, 2, 3, 2, 5, dtype=torch.float32)
    last = x.movedim(2, -1).contiguous().movedim(-1, 2)
    expected = tt.unroll(layer, x)
    layer.zero_states()
    assert torch.equal(tt.unroll(layer, last), expected)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of functions that Dynamo traces
@pytest.mark.parametrize("backend", few(["aot_eager", "inductor"], "aot_eager"))
@pytest.mark.parametrize("seed", few([1, None], 1))
def test_compiled_by_torch(seed: int | None, backend: str) -> None:
    torch._dynamo.reset()
    # many samples: a few may have the same spikes with fresh noise
    layer, x = made(seed=seed), sequence(4, 100, 3, dtype=torch.float32)

    def run(x: Tensor) -> Any:
        tt.zero_states(layer)
        return tt.unroll(layer, x)

    expected, compiled = run(x), torch.compile(run, fullgraph=True, backend=backend)
    found = compiled(x)
    assert torch.equal(found, expected) == (seed is not None)
    assert torch.equal(compiled(x), found) == (seed is not None)


def seeded(model: nn.Module, x: Tensor, **options: Any) -> Any:
    torch.manual_seed(3)
    return tt.unroll(model, x, **options)


@pytest.mark.parametrize(("dim", "shape"), PLACES)
@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_mask_is_that_of_the_first_step(dim: int, shape: tuple[int, ...], p: float) -> None:
    layer, x = snn.LockedDropout(3, p, dim), sequence(6, *shape).requires_grad_()
    torch.manual_seed(3)
    mask = nn.functional.dropout(torch.ones(shape, dtype=x.dtype), p)
    for by in ("layer", "step"):
        layer.zero_states()
        y = seeded(layer, x, by=by)
        assert torch.equal(y, x * mask)
        assert torch.equal(layer.mask, mask)
        grads = [torch.autograd.grad(weighted_sum(each), x)[0] for each in (y, x * mask)]
        assert torch.equal(*grads)


def test_evaluation_is_the_identity_and_keeps_the_mask() -> None:
    layer, x = snn.LockedDropout(3).eval(), sequence(5, 2, 3)
    for by in ("layer", "step"):
        assert torch.equal(tt.unroll(layer, x, by=by), x)
        assert layer.mask is None
    layer.train()(x[0])
    mask = layer.mask
    assert torch.equal(tt.unroll(layer.eval(), x), x)
    assert layer.mask is mask
    assert torch.equal(layer.train()(x[0]), x[0] * mask)
    given = x.clone()  # which an operation in place behind it does not reach
    assert torch.equal(tt.unroll(nn.Sequential(layer.eval(), nn.ReLU(inplace=True)), x), x.relu())
    assert torch.equal(x, given)


def test_restarted_samples_draw_another_mask_in_float32() -> None:
    layer, x = snn.LockedDropout(64).half(), torch.ones(3, 64).half()
    before = layer(x)
    layer.zero_states(where=torch.tensor([False, True, False]))
    after = layer(x)
    assert torch.equal(before[::2], after[::2])
    assert not torch.equal(before[1], after[1])
    assert set(after[1].tolist()) == {0.0, 2.0}
    assert (after.dtype, layer.mask.dtype) == (torch.float16, torch.float32)


def test_segments_repeat_the_mask() -> None:
    net = nn.Sequential(nn.Linear(3, 3), snn.LockedDropout(3), snn.LIF(3)).double()
    x = sequence(7, 4, 3)
    grads = []
    for segment in (None, 3):
        tt.zero_states(net)
        y = seeded(net, x, segment=segment)
        grads.append([y, *torch.autograd.grad(weighted_sum(y), list(net.parameters()))])
    torch.testing.assert_close(grads[0], grads[1])


def test_recurrent_dropout() -> None:
    connection = nn.Sequential(nn.Linear(3, 3), snn.LockedDropout(3))
    layer = snn.Recurrent(snn.LIF(3), connection).double()
    x = sequence(6, 2, 3)
    y = seeded(layer, x, from_rest=True)
    torch.manual_seed(3)
    assert torch.equal(stepped(layer, x), y)
    assert connection[1].mask.shape == (2, 3)
    layer.zero_states()
    assert connection[1].mask is None


def test_model_is_checked_and_recorded() -> None:
    net: Any = nn.Sequential(nn.Linear(3, 8), snn.LockedDropout(8), snn.LIF(8))
    x = sequence(5, 2, 3, dtype=torch.float32)
    tt.unroll(net, x, check=True, from_rest=True)
    _, seen = tt.unroll(net, x, record=["mask", "1.output"])
    assert torch.equal(seen["1.mask"], net[1].mask.expand(5, 2, 8))
    for by in ("layer", "step"):
        with pytest.raises(ValueError, match=r"'1.mask' was seen 0 times"):
            tt.unroll(net.eval(), x, record="mask", by=by, from_rest=True)


def test_compiled_step_keeps_the_mask() -> None:
    layer, x = snn.LockedDropout(8), sequence(3, 2, 8, dtype=torch.float32)
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = [step(each) for each in x]
    assert torch.equal(torch.stack(y), x * layer.mask)
    layer.eval()
    assert torch.equal(step(x[0]), x[0])


def test_online_learning_drops_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 4), snn.LockedDropout(4), snn.LIF(4, beta_rank=0)).double()
    x = sequence(5, 2, 3)
    torch.manual_seed(3)
    learner = tt.online(net, "exact")
    for step in x:
        learner(step).square().sum().backward()
    assert learner.dropped == ()
    grads = [p.grad.clone() for p in net.parameters()]
    learner.zero_states()
    net.zero_grad()
    seeded(net, x).square().sum().backward()
    torch.testing.assert_close(grads, [p.grad for p in net.parameters()])
