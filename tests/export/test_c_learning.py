"""Learning on the device: what ``tt_learn`` in C makes of the weights is what the library makes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.export.c_programs import (
    COMPILERS,
    CNetwork,
    checked,
    checked_sanitized,
    needs_compiler,
    needs_cortex,
    run_on_cortex,
)
from tests.export.models import Adaptive
from tracetorch import integers, snn
from tracetorch.export.c_code.learning import OrderedSums
from tracetorch.online_learning import PairRule, TripletRule

pytestmark = needs_compiler


class Late(snn.Neuron):
    """A neuron that answers what was there before: its first step knows no weight."""

    states = ("mem",)

    def __init__(self, num_neurons: int, dim: int = -1):
        super().__init__(num_neurons, dim)
        self.decay("beta", 0.8)
        self.threshold("base", 0.4)

    @staticmethod
    def step(x, mem, *, beta, base, spike):
        fired = spike(mem - base)
        return fired, beta * mem + x - fired * base


def network(kind: str, hidden: int = 7) -> Any:
    torch.manual_seed(0)
    first, last = nn.Linear(5, hidden), nn.Linear(hidden, 3)
    layers: dict[str, Any] = {
        "LIF": lambda: snn.LIF(hidden, pos_threshold=0.4),
        "RLIF": lambda: snn.RLIF(hidden, pos_threshold=0.4),
        "SLIF": lambda: snn.SLIF(hidden, pos_threshold=0.4),
        "AdLIF": lambda: tt.neurons.AdLIF(hidden, pos_threshold=0.4),
        "own": lambda: Adaptive(hidden),
        "late": lambda: Late(hidden),
        "recurrent": lambda: snn.Recurrent(
            snn.LIF(hidden, pos_threshold=0.4), nn.Linear(hidden, hidden)
        ),
    }
    return nn.Sequential(first, layers[kind](), last, snn.Readout(3, beta_rank=0))


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of products: those of neurons go through functions of ``math.h``."""
    products = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return [parameter for module in products for parameter in module.parameters()]


def drawn(steps: int, inputs: int = 5, outputs: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.rand(steps, 1, inputs, generator=generator) - 0.5
    return x, 0.2 * torch.randn(steps, 1, outputs, generator=generator)


def learned(model: nn.Module, rule: Any, optimizer: Any, x: Tensor, signals: Tensor) -> Tensor:
    """The library's learner, with an optimizer of PyTorch; the outputs ``[T, size]``."""
    outputs = []
    learner = tt.online(model, rule)
    with tt.fuse.backend("eager"), OrderedSums():
        for step, signal in zip(x, signals, strict=True):
            y = learner(step)
            optimizer.zero_grad()
            y.backward(signal)
            optimizer.step()
            outputs.append(y.detach().flatten())
    return torch.stack(outputs)


def check(
    model: nn.Module, rule: Any, folder: Path, steps: int, parameters: Any = weights_of
) -> CNetwork:
    model.eval()
    x, signals = drawn(steps)
    net = CNetwork(
        copied := copy.deepcopy(model),
        x[:20],
        folder,
        learner=tt.online(copied, rule),
        optimizer=torch.optim.SGD(parameters(copied), 0.01),
    )
    got, held = net.learn(x, signals)
    before = {name: value.clone() for name, value in model.named_parameters()}
    y = learned(model, rule, torch.optim.SGD(parameters(model), 0.01), x, signals)
    assert torch.equal(got, y)
    assert (y != 0).any()
    moved = 0
    for name, weight in model.named_parameters():
        if name in held:
            assert torch.equal(held[name], weight.detach().flatten()), name
            moved += bool((weight != before[name]).any())
        else:
            assert torch.equal(weight, before[name]), name
    assert moved >= 2
    return net


@pytest.mark.parametrize("kind", ["LIF", "RLIF", "SLIF", "AdLIF", "own", "late", "recurrent"])
@pytest.mark.parametrize("rule", ["eprop", "ottt"])
def test_weights_are_those_of_the_library(rule: str, kind: str, tmp_path: Path) -> None:
    check(network(kind), rule, tmp_path, 50)


@pytest.mark.parametrize("rule", ["exact", "local"])
def test_rules_with_all_paths_and_with_none(rule: str, tmp_path: Path) -> None:
    check(network("LIF"), rule, tmp_path, 50)


@pytest.mark.parametrize("hidden", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_sizes(hidden: int, tmp_path: Path) -> None:
    check(network("recurrent", hidden), "eprop", tmp_path, 50)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AdLIF", "recurrent"])
def test_a_thousand_updates(kind: str, tmp_path: Path) -> None:
    check(network(kind), "eprop", tmp_path, 1000)


def test_what_does_not_learn_is_constant(tmp_path: Path) -> None:
    net = check(network("LIF"), "eprop", tmp_path, 20, lambda model: model[2].parameters())
    text = (tmp_path / "model.h").read_text()
    assert "learned_2_weight" in text
    assert "learned_0" not in text
    # of the layer before, whose weights stay, there are no traces
    assert "trace_eprop_1" not in text
    assert net.report.learned_bytes == 4 * (3 * 7 + 3)


def test_parameters_of_neurons(tmp_path: Path) -> None:
    """Through exp and the like, to rounding."""
    model = network("LIF").eval()
    x, signals = drawn(40)
    copied = copy.deepcopy(model)
    optimizer = torch.optim.SGD(copied.parameters(), 0.01)
    net = CNetwork(copied, x, tmp_path, learner=tt.online(copied, "eprop"), optimizer=optimizer)
    _, held = net.learn(x, signals)
    learned(model, "eprop", torch.optim.SGD(model.parameters(), 0.01), x, signals)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(held[name], parameter.detach().flatten(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(model[1].raw_beta, copied[1].raw_beta)


def test_a_norm_that_learns(tmp_path: Path) -> None:
    """PyTorch computes it as a whole, C in parts: to rounding, which the check knows."""
    model = nn.Sequential(network("LIF")[:2], norm := nn.BatchNorm1d(7), nn.Linear(7, 3)).eval()
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.uniform_(norm.running_mean, -1.0, 1.0)
    parameters = [*norm.parameters(), *weights_of(model)]
    optimizer = torch.optim.SGD(parameters, 0.05)
    x, _ = drawn(50)
    tt.export.c(model, tmp_path, x, learner=tt.online(model, "eprop"), optimizer=optimizer)
    assert "50 steps of learning" in checked(["make", "-s", "test"], tmp_path)


@pytest.mark.parametrize("rule", [PairRule(), TripletRule()])
def test_stdp_of_integer_neurons(rule: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    neurons = integers.LeakyIntegrator(6, beta=205, pos_threshold=2)
    model = nn.Sequential(connection := nn.Linear(20, 6, bias=False), neurons)
    nn.init.uniform_(connection.weight, 0, 1)
    x = (torch.rand(100, 1, 20) < 0.3).float()
    tt.export.c(model, tmp_path, x, learner=tt.STDP(connection, rule, bounds=(0, 1)))
    assert "at most 0 apart" in checked(["make", "-s", "test"], tmp_path)


def test_rates_are_those_of_the_groups(tmp_path: Path) -> None:
    model = network("LIF").eval()
    groups: Any = [{"params": [model[0].weight], "lr": 0.5}, {"params": [model[2].weight]}]
    x, signals = drawn(5)
    optimizer = torch.optim.SGD(groups, torch.tensor(0.25))
    net = CNetwork(model, x, tmp_path, learner=tt.online(model, "eprop"), optimizer=optimizer)
    _, held = net.learn(x, signals)
    learned(model, "eprop", optimizer, x, signals)
    for name in ("0.weight", "2.weight"):
        assert torch.equal(held[name], model.get_parameter(name).detach().flatten())


def test_a_step_may_be_left_out_and_is_learned_from_once(tmp_path: Path) -> None:
    model = network("LIF").eval()
    x, signals = drawn(12)
    weights = weights_of(model)
    optimizer = torch.optim.SGD(weights, 0.1)
    net = CNetwork(model, x, tmp_path, learner=tt.online(model, "eprop"), optimizer=optimizer)
    row = signals[:1].contiguous()
    net.learn(x[:0], row)
    before = net.held()
    net.learn_from(row)  # there was no step yet
    assert all(torch.equal(before[name], each) for name, each in net.held().items())
    learner = tt.online(model, "eprop")
    with tt.fuse.backend("eager"), OrderedSums():
        for t, step in enumerate(x):
            y = learner(step)
            net(step[None])
            if t % 3 == 2:
                optimizer.zero_grad()
                y.backward(signals[t])
                optimizer.step()
                for _ in range(2):
                    net.learn_from(signals[t])
    held = net.held()
    for name in ("0.weight", "2.weight"):
        assert torch.equal(held[name], model.get_parameter(name).detach().flatten())
    # a reset forgets states and traces, and keeps what was learned
    net.reset()
    after = net.held()
    for name, value in held.items():
        kept = not name.startswith("trace:") and "mem" not in name
        assert torch.equal(after[name], value if kept else torch.zeros_like(value)), name


class TwoHeads(snn.TTModule):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.cell = nn.Linear(5, 4), snn.LIF(4, pos_threshold=0.4)
        self.one, self.two = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        spikes = self.cell(self.hidden(x))
        return self.one(spikes), {"aux": self.two(spikes)}


def test_every_output_has_a_signal(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = torch.optim.SGD(weights_of(model), 0.1)
    tt.export.c(
        model, tmp_path, drawn(30)[0], learner=tt.online(model, "eprop"), optimizer=optimizer
    )
    assert (
        "const float *TT_RESTRICT signal_0, const float *TT_RESTRICT signal_1_aux"
        in (tmp_path / "model.h").read_text()
    )
    assert "at most 0 apart" in checked(["make", "-s", "test"], tmp_path)


# STDP


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        (PairRule(0.01, 0.012), {"bounds": (0, 1)}),
        (PairRule(0.01, 0.012, nearest=True), {"reduction": "sum"}),
        (TripletRule(), {"bounds": (0, 1), "mu": 1.0}),
        (TripletRule.presets["visual cortex"], {"bounds": (0, 1)}),
        (PairRule(0.01, 0.012), {"bounds": (0, 1), "tau_eligibility": 20.0}),
    ],
    ids=["pairs", "nearest", "soft", "triplets", "reward"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_stdp(rule: Any, arguments: Any, masked: bool, tmp_path: Path) -> None:
    """Bit for bit: of one sample no change is a sum."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(20, 5, bias=False), snn.LIF(5, pos_threshold=0.5))
    with torch.no_grad():
        model[0].weight.uniform_(0, 0.5)
    if masked:
        snn.connect(model[0], mask=torch.rand(5, 20) < 0.7)
    x, rewards = (torch.rand(200, 1, 20) < 0.2).float(), torch.randn(200, 1)
    copied = copy.deepcopy(model)
    net = CNetwork(copied, x[:30], tmp_path, learner=tt.STDP(copied[0], rule, **arguments))
    got, held = net.learn(x, rewards)
    stdp = tt.STDP(model[0], rule, **arguments)
    outputs = []
    with torch.no_grad(), OrderedSums(), tt.fuse.backend("eager"):
        for step, reward in zip(x, rewards, strict=True):
            outputs.append(spikes := model(step))
            stdp(step, spikes, reward if "tau_eligibility" in arguments else None)
            stdp.update_()
    assert torch.equal(got, torch.cat(outputs))
    assert 0 < got.mean() < 1
    ((name, weight),) = [pair for pair in model.named_parameters() if "weight" in pair[0]]
    assert torch.equal(held[name], weight.detach().flatten())
    assert not torch.equal(copied.get_parameter(name), weight)
    for state, value in tt.get_states(stdp).items():
        assert torch.equal(held[f"0.{state}"], value.flatten()), state
    assert "at most 0 apart" in checked(["make", "-s", "test"], tmp_path)


def test_several_connections_by_stdp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Linear(20, 6, bias=False), snn.LIF(6, pos_threshold=0.2), nn.Linear(6, 4), snn.LIF(4)
    )
    rules = [tt.STDP(model[0], bounds=(-1, 1)), tt.STDP(model[2], bounds=(0, 1))]
    x = (torch.rand(60, 1, 20) < 0.3).float()
    report = tt.export.c(model, tmp_path, x, learner=rules)
    assert report.learned_bytes == 4 * (20 * 6 + 6 * 4)
    assert report.trace_bytes == 4 * (20 + 6 + 6 + 4)
    assert "void tt_learn(tt_stream *TT_RESTRICT s);" in (tmp_path / "model.h").read_text()
    assert "at most 0 apart" in checked(["make", "-s", "test"], tmp_path)


def test_two_connections_of_one_layer_by_stdp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loop: Any = snn.Recurrent(snn.LIF(6, pos_threshold=0.2), nn.Linear(6, 6))
    model: Any = nn.Sequential(nn.Linear(20, 6, bias=False), loop)
    rules = [tt.STDP(each, bounds=(-1, 1)) for each in (model[0], loop.connection)]
    x = (torch.rand(60, 1, 20) < 0.3).float()
    report = tt.export.c(model, tmp_path, x, learner=rules)
    assert report.learned_bytes == 4 * (20 * 6 + 6 * 6)
    assert "at most 0 apart" in checked(["make", "-s", "test"], tmp_path)


# The files


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("kind", ["recurrent", "own"])
def test_sanitizers_and_conversions(kind: str, compiler: str, tmp_path: Path) -> None:
    model = network(kind)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x, _ = drawn(30)
    report = tt.export.c(model, tmp_path, x, learner=tt.online(model, "eprop"), optimizer=optimizer)
    (tmp_path / "ram.c").write_text(
        f'#include "model.h"\ntypedef char ram[sizeof(tt_stream) == {report.ram_bytes} ? 1 : -1];\n'
    )
    printed = checked_sanitized(compiler, tmp_path, "test.c", "model.c", "ram.c")
    assert "30 steps of learning" in printed


def test_the_check_finds_another_weight(tmp_path: Path) -> None:
    model = network("LIF")
    optimizer = torch.optim.SGD(weights_of(model), 0.01)
    x, _ = drawn(20)
    tt.export.c(model, tmp_path, x, learner=tt.online(model, "eprop"), optimizer=optimizer)
    path = tmp_path / "learned.h"
    text = path.read_text()
    head, mark, tail = text.rpartition("tt_learned_2_bias[3] = {\n    ")
    path.write_text(head + mark + "1.0f + " + tail)
    with pytest.raises(AssertionError, match=r"at most (1|0\.9999)"):
        checked(["make", "-s", "test"], tmp_path)


def test_nothing_of_the_learner_changes(tmp_path: Path) -> None:
    model = network("LIF")
    learner = tt.online(model, "eprop")
    x, _ = drawn(10)
    for step in x[:3]:
        learner(step)
    states = tt.get_states(learner)
    weights = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    tt.export.c(model, tmp_path, x, learner=learner, optimizer=optimizer)
    now = tt.get_states(learner)
    assert now.keys() == states.keys()
    assert all(torch.equal(now[name], value) for name, value in states.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    learner(x[3])


@needs_cortex
def test_recurrent_neurons_learn_in_64_kilobytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recurrent = snn.Recurrent(snn.LIF(64, pos_threshold=0.4), nn.Linear(64, 64, bias=False))
    readout = snn.Readout(4, beta_rank=0)
    model = nn.Sequential(nn.Linear(8, 64), recurrent, nn.Linear(64, 4), readout)
    x, _ = drawn(30, 8)
    report = tt.export.c(
        model,
        tmp_path,
        x,
        learner=tt.online(model, "eprop"),
        optimizer=torch.optim.SGD(weights_of(model), 0.01),
    )
    assert report.ram_bytes + report.stack_bytes <= 64 * 1024
    assert report.trace_bytes == 4 * (2 * 64 * (9 + 64) + 4 * 65)
    printed, stack = run_on_cortex(tmp_path, "test.c")
    assert printed == "30 steps of learning, weights at most 0 apart\n"
    assert stack <= report.stack_bytes


# What is refused


def sgd(model: nn.Module, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.01, **settings)


def online(model: nn.Module) -> dict[str, Any]:
    return {"learner": tt.online(model, "eprop"), "optimizer": sgd(model)}


class Convolutional(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 2, 1), snn.LIF(2, dim=1), nn.Flatten()
        )


class Scaled(torch.autograd.Function):
    """A gradient that is multiplied by a number, which no graph of tensors has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float(gradient.abs().sum())


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Scaled.apply(x) if torch.is_grad_enabled() else x.clone()


class Rows(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Unflatten(1, (5, 1)), nn.Linear(1, 3), snn.LIF(3))


class Written(nn.Sequential):
    """A write in place, through another view than the one that is read."""

    def forward(self, x: Tensor) -> Tensor:
        twice = x.clone()
        twice.view(-1).mul_(2.0)
        y: Tensor = super().forward(twice)
        return y


class Filled(nn.Sequential):
    """A write of PyTorch into memory that is given."""

    def forward(self, x: Tensor) -> Tensor:
        twice = torch.empty_like(x)
        with torch.no_grad():
            torch.mul(x, 2.0, out=twice)
        y: Tensor = super().forward(twice)
        return y


class Twice(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self[1](self[0](x) + self[0](x))
        return y


class WithRule(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(first := nn.Linear(5, 3), snn.LIF(3))
        self.rule = tt.STDP(first)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self[1](self[0](x))
        return y


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda m: {"optimizer": sgd(m)}, ValueError, r"give learner=tt\.online"),
        (lambda m: {"learner": tt.online(m)}, ValueError, r"optimizer=torch\.optim\.SGD"),
        (lambda m: {"learner": 3, "optimizer": sgd(m)}, TypeError, r"tt\.STDP or several, got int"),
        (lambda m: {**online(m), "optimizer": 0.1}, TypeError, r"torch\.optim\.SGD, got float"),
        (lambda m: {**online(m), "optimizer": torch.optim.Adam(m.parameters())}, ValueError,
         "optimizer is Adam"),
        (lambda m: {**online(m), "optimizer": sgd(m, momentum=0.9)}, ValueError,
         r"SGD with momentum=0\.9, and C has plain SGD"),
        (lambda m: {**online(m), "optimizer": sgd(m, weight_decay=0.1)}, ValueError,
         r"weight_decay=0\.1"),
        (lambda m: {**online(m), "optimizer": sgd(network("LIF"))}, ValueError, "does not have"),
        (lambda m: online(copy.deepcopy(m)), ValueError, "one of another model"),
        (lambda m: {**online(m), "dtype": "int"}, ValueError, "dtype='int' has no such learner"),
        (lambda m: {"learner": tt.STDP(m[0]), "optimizer": sgd(m)}, ValueError,
         "STDP moves the weights itself"),
        (lambda m: {"learner": tt.STDP(nn.Linear(5, 7))}, ValueError, "no part of the model"),
        (lambda m: {"learner": [tt.STDP(m[0]), tt.STDP(m[0])]}, ValueError, "0 has two rules"),
        (lambda m: {"learner": []}, TypeError, "got list"),
        (lambda m: online(m.requires_grad_(False)), ValueError,
         "nothing learns: no parameter of the optimizer has a gradient"),
    ],
)  # fmt: skip
def test_refused(arguments: Any, error: Any, message: str, tmp_path: Path) -> None:
    model = network("LIF")
    with pytest.raises(error, match=message):
        tt.export.c(model, tmp_path / "none", drawn(5)[0], **arguments(model))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (Convolutional(), online, r"1 \(Conv2d\) has places that share a weight"),
        (nn.Sequential(nn.Linear(5, 3), snn.LIF(3), Numbers()), online, "branches on values"),
        (nn.Sequential(nn.Linear(5, 3), snn.LIF(3), nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 2, 1)),
         online, r"3 \(Conv1d\) cannot be written in C: its weight changes"),
        (Rows(), online, r"sums over several rows of one step"),
        (Written(nn.Linear(5, 3), snn.LIF(3)), online, "memory that was written in place"),
        (Filled(nn.Linear(5, 3), snn.LIF(3)), online, r"calls aten\.mul\.out, which writes"),
        (nn.Sequential(nn.Unflatten(1, (5, 1)), nn.ConvTranspose1d(5, 2, 1), snn.LIF(2, dim=1)),
         lambda m: online(m) if m[1].requires_grad_(False) else {},
         "it is transposed|ConvTranspose1d"),
        (Twice(nn.Linear(5, 3), snn.LIF(3)), lambda m: {"learner": tt.STDP(m[0])},
         "0 is called twice"),
        (WithRule(), lambda m: {"learner": m.rule}, r"rule \(STDP\) is a part of the model"),
        (Convolutional(), lambda m: {"learner": tt.STDP(m[1])}, r"1 \(Conv2d\) has places"),
        (nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4), snn.LIF(4)),
         lambda m: {"learner": tt.STDP(m[0])},
         r"0 \(Linear\) has 3 outputs, and the neuron layer that is called next is 2"),
        (nn.Sequential(nn.Linear(5, 3), snn.LIF(3), nn.Linear(3, 3)),
         lambda m: {"learner": tt.STDP(m[2])}, "called next is none"),
    ],
)  # fmt: skip
def test_models_that_do_not_learn_in_c(
    model: Any, arguments: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tt.export.c(model, tmp_path / "none", drawn(5)[0], **arguments(model))
    assert not (tmp_path / "none").exists()
