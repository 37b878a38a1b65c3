"""Conversion: certificates hold on random networks and on those made to break them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import tracetorch as tt
from tests.cases import Net
from tests.convert.networks import Residual, eighths, fill, network
from tests.refusals import check, refusals
from tracetorch.convert import IntegrateAndFire, QuantizedReLU, from_ann

SEEDS = st.integers(0, 10_000)


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


def test_unequal_times_of_spikes_are_within_the_bound_that_the_report_prints() -> None:
    """Of rates of 1/2 one comes early and the other late: what both excite and inhibit fires."""
    first, second = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
    relus = QuantizedReLU(4, 1.0), QuantizedReLU(4, 1.0)
    model = nn.Sequential(first, relus[0], second, relus[1], nn.Linear(1, 1)).double()
    fill(model, "0.weight", [[0.5], [0.375]])
    fill(model, "2.weight", [[1.0, -1.0]])
    _, report = from_ann(model, torch.ones(1, 1).double(), 4)
    early, late, _ = report.layers
    assert early.largest == 0.0
    assert late.largest == 0.25  # a spike that nothing takes back
    assert late.largest <= late.bound == pytest.approx((0.5 + 2 * 0.5) / 4 + 3 / 8)
    title, line, *_, last = str(report).splitlines()
    assert title.split()[:6] == ["layer", "neurons", "threshold", "clip", "levels", "bound"]
    assert line.split() == ["1", "1", "1", "1", "4", "0.25", "0", "0"]
    assert last == "4 steps"


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


CLIPPED = [partial(nn.Hardtanh, 0.0, 0.75), *(partial(QuantizedReLU, n, 1.0) for n in (2, 3, 8))]


@settings(max_examples=50)
@given(
    seed=SEEDS,
    relu=st.sampled_from([nn.ReLU, *CLIPPED]),
    steps=st.integers(1, 12),
    percentile=st.sampled_from([50, 99.0, 100]),
    thresholds=st.sampled_from(["channel", "layer"]),
    burst=st.sampled_from([1, 2, 3]),
)
def test_bounds_hold_on_the_batch(
    seed: int, relu: Any, steps: int, percentile: float, thresholds: Any, burst: int
) -> None:
    """After every step, which the proof of the next layer's bound takes for granted, too."""
    model, draw = network(seed, relu)
    x = draw(16)
    options: dict[str, Any] = {"thresholds": thresholds, "burst": burst}
    spiking, report = from_ann(model, x, steps, percentile=percentile, **options)
    for layer in report.layers:
        assert layer.largest <= layer.bound * (1 + 1e-9) + 1e-9
    if relu is not nn.ReLU or percentile == 100:  # nothing is clipped: the bound is of the sums
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
    learned = nn.Sequential(nn.Linear(2, 3), QuantizedReLU(4, 3.0))
    _, report = from_ann(learned, torch.rand(4, 2), 8, burst=2)
    assert (report.layers[0].clip, report.layers[0].threshold) == (3.0, 1.5)


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
    ("first", "shape", "own"),
    [
        (nn.Linear(4, 3), (1, 4), False),
        (nn.Linear(4, 3), (31, 4), False),
        (nn.Linear(4, 3), (32, 4), True),
        (nn.Conv1d(4, 3, 1), (1, 4, 32), True),
    ],
)
def test_channels_with_few_values_have_the_threshold_of_the_layer(first, shape, own):
    model, x = nn.Sequential(first, nn.ReLU()), torch.rand(shape)
    fill(model, "0.bias", [1.0, 2.0, 3.0])
    by_channel = from_ann(model, x, 4).report.layers[0].thresholds
    by_layer = from_ann(model, x, 4, thresholds="layer").report.layers[0].thresholds
    assert len(by_layer) == 1
    assert (len(by_channel) == 3) is own
    assert max(by_channel) == by_layer[0]


def test_layers_that_are_silent_or_of_which_few_are_active() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    fill(model, "0.bias", [-100.0] * 3)
    converted = from_ann(model, torch.rand(4, 2), 8)
    assert converted.report.layers[0].threshold == 1.0
    assert torch.allclose(converted(torch.rand(4, 2)), model.get_parameter("2.bias"))
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    fill(model, "0.weight", 1e-3)
    fill(model, "0.bias", 0.0)
    x = torch.cat([-torch.ones(96), torch.arange(1.0, 5.0)]).unsqueeze(1)
    for percentile, clip in ((50, 2e-3), (99.9, 4e-3)):
        report = from_ann(model, x, 4, percentile=percentile).report
        assert report.layers[0].clip == pytest.approx(clip)


def functional(m: Any, x: Tensor) -> Tensor:
    """Compute with modules and functions in every form that is read."""
    x = m.relu(m.norm(m.conv(x)))
    y = m.second(x)
    y += x
    y = m.between(y)  # behind a sum: a product of its own
    y = F.max_pool2d(F.relu6(F.avg_pool2d(y, 2)), 2)
    y = y.view(y.size(0), -1).view(-1, 12)
    y = m.hidden(F.dropout(y, 0.5, m.training)).clamp(min=0)
    return m.last(torch.clamp(y, 0, 4).relu())


def test_modules_and_functions_are_read_in_every_form() -> None:
    torch.manual_seed(0)
    first = {"conv": nn.Conv2d(1, 3, 3, padding=1, bias=False), "norm": nn.BatchNorm2d(3)}
    second = {"second": nn.Conv2d(3, 3, 3, padding=1), "between": nn.BatchNorm2d(3)}
    parts: Any = {**first, **second, "hidden": nn.Linear(12, 5), "last": nn.Linear(5, 2)}
    model = Net(functional, relu=nn.ReLU(inplace=True), **parts)
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


FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a mean over places, and norms without a product": (
        lambda: Net(
            lambda m, x: m.last(m.flat(torch.relu(m.conv(m.norm(x))).mean((2, 3)))),
            norm=nn.BatchNorm2d(2),
            conv=nn.Conv2d(2, 3, 1),
            flat=nn.BatchNorm1d(3),
            last=nn.Linear(3, 2),
        ),
        (2, 4, 4),
    ),
    "a product that is used twice, and so keeps its norm": (
        lambda: Net(
            lambda m, x: torch.relu(m.norm(m.drop(y := m.product(x))) + y),
            product=nn.Linear(2, 3),
            norm=nn.BatchNorm1d(3),
            drop=nn.Dropout(),
        ),
        (2,),
    ),
    "a parametrized weight": (
        lambda: nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2)),
        (4,),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_norms_and_weights(name: str) -> None:
    torch.manual_seed(0)
    make, shape = FORMS[name]
    model = make()
    model(torch.rand(32, *shape))
    x = torch.rand(8, *shape)
    wanted = model.eval()(x)
    spiking, report = from_ann(model, x, 128, percentile=100)
    assert report.layers[-1].mean < 0.02
    assert torch.equal(model(x), wanted)
    assert not any("Parametrized" in type(m).__name__ for m in spiking.modules())


def test_modules_that_are_called_twice_become_two() -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"product": nn.Linear(3, 3), "relu": QuantizedReLU(4, 1.0)}
    model = Net(lambda m, x: m.relu(m.product(m.relu(m.product(x)))), **parts)
    spiking, report = from_ann(model, torch.rand(5, 3), 4)
    assert report.layers[0].largest <= 1e-6
    assert [layer.neurons for layer in report.layers] == ["relu", "relu_1", ""]
    assert sum(isinstance(m, IntegrateAndFire) for m in spiking.modules()) == 2


@pytest.mark.parametrize("seed", range(6))
def test_the_model_runs_by_layer_as_by_step(seed: int) -> None:
    model, draw = network(seed, partial(QuantizedReLU, 4, 1.0))
    x = draw(3)
    converted = from_ann(model, x, 4)
    with torch.no_grad():
        by_step = tt.unroll(converted.model, x, steps=4, by="step", from_rest=True)
        assert torch.equal(converted(x), by_step.mean(0))


def test_it_copies_pickles_and_learns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), Residual(2, nn.ReLU), nn.Flatten())
    x = torch.rand(4, 1, 5, 5)
    converted = from_ann(model, x, 6)
    wanted = converted(x)
    assert type(from_ann(model[:2], x, 6).model) is nn.Sequential  # of a chain
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(converted)))(x), wanted)
    wanted.sum().backward()
    for parameter in converted.model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def forward(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    """Make a model of layers and of a forward of the test's."""
    parts = {"layer": nn.Linear(4, 4), "other": nn.Linear(4, 4), "one": nn.Linear(4, 1)}
    return Net(function, **parts, relu=nn.ReLU(inplace=True))


def _overwrites(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return m.relu(y) + y


def _adds_in_place(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.layer(x))
    z = m.layer(y)
    y += z
    return y + z.relu() + z


def _broadcasts(m: Any, x: Tensor) -> Tensor:
    return (y := m.layer(x).relu()) + m.one(y)


def shifted(kind: Any, *args: Any) -> Any:
    """Make a module of a subclass that computes something else."""
    forward = {"forward": lambda s, x: kind.forward(s, x - 0.3)}
    return type("Shifted", (kind,), forward)(*args)


def _overwrites_by_two_names(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    same = F.dropout(y, training=False)  # the same tensor under another name
    return same.relu_() + y


def dense(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), *modules)


def hooked() -> nn.Module:
    model = dense(nn.ReLU())
    model.get_submodule("0").register_forward_hook(lambda module, args, output: output + 1)
    return model


def pruned() -> nn.Module:
    return nn.Sequential(prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5), nn.ReLU())


def infinite() -> nn.Module:
    model = dense(nn.ReLU())
    fill(model, "0.weight", [torch.inf] * 16)
    return model


@refusals(
    r"""
    dense(nn.Sigmoid()) -> 1 \(Sigmoid\) cannot be converted
    dense(shifted(QuantizedReLU, 4, 1.0)) -> in the forward of 1 \(Shifted\) cannot be
    dense(shifted(nn.ReLU6)) -> 1 \(Shifted\) cannot be converted
    dense(nn.Hardtanh()) -> must clip at 0
    dense() -> the model has no ReLU
    dense(nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()) -> has no running statistics
    nn.Sequential(nn.Flatten(0)) -> 0 \(Flatten\) cannot be converted
    nn.Sequential(nn.MaxPool1d(2, return_indices=True)) -> \(MaxPool1d\) cannot be
    nn.Sequential(nn.LazyLinear(3), nn.ReLU()) -> 0\.weight. has no values yet
    hooked() -> 0 \(Linear\) has a hook
    pruned() -> 0 \(Linear\) has a hook that computes its weight
    infinite() -> 0\.weight has no values, or some that are not
    forward(lambda m, x: m.layer(x).relu() + 1.0) -> add\(\) in the model's forward cannot
    forward(lambda m, x: m.layer(x).relu() * x) -> mul\(\) in the model's forward
    forward(lambda m, x: x.relu() + m.layer.bias) -> given 'layer.bias' by itself
    forward(lambda m, x: m.layer(x).clamp(0, -1)) -> must clip at 0
    forward(lambda m, x: m.layer(x).clamp(max=0.5)) -> must clip at 0, and at a
    forward(lambda m, x: m.layer(x).relu().clamp_max(0.5)) -> clamp_max\(\) in .*
    forward(lambda m, x: m.layer(x).relu().mean(1)) -> takes the mean of all places
    forward(lambda m, x: (x.relu(), x)) -> must return one tensor
    forward(lambda m, x: m.layer(x).relu() if x.sum() > 0 else x) -> bool\(\) in the .* reads numb
    forward(_broadcasts) -> adds values of the shapes \[2, 4\] and \[2, 1\]
    forward(lambda m, x: torch.cat([m.layer(x).relu(), x])) -> cat\(\) in .* cann
    forward(lambda m, x: torch.cat([x.relu(), torch.ones(2, 4)], 1)) -> cat\(\) in .* c
    forward(lambda m, x: 1 - m.layer(x).relu()) -> rsub\(\) in .* cannot be converted
    forward(lambda m, x: m.layer(x).relu() / 0) -> div\(\) in .* cannot be converted
    forward(lambda m, x: 1 / m.layer(x).relu()) -> in .* cannot be converted
    forward(lambda m, x: m.layer(x).relu().view(-1, 2)) -> view\(\) in .* cannot be
    """
)
def test_what_cannot_be_converted_is_named(call: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        from_ann(eval(call), torch.randn(5, 4), 4)


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


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_sums_differences_and_cat_are_converted(name: str) -> None:
    torch.manual_seed(0)
    model, x = forward(ARITHMETIC[name]).eval(), torch.randn(32, 4)
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
        forward(lambda m, x: CLIPS[name](m, x, clip)).eval().requires_grad_(False),
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


def joined(m: Any, x: Tensor) -> Tensor:
    a, b = m.relus[0](m.one(x)), m.relus[1](m.two(x))
    y = m.relus[2](m.last(torch.cat([a - b, x, 0.5 * b - a], 1)))
    return torch.cat([y.flatten(1), m.relus[3](a.flatten(1) - b.flatten(1))], -1)


@pytest.mark.parametrize("seed", range(4))
def test_cats_and_differences_of_quantised_relus_are_within_the_bound(seed: int) -> None:
    torch.manual_seed(seed)
    products = {"one": nn.Conv2d(1, 2, 3, padding=1), "two": nn.Conv2d(1, 2, 1)}
    relus = nn.ModuleList(QuantizedReLU(4, 1.0) for _ in range(4))
    model = Net(joined, **products, last=nn.Conv2d(5, 3, 3), relus=relus).double()
    x = eighths(4, 1, 5, 5)
    for parameter in (p for name, p in model.named_parameters() if "relus" not in name):
        parameter.data = eighths(*parameter.shape)
    converted = from_ann(model, x, 4)
    assert (converted(x) - model(x)).abs().max() <= converted.report.layers[-1].bound


@pytest.mark.parametrize("function", [_overwrites, _adds_in_place, _overwrites_by_two_names])
def test_what_is_written_in_place_is_read_as_it_is_computed(
    function: Callable[[Any, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model, x = forward(function), torch.randn(5, 4)
    converted = from_ann(model, x, 256, percentile=100)
    bound = converted.report.layers[-1].bound
    assert bound < 0.1
    assert (converted(x) - model.eval()(x)).abs().max() <= bound + 1e-5


X = torch.rand(5, 4)


@refusals(
    r"""
    steps=0 -> ValueError: steps must be at least 1
    burst=0 -> ValueError: burst must be at least 1
    thresholds="neuron" -> ValueError: thresholds must be 'channel' or 'layer', got 'neuron'
    percentile=0 -> ValueError: percentile must lie in \(0, 100\]
    percentile=100.1 -> ValueError: percentile must lie in \(0, 100\]
    percentile=float("nan") -> ValueError: percentile must lie in \(0, 100\]
    percentile="99" -> TypeError: percentile must be a number
    batch=[1.0] -> TypeError: batch must be a tensor of float32 or float64
    batch=X.half() -> TypeError: batch must be a tensor of float32 or float64
    batch=X[:0] -> ValueError: batch has no values
    batch=X / 0 -> ValueError: batch has no values, or some that are not finite
    model=3 -> TypeError: expected an nn.Module
    """
)
def test_arguments_are_checked(call: str, error: str) -> None:
    given = "model=dense(nn.ReLU()), batch=X, steps=4"
    check(f"from_ann(**{{**dict({given}), **dict({call})}})", error, globals())
