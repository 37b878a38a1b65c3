"""A model is run by step before its way by layer is believed: what is found, and what is right."""

import copy
import functools
import gc
import logging
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tracetorch as tt
from tests.cases import layer, module, stepped, weighted_sum
from tests.networks import Counts, Doubled, Listed, Smooth, Twice
from tests.unrolling.memories import KINDS, WAYS, Says
from tests.unrolling.models import Whole, dyadic, made, with_dyadic_weights
from tracetorch import snn
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.passes import current_pass
from tracetorch.unrolling import first_run
from tracetorch.unrolling.first_run import is_close

T, B, N = 6, 4, 16
BY_STEP = r'Use (tt\.)?unroll\(\.\.\., by="step"\)'
WHY = (
    "the model remembers something from step to step outside the states of neuron layers, or it "
    rf"does not treat the samples of a batch independently.*{BY_STEP}"
)
INPUTS = rf"is given other inputs by layer than by step: {WHY}"
OUTPUTS = rf"gives other outputs by layer than by step: {WHY}"


def sequence(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*(shape or (T, B, N)), generator=torch.Generator().manual_seed(seed))


def around(module: nn.Module) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N, N), layer("LIF", N), module, nn.Linear(N, N), layer("LIF", N))


def behind_silence(module: nn.Module) -> Any:
    """Put neurons that never fire in front, whose output shows nothing."""
    model = around(module)
    model[1] = snn.LIF(N, pos_threshold=1e6)
    return model


def by_layer(model: nn.Module, x: Tensor) -> Tensor:
    """Run by layer twice: the first time with a trial, the second without; they are the same."""
    first = tt.unroll(model, x, from_rest=True)
    assert torch.equal(tt.unroll(model, x, from_rest=True), first)
    return first


@pytest.mark.one_in(3)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_found_whatever_holds_it(kind: str, way: str) -> None:
    both = kind in ("item of a list", "generator", "Event", "threading.local")
    for place in (around, behind_silence) if both else (around,):
        model = place(WAYS[way](KINDS[kind]))
        with pytest.raises(ValueError, match=rf"^4 \(LIF\) {INPUTS}"):
            tt.unroll(model, sequence())
        assert tt.get_states(model) == {}
        assert current_pass() is None


def model(forward: Callable[[Any, Tensor], Tensor], **kept: Any) -> Any:
    """Make a model of a linear layer ``g`` and a neuron ``n``, with what it keeps beside them."""
    torch.manual_seed(0)
    made = module(forward, g=nn.Linear(N, N), n=layer("LIF", N))
    for name, value in kept.items():
        if isinstance(value, Tensor):
            made.register_buffer(name, value)
        else:
            setattr(made, name, value)
    return made


def counter(s: Any, x: Tensor) -> Tensor:
    s.t += 1
    return s.n(s.g(x / s.t))


def delay_line(s: Any, x: Tensor) -> Tensor:
    s.line.append(x)
    return s.n(s.g(s.line.pop(0) if len(s.line) > 2 else torch.zeros_like(x)))


def ring_buffer(s: Any, x: Tensor) -> Tensor:
    s.ring[s.at[0] % 3] = x.mean(0)
    s.at[0] += 1
    return s.n(s.g(x) + s.ring.sum(0))


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
    """A batch norm with a number of its own, as norms through time have one."""

    t: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.t += 1
        return super().forward(x) * self.t


def counting_norm() -> nn.Module:
    norm = CountingNorm(N).eval()
    norm.register_buffer("t", torch.zeros(()), persistent=False)
    return nn.Sequential(norm, layer("LIF", N))


def started_norm(s: Any, x: Tensor) -> Tensor:
    if not s.is_set:
        s.mean.copy_(x.detach().mean(0))
        s.is_set.fill_(True)
    return s.n(x - s.mean)


def started(of: Callable[[Tensor], Any]) -> Callable[[Any, Tensor], Tensor]:
    """Divide by what is set, in an attribute, from the first inputs."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.n(x / (keep(s, "scale", of(x.detach())) if s.scale is None else s.scale))

    return forward


def hooked(hook: Callable[..., Any]) -> nn.Module:
    module = nn.Linear(N, N)
    module.register_forward_hook(hook)
    return module


def write_in_hook(module: Any, args: Any, y: Tensor) -> None:
    module.weight.data[0, 0] += 1.0


def before(act: Callable[[Any, Tensor], object]) -> Callable[[Any, Tensor], Tensor]:
    def forward(s: Any, x: Tensor) -> Tensor:
        act(s, x)
        return s.n(s.g(x))

    return forward


def after(act: Callable[[Any], object]) -> Callable[[Any, Tensor], Tensor]:
    def forward(s: Any, x: Tensor) -> Tensor:
        y: Tensor = s.n(s.g(x))
        with torch.no_grad():
            act(s)
        return y

    return forward


def keep(holder: Any, name: str, value: Any) -> Any:
    setattr(holder, name, value)
    return value


KEEPS_SOMETHING: dict[str, Callable[[], nn.Module]] = {
    "the previous output": lambda: model(
        lambda s, x: keep(s, "prev", s.n(s.g(x + s.prev))), prev=0.0),
    "a trace": lambda: model(
        lambda s, x: s.n(s.g(keep(s, "trace", 0.9 * s.trace + x))), trace=0.0),
    "a counter of steps": lambda: model(counter, t=0),
    "a delay line": lambda: model(delay_line, line=[]),
    "a ring buffer": lambda: model(ring_buffer, ring=torch.zeros(3, N), at=[0]),
    "a buffer replaced": lambda: model(
        lambda s, x: s.n(s.g(x + keep(s, "total", s.total + x.mean()))), total=torch.zeros(())),
    "a buffer in place": lambda: model(
        lambda s, x: s.n(s.g(x + s.total.copy_(0.9 * s.total + x.mean()))), total=torch.zeros(())),
    "a mode": lambda: model(lambda s, x: (s.n(s.g(x if s.training else 2 * x)), s.eval())[0]),
    "a sum with a graph": lambda: model(
        lambda s, x: s.n(x + keep(s, "sum", 0.5 * s.sum + s.g.weight.mean() * x.mean())), sum=0.0),
    "an annealed dropout": lambda: model(
        lambda s, x: s.n(s.g(x) * (1 - keep(s.drop, "p", 0.5 * s.drop.p))), drop=nn.Dropout(0.5)),
    "a weight adapted": lambda: model(after(lambda s: s.g.weight.mul_(0.9))),
    "a weight replaced": lambda: model(
        after(lambda s: setattr(s.g, "weight", nn.Parameter(0.9 * s.g.weight)))),
    "a weight by its array": lambda: model(
        after(lambda s: s.g.weight.detach().numpy()[0].__iadd__(1.0))),
    "a norm set by its first inputs": lambda: model(
        started_norm, mean=torch.zeros(N), is_set=torch.tensor(False)),
    "a scale set by its first inputs": lambda: model(
        started(lambda x: 1 + x.abs().mean(0)), scale=None),
    "a number set by its first inputs": lambda: model(
        started(lambda x: float(x.abs().max())), scale=None),
    "a running norm in training": lambda: nn.Sequential(RunningNorm(), layer("LIF", N)),
    "a buffer of a batch norm": counting_norm,
    "a weight in a hook": lambda: nn.Sequential(hooked(write_in_hook), layer("LIF", N)),
}  # fmt: skip


def test_a_cache_is_that_of_the_pass() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        if s.mask is None or len(s.mask) != len(x):
            s.mask = torch.ones(len(x), 1)
        return x * s.mask

    net, x = nn.Sequential(module(forward, mask=None), layer("LIF", N)), sequence()
    twin = copy.deepcopy(net)
    assert torch.equal(tt.unroll(net, x), tt.unroll(twin, x, by="step"))
    assert net[0].mask.shape == (T * B, 1)


def test_what_acts_after_the_third_step_is_found_by_check() -> None:
    def late(calls: list[int], x: Tensor) -> Tensor:
        calls.append(1)
        return x * max(1, len(calls) - 8)

    tt.unroll(around(Says(functools.partial(late, []))), sequence())
    with pytest.raises(ValueError, match=rf"4 \(LIF\) {INPUTS}"):
        tt.unroll(around(Says(functools.partial(late, []))), sequence(), check=True)


BATCH: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(0),
    "flip": lambda x: x.flip(0),
    "first sample": lambda x: x + x[0],
    "neighbour": lambda x: torch.cat([x[:1], x[1:] + x[:-1]]),
    "attention over samples": lambda x: (x @ x.T).softmax(-1) @ x,
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "layer norm of all": lambda x: F.layer_norm(x, x.shape),
    "reshaped": lambda x: x.reshape(N, -1).T.contiguous(),
    "one column": lambda x: torch.cat([x[:, :5], x[:, 5:6] - x[:, 5:6].mean(0), x[:, 6:]], 1),
    "a small leak": lambda x: x + 0.01 * x.mean(0),
    "the size of the batch": lambda x: x / len(x),
    "a large batch": lambda x: 2 * x if len(x) > B else x,
    "a sum against a bound": lambda x: x if x.abs().sum() > 60 else -x,
    "the position": lambda x: x + torch.arange(len(x), dtype=x.dtype)[:, None],
}
# of spikes the largest is 1 in every batch
LARGEST: dict[str, Callable[[Tensor], Tensor]] = {
    "max of the batch": lambda x: x / (x.abs().amax(0) + 1),
    "topk": lambda x: x * (x >= x.topk(2, 0).values[-1]),
    "only where silent": lambda x: x if bool((x > 1.05).any()) else x.cumsum(0),
}


@pytest.mark.parametrize("place", [around, behind_silence])
@pytest.mark.parametrize("name", BATCH)
def test_a_mixed_batch_is_found(name: str, place: Any) -> None:
    with pytest.raises(ValueError, match=rf"^4 \(LIF\) {INPUTS}"):
        tt.unroll(place(Says(BATCH[name])), sequence())


@pytest.mark.parametrize("name", LARGEST)
def test_a_batch_mixed_by_its_largest_value_is_found_in_front(name: str) -> None:
    x = sequence() * torch.linspace(0.5, 1, T)[:, None, None]
    with pytest.raises(ValueError, match=rf"^1 \(LIF\) {INPUTS}"):
        tt.unroll(nn.Sequential(Says(LARGEST[name]), layer("LIF", N)), x)


@pytest.mark.parametrize(
    ("scale", "factor", "offset", "is_found"),
    [
        (1.0, 1.09e-4, 0.0, False),  # rtol of 1e-4, and 1e-5 of the largest value
        (1.0, 1.11e-4, 0.0, True),
        (1.0, -1.09e-4, 0.0, False),
        (1.0, -1.11e-4, 0.0, True),
        (0.0, 0.0, 0.9e-8, False),  # all values are zero, the largest counts as a thousandth
        (0.0, 0.0, 1.1e-8, True),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_tolerance(scale: float, factor: float, offset: float, is_found: bool, check: bool) -> None:
    drifting = Says(lambda x: x * (1 + factor) + offset if len(x) > 3 else x)
    net = nn.Sequential(drifting, snn.Readout(4)).double()
    x = torch.full((5, 3, 4), scale, dtype=torch.float64)
    said = pytest.raises(ValueError, match=rf"1 \(Readout\) {INPUTS}")
    with said if is_found else nullcontext():
        tt.unroll(net, x, check=check)
    for small, is_found in ((0.9e-4, False), (1.1e-4, True)):  # by the largest value
        one, other = torch.tensor([[10.0, 0.0], [10.0, small]], dtype=torch.float64)
        assert is_close(one, other) is not is_found


def cached() -> nn.Module:
    """Make one with constants, counters, logs and a buffer that nothing is made of."""

    def forward(s: Any, x: Tensor) -> Tensor:
        s.calls += 1
        s.log.append(x.detach().mean())
        s.total += x.detach().mean(0)
        s.shape = x.shape[1:]
        return x * N**0.5 + len(s.table["none"])

    made = module(forward, calls=0, log=[], table={"none": []})
    made.register_buffer("total", torch.zeros(N))
    return made


def changed(change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = nn.Linear(N, N)
        change(module)
        return module

    return make


def hidden_neuron() -> nn.Module:
    inner = layer("LIF", N)
    return Says(lambda x: inner(x))


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "softmax over features": lambda: Says(lambda x: x.softmax(-1)),
    "layer norm": lambda: nn.LayerNorm(N),
    "a shared layer": lambda: nn.Sequential(linear := nn.Linear(N, N), nn.ReLU(), linear),
    "a recurrent layer": lambda: snn.Recurrent(layer("LIF", N), nn.Linear(N, N)),
    "memory inside a recurrent layer": lambda: recurrent(RunningNorm()),
    "in place": lambda: nn.ReLU(inplace=True),
    "an input written to": lambda: Says(lambda x: x.mul_(2.0)),
    "a hook with other values": lambda: hooked(lambda module, args, y: y + 1),
    "a hook before": changed(lambda m: m.register_forward_pre_hook(lambda m, args: (2 * args[0],))),
    "weight norm": changed(parametrizations.weight_norm),
    "spectral norm": changed(lambda m: parametrizations.spectral_norm(m).eval()),
    "a running norm in evaluation": lambda: RunningNorm().eval(),
    "dropout in evaluation": lambda: nn.Dropout(0.5).eval(),
    "counters, logs, and buffers that nothing is made of": cached,
    "a lazy layer": lambda: nn.LazyLinear(N),
    "a forward around a layer's own": lambda: Doubled(N),
    "a neuron in a closure": hidden_neuron,
    "inputs that are no tensors": lambda: module(
        lambda s, x: s.inner(SimpleNamespace(x=x)),
        inner=module(lambda s, held: s.n(held.x), n=layer("LIF", N)),
    ),
}
PYTORCHS = pytest.mark.filterwarnings("ignore:.*(weight_norm|torch.jit).* is deprecated")


@PYTORCHS
@pytest.mark.parametrize("place", [around, behind_silence])
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_believed(name: str, place: Any) -> None:
    with torch.no_grad():
        net, x = place(RIGHT[name]()), sequence()
        y = tt.unroll(net, x, from_rest=True, check=True)
        if "inside" not in name:
            torch.testing.assert_close(by_layer(net, x), y)
            tt.zero_states(net)
            if "closure" not in name:
                torch.testing.assert_close(stepped(net, x), y)


IN_TRAINING: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(N),
    "a batch norm of ones own": lambda: type("OwnNorm", (nn.BatchNorm1d,), {})(N),
    "spectral norm": changed(parametrizations.spectral_norm),
    "spectral norm, by a hook": changed(nn.utils.spectral_norm),
    "all in a plain list": lambda: Listed(nn.BatchNorm1d(N), nn.Dropout()),
}


@PYTORCHS
@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda module: torch.jit.trace(module, torch.rand(B, N))]
)
@pytest.mark.parametrize("options", [{}, {"by": "step"}, {"segment": 2}, {"check": True}], ids=str)
def test_what_torch_jit_has_compiled_computes_what_the_module_does(compiled, options):
    torch.manual_seed(0)
    plain, x = nn.Linear(N, N), sequence()
    found = []
    for first in (plain, compiled(plain)):
        y = tt.unroll(nn.Sequential(first, layer("LIF", N)), x, **options)
        (weight,) = [p for p in first.parameters() if p.ndim == 2]
        found.append([y, *torch.autograd.grad(weighted_sum(y), weight)])
    torch.testing.assert_close(*found)


@PYTORCHS
@pytest.mark.parametrize("name", IN_TRAINING)
def test_norms_and_dropout_in_training_are_believed_and_counted_once(name: str) -> None:
    net, x = around(IN_TRAINING[name]()), sequence()
    tt.unroll(copy.deepcopy(net).eval(), x)
    twin = copy.deepcopy(net)
    torch.manual_seed(1)
    y = tt.unroll(net, x, check="list" not in name)
    after = torch.get_rng_state()
    assert "forward" not in vars(net[2])
    if "list" in name:
        return
    # one call of the modules on all steps is what is left
    torch.manual_seed(1)
    h = twin[2](tt.unroll(twin[:2], x).flatten(0, 1))
    assert torch.equal(torch.get_rng_state(), after)
    tt.unroll(twin[3:], h.unflatten(0, (T, B)))
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=0, atol=0)
    assert y.shape == (T, B, N)


def test_what_is_left_is_what_the_pass_by_layer_leaves() -> None:
    def function(x: Tensor) -> Tensor:
        return x + random.random() + np.random.rand() + torch.rand(x.shape)

    found: list[Any] = []
    net = nn.Sequential(nn.BatchNorm1d(N), cached(), Says(function), *around(nn.Dropout(0.2)))
    start = copy.deepcopy(net.state_dict())
    for _ in range(2):  # the second is believed
        net.load_state_dict(start)
        tt.zero_states(net)
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        y = tt.unroll(net, sequence())
        numbers = random.random(), np.random.rand(), torch.rand(3)
        found.append([y, numbers, copy.deepcopy(net.state_dict()), tt.get_states(net)])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("segment", [None, 2])
def test_a_pass_over_layers_in_another_mode_is_one_call(segment: int | None) -> None:
    """What is then compared counts in no norm, draws no number and writes into no input."""
    head = Says(lambda x: x.mul_(2) if segment is None else x), nn.BatchNorm1d(N)
    net = nn.Sequential(*head, layer("LIF", N), nn.Dropout(), nn.Linear(N, N), layer("LIF", N))
    tt.unroll(net, sequence(), from_rest=True)
    start, found = copy.deepcopy(net.state_dict()), []
    net[2].eval()
    for _ in range(2):  # the second is believed
        net.load_state_dict(start)
        torch.manual_seed(0)
        x = sequence()
        with counted(net) as sizes:
            y = tt.unroll(net, x, from_rest=True, segment=segment)
        weight = torch.autograd.grad(weighted_sum(y), net.get_parameter("4.weight"))
        found.append([y, x, *weight, torch.rand(3), copy.deepcopy(net.state_dict())])
        found[-1].append(len(sizes) > T)
    assert (found[0].pop(), found[1].pop()) == (True, False)
    torch.testing.assert_close(*found, rtol=0, atol=0)


RANDOM: dict[str, Callable[[Tensor], Tensor]] = {
    "one number for all": lambda x: x * torch.rand(1),
    "a shuffled batch": lambda x: x[torch.randperm(len(x))],
    "a number of Python's": lambda x: x * random.random(),
    "a number of NumPy's": lambda x: x * np.random.rand(),
    "noise, sample by sample": lambda x: x + torch.randn_like(x),
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_is_believed_and_said_once(name, caplog):
    net = around(Says(RANDOM[name]))
    with caplog.at_level(logging.INFO, logger="tracetorch"):
        for _ in range(3):
            tt.unroll(net, sequence())
    (text,) = caplog.messages
    assert "the model is random, and its values were not compared" in text


def test_integers_and_several_inputs_and_outputs() -> None:
    net = nn.Sequential(nn.Embedding(9, N), layer("LIF", N))
    assert tt.unroll(net, torch.arange(T * B).reshape(T, B) % 9, check=True).shape == (T, B, N)
    x, gate = dyadic(7, 2, 4), dyadic(7, 2, 4, seed=1)
    y = tt.unroll(made("skip"), {"x": x, "gate": gate}, check=True)
    assert torch.equal(y["out"], tt.unroll(made("skip"), (x, gate), by="step")["out"])
    expected = tt.unroll(made("dense"), dyadic(2, 3), steps=5, by="step")
    assert torch.equal(tt.unroll(made("dense"), dyadic(2, 3), steps=5, check=True), expected)


VERBS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "feedback": (lambda s, x: s.n(x + s.g(torch.zeros_like(x) if s.n.mem is None else s.n.mem)),
     "read its state mem"),
    "in place": (after(lambda s: s.n.mem.data.clamp_(-0.5, 0.5)), "read its state mem"),
    "set": (after(lambda s: setattr(s.n, "mem", torch.zeros(B, N))), "set its state mem"),
    "zeroed": (before(lambda s, x: s.n.zero_states()), r"call zero_states\(\)"),
    "zeroed for some": (before(lambda s, x: tt.zero_states(s, where=x.sum(-1) > N)),
     r"call zero_states\(\)"),
    "detached": (after(tt.detach_states), r"call detach_states\(\)"),
    "all read": (lambda s, x: s.n(s.g(x)) + sum(state.mean()
     for state in tt.get_states(s).values()), "read its states"),
    "all set": (before(lambda s, x: tt.set_states(s, {})), "set its states"),
    "copied": (lambda s, x: s.n(s.g(x)) + copy.deepcopy(s.n)(s.g(x)), "copy it"),
    "pickled": (lambda s, x: s.n(s.g(x)) + pickle.loads(pickle.dumps(s.n))(s.g(x)), "copy it"),
    "moved": (after(lambda s: s.n.float()), "move it"),
}  # fmt: skip


CHANGED: dict[str, Callable[[Any], object]] = {
    "a threshold": lambda s: s.n.raw_pos_threshold.data.add_(0.1),
    "a decay assigned": lambda s: setattr(s.n, "beta", 0.5),
    "a raw parameter replaced": lambda s: setattr(s.n, "raw_beta", nn.Parameter(s.n.raw_beta / 2)),
    "an option": lambda s: setattr(s.n, "reset", "none"),
}


class Own(snn.LIF):
    def forward_step(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward_step(2 * x)


class Calling(snn.LIF):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.forward_step(2 * x)


ONCE = r"runs all of its time steps at once, so a forward cannot"
OWN_CODE: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a mean in it": (lambda s, x: s.n(s.g(x) - s.g(x).mean(0)), rf"^n \(LIF\) {INPUTS}"),
    "a flip at its end": (lambda s, x: s.n(x).flip(0), rf"^the model \(Model\) {OUTPUTS}"),
    "once more": (lambda s, x: s.n(s.g(x) if len(x) > B else s.g(s.g(x))), rf"^n \(LIF\) {INPUTS}"),
    "another": (lambda s, x: (s.n if len(x) > B else s.other)(s.g(x)), rf"^other \(LIF\) {INPUTS}"),
    "by step alone": (lambda s, x: s.n(s.g(x)) if len(x) > B else s.other(s.n(s.g(x))),
     rf"^other \(LIF\) {INPUTS}"),
    "by layer alone": (lambda s, x: s.other(s.n(s.g(x))) if len(x) > B else s.n(s.g(x)),
     rf"^other \(LIF\) {INPUTS}"),
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{name: (make, WHY) for name, make in KEEPS_SOMETHING.items()},
    **{name: (lambda f=f: model(f, other=layer("LIF", N)), said)  # type: ignore[misc]
       for name, (f, said) in OWN_CODE.items()},
    "a part of a part": (lambda: nn.Sequential(nn.Sequential(nn.Identity(), model(counter, t=0))),
     rf"^0\.1\.n \(LIF\) {INPUTS}"),
    **{name: (lambda f=f: model(f), f"layer 'n', LIF.* {ONCE} {said} in each of them")  # type: ignore[misc]
       for name, (f, said) in VERBS.items()},
    **{name: (lambda act=act: model(after(act)),  # type: ignore[misc]
       r"^n \(LIF\) was changed by the forward pass: .* the same parameters and options")
       for name, act in CHANGED.items()},
    "an override": (lambda: nn.Sequential(nn.Linear(N, N), Own(N)),
     r"1 \(Own\) overrides forward_step, and not forward_sequence, which runs all steps: it"),
    "a call of the step": (lambda: Calling(N), "cannot use its states in each of them"),
    "an unroll inside": (lambda: Whole(layer("LIF", N)), "is unrolled inside a model that is unro"),
    "a layer called twice": (lambda: Twice(layer("LIF", N)), "is called twice in one step"),
    "a declared memory": (lambda: Counts(N), f"{ONCE} use its memory"),
    "a transposed batch": (lambda: nn.Sequential(Says(lambda x: x.T.contiguous()),
     layer("LIF", T * B)),
     "does not hold 6 time steps in dimension 0: something before it does not keep"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_by_layer_is_refused_and_runs_by_step(name: str) -> None:
    make, message = REFUSED[name]
    nets = []
    for _ in range(3):
        torch.manual_seed(0)
        nets.append(make())
    with pytest.raises(ValueError, match=message) as refused:
        tt.unroll(nets[0], sequence())
    assert 'by="step"' in str(refused.value)
    assert tt.get_states(nets[0]) == {}
    if "transposed" not in name:
        for part in (sequence()[:2], sequence()[2:]):
            assert torch.equal(tt.unroll(nets[1], part, by="step"), stepped(nets[2], part))


@pytest.mark.parametrize("room", ["snntorch", "spikingjelly.activation_based.neuron"])
def test_neurons_of_other_libraries_are_refused_by_name(room: str) -> None:
    peer, library = pytest.importorskip(room), room.partition(".")[0]
    foreign = peer.LIFNode() if hasattr(peer, "LIFNode") else peer.Leaky(0.9, init_hidden=True)
    net = nn.Sequential(nn.Linear(N, N), foreign, layer("LIF", N))
    with pytest.raises(ValueError, match=f"1 .* is a neuron of {library}, which keeps its state"):
        tt.unroll(net, sequence())


@contextmanager
def counted(net: nn.Module) -> Iterator[list[int]]:
    """Note how many samples each call of a model is given, within a block."""
    sizes: list[int] = []
    handle = net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    try:
        yield sizes
    finally:
        handle.remove()


def is_tried(net: nn.Module, x: Tensor) -> bool:
    """Whether a pass over a model is compared with its steps."""
    with counted(net) as sizes:
        tt.unroll(net, x, from_rest=True)
    return len(sizes) > 1


def test_how_often_the_model_is_called() -> None:
    net, x = around(nn.Identity()), sequence()
    with counted(net) as sizes:
        for part in (x[:1], x, x, x[:2], x[:1]):
            tt.unroll(net, part)
        trial = [B] * 3 + [3 * B] + [B] * 3
        assert sizes == [B, T * B, *trial, T * B, 2 * B, B]
        sizes.clear()
        tt.unroll(net, x, check=2)
        assert sizes == [T * B, *[B] * 2, 2 * B, *[B] * 2]
        sizes.clear()
        tt.unroll(net, x, by="step")
        assert sizes == [B] * T
    assert is_tried(copy.deepcopy(net), x)
    assert is_tried(nn.Sequential(*net), x)


def test_each_mode_is_run_by_step() -> None:
    net, x = around(module(lambda s, x: x - x.mean(0) if s.training else x, "Mixing")), sequence()
    assert is_tried(net.eval(), x)
    with pytest.raises(ValueError, match=rf"4 \(LIF\) {INPUTS}"):
        tt.unroll(net.train(), x, from_rest=True)
    assert not is_tried(net.eval(), x)
    net[1].train()  # a layer alone in another mode
    assert is_tried(net, x)


def test_other_layers_or_another_order_are_run_by_step() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        if s.way == "one":
            return s.n(s.g(x))
        if s.way == "two":
            return s.other(s.n(s.g(x)))
        return s.n(s.other(s.g(x)) - x.mean(0))

    net, x = model(forward, other=layer("LIF", N), way="one"), sequence()
    for way in ("one", "two"):
        net.way = way
        assert [is_tried(net, x), is_tried(net, x)] == [True, False]
    net.way = "other order"
    for _ in range(2):  # it is refused again until it changes
        with pytest.raises(ValueError, match=rf"n \(LIF\) {INPUTS}"):
            tt.unroll(net, x, from_rest=True)
    net.way = "one"
    assert torch.equal(tt.unroll(net, x, from_rest=True), tt.unroll(net, x, by="step"))


# Layers whose steps stand between those of the others: all runs by step


def recurrent(inside: nn.Module) -> snn.Recurrent:
    connection = nn.Sequential(inside, nn.Linear(N, N))
    return snn.Recurrent(layer("LIF", N), connection)


# two layers of which one is inside of a ``Recurrent``, and where the other stands
SHARING: dict[str, Callable[[nn.Module, nn.Module], nn.Module]] = {
    "in two": lambda one, other: SHARING["inside and behind"](one, recurrent(other)),
    "inside and behind": lambda a, b: module(lambda s, x: s.b(x + s.a(x)), a=recurrent(a), b=b),
    "inside and in front": lambda a, b: module(lambda s, x: x + s.a(s.b(x)), a=recurrent(a), b=b),
}


def calls_by_layer(make: Callable[[], Any], x: Tensor, **named: Any) -> list[int]:
    """Run by layer, which gives what steps do; return how many samples each call was given."""
    torch.manual_seed(0)
    net = make()
    with counted(net) as sizes:
        torch.manual_seed(1)
        found = tt.unroll(net, x, **named)
    torch.manual_seed(0)
    twin = make()
    torch.manual_seed(1)
    assert torch.equal(found, tt.unroll(twin, x, by="step", **named))
    return sizes


@pytest.mark.one_in(3)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_memory_in_one_recurrent_or_in_two_is_that_of_steps(kind: str, way: str) -> None:
    def shared() -> nn.Module:
        held = WAYS[way](KINDS[kind])
        return SHARING["in two"](held, held)

    makes = [lambda: recurrent(WAYS[way](KINDS[kind])), shared]
    with torch.no_grad():
        for make in makes:
            if kind in ("attribute of a class", "environment"):  # goes on from model to model
                assert tt.unroll(make(), sequence()).shape == (T, B, N)
            else:
                assert calls_by_layer(make, sequence()) == [B] * T


def draws(g: Any) -> nn.Module:
    """Add random numbers of a generator of its own."""
    if isinstance(g, torch.Generator):
        return Says(lambda x: x + torch.rand(x.shape, generator=g))
    return Says(lambda x: x + torch.tensor(g.random(tuple(x.shape)), dtype=x.dtype))


def remember(s: Any, x: Tensor) -> Tensor:
    y = x if s.last is None or s.last.shape != x.shape else x + s.last
    s.last = y.detach()
    return y


PAIRS: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
    "a module with an attribute": lambda: (module(remember, last=None),) * 2,
    "a module with a generator": lambda: (draws(torch.Generator().manual_seed(0)),) * 2,
    "a generator": lambda: (draws(g := torch.Generator().manual_seed(0)), draws(g)),
    "a generator of NumPy": lambda: (draws(g := np.random.default_rng(0)), draws(g)),
    "a neuron layer": lambda: (layer("LIF", N),) * 2,
    "noise": lambda: (snn.Noise(N, seed=0),) * 2,
    "delays": lambda: (snn.DelayedLinear(N, N, max_delay=2),) * 2,
    "a batch norm": lambda: (nn.BatchNorm1d(N),) * 2,
}


@pytest.mark.parametrize("place", SHARING)
@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_shared_with_the_inside_or_not_is_that_of_steps(pair: str, place: str) -> None:
    make: Any = lambda: SHARING[place](*PAIRS[pair]())  # noqa: E731
    assert calls_by_layer(make, sequence()) == [B] * T
    make = lambda: with_dyadic_weights(  # noqa: E731
        SHARING[place](PAIRS[pair]()[0], nn.Linear(N, N))
    )
    x, mask = (4 * sequence()).round() / 4, sequence(T, B, seed=1) < 0.8
    calls_by_layer(make, x)
    calls_by_layer(make, x, reset=mask)


WRITES: dict[str, Callable[[Any, Tensor], object]] = {
    "in place": lambda weight, x: weight.add_(x),
    "by its data": lambda weight, x: weight.data.add_(x),
    "by other data": lambda weight, x: setattr(weight, "data", weight.data + x),
}


def hebbian(kind: str) -> Any:
    """Make a module whose weight every step changes."""

    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            WRITES[kind](s.weight, 0.01 * x.T @ x)
        return x @ s.weight

    return module(forward, weight=nn.Parameter(0.1 * torch.eye(N), requires_grad=False))


@pytest.mark.parametrize("kind", WRITES)
def test_what_a_refused_model_has_written_is_taken_back(kind: str) -> None:
    first, counts = hebbian(kind), model(counter, t=0.0)
    for net in (nn.Sequential(first, layer("LIF", N)), counts):
        with pytest.raises(ValueError, match=WHY):
            tt.unroll(net, sequence())
    assert torch.equal(first.weight, 0.1 * torch.eye(N))
    assert counts.t == 0.0


def test_a_pass_with_a_layer_in_another_mode_writes_weights_once() -> None:
    net, twin = (recurrent(hebbian("in place")).eval() for _ in range(2))
    twin.load_state_dict(net.state_dict())
    for training in (False, True):  # the model itself stays in its mode
        for model, by in ((net, "layer"), (twin, "step")):
            model.neuron.train(training)
            tt.unroll(model, sequence(), by=by)  # type: ignore[arg-type]
        for weight, expected in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.equal(weight, expected)


SETTINGS = {"gain": 1.0}


class Reading(snn.Neuron):
    """A step that reads what is no argument: it runs eagerly."""

    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = 0.5 * mem + SETTINGS["gain"] * x
        return mem, mem


@pytest.mark.filterwarnings("ignore:.*runs step by step")
def test_what_an_eager_step_reads_may_be_written_by_the_forward() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        SETTINGS["gain"] = float(x.detach().mean())
        return s.inside(x)

    assert calls_by_layer(lambda: module(forward, inside=Reading(N)), sequence()) == [B] * T
    assert tt.unroll(Reading(N), sequence()).shape == (T, B, N)


class Twofold(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


@pytest.mark.parametrize(
    ("make", "runs_by_step"),
    [
        (lambda: snn.Recurrent(layer("LIF", N), nn.Linear(N, N)), False),
        (lambda: snn.Recurrent(Smooth(N), nn.Linear(N, N)), False),
        (lambda: snn.Recurrent(layer("LIF", N), nn.Sequential(nn.LayerNorm(N), nn.ReLU())), False),
        (lambda: snn.Recurrent(layer("LIF", N), Twofold(N, N)), True),
        (lambda: snn.Recurrent(Doubled(N), nn.Linear(N, N)), True),
        (lambda: type("Mine", (snn.Recurrent,), {})(layer("LIF", N), nn.Linear(N, N)), True),
        (lambda: snn.Recurrent(layer("LIF", N), hooked(lambda module, args, y: 2 * y)), True),
        (lambda: snn.Recurrent(layer("LIF", N), snn.Recurrent(layer("LIF", N), Twofold(N, N))),
         True),
    ],
)  # fmt: skip
def test_which_layers_have_all_run_by_step(make: Any, runs_by_step: bool) -> None:
    net, x = around(make()), sequence()
    with counted(net) as sizes:
        for _ in range(2):  # the second is believed
            y = tt.unroll(net, x, from_rest=True)
    assert (T * B not in sizes) is runs_by_step
    torch.testing.assert_close(y, tt.unroll(net, x, by="step", from_rest=True))


def test_a_layer_of_own_code_that_is_put_in_later_is_refused_once() -> None:
    net, x = around(nn.Identity()), sequence()
    tt.unroll(net, x, from_rest=True)
    net[2] = snn.Recurrent(layer("LIF", N), Twofold(N, N))
    said = r"has other layers now.*by step from now on\. Call it again"
    with pytest.raises(ValueError, match=said):
        tt.unroll(net, x, from_rest=True)
    with counted(net) as sizes:
        y = tt.unroll(net, x, from_rest=True)
    assert sizes == [B] * T
    assert torch.equal(y, tt.unroll(net, x, by="step", from_rest=True))


class Changing(snn.LIF):
    """A class to be changed."""


def changing() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(N, N), Changing(N), nn.Flatten(1), nn.Softmax(-1), nn.Linear(N, N), snn.LIF(N)
    )


CHANGES: dict[str, Callable[[Any], object]] = {
    "a parameter": lambda net: setattr(net[0], "weight", nn.Parameter(torch.eye(N))),
    "a parameter in place": lambda net: net[0].weight.data.mul_(2.0),
    "a hook": lambda net: net[0].register_forward_hook(lambda m, args, y: 2 * y),
    "a hook before": lambda net: net[0].register_forward_pre_hook(lambda m, args: 2 * args[0]),
    "a forward of an instance": lambda net: setattr(net[0], "forward", lambda x: 2 * x),
    "a forward of a neuron": lambda net: setattr(net[1], "forward", lambda x: 2 * x),
    "a neuron": lambda net: net.__setitem__(1, snn.LIF(N, beta=0.1)),
    "a neuron that becomes a readout": lambda net: net.__setitem__(1, snn.Readout(N)),
    "a neuron more": lambda net: net.append(snn.LIF(N)),
    "a recurrent layer": lambda n: n.__setitem__(1, snn.Recurrent(snn.LIF(N), nn.Linear(N, N))),
    "an option": lambda net: setattr(net[1], "reset", "none"),
    "a neuron called twice": lambda net: net.append(net[1]),
    "the mode": lambda net: net.insert(0, nn.Dropout(1.0)),
}


def result(net: Any) -> Any:
    try:
        y = tt.unroll(net, sequence(), from_rest=True)
        y.sum().backward()
    except ValueError as error:
        return str(error)
    return [y.detach(), *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_takes_effect(name: str) -> None:
    net, twin = changing(), changing()
    first = copy.deepcopy(result(net))
    net.zero_grad()
    for each in (net, twin):
        CHANGES[name](each)
    twin.load_state_dict(net.state_dict())
    found, expected = result(net), result(twin)
    assert type(found) is type(expected)
    if isinstance(found, str):
        assert found == expected
        return
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(found) != len(first) or not all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(found, first, strict=True)
    ), "a model that is not looked at again would pass"


def test_an_override_that_a_class_is_given_later_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = changing(), changing()
    tt.unroll(net, sequence(), from_rest=True)
    own = lambda self, x: Neuron.forward_step(self, 2 * x)  # noqa: E731
    monkeypatch.setattr(Changing, "forward_step", own, raising=False)
    with pytest.raises(ValueError, match=r"1 .Changing. overrides forward_step, and not forward_s"):
        tt.unroll(other, sequence())
    monkeypatch.undo()
    found = tt.unroll(other, sequence(), from_rest=True)
    assert torch.equal(found, tt.unroll(net, sequence(), from_rest=True))


def in_place(s: Any, x: Tensor) -> Tensor:
    """Change the neuron's input and output in place, as residual networks do."""
    drive = 1.0 * s.g(x)
    y = s.n(drive)
    if not torch.is_grad_enabled():  # autograd itself forbids it otherwise
        drive += 5.0
    y += 1.0
    return y.relu_()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("by", ["layer", "step"])
def test_what_is_recorded_is_not_changed_in_place(by: Any, grad: bool) -> None:
    net, x = model(in_place), sequence()
    with torch.set_grad_enabled(grad):
        y, seen = tt.unroll(net, x, by=by, record=["output", "input"])
        assert set(seen["n.output"].unique().tolist()) == {0.0, 1.0}
        assert torch.equal(y, seen["n.output"] + 1.0)
        torch.testing.assert_close(seen["n.input"], net.g(x))
    if grad:
        plain = copy.deepcopy(net)
        weighted_sum(tt.unroll(plain, x, from_rest=True) * 2.0).backward()
        y, seen = tt.unroll(net, x, by=by, record="output", from_rest=True)
        weighted_sum(y + seen["n.output"]).backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.grad, plain.get_parameter(name).grad)


def test_a_model_that_goes_at_exit_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 4), snn.LIF(4))
    tt.unroll(model, torch.ones(2, 1, 3))
    monkeypatch.setattr(first_run, "trusted", None)  # as the names of a module are then
    del model
    gc.collect()  # what a callback raises is a warning, and so an error
