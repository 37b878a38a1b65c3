from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer, thinned
from tests.unrolling.memories import KINDS, WAYS
from tests.unrolling.models import with_dyadic_weights
from tracetorch import snn

T, B, N = 5, 3, 4
SHARED = r"\((Recurrent|Own|Neuron)\) (gives other outputs by layer|remember something outside)"
FOUND = rf"{SHARED}|remembers something from step to step|also outside of it|in two Recurrents"


def sequence(seed: int = 0) -> Tensor:
    return 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(seed))


def recurrent(inside: nn.Module) -> snn.Recurrent:
    connection = nn.Sequential(inside, nn.Linear(N, N))
    return snn.Recurrent(layer("LIF", N), connection)


class InTwo(nn.Module):
    """Two ``Recurrent``s, one behind the other."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.a, self.b = recurrent(one), recurrent(other)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + self.a(x))


class Behind(nn.Module):
    """A ``Recurrent``, and a module behind it."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.a, self.b = recurrent(one), other

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + self.a(x))


class Before(Behind):
    """A ``Recurrent``, and a module in front of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a(self.b(x))


SHARING = {"in two": InTwo, "inside and behind": Behind, "inside and in front": Before}


def equal_by_step(make: Callable[[], nn.Module], x: Tensor, **named: Any) -> None:
    torch.manual_seed(0)
    by_layer = tt.unroll(make(), x, **named)
    torch.manual_seed(0)
    assert torch.equal(by_layer, tt.unroll(make(), x, by="step", **named))


# What is inside, and who shares it


@thinned(3, kind=KINDS, way=WAYS)
def test_memory_of_one_recurrent_stays_and_that_of_two_is_refused(kind: str, way: str) -> None:
    def one() -> nn.Module:
        return recurrent(WAYS[way](KINDS[kind]))

    torch.manual_seed(0)
    with torch.no_grad():
        if kind in ("attribute of a class", "environment"):  # which goes on from model to model
            tt.unroll(one(), sequence())
        else:
            equal_by_step(one, sequence())
        shared = WAYS[way](KINDS[kind])
        with pytest.raises(ValueError, match=FOUND):
            tt.unroll(InTwo(shared, shared), sequence())


class Draws(nn.Module):
    """Random numbers of a generator of its own."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.generator, torch.Generator):
            return x + torch.rand(x.shape, generator=self.generator)
        return x + torch.tensor(self.generator.random(tuple(x.shape)), dtype=x.dtype)


class Remembers(nn.Module):
    """An attribute that every step sets."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.last is None or self.last.shape != x.shape else x + self.last
        self.last = y.detach()
        return y


def twice(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    return module, module


def of_one(generator: Any) -> tuple[nn.Module, nn.Module]:
    return Draws(generator), Draws(generator)


PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "a module with an attribute": lambda: twice(Remembers()),
    "a module with a generator": lambda: twice(Draws(torch.Generator().manual_seed(0))),
    "a generator": lambda: of_one(torch.Generator().manual_seed(0)),
    "a generator of NumPy": lambda: of_one(np.random.default_rng(0)),
    "a neuron layer": lambda: twice(layer("LIF", N)),
    "noise": lambda: twice(snn.Noise(N, seed=0)),
    "delays": lambda: twice(snn.DelayedLinear(N, N, max_delay=2)),
    "a batch norm": lambda: twice(nn.BatchNorm1d(N)),
}


@pytest.mark.parametrize("place", SHARING)
@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_shared_with_the_inside_is_refused_and_right_by_step(pair: str, place: str) -> None:
    torch.manual_seed(0)
    net = SHARING[place](*PAIRS[pair]())
    with pytest.raises(ValueError, match=f"{FOUND}|does not treat the samples"):
        tt.unroll(net, sequence())
    torch.manual_seed(0)
    twin = SHARING[place](*PAIRS[pair]())
    expected = torch.stack([twin(x) for x in sequence()])
    torch.manual_seed(0)
    fresh = SHARING[place](*PAIRS[pair]())
    assert torch.equal(tt.unroll(fresh, sequence(), by="step"), expected)


@pytest.mark.parametrize("place", SHARING)
@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_not_shared_is_believed(pair: str, place: str) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return with_dyadic_weights(SHARING[place](PAIRS[pair]()[0], nn.Linear(N, N)))

    x = (4 * sequence()).round() / 4
    equal_by_step(make, x)
    mask = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.4
    equal_by_step(make, x, reset=mask)


# What the model's own code does with what is inside


class Scaled(nn.Module):
    """A connection that reads or writes an attribute of the model that holds it."""

    def __init__(self, owner: Any, writes: bool) -> None:
        super().__init__()
        self.owner, self.writes, self.linear = [owner], writes, nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        if self.writes:
            self.owner[0].gain = 0.5 + float(x.detach().mean())
            return self.linear(x)
        return self.linear(x) * self.owner[0].gain


class Owner(nn.Module):
    def __init__(self, writes: bool, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.gain = 1.0
        self.inside = snn.Recurrent(layer("LIF", N), Scaled(self, writes))
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def writes_before(net: Any, x: Tensor) -> Tensor:
    net.gain = float(x.detach().mean())
    return net.inside(x)


def writes_behind(net: Any, x: Tensor) -> Tensor:
    y = net.inside(x)
    net.gain = 0.5 + float(y.detach().mean())
    return y


def reads(net: Any, x: Tensor) -> Tensor:
    return net.inside(x) * net.gain


def reads_a_state(net: Any, x: Tensor) -> Tensor:
    return net.inside(x) + net.inside.neuron.mem


def clears(net: Any, x: Tensor) -> Tensor:
    tt.zero_states(net.inside.neuron)
    return net.inside(x)


def halves(net: Any, x: Tensor) -> Tensor:
    y = net.inside(x)
    net.inside.neuron.mem = 0.5 * net.inside.neuron.mem
    return y


@pytest.mark.parametrize(
    ("writes", "forward", "message"),
    [
        (False, writes_before, rf"inside {SHARED}"),
        (False, writes_behind, rf"inside {SHARED}"),
        (True, reads, "the model .* remembers something"),
        (False, reads_a_state, "cannot read its state mem"),
        (False, clears, r"cannot call zero_states\(\)"),
        (False, halves, "cannot read its state mem"),
    ],
)
def test_what_a_forward_does_with_the_inside_is_refused_and_right_by_step(
    writes: bool, forward: Any, message: str
) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return Owner(writes, forward)

    with pytest.raises(ValueError, match=message):
        tt.unroll(make(), sequence())
    twin = make()
    expected = torch.stack([twin(x) for x in sequence()])
    assert torch.equal(tt.unroll(make(), sequence(), by="step"), expected)


# What is left behind


def test_attributes_are_those_of_one_pass() -> None:
    class Logs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.log, self.shape = 0, [1.0], torch.Size()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.log.append(float(x.detach().sum()))
            self.shape = x.shape
            return x + torch.rand(x.shape, generator=self.generator)

    inside, twin = Logs(), Logs()
    log, generator = inside.log, inside.generator
    torch.manual_seed(0)
    tt.unroll(recurrent(inside), sequence())
    torch.manual_seed(0)
    tt.unroll(recurrent(twin), sequence(), by="step")
    assert (id(inside.log), id(inside.generator)) == (id(log), id(generator))
    assert (inside.calls, inside.log, inside.shape) == (T, twin.log, (B, N))
    assert torch.equal(inside.generator.get_state(), twin.generator.get_state())


def test_what_is_random_inside_is_believed() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand_like(x) > 0.5)

    net = nn.Sequential(recurrent(Drops()), recurrent(Drops()))
    torch.manual_seed(0)
    before = tt.unroll(net, sequence())
    torch.manual_seed(0)
    tt.zero_states(net)
    assert torch.equal(tt.unroll(net, sequence()), before)


class Hebbian(nn.Module):
    """A weight that every step changes, or a view of a tensor that is an attribute."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(0.1 * torch.eye(N), requires_grad=False)
        self.trace = torch.zeros(N)
        self.part = self.trace.numpy() if kind == "an array of a tensor" else self.trace[:]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if self.kind == "in place":
                self.weight.add_(0.01 * x.T @ x)
            elif self.kind == "by its data":
                self.weight.data += 0.01 * x.T @ x
            elif self.kind == "by other data":
                self.weight.data = self.weight.data + 0.01 * x.T @ x
            else:
                self.part += 0.1
        return x @ self.weight + self.trace


class Level(nn.Module):
    """A number in an attribute that grows with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.level = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.level += 1.0
        return self.level * x


@pytest.mark.parametrize(
    "kind", ["in place", "by its data", "by other data", "a view", "an array of a tensor"]
)
def test_weights_and_shared_memory_are_those_of_one_pass(kind: str) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        return recurrent(Hebbian(kind))

    net, twin = make(), make()
    with torch.no_grad():
        for seed in range(2):  # of one that goes on
            assert torch.equal(
                tt.unroll(net, sequence(seed)), tt.unroll(twin, sequence(seed), by="step")
            )
    inside, other = net.connection[0], twin.connection[0]
    assert torch.equal(inside.weight, other.weight)
    assert torch.equal(inside.trace, other.trace)
    first: Any = Hebbian("in place")
    refused = nn.Sequential(first, layer("LIF", N))
    with pytest.raises(ValueError, match="remembers something from step to step"):
        tt.unroll(refused, sequence())
    assert torch.equal(first.weight, 0.1 * torch.eye(N))
    refused = nn.Sequential(Level(), layer("LIF", N))
    with pytest.raises(ValueError, match="remembers something from step to step"):
        tt.unroll(refused, sequence())
    assert refused[0].level == 0.0


def test_a_pass_with_a_layer_in_another_mode_writes_weights_once() -> None:
    net, twin = (recurrent(Hebbian("in place")).eval() for _ in range(2))
    twin.load_state_dict(net.state_dict())
    for training in (False, True):  # the model itself stays in its mode
        for model, by in ((net, "layer"), (twin, "step")):
            model.neuron.train(training)
            tt.unroll(model, sequence(), by=by)  # type: ignore[call-overload]
        for weight, expected in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.equal(weight, expected)


SETTINGS = {"gain": 1.0}


class Own(snn.Neuron):
    """A step that reads what is no argument: it runs eagerly."""

    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = 0.5 * mem + SETTINGS["gain"] * x
        return mem, mem


class Gains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = Own(N)

    def forward(self, x: Tensor) -> Tensor:
        SETTINGS["gain"] = float(x.detach().mean())
        return self.inside(x)


@pytest.mark.filterwarnings("ignore:.*runs step by step")
def test_what_an_eager_step_reads_is_not_written_by_the_forward() -> None:
    with pytest.raises(ValueError, match=rf"inside {SHARED}"):
        tt.unroll(Gains(), sequence())
    twin = Gains()
    expected = torch.stack([twin(x) for x in sequence()])
    assert torch.equal(tt.unroll(Gains(), sequence(), by="step"), expected)
    assert tt.unroll(Own(N), sequence()).shape == (T, B, N)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_what_is_random_hides_nothing(p: float) -> None:
    net = Owner(False, writes_behind)
    net.inside.connection = nn.Sequential(net.inside.connection, nn.Dropout(p))
    with pytest.raises(ValueError, match=rf"inside {SHARED}"):
        tt.unroll(net, sequence())


def test_a_file_is_no_attribute_that_can_be_set_back(tmp_path: Any) -> None:
    class Writes(nn.Module):
        def __init__(self, file: Any) -> None:
            super().__init__()
            self.file = file

        def forward(self, x: Tensor) -> Tensor:
            self.file.write("a")
            return x * (1 + 0.1 * self.file.tell())

    with open(tmp_path / "log", "w") as file, open(tmp_path / "other", "w") as other:
        net = nn.Sequential(recurrent(Writes(file)), nn.Linear(N, N))
        tt.unroll(net, sequence())
        with pytest.raises(ValueError, match=r"a \(Rec\w+\) and b \(Rec\w+\) remember something"):
            tt.unroll(InTwo(Writes(file), Writes(other)), sequence())
