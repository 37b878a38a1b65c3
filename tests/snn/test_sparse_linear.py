import copy
import gc
import weakref
from typing import Any

import pytest
import scipy.sparse
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.utils import parametrize, prune

import tracetorch as tt
from tests.cases import Net, few
from tests.refusals import check, refusals, unchanged
from tracetorch import snn
from tracetorch.nir import from_nir, to_nir

N = 400
IN, OUT, E = 40, 50, 300
DELAYS = ("none", "one", "each")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_edges(inputs: int, outputs: int, count: int) -> Tensor:
    """Draw edges with repetitions, in no order."""
    generator = seeded()
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in (inputs, outputs)])


def sparse(
    inputs: int = IN,
    outputs: int = OUT,
    count: int = E,
    *,
    delay: str = "none",
    signs: bool = False,
    group: bool = False,
    ordered: bool = False,
    bias: bool = True,
) -> snn.SparseLinear:
    torch.manual_seed(1)
    edges = drawn_edges(inputs, outputs, count)
    if ordered:
        edges = edges[:, edges[0].argsort(stable=True)]
    options: dict[str, Any] = {
        "delay": {"none": None, "one": 3, "each": torch.randint(5, (count,))}[delay],
        "signs": torch.where(torch.rand(inputs) < 0.7, 1, -1) if signs else None,
        "group": torch.randint(7, (count,)) if group else None,
    }
    return snn.SparseLinear(inputs, outputs, edges, bias=bias, **options).double()


def spikes(*shape: int, density: float = 0.1) -> Tensor:
    generator = seeded()
    there = torch.rand(*shape, generator=generator) < density
    return there.double() * torch.rand(*shape, generator=generator, dtype=torch.float64)


def matrices(layer: snn.SparseLinear) -> list[Tensor]:
    """One dense weight ``[out, in]`` for each delay, as a function of the layer's parameters."""
    weight: Tensor = layer.weight
    sources, targets = layer.edges.long()
    if layer.group is not None:
        weight = weight[layer.group.long()]
    if layer.signs is not None:
        weight = torch.where(weight < 0, -weight, weight) * layer.signs
    delay = torch.zeros(()) if layer.delay is None else layer.delay
    delay = delay.expand(len(weight))
    found = []
    for steps in range(layer.max_delay + 1):
        here = delay == steps
        dense = weight.new_zeros(layer.out_features, layer.in_features)
        found.append(dense.index_put((targets[here], sources[here]), weight[here], accumulate=True))
    return found


class Dense:
    """What a layer computes, step by step, with dense weights."""

    def __init__(self, layer: snn.SparseLinear) -> None:
        self.weights, self.bias = matrices(layer), layer.bias
        self.history: list[Tensor] = []

    def step(self, x: Tensor, restarts: Tensor | None = None) -> Tensor:
        if restarts is not None:
            self.history = [each.where(~restarts[:, None], 0.0) for each in self.history]
        self.history = [x, *self.history][: len(self.weights)]
        pairs = zip(self.history, self.weights, strict=False)
        y = sum((each @ weight.t() for each, weight in pairs), x.new_zeros(()))
        return y if self.bias is None else y + self.bias


def gradients(y: Tensor, *wanted: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return list(torch.autograd.grad((y * weights).sum(), wanted))


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("group", [False, True], ids=["own", "group"])
@pytest.mark.parametrize("signs", [False, True], ids=["free", "signs"])
@pytest.mark.parametrize("delay", DELAYS)
def test_equal_to_the_dense_layer(delay: str, signs: bool, group: bool) -> None:
    layer = sparse(N, N, 10 * N, delay=delay, signs=signs, group=group)
    x = spikes(9, 3, N).requires_grad_()
    reset = torch.rand(9, 3, generator=seeded()) < 0.2
    dense = Dense(layer)
    expected = torch.stack([dense.step(each, now) for each, now in zip(x, reset, strict=True)])
    parameters = [x, *layer.parameters()]
    wanted = gradients(expected, *parameters)
    for options in ({}, {"by": "step"}, {"segment": 4}, {"segment": 2, "by": "step"}):
        tt.zero_states(layer)
        y = tt.unroll(layer, x, reset=reset, **options)
        close(y, expected)
        if layer.max_delay:
            steps = reversed(dense.history[: layer.max_delay])
            kept = torch.stack([*steps], -1)[..., -layer.max_delay :]
            close(layer.past, kept)
        else:
            assert layer.past is None
            assert layer.active_states == ()
        close(gradients(y, *parameters), wanted)


def compare_with_dense_recurrence(model: Any, x: Tensor, *ways: dict[str, Any]) -> None:
    """Outputs, states and all gradients, with restarts within the sequence and without."""
    neuron, parameters = model.neuron, [x, *model.parameters()]

    def of_all(y: Tensor) -> list[Tensor]:
        weights = torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)
        return gradients(torch.cat([y, (neuron.mem * weights)[None]]), *parameters)

    for share in (0.0, 0.1):
        reset = torch.rand(x.shape[:2], generator=seeded()) < share
        tt.zero_states(model)
        dense, output, expected = Dense(model.connection), torch.zeros_like(x[0]), []
        for each, now in zip(x, reset, strict=True):
            output = output.where(~now[:, None], 0.0)
            neuron.zero_states(where=now)
            output = neuron(each + dense.step(output, now))
            expected.append(output)
        mem = neuron.mem
        assert 0.02 < float(torch.stack(expected).detach().mean()) < 0.5
        wanted = of_all(torch.stack(expected))
        for options in ways:
            tt.zero_states(model)
            y = tt.unroll(model, x, reset=reset if share else None, **options)
            close(y, torch.stack(expected))
            close(neuron.mem, mem)
            for found, each in zip(of_all(y), wanted, strict=True):
                scale = max([1.0, *each.abs().flatten().tolist()])
                close(found / scale, each / scale)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("group", [False, True], ids=["own", "group"])
@pytest.mark.parametrize("signs", [False, True], ids=["free", "signs"])
@pytest.mark.parametrize("delay", DELAYS)
def test_recurrence_is_equal_to_the_dense_one(delay: str, signs: bool, group: bool) -> None:
    connection = sparse(N, N, 10 * N, delay=delay, signs=signs, group=group)
    model = snn.Recurrent(snn.LIF(N, beta=0.8, pos_threshold=2.0).double(), connection)
    x = (2 * spikes(8, 2, N, density=0.5)).requires_grad_()
    compare_with_dense_recurrence(model, x, {}, {"by": "step"}, {"segment": 3})


GRAPHS = {
    "one edge many times": torch.tensor([[3], [5]]).expand(2, 900),
    "self-loops": torch.arange(200).expand(2, 200),
    "empty rows": drawn_edges(200, 200, 500) // 20 * 20,
    "one source": torch.stack([torch.full((200,), 7), torch.arange(200)]),
    "one target": torch.stack([torch.arange(200), torch.full((200,), 7)]),
    "no edge": torch.zeros(2, 0, dtype=torch.long),
}


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_odd_graphs_are_right(graph: str, delay: str) -> None:
    edges = GRAPHS[graph]
    count = edges.shape[1]
    each = torch.randint(5, (count,), generator=seeded())
    weight = torch.randn(count, generator=seeded())
    kinds: dict[str, Tensor | int | None] = {"none": None, "one": 3, "each": each}
    connection = snn.SparseLinear(200, 200, edges, weight=weight, delay=kinds[delay]).double()
    model = snn.Recurrent(snn.LIF(200, beta=0.8, pos_threshold=2.0).double(), connection)
    x = (2 * spikes(8, 2, 200, density=0.5)).requires_grad_()
    compare_with_dense_recurrence(model, x, {}, {"by": "step"})


def same_by_threads(model: nn.Module, x: Tensor) -> None:
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = tt.unroll(model, x, from_rest=True)
            results.append([y, *gradients(y, x, *model.parameters())])
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("ordered", [False, True], ids=["mixed", "sorted"])
@pytest.mark.parametrize("delay", DELAYS)
def test_no_number_of_threads_changes_a_bit(delay: str, ordered: bool) -> None:
    layer = sparse(700, 600, 30_000, delay=delay, ordered=ordered).float()
    same_by_threads(layer, spikes(60, 5, 700).float().requires_grad_())


@pytest.mark.parametrize("shape", [(IN,), (3, IN), (2, 3, IN), (0, IN)])
@pytest.mark.parametrize("delay", DELAYS)
def test_steps_and_a_sequence_are_bitwise_equal(delay: str, shape: tuple[int, ...]) -> None:
    layer = sparse(delay=delay)
    x = spikes(7, *shape)
    by_step = torch.stack([layer(each) for each in x])
    past = layer.past
    layer.zero_states()
    y, recorded = layer.forward_sequence(x, layer.active_states)
    assert y.shape == (7, *shape[:-1], OUT)
    assert torch.equal(y, by_step)
    if past is not None:
        assert torch.equal(layer.past, past)
        assert torch.equal(recorded["past"][-1], past)


@pytest.mark.parametrize("delay", DELAYS)
def test_operations_of_pytorch_compute_the_same(
    delay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = sparse(delay=delay)
    with torch.no_grad():
        layer.weight[::9] = torch.nan
        layer.weight[1::9] = torch.inf
    x = spikes(6, 2, IN, density=0.02).requires_grad_()
    y = tt.unroll(layer, x, from_rest=True)
    found = [y, *gradients(y, layer.weight)]
    # what is 0 adds nothing, whatever the weight is
    assert bool(y.isfinite().any())
    assert bool(y.isnan().any())
    clean = sparse(delay=delay)
    y = tt.unroll(clean, x, from_rest=True)
    expected = gradients(y, x, *clean.parameters())
    monkeypatch.setattr("tracetorch.snn.sparse.product._VALUES", 500)  # several chunks
    with tt.fuse.backend("eager"):
        y = tt.unroll(layer, x, from_rest=True)
        again = [y, *gradients(y, layer.weight)]
        torch.testing.assert_close(again, found, rtol=1e-12, atol=1e-12, equal_nan=True)
        y = tt.unroll(clean, x, from_rest=True)
        close(gradients(y, x, *clean.parameters()), expected)


@pytest.mark.one_in(3)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # jvp imports it
@pytest.mark.parametrize("delay", DELAYS)
def test_derivatives_of_every_kind(delay: str) -> None:
    layer = sparse(6, 5, 20, delay=delay, bias=False)
    model = Net(lambda net, x: tt.unroll(net.layer, x, from_rest=True), layer=layer)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return functional_call(model, {"layer.weight": weight}, (x,))

    inputs = spikes(5, 2, 6, density=0.6).requires_grad_(), layer.weight.detach().requires_grad_()
    kinds = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(run, inputs, **kinds)
    assert torch.autograd.gradgradcheck(run, inputs)
    third = run(*inputs).pow(3)
    for by in (0, 1, 0):
        (third,) = torch.autograd.grad(third.sum(), inputs[by], create_graph=True)
    x, weight = (each.detach() for each in inputs)

    def first(x: Tensor, weight: Tensor) -> Tensor:
        return jacrev(lambda x: run(x, weight).pow(3).sum())(x).sum()

    with tt.fuse.backend("eager"):
        close(third, jacrev(lambda x: jacrev(lambda w: first(x, w))(weight).sum())(x))


@pytest.mark.slow
@pytest.mark.parametrize("delay", few(DELAYS, "each"))
def test_compilation_and_export_see_plain_operations(delay: str) -> None:
    layer = sparse(delay=delay)
    x = spikes(4, 3, IN)
    expected = torch.stack([layer(each) for each in x])
    layer.zero_states()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    close(torch.stack([compiled(each) for each in x]), expected)
    layer.zero_states()
    model = nn.Sequential(layer, snn.Readout(OUT).double())
    program = tt.export.sequence(model, x)
    states = tt.export.initial_states(program, 3)
    close(program.module()(x, states)[0], tt.unroll(model, x, from_rest=True))


def test_half_precision_is_summed_in_float32() -> None:
    layer = sparse().float()
    x = spikes(3, IN)
    for dtype in (torch.float16, torch.bfloat16):
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y, layer(x.to(dtype).float()).to(dtype), rtol=0, atol=0)


def test_edges_twice_to_oneself_and_to_nobody() -> None:
    edges = torch.tensor([[2, 0, 2, 1, 2], [1, 0, 1, 3, 2]])  # 2 -> 1 twice, 0 -> 0, 2 -> 2
    layer = snn.SparseLinear(5, 4, edges, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), bias=False)
    expected = [[2, 0, 0, 0, 0], [0, 0, 5, 0, 0], [0, 0, 16, 0, 0], [0, 8, 0, 0, 0]]
    assert layer.dense_weight().tolist() == expected
    assert layer(torch.eye(5)).t().tolist() == expected
    for delay in DELAYS:  # no edge at all
        layer = sparse(count=0, delay=delay)
        x = spikes(4, 2, IN).requires_grad_()
        y = tt.unroll(layer, x, from_rest=True)
        assert torch.equal(y, layer.bias.expand_as(y))
        assert layer.bias.eq(0).all()  # nothing leads to it, as in nn.Linear without inputs
        found = gradients(y, x, layer.weight)
        assert not found[0].any()
        assert found[1].shape == (0,)


def test_the_start_is_that_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    edges = snn.random_edges(400, 300, 0.1)
    layer = snn.SparseLinear(300, 400, edges)
    degrees = edges[1].bincount(minlength=400)
    scaled = layer.weight.detach() * degrees[edges[1]].sqrt()
    assert 0.99 < float(scaled.abs().max()) <= 1 + 1e-6
    assert abs(float(scaled.square().mean()) - 1 / 3) < 0.01
    assert bool((layer.bias.abs() <= degrees.rsqrt()).all())
    assert bool(layer.bias.any())
    weight = layer.weight.detach()
    assert abs(layer.default_rms() - float(weight.square().mean().sqrt())) < 1e-3
    shared = snn.SparseLinear(300, 400, edges, group=torch.arange(edges.shape[1]) % 5)
    assert shared.weight.shape == (5,)
    assert bool((shared.weight.abs() < 0.2).all())


def test_signs_are_those_of_connect() -> None:
    signs = torch.tensor([1, -1, 1, -1])
    edges = torch.tensor([[0, 1, 2, 3, 1], [0, 0, 1, 2, 2]])
    layer = snn.SparseLinear(4, 3, edges, torch.tensor([-1.0, 2.0, 3.0, -4.0, 0.0]), signs=signs)
    assert layer.weight.tolist() == [1, -2, 3, -4, 0]  # mirrored, as connect does
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -0.25, 0.0]))
        linear.weight.copy_(layer.dense_weight())
        linear.bias.copy_(layer.bias)
    snn.connect(linear, mask=linear.weight != 0, signs=signs)
    x = torch.randint(0, 16, (2, 4), generator=seeded()) / 16
    assert torch.equal(layer(x), linear(x))
    layer(x).sum().backward()
    assert float(layer.weight.grad[4]) == -float(x[:, 1].sum())  # at zero, where |w| has a kink
    with torch.no_grad():
        layer.weight.neg_()
    assert torch.equal(layer.edge_weight().sign(), torch.tensor([1.0, -1, 1, -1, 0]))
    per_edge = torch.tensor([1, -1, -1, 1, 1])
    assert snn.SparseLinear(4, 3, edges, 1.0, signs=per_edge).weight.tolist() == [1, -1, -1, 1, 1]
    square = edges[:, :4]
    made = snn.SparseLinear(4, 3, square, 1.0, signs=per_edge[None, :4])
    assert made.weight.tolist() == [1, -1, -1, 1]


def test_what_is_written_is_seen() -> None:
    layer = sparse(delay="each")
    x = spikes(6, 2, IN)
    first = tt.unroll(layer, x, from_rest=True)
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.bias.mul_(2)
    close(tt.unroll(layer, x, from_rest=True), 2 * first)
    layer.edges[1] = layer.edges[1].flip(0)
    layer.delay.copy_(layer.delay.flip(0))
    dense = Dense(layer)
    close(tt.unroll(layer, x, from_rest=True), torch.stack([dense.step(each) for each in x]))


def test_what_does_not_fit_is_not_read() -> None:
    layer = sparse(delay="each", ordered=True)
    x = spikes(2, IN)
    assert layer(x).shape == (2, OUT)
    for name, value, message in (
        ("edges", layer.edges.clone().fill_(IN), f"cannot run: edge 0 has the source {IN}"),
        ("delay", layer.delay + 9, "delay must be whole numbers, 0 to 4, got "),
        ("weight", nn.Parameter(layer.weight[:3].detach()), "300 edges, and weights .* of shape"),
        ("delay", layer.delay[:3], "300 edges have delays of shape"),
        ("edges", layer.edges[:, :3], "3 edges have delays of shape"),
        ("out_features", 3, "has the target 49, and there are 3"),
    ):
        layer.zero_states()
        changed = copy.deepcopy(layer)
        setattr(changed, name, value)
        with pytest.raises(ValueError, match=message):
            changed(x)


def test_the_graph_of_a_state_does_not_keep_its_layer() -> None:
    layer = sparse(delay="each")
    layer(spikes(2, IN))
    assert layer.past.requires_grad is False
    y = layer(spikes(2, IN).requires_grad_())
    assert layer.past.requires_grad
    known = weakref.ref(layer)
    del layer, y
    gc.collect()
    assert known() is None


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # torch 2.12
def test_made_of_matrices_tables_and_layers() -> None:
    dense = torch.where(torch.rand(OUT, IN, generator=seeded()) < 0.1, 1.5, 0.0)
    dense[3] = torch.arange(IN) % 3
    found = scipy.sparse.csr_matrix(dense.double().numpy())
    made = {
        "coo": snn.SparseLinear.from_matrix(dense.to_sparse_coo()),
        "csr": snn.SparseLinear.from_matrix(dense.to_sparse_csr(), bias=False),
        "csc": snn.SparseLinear.from_matrix(dense.to_sparse_csc()),
        "scipy": snn.SparseLinear.from_matrix(found),
        "array": snn.SparseLinear.from_matrix(scipy.sparse.coo_array(found)),
    }
    for name, layer in made.items():
        assert (layer.in_features, layer.out_features) == (IN, OUT), name
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.dense_weight(), dense), name
    assert made["csr"].bias is None
    assert made["csc"].plan.order is None is not made["csr"].plan.order
    assert torch.equal(made["csr"].weight, dense.to_sparse_csr().values())
    places = torch.tensor([[0, 0], [1, 1]])
    twice = torch.sparse_coo_tensor(places, torch.tensor([2, 3]), (2, 2), check_invariants=True)
    assert snn.SparseLinear.from_matrix(twice).weight.tolist() == [2, 3]


def test_made_of_a_connected_layer() -> None:
    torch.manual_seed(0)
    mask = snn.random_mask(OUT, IN, 0.2)
    signs = torch.where(torch.rand(IN) < 0.8, 1, -1)
    for options in ({"mask": mask}, {"mask": mask, "signs": signs}, {"signs": signs}):
        linear = snn.connect(nn.Linear(IN, OUT), **options)
        layer = snn.SparseLinear.from_linear(linear)
        x = spikes(3, IN).float()
        torch.testing.assert_close(layer(x), linear(x))
        assert layer.plan.order is None
        count = int(mask.sum()) if "mask" in options else IN * OUT
        assert layer.edges.shape == (2, count)
        assert (layer.signs is None) == ("signs" not in options)
    linear = nn.Linear(3, 2, bias=False)
    nn.init.eye_(linear.weight)
    layer = snn.SparseLinear.from_linear(linear, delay=2)
    assert (layer.edges.tolist(), layer.max_delay, layer.bias) == ([[0, 1], [0, 1]], 2, None)


def test_nothing_is_dense() -> None:
    size, count = 1_000_000, 2_000  # a dense weight would take 4 TB
    edges = drawn_edges(size, size, count)
    model = nn.Sequential(
        snn.SparseLinear(size, size, edges, delay=torch.arange(count) % 2), snn.LIF(size)
    )
    x = torch.zeros(2, 1, size).index_fill(2, edges[0, :1500], 1.0)
    tt.unroll(model, x, from_rest=True).sum().backward()
    assert "SparseLinear(1000000" in repr(model)


def test_memory_goes_by_edges() -> None:
    for count in (10_000, 40_000):
        layer = sparse(IN, OUT, count, bias=False).float()
        held = layer.weight.nbytes + sum(each.nbytes for each in layer.buffers())
        assert held == 4 * count + 8 * count
        assert layer.plan is layer.plan  # sorted once
        plan = [each for each in layer.plan if isinstance(each, Tensor)]
        assert sum(each.nbytes for each in plan) == 8 * count + 8 * (IN + 1)


ALL: dict[str, Any] = {"delay": "each", "signs": True, "group": True}


def test_a_file_is_complete() -> None:
    layer, other = sparse(**ALL), sparse(**ALL)
    with torch.no_grad():
        for each in (*other.parameters(), *other.edges, other.signs, other.group, other.delay):
            each.copy_(each.flip(0))
    x = spikes(5, 2, IN)
    expected = tt.unroll(layer, x, from_rest=True)
    assert not torch.equal(tt.unroll(other, x, from_rest=True), expected)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(tt.unroll(other, x, from_rest=True), expected)


@pytest.mark.parametrize(
    ("name", "value", "own", "message"),
    [
        ("edges", 50, ALL, r"edge 0 has the source 50, and there are 40, 0 to 39"),
        ("edges", 0.5, ALL, r"edges must be integers, got torch.float32"),
        ("delay", 9, ALL, r"delay must be whole numbers, 0 to 4, got 9"),
        ("signs", 0, ALL, r"signs must be 1 \(excitatory\) or -1 \(inhibitory\)"),
        ("group", 7, ALL, r"group must be whole numbers, 0 to 6, got 7"),
        ("delay", 2, {"delay": "one"}, "it was built with delay=3, and has 2 now"),
        ("delay", 2, {}, "the file has delay, and the layer was built without"),
    ],
)
def test_loading_checks(name: str, value: float, own: Any, message: str) -> None:
    layer = sparse(**own)
    file = {key: each.clone() for key, each in layer.state_dict().items()}
    file[name] = torch.full(file[name].shape if name in file else (), value)
    file["weight"] = file["weight"] + 1
    with unchanged(layer), pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(file)


def test_a_parametrization_acts_and_pruning_is_refused() -> None:
    layer, x = sparse(), spikes(2, IN)
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    assert bool((layer.edge_weight() > 0).all())
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    layer(x).sum().backward()
    assert layer.parametrizations.weight.original.grad is not None
    pruned = prune.l1_unstructured(sparse(), "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"has a pruned weight, or a norm of"):
        pruned(x)


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    hidden = sparse(IN, IN, 200, **options).float()
    return nn.Sequential(
        sparse(IN, IN, **options).float(),
        snn.LIF(IN),
        snn.Recurrent(snn.LIF(IN), hidden),
        nn.Linear(IN, 3),
        snn.Readout(3),
    )


def test_weights_of_edges_are_weights() -> None:
    net = network()
    groups = {each["name"]: each for each in tt.param_groups(net, 0.1)}
    assert [len(groups[name]["params"]) for name in ("weights", "neurons")] == [3, 5]

    def rates() -> dict[str, float]:
        relative = tt.param_groups(net, 0.1, lr=1.0, relative=True)
        return {each["name"].split(" x ")[0]: each["lr"] for each in relative}

    assert 0.9 < rates()["0.weight"] < 1.1
    assert rates()["0.bias"] == rates()["0.weight"]
    with torch.no_grad():
        net[0].weight.mul_(8)
    assert 7.2 < rates()["0.weight"] < 8.8


@pytest.mark.parametrize("delay", DELAYS)
def test_initialisation_scales_edges(delay: str) -> None:
    net = network(delay=delay)
    x = (torch.rand(30, 16, IN, generator=seeded()) < 0.2).float()
    before = net[0].weight.detach().clone()
    reached = tt.init.calibrate_(net, x)
    assert all(abs(each.deviation - 0.5) < 0.05 for each in reached.values())
    factors, targets = net[0].weight.detach() / before, net[0].edges[1]
    for target in range(5):
        own = factors[targets == target]
        torch.testing.assert_close(own, own[:1].expand_as(own))


def test_metrics_and_graphs() -> None:
    net = network()
    x = (torch.rand(20, 8, IN, generator=seeded()) < 0.3).float()
    # the operations of the dense layer without those of absent edges
    row = tt.metrics.profile(net[:2], x).rows[0]
    fan_out = net[0].edges[0].bincount(minlength=IN).float()
    assert row.acs == float((x.sum((0, 1)) @ fan_out) / 8)
    assert row.dense == 20 * E
    expected = 1 - 300 / (IN * IN)
    assert abs(tt.metrics.connection_sparsity(sparse(IN, IN)) - expected) < 1e-9
    read = from_nir(to_nir(net, x[0], dt=1e-3), dt=1e-3)
    torch.testing.assert_close(
        tt.unroll(read, x, by="step", from_rest=True), tt.unroll(net, x, from_rest=True)
    )
    learner = tt.online(net, "eprop")
    learner(torch.ones(2, IN))
    assert "0.weight -> states of 1: no trace" in " ".join(map(str, learner.dropped))


L, x = snn.SparseLinear, torch.ones(3, 2, IN)
e, s = torch.tensor([[0, 1, 1], [0, 0, 2]]), torch.eye(3).to_sparse()


@refusals("""
    L(2, 3, e.float()) -> TypeError: edges must be a tensor of integers, got torch.float32
    L(2, 3, e.t()) -> ValueError: edges must be .2, E.*got shape .3, 2.. Transpose them: edges.t()
    L(1, 3, e) -> ValueError: edges lead out of the layer: edge 1 has the source 1, and there are 1
    L(2, 3, e[:, :1].expand(2, 2**31)) -> ValueError: fewer than 2..31 edges, got 2147483648
    L(2**31, 3, e) -> ValueError: fewer than 2..31 features, got 2147483648
    L(2, 3, e, torch.ones(2)) -> ValueError: weight must be one number, or .3., .*got shape .2.
    L(2, 3, e, torch.ones(3).long()) -> TypeError: weight must be floats, got torch.int64
    L(2, 3, e, delay=-1) -> ValueError: delay must be whole numbers, 0 to 0, got -1
    L(2, 3, e, delay=torch.ones(2).long()) -> ValueError: delay must be one number, or .3.
    L(2, 3, e, group=torch.ones(2).long()) -> ValueError: group must be .3., the number of each
    L(2, 3, e, torch.ones(2), group=e[1]) -> ValueError: group must be whole numbers, 0 to 1, got 2
    L(2, 3, e, signs=torch.zeros(2)) -> ValueError: signs must be 1 .excitatory. or -1
    L(2, 3, e, signs=torch.ones(4)) -> ValueError: signs must have one value for each source, .2.
    L(2, 3, e[:, 1:], signs=torch.tensor([1, -1])) -> ValueError: as many edges as sources, 2
    L(2, 3, e, delay=e[0].to("meta")) -> ValueError: delay has no values on the meta device
    L(2, 3, e.to("meta"), signs=torch.ones(2)) -> ValueError: edges have no values on the meta dev
    L(2, 3, e)(torch.ones(4, 5)) -> ValueError: takes 2 features in the last dimension, .* has 5
    L(2, 3, e, delay=1).dense_weight() -> ValueError: an nn.Linear has no delays
    L.from_matrix(torch.eye(3)) -> TypeError: matrix must be sparse, coo, csr or csc, got torch.str
    L.from_matrix([[1]]) -> TypeError: must be a sparse tensor of PyTorch, or .* SciPy, got list
    L.from_matrix(torch.ones(3).to_sparse()) -> ValueError: matrix must be .out_features, in_feat
    L.from_matrix(s, weight=1.0) -> TypeError: weight follows from what the layer is made of
    L.from_linear(nn.Bilinear(1, 1, 1)) -> TypeError: takes an nn.Linear, plain or connected
    L(5000, 5000, e).dense_weight() -> ValueError: have 25000000 values, and more than 16777216
    tt.nir.to_nir(network(delay="each"), x[0], dt=1e-3) -> ValueError: no dense form, as NIR needs
    tt.online_learning.STDP(L(2, 3, e)) -> TypeError: must be an nn.Linear, with a mask of tt.snn
    tt.online(network(), "exact")(x[0]) -> ValueError: states of 1: no trace of earlier
    tt.quantize.prepare(network(), x) -> ValueError: SparseLinear.* has no integer form
    tt.init.fluctuation_(network(), rate=0.1) -> ValueError: are a list of edges: fluctuation_ draws
    tt.init.calibrate_(network(group=True), x) -> ValueError: weights that edges share .group=.
""")
def test_refused(call: str, error: str) -> None:
    check(call, error, globals())
