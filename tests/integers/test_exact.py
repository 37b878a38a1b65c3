"""The guard: what it proves holds, what it refuses is wrong, and it names the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import stepped
from tests.integers.reference import stochastically_rounded
from tests.quantize.networks import case
from tracetorch import chips, integers, quantize, snn
from tracetorch.integers import Interval


def linear(weight: list[list[float]]) -> nn.Linear:
    made = nn.Linear(len(weight[0]), len(weight), bias=False)
    made.weight.data = torch.tensor(weight)
    return made


def whole_convolution() -> nn.Conv1d:
    made = nn.Conv1d(1, 1, 40, bias=False)
    made.weight.data.fill_(-(2.0**20))
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


def test_every_line_has_a_width() -> None:
    layer = integers.LeakyIntegrator(2, beta=128, pos_threshold=100)
    found = integers.prove(layer, {"x": Interval(-64, 63)}, ndim=3, dtype=torch.float64)
    graph_lines = [line.name for line, _ in found.lines]
    assert len(set(graph_lines)) == len(graph_lines) > 5
    widths = [interval.bits for _, interval in found.lines if not interval.signed]
    assert all(1 <= width <= 40 for width in widths)


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


def test_what_saturates_at_once_may_be_too_large_before() -> None:
    class Clamped(snn.Neuron):
        states = ("total",)

        @staticmethod
        def step(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            total = (total + x).clamp(-(2.0**23), 2.0**23)
            return total, total

    assert integers.prove(Clamped(1), {"x": Interval(-(2**24), 2**24)}).exact


@pytest.mark.parametrize(
    ("factor", "exact"), [(0.5, True), (0.9, False), (0.75, True), (2.0**-40, False)]
)
def test_floor_of_a_product_is_exact_where_the_product_is(factor: float, exact: bool) -> None:
    class Scaled(snn.Neuron):
        states = ("held",)

        @staticmethod
        def step(x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
            return torch.floor((x + 1) * factor + 1), x

    assert integers.prove(Scaled(1), {"x": Interval(0, 1000)}).exact is exact


def test_a_sign_survives_a_rounding_and_a_size_does_not() -> None:
    class Compared(snn.Neuron):
        states = ("held",)

        @staticmethod
        def step(x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
            return ((x - 3) * 0.1 > held).to(x.dtype), held

    assert integers.prove(Compared(1), {"x": Interval(0, 9)}).exact

    class Shifted(Compared):
        @staticmethod
        def step(x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
            return ((x - 3) * 0.1 > 0.3).to(x.dtype), held

    assert not integers.prove(Shifted(1), {"x": Interval(0, 9)}).exact


def test_functions_have_no_rule() -> None:
    class Curved(snn.Neuron):
        states = ("held",)

        @staticmethod
        def step(x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
            return torch.exp(x), held

    with pytest.raises(ValueError, match="exp has no rule of interval arithmetic"):
        integers.prove(Curved(1), {"x": Interval(0, 9)})

    class Mixed(Curved):
        @staticmethod
        def step(x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
            return x.flip(0), held

    with pytest.raises(ValueError, match=r"Mixed.*cannot be proved exact: its step uses"):
        integers.prove(Mixed(1), {"x": Interval(0, 9)})
    with pytest.raises(TypeError, match="layer must be a neuron layer with a step, got Sequential"):
        integers.prove(nn.Sequential(Mixed(1)), {"x": Interval(0, 9)})  # type: ignore[arg-type]


def test_no_width_holds_every_real_number() -> None:
    assert (Interval(0, 255).bits, Interval(-256, 0).bits, Interval(0, 0.75, -2).bits) == (9, 9, 3)
    for unbounded in (Interval(0, 1, float("-inf")), Interval(0, float("inf"))):
        with pytest.raises(ValueError, match="no width that holds every real number"):
            _ = unbounded.bits


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


WRONG: dict[str, tuple[nn.Module, float, str]] = {
    "a sum of products": (nn.Sequential(nn.Flatten(), linear([[2.0**20] * 40])), 1.0,
     r"^1 \(Linear\) can reach 41943040, and torch.float32 holds every integer up to 16777216"),
    "products that cancel": (nn.Sequential(linear([[2.0**20] * 20 + [-(2.0**20)] * 20])), 1.0,
     r"^0 \(Linear\) can reach 20971520"),
    "signs": (nn.Sequential(snn.connect(linear([[2.0**20] * 20 + [-(2.0**20)] * 20]),
     signs=torch.tensor([1] * 20 + [-1] * 20))), 1.0, r"^0 \(Linear\) can reach 20971520"),
    "a convolution": (nn.Sequential(nn.Unflatten(1, (1, 40)), whole_convolution()), 1.0,
     r"^1 \(Conv1d\) can reach 41943040"),
    "a weight": (nn.Sequential(nn.Flatten(), linear([[0.5] * 40])), 1.0,
     r"^1 \(Linear\) gets, holds or returns what is no integer"),
    "another module": (nn.Sequential(nn.AvgPool1d(3)), 1.0,
     r"^0 \(AvgPool1d\) has no rule of ranges.* sum where it averages"),
    "an input": (nn.Sequential(nn.Identity(), integers.LeakyIntegrator(40)), 2.0**24 * 5,
     r"^0 \(Identity\) can reach"),
    "a fraction": (integers.LeakyIntegrator(40), 0.5,
     r"^the model \(LeakyIntegrator\) gets x that is no integer. Scale and round"),
    "windows of fractions": (nn.Sequential(nn.Unflatten(1, (1, 40)), integers.SumPool1d(40),
     integers.LeakyIntegrator(1)), 0.5, r"^2 \(LeakyIntegrator\) gets x that is no integer"),
    "an end of a clip": (nn.Sequential(nn.Hardtanh(0, 2.5), integers.LeakyIntegrator(40)), 3.0,
     r"^1 \(LeakyIntegrator\) gets x that is no integer"),
    "a step": (nn.ModuleDict({"first": snn.LIF(40)})["first"], 1.0,
     r"^the model \(LIF\) is not exact in torch.float32 for inputs up to 1: in its step v"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_layer_that_leaves_the_exact_range_is_named(name: str) -> None:
    model, size, message = WRONG[name]
    x = size * torch.tensor([1.0, 0.0]).repeat(20) if "Pool" in message else torch.full((40,), size)
    with pytest.raises(ValueError, match=message):
        integers.check_exact(model, x.expand(3, 2, 40))


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


UNPROVED: dict[str, tuple[nn.Module, str]] = {
    "what has not fired": (nn.Sequential(
        linear([[1.0] * 40]), integers.LeakyIntegrator(1, pos_threshold=9),
        linear([[2.0**25]])), r"^2 \(Linear\) can reach 33554432"),
    "what is fed back": (snn.Recurrent(integers.LeakyIntegrator(40, pos_threshold=0),
     linear([[2.0**20] * 40] * 40)), r"^connection \(Linear\) can reach 41943040"),
    "what is fed back, added": (snn.Recurrent(integers.LeakyIntegrator(40, pos_threshold=0),
     linear([[2.0**24] + [0.0] * 39] * 40)), r"^the model \(Recurrent\) can reach 16777217"),
    "a forward of its own": (Doubled(40, 1, bias=False), r"Doubled\) has a forward of its own"),
    "methods of its own": (Driven(40), r"Driven\) has methods of its own .*, which is not proved"),
    "what grows forever": (nn.Sequential(Sum(40), linear([[0.0] * 39 + [1.0]])),
     r"^0 \(Sum\) is not exact"),
    "a function": (Between(torch.exp), r"^exp\(\) in the model's forward has no rule of ranges"),
    "a product of values": (Between(lambda x: x @ x.mT @ x), "has no rule of ranges"),
    "a module": (nn.Sequential(nn.GELU()), r"^0 \(GELU\) has no rule of ranges"),
    "a norm": (nn.Sequential(nn.LayerNorm(40)), r"^0 \(LayerNorm\) has no rule of ranges"),
    "a function that rounds": (Between(lambda x: x * 0.1),
     r"^last \(Linear\) gets, holds or returns what is no integer"),
    "a bias that adds up": (nn.Sequential(biased()), r"^0 \(Linear\) can reach 33554432"),
    "a shift": (nn.Sequential(shifted(12)), r"^0 \(Linear\) can reach 20480000"),
    "windows": (nn.Sequential(nn.Unflatten(1, (1, 40)), integers.SumPool1d(40),
     linear([[2.0**19]])), r"^2 \(Linear\) can reach 20971520"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNPROVED)
def test_what_no_sample_shows_is_refused(name: str) -> None:
    """Of a sample that is silent but for one value."""
    model, message = UNPROVED[name]
    x = torch.zeros(3, 2, 40)
    x[1, 0, 5] = 1
    with pytest.raises(ValueError, match=message):
        integers.check_exact(model, x)


def test_other_things_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected an nn.Module, got int"):
        integers.check_exact(3, torch.ones(1, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"integers in floats, got torch.int64: x.float\(\)"):
        integers.check_exact(nn.Identity(), torch.ones(1, 1, 1).long())

    class Noisy(snn.Neuron):
        inputs = ("x", "noise")
        states = ("mem",)

        def __init__(self) -> None:
            super().__init__(1)
            self.noise = snn.Noise(1, distribution="uniform", seed=0)

        @staticmethod
        def step(x: Tensor, noise: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
            return stochastically_rounded(x / 2, noise), mem

    with pytest.raises(ValueError, match="computes noise itself, which is not proved"):
        integers.check_exact(Noisy(), torch.ones(1, 1, 1))
    found = integers.prove(Noisy(), {"x": Interval(0, 9), "noise": Interval(0, 1, -24)})
    assert (found.exact, found.outputs["output"].bits) == (True, 4)
