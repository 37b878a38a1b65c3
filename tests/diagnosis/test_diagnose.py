"""Networks that learn have no finding; a network with one fault has that of the fault."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import PUBLISHED, Net, few, module_and_step
from tests.networks import Listed
from tests.refusals import check, refusals
from tracetorch import functional, snn
from tracetorch.diagnosis import Diagnosis, Finding

B, N, CLASSES = 16, 20, 4
RAGGED = torch.arange(25)[:, None] < torch.linspace(10, 24, B).int()


def target() -> Tensor:
    return torch.arange(B) % CLASSES


def mean(y: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(y.mean(0), t)


def last(y: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(y[-1], t)


# The models are Any: tests reach into their layers, whose attributes nn.Module does not declare.
def dense(neuron: str = "LIF", **arguments: Any) -> Any:
    torch.manual_seed(0)
    layer = getattr(snn, neuron)(48, **arguments)
    return nn.Sequential(nn.Linear(N, 48), layer, nn.Linear(48, CLASSES), snn.Readout(CLASSES))


def surrogate(spike: Any) -> Any:
    return dense(surrogate_derivative=spike)


def deep(layers: int, **arguments: Any) -> Any:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Linear(N, 32), snn.LIF(32, **arguments)]
    for _ in range(layers - 1):
        parts += [nn.Linear(32, 32), snn.LIF(32, **arguments)]
    return nn.Sequential(*parts, nn.Linear(32, CLASSES), snn.Readout(CLASSES))


def conv() -> Any:
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), snn.LIF(8, dim=-3), nn.MaxPool2d(2))
    head = (nn.Flatten(), nn.Dropout(0.2), nn.Linear(72, CLASSES), snn.Readout(CLASSES))
    return nn.Sequential(*body, *head)


def recurrent(scale: float = 1.0, **arguments: Any) -> Any:
    torch.manual_seed(0)
    connection = changed(nn.Linear(32, 32), "weight", lambda w: w.mul_(scale))
    loop = snn.Recurrent(snn.LIF(32, **arguments), connection)
    return nn.Sequential(nn.Linear(N, 32), loop, nn.Linear(32, CLASSES), snn.Readout(CLASSES))


def x(T: int = 25, scale: float = 1.0) -> Tensor:
    return scale * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1))


def images(T: int = 12) -> Tensor:
    return torch.rand(T, B, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def changed(model: Any, name: str, change: Callable[[Tensor], Any]) -> Any:
    """Change a parameter in place; return the model."""
    with torch.no_grad():
        change(model.get_parameter(name))
    return model


def scaled(model: Any, factor: float, bias: float | None = None) -> Any:
    """Scale the weights before the first neurons, and set their biases."""
    changed(model, "0.weight", lambda w: w.mul_(factor))
    return model if bias is None else changed(model, "0.bias", lambda b: b.fill_(bias))


def narrow() -> Any:  # without a bias half of its neurons are silent
    return scaled(surrogate(functional.fast_sigmoid_surrogate(25.0)), 1.0, bias=0.2)


Healthy = tuple[Callable[[], nn.Module], Callable[[], Tensor], Callable[[Tensor, Tensor], Tensor]]

HEALTHY: dict[str, Healthy] = {
    "dense": (dense, x, mean),
    "dense, read at the end": (dense, x, last),
    "events": (dense, lambda: (x(40) < 0.2).float(), mean),
    "three layers": (lambda: deep(3), lambda: x(scale=3.0), mean),
    "convolution": (conv, images, mean),
    "recurrent": (recurrent, lambda: x(30), last),
    "narrow surrogate": (narrow, x, mean),
    "triangle": (lambda: surrogate(functional.triangular_surrogate(1.0)), x, mean),
    "half precision": (lambda: dense().bfloat16(), lambda: x().bfloat16(), mean),
    **{
        name: (lambda name=name: dense(name), lambda: x(30, 3.0) - 1.5, mean)  # type: ignore[misc]
        for name in ("BLIF", "SLIF", "RLIF", "BSRLIF")
    },
}


def diagnose(model: Any, data: Any = None, loss: Any = mean, **options: Any) -> Diagnosis:
    """Diagnose a model on some inputs, with as many targets as they have samples."""
    return tt.diagnose(model, (x() if data is None else data, target()), loss, **options)


def found(d: Diagnosis, name: str, layer: str, severity: str) -> Finding:
    """Return the finding of a name and layer, which must be the only one of them."""
    matching = [f for f in d.named(name) if f.layer == layer]
    assert len(matching) == 1, str(d)
    assert matching[0].severity == severity, str(d)
    assert severity == "note" or not d.ok
    return matching[0]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_network_that_learns_has_no_warnings(name: str) -> None:
    make, batch, loss = HEALTHY[name]
    d = diagnose(make(), batch(), loss)
    assert d.ok, str(d)
    assert str(d).endswith("Nothing here keeps the network from learning.")


def train(model: Any, data: Tensor, classes: Tensor, loss: Any, lr: float, check: Any) -> float:
    """Train a model for 40 steps from what ``check`` has looked at; return the last loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(41):
        tt.zero_states(model)
        check(step, optimizer)
        optimizer.zero_grad()
        value = loss(tt.unroll(model, data), classes)
        value.backward()
        optimizer.step()
    return value.item()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["dense", "recurrent", "BSRLIF", "narrow surrogate"])
def test_a_network_has_no_warnings_during_and_after_training(name: str) -> None:
    make, batch, loss = HEALTHY[name]
    model, data, losses = make(), batch(), []

    def look(step: int, optimizer: Any) -> None:
        if step in (0, 10, 40):
            d = diagnose(model, data, loss, optimizer=optimizer)
            assert d.ok, str(d)
            losses.append(d.loss)

    train(model, data, target(), loss, 5e-3, look)
    assert losses[-1] < 0.95 * losses[0]  # it learns: to 0.88 at most, from six seeds


# One fault each


def chain(weight: float, threshold: float, surrogate: Any) -> Any:
    """Build five layers whose membranes stay near the threshold for any scale of the weights."""
    model = deep(5, pos_threshold=threshold, surrogate_derivative=surrogate, detach_reset=True)
    for place in (2, 4, 6, 8):
        changed(model, f"{place}.weight", lambda w: w.abs_().mul_(weight))
        changed(model, f"{place}.bias", nn.init.zeros_)
    return model


def falling() -> Any:
    model = chain(2e-2, 2e-2, functional.atan_surrogate(2.0))
    for place in (2, 4, 6, 8):
        changed(model, f"{place}.weight", lambda w: w.mul_(0.2))
        model[place + 1].pos_threshold = 4e-3
    return model


def two_heads() -> Any:
    """Return a model with an output that is not used and layers that are not called."""
    idle = nn.Sequential(nn.Linear(N, 3), snn.LIF(3))
    parts = {"body": dense(), "unused": nn.Linear(N, CLASSES), "idle": idle}
    return Net(lambda m, x: (m.unused(x), m.body(x))[1], **parts)


def hidden() -> Any:
    """Return a model with layers in a plain list, which ``parameters()`` does not see."""
    return nn.Sequential(Listed(*dense()), nn.Linear(CLASSES, CLASSES))


def poisoned() -> Any:
    return changed(dense(), "2.weight", lambda w: w[0, 0].fill_(torch.nan))


def spoiled() -> Tensor:
    data = x()
    data[3, 2, 1], data[4, 4, 4] = torch.nan, torch.inf
    return data


def dividing() -> Any:
    """Return a model that divides by a norm of zero."""
    divides = Net(lambda m, x: x / (0 * x).norm(dim=-1, keepdim=True))
    first, second = (nn.Linear(N, 8), snn.LIF(8)), (snn.LIF(8), nn.Linear(8, CLASSES))
    return nn.Sequential(*first, nn.Linear(8, 8), divides, *second)


def gated() -> Any:
    return Net(lambda m, x, gate: m.body(x * gate), body=dense())


def zeroed() -> Any:
    return changed(changed(dense(), "2.weight", nn.init.zeros_), "2.bias", nn.init.zeros_)


def frozen(whole: bool) -> Any:
    model = dense()
    (model if whole else model[0]).requires_grad_(False)
    return model


def biased(first: float, count: int) -> Any:
    """Return a model of which some neurons are always driven up or down."""
    model = changed(dense(), "0.bias", lambda b: b[:count].fill_(first))
    return model if count <= 40 else changed(model, "0.bias", lambda b: b[count:].fill_(0.5))


class Competing(snn.Neuron):
    """Neuron whose step is not pointwise, or leaves its spike function out."""

    states = ("mem",)

    def __init__(self, num_neurons: int, kind: str) -> None:
        super().__init__(num_neurons)
        self.decay("beta", 0.9)
        self.threshold("top", 1e6 if kind == "competing" else 1.0)
        self.option("kind", kind)

    @staticmethod
    def step(x, mem, *, beta, top, spike, kind):
        mem = beta * mem + x
        if kind == "competing":
            mem = mem - x.mean(-1, keepdim=True)
            fired = spike(mem - top)
            return fired, mem - fired * top
        return (mem - top).relu() if kind == "graded" else (mem > top).to(x.dtype), mem


def comparing(kind: str) -> Any:
    model = dense()
    model[1] = Competing(48, kind)
    return model


def one_hot(classes: Tensor) -> Tensor:
    return F.one_hot(classes, CLASSES).float()


def shifted(mean: float, features: Any = 2) -> Tensor:
    """Return inputs of which some features have a mean and a deviation of 0.5."""
    data = x()
    data[..., features] = mean + 0.5 * data[..., features].sub(0.5) * math.sqrt(12)
    return data


def squashed(name: str) -> Any:
    """Return a cross entropy with an activation before its own softmax."""
    options = {"dim": -1} if name == "softmax" else {}
    return lambda y, t: F.cross_entropy(getattr(y.mean(0), name)(**options), t)


def binary(y: Tensor, t: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(y.mean(0).sigmoid(), target=one_hot(t))


def ending(activation: nn.Module, place: int = 4) -> Any:
    return dense().insert(place, activation)


def larger(factor: float = 100.0) -> Any:
    return changed(scaled(dense(), factor), "2.weight", lambda w: w.mul_(factor))


def in_eval(place: int, frozen: bool = False) -> Any:
    model = conv()
    model[place].eval().requires_grad_(not frozen)
    return model


def off() -> Any:
    layers = nn.Linear(N, 8), snn.LIF(8), snn.LockedDropout(8), nn.Linear(8, CLASSES)
    return nn.Sequential(*layers).eval()


boxcar, triangle = functional.boxcar_surrogate, functional.triangular_surrogate
straight = functional.straight_through_surrogate()
cut = lambda: dense().insert(2, Net(lambda m, x: x.detach()))  # noqa: E731
slow = lambda: nn.Sequential(*dense()[:3], snn.Readout(CLASSES, beta=0.9999))  # noqa: E731
decaying = functional.decay_to_halflife(0.9)

silent = lambda: changed(conv(), "1.bias", lambda b: b.fill_(-5))  # noqa: E731
equal = lambda: changed(scaled(dense(), 1.0, bias=0), "0.weight", lambda w: w.fill_(0.02))  # noqa: E731
plain = lambda: surrogate(lambda u: (u > 0).to(u))  # noqa: E731
dark = x(), torch.zeros(25, B, N)
faint = lambda neuron: lambda: scaled(dense(neuron), 0.001, bias=0.0)  # noqa: E731

# the model, its input and loss; the finding, where, how severe, a value or its range, and its words


FAULTS: list[tuple[Any, Any, Any, str, str, str, Any, str]] = [
    (dense, torch.zeros(10, B, N), mean, "input-zero", "", "error", 0, "All 3200 values of x are"),
    (gated, dict(zip(("x", "gate"), dark, strict=True)), mean, "input-zero", "", "error", 0,
     "x['gate'] are zero"),
    (gated, dark, mean, "input-zero", "", "error", 0, "x[1] are zero"),
    (dense, spoiled(), mean, "input-not-finite", "", "error", 2, ""),
    (dense, spoiled(), mean, "activity-not-finite", "1", "error", (0, 1), "what it is given."),
    (dense, x(scale=255.0), mean, "input-scale", "", "warning", 147, "root mean square of 147"),
    (dense, x(scale=1e-4), mean, "input-scale", "", "warning", (0, 1e-4), "0.0001."),
    (dividing, x(), mean, "activity-not-finite", "4", "error", (0, 1), ""),
    (poisoned, x(), mean, "parameter-not-finite", "2.weight", "error", 1, ""),
    (dense, x(), lambda y, t: (y.mean() * 0).log(), "loss-not-finite", "", "error", -math.inf, ""),
    (zeroed, x(), lambda y, t: y.abs().sum(-1).sqrt().mean(), "gradient-not-finite", "3.raw_beta",
     "error", (1, 9), ""),
    (lambda: scaled(dense(), 0.0), x(), mean, "output-ignores-input", "", "error", 0,
     "All 16 samples have the same"),
    (dense, x(), lambda y, t: mean(y.detach(), t), "loss-without-gradient", "", "error", 0, ""),
    (dense, x(), lambda y, t: (y.mean(0).argmax(-1) == t).float().mean(), "loss-without-gradient",
     "", "error", 0, ""),
    (cut, x(), mean, "unreached-parameters", "0.weight", "warning", 4,
     "0.weight, 0.bias, 1.raw_beta, 1.raw_pos_threshold"),
    (two_heads, x(), mean, "layer-not-called", "idle.1", "warning", 0, ""),
    (two_heads, x(), mean, "unreached-parameters", "unused.weight", "warning", 6, ""),
    (lambda: frozen(False), x(), mean, "frozen-parameters", "0.weight", "note", 2, ""),
    (lambda: frozen(True), x(), mean, "nothing-to-learn", "", "error", 0, ""),
    (lambda: scaled(surrogate(boxcar(0.5)), 0.01, bias=0.01), x(), mean, "zero-gradient",
     "0.weight", "warning", (1, 9), "0.weight, 2.weight"),
    (lambda: scaled(dense(), 0.1, bias=-2.0), x(), mean, "dead-neurons", "1", "error", 1,
     "Its drive is negative"),
    (faint("LIF"), x(), mean, "dead-neurons", "1", "error", 1, "slower decay (beta nearer to 1)"),
    (faint("SLIF"), x(), mean, "dead-neurons", "1", "error", 1, "decay (alpha ne"),
    (silent, images(), mean, "dead-neurons", "2", "error", 1, "8 of 8 neurons"),
    (lambda: comparing("competing"), x(), mean, "dead-neurons", "1", "error", 1, ""),
    (lambda: scaled(dense(), 0.1, bias=30.0), x(), mean, "saturated-neurons", "1", "error", 1,
     "48 of 48 neurons fire at 90 %"),
    (lambda: surrogate(boxcar(1e-3)), x(), mean, "out-of-reach", "1", "warning", (1e-9, 0.01),
     "boxcar_surrogate(width=0.001)"),
    (lambda: scaled(surrogate(triangle(0.5)), 0.01, bias=0.0), x(), mean, "out-of-reach", "1",
     "error", 0, ""),
    (plain, x(), mean, "out-of-reach", "1", "error", 0, ""),
    (plain, x(), mean, "unreached-parameters", "0.weight", "warning", 4, ""),
    (lambda: comparing("compared"), x(), mean, "spike-not-called", "1", "error", 0,
     "Write spike(mem - theta) in step"),
    (falling, x(scale=3.0), mean, "vanishing-gradient", "1", "warning", (0, 1e-4), ""),
    (lambda: chain(60.0, 60.0, straight), x(scale=3.0), mean, "exploding-gradient", "1", "warning",
     (1e4, math.inf), ""),
    (lambda: recurrent(6.0, surrogate_derivative=straight), x(60), last, "exploding-through-time",
     "1", "warning", (1e3, math.inf), ""),
    (lambda: recurrent(6.0, surrogate_derivative=straight), x(60), last, "exploding-gradient", "",
     "warning", (10, math.inf), ""),
    (dense, x(200), last, "short-memory", "1", "warning", decaying, "6.58 steps, the sequence has"),
    (dense, x(200), mean, "short-memory", "1", "note", decaying, ""),
    (slow, x(20), last, "slow-average", "3", "warning", (6900, 6950), "0.2 % of its input"),
    (conv, (255 * images()).byte(), mean, "input-dtype", "", "error", 254, "x is torch.uint8, wi"),
    (dense, x() > 0.8, mean, "input-dtype", "", "error", 1, "x is torch.bool, with values from 0"),
    (dense, x().double(), mean, "input-dtype", "", "error", (0.99, 1), "x is torch.float64, with"),
    (dense, x(), squashed("softmax"), "activation-before-loss", "", "error", (1, 2), "a softmax"),
    (dense, x(), squashed("sigmoid"), "activation-before-loss", "", "error", (1, 2), "a sigmoid"),
    (dense, x(), squashed("tanh"), "activation-before-loss", "", "error", (1, 2), "a tanh"),
    (dense, x(), squashed("relu"), "relu-on-logits", "", "warning", (0.1, 0.6), "A ReLU is betw"),
    (dense, x(), binary, "activation-before-loss", "", "error", (0, 2), "a sigmoid"),
    (lambda: ending(nn.Softmax(-1)), x(), mean, "activation-before-loss", "", "error", (1, 2), ""),
    (lambda: ending(nn.ReLU6()), x(), last, "relu-on-logits", "", "warning", (0.1, 0.6), ""),
    (dense, x(), lambda y, t: mean(y.clamp(min=0), t), "relu-on-logits", "", "warning", (0, 1), ""),
    *((lambda: ending(nn.Softmax(-1)), x(),
       partial(tt.loss.membrane_cross_entropy, over=kind), "activation-before-loss", "", "error",
       (1, 2), "") for kind in ("mean", "last", "maximum")),
    (lambda: ending(nn.ReLU()), x(), mean, "relu-on-logits", "", "warning", (0.1, 0.6), ""),
    (lambda: ending(nn.ReLU(), 3), x(), last, "relu-on-logits", "", "warning", (0, 0.6), ""),
    (dense, x(), lambda y, t: F.nll_loss(y.mean(0), t), "no-log-probabilities", "", "error",
     (2, 9), "sum up to"),
    (dense, x(), lambda y, t: F.cross_entropy(y.mean(0).softmax(-1) + 1e-8, t),
     "activation-before-loss", "", "error", (1, 2), "a softmax"),
    (dense, x(), lambda y, t: F.cross_entropy(y.mean(0).softmax(-1).clamp(min=1e-8), t),
     "activation-before-loss", "", "error", (1, 2), "a softmax"),
    (dense, shifted(9.8), mean, "input-offset", "", "warning", (9.5, 10.1),
     "Feature 2 of x has mean 9.79, deviation 0.51"),
    (dense, shifted(-40.0, slice(3, 5)), mean, "input-offset", "", "warning", (-41, -39),
     "2 of 20 features are so far off."),
    (larger, x(), mean, "far-from-threshold", "1", "warning", (90, 300), "thresholds away"),
    (larger, x(), mean, "worse-than-guessing", "", "note", (5.6, 13.8), "4 classes is 1.39"),
    (lambda: larger(500), x(), mean, "worse-than-guessing", "", "warning", (13.9, 500), ""),
    (equal, x(), mean, "equal-neurons", "1", "warning", 1, "48 of 48 neurons have the input and"),
    (lambda: conv().eval(), images(), mean, "in-evaluation-mode", "1", "warning", 2, "1, 5. 1 of"),
    (lambda: in_eval(1), images(), mean, "in-evaluation-mode", "1", "warning", 1, ""),
    (lambda: in_eval(5), images(), mean, "in-evaluation-mode", "5", "warning", 1, ""),
    (off, x(), mean, "in-evaluation-mode", "2", "note", 1, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "data", "loss", "name", "layer", "severity", "value", "words"),
    FAULTS,
    ids=[f"{fault[3]} {number}" for number, fault in enumerate(FAULTS)],
)
def test_a_fault_has_its_finding(make, data, loss, name, layer, severity, value, words) -> None:
    finding = found(diagnose(make(), data, loss), name, layer, severity)
    if isinstance(value, tuple):
        assert value[0] <= finding.value <= value[1]
    else:
        assert finding.value == pytest.approx(value, rel=1e-2 if name == "input-scale" else 1e-5)
    assert words in finding.figure + finding.advice


# the model, its input and loss, and what is a consequence, or no fault
ABSENT: list[tuple[Any, Any, Any, str]] = [
    (dense, spoiled(), mean, "gradient-not-finite"),
    (dense, x(), lambda y, t: (y.mean() * 0).log(), "activity-not-finite"),
    (zeroed, x(), lambda y, t: y.abs().sum(-1).sqrt().mean(), "loss-not-finite"),
    (dense, x()[:, :1].expand(-1, B, -1), mean, "output-ignores-input"),  # equal inputs
    (dense, x(), lambda y, t: mean(y.detach(), t), "unreached-parameters"),
    (lambda: comparing("graded"), x(), mean, "spike-not-called"),
    (lambda: comparing("graded"), x(), mean, "out-of-reach"),  # a gradient passes by another way
    (lambda: comparing("compared"), x(), mean, "out-of-reach"),
    (lambda: dense(beta=functional.halflife_to_decay(200 / 4)), x(200), last, "short-memory"),
    (lambda: dense(beta=0.99999), x(20), last, "slow-average"),  # it sums instead of averaging
    # probabilities where probabilities are wanted, spikes as logits, and a loss that rewards spread
    (dense, x(), lambda y, t: F.nll_loss(y.mean(0).log_softmax(-1), t), "no-log-probabilities"),
    (dense, x(), lambda y, t: F.nll_loss(y.mean(0).log_softmax(-1), t), "activation-before-loss"),
    (dense, x(), lambda y, t: mean(y.log_softmax(-1), t), "activation-before-loss"),
    (dense, x(), lambda y, t: F.binary_cross_entropy(y.mean(0).sigmoid(), one_hot(t)),
     "activation-before-loss"),
    (lambda: dense()[:2], x()[..., :20], lambda y, t: mean(y[..., :4], t), "relu-on-logits"),
    (dense, x(), lambda y, t: F.cross_entropy(y.mean(0).softmax(-1) + y[-1], t),
     "activation-before-loss"),  # a skip connection
    (dense, shifted(2.9), mean, "input-offset"),
    (dense, 12 * x(), mean, "input-offset"),  # it varies as much
    (conv, images() + 2, mean, "input-offset"),
    (dense, x(), lambda y, t: mean(y.clamp(-9, 9), t), "relu-on-logits"),
    (lambda: scaled(dense(), 0.0), x(), mean, "equal-neurons"),  # an input that does not vary
    (lambda: in_eval(1, frozen=True), images(), mean, "in-evaluation-mode"),
    (off, x(), mean, "layer-not-called"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "data", "loss", "name"), ABSENT, ids=[each[3] for each in ABSENT])
def test_a_consequence_or_no_fault_has_none(make: Any, data: Any, loss: Any, name: str) -> None:
    assert not diagnose(make(), data, loss).named(name)


def kinds(d: Diagnosis) -> list[tuple[str, str, str]]:
    return [(f.name, f.layer, f.severity) for f in d]


@pytest.mark.parametrize("time_dim", [1, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_time_may_be_in_another_dimension(time_dim: int, masked: bool) -> None:
    data = torch.randn(100, B, N, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(100)[:, None] < torch.arange(B) + 60
    signal, model = data[..., :2].roll(6, 0), scaled(dense(), 0.01)

    def run(time_dim: int) -> Diagnosis:
        def loss(y: Tensor, target: Tensor) -> Tensor:
            return (y.movedim(time_dim, 0)[..., :2] - target.movedim(time_dim, 0)).square().mean()

        batch = data.movedim(0, time_dim), signal.movedim(0, time_dim)
        turned = (mask.T if time_dim else mask) if masked else None
        return tt.diagnose(model, batch, loss, mask=turned, time_dim=time_dim)

    one, other = run(0), run(time_dim)
    assert kinds(one) == kinds(other)
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert "tt.init.calibrate_(model, x)" in str(other)


@pytest.mark.parametrize(("bias", "count", "severity"), [(-50, 30, "warning"), (0.5, 48, None)])
def test_neurons_that_are_silent_after_the_first_pass_are_warned_of(bias, count, severity) -> None:
    model = biased(bias, count)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = diagnose(model, optimizer=optimizer).named("dead-neurons")
    assert [f.severity for f in before] == (["note"] if severity else [])
    for _ in range(2):
        mean(tt.unroll(model, x(), from_rest=True), target()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = diagnose(model, optimizer=optimizer).named("dead-neurons")
    assert [f.severity for f in after] == ([severity] if severity else [])
    assert all(f.advice.startswith("Begin anew with a lower learning rate, or a") for f in after)


def test_the_cause_stands_first_and_its_consequences_nowhere() -> None:
    for data, name in ((torch.zeros(10, B, N), "input-zero"), (spoiled(), "input-not-finite")):
        assert diagnose(dense(), data)[0].name == name
    assert diagnose(poisoned())[0].name == "parameter-not-finite"
    assert [f.layer for f in diagnose(dividing()).named("activity-not-finite")] == ["4"]
    assert all(f.severity == "note" for f in diagnose(falling()).named("dead-neurons"))
    model = faint("LIF")()
    model[1] = tt.models.IF(48)
    assert "decay" not in diagnose(model).named("dead-neurons")[0].advice
    d = tt.diagnose(scaled(dense(), 0.0), (x()[:, :2], target()[:2]), mean)
    assert "All 2 samples have the same" in found(d, "output-ignores-input", "", "error").figure


# Optimizers


def adam(lr: float = 1e-3, kind: Any = torch.optim.Adam) -> Any:
    return lambda model: kind(model.parameters(), lr=lr)


def one_stopped(model: Any) -> Any:
    others = [p for part in model[1:] for p in part.parameters()]
    groups: Any = [{"params": model[0].parameters(), "lr": 0.0}, {"params": others}]
    return torch.optim.SGD(groups, lr=0.1)


def another(model: Any) -> Any:
    return torch.optim.Adam(dense().parameters(), lr=2e-3)


def grouped(model: Any) -> Any:
    return ADAMW(tt.param_groups(model, 0.01))


ADAMW = torch.optim.AdamW
# the model, its optimizer; the finding, where, how severe, a value or its range, and its words
OPTIMIZERS: list[tuple[Any, Any, str, str, str, Any, str]] = [
    (hidden, adam(), "not-in-optimizer", "0.cells.0.weight", "warning", 7, ""),
    (dense, another, "not-in-optimizer", "0.weight", "error", 7, ""),
    (dense, adam(0.0, ADAMW), "learning-rate-zero", "0.weight", "error", 0, ""),
    (dense, adam(0.0, ADAMW), "weight-decay-on-neurons", "1.raw_beta", "note", 0.01, ""),
    (dense, one_stopped, "learning-rate-zero", "0.weight", "warning", 0, "2 of 7 parameters is 0"),
    # what fits, and what an optimizer does not have has no settings
    (dense, adam(), "not-in-optimizer", "", "", 0, ""),
    (hidden, adam(), "learning-rate-zero", "", "", 0, ""),
    (hidden, adam(), "weight-decay-on-neurons", "", "", 0, ""),
    (dense, one_stopped, "weight-decay-on-neurons", "", "", 0, ""),
    (dense, grouped, "weight-decay-on-neurons", "", "", 0, ""),
    (dense, adam(kind=torch.optim.Rprop), "weight-decay-on-neurons", "", "", 0, ""),
]


@pytest.mark.parametrize(
    ("make", "optimizer", "name", "layer", "severity", "value", "words"), OPTIMIZERS
)
def test_an_optimizer_has_its_finding(make, optimizer, name, layer, severity, value, words) -> None:
    model = make()
    d = diagnose(model, optimizer=optimizer(model))
    if severity:
        finding = found(d, name, layer, severity)
        assert finding.value == value
        assert words in finding.figure
    else:
        assert not d.named(name)


# Activity


def test_dead_neurons_fire_by_their_advice_from_the_distance_of_either_threshold() -> None:
    def advised(model: Any, words: str) -> Diagnosis:
        """Diagnose a model whose neurons are dead again, scaled by what it is advised."""
        finding = found(diagnose(model), "dead-neurons", "1", "error")
        assert finding.value == 1
        assert words in finding.figure
        assert "negative" not in finding.advice
        factor = float(finding.advice.split("by about ")[1].split(" ")[0].rstrip("."))
        changed(scaled(model, factor), "0.bias", lambda b: b.mul_(factor))
        return diagnose(model)

    words = "48 of 48 neurons never fire, in 25 steps of 16 samples. At its"
    again = advised(scaled(dense(), 0.05, bias=0.02), words)
    assert not [f for f in again.named("dead-neurons") if f.severity != "note"], str(again)
    assert again.layers[0].dead < 0.6
    # A negative input makes them fire as well, once it is scaled up.
    reached = 0.05 * (1 - 0.9**25) / (1 - 0.9)
    words = f"reach {100 * reached:.3g} % of the threshold"
    assert advised(scaled(dense("BLIF"), 0.0, bias=-0.05), words).layers[0].dead == 0


# Memory


def test_states_carried_over_from_another_batch() -> None:
    model, data = dense(), x()
    with torch.no_grad():
        tt.unroll(model, 5 * data)
    d = diagnose(model, data)
    finding = found(d, "states-carried", "1", "warning")
    with torch.no_grad():
        carried = mean(tt.unroll(model, data), target())
    assert finding.value == pytest.approx(float(carried))
    assert finding.value != pytest.approx(d.loss)
    assert diagnose(model, data, stream=True).ok
    for where in (torch.ones(B, dtype=torch.bool), None):
        tt.zero_states(model, where=where)
        assert diagnose(model, data).ok


def zeroing(net: Any, part: Any = None) -> Any:
    """Return a model that zeroes states in its forward, of all layers or of one."""
    zeroed = (lambda m: m.net) if part is None else lambda m: m.net[part]
    return Net(lambda m, data: tt.zero_states(zeroed(m)) or m.net(data), net=net)  # type: ignore[func-returns-value]


@pytest.mark.parametrize("by", ["layer", "step"])
def test_states_zeroed_between_steps(by: Any) -> None:
    model = zeroing(dense())
    finding = found(diagnose(model, by=by), "states-emptied", "net.1", "warning")
    assert finding.value == 2
    assert finding.figure.startswith("The states of 2 of 2 neuron layers are gone")
    assert "outside forward()" in finding.advice
    assert model.net[1].mem is None
    assert model.training
    apart = diagnose(zeroing(dense(), 3), by=by)
    assert found(apart, "states-emptied", "net.3", "warning").value == 1
    # with a single step there is nothing to compare
    assert not diagnose(model, x(1), by=by).named("states-emptied")


@pytest.mark.parametrize("make", [dense, recurrent, conv])
def test_states_kept_or_detached_between_steps_have_no_finding(make: Any) -> None:
    def cut() -> Any:
        return Net(lambda m, data: tt.detach_states(m) or m.net(data), net=make())  # type: ignore[func-returns-value]

    data = images() if make is conv else x()
    for model, by in ((make(), "layer"), (make(), "step"), (cut(), "step")):
        assert not diagnose(model, data, by=by).named("states-emptied")
    with pytest.raises(ValueError, match=r"cannot call detach_states\(\) in each"):
        diagnose(cut(), data, by="layer")


def test_states_of_another_batch_size_and_states_that_hold_a_graph() -> None:
    model, data = dense(), x()
    tt.unroll(model, data[:, :7])
    d = diagnose(model, data)
    assert d[0] == found(d, "states-do-not-fit", "1", "error")
    assert "holds 1.mem of shape [7, 48]" in d[0].figure
    mean(tt.unroll(model, data, from_rest=True), target()).backward()
    tt.zero_states(model)
    tt.unroll(model, data)
    d = diagnose(model, data, stream=True)
    assert found(d, "states-hold-a-graph", "1", "warning").value == 2
    tt.detach_states(model)
    assert diagnose(model, data, stream=True).ok


# Diagnosis as a whole


@pytest.mark.parametrize("make", [dense, recurrent, lambda: deep(2)])
def test_diagnoses_by_layer_and_by_step_agree(make: Any) -> None:
    model = make().double()
    one, other = (diagnose(model, x().double(), by=by) for by in ("layer", "step"))
    assert one.loss == pytest.approx(other.loss)
    assert [f.name for f in one] == [f.name for f in other]
    for a, b in zip(one.layers, other.layers, strict=True):
        assert (a.path, a.kind, a.halflives) == (b.path, b.kind, b.halflives)
        for name in ("rate", "dead", "saturated", "reach"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=0.02), (a.path, name)
        if a.gradient is not None:
            assert a.gradient == pytest.approx(b.gradient, rel=1e-3)
            torch.testing.assert_close(a.gradient_by_step, b.gradient_by_step, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("make", [dense, lambda: dense("BSRLIF"), recurrent, poisoned])
def test_diagnoses_on_kernels_and_on_plain_loops_agree(make: Any) -> None:
    model = make().double()
    one = diagnose(model, x().double())
    with tt.fuse.backend("cpu"):
        other = diagnose(model, x().double())
    assert one.loss == pytest.approx(other.loss, nan_ok=True)
    assert kinds(one) == kinds(other)
    for a, b in zip(one.layers, other.layers, strict=True):
        figures = [dataclasses.replace(f, gradient_by_step=None, gradient=0.0) for f in (a, b)]
        assert figures[0] == figures[1]
        torch.testing.assert_close(a.gradient_by_step, b.gradient_by_step, equal_nan=True)


def test_gradient_is_the_derivative_by_the_input_in_every_mode() -> None:
    model, data, classes = dense().double(), x().double(), target()
    drive = model[0](data).detach().requires_grad_()
    mean(tt.unroll(model[1:], drive), classes).backward()
    tt.zero_states(model)
    steps = drive.grad.flatten(1).norm(dim=1)
    for mode in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with mode:
            figures = tt.diagnose(model, (data, classes), mean).layers[0]
        assert figures.gradient == pytest.approx(float(steps.norm()))
        torch.testing.assert_close(figures.gradient_by_step, steps)


def test_batches_of_one_constant_inputs_single_layers_and_losses_near_zero() -> None:
    assert tt.diagnose(conv(), (images()[:, :1], target()[:1]), mean).batch == 1
    d = diagnose(dense(), x()[0], steps=25)
    assert d.steps == 25
    assert d.ok, str(d)
    d = tt.diagnose(snn.LIF(N), (x(),), lambda y: (y.mean() - 0.1).square())
    assert d.layers[0].path == ""
    assert "(model)" in str(d)
    model = dense()
    y = tt.unroll(model, x(), from_rest=True).detach()
    d = tt.diagnose(model, (x(),), lambda out: (out - y - 1e-6).square().mean())
    assert 0 < d.loss < 1e-10
    assert d.ok, str(d)


def test_masks_exclude_padding_from_figures_and_distances() -> None:
    def pair(model: Any, data: Tensor, steps: int) -> tuple[Diagnosis, Diagnosis]:
        """Diagnose with a mask, and without what it leaves out."""
        mask = torch.arange(len(data))[:, None].expand(-1, B) < steps
        return diagnose(model, data, mask=mask), diagnose(model, data[:steps])

    data = x(40)
    data[10:] = 0
    padded, cut = (d.layers[0] for d in pair(dense(), data, 10))
    whole = diagnose(dense(), data).layers[0]
    for name in ("rate", "dead", "saturated", "reach"):
        assert getattr(padded, name) == getattr(cut, name)
    assert padded.rate > whole.rate
    assert padded.reach != whole.reach
    # Their membranes rise further in the padding, which must not count.
    both = pair(scaled(dense(beta=0.99), 0.0, bias=0.015), x(60), 20)
    one, other = (found(d, "dead-neurons", "1", "error") for d in both)
    assert one.figure.split("At its")[1] == other.figure.split("At its")[1]
    assert one.advice == other.advice
    data[:10] += 1
    both = pair(changed(dense(), "0.weight", lambda w: w.abs_().mul_(1000)), data, 10)
    one, other = (d.named("out-of-reach")[0] for d in both)
    assert one.figure == other.figure


@pytest.mark.parametrize("first", [False, True])
def test_memory_too_short_for_a_loss_on_the_ends_of_ragged_sequences(first: bool) -> None:
    """With padding at the end or at the start, as for sequences of one length."""
    T, lengths = 200, torch.linspace(100, 200, B).int()
    mask = torch.arange(T)[:, None] < lengths
    mask = mask.flip(0) if first else mask
    data = x(T) * mask[..., None]

    def ends(y: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(tt.decode.last(y, mask=mask), t)

    def every(y: Tensor, t: Tensor) -> Tensor:
        return tt.loss.membrane_cross_entropy(y, t, over="mean", mask=mask)

    one = diagnose(dense(), data, ends, mask=mask).named("short-memory")[0]
    whole = diagnose(dense(), x(T), last).named("short-memory")[0]
    assert one.severity == whole.severity == "warning"
    note = diagnose(dense(), data, every, mask=mask).named("short-memory")[0]
    assert note.severity == "note"  # a loss on every step
    back, straight = (int(f.figure.split(" steps back")[0].split()[-1]) for f in (one, whole))
    assert abs(back - straight) <= 10 < lengths[-1] - lengths[0]


@pytest.mark.parametrize("mask", [RAGGED, RAGGED.flip(0)], ids=["behind", "before"])
def test_a_loss_that_reads_the_padding(mask: Tensor) -> None:
    """Partly, only, through an inverted mask, and not at all."""

    def read(mask: Tensor, loss: Any) -> Diagnosis:
        return diagnose(dense(), None, loss, mask=mask)

    def masked(mask: Tensor) -> Any:
        return lambda y, t: tt.loss.membrane_cross_entropy(y, t, over="mean", mask=mask)

    share = found(read(mask, mean), "padding-in-loss", "", "warning").value
    assert share == pytest.approx(float((~mask).double().mean()), abs=0.05)
    assert found(read(mask, masked(~mask)), "padding-in-loss", "", "error").value == 1
    assert not read(mask, masked(mask)).named("padding-in-loss")
    assert not read(torch.ones_like(mask), mean).named("padding-in-loss")
    end = found(read(RAGGED, last), "padding-in-loss", "", "error")
    assert "tt.decode.last(y, mask=mask) instead of y[-1]" in end.advice


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_network_learns_with_the_advised_memory_and_not_without(seed: int) -> None:
    """The class is shown in the first steps and read in the last ones."""
    T, generator = 160, torch.Generator().manual_seed(seed)
    classes = torch.randint(2, (64,), generator=generator)
    data = torch.zeros(T, 64, 2)
    data[:5] = 3 * F.one_hot(classes, 2)

    def learned(beta: float) -> float:
        torch.manual_seed(seed)
        hidden = nn.Linear(2, 16, bias=False), snn.LIF(16, beta=beta)
        model = nn.Sequential(*hidden, nn.Linear(16, 2, bias=False), snn.Readout(2, beta=beta))
        found_short = bool(tt.diagnose(model, (data, classes), last).named("short-memory"))
        assert found_short == (beta == 0.9)
        return train(model, data, classes, last, 2e-2, lambda *_: None)

    with tt.fuse.backend("auto"):
        assert learned(functional.halflife_to_decay(T / 4)) < 0.55  # from five seeds 0.33 to 0.43
        assert learned(0.9) > 0.65  # guessing one of two classes: 0.69


def test_diagnosis_prints_and_is_a_sequence() -> None:
    d = tt.diagnose(scaled(dense(), 0.01, bias=0.0), (x(scale=1e-4), target()), mean)
    text = str(d).splitlines()
    assert f"Loss {d.loss:.4g} on 25 steps of a batch of 16." in text[0]
    assert text[3].split()[:4] == ["1", "LIF", "0.0%", "100.0%"]
    assert max(map(len, text)) <= 100
    order = [f.severity for f in d]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    assert d[:2] == d.findings[:2] == tuple(d)[:2]


BATCH = (x(), target())


@refusals(
    r"""
    x(), mean -> TypeError: batch must be a tuple of the input.*got a ten
    BATCH, lambda y, t: 1.0 -> TypeError: loss must return a tensor, got
    BATCH, lambda y, t: y -> ValueError: shape \[25, 16, 4\]\. Reduce it
    (*BATCH, RAGGED), tt.loss.membrane_cross_entropy
        -> TypeError: \(mem, target\), .* too many positional.*\.partial\(loss, mask=mask
    (x(),), mean -> TypeError: the output and the 0 .* missing a required argument
    BATCH, mean, optimizer=[] -> TypeError: be a torch\.optim\.Optimizer
    (x()[:, :0], target()[:0]), mean -> ValueError: the batch has no samp
    BATCH, mean, mask=RAGGED[:3] -> ValueError: the shape \[T, B\] = \[25, 16\], got
    BATCH, mean, mask=RAGGED.T, time_dim=1 -> ValueError: \[B, T\] = \[25, 16\], got
    tt.diagnose(nn.Linear(N, CLASSES), BATCH, mean) -> ValueError: Linear has no neuron layer
    """
)
def test_wrong_arguments_are_refused(call: str, error: str) -> None:
    call = call if call.startswith("tt.") else f"tt.diagnose(dense(), {call})"
    check(call, error, globals())


@pytest.mark.parametrize(("rate", "named"), [(0.02, False), (0.6, True)])
def test_layers_too_busy_for_events(rate: float, named: bool) -> None:
    """The first layer alone: the second is too small, and the third gets numbers."""
    model = nn.Sequential(nn.Linear(256, 128), snn.LIF(128), nn.Linear(128, 2), nn.Linear(2, 256))
    batch = ((torch.rand(60, 32, 256) < rate).float(),)
    with tt.fuse.backend("auto"):
        d = tt.diagnose(model, batch, lambda y: y.square().mean())
    assert [f.layer for f in d.named("too-busy-for-events")] == (["0"] if named else [])
    if named:
        finding = found(d, "too-busy-for-events", "0", "note")
        assert finding.value == pytest.approx(rate, abs=0.02)
        density, crossover = re.findall(r"([\d.]+) %", finding.figure)
        assert 0 < float(crossover) < float(density) == pytest.approx(100 * rate, abs=2)
        assert "first layer" in finding.advice
    # without kernels there is nothing to gain
    d = tt.diagnose(model, batch, lambda y: y.square().mean())
    assert not d.named("too-busy-for-events")


@pytest.mark.parametrize("by", ["layer", "step"])
def test_branches_behind_norms_of_zeros_are_no_vanishing_gradient(by: Any) -> None:
    """The last norm of a block of MS-ResNet starts at zero: its convolutions learn a step later."""
    torch.manual_seed(0)
    net = tt.models.MSResNet(18, 4, 1, images="small", width=4)
    before = copy.deepcopy(net.state_dict())
    batch = torch.rand(3, 8, 1, 8, 8), torch.arange(8) % 4
    d = tt.diagnose(net, batch, mean, by=by)
    assert d.ok, str(d)
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())


ZOO = ["digits-lif", "rows-lif", "vowels-recurrent", "words-adlif", "words-delays"]
ZOO += ["digits-convolutions", "digits-sew-resnet", "rows-seadlif"]


@pytest.mark.parametrize("name", few(ZOO, "digits-lif", "vowels-recurrent", "words-adlif"))
def test_a_trained_network_of_the_zoo_has_no_warnings(name: str) -> None:
    by = tt.zoo.card(name).by
    # some data are sorted by class
    x, y, mask = (
        t[..., ::12] if t.ndim < 3 else t[:, ::12] for t in tt.zoo.sample_batch(name, 192)
    )
    real = None if name.startswith("digits") else mask
    decode = getattr(tt.decode, by)

    def loss(output: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(decode(output, mask=real), classes)

    d = tt.diagnose(tt.zoo.load(name), (x, y), loss, mask=real)
    assert d.ok, str(d)
    assert {f.name for f in d} <= {"in-evaluation-mode", "dead-neurons", "short-memory"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_has_no_warnings_at_its_start(name: str) -> None:
    model = module_and_step(name)[0].train()
    d = tt.diagnose(model, (torch.rand(8, 1, 32, 32), torch.arange(8) % 3), mean, steps=4)
    # of attention, sums of few spikes on few places
    assert not [f for f in d if f.severity != "note" and "attention" not in f.layer], str(d)
