"""The guard: what it proves holds, what it refuses is wrong, and it names the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import stepped
from tests.integers.reference import Noisy
from tests.quantize.networks import case
from tests.refusals import check, refusals
from tracetorch import chips, integers, quantize, snn
from tracetorch.integers import Interval


def linear(weight: list[list[float]]) -> nn.Linear:
    made = nn.Linear(len(weight[0]), len(weight), bias=False)
    made.weight.data = torch.tensor(weight)
    return made


def biased() -> nn.Linear:
    made = nn.Linear(40, 1)
    made.weight.data.zero_()
    made.bias.data.fill_(2.0**25)
    return made


class Doubled(integers.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Driven(integers.LeakyIntegrator):
    def forward_step(self, *x: Tensor, **named: Tensor) -> Tensor:
        return super().forward_step(2 * x[0])


class Twice(nn.Module):
    """A layer that is called twice in a step, and goes on from where it was left."""

    def __init__(self) -> None:
        super().__init__()
        self.neurons = integers.LeakyIntegrator(40, beta=256, state_bits=8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.neurons(x) + self.neurons(4 * x)
        return result


def shifted(shift: int, bias: float | None = None) -> integers.Linear:
    made = integers.Linear(40, 1, bias=bias is not None, shift=shift)
    made.weight.fill_(125 if bias is None else 1)
    if made.bias is not None:
        made.bias.fill_(bias)
    return made


LAYERS: dict[str, snn.Neuron] = {
    "multiplier": integers.LeakyIntegrator(3, beta=torch.tensor([0.0, 200, 256]), pos_threshold=50),
    "nearest": integers.LeakyIntegrator(3, alpha=3000, beta=17, neg_threshold=9,
     decay=integers.Multiplier(12, "nearest")),
    "shift, wrap": integers.LeakyIntegrator(*(3,), beta=torch.tensor([0.0, 3, 31]), gamma=2,
     rec_weight=-3, bias=7, pos_threshold=torch.tensor([9.0, 80, 127]),
     decay=integers.Shift("trunc"), state_bits=8, overflow="wrap"),
    "Xylo 1": chips.xylo.LIF(3, dash_mem=torch.tensor([0.0, 5, 15]), pos_threshold=90, version=1),
    "Xylo 2": chips.xylo.LIF(3, pos_threshold=torch.tensor([0.0, 1, 30000]), bias=-3000),
}  # fmt: skip


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_proved_holds_in_every_neuron(name: str) -> None:
    layer = LAYERS[name]
    largest = 3000
    found = integers.prove(layer, {"x": Interval(-largest, largest)})
    assert found.exact
    assert found.fault == ""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-largest, largest + 1, (300, 4, 3), generator=generator).float()
    x[:50], x[50:100] = largest, -largest
    layer.zero_states()
    for step in x:
        output = layer(step)
        for key, values in {"output": output, **states(layer)}.items():
            interval = found.outputs[key]
            low, high = (torch.as_tensor(each).float() for each in (interval.low, interval.high))
            assert bool(((values >= low) & (values <= high)).all()), key
            ends = integers.limits(max(interval.bits, 2))
            assert ends[0] <= values.min() <= values.max() <= ends[1]


def states(layer: snn.Neuron) -> dict[str, Tensor]:
    return {f"next_{name}": getattr(layer, name) for name in layer.active_states}


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 23])
@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
def test_states_are_proved_as_wide_as_they_are(bits: int, overflow: Any) -> None:
    layer = integers.LeakyIntegrator(2, beta=256, state_bits=bits, overflow=overflow)
    found = integers.prove(layer, {"x": Interval(-50, 50)})
    assert found.exact
    assert found.outputs["next_mem"].bits == bits
    assert found.outputs["next_mem"].low == integers.limits(bits)[0]


class Sum(snn.Neuron):
    states = ("total",)

    @staticmethod
    def step(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + x
        return total, total


def test_a_sum_beyond_the_dtype_is_refused_where_it_is_used() -> None:
    found = integers.prove(Sum(1), {"x": Interval(0, 1)})
    assert not found.exact
    assert "output reaches inf" in found.fault or "may be rounded" in found.fault
    x = torch.full((2, 1, 1), 2.0**24)
    x[1] = 1  # and indeed it is rounded
    assert stepped(Sum(1), x)[1].item() == 2.0**24


PROVED: dict[str, tuple[Any, int, int, bool]] = {
    "a sum that saturates at once": (
        lambda x, held: ((held + x).clamp(-(2.0**23), 2.0**23),) * 2, -(2**24), 2**24, True),
    **{f"the floor of a product by {factor}": (
        lambda x, held, f=factor: (torch.floor((x + 1) * f + 1), x), 0, 1000, exact)
       for factor, exact in ((0.5, True), (0.9, False), (0.75, True), (2.0**-40, False))},
    "a sign that survives a rounding": (
        lambda x, held: (((x - 3) * 0.1 > held).to(x.dtype), held), 0, 9, True),
    "a size that does not": (
        lambda x, held: (((x - 3) * 0.1 > 0.3).to(x.dtype), held), 0, 9, False),
}  # fmt: skip


@pytest.mark.parametrize("name", PROVED)
def test_a_step_is_exact_where_what_it_rounds_is(name: str) -> None:
    step, low, high, exact = PROVED[name]
    kind: Any = type("Mine", (snn.Neuron,), {"states": ("held",), "step": staticmethod(step)})
    assert integers.prove(kind(1), {"x": Interval(low, high)}).exact is exact


def test_widths_of_intervals() -> None:
    assert (Interval(0, 255).bits, Interval(-256, 0).bits, Interval(0, 0.75, -2).bits) == (9, 9, 3)
    noise = {"x": Interval(0, 9), "noise": Interval(0, 1, -24)}
    found = integers.prove(Noisy(1, halved=True), noise)
    assert (found.exact, found.outputs["output"].bits) == (True, 4)


def test_a_model_is_checked_and_keeps_its_states() -> None:
    neurons = integers.LeakyIntegrator(2, beta=128, pos_threshold=100)
    model = nn.Sequential(
        linear([[100.0, -7.0], [3.0, 127.0]]),
        neurons,
        linear([[1.0, -8.0]]),
        integers.LeakyIntegrator(1, beta=0),
    )
    held = model(torch.ones(1, 2))
    before = neurons.mem.clone()
    found = integers.check_exact(model, torch.ones(4, 1, 2))
    assert set(found) == {"1", "3"}
    assert set(found["1"]) == {"output", "mem"}
    assert (found["3"]["mem"].low, found["3"]["mem"].high) == (-8, 1)
    assert torch.equal(neurons.mem, before)
    assert held.shape == (1, 1)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["random 1", "residual", "delayed", "Xylo 2 1", "convolutional"])
def test_what_is_proved_of_a_model_holds_for_other_inputs_in_the_range(name: str) -> None:
    """Of a sample that is silent but for its ends."""
    network, x, arguments = case(name)
    model, _ = quantize.convert(quantize.prepare(network.eval(), x, **arguments))
    quiet = torch.zeros_like(x[:2])
    quiet[0].view(-1)[0], quiet[0].view(-1)[1] = x.min(), x.max()
    found = integers.check_exact(model, quiet)
    drawn = torch.rand(60, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    given = x.min() + drawn * (x.max() - x.min())
    given = given if not torch.equal(x, x.round()) else given.round()
    given[:20] = x.max()
    names = [f"{path}.{state}" for path, each in found.items() for state in each]
    _, seen = tt.unroll(model, given, by="step", record=names, from_rest=True)
    moved = 0
    for key, values in seen.items():
        path, _, state = key.rpartition(".")
        interval = found[path][state]
        assert interval.low <= float(values.min()) <= float(values.max()) <= interval.high, key
        moved += bool(values.any())
    assert moved > 1


class Between(nn.Module):
    """Functions between modules, of branches and of parts."""

    def __init__(self, function: Any, inputs: int = 40) -> None:
        super().__init__()
        self.function, self.last = function, linear([[1.0] * inputs])

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.function(x))
        return result


RANGES: dict[str, tuple[nn.Module, tuple[float, float]]] = {
    "sums and products": (Between(lambda x: 3 * x - (x + 1) * 2), (-680, 520)),
    "clamps": (Between(lambda x: torch.relu(x).clamp(max=2) + x.maximum(-x)), (-120, 200)),
    "parts": (Between(lambda x: torch.cat([x[:, :20], x[:, 20:]], 1)), (-120, 120)),
    "constants": (Between(lambda x: torch.cat([x[:, 1:], 9 * torch.ones(1, 1)], 1)), (-120, 360)),
    "shapes": (Between(lambda x: x.reshape(-1, 8, 5).flatten(1).neg()), (-120, 120)),
    "a shift and a bias": (shifted(3, bias=50.0), (-910, 1010)),
    "modules": (nn.Sequential(nn.ReLU(), nn.Hardtanh(-1, 2), linear([[1.0] * 40])), (0, 80)),
    "a border": (nn.Sequential(integers.Quantize(2.0, 2), linear([[1.0] * 40])), (-80, 40)),
    "windows": (nn.Sequential(nn.Unflatten(1, (1, 40)), integers.SumPool1d(2), nn.MaxPool1d(2)),
     (-6, 6)),
    "recurrence": (snn.Recurrent(integers.LeakyIntegrator(40, pos_threshold=1, beta=0),
     linear([[7.0] * 40] * 40)), (-4, 283)),
    "twice": (Twice(), (-128, 127)),
    "one after the other": (nn.Sequential(integers.Linear(40, 2), snn.Delay(2, max_delay=2,
     delay=1.0), linear([[1.0, -1.0]])), (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
def test_ranges_go_through_whatever_is_between_the_inputs_and_a_neuron(name: str) -> None:
    module, (low, high) = RANGES[name]
    x = torch.tensor([-3.0, 3.0]).repeat(20).expand(2, 1, 40)
    model = nn.Sequential(module, integers.LeakyIntegrator(1, -2, beta=0, state_bits=24))
    (first, *_) = integers.check_exact(model, x[:, :, :]).values()
    assert (first["mem"].low, first["mem"].high) == (low, high)


def row(weight: float, inputs: int = 40) -> nn.Linear:
    return linear([[weight] * inputs])


def filled(module: Any, weight: float) -> Any:
    getattr(module, "linear", module).weight.data.fill_(weight)
    return module


def delayed(kind: Any, weight: float, **options: Any) -> nn.Module:
    """Delays from 0 to 4: in the last step alone nothing has arrived that is too large."""
    options |= {"max_delay": 4, "delay": torch.arange(64.0)[None] % 5}
    layer = filled(kind(64, 1, False, **options), weight)
    return nn.Sequential(layer, integers.LeakyIntegrator(1, state_bits=24))


def between_steps() -> nn.Module:
    layer = filled(integers.DelayedLinear(40, 1, max_delay=3), 3)
    layer.raw_delay[0, 0] = 1.5
    return nn.Sequential(layer)


chain, neurons = nn.Sequential, integers.LeakyIntegrator
CANCEL = [[2.0**20] * 20 + [-(2.0**20)] * 20]
SIGNS = torch.tensor([1] * 20 + [-1] * 20)
FULL, PAIRS = torch.ones(3, 2, 40), torch.tensor([1.0, 0.0]).repeat(20).expand(3, 2, 40)
QUIET = torch.zeros(3, 2, 40)  # but for one value
QUIET[1, 0, 5] = 1


def images(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 40)), *modules)


@refusals(
    r"""
    FULL, chain(nn.Flatten(), row(2.0**20))
        -> ValueError: ^1 \(Linear\) can reach 41943040, and torch.float32 holds every .* 16777216
    FULL, chain(linear(CANCEL)) -> ValueError: ^0 \(Linear\) can reach 20971520
    FULL, chain(snn.connect(linear(CANCEL), signs=SIGNS))
        -> ValueError: ^0 \(Linear\) can reach 20971520
    FULL, images(filled(nn.Conv1d(1, 1, 40, bias=False), -(2.0**20)))
        -> ValueError: ^1 \(Conv1d\) can reach 41943040
    FULL, chain(nn.Flatten(), row(0.5))
        -> ValueError: ^1 \(Linear\) gets, holds or returns what is no integer
    PAIRS, chain(nn.AvgPool1d(3))
        -> ValueError: ^0 \(AvgPool1d\) has no rule of ranges.* sum where it averages
    2.0**24 * 5 * FULL, chain(nn.Identity(), neurons(40))
        -> ValueError: ^0 \(Identity\) can reach
    FULL / 2, neurons(40)
        -> ValueError: ^the model \(LeakyIntegrator\) gets x that is no integer. Scale and round
    PAIRS / 2, images(integers.SumPool1d(40), neurons(1))
        -> ValueError: ^2 \(LeakyIntegrator\) gets x that is no integer
    3 * FULL, chain(nn.Hardtanh(0, 2.5), neurons(40))
        -> ValueError: ^1 \(LeakyIntegrator\) gets x that is no integer
    FULL, snn.LIF(40)
        -> ValueError: ^the model \(LIF\) is not exact in torch.float32 for inputs up to 1: in
    FULL, between_steps() -> ValueError: ^0 \(DelayedLinear\) gets, holds or returns what is no
    torch.ones(1, 1, 64), delayed(integers.DelayedLinear, -128, shift=12)
        -> ValueError: ^0 \(DelayedLinear\) can reach 33554432
    torch.ones(1, 1, 64), delayed(snn.DelayedLinear, -(2.0**19))
        -> ValueError: ^0 \(DelayedLinear\) can reach 33554432
    QUIET, chain(row(1.0), neurons(1, pos_threshold=9), row(2.0**25, 1))
        -> ValueError: ^2 \(Linear\) can reach 33554432
    QUIET, snn.Recurrent(neurons(40, pos_threshold=0), linear([[2.0**20] * 40] * 40))
        -> ValueError: ^connection \(Linear\) can reach 41943040
    QUIET, snn.Recurrent(neurons(40, pos_threshold=0), linear([[2.0**24] + [0.0] * 39] * 40))
        -> ValueError: ^the model \(Recurrent\) can reach 16777217
    QUIET, Doubled(40, 1, bias=False) -> ValueError: Doubled\) has a forward of its own
    QUIET, Driven(40) -> ValueError: Driven\) has methods of its own .*, which is not proved
    QUIET, chain(Sum(40), linear([[0.0] * 39 + [1.0]])) -> ValueError: ^0 \(Sum\) is not exact
    QUIET, Between(torch.exp) -> ValueError: ^exp\(\) in the model's forward has no rule of ranges
    QUIET, Between(lambda x: x @ x.mT @ x) -> ValueError: has no rule of ranges
    QUIET, chain(nn.GELU()) -> ValueError: ^0 \(GELU\) has no rule of ranges
    QUIET, chain(nn.LayerNorm(40)) -> ValueError: ^0 \(LayerNorm\) has no rule of ranges
    QUIET, Between(lambda x: x * 0.1)
        -> ValueError: ^last \(Linear\) gets, holds or returns what is no integer
    QUIET, chain(biased()) -> ValueError: ^0 \(Linear\) can reach 33554432
    QUIET, chain(shifted(12)) -> ValueError: ^0 \(Linear\) can reach 20480000
    QUIET, images(integers.SumPool1d(40), row(2.0**19, 1))
        -> ValueError: ^2 \(Linear\) can reach 20971520
    """
)
def test_the_layer_that_leaves_the_exact_range_is_named(call: str, error: str) -> None:
    def exact(x: Tensor, model: nn.Module) -> None:
        integers.check_exact(model, x)

    check(f"exact({call})", error, {**globals(), "exact": exact})
