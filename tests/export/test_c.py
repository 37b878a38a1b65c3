"""Compile what ``tt.export.c`` writes, with every warning an error, and compare it bit by bit."""

from __future__ import annotations

import math
import re
import shutil
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
from tests.networks import Net, module
from tests.quantize.networks import case
from tests.refusals import check, refusals
from tracetorch import chips, integers, snn
from tracetorch.export import CReport

pytestmark = needs_compiler
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FEW = ("LIF", "BSRLIF", "SRReadout")


def slow(*cases: Any) -> list[Any]:
    """Return cases of a test for the slow run: the fast one has others of their kind."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]


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


def beside(names: Any) -> Any:
    """Neurons of five each beside each other, in one program: tracing takes longer than running."""
    gains = [cases.NEURONS.get(name, 1.0) for name in names]
    return Beside([cases.layer(name, 5) for name in names], gains)


@pytest.mark.parametrize("steps", [50, *slow(1000)])
def test_neurons_are_the_eager_step(steps: int, tmp_path: Path) -> None:
    names = [*(FEW if steps == 50 else cases.LAYERS), *cases.NEURONS]
    model, x = beside(names), cases.sequence(steps, 1, 5, dtype=torch.float32)
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
@pytest.mark.parametrize("dtype", ["float32", "int"])
def test_neurons_are_the_eager_step_for_a_million_steps(dtype: Any, tmp_path: Path) -> None:
    if dtype == "int":
        model, x = Beside([make() for make in NEURONS.values()]), integer_input(10**6, high=250)
    else:
        model = beside([n for n in (*cases.LAYERS, *cases.NEURONS) if n not in cases.INEXACT])
        x = cases.sequence(10**6, 1, 5, dtype=torch.float32)
    net = CNetwork(model, x[:2], tmp_path, dtype=dtype, flags=("-O2",))
    spoke = check_every_step(net, model, x, 100)
    assert all(bool(each.any()) for each in spoke.split(5))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("each", [97, 7])
@pytest.mark.parametrize("recurrence", [True, False])
@pytest.mark.parametrize("synapse", [True, False])
def test_configurations(synapse: bool, recurrence: bool, each: int, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"alpha_setup": {}} if synapse else {}
    parts |= {"gamma_setup": {}} if recurrence else {}
    every = list(cases.configurations(synapse, recurrence))[::each]
    model = Beside([snn.LeakyIntegrator(3, **{**parts, **setup}) for setup in every])
    for layer in model.layers:
        cases.vary(layer)
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
    model, x, report = written("BSRLIF", tmp_path)
    net = CNetwork(model, x, tmp_path, report=report)
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


def read_late(self: Any, x: Tensor) -> Tensor:
    """Replace a memory first, and add its old value last."""
    old, self.last = self.last, 0.5 * x
    product: Tensor = self.product(self.last)
    return product + old


READ_LATE = module(read_late, "ReadLate", product=dyadic(nn.Linear(4, 4)))
READ_LATE.memory("last", 4)


@pytest.mark.parametrize("model", [Charged(4), Swapped(4), READ_LATE], ids=repr)
def test_old_and_initial_states_are_where_they_are_read(model: Any, tmp_path: Path) -> None:
    x = torch.randint(-8, 9, (20, 1, 4), generator=generator()).float()
    got = CNetwork(model, x[:1], tmp_path)(x)
    assert torch.equal(got, stepped(model, x))
    assert got[0].any() == (not isinstance(model, Swapped))


# Products


class InOrder(nn.Module):
    """A linear layer in NumPy's float32, as C sums: the bias, then inputs in ascending order."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight.detach().numpy(), self.layer.bias
        start = np.zeros(len(weight), np.float32) if bias is None else bias.detach().numpy()
        rows = []
        for row in x.numpy():
            total = start.copy()
            for i, value in enumerate(row):
                total += weight[:, i] * value
            rows.append(total)
        return torch.from_numpy(np.stack(rows))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rate", [0.2, 1.0])
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
    pool = nn.MaxPool2d(2)
    got, expected = CNetwork(pool, x, tmp_path)(x), stepped(pool, x)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    # also where they are in a table and in the sample, which are written as text
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([-torch.inf, 1]))
    for layer, values in ((nn.Identity(), [torch.inf, torch.nan, 1.0]), (model, [1.0, 2, 3])):
        sample, place = torch.tensor(values).view(1, 1, 3), tmp_path / type(layer).__name__
        tt.export.c(nn.Sequential(layer, nn.ReLU()), place, sample)
        expected = layer(sample).relu().detach().flatten(1)
        torch.testing.assert_close(torch.tensor(printed(place)), expected, equal_nan=True)


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


def residual(self: Any, x: Tensor) -> Tensor:
    """A residual block of spikes, with arithmetic between layers."""
    y = self.second(self.first(x))
    both = torch.cat([x + y, (y - x).abs() * self.gain], 1).permute(0, 2, 3, 1)
    sums = torch.stack([y[:, 0].sum((1, 2)), y[:, 1, :, 2].sum(1)], 1)
    return both.mean((1, 2)) + sums.repeat(1, 2)


def network(kind: str) -> tuple[nn.Module, Tensor]:
    """Return a network whose sums are exact, and an input."""
    if kind == "residual":
        parts = {"first": dyadic(nn.Conv2d(2, 2, 3, padding=1)), "second": snn.LIF(2, dim=-3)}
        gain = nn.Parameter(torch.tensor([[[0.5]], [[0.25]]]))
        return module(residual, **parts, gain=gain), spikes(30, 1, 2, 4, 4)
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


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", ["residual", "recurrent", "delays", "convolutional"])
def test_networks(kind: str, written: Any, tmp_path: Path) -> None:
    model, x, report = written(kind, tmp_path)
    got, expected = CNetwork(model, x, tmp_path, report=report)(x), stepped(model, x)
    assert expected.abs().sum() > 0
    assert torch.equal(got, expected)


def cut(self: Any, x: Tensor) -> Tensor:
    """Parts of tensors: of the input, of spikes, and of what is computed between."""
    a, b = x.chunk(2, -1)
    first, second, third = self.lif(torch.cat([b, a], -1)).split([1, 2, 3], -1)
    rows = (x * 2).unflatten(-1, (2, 3)).unbind(1)
    parts = [first, self.linear(second), third * b, rows[1], *x.tensor_split(4, -1)[1:3]]
    inside = torch.zeros_like(a)
    inside += a  # writes in place
    # a pool, a sum, and places that a table names
    image = torch.cat([x, x], -1).view(-1, 1, 3, 4)
    pooled = nn.functional.max_pool2d(image, 2).sum((2, 3))
    return torch.cat([*parts, inside, pooled, x.index_select(1, self.places)], -1)


def test_tensors_are_cut(tmp_path: Path) -> None:
    parts = {"lif": snn.LIF(6, pos_threshold=0.5), "linear": dyadic(nn.Linear(2, 3))}
    model = module(cut, **parts, places=torch.tensor([5, 0, 5])).eval()
    x = torch.randint(-8, 9, (20, 1, 6), generator=generator()) / 8
    got, expected = CNetwork(model, x[:2], tmp_path)(x), stepped(model, x)
    assert torch.equal(got, expected)
    assert bool((expected != 0).any(0).all())


HEADER = """\
#include "model.h"
#include "model.h"
extern int used;
int used = sizeof(tt_stream) + TT_X_SIZE;
"""
OF_C, OF_CPP = ("c89", "c99", "c17"), ("c++11", "c++20")
STANDARDS = {"gcc": OF_C, "clang": OF_C, "g++": OF_CPP, "clang++": OF_CPP}
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
        model, x = nn.Sequential(first, second), integer_input(20)
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


def integer_input(steps: int, low: int = -100, high: int = 100) -> Tensor:
    """Draw five integers a step; the first two steps have the range of all of them."""
    x = torch.randint(low, high + 1, (steps, 1, 5), generator=generator()).float()
    x[:2, 0, 0] = torch.tensor([low, high])
    return x


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
    model, x = Beside([NEURONS[name]() for name in names]), integer_input(steps, high=250)
    got = CNetwork(model, x[:2], tmp_path, dtype="int")(x)
    expected = stepped(model, x).double()
    for name, y, z in zip(names, got.split(5, 1), expected.split(5, 1), strict=True):
        assert torch.equal(y, z), name
        assert z.any(), name
    assert "float" not in re.sub(r"/\*.*?\*/|#.*", "", (tmp_path / "model.c").read_text())


def test_states_have_their_real_width(tmp_path: Path) -> None:
    x = integer_input(20, low=-128, high=127)
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


def edges(self: Any, x: Tensor) -> Tensor:
    """Integer arithmetic whose results fit 32 bits where what comes before them does not."""
    quarter, small = x * 0.25, x.clamp(-9, 9)
    parts = [quarter.round(), quarter.floor(), quarter.ceil(), quarter.trunc()]
    parts += [(x + quarter).floor()]
    parts += [torch.add(small - 2.0**32, small + 2.0**20, alpha=4096)]
    parts += [(small * self.gains).floor()]
    large = x[:, :2].clamp(0, 1) + 2.0**29
    return torch.cat([*parts, self.plus(large), self.minus(large)], -1)


def test_what_is_wider_on_the_way_has_its_width(tmp_path: Path) -> None:
    plus, minus = (nn.Linear(2, 1, bias=False).double() for _ in range(2))
    for product, sign in ((plus, 1), (minus, -1)):
        product.weight = nn.Parameter(torch.tensor([[5.0, -3.0]]).double() * sign)
    gains = torch.tensor([0.75, -0.5, 100.25, 3.0]).double()
    model = module(edges, plus=plus, minus=minus, gains=gains)
    values = [*range(-12, 12), -(2**31), 2**31 - 1, 2**31 - 2, -(2**31) + 1]
    x = torch.tensor(values, dtype=torch.float64).view(7, 1, 4)
    report = tt.export.c(model, tmp_path, x, dtype="int")
    command = ["gcc", *STRICT, *SANITIZED, "main.c", "model.c", "-o", "main"]
    assert printed(tmp_path, *command) == stepped(model, x).tolist()
    # in full: a range of six digits would be one that nothing was proved for
    assert "input x: -2147483648 to 2147483647" in (tmp_path / "model.h").read_text()
    assert "inputs       x -2147483648 to 2147483647\n" in str(report)
    for value in (7.0, -7.0):  # a silent input is in the range that is proved
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize(("signed", "bits"), [(True, 8), (False, 8), (True, 4)])
def test_behind_a_border_the_sample_is_no_limit(signed: bool, bits: int, tmp_path: Path) -> None:
    """A device meets inputs that no sample had, and the border, left to the caller, saturates."""
    product = integers.Linear(4, 2)
    product.weight.copy_(torch.tensor([[127, 127, -100, 3], [-128, -128, -128, -128]]))
    model = nn.Sequential(integers.Quantize(0.25, bits, signed=signed), product)
    x = torch.rand(9, 1, 4, generator=generator())
    net = CNetwork(model, x, tmp_path, dtype="int")
    assert net.report.input_range == {
        "x": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 255)
    }
    assert "x is in units of 0.25" in (tmp_path / "model.h").read_text()
    wide = 99 * torch.randn(50, 1, 4, generator=generator())
    assert torch.equal(net(model[0](wide)), stepped(model, wide).double())
    found = integers.check_exact(nn.Sequential(*model, Integer(2, pos_threshold=9)), x)
    assert found == integers.check_exact(nn.Sequential(*model, Integer(2, pos_threshold=9)), wide)


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


@pytest.mark.parametrize("rounded", [torch.ceil, torch.floor, torch.round, torch.trunc])
def test_quotients_by_powers_of_two_are_rounded(rounded: Any, tmp_path: Path) -> None:
    x = torch.tensor([-128.0, 127, -1, 12, 4, 100, -20, -4]).view(-1, 1, 4)
    model = module(lambda self, x: rounded(x / 8))
    assert torch.equal(CNetwork(model, x, tmp_path, dtype="int")(x), stepped(model, x).double())


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
    """Unless a hook may see it."""
    model, x = bordered(kind)
    net = CNetwork(model, x, tmp_path, dtype="int")
    border = next(m for m in model.modules() if isinstance(m, integers.Quantize))
    got, expected = net(border(x[:, :1])), stepped(model, x[:, :1])
    assert expected.any()
    assert torch.equal(got, expected.double())
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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Write a network into a folder, once for all tests of this file: that takes long."""

    @cache
    def write(kind: str) -> tuple[nn.Module, Tensor, Path, CReport]:
        model: nn.Module
        if kind == "integers":
            model, x = integer_network(), spikes(15, 1, 1, 8, 8)
        elif kind in (*cases.LAYERS, *cases.NEURONS):
            model, x = beside([kind]), cases.sequence(15, 1, 5, dtype=torch.float32)
        else:
            model, x = network(kind)
        folder, dtype = tmp_path_factory.mktemp("c"), "int" if kind == "integers" else "float32"
        return model, x[:15], folder, tt.export.c(model, folder, x[:15], dtype=dtype)  # type: ignore[arg-type]

    def copy_to(kind: str, folder: Path) -> tuple[nn.Module, Tensor, CReport]:
        model, x, source, report = write(kind)
        shutil.copytree(source, folder, dirs_exist_ok=True)
        return model, x, report

    return copy_to


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("kind", ["convolutional", "integers"])
def test_both_compilers_and_their_sanitizers(
    compiler: str, kind: str, written: Any, tmp_path: Path
) -> None:
    model, x, _ = written(kind, tmp_path)
    command = [compiler, *STRICT, *SANITIZED, "main.c", "model.c", "-o", "main", "-lm"]
    assert torch.equal(torch.tensor(printed(tmp_path, *command)), stepped(model, x))


@pytest.mark.parametrize("name", [*slow("AdEx", "GLIF"), "BSRLIF"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_optimisation_changes_nothing(
    compiler: str, name: str, written: Any, tmp_path: Path
) -> None:
    x, results = cases.sequence(300, 1, 5, dtype=torch.float32), []
    for level in ("-O0", "-O3", "-Os"):
        model, _, report = written(name, tmp_path / level[1:])
        build = {"report": report, "compiler": compiler, "flags": (level,)}
        results.append(CNetwork(model, x, tmp_path / level[1:], **build)(x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_ram_and_stack_are_those_of_the_report(written: Any, tmp_path: Path) -> None:
    kinds = ("LIF", "BSRLIF", "AdEx", "convolutional", "integers")
    reports = {kind: written(kind, tmp_path / kind)[2] for kind in kinds}
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
    report = tt.export.c(model, tmp_path, torch.eye(6).view(6, 1, 6))
    assert (tmp_path / "report.txt").read_text() == str(report)
    # 24 + 4 and 8 + 2 weights and biases; beta and threshold are literals
    assert report.flash_bytes == 4 * (24 + 4 + 8 + 2)
    assert report.events == ("0 (Linear)", "2 (Linear)")
    # an input is spikes where most of it is zero
    for zeros, events in ((4, ()), (5, ()), (6, ("the model (Linear)",))):
        x = torch.ones(1, 1, 10)
        x[..., :zeros] = 0
        assert tt.export.c(nn.Linear(10, 1), tmp_path, x).events == events
    # the stack is that of the deepest stage wherever it stands
    parts = [nn.Linear(3, 3), snn.BLIF(3)]
    ends = [tt.export.c(nn.Sequential(*each), tmp_path, X) for each in (parts, parts[::-1])]
    assert ends[0].stack_bytes == ends[1].stack_bytes


HOSTILE = ("*/ int x; /*", "int", "ünïcode", "auto", "AUTO", "_", "%s%n", "a" * 99)


class Named(nn.Module):
    """Neurons with names that C might take for code."""

    def __init__(self) -> None:
        super().__init__()
        self._modules.update({name: snn.LIF(2) for name in HOSTILE})
        self._modules["product */"] = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        return iter(self._modules.values())


def test_hostile_names_stay_in_comments(tmp_path: Path) -> None:
    type.__setattr__(Named, "__name__", "Na*/med\n")
    CNetwork(Named(), torch.rand(5, 1, 2), tmp_path)
    text = "".join((tmp_path / name).read_text() for name in ("model.c", "model.h", "main.c"))
    assert text.isascii()
    assert "int x;" not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    assert "%n" not in text


X, FIVE = torch.rand(3, 1, 3), integer_input(5)
DECAYS = torch.linspace(1e-5, 2e-5, 5)
FULL = torch.full((1, 1, 1, 1, 8), 2.0**22)


def inner(part: Any, name: str = "inner") -> nn.Module:
    """A module, or a function, as a part of a model."""
    model = nn.Sequential()
    model._modules[name] = part if isinstance(part, nn.Module) else Net(lambda net, x: part(x))
    return model


@refusals(
    r"""
    snn.LIF(3), X, dtype="half" -> ValueError: dtype must be 'float32' or 'int', got 'half'
    snn.LIF(3).double(), X.double() -> ValueError: computes in float64
    nn.Linear(3, 2), X[:, 0] -> ValueError: got \[3, 3\]\. One sequence \[T, F\]\? Give sample
    nn.Linear(3, 2), torch.ones(3, 1, 4) -> ValueError: X \[3, 2\]\. The sample is .*got \[3, 1, 4\]
    nn.Linear(3, 2), X.double() -> ValueError: must have the same dtype
    inner(nn.BatchNorm1d(3, track_running_stats=False)), X
        -> ValueError: inner \(BatchNorm1d\) .* It needs track_running_stats
    nn.Linear(3, 2), X[:, :0] -> ValueError: x has no sample
    snn.LIF(3), 3 -> TypeError: must be a tensor
    inner(snn.LIF(3), 'a"b'), X -> ValueError: which torch\.export cannot write\. Rename it
    inner(snn.LIF(3), "if"), X -> ValueError: which torch\.export cannot write\. Rename it
    inner(lambda x: x.cumsum(-1)), X -> ValueError: inner \(Net\) cannot be written in C: .*cumsum
    inner(lambda x: x @ x.T), X
        -> ValueError: inner \(Net\) cannot be written in C: its second matrix changes
    inner(lambda x: (x > 0).long() + 1), X
        -> ValueError: inner \(Net\) cannot be written in C: .*int64
    nn.Sequential(Growing(3)), X.round(), dtype="int"
        -> ValueError: the state 0\.count can grow beyond 16777216, .*: saturate
    nn.Sequential(nn.Linear(5, 5), snn.LIF(5)), torch.rand(5, 1, 5), dtype="int"
        -> ValueError: ^the sample's x holds what is no integer. Quantise .* floats, by tt\.quant
    nn.Linear(5, 5), FIVE, dtype="int"
        -> ValueError: has weights that are no integers. Quantise the model, tt.quantize
    snn.LIF(5), FIVE, dtype="int" -> ValueError: \(LIF\) is not exact in integers: .*rounded
    snn.LIF(5, pos_threshold=DECAYS), FIVE, dtype="int"
        -> ValueError: has the constant 1e-05, which is no integer
    Integer(5), torch.rand(5, 1, 5), dtype="int" -> ValueError: ^the sample's x holds what is no int
    nn.Sequential(nn.Unflatten(1, (1, 5)), nn.AvgPool1d(5)), FIVE, dtype="int"
        -> ValueError: averages, and an average is no integer
    nn.Tanh(), FIVE, dtype="int" -> ValueError: tanh
    Integer(5, state_bits=24), FIVE * 10**6, dtype="int" -> ValueError: is not exact in integers
    nn.AvgPool2d((1, 8), divisor_override=1), FULL, dtype="int"
        -> ValueError: can reach 33554432, and torch.float32 holds every integer up to 16777216
    """
)
def test_what_has_no_c_is_refused(call: str, error: str, tmp_path: Path, caplog: Any) -> None:
    def export(model: Any, sample: Any, **options: Any) -> None:
        tt.export.c(model, tmp_path, sample, **options)

    (tmp_path / "model.h").write_text("old")
    check(f"export({call})", error, {**globals(), "export": export})
    assert not [each for each in caplog.records if each.levelname == "ERROR"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.h"]
    assert (tmp_path / "model.h").read_text() == "old"


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
@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["BSRLIF", "Izhikevich", "AdEx", "integers", "convolutional"])
def test_cortex_m4(kind: str, written: Any, tmp_path: Path) -> None:
    model, x, report = written(kind, tmp_path)
    text, stack = run_on_cortex(tmp_path, "main.c")
    got = torch.tensor([[float(n) for n in line.split()] for line in text.splitlines()])
    expected = stepped(model, x)
    if kind in cases.INEXACT:
        torch.testing.assert_close(got, expected, rtol=3e-7, atol=0)
    else:
        assert torch.equal(got, expected.float())
    assert stack <= report.stack_bytes
