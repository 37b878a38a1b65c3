"""A loop along a list of edges: one compiled loop, by events, beside the dense and the stepped."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import weighted_sum
from tests.refusals import check, refusals, unchanged
from tests.snn import test_inputs
from tests.snn.test_sparse_linear import (
    DELAYS,
    close,
    compare_with_dense_recurrence,
    drawn_edges,
    gradients,
    same_by_threads,
    seeded,
)
from tracetorch import functional, snn
from tracetorch.fuse.dispatch import sparse_recurrence as dispatched
from tracetorch.fuse.runtime import allocation, sparse_segments, threads

N = 400
SURROGATES = {
    "triangle": functional.triangular_surrogate(0.5),
    "box": functional.boxcar_surrogate(0.5),
    "cut": functional.compact_support(functional.atan_surrogate(), 0.3),
    "atan": functional.atan_surrogate(),
    "straight": functional.straight_through_surrogate(),
}


def delays(kind: str, count: int) -> Tensor | int | None:
    if kind == "far":  # each at least two steps, so that windows are longer than one
        return torch.randint(2, 9, (count,), generator=seeded(3))
    each = torch.randint(5, (count,), generator=seeded(3))
    found: dict[str, Tensor | int | None] = {"none": None, "one": 3, "each": each}
    return found[kind]


def recurrent(
    neurons: int = 600,
    count: int = 12_000,
    *,
    delay: str = "none",
    scale: float = 3.0,
    **options: Any,
) -> Any:
    torch.manual_seed(1)
    edges = drawn_edges(neurons, neurons, count)
    connection = snn.SparseLinear(neurons, neurons, edges, delay=delays(delay, count))
    neuron = snn.LIF(neurons, beta=torch.rand(neurons) * 0.8 + 0.1, **options)
    with torch.no_grad():
        connection.weight.mul_(scale)
    return snn.Recurrent(neuron, connection).double()


def given(steps: int, samples: int, neurons: int, seed: int = 2) -> Tensor:
    return torch.randn(steps, samples, neurons, generator=seeded(seed), dtype=torch.float64)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory that the loop allocates be full of NaN."""
    make = allocation.large_empty
    for module in (sparse_segments, dispatched):
        monkeypatch.setattr(module, "large_empty", lambda *args: make(*args).fill_(torch.nan))


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels of the loop that have run; what nobody has written is NaN."""
    found: list[str] = []
    run = threads.run_written
    poison(monkeypatch)

    def noted(write: Any, *args: Any, form: tuple[bool], **kwargs: Any) -> None:
        found.append(write.__name__ + "_delayed" * form[0])
        run(write, *args, form=form, **kwargs)

    monkeypatch.setattr(sparse_segments, "run_written", noted)
    return found


def states_of(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tt.get_states(model).items()}


def both(model: Any, x: Tensor) -> list[list[Tensor]]:
    """Return outputs and gradients of the loop, and of steps."""
    found = []
    for by in ("layer", "step"):
        y = tt.unroll(model, x, by=by, from_rest=True)
        found.append([y, *gradients(y, *model.parameters())])
    return found


@pytest.mark.one_in(2)
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_equal_to_the_dense_network(loops: list[str], surrogate: str, reset: str) -> None:
    delay = DELAYS[list(SURROGATES).index(surrogate) % 3]
    model = recurrent(
        N, 10 * N, delay=delay, reset=reset, surrogate_derivative=SURROGATES[surrogate]
    )
    compare_with_dense_recurrence(model, given(9, 2, N).requires_grad_(), {})
    end = "" if delay != "each" else "_delayed"
    assert {f"loop_forward{end}", f"loop_backward{end}", f"loop_by_weight{end}"} <= {*loops}


@pytest.mark.parametrize("samples", [1, 3, 9])
@pytest.mark.parametrize("delay", [*DELAYS, "far"])
def test_bitwise_equal_to_steps_and_cut_anywhere(
    loops: list[str], delay: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # several segments, whose histories overlap where delays are longer
    monkeypatch.setattr(sparse_segments, "_SEGMENT", 0)
    model = recurrent(1300 if samples < 9 else 130, 9_000, delay=delay)
    x = given(31, samples, model.num_neurons).requires_grad_()
    results = {}
    for way in ("loop", "step", "cut"):
        tt.zero_states(model)
        del loops[:]
        if way == "cut":
            parts = [tt.unroll(model, part) for part in x.split([1, 2, 20, 8])]
            y = torch.cat(parts)
        else:
            y = tt.unroll(model, x, by="layer" if way == "loop" else "step")
        assert bool(loops) == (way != "step")
        results[way] = y, states_of(model), gradients(y, x, *model.parameters())
    y, states, wanted = results["step"]
    assert y.detach().mean() > 0.02
    for way in ("loop", "cut"):
        assert torch.equal(results[way][0], y)
        torch.testing.assert_close(results[way][1], states, rtol=0, atol=0)
        scales = [float(each.abs().max()) for each in wanted]
        for found, each, scale in zip(results[way][2], wanted, scales, strict=True):
            close(found / scale, each / scale)


@pytest.mark.parametrize("samples", [1, 12])
@pytest.mark.parametrize("delay", ["one", "each", "far"])
def test_no_number_of_threads_changes_a_bit(delay: str, samples: int) -> None:
    model = recurrent(2100, 20_000, delay=delay)
    same_by_threads(model, given(20, samples, 2100).requires_grad_())


@pytest.mark.parametrize(
    ("kind", "compiled"),
    [
        *((snn.LIF, True), (snn.SLIF, True), (tt.neurons.RefractoryLIF, True)),
        *((tt.neurons.ALIF, True), (snn.BLIF, False), (snn.Readout, False)),
    ],
)
def test_neurons_whose_output_is_no_spike_run_by_step(
    loops: list[str], kind: Any, compiled: bool
) -> None:
    connection = recurrent(60, 400, delay="each").connection
    close(*both(snn.Recurrent(kind(60), connection).double(), 2 * given(12, 3, 60)))
    assert bool(loops) == compiled


def test_states_are_recorded() -> None:
    model, x, names = recurrent(200, 2_000, delay="each"), given(14, 3, 200), ["mem", "prev_output"]
    found = tt.unroll(model, x, record=names, from_rest=True)
    close(found, tt.unroll(model, x, record=names, by="step", from_rest=True))


def test_frozen_weights_and_learned_first_outputs(loops: list[str]) -> None:
    model, x = recurrent(130, 900, delay="far"), given(6, 2, 130)
    shapes = (2, 130), (2, 130, 8)
    first = [(torch.rand(shape, generator=seeded()) < 0.3).double() for shape in shapes]
    found = []
    for by in ("layer", "step"):
        tt.zero_states(model)
        model.prev_output, model.connection.past = (each.clone().requires_grad_() for each in first)
        leaves = model.prev_output, model.connection.past
        y = tt.unroll(model, x, by=by)
        found.append(gradients(y, *leaves, *model.parameters()))
    close(*found)
    assert "loop_backward_delayed" in loops
    del loops[:]
    model.connection.requires_grad_(False)
    tt.zero_states(model)
    tt.unroll(model, x).sum().backward()
    assert "loop_by_weight_delayed" not in loops
    assert model.connection.weight.grad is None
    assert model.neuron.raw_beta.grad is not None
    # an output that is no spike cannot be a bit
    model.prev_output, model.connection.past = torch.full_like(first[0], 0.5), first[1].clone()
    del loops[:]
    tt.unroll(model, x)
    assert not loops


def test_a_second_derivative_and_a_batch_of_gradients_are_refused() -> None:
    model = recurrent(50, 300)
    x = given(4, 6, 50).requires_grad_()
    y = tt.unroll(model, x)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True, retain_graph=True)
    several = torch.ones(3, *y.shape).double()
    with pytest.raises(RuntimeError, match="takes one incoming gradient at a time"):
        torch.autograd.grad(y, x, several, is_grads_batched=True)


@pytest.mark.parametrize(("bias", "rate"), [(-50.0, 0), (50.0, 1)], ids=["nobody", "everybody"])
def test_nobody_fires_and_everybody_does(bias: float, rate: int) -> None:
    model = recurrent(700, 9_000, delay="one", scale=0.01)
    with torch.no_grad():
        model.connection.bias.fill_(bias)
    found = both(model, given(11, 2, 700))
    close(*found)
    assert bool((found[0][0] == rate).all())
    tt.zero_states(model)
    nothing = snn.EventInput(torch.zeros(0, 3, dtype=torch.long))
    run = model.run_events(nothing, 11, count_every=4, events=True)
    assert len(run.events) == rate * 11 * 700
    assert run.counts.flatten().unique().tolist() == ([3.0, 4.0] if rate else [0.0])


def test_edges_are_visited_where_something_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of other edges are not taken: their weights may be anything to a gradient."""
    edges = torch.tensor([[0, 1, 2], [3, 3, 3]])
    run = sparse_segments.backward
    for surrogate, visited in (("triangle", 2), ("atan", 3)):
        connection = snn.SparseLinear(4, 4, edges, weight=1.0, bias=False)
        neuron = snn.LIF(4, surrogate_derivative=SURROGATES[surrogate])
        model = snn.Recurrent(neuron, connection)
        x = torch.zeros(3, 1, 4)
        x[0, 0] = torch.tensor([1.2, 0.95, -5.0, 0.0])  # fires, is near, is far
        x.requires_grad_()

        def broken(loop: Any, *args: Any, visited: int = visited, **kwargs: Any) -> Any:
            loop.weight[visited:] = float("nan")
            return run(loop, *args, **kwargs)

        y = tt.unroll(model, x)[1, 0, 3]
        wanted, gradient = torch.autograd.grad(y, [x, connection.weight])
        assert [bool(each) for each in wanted[0, 0, 1:3]] == [True, visited == 3]
        assert (gradient != 0).tolist() == [True, False, False]
        monkeypatch.setattr(sparse_segments, "backward", broken)
        (again,) = torch.autograd.grad(tt.unroll(model, x, from_rest=True)[1, 0, 3], x)
        assert torch.equal(again, wanted)
        monkeypatch.undo()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_run_as_steps_do(value: float) -> None:
    model = recurrent(50, 300)
    with torch.no_grad():
        model.connection.weight[7] = value
    found = both(model, given(6, 2, 50))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_changes_are_seen() -> None:
    model, x = recurrent(80, 500, delay="each"), given(9, 2, 80)
    connection = model.connection
    hooks: list[Any] = []
    known = [tt.unroll(model, x, from_rest=True)]
    for change in (
        lambda: connection.weight.data.mul_(-2),
        lambda: connection.delay.copy_(connection.delay.flip(0)),
        lambda: connection.edges[1].copy_(connection.edges[1].flip(0)),
        lambda: hooks.append(connection.register_forward_hook(lambda *_: x[0] * 0)),
        lambda: hooks[0].remove(),
        lambda: setattr(connection, "forward_step", lambda x: x + 1),
    ):
        change()
        found, steps = (tt.unroll(model, x, by=by, from_rest=True) for by in ("layer", "step"))
        assert torch.equal(found, steps)
        assert not torch.equal(found, known[-1])
        known.append(found)


def test_a_population_that_is_there_twice_goes_on_from_one_part_to_the_next() -> None:
    one = snn.LIF(130)
    neurons = snn.Populations(e=one, i=tt.neurons.ALIF(70), r=one)
    model = snn.Recurrent(neurons, snn.SparseLinear(330, 330, torch.tensor([[0], [1]]))).double()
    x = given(4, 1, 330)
    steps = tt.unroll(model, x, by="step")
    tt.zero_states(model)
    assert torch.equal(tt.unroll(model, x), steps)


def written(name: str, model: Any, source: Any) -> None:
    if name == "seed":
        source.seed += 1
    elif name == "probability":
        source.probability.mul_(0.5)
    elif name == "values":
        source._given.mul_(0.5)
    else:  # as load_state_dict does
        getattr(model.connection, name).copy_(getattr(model.connection, name).flip(-1))


@pytest.mark.parametrize(
    ("road", "name"),
    [(road, name) for road in ("linear", "tensor", "events") for name in ("edges", "delay")]
    + [("events", name) for name in ("values", "probability", "seed")],
)
def test_writes_before_the_backward_pass(road: str, name: str) -> None:
    edges = snn.random_edges(50, 50, 0.2, generator=seeded())
    delay = torch.randint(3, edges.shape[1:], generator=seeded())
    model = snn.Recurrent(snn.LIF(50), snn.SparseLinear(50, 50, edges, delay=delay)).double()
    source: Any = snn.PoissonInput(torch.arange(50), torch.full((50,), 0.3).double(), seed=1)
    if name == "values":
        source = snn.EventInput(drawn_events(300, (9, 1, 50)), torch.rand(300))
    if road == "events":
        y = model.run_events(source, 9, count_every=2).counts
    else:
        y = tt.unroll(model if road == "tensor" else model.connection, given(9, 2, 50))
    loss = (y * torch.rand(y.shape, generator=seeded())).sum()
    weight: Any = model.connection.weight
    before = torch.autograd.grad(loss, weight, retain_graph=True)
    with torch.no_grad():
        written(name, model, source)
    # the loop has copies of what it reads of a layer, and of a source's attributes
    if name == "seed" or (road != "linear" and name in ("edges", "delay")):
        torch.testing.assert_close(torch.autograd.grad(loss, weight), before, rtol=0, atol=0)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, weight)


def drawn_events(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.stack(
        [torch.randint(n, (count,), generator=seeded(i)) for i, n in enumerate(shape)], 1
    )


@pytest.mark.parametrize("shape", [(30, 1, 700), (25, 9, 100), (3, 2, 600), (1, 1, 64)])
@pytest.mark.parametrize("delay", [*DELAYS, "far"])
def test_events_give_what_a_tensor_does(
    delay: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_segments, "_SEGMENT", 0)
    monkeypatch.setattr(sparse_segments, "_LONG", 7)
    steps, samples, neurons = shape
    events, values = drawn_events(3000, shape), torch.rand(3000, generator=seeded()).double()
    values.requires_grad_()
    chosen = torch.randint(neurons, (17,), generator=seeded(5))
    x = torch.zeros(shape).double().index_put(tuple(events.t()), values, accumulate=True)
    model, other = (recurrent(neurons, 4_000, delay=delay) for _ in range(2))
    losses = [torch.zeros(()).double(), torch.zeros(()).double()]
    for _ in range(2):  # the second goes on from the first
        run = model.run_events(
            snn.EventInput(events, values),
            steps,
            batch=samples,
            neurons=chosen,
            count_every=7,
            events=True,
        )
        y = tt.unroll(other, x)
        counts = torch.stack([part.sum(0) for part in y.split(7)])
        assert torch.equal(run.outputs, y[..., chosen])
        assert torch.equal(run.counts, counts)
        assert torch.equal(run.events, y.nonzero())
        for i, pair in enumerate(((run.outputs, run.counts), (y[..., chosen], counts))):
            losses[i] = losses[i] + sum(weighted_sum(each) for each in pair)
    torch.testing.assert_close(states_of(model), states_of(other), rtol=0, atol=0)
    found = []
    for loss, each in zip(losses, (model, other), strict=True):
        loss = loss + sum(s.sum() for s in tt.get_states(each).values() if s.requires_grad)
        found.append(torch.autograd.grad(loss, [values, *each.parameters()], retain_graph=True))
    for one, two in zip(*found, strict=True):
        scale = two.abs().max().clamp(min=1e-300)
        close(one / scale, two / scale)
    tt.zero_states(model)
    with torch.no_grad():  # in parts whose memory is used again
        again = model.run_events(snn.EventInput(events, values), steps, batch=samples, events=True)
    tt.zero_states(other)
    assert torch.equal(again.events, tt.unroll(other, x).nonzero())
    assert again.outputs is None
    assert again.counts is None


def test_values_of_events_are_learned_between_runs() -> None:
    model = recurrent(800, 9_000)
    values = torch.full((9_000,), 0.3, requires_grad=True)  # float32, of a network of float64
    source, losses = snn.EventInput(drawn_events(9_000, (15, 1, 800)), values), []
    for _ in range(3):
        model.zero_states()
        loss = (model.run_events(source, 15, count_every=15).counts.mean() - 4).square()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            values -= 2 * torch.autograd.grad(loss, values)[0]
    assert losses[0] > losses[1] > losses[2]


def test_sources_add_up_and_lists_of_steps_are_events() -> None:
    model = recurrent(50, 300)
    lists = [torch.tensor([[0, 3], [0, 4]]), torch.zeros(0, 2).long(), torch.tensor([[0, 3]])]
    table = torch.tensor([[2, 0, 3], [0, 0, 3], [0, 0, 4]])
    assert torch.equal(snn.EventInput(lists).events, snn.EventInput(table).events)
    both = [snn.EventInput(table, 1.5), snn.EventInput(table, 0.5)]
    run = model.run_events(both, 4, events=True)
    for given in (lists, table):
        tt.zero_states(model)
        again = model.run_events(snn.EventInput(given, 2.0), 4, events=True)
        assert torch.equal(run.events, again.events)


def test_poisson_groups_come_from_a_counter() -> None:
    shares = torch.tensor([0.2, 1.0, 0.0])
    group = snn.PoissonInput(torch.tensor([3, 1, 70]), shares, value=2.0, seed=7)
    span = snn.event_inputs.Span(0, 4000, 2, 80)
    places, values = group.between(span, torch.float64)
    step, sample, neuron = places // 160, places // 80 % 2, places % 80
    assert values.unique().tolist() == [2.0]
    assert (neuron == 1).sum() == 8000
    assert not bool((neuron == 70).any())
    there = torch.zeros(2, 4000)
    there[sample[neuron == 3], step[neuron == 3]] = 1
    assert bool(((there.mean(1) - 0.2).abs() < 0.03).all())
    assert bool((there[0] != there[1]).any())
    assert abs(float((there[:, 1:] * there[:, :-1]).mean()) - 0.04) < 0.01  # no memory
    # any part is the part of the whole, and another seed is another draw
    part, _ = group.between(span._replace(begin=1000, end=1500), torch.float32)
    assert torch.equal(part + 160_000, places[(step >= 1000) & (step < 1500)])
    other = snn.PoissonInput(group.neurons, group.probability, seed=8)
    assert not torch.equal(other.between(span, torch.float64)[0], places)
    model = recurrent(80, 300, delay="one")
    listed = torch.stack([step, sample, neuron], 1)[step < 50]
    runs = []
    for source in (group, snn.EventInput(listed, 2.0)):
        tt.zero_states(model)
        run = model.run_events(source, 50, batch=2, count_every=50)
        runs.append([run.counts, *gradients(run.counts, *model.parameters())])
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_memory_is_that_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made that has a value for every step and neuron."""
    monkeypatch.setattr(sparse_segments, "_SEGMENT", 0)
    steps, neurons = 3000, 4096
    model = recurrent(neurons, 9_000, delay="one", surrogate_derivative=SURROGATES["triangle"])
    largest = 0
    for name in ("large_empty", "packed"):
        make = getattr(sparse_segments, name)

        def noted(*args: Any, make: Any = make, **kwargs: Any) -> Tensor:
            nonlocal largest
            made: Tensor = make(*args, **kwargs)
            largest = max(largest, made.nbytes)
            return made

        monkeypatch.setattr(sparse_segments, name, noted)
    source = snn.PoissonInput(torch.arange(neurons), 0.01, value=3.0)
    run = model.run_events(source, steps, count_every=steps)
    run.counts.square().mean().backward()
    assert model.connection.weight.grad.count_nonzero() > 0
    assert largest < steps * neurons * 8 / 20


E, P, Pop, n = snn.EventInput, snn.PoissonInput, snn.Populations, torch.arange(3)
e = torch.tensor([[0, 0, 1], [4, 0, 2]])


def events_of(neuron: nn.Module) -> Any:
    return snn.Recurrent(neuron, snn.SparseLinear(3, 3, torch.zeros(2, 0).long())).run_events


@refusals("""
    E(e.float()) -> TypeError: events must be a tensor of integers, got torch.float32. Convert it by
    E(e[0]) -> ValueError: events must be .n, 3.*got shape .3.
    E(-e) -> ValueError: begin with 0, got -4
    E([e]) -> ValueError: events of step 0 must be .n, 2., sample and neuron in a row, got .2, 3.
    E(e, torch.ones(3)) -> ValueError: values must be one number, or .2., one for each event
    E(e, torch.ones(2).long()) -> TypeError: values must be floats, got torch.int64
    P(n - 1, 0.1) -> ValueError: neurons must be .k., from 0 on, got shape .3., the least -1
    P(n, 1.5) -> ValueError: probability must be in .0, 1.: a rate times the length of a step
    P(n, torch.ones(2)) -> ValueError: probability must be one number, or .3., one for each n
    P(n, 0.5, seed=-1) -> ValueError: seed must be 0 to 2..31 - 1, got -1
    run(e, 5) -> TypeError: inputs must be an EventInput, a PoissonInput or a list .* got Tensor
    run(E(e), 4) -> ValueError: an event has the step 4, and the run has 4, 0 to 3
    run(P(n + 30, 0.1), 9) -> ValueError: an event has the neuron 32, and the run has 30
    run(E(e), 5, batch=2) -> ValueError: state.* of shape .1, 30., .*
    run(E(e), 5, neurons=n + 28) -> ValueError: neurons must be 0 to 29, got 30
    run(E(e), 5, neurons=e) -> ValueError: neurons must be .k., got shape .2, 3.
    snn.Recurrent(snn.LIF(3), nn.Linear(3, 3)).run_events(E(e), 5) -> ValueError: no compiled loop
    events_of(snn.BLIF(3))(E(e), 5) -> ValueError: here is BLIF .an output with
    events_of(Pop(a=snn.LIF(2), b=snn.LIF(1)))(E(e), 5) -> ValueError: and here is Popul
    Pop() -> ValueError: Populations needs neuron layers
    Pop(a=torch.nn.Linear(2, 2)) -> TypeError: a must be a neuron layer, got Linear
    Pop(a=snn.SparseLinear(3, 3, e.t()[:2] * 0)) -> TypeError: a must be a neuron layer, got SparseL
    Pop(a=snn.LIF(3, dim=-3)) -> ValueError: side by side in the last dimension, and a has its .*-3
    Pop(forward=snn.LIF(3)) -> ValueError: a module has an attribute 'forward': take another name
    Pop(a=snn.LIF(3), b=snn.LIF(4))(torch.ones(2, 6)) -> ValueError: of 3 . 4 neurons take 7 in the
    Pop(a=snn.LIF(3))(3) -> TypeError: Populations takes a tensor, got int
    Pop(a=made()) -> ValueError: Populations has one input, and ThreeFactor takes .x,
""")
def test_refused(call: str, error: str) -> None:
    model = recurrent(30, 100, delay="one")
    model.run_events(E(e), 5)
    with unchanged(model):
        check(call, error, globals() | {"made": test_inputs.made, "run": model.run_events})


def test_edited_layers_and_the_eager_backend_do_not_run_by_events() -> None:
    model = recurrent(30, 100)
    hook = model.connection.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="without hooks or edits"):
        model.run_events(E(e), 5)
    hook.remove()
    with tt.fuse.backend("eager"), pytest.raises(ValueError, match="no compiled loop"):
        model.run_events(E(e), 5)
    assert model.run_events(E(e), 5) == (None, None, None)
