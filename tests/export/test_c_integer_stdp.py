"""STDP of integers in C: after each of many updates weights are the library's, all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import few
from tests.export.c_programs import (
    COMPILERS,
    CNetwork,
    checked,
    checked_sanitized,
    needs_compiler,
    needs_cortex,
    run_on_cortex,
)
from tests.refusals import unchanged
from tracetorch import integers, snn
from tracetorch.online_learning import PairRule, TripletRule

pytestmark = needs_compiler

TRIPLETS = TripletRule(0.05, 0.1, 0.2, 0.02, 5.0, 8.0, 12.0, 15.0)
# of the first connection; the others have pairs
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "pairs": (PairRule(0.2, 0.25), {}),
    "nearest": (PairRule(0.2, 0.25, nearest=True), {"reduction": "sum"}),
    "turned": (PairRule(-0.2, -0.3), {"bounds": (-3, 90)}),
    "triplets": (TRIPLETS, {"bounds": (0, 127)}),
    "triplets, fine": (TRIPLETS, {"bounds": (0, 127), "fraction_bits": 12}),
    "coarse": (PairRule(0.5, 0.6), {"fraction_bits": 1}),
}


class Network:
    """A network of integers all of whose connections learn, with the layer behind each."""

    def __init__(self, kind: str, sizes: tuple[int, int, int], name: str = "pairs") -> None:
        inputs, hidden, outputs = sizes
        generator = torch.Generator().manual_seed(2)
        bits = 16 if kind == "wide" else 8
        first = integers.Linear(inputs, hidden, weight_bits=bits)
        last = integers.Linear(hidden, outputs, shift=1)
        for layer in (first, last):
            layer.weight.copy_(torch.randint(0, 20, layer.weight.shape, generator=generator))
            if layer.bias is not None:
                layer.bias.copy_(torch.randint(-5, 5, layer.bias.shape, generator=generator))
        if kind == "masked":
            drawn = torch.rand(first.weight.shape, generator=generator) < 0.6
            snn.connect(first, mask=drawn, signs=torch.ones(inputs))
        size = 128 if kind == "sized" else 1
        neuron = integers.LeakyIntegrator(hidden, beta=205, pos_threshold=15, pos_scale=size)
        end = integers.LeakyIntegrator(outputs, beta=205, pos_threshold=15)
        rule, options = RULES[name]
        self.rules = [
            tt.STDP(first, rule, **options, spike_sizes=(1, size)),
            tt.STDP(last, PairRule(0.2, 0.22), spike_sizes=(size, 1)),
        ]
        self.behind = [neuron, end]
        between: nn.Module = neuron
        if kind == "recurrent":
            loop = integers.Linear(hidden, hidden, bias=False, weight_bits=4)
            between = snn.Recurrent(neuron, loop)
            self.rules.append(tt.STDP(loop, PairRule(0.05, 0.06)))
            self.behind.append(neuron)
        self.model: Any = nn.Sequential(first, between, last, end)
        if kind == "border":
            self.model.insert(0, integers.Quantize(1.0, bits=2))
        self.dtype = torch.float64 if kind in ("double", "wide") else torch.float32
        self.model.to(self.dtype)
        self.kind, self.start = kind, first.weight.clone()
        self.given: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        for module in (*(rule.connection for rule in self.rules), *self.behind):
            module.register_forward_hook(self.note)

    def note(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.given[module] = args[0], output

    def drawn(self, steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        size = self.rules[0].connection.weight.shape[1]
        spikes = (torch.rand(steps, 1, size, generator=generator) < 0.3).to(self.dtype)
        if self.kind == "signed":
            spikes *= torch.randint(-3, 4, spikes.shape, generator=generator)
        return spikes

    @torch.no_grad()
    def learn(self, x: Tensor) -> Tensor:
        """Step, and learn in every step; the outputs ``[T, size]``."""
        outputs = []
        for step in x:
            outputs.append(self.model(step).flatten())
            for rule, neuron in zip(self.rules, self.behind, strict=True):
                rule(self.given[rule.connection][0], self.given[neuron][1])
                rule.update_()
        return torch.stack(outputs)

    def check(self, held: dict[str, Tensor]) -> None:
        """Check weights, remainders and traces that C holds, by the path of the connection."""
        paths = {id(module): path for path, module in self.model.named_modules()}
        for rule in self.rules:
            path = paths[id(rule.connection)]
            found = {"weight": rule.connection.weight, "remainder": rule.remainder}
            for name, value in {**found, **tt.get_states(rule)}.items():
                assert torch.equal(held[f"{path}.{name}"].double(), value.flatten().double()), name
        assert not torch.equal(self.rules[0].connection.weight, self.start)


CASES = [("plain", name, (20, 6, 3)) for name in RULES]
KINDS = ("masked", "recurrent", "border", "double", "wide", "sized", "signed")
CASES += [(kind, "pairs", (7, 5, 2)) for kind in KINDS]
CASES += [("plain", "triplets", (1, 1, 1)), ("recurrent", "triplets", (3, 1, 2))]


def learned(case: Any, steps: int, folder: Path, **arguments: Any) -> tuple[Network, Tensor, Any]:
    """Let C and the library learn the same, and compare all that they have then."""
    kind, name, sizes = case
    network = Network(kind, sizes, name)
    x = network.drawn(steps)
    net = CNetwork(network.model, x[:20], folder, learner=network.rules, **arguments)
    got, held = net.learn(x, torch.zeros(steps, 1))
    found = network.learn(x)
    assert torch.equal(got.double(), found.double())
    network.check(held)
    return network, x, net


@pytest.mark.parametrize("case", few(CASES, CASES[3], CASES[6], CASES[-1]))
def test_weights_are_those_of_the_library(case: Any, tmp_path: Path) -> None:
    learned(case, 100, tmp_path)
    code = (tmp_path / "model.c").read_text() + (tmp_path / "model.h").read_text()
    assert not re.search(r"float|double|[0-9]f\b|math", code)
    assert "20 steps of learning, weights at most 0 apart" in checked(
        ["make", "-s", "test"], tmp_path
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[3], CASES[7]])
def test_a_thousand_updates(case: Any, tmp_path: Path) -> None:
    learned(case, 1000, tmp_path)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_sanitizers_and_conversions(compiler: str, tmp_path: Path) -> None:
    network = Network("recurrent", (9, 4, 2), "triplets, fine")
    report = tt.export.c(network.model, tmp_path, network.drawn(30), learner=network.rules)
    assert report.types["x"] == report.types["y"] == "int8_t"
    printed = checked_sanitized(compiler, tmp_path, "test.c", "model.c")
    assert "weights at most 0 apart" in printed


@pytest.mark.slow
@needs_cortex
def test_a_thousand_updates_on_a_cortex(tmp_path: Path) -> None:
    """Without its floating-point unit: the weights that the library has after a thousand steps."""
    case = ("plain", "triplets", (32, 64, 4))
    network, x = Network(*case[::2], case[1]), Network(*case[::2], case[1]).drawn(1000)
    report = tt.export.c(network.model, tmp_path, x, learner=network.rules)
    # of each weight an integer of 8 bits, and 16 below it
    assert report.learned_bytes == 3 * (32 * 64 + 64 * 4)
    assert report.ram_bytes + report.stack_bytes <= 16 * 1024
    network.learn(x)
    text = (tmp_path / "learned.h").read_text().replace("_STEPS 100", "_STEPS 1000")
    for rule, path in zip(network.rules, "02", strict=True):
        for name, value in (("weight", rule.connection.weight), ("remainder", rule.remainder)):
            table = rf"(tt_learned_{path}_{name}\[\d+\] = \{{)[^}}]*"
            numbers = ", ".join(str(number) for number in value.flatten().tolist())
            text, count = re.subn(table, rf"\1\n{numbers},\n", text)
            assert count == 1
    (tmp_path / "learned.h").write_text(text)
    printed, stack = run_on_cortex(tmp_path, "test.c", ("-mcpu=cortex-m4", "-mthumb"))
    assert printed == "1000 steps of learning, weights at most 0 apart\n"
    assert stack <= report.stack_bytes


def test_nothing_of_the_rules_changes(tmp_path: Path) -> None:
    network = Network("plain", (7, 5, 2))
    x = network.drawn(20)
    network.learn(x)
    with unchanged(network.model, *network.rules):
        tt.export.c(network.model, tmp_path, x, learner=network.rules)
    assert network.rules[0].remainder.dtype is torch.int32


def beyond() -> dict[str, Any]:
    """A network whose sums are exact in float32 now, but not for all that its weights can be."""
    wide = integers.Linear(700, 2, weight_bits=16)
    wide.weight.fill_(1)
    spread, hidden = integers.Linear(7, 700), integers.LeakyIntegrator(700, pos_threshold=1)
    spread.weight.fill_(2)
    model = nn.Sequential(spread, hidden, wide, integers.LeakyIntegrator(2, pos_threshold=9))
    return {"model": model, "learner": tt.STDP(wide, RULES["pairs"][0])}


FLOATS = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: {"dtype": "float32"}, r"^dtype='float32' has no such learner"),
        (lambda n: {"optimizer": torch.optim.SGD(FLOATS.parameters())}, "STDP moves the weights"),
        (lambda n: {"learner": [*n.rules, n.rules[0]]}, "0 has two rules"),
        (lambda n: {"learner": [*n.rules, tt.STDP(FLOATS)]}, "STDP of integers and of floats"),
        (lambda n: {"learner": tt.STDP(integers.Linear(2, 2), RULES["pairs"][0])}, "no part of"),
        (lambda n: beyond(), r"^2 \(Linear\) can reach \d+, .* x\.double"),
    ],
)
def test_refused(change: Any, message: str, tmp_path: Path) -> None:
    network = Network("plain", (7, 5, 2))
    arguments = {"model": network.model, "learner": network.rules, **change(network)}
    model = arguments.pop("model")
    with pytest.raises(ValueError, match=message):
        tt.export.c(model, tmp_path / "none", network.drawn(5), **arguments)
    assert not (tmp_path / "none").exists()
