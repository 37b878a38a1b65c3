"""Compile what ``tt.export.c`` writes, with every warning an error, and compare it bit by bit."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests import cases
from tests.export.c_programs import (
    COMPILERS,
    STRICT,
    CNetwork,
    check_every_step,
    checked,
    needs_compiler,
    needs_cortex,
    run_on_cortex,
    stepped,
)
from tests.networks import module
from tests.quantize.networks import case
from tests.refusals import check, refusals
from tracetorch import chips, integers, snn
from tracetorch.export import CReport

pytestmark = needs_compiler
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FEW = ("LIF", "BSRLIF", "SRReadout")


def slow(*cases: Any) -> list[Any]:
    """Return cases of a test for the slow run: the fast one has others of their kind."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spikes(*shape: int, rate: float = 0.3, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=generator(seed)) < rate).float()


def dyadic(module: nn.Module, bits: int = 4) -> Any:
    """Give a product weights whose sums are exact in float32, in any order."""
    drawn = generator(1)
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randint(-(2**bits), 2**bits + 1, parameter.shape, generator=drawn)
            parameter.copy_(values / 2**bits)
    return module.eval()


# Neurons, float32


def printed(folder: Path, *command: str) -> list[list[float]]:
    """Compile the files in a folder and run them; return the numbers of every line."""
    checked(list(command) or ["make", "CFLAGS=-O0"], folder)
    return [[float(n) for n in row.split()] for row in checked(["./main"], folder).splitlines()]


def random_input(name: str, steps: int, neurons: int = 5) -> Tensor:
    x = cases.sequence(steps, 1, neurons, dtype=torch.float32)
    return x * cases.NEURONS.get(name, 1.0)


@pytest.mark.parametrize("steps", [50, *slow(1000)])
def test_neurons_are_the_eager_step(steps: int, tmp_path: Path) -> None:
    # all in one program: tracing and compiling each of them takes longer than running it
    names = [*(FEW if steps == 50 else cases.LAYERS), *cases.NEURONS]
    model = Beside(
        [cases.layer(name, 5) for name in names], [cases.NEURONS.get(n, 1.0) for n in names]
    )
    x = cases.sequence(steps, 1, 5, dtype=torch.float32)
    got, expected = CNetwork(model, x[:1], tmp_path)(x), stepped(model, x)
    for name, y, z in zip(names, got.split(5, 1), expected.split(5, 1), strict=True):
        assert z.any(), name
        if name in cases.INEXACT:
            # of functions two units in the last place; a spike may move where it was that near
            apart = (y - z).abs() > 2 * torch.finfo(torch.float32).eps * z.abs()
            assert apart.double().mean() < (1e-4 if steps > 50 else 1e-9), name
        else:
            assert torch.equal(y, z), name


@pytest.mark.slow
def test_neurons_are_the_eager_step_for_a_million_steps(tmp_path: Path) -> None:
    names = [n for n in (*cases.LAYERS, *cases.NEURONS) if n not in cases.INEXACT]
    model = Beside([cases.layer(n, 5) for n in names], [cases.NEURONS.get(n, 1.0) for n in names])
    x = cases.sequence(1_000_000, 1, 5, dtype=torch.float32)
    net = CNetwork(model, x[:1], tmp_path, flags=("-O2",))
    spoke = check_every_step(net, model, x, 100)
    assert all(bool(each.any()) for each in spoke.split(5))


@pytest.mark.parametrize(
    ("synapse", "recurrence", "each"),
    [
        (True, True, 97),
        *slow((True, False, 97), (False, True, 97), (False, False, 97)),
        *slow(*((s, r, 7) for s in (False, True) for r in (False, True))),
    ],
)
def test_configurations(synapse: bool, recurrence: bool, each: int, tmp_path: Path) -> None:
    # one file for all of them: a compilation for each would take minutes
    made = list(cases.configurations(synapse, recurrence))[::each]
    parts: dict[str, Any] = {"alpha_setup": {}} if synapse else {}
    parts |= {"gamma_setup": {}} if recurrence else {}
    layers = [snn.LeakyIntegrator(3, **{**parts, **setup}) for setup in made]
    for layer in layers:
        cases.vary(layer)
    model = Beside(layers)
    x = cases.sequence(100, 1, 3, dtype=torch.float32)
    assert torch.equal(CNetwork(model, x[:1], tmp_path)(x), stepped(model, x))


class Beside(nn.Module):
    """Layers that see one input, each times a gain, their outputs one after the other."""

    def __init__(self, layers: list[Any], gains: list[float] | None = None) -> None:
        super().__init__()
        self.layers, self.gains = nn.ModuleList(layers), gains or [1.0] * len(layers)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.layers, self.gains, strict=True)
        return torch.cat([layer(x if gain == 1 else gain * x) for layer, gain in pairs], -1)


class Parts(nn.Module):
    """Layers that each see a part of one flat input, their outputs one after the other."""

    def __init__(self, layers: list[Any], shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.layers, self.shapes = nn.ModuleList(layers), shapes
        self.sizes = [math.prod(shape) for shape in shapes]

    def forward(self, x: Tensor) -> Tensor:
        outputs, begin = [], 0
        for layer, size, shape in zip(self.layers, self.sizes, self.shapes, strict=True):
            part = x[:, begin : begin + size].reshape(-1, *shape)
            outputs.append(layer(part).flatten(1))
            begin += size
        return torch.cat(outputs, 1)


def test_reset_begins_again(written: Any, tmp_path: Path) -> None:
    each = written("BSRLIF").copy_to(tmp_path)
    x = each.x
    net = CNetwork(each.model, x, tmp_path, report=each.report)
    first = net(x)
    assert not torch.equal(net(x), first)
    net.reset()
    assert torch.equal(net(x), first)


class Charged(snn.Neuron):
    """A neuron that starts from a value of its own."""

    states = ("mem",)

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.decay("beta", 0.9)
        self.state("mem", torch.linspace(-1, 1, num_neurons))

    @staticmethod
    def step(x: Tensor, mem: Tensor, *, beta: Tensor) -> Any:
        return mem, beta * mem + x


class Swapped(snn.Neuron):
    """A neuron whose states change places, and whose output is an old state."""

    states = ("first", "second")

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.decay("beta", 0.5)

    @staticmethod
    def step(x: Tensor, first: Tensor, second: Tensor, *, beta: Tensor) -> Any:
        return first.clone(), second.clone(), beta * first + x


class ReadLate(snn.TTModule):
    """A memory that is replaced first, and whose old value is added last."""

    def __init__(self) -> None:
        super().__init__()
        self.memory("last", 4)
        self.product = dyadic(nn.Linear(4, 4))

    last: Tensor

    def forward(self, x: Tensor) -> Tensor:
        old, self.last = self.last, 0.5 * x
        product: Tensor = self.product(self.last)
        return product + old


@pytest.mark.parametrize("model", [Charged(4), Swapped(4), ReadLate()], ids=repr)
def test_old_and_initial_states_are_where_they_are_read(model: Any, tmp_path: Path) -> None:
    x = torch.randint(-8, 9, (20, 1, 4), generator=generator()).float()
    got = CNetwork(model, x[:1], tmp_path)(x)
    assert torch.equal(got, stepped(model, x))
    assert got[0].any() == (not isinstance(model, Swapped))


# Products


def in_order(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return a product in NumPy's float32: the bias, then the inputs in ascending order."""
    weight, given = layer.weight.detach().numpy(), x.numpy()
    start = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias.detach().numpy()
    rows = []
    for row in given:
        total = start.copy()
        for i, value in enumerate(row):
            total += weight[:, i] * value
        rows.append(total)
    return torch.from_numpy(np.stack(rows))


class InOrder(nn.Module):
    """A linear layer that sums as C does."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return in_order(self.layer, x)


@pytest.mark.parametrize(
    ("rate", "bias"), [(0.2, True), (1.0, False), *slow((0.2, False), (1.0, True))]
)
def test_linear_networks_are_numpy_in_the_same_order(
    rate: float, bias: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    parts = [nn.Linear(63, 17, bias), cases.layer("SLIF", 17), nn.Linear(17, 5), snn.Readout(5)]
    x = spikes(300, 1, 63, rate=rate) * (1.0 if rate < 1 else torch.rand(300, 1, 63))
    got = CNetwork(nn.Sequential(*parts), x[:5], tmp_path)(x)
    ordered = nn.Sequential(*(InOrder(p) if isinstance(p, nn.Linear) else p for p in parts))
    expected = stepped(ordered, x)
    assert torch.equal(got, expected)
    assert expected.abs().max() > 0.01
    assert "if (v == 0.0f)" in (tmp_path / "model.c").read_text()


PRODUCTS: list[Any] = [
    nn.Conv2d(2, 4, 3, padding=1),
    nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
    nn.Conv2d(4, 6, 3, groups=2, padding=2, dilation=2),
    nn.Conv2d(4, 4, 3, groups=4, padding="same"),
    nn.Conv2d(3, 5, 1, stride=2),
    nn.Conv1d(3, 4, 5, padding=2, stride=2),
    nn.Conv1d(4, 4, 3, groups=4, padding="same", dilation=2),
    nn.Conv1d(2, 3, 3, bias=False),
    nn.Linear(9, 1),
    nn.Linear(1, 7, bias=False),
    nn.Sequential(nn.Unflatten(1, (2, 3, 2)), nn.Linear(2, 3)),
]
SHAPES: dict[Any, tuple[int, ...]] = {nn.Conv2d: (7, 6), nn.Conv1d: (9,), nn.Linear: ()}


def shape_of(layer: Any) -> tuple[int, ...]:
    if isinstance(layer, nn.Sequential):
        return (12,)  # rows in two dimensions
    lead = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    return (lead, *SHAPES[type(layer)])


@pytest.mark.parametrize("rate", [0.2, 1.0], ids=["events", "dense"])
def test_products_whose_sums_are_exact_are_those_of_pytorch(rate: float, tmp_path: Path) -> None:
    shapes = [shape_of(layer) for layer in PRODUCTS]
    model = Parts([dyadic(layer) for layer in PRODUCTS], shapes)
    x = spikes(5, 1, sum(model.sizes), rate=rate)
    if rate == 1:
        x = x * torch.randint(-8, 9, x.shape, generator=generator()) / 8
    net = CNetwork(model, x, tmp_path)
    assert len(net.report.events) == (len(PRODUCTS) if rate < 1 else 0)
    expected = stepped(model, x)
    assert torch.equal(net(x), expected)
    assert expected.abs().sum() > 0


POOLS: list[Any] = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, stride=2, padding=1),
    nn.MaxPool2d((2, 3), ceil_mode=True),
    nn.MaxPool2d(2, dilation=2, stride=1),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, stride=2, padding=1),
    nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    nn.AvgPool2d(3, stride=2, ceil_mode=True, padding=1),
    nn.AvgPool2d(2, divisor_override=1),
    nn.AdaptiveAvgPool2d((2, 4)),
    nn.AdaptiveAvgPool2d(1),
    nn.Sequential(nn.Flatten(2), nn.MaxPool1d(4)),
    nn.Sequential(nn.Flatten(2), nn.AvgPool1d(4, padding=1, stride=3)),
    nn.Sequential(nn.Flatten(), nn.Unflatten(1, (6, 32)), nn.Flatten()),
    nn.BatchNorm2d(3),
    nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)),
    nn.LayerNorm(8, elementwise_affine=False),
]


def varied(layer: Any) -> Any:
    """Give norms statistics and weights of their own, in eval mode."""
    for norm in layer.eval().modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight)
            nn.init.uniform_(norm.bias)
    return layer


def test_pools_and_norms(tmp_path: Path) -> None:
    layers = [varied(layer) for layer in POOLS if not isinstance(layer, nn.LayerNorm)]
    model = Parts(layers, [(3, 8, 8)] * len(layers))
    x = torch.randn(2, 1, sum(model.sizes), generator=generator())
    got, expected = CNetwork(model, x, tmp_path)(x), stepped(model, x)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    sizes = [layer(torch.zeros(1, 3, 8, 8)).numel() for layer in layers]
    for layer, y, z in zip(layers, got.split(sizes, 1), expected.split(sizes, 1), strict=True):
        assert torch.equal(y, z) or "Norm" in repr(layer) or "Avg" in repr(layer), layer


def test_nan_and_infinity_pass_as_in_pytorch(tmp_path: Path) -> None:
    x = torch.randn(40, 1, 1, 4, 4, generator=generator())
    for i, special in enumerate((float("nan"), float("inf"), -float("inf"), -0.0)):
        x[i::7, 0, 0, 1, 2] = special
    model = nn.MaxPool2d(2)
    assert torch.equal(
        CNetwork(model, x, tmp_path)(x).nan_to_num(123), stepped(model, x).nan_to_num(123)
    )


def test_infinity_and_nan_in_tables_and_in_the_sample_compile(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([-torch.inf, 1]))
    for place, x in (("sample", [torch.inf, torch.nan, 1.0]), ("table", [1.0, 2, 3])):
        layer = nn.Identity() if place == "sample" else model
        sample = torch.tensor(x).view(1, 1, 3)
        tt.export.c(nn.Sequential(layer, nn.ReLU()), tmp_path / place, sample)
        expected = layer(sample).relu().detach().flatten(1)
        got = torch.tensor(printed(tmp_path / place))
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_skipped_zeros_change_no_bit(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.abs_()
        model.bias.fill_(-0.0)
    x = torch.zeros(3, 1, 4)
    net = CNetwork(model, x, tmp_path / "zero")
    assert net.report.events
    assert torch.equal(net(x).signbit(), stepped(model, x).signbit())
    with torch.no_grad():
        model.weight[0, 0] = torch.inf
    net = CNetwork(model, x, tmp_path / "infinite")  # infinity times zero is NaN
    assert not net.report.events
    torch.testing.assert_close(net(x), stepped(model, x), equal_nan=True, rtol=0, atol=0)


class Residual(nn.Module):
    """A residual block of spikes, with arithmetic between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dyadic(nn.Conv2d(2, 2, 3, padding=1)), snn.LIF(2, dim=-3)
        self.gain = nn.Parameter(torch.tensor([[[0.5]], [[0.25]]]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        both = torch.cat([x + y, (y - x).abs() * self.gain], 1).permute(0, 2, 3, 1)
        return both.mean((1, 2)) + torch.stack(
            [y[:, 0].sum((1, 2)), y[:, 1, :, 2].sum(1)], 1
        ).repeat(1, 2)


def network(kind: str) -> tuple[nn.Module, Tensor]:
    """Return a network whose sums are exact, and an input."""
    if kind == "residual":
        return Residual(), spikes(30, 1, 2, 4, 4)
    if kind == "recurrent":
        connection = dyadic(nn.Linear(6, 6))
        inner = snn.Recurrent(cases.layer("SLIF", 6), connection)
        return nn.Sequential(dyadic(nn.Linear(8, 6)), inner), spikes(50, 1, 8)
    if kind == "delays":
        late = torch.arange(18.0).view(3, 6) / 4 % 3
        delayed = snn.DelayedLinear(6, 3, max_delay=3, delay=late, learnable=False)
        back = snn.DelayedLinear(3, 3, max_delay=2, delay=late[:, ::2] / 2)
        dyadic(delayed.linear)
        dyadic(back.linear)
        axonal = snn.Delay(3, max_delay=4, delay=torch.tensor([0.25, 2.0, 4.0]))
        line = dyadic(nn.Conv1d(1, 2, 2))
        places = nn.Sequential(axonal, nn.Unflatten(1, (1, 3)), line, nn.Flatten())
        return nn.Sequential(delayed, snn.Recurrent(snn.BLIF(3), back), places), spikes(50, 1, 6)
    convolutional = nn.Sequential(
        *(dyadic(nn.Conv2d(1, 3, 3)), nn.MaxPool2d(2), snn.LIF(3, dim=-3), nn.Flatten()),
        *(dyadic(nn.Linear(27, 4)), snn.Readout(4)),
    )
    return convolutional, spikes(30, 1, 1, 8, 8)


@pytest.mark.parametrize("kind", ["residual", "recurrent", "delays", "convolutional"])
def test_networks(kind: str, written: Any, tmp_path: Path) -> None:
    each = written(kind).copy_to(tmp_path)
    model, x = each.model, each.x
    got, expected = CNetwork(model, x, tmp_path, report=each.report)(x), stepped(model, x)
    assert expected.abs().sum() > 0
    assert torch.equal(got, expected)


class Cut(nn.Module):
    """Parts of tensors: of the input, of spikes, and of what is computed between."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = snn.LIF(6, pos_threshold=0.5)
        self.linear = dyadic(nn.Linear(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        first, second, third = self.lif(torch.cat([b, a], -1)).split([1, 2, 3], -1)
        rows = (x * 2).unflatten(-1, (2, 3)).unbind(1)
        parts = [first, self.linear(second), third * b, rows[1], *x.tensor_split(4, -1)[1:3]]
        inside = torch.zeros_like(a)
        inside += a  # writes in place
        return torch.cat([*parts, inside], -1)


def test_tensors_are_cut(tmp_path: Path) -> None:
    model, x = Cut(), torch.randint(-8, 9, (20, 1, 6), generator=generator()) / 8
    got, expected = CNetwork(model.eval(), x[:2], tmp_path)(x), stepped(model, x)
    assert torch.equal(got, expected)
    assert bool((expected != 0).any(0).all())


HEADER = """\
#include "model.h"
#include "model.h"
extern int used;
int used = sizeof(tt_stream) + TT_X_SIZE;
"""
STANDARDS = {
    "gcc": ("c89", "c99", "c17"),
    "clang": ("c89", "c99", "c17"),
    "g++": ("c++11", "c++20"),
    "clang++": ("c++11", "c++20"),
}
PAIRS = [(dtype, name) for dtype in ("float32", "int") for name in STANDARDS]


@pytest.mark.parametrize(("dtype", "compiler"), [PAIRS[0], PAIRS[6], *slow(*PAIRS[1:6], PAIRS[7])])
def test_a_header_for_c_and_cpp(dtype: Any, compiler: str, tmp_path: Path) -> None:
    """In every standard, with every warning an error, and linked from C++ with ``model.c`` of C."""
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    torch.manual_seed(0)
    if dtype == "int":
        first = integers.Linear(5, 7, weight_bits=4)
        first.weight.copy_(torch.randint(-8, 8, (7, 5)))
        second = integers.LeakyIntegrator(7, beta=230, pos_threshold=20)
        model, x = nn.Sequential(first, second), integer_input(20, 1, 5)
    else:
        model, x = nn.Sequential(nn.Linear(5, 7), snn.SRLIF(7), tt.neurons.EIF(7)), spikes(20, 1, 5)
    tt.export.c(model, tmp_path, x, dtype=dtype)
    (tmp_path / "header.c").write_text(HEADER)
    strict = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffp-contract=off")
    cpp = compiler.endswith("+")
    language = ("-x", "c++") if cpp else ()
    for standard in STANDARDS[compiler]:
        flags = [compiler, f"-std={standard}", *strict, *language]
        checked([*flags, "-c", "header.c", "-o", "header.o"], tmp_path)
        if standard != "c89":  # the source is of C99, and of C++
            checked([*flags, "-c", "model.c", "-o", "model.o"], tmp_path)
    expected = printed(tmp_path)
    if cpp:
        flags = [compiler, "-std=c++11", *strict, *language]
        checked([*flags, "-c", "main.c", "-o", "main.o"], tmp_path)
        checked(["cc", *STRICT, "-c", "model.c", "-o", "model.o"], tmp_path)
        command = [compiler, "main.o", "model.o", "-o", "main", "-lm"]
        assert printed(tmp_path, *command) == expected


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    two = module(
        lambda self, x, other: {"sum": self.a(x) + other, "*/ int": (self.b(other),)},
        a=snn.LIF(3),
        b=snn.LIF(3),
    )
    x = {"x": torch.rand(4, 1, 3), "other": torch.rand(4, 1, 3)}
    report = tt.export.c(two, tmp_path, x)
    assert list(report.types) == ["x_x", "x_other", "a.mem", "b.mem", "y_sum", "y_*/ int_0"]
    assert [len(row) for row in printed(tmp_path)] == [6] * 4


# Integers


def integer_input(*shape: int, low: int = -100, high: int = 100) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=generator()).float()


Integer = integers.LeakyIntegrator
NEURONS = {
    "threshold": lambda: Integer(5, pos_threshold=100),
    "bipolar": lambda: Integer(5, pos_threshold=100, neg_threshold=80, alpha=200, pos_scale=3,
     neg_scale=2),
    "recurrent": lambda: Integer(5, alpha=100, gamma=128, rec_weight=30, rec_weight_fraction=4,
     bias=3, pos_threshold=90),
    "shift": lambda: Integer(5, beta=4, decay=integers.Shift(), pos_threshold=100, reset="zero"),
    "wrap": lambda: Integer(5, overflow="wrap", pos_threshold=100, state_bits=10),
    "each": lambda: Integer(5, beta=torch.tensor([200.0, 210, 220, 230, 240]),
     pos_threshold=torch.tensor([90.0, 100, 110, 120, 130]), unit=64.0),
    "readout": lambda: Integer(5, beta_ema=True),
    "shifts": lambda: Integer(5, beta=torch.tensor([1.0, 2, 3, 4, 5]), decay=integers.Shift(),
     pos_threshold=60),
    "xylo": lambda: chips.xylo.LIF(5),
}  # fmt: skip


SEVERAL = ("bipolar", "recurrent", "shifts", "wrap", "xylo")


@pytest.mark.parametrize(("names", "steps"), [(SEVERAL, 60), *slow((tuple(NEURONS), 3000))])
def test_integer_neurons_are_the_eager_step(
    names: tuple[str, ...], steps: int, tmp_path: Path
) -> None:
    model, x = Beside([NEURONS[name]() for name in names]), integer_input(steps, 1, 5, high=250)
    x[:2, 0, 0] = torch.tensor([-100.0, 250.0])  # a short sample has the range of all of it
    got = CNetwork(model, x[:2], tmp_path, dtype="int")(x)
    expected = stepped(model, x).double()
    for name, y, z in zip(names, got.split(5, 1), expected.split(5, 1), strict=True):
        assert torch.equal(y, z), name
        assert z.any(), name
    assert "float" not in re.sub(r"/\*.*?\*/|#.*", "", (tmp_path / "model.c").read_text())


@pytest.mark.slow
def test_integer_neurons_are_the_eager_step_for_a_million_steps(tmp_path: Path) -> None:
    model, x = Beside([NEURONS[name]() for name in NEURONS]), integer_input(10**6, 1, 5, high=250)
    x[:2, 0, 0] = torch.tensor([-100.0, 250.0])
    net = CNetwork(model, x[:2], tmp_path, dtype="int", flags=("-O2",))
    spoke = check_every_step(net, model, x, 100)
    assert all(bool(each.any()) for each in spoke.split(5))


def test_states_have_their_real_width(tmp_path: Path) -> None:
    x = integer_input(20, 1, 5, low=-128, high=127)
    x[0, 0, :2] = torch.tensor([-128.0, 127.0])  # a short sample has the range of all of it
    model = Beside([Integer(5, beta=255, state_bits=bits) for bits in (6, 16, 24)])
    net = CNetwork(model, x[:2], tmp_path / "narrow", dtype="int")
    types = [net.report.types[f"layers.{i}.mem"] for i in range(3)]
    assert types == ["int8_t", "int16_t", "int32_t"]
    assert torch.equal(net(x), stepped(model, x).double())
    wide = Integer(5, beta=255, state_bits=32, pos_threshold=10**9).double()
    x = x.double() * 10**7
    net = CNetwork(wide, x[:2], tmp_path / "wide", dtype="int")
    assert net.report.types["mem"] == "int32_t"
    assert torch.equal(net(x), stepped(wide, x))


class Held(snn.Neuron):
    """A neuron whose states reach the last value of a width, or the one after it, at either end."""

    states = tuple(f"{end}_{bits}" for bits in (7, 15, 31) for end in ("both", "high", "low"))

    @staticmethod
    def step(x: Tensor, *states: Tensor) -> Any:
        ends = []
        for bits in (7, 15, 31):
            for low, high in ((0, 1), (0, 0), (1, 1)):
                ends.append(x.clamp(-(2.0**bits) - low, 2.0**bits - high))
        return (sum(states, start=x), *ends)


def test_a_state_that_reaches_one_more_than_a_width_is_of_the_next(tmp_path: Path) -> None:
    ends = [2.0**bits for bits in (7, 15, 31, 40)]
    values = [0.0, *(s * (n + i) for n in ends for s in (1, -1) for i in (-1, 0, 1))]
    layer, x = Held(1).double(), torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
    net = CNetwork(layer, x, tmp_path, dtype="int")
    types = {"both": (8, 16, 32), "high": (16, 32, 64), "low": (16, 32, 64)}
    for end, widths in types.items():
        for bits, width in zip((7, 15, 31), widths, strict=True):
            assert net.report.types[f"{end}_{bits}"] == f"int{width}_t"
    assert bool(check_every_step(net, layer, x, 3).all())


class Edges(nn.Module):
    """Integer arithmetic whose results fit 32 bits where what comes before them does not."""

    def __init__(self) -> None:
        super().__init__()
        self.products = nn.ModuleList(nn.Linear(2, 1, bias=False).double() for _ in range(2))
        for product, sign in zip(self.products, (1, -1), strict=True):
            product.weight = nn.Parameter(torch.tensor([[5.0, -3.0]]).double() * sign)
        self.register_buffer("gains", torch.tensor([0.75, -0.5, 100.25, 3.0]).double())

    gains: Tensor

    def forward(self, x: Tensor) -> Tensor:
        quarter, small = x * 0.25, x.clamp(-9, 9)
        parts = [quarter.round(), quarter.floor(), quarter.ceil(), quarter.trunc()]
        parts += [(x + quarter).floor()]
        parts += [torch.add(small - 2.0**32, small + 2.0**20, alpha=4096)]
        parts += [(small * self.gains).floor()]
        large = x[:, :2].clamp(0, 1) + 2.0**29
        parts += [product(large) for product in self.products]
        return torch.cat(parts, -1)


def test_what_is_wider_on_the_way_has_its_width(tmp_path: Path) -> None:
    values = [*range(-12, 12), -(2**31), 2**31 - 1, 2**31 - 2, -(2**31) + 1]
    x = torch.tensor(values, dtype=torch.float64).view(7, 1, 4)
    report = tt.export.c(Edges(), tmp_path, x, dtype="int")
    command = ["gcc", *STRICT, *SANITIZED, "main.c", "model.c", "-o", "main"]
    assert printed(tmp_path, *command) == stepped(Edges(), x).tolist()
    # in full: a range of six digits would be one that nothing was proved for
    assert "input x: -2147483648 to 2147483647" in (tmp_path / "model.h").read_text()
    assert "inputs       x -2147483648 to 2147483647\n" in str(report)


def test_a_silent_input_is_in_the_range_that_is_proved(tmp_path: Path) -> None:
    for value in (7.0, -7.0):
        report = tt.export.c(nn.Flatten(), tmp_path, torch.full((2, 1, 3), value), dtype="int")
        assert report.input_range == {"x": (min(value, 0), max(value, 0))}


def integer_network(bits: int = 4) -> nn.Sequential:
    """Return a network of integer products and neurons."""
    drawn = generator(3)
    reach = 2 ** (bits - 1)
    conv = integers.Conv2d(1, 3, 3, padding=1, weight_bits=bits)
    first = integers.Linear(12, 7, shift=2, weight_bits=bits)
    inner = integers.Linear(7, 7, bias=False, weight_bits=bits)
    for product in (conv, first, inner):
        product.weight.copy_(torch.randint(-reach, reach, product.weight.shape, generator=drawn))
        if product.bias is not None:
            product.bias.copy_(torch.randint(-9, 10, product.bias.shape, generator=drawn))
    return nn.Sequential(
        *(conv, integers.SumPool2d(2), Integer(3, dim=-3, pos_threshold=20), nn.MaxPool2d(2)),
        *(nn.Flatten(), first, snn.Recurrent(Integer(7, pos_threshold=30), inner)),
        snn.Delay(7, max_delay=3, delay=2.0),
    ).eval()


@pytest.mark.parametrize("bits", [4, *slow(8)])
def test_integer_networks(bits: int, tmp_path: Path) -> None:
    model, x = integer_network(bits), spikes(100, 1, 1, 8, 8)
    net = CNetwork(model, x[:3], tmp_path, dtype="int")
    expected = stepped(model, x)
    assert expected.sum() > 10
    assert torch.equal(net(x), expected.double())
    products = [m for m in model.modules() if isinstance(m, integers.layers.Product)]
    weights = sum(p.weight.numel() for p in products)
    assert weights <= net.report.flash_bytes < weights + 150


@pytest.mark.parametrize("bits", [8, *slow(4)])
def test_quantised_networks_are_what_training_ran_through(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), snn.LIF(4, dim=-3, pos_threshold=0.3)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 8), snn.SLIF(8, pos_threshold=0.2)),
        *(nn.Linear(8, 3), snn.Readout(3)),
    ).eval()
    # real numbers meet a border, spikes do not
    x = torch.rand(20, 1, 1, 8, 8, generator=generator()) if bits == 8 else spikes(20, 1, 1, 8, 8)
    x[0, 0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # a short sample has the range of all of it
    prepared = tt.quantize.prepare(model, x, weight_bits=bits)
    converted, _ = tt.quantize.convert(prepared)
    net = CNetwork(converted.eval(), x[:3], tmp_path, dtype="int")
    given = converted[0](x) if bits == 8 else x
    expected = stepped(converted, x)
    assert torch.equal(net(given), expected.double())
    assert expected.abs().sum() > 0


def test_delays_in_whole_steps_are_what_training_ran_through(tmp_path: Path) -> None:
    model, x, _ = case("delayed")
    x = x[:, :1]
    prepared = tt.quantize.prepare(model.eval(), x)
    converted, _ = tt.quantize.convert(prepared)
    net = CNetwork(converted, x[:3], tmp_path, dtype="int")
    assert set(x[:3].unique().tolist()) == {0, 1}  # the range of all steps
    with torch.no_grad():
        expected = tt.unroll(prepared, x, from_rest=True).flatten(1)
    assert torch.equal(net(x), expected.double())
    assert torch.equal(stepped(converted, x), expected)
    assert expected.any()
    assert net.report.types["0.past"] == "int8_t"


@pytest.mark.parametrize("signed", [True, False])
def test_behind_a_border_the_sample_is_no_limit(signed: bool, tmp_path: Path) -> None:
    """A device meets inputs that no sample had, and the border saturates them."""
    product = integers.Linear(4, 2)
    product.weight.copy_(torch.tensor([[127, 127, -100, 3], [-128, -128, -128, -128]]))
    model = nn.Sequential(integers.Quantize(0.25, signed=signed), product)
    x = torch.rand(9, 1, 4, generator=generator())
    net = CNetwork(model, x, tmp_path, dtype="int")
    assert net.report.input_range == {"x": (-128, 127) if signed else (0, 255)}
    wide = 99 * torch.randn(50, 1, 4, generator=generator())
    assert torch.equal(net(model[0](wide)), stepped(model, wide).double())
    found = integers.check_exact(nn.Sequential(*model, Integer(2, pos_threshold=9)), x)
    assert found == integers.check_exact(nn.Sequential(*model, Integer(2, pos_threshold=9)), wide)


def test_a_border_is_left_to_the_caller(tmp_path: Path) -> None:
    model = nn.Sequential(integers.Quantize(0.25, bits=4), Integer(5, pos_threshold=9))
    x = torch.randn(50, 1, 5, generator=generator())
    x[0, 0, :2] = torch.tensor([-9.0, 9.0])  # a short sample has the range of all of it
    net = CNetwork(model, x[:3], tmp_path, dtype="int")
    assert net.report.input_range == {"x": (-8, 7)}
    assert "x is in units of 0.25" in (tmp_path / "model.h").read_text()
    assert torch.equal(net(model[0](x)), stepped(model, x).double())


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Sequential(nn.Linear(5, 5), snn.LIF(5)), torch.rand(5, 1, 5),
         r"^the sample's x holds what is no integer. Quantise a network of floats, by tt\.quant"),
        (nn.Linear(5, 5), integer_input(5, 1, 5),
         "has weights that are no integers. Quantise the model, tt.quantize"),
        (snn.LIF(5), integer_input(5, 1, 5), r"\(LIF\) is not exact in integers: .*rounded"),
        (snn.LIF(5, pos_threshold=torch.linspace(1e-5, 2e-5, 5)), integer_input(5, 1, 5),
         "has the constant 1e-05, which is no integer"),
        (Integer(5), torch.rand(5, 1, 5), "^the sample's x holds what is no integer"),
        (nn.Sequential(nn.Unflatten(1, (1, 5)), nn.AvgPool1d(5)), integer_input(5, 1, 5),
         "averages, and an average is no integer"),
        (nn.Tanh(), integer_input(5, 1, 5), "tanh"),
        (Integer(5, state_bits=24), integer_input(5, 1, 5) * 10**6, "is not exact in integers"),
        (nn.AvgPool2d((1, 8), divisor_override=1), torch.full((1, 1, 1, 1, 8), 2.0**22),
         r"AvgPool2d\) can reach 33554432, and torch.float32 holds every integer up to 16777216"),
    ],
    ids=["floats", "weights", "decay", "decays", "sample", "average", "function", "range", "sum"],
)  # fmt: skip
def test_what_is_no_integer_is_refused(
    model: nn.Module, x: Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tt.export.c(model, tmp_path, x, dtype="int")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [2**20 + 3, 2**30 + 1, 2**33 + 7], ids=["32", "sum", "64"])
@pytest.mark.parametrize("rate", [0.2, 0.9], ids=["events", "dense"])
def test_products_are_as_wide_as_their_input(value: int, rate: float, tmp_path: Path) -> None:
    layer = integers.Linear(8, 2).double()
    layer.weight.copy_(torch.randint(-5, 6, layer.weight.shape, generator=generator()))
    x = spikes(9, 1, 8, rate=rate).double() * value
    report = tt.export.c(layer, tmp_path, x, dtype="int")
    assert report.types["x"] == ("int64_t" if value > 2**31 else "int32_t")
    assert bool(report.events) == (rate < 0.5)
    assert printed(tmp_path) == stepped(layer, x).tolist()
    # long has 32 bits on many a processor
    assert "(long long)" in (tmp_path / "main.c").read_text()


SUMS = module(  # of eight values, and of windows of two in both spellings
    lambda self, x: {"all": x.sum(-1), "ones": self.ones(x), "pool": self.pool(x)},
    ones=integers.SumPool2d((1, 2)),
    pool=nn.AvgPool2d((1, 2), divisor_override=1),
)


def test_sums_are_wider_than_what_they_sum(tmp_path: Path) -> None:
    x = torch.tensor([127.0, -128]).repeat_interleave(8).view(2, 1, 1, 1, 8)
    report = tt.export.c(SUMS, tmp_path, x, dtype="int")
    sums = dict.fromkeys(("y_all", "y_ones", "y_pool"), "int16_t")
    assert report.types == {"x": "int8_t", **sums}
    assert printed(tmp_path) == [[1016, *[254] * 8], [-1024, *[-256] * 8]]


@pytest.mark.parametrize(("zeros", "events"), [(4, ()), (5, ()), (6, ("the model (Linear)",))])
def test_an_input_is_spikes_where_most_of_it_is_zero(
    zeros: int, events: tuple[str, ...], tmp_path: Path
) -> None:
    x = torch.ones(1, 1, 10)
    x[..., :zeros] = 0
    assert tt.export.c(nn.Linear(10, 1), tmp_path, x).events == events


@pytest.mark.parametrize(("rate", "value"), [(0.2, 1), (0.9, 2**33 + 7)])
def test_delays_in_whole_steps_are_exact(rate: float, value: int, tmp_path: Path) -> None:
    layer = integers.DelayedLinear(6, 5, max_delay=7).double()
    layer.linear.weight.copy_(torch.randint(-1, 2, (5, 6), generator=generator()) * 100)
    layer.linear.bias.copy_(torch.arange(5))
    layer.delay = torch.randint(0, 8, (5, 6), generator=generator(2)).double()
    x = spikes(12, 1, 6, rate=rate).double() * value
    net = CNetwork(layer, x, tmp_path, dtype="int")
    assert torch.equal(net(x), stepped(layer, x))
    assert bool(net.report.events) == (rate < 0.5)


def bordered(kind: str) -> tuple[nn.Module, Tensor]:
    """Return a model whose border stands elsewhere than in a plain chain, and an input."""
    torch.manual_seed(0)
    x = torch.rand(20, 2, 4)
    float_model = nn.Sequential(nn.Linear(4, 3), snn.LIF(3, pos_threshold=0.2))
    prepared = tt.quantize.prepare(float_model, x)
    if kind == "prepared":
        return prepared, x
    converted, _ = tt.quantize.convert(prepared)
    if kind == "nested":
        return nn.Sequential(nn.Sequential(converted), nn.Flatten()), x
    # named_children would give the second one of a pair once
    twice = integers.SumPool1d(2)
    return nn.Sequential(integers.Quantize(0.1), twice, twice), x.view(20, 2, 1, 4)


@pytest.mark.parametrize("kind", ["nested", "twice", *slow("prepared")])
def test_the_border_of_a_chain_is_found(kind: str, tmp_path: Path) -> None:
    model, x = bordered(kind)
    net = CNetwork(model, x, tmp_path, dtype="int")
    border = next(m for m in model.modules() if isinstance(m, integers.Quantize))
    got, expected = net(border(x[:, :1])), stepped(model, x[:, :1])
    assert expected.any()
    assert torch.equal(got, expected.double())


def test_a_border_that_a_hook_may_see_is_refused(tmp_path: Path) -> None:
    model, x = bordered("nested")
    model.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    with pytest.raises(ValueError, match=r"the first child of the nn\.Sequential itself"):
        tt.export.c(model, tmp_path, x, dtype="int")


class Growing(snn.Neuron):
    """A counter that nothing bounds."""

    states = ("count",)

    @staticmethod
    def step(x: Tensor, count: Tensor) -> Any:
        return x, count + x


# The files


@dataclass
class Written:
    """A network whose files are there: exporting takes longer than compiling."""

    model: nn.Module
    x: Tensor
    folder: Path
    report: CReport

    def copy_to(self, folder: Path) -> Written:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return replace(self, folder=folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """Write the files of a network once for all tests of this file."""

    @cache
    def write(kind: str) -> Written:
        model: nn.Module
        if kind == "integers":
            model, x = integer_network(), spikes(15, 1, 1, 8, 8)
        elif kind in (*cases.LAYERS, *cases.NEURONS):
            model, x = cases.layer(kind, 5), random_input(kind, 15)
        else:
            model, x = network(kind)
            x = x[:15]
        folder, dtype = tmp_path_factory.mktemp("c"), "int" if kind == "integers" else "float32"
        report = tt.export.c(model, folder, x, dtype=dtype)  # type: ignore[arg-type]
        return Written(model, x, folder, report)

    return write


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("kind", ["convolutional", "integers"])
def test_both_compilers_and_their_sanitizers(
    compiler: str, kind: str, written: Any, tmp_path: Path
) -> None:
    each = written(kind).copy_to(tmp_path)
    model, x = each.model, each.x
    command = [compiler, *STRICT, *SANITIZED, "main.c", "model.c", "-o", "main", "-lm"]
    assert torch.equal(torch.tensor(printed(tmp_path, *command)), stepped(model, x))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) for n in ("AdEx", "GLIF")] + ["BSRLIF"]
)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_optimisation_changes_nothing(
    compiler: str, name: str, written: Any, tmp_path: Path
) -> None:
    x, results = random_input(name, 300), []
    for level in ("-O0", "-O3", "-Os"):
        each = written(name).copy_to(tmp_path / level[1:])
        build = {"report": each.report, "compiler": compiler, "flags": (level,)}
        results.append(CNetwork(each.model, x, each.folder, **build)(x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_ram_and_stack_are_those_of_the_report(written: Any, tmp_path: Path) -> None:
    kinds = ("LIF", "BSRLIF", "AdEx", "convolutional", "integers")
    reports = {kind: written(kind).copy_to(tmp_path / kind).report for kind in kinds}
    for kind, report in reports.items():
        # an array of a negative size is an error
        size = f"extern char size[sizeof(tt_stream) == {report.ram_bytes} ? 1 : -1];"
        (tmp_path / f"{kind}.c").write_text(f'#include "{kind}/model.c"\n{size}\n')
    for level in ("-O0", "-O2", "-Os"):
        units = [f"{kind}.c" for kind in kinds]
        checked(["gcc", *STRICT, level, "-fstack-usage", "-c", *units], tmp_path)
        for kind, report in reports.items():
            used: dict[str, int] = {}
            for line in (tmp_path / f"{kind}.su").read_text().splitlines():
                place, bytes_, sort = line.split("\t")
                assert sort == "static", kind
                used[place.rpartition(":")[2]] = int(bytes_)
            stages = [size for function, size in used.items() if function.startswith("tt_stage")]
            assert used["tt_step"] + max(stages, default=0) <= report.stack_bytes, kind


def test_report(tmp_path: Path) -> None:
    first, second = dyadic(nn.Linear(6, 4)), dyadic(nn.Linear(4, 2))
    model = nn.Sequential(first, snn.LIF(4), second)
    x = torch.eye(6).view(6, 1, 6)
    report = tt.export.c(model, tmp_path, x)
    assert (tmp_path / "report.txt").read_text() == str(report)
    # 24 + 4 and 8 + 2 weights and biases; beta and threshold are literals
    assert report.flash_bytes == 4 * (24 + 4 + 8 + 2)
    assert report.events == ("0 (Linear)", "2 (Linear)")


class Moved(nn.Module):
    """A pool, a sum, and places that a table names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor([5, 0, 5]))

    places: Tensor

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.max_pool2d(x, 2)
        return torch.cat([pooled.sum((2, 3)), x.flatten(1).index_select(1, self.places)], 1)


def test_pooled_sums_and_chosen_places(tmp_path: Path) -> None:
    x = torch.rand(3, 1, 1, 4, 4)
    torch.testing.assert_close(CNetwork(Moved(), x, tmp_path)(x), stepped(Moved(), x))


def test_the_stack_is_that_of_the_deepest_stage_wherever_it_stands(tmp_path: Path) -> None:
    product, neuron = nn.Linear(3, 3), snn.BLIF(3)
    deep_last = tt.export.c(nn.Sequential(product, neuron), tmp_path, torch.rand(1, 1, 3))
    deep_first = tt.export.c(nn.Sequential(neuron, product), tmp_path, torch.rand(1, 1, 3))
    assert deep_first.stack_bytes == deep_last.stack_bytes


HOSTILE = ("*/ int x; /*", "int", "ünïcode", "auto", "AUTO", "_", "%s%n", "a" * 99)


class Named(nn.Module):
    """Neurons with names that C might take for code."""

    def __init__(self) -> None:
        super().__init__()
        for name in HOSTILE:
            self._modules[name] = snn.LIF(2)
        self._modules["*/ int x; /*"] = snn.LIF(2)
        self._modules["product */"] = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._modules.values():
            assert layer is not None
            x = layer(x)
        return x


def test_hostile_names_stay_in_comments(tmp_path: Path) -> None:
    type.__setattr__(Named, "__name__", "Na*/med\n")
    x = torch.rand(5, 1, 2)
    CNetwork(Named(), x, tmp_path)
    text = "".join((tmp_path / name).read_text() for name in ("model.c", "model.h", "main.c"))
    assert text.isascii()
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    assert "int x;" not in code
    assert "%n" not in text


@pytest.mark.parametrize("name", ['a"b', "if"])
def test_names_that_torch_export_takes_for_code_are_refused(name: str, tmp_path: Path) -> None:
    model = nn.Sequential()
    model._modules[name] = snn.LIF(2)
    with pytest.raises(ValueError, match=r"which torch\.export cannot write\. Rename it"):
        tt.export.c(model, tmp_path / "new", torch.rand(5, 1, 2))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x.cumsum(-1), r"inner \(Lambda\) cannot be written in C: .*cumsum"),
        (lambda x: x @ x.T, r"inner \(Lambda\) cannot be written in C: its second matrix changes"),
        (lambda x: (x > 0).long() + 1, r"inner \(Lambda\) cannot be written in C: .*int64"),
    ],
    ids=["cumsum", "matmul", "int64"],
)
def test_what_has_no_c_is_refused_by_name(forward: Any, message: str, tmp_path: Path) -> None:
    class Lambda(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = forward(x)
            return result

    model = nn.Sequential()
    model.add_module("inner", Lambda())
    (tmp_path / "model.h").write_text("old")
    with pytest.raises(ValueError, match=message):
        tt.export.c(model, tmp_path, torch.rand(3, 1, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["model.h"]
    assert (tmp_path / "model.h").read_text() == "old"


X = torch.rand(3, 1, 3)
NO_STATISTICS = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))


@refusals(
    r"""
    snn.LIF(3), X, dtype="half" -> ValueError: dtype must be 'float32' or 'int', got 'half'
    snn.LIF(3).double(), X.double() -> ValueError: computes in float64
    nn.Linear(3, 2), X[:, 0] -> ValueError: got \[3, 3\]\. One sequence \[T, F\]\? Give sample
    nn.Linear(3, 2), torch.ones(3, 1, 4) -> ValueError: X \[3, 2\]\. The sample is .*got \[3, 1, 4\]
    nn.Linear(3, 2), X.double() -> ValueError: must have the same dtype
    NO_STATISTICS, X -> ValueError: 0 \(BatchNorm1d\) .* It needs track_running_stats
    nn.Linear(3, 2), X[:, :0] -> ValueError: x has no sample
    snn.LIF(3), 3 -> TypeError: must be a tensor
    nn.Sequential(Growing(3)), X.round(), dtype="int"
        -> ValueError: the state 0\.count can grow beyond 16777216, .*: saturate
    """
)
def test_arguments(call: str, error: str, tmp_path: Path, caplog: Any) -> None:
    def export(model: Any, sample: Any, **options: Any) -> None:
        tt.export.c(model, tmp_path, sample, **options)

    check(f"export({call})", error, {**globals(), "export": export})
    assert not [each for each in caplog.records if each.levelname == "ERROR"]
    assert not list(tmp_path.iterdir())


def test_a_folder_is_made_in_one_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*a'\. Make it first"):
        tt.export.c(snn.LIF(3), tmp_path / "a" / "b", X)
    (tmp_path / "file").touch()
    for place in ("file", "file/b"):
        with pytest.raises(NotADirectoryError, match=r"file' is a file\. Name a folder"):
            tt.export.c(snn.LIF(3), tmp_path / place, X)


@pytest.mark.parametrize("name", ["c", "verilog", "onnx", "page"])
def test_an_empty_path_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = integers.LeakyIntegrator(4, beta=205, pos_threshold=20)
    given = torch.ones(3, 1, 4) if name in ("c", "verilog") else torch.eye(4)[:1]
    settings = {"steps": 2} if name == "page" else {}
    with pytest.raises((ValueError, OSError), match=r"Name one, '.' for|'' is a folder\. Name"):
        getattr(tt.export, name)(model, "", given, **settings)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tt.export.c(snn.LIF(3), tmp_path, torch.rand(3, 1, 3))
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    calls: list[Any] = []
    original: Any = Path.write_text

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise OSError(5, "a fault of the medium")
        return original(*args, **kwargs)

    monkeypatch.setattr(Path, "write_text", failing)
    with pytest.raises(OSError, match="a fault of the medium"):
        tt.export.c(snn.SLIF(4), tmp_path, torch.rand(3, 1, 4))
    monkeypatch.undo()
    assert len(calls) >= 4
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


# Another processor


@needs_cortex
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow) for k in ("Izhikevich", "AdEx", "convolutional")]
    + ["BSRLIF", "integers"],
)
def test_cortex_m4(kind: str, written: Any, tmp_path: Path) -> None:
    each = written(kind).copy_to(tmp_path)
    model, x, report = each.model, each.x, each.report
    printed, stack = run_on_cortex(tmp_path, "main.c")
    got = torch.tensor([[float(n) for n in line.split()] for line in printed.splitlines()])
    expected = stepped(model, x)
    if kind in cases.INEXACT:
        torch.testing.assert_close(got, expected, rtol=3e-7, atol=0)
    else:
        assert torch.equal(got, expected.float())
    assert stack <= report.stack_bytes
