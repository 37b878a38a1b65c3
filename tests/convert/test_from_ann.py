"""Conversion: certificates hold on random networks and on those made to break them."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.convert.networks import Residual, early_and_late, eighths, fill, network
from tracetorch import snn
from tracetorch.convert import IntegrateAndFire, QuantizedReLU, from_ann

SEEDS = st.integers(0, 10_000)


def sizes(model: nn.Module) -> list[int]:
    """Return the numbers of parameters of all modules, to see that nothing has changed."""
    return [sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()]


# Equality of a first layer


@settings(max_examples=20)
@given(seed=SEEDS, steps=st.sampled_from([1, 2, 4, 8]), burst=st.sampled_from([1, 2, 4]))
def test_a_first_layer_of_as_many_levels_as_spikes_is_equal(
    seed: int, steps: int, burst: int
) -> None:
    """Weights are multiples of 1/8, and all else powers of two: no sum is rounded."""
    model, draw = network(seed, partial(QuantizedReLU, steps * burst, 1.0))
    x = draw(4)
    first = from_ann(model, x, steps, burst=burst).report.layers[0]
    assert first.largest == 0.0 < first.bound


def test_unequal_times_of_spikes_are_within_the_bound() -> None:
    model, x = early_and_late()
    _, report = from_ann(model, x, 4)
    first, second, _ = report.layers
    assert first.largest == 0.0
    assert second.largest == 0.25  # a spike that nothing takes back
    assert second.largest <= second.bound == pytest.approx((0.5 + 2 * 0.5) / 4 + 3 / 8)


# Bounds


@settings(max_examples=20)
@given(
    seed=SEEDS,
    steps=st.sampled_from([1, 2, 5, 16]),
    burst=st.sampled_from([1, 3]),
)
@example(seed=3, steps=1, burst=1)
def test_bounds_hold_for_every_input_of_clipped_networks(seed: int, steps: int, burst: int) -> None:
    model, draw = network(seed, partial(nn.Hardtanh, 0.0, 0.75))
    bounds = [layer.bound for layer in from_ann(model, draw(1), steps, burst=burst).report.layers]
    model = nn.Sequential(model)  # a container more changes nothing
    report = from_ann(model, draw(16), steps, burst=burst).report
    for layer, bound in zip(report.layers, bounds, strict=True):
        assert layer.bound == pytest.approx(bound)
        assert layer.largest <= bound * (1 + 1e-9) + 1e-9
        assert layer.mean <= layer.largest


@settings(max_examples=20)
@given(
    seed=SEEDS,
    steps=st.integers(1, 9),
    percentile=st.sampled_from([50, 99.0, 100]),
    thresholds=st.sampled_from(["channel", "layer"]),
    burst=st.sampled_from([1, 3]),
)
def test_bounds_hold_on_the_batch_of_unclipped_networks(
    seed: int, steps: int, percentile: float, thresholds: Any, burst: int
) -> None:
    """After every step, which the proof of the next layer's bound takes for granted, too."""
    model, draw = network(seed, nn.ReLU)
    x = draw(16)
    options: dict[str, Any] = {"thresholds": thresholds, "burst": burst}
    spiking, report = from_ann(model, x, steps, percentile=percentile, **options)
    for layer in report.layers:
        assert layer.largest <= layer.bound * (1 + 1e-9) + 1e-9
    if percentile == 100:  # nothing is clipped: the bound is that of the sums
        with torch.no_grad():
            sums = tt.unroll(spiking, x, steps=steps, from_rest=True).cumsum(0)
            wanted = copy.deepcopy(model).eval()(x)
        count = torch.arange(1, steps + 1).double().view(-1, *[1] * wanted.ndim)
        assert ((sums - count * wanted).abs() <= report.layers[-1].bound * steps + 1e-9).all()


@settings(max_examples=20)
@given(
    seed=SEEDS,
    levels=st.sampled_from([2, 3, 8]),
    steps=st.integers(1, 12),
    burst=st.sampled_from([1, 2]),
)
def test_bounds_hold_of_quantised_networks(seed: int, levels: int, steps: int, burst: int) -> None:
    model, draw = network(seed, partial(QuantizedReLU, levels, 1.0))
    report = from_ann(model, draw(16), steps, burst=burst).report
    for layer in report.layers:
        assert layer.largest <= layer.bound * (1 + 1e-9) + 1e-9


@settings(max_examples=10)
@given(seed=SEEDS, burst=st.sampled_from([1, 2]))
def test_sums_stay_within_the_bound_after_every_step(seed: int, burst: int) -> None:
    """That is what the proof of the next layer's bound takes for granted."""
    model, draw = network(seed, partial(nn.Hardtanh, 0.0, 1.0))
    x, steps = draw(5), 12
    spiking, report = from_ann(model, x, steps, burst=burst)
    with torch.no_grad():
        sums = tt.unroll(spiking, x, steps=steps, from_rest=True).cumsum(0)
        wanted = copy.deepcopy(model).eval()(x)
    count = torch.arange(1, steps + 1).double().view(-1, *[1] * wanted.ndim)
    assert ((sums - count * wanted).abs() <= report.layers[-1].bound * steps + 1e-9).all()


def test_bound_is_that_of_the_formula() -> None:
    layers = [nn.Linear(2, 2), nn.ReLU6(), nn.Linear(2, 1), nn.ReLU6()]
    model: nn.Module = nn.Sequential(*layers).double()
    fill(model, "0.weight", [[1.0, -2.0], [3.0, 4.0]])
    fill(model, "2.weight", [[-1.0, 0.5]])
    _, report = from_ann(model, torch.rand(3, 2).double(), 24, burst=2)
    assert [layer.threshold for layer in report.layers[:2]] == [3.0, 3.0]
    assert [layer.bound for layer in report.layers] == [1.5 / 24, 3.75 / 24, 3.75 / 24]
    # of no input is a rate further off than the clip, nor than the largest activation on the batch
    model = nn.Sequential(*layers, nn.Linear(1, 1), QuantizedReLU(2, 0.5)).double()
    fill(model, "4.weight", 1.0)
    _, report = from_ann(model, torch.rand(3, 2).double(), 1)
    assert all(layer.bound <= layer.clip for layer in report.layers[:3])
    assert report.layers[2].bound == 0.5
    deep: Any = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(9, 9), nn.ReLU()))).double()
    fill(deep, "2.weight", [2.0] * 81)
    x = torch.rand(50, 9).double()
    _, report = from_ann(deep, x, 2, percentile=90)
    for place, layer in enumerate(report.layers[:-1]):
        largest = float(deep[: 2 * place + 2](x).max().detach())
        assert layer.largest <= layer.bound * (1 + 1e-9)
        assert layer.bound <= max(largest, layer.clip)
    model = nn.Sequential(*layers)
    _, report = from_ann(model, torch.rand(3, 2).double(), 1)
    assert [layer.bound for layer in report.layers] == [3.0, 6.0, 6.0]


def test_differences_shrink_with_the_steps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    x = torch.rand(64, 8)
    off = [from_ann(model, x, steps, percentile=100).report.layers[-1] for steps in (4, 32, 256)]
    assert off[0].mean > 3 * off[1].mean > 9 * off[2].mean
    assert off[0].bound == pytest.approx(8 * off[1].bound)


# Thresholds


def test_threshold_is_a_percentile_of_the_activations() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    fill(model, "0.weight", 2.0)
    x = torch.arange(1.0, 101.0).unsqueeze(1)
    for percentile, clip in ((100, 200.0), (99, 198.0), (50.5, 102.0), (0.1, 2.0)):
        spiking, report = from_ann(model, x, 4, percentile=percentile)
        assert report.layers[0].clip == clip
        layer: Any = spiking.get_submodule("1")
        assert layer.pos_threshold.item() == clip
        assert layer.initial_mem.item() == clip / 2
    spiking, report = from_ann(model, x, 4, percentile=100, burst=4)
    assert (report.layers[0].clip, report.layers[0].threshold) == (200.0, 50.0)


def test_each_channel_has_a_threshold_of_its_own() -> None:
    """Spikes have the size of the threshold of their channel, and the bound is of each neuron."""
    model = nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU(), nn.Conv1d(3, 1, 1), nn.ReLU()).double()
    fill(model, "0.weight", [1.0, 4.0, -1.0])
    fill(model, "0.bias", [0.0, 0.0, 1e-9])
    fill(model, "2.weight", [1.0, -0.5, 2.0])
    fill(model, "2.bias", [2.0])
    x = torch.tensor([0.0, 0.25, 1.0, 0.75]).double().view(2, 1, 2).repeat(8, 1, 1)
    spiking, report = from_ann(model, x, 4, percentile=100)
    first, second, output = report.layers
    # the third channel is silent but for rounding, and gets what one threshold for all would be
    assert first.thresholds == (1.0, 4.0, 4.0)
    assert (first.threshold, first.clip) == (4.0, 4.0)
    neurons: Any = spiking.get_submodule("1")
    assert neurons.pos_threshold.tolist() == [1.0, 4.0, 4.0]
    assert neurons.initial_mem.tolist() == [0.5, 2.0, 2.0]
    outputs = tt.unroll(nn.Sequential(*list(spiking.children())[:2]), x, steps=4, from_rest=True)
    assert outputs[:, :, 0].unique().tolist() == [0.0, 1.0]
    assert outputs[:, :, 1].unique().tolist() == [0.0, 4.0]
    charge = 0.5 + 0.5 * 2 + 2 * 2  # |W| theta / 2
    assert first.bound == 2.0 / 4
    assert output.bound == second.bound == min((charge + second.threshold / 2) / 4, second.clip)
    assert "1 to 4" in str(report)
    one = from_ann(model, x, 4, percentile=100, thresholds="layer").report.layers[0]
    assert one.thresholds == (4.0,)
    # with a clip of its own a ReLU has one threshold
    clipped = nn.Sequential(nn.Linear(2, 3), nn.ReLU6(), nn.Linear(3, 2), QuantizedReLU(4, 1.0))
    report = from_ann(clipped, torch.rand(9, 2), 4).report
    assert [layer.thresholds for layer in report.layers] == [(6.0,), (1.0,), ()]


@pytest.mark.parametrize(
    ("batch", "places", "own"), [(1, 1, False), (31, 1, False), (32, 1, True), (1, 32, True)]
)
def test_channels_with_few_values_on_the_batch_have_the_threshold_of_the_layer(
    batch: int, places: int, own: bool
) -> None:
    torch.manual_seed(0)
    first = nn.Linear(4, 3) if places == 1 else nn.Conv1d(4, 3, 1)
    model = nn.Sequential(first, nn.ReLU())
    fill(model, "0.bias", [1.0, 2.0, 3.0])
    x = torch.rand(batch, 4) if places == 1 else torch.rand(batch, 4, places)
    by_channel = from_ann(model, x, 4).report.layers[0].thresholds
    by_layer = from_ann(model, x, 4, thresholds="layer").report.layers[0].thresholds
    assert len(by_layer) == 1
    assert (len(by_channel) == 3) is own
    assert max(by_channel) == by_layer[0]


def test_layer_that_is_silent_on_the_batch_stays_silent() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    fill(model, "0.bias", [-100.0] * 3)
    converted = from_ann(model, torch.rand(4, 2), 8)
    assert converted.report.layers[0].threshold == 1.0
    assert torch.allclose(converted(torch.rand(4, 2)), model.get_parameter("2.bias"))


def test_layer_of_which_few_are_active_has_a_clip_of_their_size() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    fill(model, "0.weight", 1e-3)
    fill(model, "0.bias", 0.0)
    x = torch.cat([-torch.ones(96), torch.arange(1.0, 5.0)]).unsqueeze(1)
    for percentile, clip in ((50, 2e-3), (99.9, 4e-3)):
        report = from_ann(model, x, 4, percentile=percentile).report
        assert report.layers[0].clip == pytest.approx(clip)


def test_a_learned_clip_gives_the_threshold() -> None:
    model = nn.Sequential(nn.Linear(2, 3), QuantizedReLU(4, 3.0))
    _, report = from_ann(model, torch.rand(4, 2), 8, burst=2)
    assert (report.layers[0].clip, report.layers[0].threshold) == (3.0, 1.5)


# Models


class Functional(nn.Module):
    """Modules and functions in every form that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.between = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(12, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        y = self.second(x)
        y += x
        y = self.between(y)  # behind a sum: a product of its own
        y = F.relu6(F.avg_pool2d(y, 2))
        y = torch.max_pool2d(y, 2) if False else F.max_pool2d(y, 2)
        y = y.view(y.size(0), -1).view(-1, 12)
        y = self.hidden(F.dropout(y, 0.5, self.training)).clamp(min=0)
        return self.last(torch.clamp(y, 0, 4).relu())


def test_modules_and_functions_are_read_in_every_form() -> None:
    torch.manual_seed(0)
    model = Functional()
    for _ in range(3):  # statistics of the norms
        model(torch.rand(16, 1, 8, 8))
    x = torch.rand(8, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    spiking, report = from_ann(model, x, 64, percentile=100)
    assert model.training
    assert spiking.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Dropout) for m in spiking.modules())
    assert [layer.path for layer in report.layers] == [
        *("relu", "relu6", "clamp", "clamp_1", "relu_1", "output")
    ]
    for layer in report.layers:
        assert layer.largest <= layer.bound * (1 + 1e-5) + 1e-5
    assert report.layers[-1].mean < 0.02


def test_mean_over_places_and_norms_without_a_product() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)
            self.flat, self.last = nn.BatchNorm1d(3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(self.norm(x))).mean((2, 3))
            return self.last(self.flat(x))

    torch.manual_seed(0)
    model = Pooled()
    model(torch.rand(32, 2, 4, 4))
    _, report = from_ann(model, torch.rand(8, 2, 4, 4), 128, percentile=100)
    assert report.layers[-1].mean < 0.02


def test_norm_is_not_folded_into_a_product_that_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product, self.norm, self.drop = nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            y = self.product(x)
            return torch.relu(self.norm(self.drop(y)) + y)

    torch.manual_seed(0)
    model = Twice()
    model(torch.rand(32, 2))
    _, report = from_ann(model, torch.rand(8, 2), 128, percentile=100)
    assert report.layers[-1].mean < 0.02


def test_modules_that_are_called_twice_become_two() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product, self.relu = nn.Linear(3, 3), QuantizedReLU(4, 1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.product(self.relu(self.product(x))))

    torch.manual_seed(0)
    model, x = Shared(), torch.rand(5, 3)
    spiking, report = from_ann(model, x, 4)
    assert report.layers[0].largest <= 1e-6
    assert [layer.neurons for layer in report.layers] == ["relu", "relu_1", ""]
    assert sum(isinstance(m, IntegrateAndFire) for m in spiking.modules()) == 2


def test_parametrized_weights_become_plain_ones() -> None:
    torch.manual_seed(0)
    inner = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    model = nn.Sequential(inner, nn.ReLU(), nn.Linear(3, 2))
    x = torch.rand(9, 4)
    wanted = model(x)
    spiking, report = from_ann(model, x, 64, percentile=100)
    assert torch.equal(model(x), wanted)
    assert type(spiking.get_submodule("0")) is nn.Linear
    assert report.layers[-1].mean < 0.05


@pytest.mark.parametrize("seed", range(6))
def test_the_model_runs_by_layer_as_by_step(seed: int) -> None:
    model, draw = network(seed, partial(QuantizedReLU, 4, 1.0))
    x = draw(3)
    converted = from_ann(model, x, 4)
    sequence = x.expand(4, *x.shape)
    with torch.no_grad():
        by_layer = tt.unroll(converted.model, sequence, from_rest=True)
        by_step = tt.unroll(converted.model, sequence, by="step", from_rest=True)
        assert torch.equal(by_layer, by_step)
        assert torch.equal(converted(x), by_step.mean(0))


def test_it_copies_pickles_saves_and_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), Residual(2, nn.ReLU), nn.Flatten())
    x = torch.rand(4, 1, 5, 5)
    converted = from_ann(model, x, 6)
    wanted = converted(x)
    other = pickle.loads(pickle.dumps(copy.deepcopy(converted)))
    assert torch.equal(other(x), wanted)
    assert sizes(other.model) == sizes(converted.model)
    tt.save(converted.model, tmp_path / "snn.safetensors")
    for parameter in other.model.parameters():
        parameter.data.zero_()
    tt.load(tmp_path / "snn.safetensors", other.model)
    assert torch.equal(other(x), wanted)
    wanted.sum().backward()
    for parameter in converted.model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.slow
def test_chain_is_a_sequential_that_exports() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.rand(3, 4)
    spiking, _ = from_ann(model, x, 8)
    assert type(spiking) is nn.Sequential
    program = tt.export.step(spiking, x)
    states = tt.export.initial_states(program, 3)
    outputs = []
    for _ in range(8):
        output, states = program.module()(x, states)
        outputs.append(output)
    wanted = tt.unroll(spiking, x, steps=8, from_rest=True)
    assert torch.allclose(torch.stack(outputs), wanted, atol=1e-6)


def test_report_prints_a_table() -> None:
    model, x = early_and_late()
    text = str(from_ann(model, x, 4).report)
    lines = text.splitlines()
    assert lines[0].split() == [
        *("layer", "neurons", "threshold", "clip", "levels", "bound", "largest", "mean")
    ]
    assert lines[1].split() == ["1", "1", "1", "1", "4", "0.25", "0", "0"]
    assert lines[-1] == "4 steps"


# What is refused


class Forward(nn.Module):
    """A layer and a forward of the test's."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.one = nn.Linear(4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def _branches(m: Any, x: Tensor) -> Tensor:
    return torch.relu(m.layer(x)) if x.sum() > 0 else x


def _overwrites(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return m.relu(y) + y


def _adds_in_place(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.layer(x))
    z = m.layer(y)
    y += z
    return y + z.relu() + z


def _broadcasts(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x).relu()
    return y + m.one(y)


class Shifted(QuantizedReLU):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.3)


class Sixth(nn.ReLU6):
    """The same of a class of PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.3)


def _overwrites_by_two_names(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    same = F.dropout(y, training=False)  # the same tensor under another name
    return same.relu_() + y


REFUSED: list[tuple[str, nn.Module, str]] = [
    ("sigmoid", nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), r"1 \(Sigmoid\) cannot be converted"),
    ("leaky", nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU()), r"\(LeakyReLU\) cannot be converted"),
    ("norm", nn.Sequential(nn.LayerNorm(4), nn.ReLU()), r"0 \(LayerNorm\) cannot be converted"),
    ("batch", nn.Sequential(nn.Flatten(0)), r"0 \(Flatten\) cannot be converted"),
    ("indices", nn.Sequential(nn.MaxPool1d(2, return_indices=True)), r"\(MaxPool1d\) cannot be"),
    ("softmax", nn.Sequential(nn.ReLU(), nn.Softmax(-1)), r"1 \(Softmax\) cannot be converted"),
    ("hardtanh", nn.Sequential(nn.Linear(4, 4), nn.Hardtanh()), "must clip at 0"),
    ("no relu", nn.Linear(4, 4), "the model has no ReLU"),
    ("neurons", nn.Sequential(nn.Linear(4, 4), snn.LIF(4)), r"1 \(LIF\) cannot be converted"),
    ("statistics", nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False),
     nn.ReLU()), "has no running statistics"),
    ("scalar", Forward(lambda m, x: m.layer(x).relu() + 1.0),
     r"add\(\) in the model's forward cannot"),
    ("product", Forward(lambda m, x: m.layer(x).relu() * x), r"mul\(\) in the model's forward"),
    ("parameter", Forward(lambda m, x: x.relu() + m.layer.bias), "given 'layer.bias' by itself"),
    ("clamp", Forward(lambda m, x: m.layer(x).clamp(-1, 1)), "must clip at 0"),
    ("clamp none", Forward(lambda m, x: m.layer(x).clamp(0, -1)), "must clip at 0"),
    ("mean", Forward(lambda m, x: m.layer(x).relu().mean(1)), "takes the mean of all places"),
    ("several", Forward(lambda m, x: (x.relu(), x)), "must return one tensor"),
    ("branches", Forward(_branches), r"bool\(\) in the model's forward reads numb"),
    ("broadcast", Forward(_broadcasts), r"adds values of the shapes \[2, 4\] and \[2, 1\]"),
    ("cat of samples", Forward(lambda m, x: torch.cat([m.layer(x).relu(), x])),
     r"cat\(\) in .* cann"),
    ("constant", Forward(lambda m, x: torch.cat([x.relu(), torch.ones(2, 4)], 1)),
     r"cat\(\) in .* c"),
    ("one minus", Forward(lambda m, x: 1 - m.layer(x).relu()),
     r"rsub\(\) in .* cannot be converted"),
    ("over zero", Forward(lambda m, x: m.layer(x).relu() / 0),
     r"div\(\) in .* cannot be converted"),
    ("over", Forward(lambda m, x: 1 / m.layer(x).relu()), r"in .* cannot be converted"),
    ("from above", Forward(lambda m, x: m.layer(x).clamp(max=0.5)), "must clip at 0, and at a"),
    ("a ReLU from above", Forward(lambda m, x: m.layer(x).relu().clamp(max=0.5)), "must clip at 0"),
    ("clamp_max", Forward(lambda m, x: m.layer(x).relu().clamp_max(0.5)), r"clamp_max\(\) in .*"),
    ("batch mean", Forward(lambda m, x: x.mean(0, keepdim=True)), "the mean of all places"),
    ("halves", Forward(lambda m, x: m.layer(x).relu().view(-1, 2)), r"view\(\) in .* cannot be"),
    ("lazy", nn.Sequential(nn.LazyLinear(3), nn.ReLU()), r"0\.weight. has no values yet"),
    ("subclass", nn.Sequential(nn.Linear(4, 4), Shifted(4, 1.0)),
     r"in the forward of 1 \(Shifted\) cannot be"),
    ("six", nn.Sequential(nn.Linear(4, 4), Sixth()), r"1 \(Sixth\) cannot be converted"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "message"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED]
)
def test_what_cannot_be_converted_is_named(model: nn.Module, message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises((TypeError, ValueError), match=message):
        from_ann(model, torch.randn(5, 4), 4)


ARITHMETIC: dict[str, Callable[[Any, Tensor], Any]] = {
    "a - b": lambda m, x: m.layer(x).relu() - m.other(x).relu(),
    "a - input": lambda m, x: x - m.layer(x).relu(),
    "relu of a - b": lambda m, x: m.other((m.layer(x).relu() - m.other(x).relu()).relu()),
    "sub": lambda m, x: torch.sub(m.layer(x).relu(), m.other(x).relu(), alpha=2),
    "subtract": lambda m, x: torch.subtract(m.layer(x).relu(), other=x),
    "rsub": lambda m, x: torch.rsub(m.layer(x).relu(), x, alpha=0.5),
    "sub_": lambda m, x: m.layer(x).relu_().sub_(x),
    "add": lambda m, x: torch.add(m.layer(x).relu(), other=x, alpha=-3),
    "sum": lambda m, x: sum([m.layer(x).relu(), m.other(x).relu(), x]),
    "a - a": lambda m, x: (y := m.layer(x).relu()) - y,
    "-a": lambda m, x: m.other(-m.layer(x).relu()).relu(),
    "2 * a": lambda m, x: m.other(2 * m.layer(x).relu()).relu() * -0.5,
    "a / 3": lambda m, x: m.other(m.layer(x).relu() / 3).relu().div(-4),
    "cat": lambda m, x: torch.cat([m.layer(x).relu(), x], 1),
    "cat, dim=-1": lambda m, x: torch.cat((m.layer(x).relu(), m.other(x).relu()), dim=-1),
    "cat of one twice": lambda m, x: torch.concat(tensors=[y := m.layer(x).relu(), y], dim=1),
    "cat of cats": lambda m, x: torch.cat(
        [y := torch.cat([x.relu(), x], 1), y.relu(), x], 1
    ).relu(),
    "cat of differences": lambda m, x: torch.cat([m.layer(x).relu() - x, x - m.other(x).relu()], 1),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_sums_differences_and_cat_are_converted(name: str) -> None:
    torch.manual_seed(0)
    model, x = Forward(ARITHMETIC[name]).eval(), torch.randn(32, 4)
    wanted = model(x)
    for steps in (16, 1024):
        converted = from_ann(model, x, steps, percentile=100)
        off, bound = (converted(x) - wanted).abs().max(), converted.report.layers[-1].bound
        assert off <= bound + 1e-5
    assert bound < 0.02
    # what another batch gives is right too, where nothing is larger than on this one
    assert (converted(x[::2] / 2) - model(x[::2] / 2)).abs().max() < 0.02
    with torch.no_grad():
        by_layer = tt.unroll(converted.model, x, steps=5, from_rest=True)
        by_step = tt.unroll(converted.model, x, steps=5, by="step", from_rest=True)
        torch.testing.assert_close(by_layer, by_step)  # products of two shapes


CLIPS: dict[str, Callable[[Any, Tensor, float], Tensor]] = {
    "clamp": lambda m, x, c: m.layer(x).clamp(0, c),
    "clamp by name": lambda m, x, c: torch.clamp(m.layer(x), max=c, min=0.0),
    "clamp of tensors": lambda m, x, c: m.layer(x).clamp(torch.tensor(0.0), torch.tensor(c)),
    "clip_": lambda m, x, c: torch.clip_(m.layer(x), 0.0, c),
    "hardtanh": lambda m, x, c: F.hardtanh(m.layer(x), 0, c),
    "hardtanh by name": lambda m, x, c: F.hardtanh(
        m.layer(x), max_val=c, min_val=0.0, inplace=True
    ),
    "Hardtanh": lambda m, x, c: nn.Hardtanh(0, c)(m.layer(x)),
}


@pytest.mark.parametrize("clip", [1 / 3, 0.9, 1, 2.5, 1e-3])
@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_in_every_form(name: str, clip: float) -> None:
    torch.manual_seed(0)
    model, x = (
        Forward(lambda m, x: CLIPS[name](m, x, clip)).eval().requires_grad_(False),
        4 * torch.randn(64, 4),
    )
    converted = from_ann(model, x, 256)
    (layer, output) = converted.report.layers
    assert layer.clip == pytest.approx(clip)
    assert output.bound <= clip / 256
    assert (converted(x) - model(x)).abs().max() <= output.bound + 1e-6 * clip
    assert model(x).max() == pytest.approx(clip)
    # for every input, since it has a clip of its own
    assert (converted(9 * x) - model(9 * x)).abs().max() <= output.bound + 1e-6 * clip


@pytest.mark.parametrize("seed", range(4))
def test_cats_and_differences_of_quantised_relus_are_within_the_bound(seed: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 1)
            self.last = nn.Conv2d(5, 3, 3)
            self.relus = nn.ModuleList(QuantizedReLU(4, 1.0) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.relus[0](self.one(x)), self.relus[1](self.two(x))
            y = self.relus[2](self.last(torch.cat([a - b, x, 0.5 * b - a], 1)))
            return torch.cat([y.flatten(1), self.relus[3](a.flatten(1) - b.flatten(1))], -1)

    torch.manual_seed(seed)
    model, x = Net().double(), eighths(4, 1, 5, 5)
    for parameter in (p for name, p in model.named_parameters() if "relus" not in name):
        parameter.data = eighths(*parameter.shape)
    converted = from_ann(model, x, 4)
    assert (converted(x) - model(x)).abs().max() <= converted.report.layers[-1].bound
    other = pickle.loads(pickle.dumps(converted))
    assert torch.equal(other(x), converted(x))


@pytest.mark.parametrize("function", [_overwrites, _adds_in_place, _overwrites_by_two_names])
def test_what_is_written_in_place_is_read_as_it_is_computed(
    function: Callable[[Any, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model, x = Forward(function), torch.randn(5, 4)
    converted = from_ann(model, x, 256, percentile=100)
    bound = converted.report.layers[-1].bound
    assert bound < 0.1
    assert (converted(x) - model.eval()(x)).abs().max() <= bound + 1e-5


def test_hooks_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(ValueError, match=r"0 \(Linear\) has a hook"):
        from_ann(model, torch.rand(5, 4), 4)
    pruned = nn.Sequential(prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5), nn.ReLU())
    with pytest.raises(ValueError, match=r"0 \(Linear\) has a hook that computes its weight"):
        from_ann(pruned, torch.rand(5, 4), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"burst": 0}, "burst must be at least 1"),
        ({"thresholds": "neuron"}, "thresholds must be 'channel' or 'layer', got 'neuron'"),
        ({"percentile": 0}, r"percentile must lie in \(0, 100\]"),
        ({"percentile": 100.1}, r"percentile must lie in \(0, 100\]"),
        ({"percentile": math.nan}, r"percentile must lie in \(0, 100\]"),
        ({"percentile": "99"}, "percentile must be a number"),
        ({"batch": [1.0]}, "batch must be a tensor of float32 or float64"),
        ({"batch": torch.rand(5, 4).half()}, "batch must be a tensor of float32 or float64"),
        ({"batch": torch.rand(0, 4)}, "batch has no values"),
        (
            {"batch": torch.full((5, 4), torch.nan)},
            "batch has no values, or some that are not finite",
        ),
        ({"model": 3}, "expected an nn.Module"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises((TypeError, ValueError), match=message):
        from_ann(**{"model": model, "batch": torch.rand(5, 4), "steps": 4, **options})


def test_weights_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    fill(model, "0.weight", [torch.inf] * 16)
    with pytest.raises(ValueError, match=r"0\.weight has no values, or some that are not"):
        from_ann(model, eighths(5, 4).float(), 4)
