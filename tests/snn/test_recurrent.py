from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization as parametrize
from torch.utils.flop_counter import FlopCounterMode

import tracetorch as tt
from tests.cases import LAYERS, SPIKING, Net, layer, sequence, stepped
from tests.networks import Doubled, Smooth
from tests.refusals import unchanged
from tracetorch import snn
from tracetorch.fuse.dispatch import backends

D = 3


@pytest.mark.parametrize("name", ["LIF", "BSRLIF", "Readout"])
def test_previous_output_returns_through_the_connection(name: str) -> None:
    x = sequence(6, 2, 3)
    connection = nn.Linear(3, 3).double()
    model = snn.Recurrent(layer(name, 3).double(), connection)
    alone = layer(name, 3).double()
    previous = torch.zeros(2, 3, dtype=torch.float64)
    expected = []
    for step in x.unbind():
        previous = alone(step + connection(previous))
        expected.append(previous)
    assert torch.equal(stepped(model, x), torch.stack(expected))
    assert torch.equal(model.prev_output, previous)
    model.zero_states()
    # the sums of the products may be taken in another order
    torch.testing.assert_close(tt.unroll(model, x), torch.stack(expected))


def test_bias_acts_at_the_first_step_and_the_shape_is_kept() -> None:
    connection = nn.Linear(1, 1)
    nn.init.constant_(connection.bias, 2.0)
    assert snn.Recurrent(snn.LIF(1), connection)(torch.zeros(1, 1)).item() == 1.0
    model = snn.Recurrent(snn.LIF(2), nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"keeps the shape \[1, 2\], got \[1, 3\]"):
        model(torch.ones(1, 2))
    assert tt.get_states(model) == {}
    model = snn.Recurrent(snn.LIF(2, dim=-3), nn.Conv2d(2, 2, 3, padding=1))
    assert tt.unroll(model, torch.rand(4, 3, 2, 5, 5)).shape == (4, 3, 2, 5, 5)


def test_states_of_a_recurrent_layer() -> None:
    model = snn.Recurrent(snn.LIF(3), nn.Linear(3, 3))
    model(torch.ones(2, 3))
    assert list(tt.get_states(model)) == ["prev_output", "neuron.mem"]
    model.zero_states()
    y, seen = tt.unroll(model.bfloat16(), torch.ones(3, 2, 3).bfloat16(), record="prev_output")
    assert y.dtype == torch.bfloat16
    assert seen["prev_output"].dtype == model.prev_output.dtype == torch.float32


class Silent(snn.Neuron):
    """Neuron whose spikes have no gradient, although its state has one."""

    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = 0.5 * mem + x
        return (mem > 1).to(mem), mem


def made(
    name: str, N: int = 5, dtype: torch.dtype = torch.float64, max_delay: int = 0, **options: Any
) -> Any:
    """Build a recurrent layer whose connection has small dyadic weights, so that sums are exact."""
    torch.manual_seed(0)
    own: dict[str, Any] = {"Smooth": Smooth, "Silent": Silent}
    neuron = own[name](N) if name in own else layer(name, N)
    connection: nn.Module
    if max_delay:
        connection = snn.DelayedLinear(N, N, max_delay=max_delay, **options)
    else:
        connection = nn.Linear(N, N, **options)
    with torch.no_grad():
        for p in (*connection.parameters(), *connection.buffers()):
            p.copy_((p * 16).round() / 16)
    return snn.Recurrent(neuron, connection).to(dtype)


def dyadic(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (8 * scale * sequence(*shape)).round().to(dtype) / 8


def results(model: Any, x: Tensor, run: Any, live: bool = False) -> tuple[Any, Any]:
    """Return outputs and last states by name, and gradients by name of a loss on all of them."""
    generator = torch.Generator().manual_seed(3)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    tt.zero_states(model)
    model.zero_grad()
    starts: dict[str, Tensor] = {}
    if live:
        starts["prev_output"] = (x[0] > 0).to(x.dtype).requires_grad_()
        for name in model.neuron.active_states:
            starts[f"neuron.{name}"] = (noise(x[0]) * 8).round().div(8).requires_grad_()
        if isinstance(model.connection, snn.DelayedLinear):
            like = x[:1].expand(model.connection.max_delay, *x.shape[1:]).movedim(0, -1)
            starts["connection.past"] = (noise(like) > 0.5).to(x.dtype).requires_grad_()
        tt.set_states(model, starts)
    x = x.detach().requires_grad_()
    y = run(model, x)
    values = {"output": y, **tt.get_states(model)}
    smooth = [value for value in values.values() if value.requires_grad]
    torch.autograd.backward(smooth, [noise(value) for value in smooth])
    named = {"x": x, **starts, **dict(model.named_parameters())}
    return values, {name: t.grad for name, t in named.items() if t.grad is not None}


def by_step(model: Any, x: Tensor) -> Tensor:
    y: Tensor = tt.unroll(model, x, by="step")
    return y


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """List, for each sequence, whether it ran in one loop."""
    ran: list[bool] = []
    original = snn.Recurrent._run_fused

    def spy(self: Any, x: Tensor) -> Tensor | None:
        y = original(self, x)
        ran.append(y is not None)
        return y

    monkeypatch.setattr(snn.Recurrent, "_run_fused", spy)
    return ran


def check(
    model: Any,
    x: Tensor,
    *,
    live: bool = False,
    exact: bool = True,
    tolerance: float = 1e-10,
    steps: Any = by_step,
    loop: Any = tt.unroll,
) -> None:
    """Assert that the loop computes what steps compute: values, and gradients by name."""
    values, grads = results(model, x, steps, live)
    fast, fast_grads = results(model, x, loop, live)
    assert fast.keys() == values.keys()
    for key, value in values.items():
        if exact:
            assert torch.equal(fast[key], value), key
        torch.testing.assert_close(fast[key], value, rtol=tolerance, atol=tolerance)
    assert fast_grads.keys() == grads.keys()
    for key, grad in grads.items():
        error, scale = float((fast_grads[key] - grad).abs().max()), float(grad.abs().max())
        assert error <= tolerance * (scale + 1e-3), f"{key}: {error} of {scale}"


FAST = ("LIF", "SRReadout")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LAYERS if name not in FAST]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", [*FAST, "Smooth", "Silent", *SLOW])
def test_one_loop_is_the_loop_of_steps(name: str, live: bool, fused: list[bool]) -> None:
    # sums of products with spikes are exact, those with membranes are not
    check(made(name), dyadic(9, 6, 5), live=live, exact=name in (*SPIKING, "Silent"))
    assert fused == [True]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_delay", [0, D])
@pytest.mark.parametrize(
    "shape",
    [
        *((1, 3, 5), (4, 1, 5), (4, 5), (4, 2, 3, 5), (6, 2, 1), (5, 9, 17)),
        *((5, 9, 65), (6, 21, 130), (6, 4, 515)),
    ],
)
def test_shapes(shape, max_delay, dtype, fused):
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    model = made("LIF", shape[-1], dtype, max_delay=max_delay)
    check(model, dyadic(*shape, dtype=dtype), live=True, tolerance=tolerance)
    assert fused == [True] * (shape[0] > 1)  # one step is no loop


@pytest.mark.parametrize("scale", [0.0, 0.1, 100.0])
@pytest.mark.parametrize("max_delay", [0, D])
@pytest.mark.parametrize("name", ["LIF", pytest.param("BSRLIF", marks=pytest.mark.slow)])
def test_densities(name: str, max_delay: int, scale: float, fused: list[bool]) -> None:
    model = made(name, 9, bias=False, max_delay=max_delay)
    x = dyadic(6, 5, 9, scale=scale)
    check(model, x.abs() if name == "LIF" else x)
    assert fused == [True]


@pytest.mark.slow
def test_long_sequences_and_any_weights() -> None:
    torch.manual_seed(0)
    model = snn.Recurrent(snn.SRLIF(70), nn.Linear(70, 70))
    check(model, sequence(40, 7, 70, dtype=torch.float32), exact=False, tolerance=1e-5)
    check(made("BSRLIF"), dyadic(200, 3, 5))  # restarts from checkpoints
    check(made("LIF", 130), dyadic(100, 9, 130, scale=0.25))


def test_inputs_that_are_not_contiguous(fused: list[bool]) -> None:
    x = dyadic(6, 9, 5)
    turned = x.unsqueeze(1).transpose(1, 2).contiguous().transpose(1, 2).transpose(1, 2)
    across = x.transpose(0, 1).contiguous().transpose(0, 1)
    for view in (across, x[:1].expand(x.shape), torch.stack([x, x], -1)[..., 0], turned):
        check(made("LIF"), view)
    assert fused == [True] * 4


@pytest.mark.parametrize(
    ("frozen", "max_delay"),
    [
        *(("weight", 0), ("bias", 0), ("all of them", 0)),
        *((name, D) for name in ("raw_delay", "linear.weight", "linear.bias", "all of them")),
    ],
)
def test_frozen_connection(frozen: str, max_delay: int, fused: list[bool]) -> None:
    model = made("LIF", max_delay=max_delay)
    for name, p in model.connection.named_parameters():
        p.requires_grad_(name != frozen and " " not in frozen)
    check(model, dyadic(6, 3, 5))
    if max_delay:
        check(made("LIF", max_delay=D, learnable=False), dyadic(6, 3, 5))
    assert all(fused)


def test_connection_shared_by_two_layers(fused: list[bool]) -> None:
    first, second = made("LIF"), made("LIF")
    second.connection = first.connection
    check(nn.Sequential(first, second), dyadic(6, 3, 5))
    assert fused == [True, True]


def gradcheck_from(model: nn.Module, x: Tensor, states: dict[str, Tensor]) -> None:
    """Compare gradients, those by first states too, with finite differences."""

    def forward(net: Any, x: Tensor, states: dict[str, Tensor]) -> Any:
        tt.set_states(net.model, states)
        return tt.unroll(net.model, x), *tt.get_states(net.model).values()

    net = Net(forward, model=model)
    names = [name for name, _ in net.named_parameters()]

    def run(x: Tensor, *tensors: Tensor) -> Any:
        given = dict(zip((*names, *states), tensors, strict=True))
        parts = ({name: given[name] for name in some} for some in (names, states))
        return torch.func.functional_call(net, next(parts), (x, next(parts)))

    given = [x, *net.parameters(), *states.values()]
    assert torch.autograd.gradcheck(run, [t.detach().clone().requires_grad_() for t in given])


@pytest.mark.parametrize("options", [{}, {"max_delay": 2, "sigma": 0.7}], ids=str)
def test_gradcheck(options: dict[str, Any], fused: list[bool]) -> None:
    previous, mem = (0.3 * sequence(2, 2, 3, seed=1)).unbind()
    past = {"connection.past": 0.3 * sequence(2, 3, 2, seed=2)} if options else {}
    states = {"prev_output": previous, "neuron.mem": mem, **past}
    gradcheck_from(made("Smooth", 3, **options), sequence(4, 2, 3), states)
    assert all(fused)


@pytest.mark.parametrize("delayed", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(delayed: bool, fused: list[bool]) -> None:
    torch.manual_seed(0)
    connection = snn.DelayedLinear(40, 40, max_delay=7) if delayed else nn.Linear(40, 40)
    model = snn.Recurrent(snn.LIF(40, beta_rank=1), connection)
    x, before, found = torch.randn(30, 37, 40), torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            values, grads = results(model, x, tt.unroll)
            # those of the connection are products of PyTorch's
            own = {name: g for name, g in grads.items() if not name.startswith("connection")}
            found.append((values, own))
    finally:
        torch.set_num_threads(before)
    assert all(fused)
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("max_delay", [0, 3, 12])
def test_output_may_be_changed_in_place(max_delay: int) -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        return tt.unroll(nn.Sequential(model, nn.Hardtanh(-0.5, 0.5, inplace=True)), x)

    def steps(model: Any, x: Tensor) -> Tensor:
        return stepped(model, x).clamp(-0.5, 0.5)

    check(made("LIF", max_delay=max_delay), dyadic(6, 3, 5), steps=steps, loop=run)


def test_values_that_are_not_finite_pass_as_in_steps() -> None:
    model, x = made("LIF"), dyadic(5, 9, 5)
    x[1, 2, 3], x[2, 4, 0] = torch.nan, torch.inf
    expected = stepped(model, x)
    assert torch.equal(tt.unroll(model, x, from_rest=True).isfinite(), expected.isfinite())


@pytest.mark.parametrize("max_delay", [0, D])
def test_backward_passes_that_would_be_wrong_are_errors(max_delay: int) -> None:
    model, x = made("LIF", max_delay=max_delay), dyadic(4, 2, 5)
    weight = model.connection.get_parameter("linear.weight" if max_delay else "weight")
    tt.unroll(model, x).sum().backward()
    with pytest.raises(RuntimeError, match="Call detach_states"):
        tt.unroll(model, x).sum().backward()
    y = tt.unroll(model, x, from_rest=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.sum(), weight, create_graph=True)
    y = tt.unroll(model, x, from_rest=True)
    with pytest.raises(RuntimeError, match="one incoming gradient at a time"):
        torch.autograd.grad(y, weight, torch.ones(2, *y.shape).double(), is_grads_batched=True)
    if not max_delay:  # whose kernel is a copy
        y = tt.unroll(model, x, from_rest=True)
        with torch.no_grad():
            weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


class DoubledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class DoubledDelays(snn.DelayedLinear):
    def convolve(self, window: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        return 2 * super().convolve(window, kernel, bias)


def double(*args: Any) -> Any:
    """Double the last argument of a hook: an output, an input or a gradient."""
    last = args[-1]
    return tuple(2 * each for each in last) if isinstance(last, tuple) else 2 * last


def hooks(part: str) -> dict[str, Any]:
    def change(model: Any, kind: str) -> None:
        getattr(getattr(model, part), f"register_{kind}_hook")(double)

    kinds = ("forward", "forward_pre", "full_backward")
    return {f"{kind} hook of the {part}": partial(change, kind=kind) for kind in kinds}


# of a recurrent layer, one thing that is not as its class has it
CHANGES: dict[str, Any] = {
    "subclass of the connection": lambda m: setattr(m, "connection", DoubledLinear(5, 5).double()),
    "subclass of the neuron": lambda m: setattr(m, "neuron", Doubled(5).double()),
    "forward of the connection": lambda m: setattr(
        m.connection, "forward", DoubledLinear(5, 5).double().forward
    ),
    "forward of the neuron": lambda m: setattr(
        m.neuron, "forward", lambda x: m.neuron.forward_step(2 * x)
    ),
    **hooks("connection"),
    **hooks("neuron"),
    "parametrization": lambda m: parametrize(m.connection, "weight", nn.Tanh()),
    "weight that is not finite": lambda m: m.connection.weight.data[1].fill_(torch.inf),
}
DELAY_CHANGES: dict[str, Any] = {
    "subclass": lambda m: setattr(m, "connection", DoubledDelays(5, 5, max_delay=D).double()),
    "forward": lambda m: setattr(
        m.connection, "forward", lambda x: 2 * m.connection.forward_step(x)
    ),
    "step": lambda m: setattr(m.connection, "forward_step", lambda x: 2 * x),
    "convolution": lambda m: setattr(
        m.connection, "convolve", lambda w, k, b: 2 * w[..., D:].squeeze(-1)
    ),
    **hooks("connection"),
    "parametrized weight": lambda m: parametrize(m.connection.linear, "weight", nn.Tanh()),
    "parametrized delays": lambda m: parametrize(m.connection, "raw_delay", nn.ReLU()),
    "infinite weight": lambda m: m.connection.linear.weight.data[1].fill_(torch.inf),
    "NaN among the delays": lambda m: m.connection.raw_delay.data[1].fill_(torch.nan),
}


@pytest.mark.parametrize(
    ("change", "max_delay"),
    [*((name, 0) for name in CHANGES), *((name, D) for name in DELAY_CHANGES)],
)
def test_what_a_user_has_changed_runs_step_by_step(change, max_delay, fused):
    model, x = made("LIF", max_delay=max_delay), dyadic(6, 3, 5)
    (DELAY_CHANGES if max_delay else CHANGES)[change](model)
    found, wanted = (results(model, x, run, live=True) for run in (tt.unroll, stepped))
    assert not any(fused)
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("max_delay", [0, D])
def test_what_must_see_every_step_does(max_delay: int, fused: list[bool]) -> None:
    model = made("LIF", dtype=torch.float32, max_delay=max_delay)
    x = dyadic(6, 3, 5, dtype=torch.float32)
    halves = torch.autocast("cpu", torch.bfloat16)
    for around in (tt.fuse.backend("eager"), halves, FlopCounterMode(display=False)):
        tt.zero_states(model)
        with around:
            expected = stepped(model, x)
            assert torch.equal(tt.unroll(model, x, from_rest=True), expected)
    assert fused == [False] * 3


def test_states_that_do_not_fit_are_an_error_and_stay() -> None:
    model, delayed = made("LIF"), made("LIF", max_delay=D)
    for each in (model, delayed):
        tt.unroll(each, dyadic(2, 3, 5))
    delayed.connection.past = torch.zeros(4, 5, D).double()
    with unchanged(model), pytest.raises(ValueError, match=r"prev_output of shape \[3, 5\]"):
        tt.unroll(model, dyadic(2, 4, 5))
    with unchanged(delayed), pytest.raises(ValueError, match=r"past of shape \[4, 5, 3\]"):
        tt.unroll(delayed, dyadic(2, 3, 5))


WAYS: dict[str, Any] = {
    "at once": tt.unroll,
    "cut": lambda model, x: torch.cat([tt.unroll(model, part) for part in x.split([4, 1, 4])]),
    "first by step": lambda model, x: torch.cat([by_step(model, x[:3]), tt.unroll(model, x[3:])]),
    "then called": lambda model, x: torch.cat([tt.unroll(model, x[:5]), stepped(model, x[5:])]),
    "in segments": lambda model, x: tt.unroll(model, x, segment=4),
    "within a model": lambda model, x: tt.unroll(nn.Sequential(nn.Identity(), model), x),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("max_delay", [0, 1, D, 12])  # 12 is more than there are steps
@pytest.mark.parametrize("name", ["LIF", "Smooth", pytest.param("BSRLIF", marks=pytest.mark.slow)])
def test_ways_through_one_loop(name: str, max_delay: int, way: str, fused: list[bool]) -> None:
    model, x = made(name, max_delay=max_delay), dyadic(9, 6, 5)
    for live in (False, True):
        check(model, x, live=live, exact=name in SPIKING, loop=WAYS[way])
    assert fused
    assert all(fused)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 4.0])
def test_widths_of_delays(sigma: float, fused: list[bool]) -> None:
    # weights that are not dyadic: sums are rounded, and no membrane is that near its threshold
    model = made("LIF", max_delay=D, sigma=sigma)
    check(model, dyadic(9, 6, 5), live=True, exact=False)
    model.connection.round_()
    check(model, dyadic(9, 6, 5), live=True)
    assert fused == [True, True]


def test_delays_without_a_graph(fused: list[bool]) -> None:
    model, x = made("LIF", max_delay=D), dyadic(9, 6, 5)
    mask = torch.tensor([True, False] * 3)  # samples that begin again in the second sequence
    found = []
    with torch.no_grad():
        for run in (by_step, tt.unroll):
            tt.zero_states(model)
            first, ends = run(model, x), tt.get_states(model)
            model.zero_states(where=mask)
            found.append((first, ends, run(model, x)))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    first, ends, second = found[1]
    assert fused == [True, True]
    assert torch.equal(second[:, mask], first[:, mask])
    assert not torch.equal(second, first)
    for key, value in ends.items():
        assert value.untyped_storage().nbytes() == value.numel() * value.itemsize, key


@pytest.mark.parametrize("max_delay", [0, D, 12])
def test_every_element_is_written(max_delay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracetorch.fuse.dispatch import recurrence
    from tracetorch.fuse.runtime import allocation

    empty, large = torch.empty, allocation.large_empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(recurrence, "large_empty", lambda *args: large(*args).fill_(torch.nan))
    for shape in ((1, 1, 1), (2, 3, 7), (9, 9, 65)):
        model = made("Smooth", shape[-1], max_delay=max_delay)
        for live in (False, True):
            values, grads = results(model, sequence(*shape), tt.unroll, live)
            for name, value in {**values, **grads}.items():
                assert not value.isnan().any(), name


def test_patched_class_of_delays_runs_step_by_step(fused, monkeypatch):
    model, x = made("LIF", max_delay=D), dyadic(6, 3, 5)
    before = tt.unroll(model, x, from_rest=True)
    monkeypatch.setattr(snn.DelayedLinear, "convolve", lambda self, w, k, b: w[..., D:].squeeze(-1))
    tt.zero_states(model)
    expected = stepped(model, x)
    assert torch.equal(tt.unroll(model, x, from_rest=True), expected)
    assert fused == [True, False]
    assert not torch.equal(expected, before)


@pytest.mark.parametrize("max_delay", [0, D])
def test_outputs_and_states_can_be_recorded(max_delay: int, fused: list[bool]) -> None:
    recurrent, x = made("LIF", max_delay=max_delay), dyadic(6, 3, 5)
    inside = ["0.connection.past"] * (max_delay > 0)
    y, seen = tt.unroll(nn.Sequential(recurrent), x, record=["0.output", "0.prev_output", *inside])
    assert fused == [True] * (not inside)
    if inside:
        assert torch.equal(seen[inside[0]][-1], recurrent.connection.past)
    assert torch.equal(seen["0.output"], y)
    assert torch.equal(seen["0.prev_output"], y)
    assert torch.equal(y, tt.unroll(recurrent, x, from_rest=True))


class GainOfEdges(snn.SparseLinear):
    """Connection whose subclass scales what its base class computes, by a learned factor."""

    def edge_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        return super().edge_weight(dtype) * self.gain


class GainOfDelays(snn.DelayedLinear):
    def kernel_of(self, dtype: torch.dtype) -> Tensor:
        return super().kernel_of(dtype) * self.gain


RING = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])


@pytest.mark.parametrize("is_silent", [False, True])
@pytest.mark.parametrize(
    "connection",
    [
        lambda: GainOfEdges(4, 4, RING),
        lambda: GainOfEdges(4, 4, RING, delay=2),
        lambda: GainOfDelays(4, 4, max_delay=3),
    ],
    ids=["edges", "edges with delays", "delays"],
)
def test_an_overridden_weight_acts_once(connection: Any, is_silent: bool) -> None:
    torch.manual_seed(0)
    layer = snn.Recurrent(snn.LIF(4), connection()).double()
    layer.connection.gain = nn.Parameter(torch.tensor(1.5).double())
    x = 2 * torch.rand(9, 3, 4, dtype=torch.float64)
    if is_silent:  # where the first steps of a new model, which are compared, have no spike
        x[:4] = 0
    named, found = dict(layer.named_parameters()), []
    for by in ("layer", "step"):
        loss = tt.unroll(layer, x, by=by, from_rest=True).square().sum()
        found.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
        tt.zero_states(layer)
        call = Net(lambda net, x, by=by: tt.unroll(net.layer, x, by=by), layer=layer)

        def called(given: Any, call: nn.Module = call) -> Tensor:
            parameters = {f"layer.{name}": value for name, value in given.items()}
            return torch.func.functional_call(call, parameters, (x,)).square().sum()

        found.append(torch.func.grad(called)(named))
        tt.zero_states(layer)
    for each in found[1:]:
        torch.testing.assert_close(each, found[0])
    assert bool(found[0]["connection.gain"] != 0)


@pytest.mark.parametrize("words", ["cannot be tried on a sample before", "is for the CPU"])
def test_where_the_loop_is_not_for_it_runs_step_by_step(
    words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "_reported", set())
    model, x = made("LIF"), dyadic(6, 3, 5)
    expected = stepped(model, x)
    if "tried" in words:
        monkeypatch.setattr(backends.backend_named("cpu"), "tried", True)
    else:  # as on a GPU
        monkeypatch.setitem(backends._BY_DEVICE, "cpu", "triton")
    for _ in range(2):
        assert torch.equal(tt.unroll(model, x, from_rest=True), expected)
    (said,) = [text for each in caplog.records if "Recurrent" in (text := each.getMessage())]
    assert f"its loop over all steps {words}" in said


def test_memory_that_is_missing_in_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    y = tt.unroll(made("LIF"), dyadic(9, 2, 5), from_rest=True)
    monkeypatch.setattr("tracetorch.fuse.dispatch.recurrence._backward", full)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"backward pass of .*9 steps: full .*segment="
    ):
        y.sum().backward()
