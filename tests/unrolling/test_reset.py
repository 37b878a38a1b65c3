"""``unroll(..., reset=)``: samples start anew inside a sequence, as in a loop, on every road."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import FEW_LAYERS, NEURONS, PLACES, examples, layer, module, sequence
from tests.refusals import check, refusals
from tests.unrolling.memories import Says
from tests.unrolling.models import MODELS, dyadic, gradcheck, made
from tracetorch import fuse, snn

T, B = 9, 4


def resets(steps: int = T, batch: int = B, share: float = 0.3, seed: int = 5) -> Tensor:
    drawn = torch.rand(steps, batch, generator=torch.Generator().manual_seed(seed))
    return drawn < share


def looped(model: nn.Module, x: Tensor, reset: Tensor) -> Tensor:
    """Run the loop that a user would write."""
    outputs = []
    for now, where in zip(x.unbind(0), reset, strict=True):
        tt.zero_states(model, where=where)
        outputs.append(model(now))
    return torch.stack(outputs)


def results(model: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> list[Any]:
    """Return outputs, gradients of input and parameters, and the last states."""
    model.zero_grad()
    tt.zero_states(model)
    x = x.clone().requires_grad_()
    model(x[0])  # states that the first step may have to clear
    y = run(model, x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    states = tt.get_states(model)
    ((y * weights).sum() + sum(s.sum() for s in states.values() if s.requires_grad)).backward()
    return [y.detach(), x.grad, [p.grad for p in model.parameters()], states]


def assert_same(model: nn.Module, x: Tensor, reset: Tensor, **options: Any) -> None:
    expected = results(model, x, lambda m, v: looped(m, v, reset))
    found = results(model, x, lambda m, v: tt.unroll(m, v, reset=reset, **options))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0], expected[0]) or x.is_floating_point()
    without = results(model, x, lambda m, v: looped(m, v, torch.zeros_like(reset)))
    assert not torch.equal(without[1], expected[1])  # the restarts make a difference


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [*FEW_LAYERS, *NEURONS])
def test_every_neuron_restarts_as_in_a_loop(name: str) -> None:
    x = NEURONS.get(name, 1.0) * sequence(T, B, 3)
    assert_same(layer(name, 3), x, resets(share=0.4))


@pytest.mark.parametrize(("dim", "shape"), PLACES)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_samples_restart_wherever_the_neurons_are(dim, shape, backend):
    with fuse.backend(backend):
        assert_same(layer("BSRLIF", 3, dim=dim), sequence(T, *shape), resets(T, shape[0], 0.4))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"by": "step"}, {"segment": 4}, {"segment": 1}])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_whole_networks_restart_on_every_road(name: str, options: Any, share: float) -> None:
    assert_same(made(name), dyadic(T, B, *MODELS[name][1][1:]), resets(share=share), **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: snn.DelayedLinear(3, 3, max_delay=4),
        lambda: snn.Delay(3, max_delay=4),
        lambda: snn.Recurrent(layer("BSRLIF", 3), nn.Linear(3, 3)),
        lambda: snn.Recurrent(layer("LIF", 3), snn.DelayedLinear(3, 3, max_delay=3)),
    ],
)
def test_every_memory_restarts_as_in_a_loop(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(make(), layer("Readout", 3)).double()
    assert_same(model, dyadic(T, B, 3), resets())


class Started(snn.Neuron):
    """Neuron that starts from other values than zero, one for each neuron."""

    states = ("v", "w")

    def __init__(self) -> None:
        super().__init__(3)
        self.decay("beta", 0.7)
        self.state("v", init=torch.tensor([1.0, -2.0, 3.0]))
        self.state("w", init=0.5)

    @staticmethod
    def step(x: Tensor, v: Tensor, w: Tensor, *, beta: Tensor) -> tuple[Any, ...]:
        v = beta * v + x * w
        return v, v, beta * w + 0.1 * v


class OwnStart(Started):
    def initial_state(self, name: str, *of: Any) -> Tensor:
        return super().initial_state(name, *of) + 1.0


class OwnZero(Started):
    v: Tensor | None

    def zero_states(self, *, where: Tensor | None = None) -> None:
        super().zero_states(where=where)
        if where is not None and self.v is not None:
            self.v = torch.where(where[:, None], torch.full_like(self.v, 7.0), self.v)


class OwnSequence(Started):
    def forward_sequence(self, x, record=(), *, further=()):  # type: ignore[override]
        return super().forward_sequence(x, record, further=further)


class Names(Started):
    """Parameters with the names that restarts have elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("initial_x", "initial_w_", "restarts"):
            self.weight(name, 0.3)

    @staticmethod
    def step(x, v, w, *, beta, initial_x, initial_w_, restarts):  # type: ignore[override]
        return Started.step(x + initial_x * initial_w_ + restarts, v, w, beta=beta)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", [Started, OwnStart, OwnZero, OwnSequence, Names])
def test_samples_restart_from_what_the_layer_starts_from(kind: type[Started]) -> None:
    model = kind()
    x, reset = sequence(T, B, 3), resets()
    assert_same(model, x, reset)
    tt.unroll(model, x, reset=torch.ones(T, B, dtype=torch.bool))
    once = {name: state.clone() for name, state in tt.get_states(model).items()}
    tt.zero_states(model)
    model(x[-1])
    if kind is not OwnZero:
        torch.testing.assert_close(once, tt.get_states(model))


def test_the_compiled_loop_is_used_and_not_one_for_each_cut(monkeypatch):
    calls, run = [], snn.Neuron.forward_sequence

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return run(*args, **options)

    monkeypatch.setattr(snn.Neuron, "forward_sequence", counted)
    with fuse.backend("cpu"):  # which refuses what it cannot compile
        tt.unroll(layer("LIF", 3), sequence(T, B, 3), reset=resets(share=0.5), by="layer")
    assert len(calls) == 1


@examples(30)
@given(
    steps=st.integers(1, 12), batch=st.integers(1, 5), share=st.floats(0, 1), seed=st.integers(0)
)
def test_any_mask_is_a_loop(steps: int, batch: int, share: float, seed: int) -> None:
    model, x = made("dense"), dyadic(steps, batch, 3, seed=seed % 1000)
    reset = resets(steps, batch, share, seed % 1000)
    expected = looped(model, x, reset)
    ends = tt.get_states(model)
    tt.zero_states(model)
    assert torch.equal(tt.unroll(model, x, reset=reset), expected)
    torch.testing.assert_close(tt.get_states(model), ends, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["SReadout", "RReadout"])
def test_gradients_through_restarts_match_finite_differences(name: str) -> None:
    gradcheck(layer(name, 3).double(), sequence(5, 2, 3), reset=resets(5, 2, 0.4))


def test_records_inputs_batches_and_time_dimensions() -> None:
    model, x, reset = made("dense"), dyadic(T, B, 3), resets()
    options: dict[str, Any] = {"reset": reset, "from_rest": True}
    y, seen = tt.unroll(model, x, record=["mem", "output"], **options)
    stepped = tt.unroll(model, x, record=["mem", "output"], by="step", **options)
    torch.testing.assert_close((y, seen), stepped, rtol=0, atol=0)
    turned = tt.unroll(model, x.transpose(0, 1), reset=reset.T, time_dim=1, from_rest=True)
    assert torch.equal(turned.transpose(0, 1), y)
    assert torch.equal(tt.unroll(model, x, time_dim=-3, **options), y)
    assert torch.equal(tt.unroll(model, x, check=True, **options), y)
    repeated = tt.unroll(model, x[0], steps=T, **options)
    assert torch.equal(repeated, tt.unroll(model, x[0].expand(T, B, 3), by="step", **options))
    args = (dyadic(T, B, 4), dyadic(T, B, 4, seed=1))
    found = tt.unroll(made("several"), args, **options)
    expected = tt.unroll(made("several"), args, by="step", **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_mask_that_restarts_nobody_draws_nothing() -> None:
    none = torch.zeros(T, B, dtype=torch.bool)
    states = []
    options: list[Any] = [{}, {"reset": none}, {"reset": none, "by": "step"}]
    for each in [*options, {"reset": none, "segment": 2}]:
        torch.manual_seed(0)
        model = nn.Sequential(snn.Noise(3), snn.LIF(3), snn.LockedDropout(3))
        tt.unroll(model, sequence(T, B, 3), **each)
        states.append(torch.get_rng_state())
    assert all(torch.equal(states[0], other) for other in states)


def test_vmap_over_networks_and_their_masks() -> None:
    model = layer("LIF", 3)
    xs = torch.stack([sequence(T, B, 3, seed=i) for i in range(3)])
    masks = torch.stack([resets(seed=i) for i in range(3)])

    def run(x: Tensor, reset: Tensor) -> Tensor:
        y: Tensor = tt.unroll(model, x, reset=reset, from_rest=True)
        return y

    expected = torch.stack([run(x, reset) for x, reset in zip(xs, masks, strict=True)])
    torch.testing.assert_close(torch.vmap(run)(xs, masks), expected)


def twice_as_many() -> nn.Module:
    return nn.Sequential(Says(lambda x: torch.cat([x, x])), snn.LIF(3).double())


ONE, X = torch.eye(6, 4).bool(), dyadic(T, B, 3)


@refusals(
    r"""
    tt.unroll(made("dense"), X, reset=resets().float()) -> TypeError: of booleans, .* torch.float
    tt.unroll(made("dense"), X, reset=[True]) -> TypeError: a tensor of booleans, .* got list
    tt.unroll(made("dense"), X, reset=resets(T, 5)) -> ValueError: \[T, B\] = \[9, 4\], got \[9, 5\]
    tt.unroll(made("dense"), X, reset=resets(B, T)) -> ValueError: \[T, B\] = \[9, 4\], got \[4, 9\]
    tt.unroll(made("dense"), X, reset=resets(B, T), time_dim=-2)
        -> ValueError: shape \[B, T\] = \[9, 4\], got \[4, 9\]
    tt.unroll(snn.LIF(4), sequence(6, 4), reset=ONE) -> ValueError: has its neurons at dimension 0
    tt.unroll(snn.LIF(4), sequence(6, 4), reset=ONE, by="step") -> ValueError: at dimension 0
    tt.unroll(snn.LIF(4, dim=0), sequence(6, 4, 5), reset=ONE) -> ValueError: neurons at dimension 0
    OwnStart().forward_sequence(X, reset=resets())
        -> ValueError: must see a sample start anew.*Use tt\.unroll
    OwnZero().forward_sequence(X, reset=resets()) -> ValueError: must see a sample start anew
    tt.unroll(twice_as_many(), X, reset=resets())
        -> ValueError: '1', .* got 8 samples in each step, .* says of 4 where
    """
)
def test_a_mask_that_does_not_fit_is_refused(call: str, error: str) -> None:
    check(call, error, globals())


def test_a_restart_of_its_own_runs_by_step() -> None:
    x = sequence(T, B, 3)
    for of_instance in (True, False):
        own = module(lambda s, x: s.cell(x), cell=layer("LIF", 3))
        zero = lambda *_, where=None, cell=own.cell: tt.zero_states(cell, where=where)  # noqa: E731
        if of_instance:
            vars(own)["zero_states"] = zero
        else:
            type(own).zero_states = zero
        with pytest.raises(ValueError, match="Model, at 'the root', has a zero_states of its own"):
            tt.unroll(own, x, reset=resets())
        tt.unroll(own, x, reset=resets(), by="step")
