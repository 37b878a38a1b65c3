"""``TTModule.memory``: a state of a module's own, on every road on which a neuron's state goes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import tracetorch as tt
from tests.cases import layer, module, sequence
from tests.refusals import check, refusals
from tests.snn.test_populations import results
from tests.unrolling.models import gradcheck
from tracetorch import snn

T, B = 7, 4


class Fed(snn.TTModule):
    """Two populations that are given the outputs of both at the step before."""

    last: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.e, self.i = layer("LIF", 4), layer("SLIF", 2)
        self.inward, self.back = nn.Linear(3, 6), nn.Linear(6, 6)
        self.memory("last", **({"shape": 6} | options))

    def run(self, x: Tensor, last: Tensor) -> Tensor:
        drive = 2 * self.inward(x) + self.back(last)
        return torch.cat([self.e(drive[..., :4]), self.i(drive[..., 4:])], -1)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.run(x, self.last)
        return self.last


class Filter(snn.TTModule):
    """Smooth module with two memories, whose shapes are those of what is assigned."""

    slow: Tensor
    seen: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.3, 0.8]))
        self.memory("slow", **options)
        self.memory("seen", init=1.0)

    def forward(self, x: Tensor) -> Tensor:
        self.slow = torch.tanh(self.weight * self.slow + x)
        self.seen = self.seen + torch.ones_like(x)
        return self.slow / self.seen


def fed(**options: Any) -> Fed:
    torch.manual_seed(0)
    return Fed(**options).double()


def by_hand(model: Fed, x: Tensor, reset: Tensor | None = None) -> Tensor:
    """Run the loop that a user would write, with the memory in a variable."""
    last, outputs = x.new_zeros(x.shape[1], 6), []
    for t, step in enumerate(x.unbind(0)):
        if reset is not None:
            tt.zero_states(model.e, where=reset[t])
            tt.zero_states(model.i, where=reset[t])
            last = torch.where(reset[t, :, None], 0.0, last)
        last = model.run(step, last)
        outputs.append(last)
    return torch.stack(outputs)


RESET = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.3
ROADS: dict[str, dict[str, Any]] = {
    "by step": {},
    "segments": {"segment": 3},
    "single steps": {"segment": 1},
    "recorded": {"record": ["last"]},
}
# without restarts
PARTS: dict[str, Any] = {
    "cut": lambda model, x: [tt.unroll(model, part, by="step") for part in x.split([2, 1, 4])],
    "streamed": lambda model, x: [model(step)[None] for step in x],
}


@pytest.mark.parametrize(
    ("road", "reset"),
    [*((road, reset) for road in ROADS for reset in (None, RESET)), *((p, None) for p in PARTS)],
)
def test_every_road_is_the_loop_with_a_variable(road: str, reset: Tensor | None) -> None:
    model = fed()

    def run(x: Tensor) -> Tensor:
        if road in PARTS:
            return torch.cat(PARTS[road](model, x))
        y = tt.unroll(model, x, by="step", reset=reset, **ROADS[road])
        if road != "recorded":
            return y
        y, seen = y
        assert torch.equal(seen["last"], y)
        return y

    expected, grads, states = results(model, sequence(T, B, 3), lambda x: by_hand(model, x, reset))
    found, found_grads, found_states = results(model, sequence(T, B, 3), run)
    assert torch.equal(found, expected)
    assert found.count_nonzero() > 10
    torch.testing.assert_close(found_grads, grads)
    assert torch.equal(found_states.pop("last"), expected[-1])
    torch.testing.assert_close(found_states, states, rtol=0, atol=0)


def test_by_layer_it_is_refused_by_name_but_for_a_recurrent() -> None:
    x = sequence(T, B, 3)
    net = nn.Sequential(nn.Linear(3, 3), fed()).double()
    with pytest.raises(ValueError, match=r"'1', Fed, runs .* cannot use its memory .*by=\"step"):
        tt.unroll(net, x)
    with pytest.raises(ValueError, match=r"Filter.* runs .* cannot use its memory"):
        tt.unroll(Filter(), x.float())
    net = nn.Sequential(snn.Recurrent(fed(), nn.Linear(6, 3), shape=6)).double()
    expected = tt.unroll(net, x, by="step", from_rest=True)
    y, seen = tt.unroll(net, x, record=["last"])
    assert torch.equal(y, expected)
    assert torch.equal(seen["0.neuron.last"], expected)
    model = module(lambda s, x: s.cell(x), "Late", cell=layer("LIF", 3))
    for _ in range(3):  # what the pass concludes of the model is remembered
        tt.unroll(model, x)
    model.memory("declared_later")
    with pytest.raises(ValueError, match=r"Late runs .* cannot use its memory in each"):
        tt.unroll(model, x)


@pytest.mark.parametrize("reset", [None, RESET[:4, :2]])
@pytest.mark.parametrize("options", [{}, {"init": 0.4}, {"shape": 3, "init": 0.4}])
def test_gradients_match_finite_differences(reset: Any, options: Any) -> None:
    model = Filter(**options, learnable=True).double()
    assert "initial_slow" in dict(model.named_parameters())
    gradcheck(model, sequence(4, 2, 3), by="step", reset=reset)


def test_before_the_first_assignment_it_reads_as_its_initial_value() -> None:
    model = module(lambda s, x: [s.a, s.b, s.c, s.d])
    model.memory("a", (2, 3))
    model.memory("b", 3, init=torch.tensor([1.0, 2.0, 3.0]))
    model.memory("c", init=0.5)
    model.memory("d", (), init=torch.tensor(7))
    read = model(torch.zeros(5, 4, dtype=torch.float64))
    assert [list(each.shape) for each in read] == [[5, 2, 3], [5, 3], [], [5]]
    assert [each.dtype for each in read][:2] == [torch.float64, torch.float64]
    assert read[1][4].tolist() == [1, 2, 3]
    assert (read[2].item(), read[3].tolist(), read[3].dtype) == (0.5, [7] * 5, torch.int64)
    assert sorted(model.state_dict()) == ["initial_b", "initial_c", "initial_d"]
    assert tt.get_states(model) == {}
    read = model(torch.zeros(2, 4))
    assert [list(each.shape) for each in read] == [[2, 2, 3], [2, 3], [], [2]]
    assert read[0].dtype == torch.float32
    model.c = torch.ones(2, 9)  # as large as what is assigned
    model.zero_states(where=torch.tensor([True, False]))
    assert model.c.tolist() == [[0.5] * 9, [1.0] * 9]
    model.c = None
    assert model(torch.zeros(2, 4))[2].item() == 0.5


def test_states_are_zeroed_detached_listed_and_set() -> None:
    model, x = fed(), sequence(T, B, 3)
    tt.unroll(model, x, by="step")
    assert list(tt.get_states(model)) == ["last", "e.mem", "i.mem", "i.syn"]
    assert model.last.requires_grad
    model.detach_states()
    assert not model.last.requires_grad
    kept = tt.get_states(model)
    expected = model(x[0]).detach()
    tt.set_states(model, kept)
    assert torch.equal(model(x[0]), expected)
    model.zero_states(where=torch.tensor([True, False, False, True]))
    assert not model.last[[0, 3]].any()
    assert torch.equal(model.last[1:3], expected[1:3])
    tt.set_states(model, {"last": kept["last"]})
    assert list(tt.get_states(model)) == ["last"]
    tt.zero_states(nn.Sequential(model))
    assert tt.get_states(model) == {}


def test_it_moves_with_the_module_and_copies_are_independent() -> None:
    model, x = fed(), sequence(T, B, 3)
    model(x[0])
    last = model.last
    assert not copy.deepcopy(model).last.requires_grad
    copy.copy(model).memory("own", 2)
    assert not hasattr(model, "own")
    assert model.float().last.dtype == torch.float32
    assert model.bfloat16().last.dtype == torch.bfloat16  # as what it is multiplied with
    assert torch.equal(model.double().last, last)
    assert model.to("meta").last.is_meta
    assert tt.get_states(model.to_empty(device="cpu")) == {}


def test_a_state_that_a_vmap_left_is_refused_by_name() -> None:
    model, xs = Filter().double(), sequence(3, T, B, 3)
    torch.vmap(model)(xs[:, 0])
    with pytest.raises(ValueError, match=r"holds a state slow without values.*zero_states"):
        model(xs[0, 0])
    model.zero_states()
    model(xs[0, 0])


def assigned(s: Any, x: Tensor) -> Tensor:
    h: Tensor = s.weight * x + s.last
    s.last = h
    return h


def counted(s: Any, x: Tensor) -> Any:
    s.last += x
    return s.last


@pytest.mark.parametrize(
    "change", [lambda y: y.mul_(0), lambda y: y.add_(torch.ones(()).double().requires_grad_())]
)
def test_no_in_place_operation_reaches_it(change: Any) -> None:
    model = module(assigned, weight=nn.Parameter(torch.ones(3).double()))
    model.memory("last", 3)
    x = sequence(T, B, 3)
    y = model(x[0])
    kept = y.clone()
    change(y)  # what the model has returned, the very tensor that was assigned
    assert torch.equal(model.last, kept)
    counter = module(counted)
    counter.memory("last", 3, learnable=True)
    y = tt.unroll(counter.double(), x, by="step", segment=2)
    torch.testing.assert_close(y, x.cumsum(0))
    y.sum().backward()
    assert counter.initial_last.grad is not None


def augmented(s: Any, x: Tensor) -> None:
    h = s.buf
    h += x[:, None]


def assigned_before(s: Any, x: Tensor) -> None:
    s.buf = s.buf + 1
    augmented(s, x)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "write",
    [
        lambda s, x: s.buf[:, 0].copy_(x),
        lambda s, x: s.buf.__setitem__((slice(None), 0), x),
        lambda s, x: s.buf.add_(x[:, None]),
        augmented,
        assigned_before,
    ],
)
def test_a_write_in_place_is_an_error(write: Any, inference: bool) -> None:
    model: Any = module(lambda s, x: (s.write(s, x), s.buf.sum(1))[1], "Ring", write=write)
    model.memory("buf", (4, 3))
    x = torch.ones(2, 3)
    message = r"buf of .*Ring.* was written to in place.*lost.*Assign: .*self\.buf = buf"
    with torch.inference_mode(inference):
        with pytest.raises(ValueError, match=message):
            tt.unroll(model, x.expand(5, 2, 3), by="step")
        assert tt.get_states(model) == {}
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                model(x)
        tt.zero_states(model)
        model.write = lambda s, x: None
        assert not model(x).any()


def ring(s: Any, x: Tensor) -> Tensor:
    buf = s.buf
    buf[:, 1:] = s.buf[:, :-1]
    buf[:, 0] = x
    if s.fails:
        raise KeyError
    s.buf = buf
    y: Tensor = s.buf.clone().mul_(2).sum(1) / 2
    return y


def test_a_value_that_is_assigned_may_be_written_to() -> None:
    model, x = module(ring, fails=False), sequence(T, B, 3)
    model.memory("buf", (4, 3))
    expected = torch.stack([x[max(0, t - 3) : t + 1].sum(0) for t in range(T)])
    torch.testing.assert_close(tt.unroll(model, x, by="step", segment=2), expected)
    tt.zero_states(model)
    model.fails = True
    with pytest.raises(KeyError):
        model(x[0])
    assert model.buf is None  # what a failed call has read is forgotten
    model.fails = False
    with torch.inference_mode():
        torch.testing.assert_close(tt.unroll(model, x, by="step"), expected)


def test_outside_of_a_call_it_is_the_state_itself() -> None:
    model, x = fed(), sequence(2, 4, 3)
    assert getattr(model, "last") is None  # noqa: B009 (declared as a tensor)
    model(x[0])
    model.detach_states()
    model.last[0] = 7
    assert (tt.get_states(model)["last"][0] == 7).all()
    kept = model.last
    model(x[1])
    assert (kept[0] == 7).all()  # a call sets another tensor


def test_a_graph_that_runs_again_refuses() -> None:
    own, x = Filter(), sequence(B, 3).float()
    y = checkpoint(own, x.requires_grad_(), use_reentrant=False)
    with pytest.raises(RuntimeError, match="run again inside backward"):
        y.sum().backward()
    own.zero_states()
    own(x).sum().backward()
    with pytest.raises(RuntimeError, match="a second time"):
        own(x).sum().backward()


def test_names_that_were_there_before_stay() -> None:
    held = module(lambda s, x: s.memory(x), memory=nn.Linear(3, 3))
    assert held(torch.ones(2, 3)).shape == (2, 3)
    step = staticmethod(lambda x, memory: (x + memory, x))
    named = type("Named", (snn.Neuron,), {"states": ("memory",), "step": step})(3)
    assert named.memory is None
    assert tt.unroll(named, torch.ones(4, 2, 3)).shape == (4, 2, 3)
    scaled = staticmethod(lambda x, *, memory: (x * memory,))
    parameter: Any = type("Parameter", (snn.Neuron,), {"step": scaled})(3)
    parameter.decay("memory", 0.5)
    assert parameter.memory.tolist() == [0.5] * 3
    with pytest.raises(AttributeError, match="'LIF' object has no attribute 'memory'"):
        snn.LIF(3).memory("last")


def scaled() -> Any:
    model = module(lambda s, scale, x: setattr(s, "last", x * scale))
    model.memory("last", 3)
    return model


def without() -> Any:
    model = module(lambda s: s.last)
    model.memory("last", 3)
    return model


def called(model: Any, *args: Any, **kwargs: Any) -> Any:
    model(*args, **kwargs)
    return model


X, ONES = sequence(B, 3), torch.ones(3, 2, 3)
ONE = torch.ones(())


@refusals(r"""
    fed().memory(3) -> ValueError: cannot call a memory 3: .* must be an identifier
    fed().memory("e") -> ValueError: cannot call a memory 'e'
    fed().memory("forward") -> ValueError: cannot call a memory 'forward'
    fed().memory("last") -> ValueError: cannot call a memory 'last'
    fed().memory("a", 0) -> ValueError: the shape of a must be at least 1, got 0
    fed().memory("a", (2, "3")) -> TypeError: the shape of a must be an integer
    fed().memory("a", 2, init="x") -> TypeError: init of a must be a number
    fed().memory("a", 2, init=float("nan")) -> ValueError: init of a must be finite
    fed().memory("a", 2, init=torch.zeros(3)) -> ValueError: \[3\], which does not broadcast to \[2
    fed().memory("a", init=torch.tensor(1), learnable=True) -> TypeError: no gradient can move
    fed().memory("a", learnable=1) -> TypeError: learnable must be
    fed().register_buffer("last", ONE) -> KeyError: 'last' already exists
    fed().register_parameter("last", nn.Parameter(ONE)) -> KeyError: 'last' already exists
    fed().add_module("last", nn.Identity()) -> KeyError: 'last' already exists
    fed().register_module("last", nn.Identity()) -> KeyError: 'last' already exists
    without()() -> ValueError: has no value of last yet, and knows no batch
    fed().forward(X) -> TypeError: NoneType
    setattr(fed(), "last", torch.zeros(4, 5)) -> ValueError: last as \[B, 6\], got shape \[4, 5\]
    setattr(fed(), "last", ONE) -> ValueError: \[B, 6\], got shape \[\]
    setattr(fed(), "last", 3.0) -> TypeError: remembers a tensor as last, got float
    setattr(fed(), "last", nn.Parameter(torch.zeros(4, 6))) -> TypeError: got Parameter.*self.memory
    tt.set_states(fed(), {"last": torch.zeros(4, 5)}) -> ValueError: as \[B, 6\], got shape \[4, 5\]
    delattr(fed(), "last") -> AttributeError: last
    called(fed(), X)(X[:1]) -> ValueError: last of shape \[4, 6\].*a batch of 1.*zero_stat
    called(fed(), X).zero_states(where=X[:2, 0] > 0) -> ValueError: batch of 4.*the mask has 2 entr
    (m := Filter(), setattr(m, "seen", ONE), m.zero_states(where=X[:1, 0] > 0)) -> ValueError: seen
    scaled()(2.0, ONES) -> ValueError: last as \[B, 3\], got shape \[3, 2, 3\]
    called(scaled(), 2.0, x=ONES[0])(2.0, ONES) -> ValueError: a batch of 3, .*\. A call is one time
    called(scaled(), 2.0, ONES[0])(2.0, x=ONES) -> ValueError: a batch of 3, .*\[3, 2, 3\]
    tt.online(fed()) -> ValueError: Fed.*memory of its own, 'last'.*no trace follows
    tt.init.fluctuation_(fed()) -> ValueError: 'inward' drives 'e', 'i': one scale cannot
    tt.nir.to_nir(fed(), X[:1]) -> ValueError: \(Fed\) keeps a memory of its own.*in no graph
    make_fx(Filter())(X) -> RuntimeError: freeze the state.*tt\.export\.step
    fed()._replicate_for_data_parallel() -> RuntimeError: nn\.DataParallel runs copies
""")
def test_what_does_not_fit_is_refused(call: str, error: str) -> None:
    before = sorted(vars(fed())), sorted(fed().state_dict())
    model = fed()
    check(call, error, {**globals(), "make_fx": make_fx, "fed": lambda: model})
    assert (sorted(vars(model)), sorted(model.state_dict())) == before
