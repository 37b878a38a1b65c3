"""Models that keep something from step to step: by layer equals the loop, or it is refused."""

from __future__ import annotations

import copy
import functools
import hashlib
import re
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer, weighted_sum
from tests.unrolling.held import CONSUMED, PLACES, RESTORED, Holds, Kind, holds
from tracetorch import snn
from tracetorch.core import values

T, B, N = 6, 3, 4


class Base(nn.Module):
    """A neuron, and whatever a subclass keeps beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Linear(N, N)
        self.n = layer("LIF", N)
        self.prev: Any = None
        self.setup()

    def setup(self) -> None: ...


def model(forward: Callable[[Any, Tensor], Tensor], **kept: Callable[[], Any]) -> Any:
    """A model with attributes ``kept``, made anew for each, and a ``forward``."""

    class Model(Base):
        def setup(self) -> None:
            for name, make in kept.items():
                value = make()
                if isinstance(value, Tensor):
                    self.register_buffer(name, value)
                else:
                    setattr(self, name, value)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    torch.manual_seed(0)
    return Model()


@dataclass
class Box:
    value: Any = 0.0
    items: list[Any] = field(default_factory=list)


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = 0.0


def previous(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x if s.prev is None else x + s.prev))
    s.prev = y
    return y


def trace(s: Any, x: Tensor) -> Tensor:
    s.trace = 0.9 * s.trace + x
    return s.n(s.g(s.trace))


def counter(s: Any, x: Tensor) -> Tensor:
    s.t += 1
    return s.n(s.g(x / s.t))


def membrane_feedback(s: Any, x: Tensor) -> Tensor:
    return s.n(x + s.g(torch.zeros_like(x) if s.n.mem is None else s.n.mem))


def clamped_membrane(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x))
    s.n.mem = s.n.mem.clamp(-0.5, 0.5)
    return y


def membrane_in_place(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x))
    s.n.mem.data.clamp_(-0.5, 0.5)
    return y


def overwritten_membrane(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x))
    s.n.mem = torch.zeros(len(x), N)
    return y


def zeroed_in_forward(s: Any, x: Tensor) -> Tensor:
    s.n.zero_states()
    return s.n(s.g(x))


def detached_in_forward(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x))
    s.n.detach_states()
    return y


def states_in_forward(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x))
    return y + sum(state.mean() for state in tt.get_states(s).values())


def adapted_threshold(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x))
    with torch.no_grad():
        s.n.raw_pos_threshold += 0.1 * y.mean(0)
    return y


def adapted_weight(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x))
    with torch.no_grad():
        s.g.weight.mul_(0.9)
    return y


def replaced_weight(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x))
    s.g.weight = nn.Parameter(0.9 * s.g.weight.detach())
    return y


def delay_line(s: Any, x: Tensor) -> Tensor:
    s.line.append(x)
    return s.n(s.g(s.line.popleft() if len(s.line) > 2 else torch.zeros_like(x)))


def ring_buffer(s: Any, x: Tensor) -> Tensor:
    s.ring[s.at[0] % 3] = x.mean(0)
    s.at[0] += 1
    return s.n(s.g(x) + s.ring.sum(0))


def list_of_steps(s: Any, x: Tensor) -> Tensor:
    s.seen.append(x)
    return s.n(s.g(torch.stack([each.mean(0) for each in s.seen]).mean(0) + x))


def list_item(s: Any, x: Tensor) -> Tensor:
    s.seen[0] = s.seen[0] + x.mean()
    return s.n(s.g(x + s.seen[0]))


def dict_item(s: Any, x: Tensor) -> Tensor:
    s.memo["sum"] = s.memo.get("sum", 0.0) + x.mean()
    return s.n(s.g(x + s.memo["sum"]))


def nested_item(s: Any, x: Tensor) -> Tensor:
    s.memo["deep"][0] = s.memo["deep"][0] + x.mean()
    return s.n(s.g(x + s.memo["deep"][0]))


def set_of_steps(s: Any, x: Tensor) -> Tensor:
    s.kinds.add(len(s.kinds))
    return s.n(s.g(x + len(s.kinds)))


def boxed(s: Any, x: Tensor) -> Tensor:
    s.box.value = s.box.value + x.mean()
    return s.n(s.g(x + s.box.value))


def boxed_items(s: Any, x: Tensor) -> Tensor:
    s.box.items.append(x.mean())
    return s.n(s.g(x + sum(s.box.items)))


def buffer_replaced(s: Any, x: Tensor) -> Tensor:
    s.total = s.total + x.mean()
    return s.n(s.g(x + s.total))


def buffer_in_place(s: Any, x: Tensor) -> Tensor:
    s.total += x.mean()
    return s.n(s.g(x + s.total))


def buffer_copied_into(s: Any, x: Tensor) -> Tensor:
    s.total.copy_(0.9 * s.total + x.mean())
    return s.n(s.g(x + s.total))


def tensor_in_list(s: Any, x: Tensor) -> Tensor:
    s.held[0].add_(x.mean())
    return s.n(s.g(x + s.held[0]))


def plain_tensor(s: Any, x: Tensor) -> Tensor:
    s.plain["t"].add_(x.mean())
    return s.n(s.g(x + s.plain["t"]))


def mode_switch(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x) if s.training else s.g(2 * x))
    s.eval()
    return y


def annealed(s: Any, x: Tensor) -> Tensor:
    s.drop.p = 0.5 * s.drop.p
    return s.n(s.g(x) * (1 - s.drop.p))


def spikes_kept(s: Any, x: Tensor) -> Tensor:
    s.last_spikes = s.n(s.g(x))
    return s.last_spikes


def attribute_of_child(s: Any, x: Tensor) -> Tensor:
    y = s.n(s.g(x + getattr(s.g, "prev", 0.0)))
    s.g.prev = y.mean()
    return y


class Own(snn.LIF):
    """Override the step's method alone."""

    def forward_step(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward_step(2 * x)


class Calling(snn.LIF):
    """``forward`` goes straight to the step."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.forward_step(2 * x)


def hidden_neuron() -> nn.Module:
    inner = layer("LIF", N)

    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner(x)

    return nn.Sequential(nn.Linear(N, N), Hidden())


def nested_unroll() -> nn.Module:
    inner = layer("LIF", N)

    class Nested(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return tt.unroll(inner, x, steps=2).mean(0)

    return Nested()


def spectral() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(N, N)), layer("LIF", N))


class RunningNorm(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(N))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


class CountingNorm(nn.BatchNorm1d):
    """A batch norm with a buffer of its own, as norms through time have one."""

    t: Tensor

    def __init__(self) -> None:
        super().__init__(N)
        self.register_buffer("t", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.t += 1
        return super().forward(x) * self.t


KEEPS_SOMETHING: dict[str, Callable[[], nn.Module]] = {
    "the previous output": lambda: model(previous),
    "a trace": lambda: model(trace, trace=lambda: 0.0),
    "a step counter": lambda: model(counter, t=lambda: 0),
    "feedback from a membrane": lambda: model(membrane_feedback),
    "a membrane clamped": lambda: model(clamped_membrane),
    "a membrane clamped in place": lambda: model(membrane_in_place),
    "a membrane overwritten": lambda: model(overwritten_membrane),
    "states zeroed": lambda: model(zeroed_in_forward),
    "states detached": lambda: model(detached_in_forward),
    "states read": lambda: model(states_in_forward),
    "a threshold adapted": lambda: model(adapted_threshold),
    "a weight adapted": lambda: model(adapted_weight),
    "a weight replaced": lambda: model(replaced_weight),
    "a delay line": lambda: model(delay_line, line=deque),
    "a ring buffer": lambda: model(ring_buffer, ring=lambda: torch.zeros(3, N), at=lambda: [0]),
    "a list that grows": lambda: model(list_of_steps, seen=list),
    "an item of a list": lambda: model(list_item, seen=lambda: [0.0]),
    "an item of a dict": lambda: model(dict_item, memo=dict),
    "an item of a nested list": lambda: model(nested_item, memo=lambda: {"deep": [0.0]}),
    "a set": lambda: model(set_of_steps, kinds=set),
    "a field of a dataclass": lambda: model(boxed, box=Box),
    "a list in a dataclass": lambda: model(boxed_items, box=Box),
    "a slot": lambda: model(boxed, box=Slotted),
    "a namespace": lambda: model(boxed, box=lambda: SimpleNamespace(value=0.0)),
    "a buffer replaced": lambda: model(buffer_replaced, total=lambda: torch.zeros(())),
    "a buffer in place": lambda: model(buffer_in_place, total=lambda: torch.zeros(())),
    "a buffer copied into": lambda: model(buffer_copied_into, total=lambda: torch.zeros(())),
    "a tensor in a list": lambda: model(tensor_in_list, held=lambda: [torch.zeros(())]),
    "a tensor in a dict": lambda: model(plain_tensor, plain=lambda: {"t": torch.zeros(())}),
    "a mode": lambda: model(mode_switch),
    "an annealed dropout": lambda: model(annealed, drop=lambda: nn.Dropout(0.5)),
    "the last spikes": lambda: model(spikes_kept),
    "an attribute of a child": lambda: model(attribute_of_child),
    "the step's method overridden": lambda: nn.Sequential(nn.Linear(N, N), Own(N)),
    "forward calls the step": lambda: nn.Sequential(nn.Linear(N, N), Calling(N)),
    "a neuron in a closure": hidden_neuron,
    "an unroll of a neuron in a closure": nested_unroll,
    "a spectral norm in training": spectral,
    "a running norm in training": lambda: nn.Sequential(RunningNorm(), layer("LIF", N)),
    "a buffer of a batch norm": lambda: nn.Sequential(CountingNorm(), layer("LIF", N)).eval(),
    "a GRU": lambda: nn.Sequential(nn.Linear(N, N), nn.GRUCell(N, N), layer("LIF", N)),
}


class Cached(nn.Module):
    """Constants that are computed again in every call are no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = N**0.5
        self.shape: Any = torch.Size([N])
        self.mask: Any = torch.ones(N)

    def forward(self, x: Tensor) -> Tensor:
        self.scale = x.shape[-1] ** 0.5
        self.shape = x.shape[1:]
        self.mask = torch.ones(N)
        return x * self.scale * self.mask


@dataclass
class Settings:
    size: int
    names: list[str]


class Again(nn.Module):
    """Settings that are made again, a property that is computed once, a norm that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings(N, ["a"])
        self.path, self.pairs = Path("a"), {"a": [N]}

    @functools.cached_property
    def scale(self) -> float:
        return N**0.5

    def forward(self, x: Tensor) -> Tensor:
        self.settings, self.path = Settings(x.shape[-1], ["a"]), Path("a")
        self.pairs = {"a": [x.shape[-1]]}
        return x * self.scale


class OwnNorm(nn.BatchNorm1d):
    """Statistics of a batch norm are no memory, in a class of a user's own neither."""


def weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(N, N)), layer("LIF", N))


class Wrapped(snn.LIF):
    """A ``forward`` around the layer's own."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * super().forward(x)


class LooksUp(nn.Module):
    """A ``defaultdict`` that is read gets an empty item, which remembers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Any = defaultdict(list)

    def forward(self, x: Tensor) -> Tensor:
        return x + len(self.table["none"])


KEEPS_NOTHING: dict[str, Callable[[], nn.Module]] = {
    "constants": lambda: nn.Sequential(nn.Linear(N, N), Cached(), layer("LIF", N)),
    "settings made again": lambda: nn.Sequential(nn.Linear(N, N), Again(), layer("LIF", N)),
    "a weight norm": weight_norm,
    "a look into a defaultdict": lambda: nn.Sequential(LooksUp(), layer("LIF", N)),
    "a lazy layer": lambda: nn.Sequential(nn.LazyLinear(N), layer("LIF", N)),
    "a forward around the layer's": lambda: nn.Sequential(nn.Linear(N, N), Wrapped(N)),
    "a recurrent layer": lambda: snn.Recurrent(layer("LIF", N), nn.Linear(N, N)),
    "memory inside a recurrent layer": lambda: snn.Recurrent(
        layer("LIF", N), nn.Sequential(RunningNorm(), nn.Linear(N, N))
    ),
    "a spectral norm in evaluation": lambda: spectral().eval(),
    "a running norm in evaluation": lambda: nn.Sequential(RunningNorm(), layer("LIF", N)).eval(),
    "dropout in evaluation": lambda: nn.Sequential(nn.Dropout(0.5), layer("LIF", N)).eval(),
}


def loop(made: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([made(step) for step in x])


def sequence() -> Tensor:
    return 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KEEPS_SOMETHING)
def test_memory_is_refused(name: str) -> None:
    made, x = KEEPS_SOMETHING[name](), sequence()
    before = copy.deepcopy(made.state_dict())
    with pytest.raises((ValueError, RuntimeError), match=r'by(=|\("|_)"?step|by="step"'):
        tt.unroll(made, x)
    assert not tt.get_states(made)
    modes = {module.training for module in made.modules()}
    assert modes == {"batch norm" not in name}
    # parameters that were changed in place cannot be restored
    if name not in ("a threshold adapted", "a weight adapted"):
        for key, value in made.state_dict().items():
            assert torch.equal(value, before[key]), key
    if name not in ("a GRU", "a neuron in a closure", "an unroll of a neuron in a closure"):
        assert tt.unroll(made, x, by="step").shape[:2] == (T, B)


@pytest.mark.parametrize("name", KEEPS_SOMETHING)
def test_a_refused_call_leaves_no_trace_in_later_results(name: str) -> None:
    if name in ("a threshold adapted", "a weight adapted", "a GRU", "states read"):
        pytest.skip("changes parameters, or does not run by step")
    if "closure" in name:
        pytest.skip("what a closure holds cannot be restored")
    torch.manual_seed(0)
    made, x = KEEPS_SOMETHING[name](), sequence()
    twin = copy.deepcopy(made)
    with pytest.raises((ValueError, RuntimeError)):
        tt.unroll(made, x)
    assert torch.equal(loop(made, x), loop(twin, x))


@pytest.mark.parametrize("name", KEEPS_NOTHING)
def test_no_memory_is_not_refused(name: str) -> None:
    made, x = KEEPS_NOTHING[name](), sequence()
    torch.testing.assert_close(tt.unroll(made, x), _fresh(made, x), rtol=1e-4, atol=1e-4)


def test_statistics_of_a_batch_norm_of_ones_own_are_no_memory() -> None:
    made, twin = (nn.Sequential(norm, layer("LIF", N)) for norm in (OwnNorm(N), nn.BatchNorm1d(N)))
    assert torch.equal(tt.unroll(made, sequence()), tt.unroll(twin, sequence()))
    assert dict(made[0].named_buffers()).keys() == dict(twin[0].named_buffers()).keys()
    for found, expected in zip(made[0].buffers(), twin[0].buffers(), strict=True):
        assert torch.equal(found, expected)


def _fresh(made: nn.Module, x: Tensor) -> Tensor:
    tt.zero_states(made)
    for module in made.modules():
        if isinstance(module, RunningNorm):
            module.mean.zero_()
    return loop(made, x)


def test_the_message_names_module_attribute_and_way_out() -> None:
    net = nn.Sequential(nn.Identity(), model(previous))
    with pytest.raises(ValueError, match=r'1\.prev was changed .*Use unroll\(..., by="step"\)'):
        tt.unroll(net, sequence())
    with pytest.raises(ValueError, match=r"layer 'n', LIF.* cannot read its state mem"):
        tt.unroll(model(membrane_feedback), sequence())
    with pytest.raises(ValueError, match="cannot set its state mem"):
        tt.unroll(model(overwritten_membrane), sequence())
    with pytest.raises(ValueError, match="overrides forward_step, and not forward_sequence"):
        tt.unroll(Own(N), sequence())
    with pytest.raises(ValueError, match="only through a closure or a global"):
        tt.unroll(hidden_neuron(), sequence())


def test_a_state_is_readable_again_afterwards() -> None:
    made = model(membrane_feedback)
    with pytest.raises(ValueError, match="cannot read its state"):
        tt.unroll(made, sequence())
    assert made.n.mem is None
    made.n.layer_pass = None
    assert hasattr(made.n, "mem")


@pytest.mark.parametrize("library", ["snntorch", "spikingjelly"])
def test_neurons_of_other_libraries_are_refused_by_name(library: str) -> None:
    if library == "snntorch":
        foreign = pytest.importorskip("snntorch").Leaky(beta=0.9, init_hidden=True)
    else:
        foreign = pytest.importorskip("spikingjelly.activation_based.neuron").LIFNode()
    net = nn.Sequential(nn.Linear(N, N), foreign, layer("LIF", N))
    with pytest.raises(ValueError, match=f"1 .* is a neuron of {library}, which keeps its state"):
        tt.unroll(net, sequence())


@pytest.mark.filterwarnings("ignore:.torch.jit.*. is deprecated")
@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda module: torch.jit.trace(module, torch.rand(B, N))]
)
@pytest.mark.parametrize("arguments", [{}, {"check": True}, {"segment": 2}])
def test_what_torch_jit_has_compiled_is_refused_by_name(compiled: Any, arguments: Any) -> None:
    plain = nn.Linear(N, N)
    net = nn.Sequential(compiled(plain), layer("LIF", N))
    with pytest.raises(ValueError, match=r"0 \(.*Module\) is compiled by torch\.jit, .*by=.step"):
        tt.unroll(net, sequence(), **arguments)
    expected = tt.unroll(nn.Sequential(plain, layer("LIF", N)), sequence())
    for segment in (None, 2):
        y = tt.unroll(net, sequence(), by="step", segment=segment, from_rest=True)
        torch.testing.assert_close(y, expected)
    (compiled_weight,) = [p for p in net[0].parameters() if p.ndim == 2]
    gradients = [
        torch.autograd.grad(weighted_sum(each), weight)[0]
        for each, weight in ((y, compiled_weight), (expected, plain.weight))
    ]
    torch.testing.assert_close(*gradients)


class InPlace(nn.Module):
    """Changes the neuron's input and output in place, as residual networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.n, self.r = nn.Linear(N, N), layer("LIF", N), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        drive = 1.0 * self.l(x)
        y = self.n(drive)
        if not torch.is_grad_enabled():  # autograd itself forbids it otherwise
            drive += 5.0
        y += 1.0
        return self.r(y)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("by", ["layer", "step"])
def test_what_is_recorded_is_not_changed_in_place(by: Any, grad: bool) -> None:
    torch.manual_seed(0)
    made, x = InPlace(), sequence()
    with torch.set_grad_enabled(grad):
        y, seen = tt.unroll(made, x, by=by, record=["output", "input"])
        assert set(seen["n.output"].unique().tolist()) == {0.0, 1.0}
        assert torch.equal(y, seen["n.output"] + 1.0)
        torch.testing.assert_close(seen["n.input"], made.l(x))
    if grad:
        plain = copy.deepcopy(made)
        tt.zero_states(plain)
        weighted_sum(tt.unroll(plain, x) * 2.0).backward()
        tt.zero_states(made)
        y, seen = tt.unroll(made, x, by=by, record="output")
        weighted_sum(y + seen["n.output"]).backward()
        for name, p in made.named_parameters():
            torch.testing.assert_close(p.grad, plain.get_parameter(name).grad)


# Things that are no attribute, container or plain object

STEPS = sequence().double()
# of these a hash alone is held
HASHED = ("large array", "large bytearray")


def refused(made: nn.Module, x: Tensor = STEPS) -> str:
    with pytest.raises(ValueError, match=r"held\S* was changed by the forward pass") as error:
        tt.unroll(made, x)
    return str(error.value)


@pytest.mark.parametrize("name", RESTORED)
def test_a_held_thing_that_changes_is_refused_and_restored(name: str) -> None:
    made = holds(RESTORED[name])
    thing = made.thing
    message = refused(made)
    assert made.thing is thing
    assert ("held cannot be restored" in message) == (name in HASHED)
    if name not in HASHED:
        assert torch.equal(loop(made, STEPS), loop(holds(RESTORED[name]), STEPS))


@pytest.mark.parametrize("name", CONSUMED)
def test_what_can_only_be_consumed_is_refused_by_name(name: str) -> None:
    made = holds(CONSUMED[name])
    thing = made.thing
    for _ in range(2):  # it has moved already at the second time
        assert re.search(r"held\S* cannot be restored and stays changed", refused(made))
        assert made.thing is thing


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["array", "random.Random", "StringIO", "generator", "SimpleQueue"])
def test_it_is_found_wherever_it_is_held(kind: str, place: str) -> None:
    made = holds({**RESTORED, **CONSUMED}[kind], place)
    held, thing = made.held, made.thing
    refused(made)
    assert made.held is held
    assert made.thing is thing


@pytest.mark.parametrize("place", ["attribute", "tuple"])
@pytest.mark.parametrize("name", [*RESTORED, *CONSUMED])
def test_a_held_thing_that_stays_is_not_refused(name: str, place: str) -> None:
    made = holds({**RESTORED, **CONSUMED}[name], place, moves=False)
    thing = made.thing
    assert torch.equal(tt.unroll(made, STEPS, from_rest=True), loop(made, STEPS))
    assert made.thing is thing


def test_the_position_of_a_file_is_restored_and_its_growth_is_named(tmp_path: Any) -> None:
    path = tmp_path / "lines"
    path.write_text("1\n2\n3\n")
    made = holds(RESTORED["text that is read"])
    with open(path, "r+") as made.held:
        assert "cannot be restored" not in refused(made)
        assert made.held.readline() == "1\n"
        made.step = lambda file: (file.write("x"), file.flush(), 1.0)[2]
        assert "held cannot be restored" in refused(made)


def test_what_cannot_be_memory_is_not_refused(tmp_path: Any) -> None:
    class Logs(Holds):
        """Writes what nobody reads back, and draws from the generator of dropout."""

        log: Any
        generator: Any

        def forward(self, x: Tensor) -> Tensor:
            self.log.write("a step\n")
            return super().forward(x) + 0 * torch.rand(x.shape, generator=self.generator)

    made: Any = Logs(RESTORED["array"], moves=False)
    made.generator = torch.default_generator
    with open(tmp_path / "log", "w") as made.log:
        assert tt.unroll(made.double(), STEPS).shape == STEPS.shape


@pytest.mark.parametrize(
    ("make", "step"),
    [
        (hashlib.sha256, lambda h: (h.update(b"x"), h.digest()[0])[1]),
        (hashlib.blake2b, lambda h: (h.update(b"x"), h.digest()[0])[1]),
        (lambda: np.random.SeedSequence(0), lambda s: s.spawn(1)[0].generate_state(1)[0] / 2**32),
    ],
)
def test_what_can_be_compared_alone_is_refused_and_named(make: Any, step: Any) -> None:
    assert "held cannot be restored" in refused(holds(Kind(make, step)))


def test_a_moved_thing_inside_a_plain_iterator_or_queue_is_seen() -> None:
    class Stream:
        def __init__(self) -> None:
            self.inner = iter(range(99))

        def __next__(self) -> int:
            return next(self.inner)

    made = holds(CONSUMED["generator"])
    made.held = Stream()
    with pytest.raises(ValueError, match=r"held\.inner was changed"):
        tt.unroll(made, STEPS)


# Values of tensors that change without a version


def scaled(module: Any) -> None:
    module.linear.weight.data.mul_(0.5)


def single(module: Any) -> None:
    module.linear.weight.data[-1, -1] += 1.0


def by_array(module: Any) -> None:
    module.linear.weight.detach().numpy()[0, 1] += 1.0


def exchanged_data(module: Any) -> None:
    module.linear.weight.data = 0.5 * module.linear.weight.data


def of_buffer(module: Any) -> None:
    module.total.data[0, -1] += 1.0


def of_buffer_by_array(module: Any) -> None:
    module.total.numpy()[0, 0] += 1.0


def of_neuron(module: Any) -> None:
    module.neuron.raw_beta.data.add_(0.1)


def of_plain_tensor(module: Any) -> None:
    module.plain[0].data += 1.0


def helper(module: Any) -> None:
    single(module)


def named_in_text(module: Any) -> None:
    getattr(module.linear.weight, "data")[0, 0] = 7.0  # noqa: B009 (that is the point)


WRITES = (
    *(scaled, single, by_array, exchanged_data, of_buffer, of_buffer_by_array, of_neuron),
    *(of_plain_tensor, helper, named_in_text),
)


class Writes(nn.Module):
    """Writes to a tensor past its version, after the neurons."""

    total: Tensor

    def __init__(self, write: Callable[[Any], None], size: int) -> None:
        super().__init__()
        self.linear, self.neuron = nn.Linear(size, size), layer("LIF", size)
        self.register_buffer("total", torch.ones(size, size))
        self.total[1, 1] = torch.nan
        self.plain = [torch.zeros(size)]
        self.write: Any = write

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.neuron(self.linear(x))
        self.write(self)
        return y


@pytest.mark.parametrize("size", [N, 150])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_past_the_version_is_refused(write: Callable[[Any], None], size: int) -> None:
    made = Writes(write, size)
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(ValueError, match=r"was changed by the forward pass") as error:
        tt.unroll(made, torch.rand(T, B, size))
    restored = all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(made.state_dict().values(), before.values(), strict=True)
    )
    assert restored != ("linear.weight cannot be restored" in str(error.value))
    if size == N:
        assert restored


@pytest.mark.parametrize("size", [N, 150])
def test_a_write_in_a_hook_is_refused(size: int) -> None:
    made: Any = nn.Sequential(nn.Linear(size, size), layer("LIF", size))

    def hook(module: Any, args: Any, y: Tensor) -> None:
        module.weight.data[0, 0] += 1.0

    tt.unroll(made, torch.rand(T, B, size), from_rest=True)
    made[0].register_forward_hook(hook)
    with pytest.raises(ValueError, match=r"0\.weight was changed"):
        tt.unroll(made, torch.rand(T, B, size))


def test_a_write_between_two_passes_is_none_in_a_pass() -> None:
    made: Any = Writes(lambda module: None, N)
    x = torch.rand(T, B, N)
    for write in WRITES:
        write(made)
        tt.unroll(made, x, from_rest=True)
    made.linear = nn.Linear(N, N)
    tt.unroll(made, x, from_rest=True)


def test_weights_that_other_processes_may_write_are_not_compared() -> None:
    made = Writes(scaled, N)
    made.linear.weight.share_memory_()
    tt.unroll(made, torch.rand(T, B, N))


def test_values_cost_nothing_where_no_code_is_a_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("tracetorch.core.values.MemoryReader.read", read)
    monkeypatch.setattr("tracetorch.core.values.Values.__init__", read)
    net = nn.Sequential(nn.Linear(N, N), layer("LIF", N), nn.Linear(N, N), layer("LIF", N))
    tt.unroll(net, sequence())
    with pytest.raises(AssertionError, match="read"):
        tt.unroll(Writes(scaled, N), sequence())


def test_code_that_writes_past_no_version_is_watched_for_some_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.neuron = nn.Linear(N, N), layer("LIF", N)

        def forward(self, x: Tensor) -> Tensor:
            return self.neuron(self.linear(x))

    reads: list[bool] = []
    read = values.MemoryReader.read

    def noted(self: Any, tensors: Any, *, exact: bool) -> Any:
        reads.append(exact)
        return read(self, tensors, exact=exact)

    monkeypatch.setattr(values.MemoryReader, "read", noted)
    made = Plain()
    for _ in range(20):
        tt.unroll(made, sequence())
    assert reads == [False] * 16
    for _ in range(20):
        writes = Writes(lambda module: module.total.data, N)
        tt.unroll(writes, sequence())
    assert reads[16:] == [True] * 40


class KeptSum(nn.Module):
    """Module that keeps a sum, which stays 0 while its input does, with a graph all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.sum = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.sum = 0.5 * self.sum + self.weight * x.mean()
        return x + self.sum


def test_a_value_that_is_equal_but_has_a_graph_is_memory() -> None:
    model = nn.Sequential(KeptSum(), snn.LIF(3))
    with pytest.raises(ValueError, match=r"0\.sum was changed"):
        tt.unroll(model, torch.zeros(4, 2, 3))
