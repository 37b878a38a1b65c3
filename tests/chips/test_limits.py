"""Limits of chips x ways to exceed them: refused for the true reason, or right on the chip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.chips.test_xylo import expected, simulated
from tests.networks import Net, Twice
from tests.quantize.networks import on_chip, spikes, widened
from tracetorch import integers, quantize, snn
from tracetorch.chips import xylo
from tracetorch.chips.limits import Population, populations
from tracetorch.chips.target import ChipTarget, IntegerNeuron, Stage, register


def linear(inputs: int, outputs: int, shift: int = 0, connected: Any = True) -> integers.Linear:
    made = integers.Linear(inputs, outputs, bias=False, shift=shift)
    made.weight.copy_(torch.ones(outputs, inputs) * connected)
    return made


def chain(
    inputs: int = 2,
    hidden: int = 3,
    outputs: int = 1,
    recurrent: integers.Linear | None = None,
    version: int = 2,
) -> nn.Sequential:
    """A model that fits Xylo as it is."""
    neuron: nn.Module = xylo.LIF(hidden, version=version)
    return nn.Sequential(
        *(
            linear(inputs, hidden),
            neuron if recurrent is None else snn.Recurrent(neuron, recurrent),
        ),
        *(xylo.StepDelay(hidden), linear(hidden, outputs)),
        xylo.LIF(outputs, max_spikes=1, version=version),
    )


def with_(path: str, value: Any, model: nn.Module | None = None) -> nn.Module:
    """A model of which an attribute or a tensor is another."""
    model = chain() if model is None else model
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    if name in module._buffers:
        module._buffers[name] = value
    else:
        setattr(module, name, value)
    return model


def one_to_all(size: int = 72) -> nn.Module:
    """Neuron 0 reaches all neurons of its layer, and all 8 outputs."""
    first = torch.arange(size) == 0
    model = chain(1, size, 8, recurrent=linear(size, size, connected=first))
    model.get_buffer("3.weight").mul_(first)
    return model


def hooked(path: str, kind: str) -> nn.Module:
    model = chain(recurrent=linear(3, 3))
    getattr(model.get_submodule(path), kind)(lambda *_: None)
    return model


def subclass(kind: type[nn.Module], *arguments: int, **options: Any) -> nn.Module:
    made: nn.Module = type("Own", (kind,), {})(*arguments, **options)
    return made


def charged() -> nn.Module:
    model = chain()
    model[1].state("mem", init=5.0)  # type: ignore[operator]
    return model


def put(place: int, module: nn.Module) -> nn.Module:
    model = chain()
    model[place] = module
    return model


ONES = torch.ones(3, 2)
NO_PLACE = "has no place on Xylo: its layers are"
# the way: a model, and why the chip has none such
XYLO: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shift of inputs": (lambda: with_("0.shift", 12), r"1 \(LIF\) has weights shifted by 12 bits"),
    "shift of recurrence": (lambda: chain(recurrent=linear(3, 3, shift=8)),
     r"1 \(Recurrent\) has weights shifted by 8 bits: Xylo shifts by 0 to 7"),
    "shift of outputs": (lambda: with_("3.shift", -1), r"4 \(LIF\) has weights shifted by -1 bits"),
    "weight": (lambda: with_("0.weight", 300 * ONES), r"1 \(LIF\) has a weight of 300: .*-128 to"),
    "weight of recurrence": (lambda: with_("1.connection.weight", torch.full((3, 3), -129),
     chain(recurrent=linear(3, 3))), r"1 \(Recurrent\) has a weight of -129"),
    "weight that is none": (lambda: with_("0.weight", 0.5 * ONES), "has a weight of 0.5: Xylo has"),
    "width": (lambda: put(0, integers.Linear(2, 3, bias=False, weight_bits=9)), "at most 8 bits"),
    "inputs": (lambda: chain(inputs=17), "does not fit Xylo 2: 17 inputs, Xylo 2 has 16"),
    "inputs, version 1": (lambda: chain(inputs=17, version=1), "does not fit Xylo 1: 17 inputs"),
    "outputs": (lambda: chain(outputs=9), "9 outputs, Xylo 2 has 8"),
    "hidden": (lambda: chain(1, 1001), r"fit Xylo 2: 1001 hidden neurons, Xylo 2 has 1000\.$"),
    "fan-out": (one_to_all,
     r"fit Xylo 2: 1\.neuron: 72 connections out of one, Xylo 2 has 64\.$"),
    **{f"{kind} of {path}": (partial(hooked, path, kind), f"{path} .* has a hook or a forward of")
       for kind in ("register_forward_hook", "register_forward_pre_hook")
       for path in ("0", "1", "1.neuron", "1.connection", "2", "4")},
    "a forward of its own": (lambda: with_("0.forward", lambda x: x), "0 .* has a hook or a forwa"),
    "another product": (lambda: put(0, subclass(integers.Linear, 2, 3, bias=False)),
     r"0 \(Own\) has no place"),
    "another neuron": (lambda: put(1, subclass(xylo.LIF, 3)), r"1 \(Own\) has no place on Xylo"),
    "another dimension": (lambda: put(1, xylo.LIF(3, dim=-2)), r"1 \(LIF\) has no place on Xylo"),
    "one layer": (lambda: chain()[:2], "the model has 1 layer of them"),
    "no delay": (lambda: nn.Sequential(*[*chain()][:2], *[*chain()][3:]),
     rf"2 \(Linear\) {NO_PLACE}"),
    "floats": (lambda: put(3, nn.Linear(3, 1)), rf"3 \(Linear\) {NO_PLACE}"),
    "another module": (lambda: put(2, nn.Flatten()), rf"2 \(Flatten\) {NO_PLACE}"),
    "a bias": (lambda: put(0, integers.Linear(2, 3)), rf"0 \(Linear\) {NO_PLACE}"),
    "neurons of floats": (lambda: put(1, snn.Recurrent(snn.LIF(3), nn.Linear(3, 3))),
     rf"1 \(Recurrent\) {NO_PLACE}"),
    "a border inside": (lambda: put(3, integers.Quantize(3.0)), rf"3 \(Quantize\) {NO_PLACE}"),
    "sizes": (lambda: put(1, xylo.LIF(4)), rf"1 \(LIF\) {NO_PLACE}"),
    "spikes of outputs": (lambda: put(4, xylo.LIF(1)), r"4 \(LIF\) fires up to 31 times"),
    "recurrent outputs": (lambda: put(4, snn.Recurrent(xylo.LIF(1, max_spikes=1), linear(1, 1))),
     "and these are not recurrent"),
    "spikes": (lambda: put(1, xylo.LIF(3, max_spikes=30)), r"1 \(LIF\) fires up to 30 times a st"),
    "versions": (lambda: put(1, xylo.LIF(3, version=1)), r"1 \(LIF\) is of version 1, the outputs"),
    "shifts between hidden neurons": (lambda: nn.Sequential(*[*chain()][:3], linear(3, 3, 1),
     snn.Recurrent(xylo.LIF(3), linear(3, 3, 2)), *[*chain()][2:]), "one shift for all"),
    "another start": (charged, r"1 \(LIF\) has no place on Xylo.* themselves and from zero"),
    "another order": (lambda: Twice(*chain(1)), "forward of Twice does not call its"),
    "a border of 8 bits": (lambda: nn.Sequential(integers.Quantize(1.0), *chain()),
     r"0 \(Quantize\) gives -128 to 127 spikes of a channel in a step, and Xylo takes and clips "),
    "a border that clips elsewhere": (lambda: nn.Sequential(nn.Hardtanh(0, 3), *chain()),
     r"gives 0 to 3 .* nn\.Hardtanh\(0, 15\)"),
    "a border of 31 spikes": (lambda: nn.Sequential(nn.Hardtanh(0, 31), *chain()), "gives 0 to 31"),
}  # fmt: skip


@pytest.mark.parametrize("way", XYLO)
def test_xylo_is_not_configured_beyond_its_limits(way: str) -> None:
    build, message = XYLO[way]
    with pytest.raises(ValueError, match=message):
        xylo.configuration(build())


@pytest.mark.parametrize(
    ("chip", "build", "message"),
    [
        (xylo.XYLO_3, lambda: chain(1, 129), r"128\.?; 129 hidden neurons before the outputs, Xy"),
        (xylo.XYLO_3, lambda: chain(outputs=33), "33 outputs, XyloAudio 3 has 32"),
        (xylo.XYLO_IMU, lambda: chain(outputs=17), "17 outputs, XyloIMU has 16"),
        (xylo.XYLO_IMU, lambda: chain(version=1), "of version 1, which XyloIMU does not have"),
        (xylo.XYLO_1, chain, "of version 2, which Xylo 1 does not have"),
    ],
)
def test_a_model_is_configured_for_a_chip_of_the_family(
    chip: tt.chips.Chip, build: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        xylo.configuration(build(), chip)
    assert xylo.configuration(one_to_all(), xylo.XYLO_3)["threshold"].shape == (72,)


def test_neurons_of_xylo_have_any_number_of_connections_into_them() -> None:
    """60 hidden neurons, all connected to each other, and 8 outputs: as the simulator has them."""
    generator = torch.Generator().manual_seed(0)
    model = chain(16, 60, 8, recurrent=linear(60, 60))
    for name, weight in model.named_buffers():
        if name.endswith("weight"):
            weight.copy_(torch.randint(-9, 14, weight.shape, generator=generator))
    x = (torch.rand(60, 2, 16, generator=generator) < 0.4).float()
    spikes = tt.unroll(model, x, from_rest=True)
    assert 0 < spikes.mean() < 1
    for run in (expected, simulated):
        wanted = run(xylo.configuration(model), x.long().numpy())
        assert np.array_equal(spikes.numpy(), wanted["output"])


def test_what_fits_xylo_exactly_is_configured() -> None:
    """All limits at their ends at once."""
    ring = (torch.arange(64) - torch.arange(64)[:, None]) % 64 < 8
    model = chain(8, 64, 8, recurrent=linear(64, 64, shift=7, connected=127 * ring))
    model.get_buffer("3.weight").mul_((torch.arange(64) - 8 * torch.arange(8)[:, None]) % 64 < 16)
    found = xylo.configuration(nn.Sequential(integers.Quantize(0.1, 4, False), *model))
    assert found["weights_rec"].max() == 127
    assert populations(model, torch.zeros(1, 8), (xylo.StepDelay,)) == [
        Population("", 8, 0, 64), Population("1.neuron", 64, 16, 8), Population("4", 8, 16, 0)
    ]  # fmt: skip


MORE = [pytest.param(version, (0, 1, 3), marks=pytest.mark.slow) for version in (1, 2)]


@pytest.mark.parametrize(("version", "seeds"), [(2, (3,)), *MORE])
def test_more_spikes_than_a_channel_takes_are_clipped_as_by_the_chip(
    version: int, seeds: tuple[int, ...]
) -> None:
    unlike, made = 0, []
    for seed in seeds:
        model, x, arguments = on_chip(f"Xylo {version}", seed)
        # scales that leave space for as many, so that no part of a sum saturates
        integer, _ = quantize.convert(quantize.prepare(model, 15 * x.clamp(max=1), **arguments))
        many = x * torch.randint(1, 30, x.shape, generator=torch.Generator().manual_seed(seed))
        assert many.max() > 15
        with torch.no_grad():
            found = tt.unroll(integer, many, from_rest=True)
            unlike += not torch.equal(tt.unroll(integer[1:], many, from_rest=True), found)
        made.append((xylo.configuration(integer), many, found))
    assert unlike  # without the border
    for run in (expected, simulated):
        for configuration, many, found in made:
            wanted = run(configuration, many.long().numpy())
            assert np.array_equal(found.numpy(), wanted["output"])


SMALL = tt.chips.Chip(
    name="Small", inputs=6, hidden=9, outputs=3, synapses=1, fan_in=4, fan_out=5, weight_bits=4,
    weight_exponent=(0, 7), state_bits=16, threshold_bits=15, decay_bits=12, input_spikes=10,
    hidden_spikes=1, output_spikes=1, has_bias=False,
)  # fmt: skip


@dataclass(frozen=True)
class SmallTarget(ChipTarget):
    """A chip with convolutions, pools, delays and branches, and few of everything."""

    without_delays = "no delays of synapses"

    def neuron(self, stage: Stage, unit: Tensor) -> IntegerNeuron:
        layer, kept = stage.layer, (4096 * stage.layer.beta.detach()).round()
        kind = partial(
            integers.LeakyIntegrator, layer.num_neurons, layer.dim, decay=integers.Multiplier(12)
        )
        learned = self.learned(stage, unit, 1 / unit, {"low": -9, "high": 9}, self.limit)
        return IntegerNeuron(kind, {"beta": kept}, learned, torch.ones(()), 1)

    def refuse_module(self, kind: type[nn.Module]) -> str | None:
        return None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tt.chips.Chip:
    monkeypatch.setattr("tracetorch.chips.target._TARGETS", {})
    register(SMALL, SmallTarget)
    return SMALL


def joined() -> nn.Module:
    """Two layers whose spikes, one of them delayed, are added before a third."""
    layers = {
        name: nn.Sequential(nn.Linear(3, outputs, bias=False), snn.LIF(outputs))
        for name, outputs in (("first", 3), ("second", 3), ("last", 2))
    }

    def forward(net: Any, x: Tensor) -> Any:
        x = net.first(x)
        return net.last(net.late(x) + net.second(x))

    return Net(forward, late=snn.Delay(3, max_delay=2, delay=1.0), **layers)


def convolved(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv1d(1, 2, 3, padding=1, bias=False), *between, snn.LIF(2, dim=-2)),
        *(nn.Flatten(), nn.Linear(2 * 4 // 2 ** bool(between), 1, bias=False), snn.LIF(1)),
    )


def fed_back(delays: bool = False) -> nn.Sequential:
    connection: nn.Module = nn.Linear(3, 3, bias=False)
    return nn.Sequential(
        nn.Linear(2, 3, bias=False), snn.Recurrent(snn.LIF(3), connection),
        *([snn.Delay(3, max_delay=2, delay=1.0)] * delays), nn.Linear(3, 3, bias=False), snn.LIF(3),
        nn.Linear(3, 2, bias=False), snn.LIF(2),
    )  # fmt: skip


MISFITS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "inputs": (lambda: nn.Sequential(nn.Linear(7, 1, bias=False), snn.LIF(1)), (7,),
     ("7 inputs, Small has 6", "1: 7 connections into a neuron, Small has 4")),
    "recurrence": (fed_back, (2,),
     ("1: 5 connections into a neuron, Small has 4", "1: 6 connections out of one, Small has 5")),
    "delays": (lambda: fed_back(True), (2,),
     ("1: 5 connections into a neuron, Small has 4", "1: 6 connections out of one, Small has 5")),
    "branches": (joined, (3,), ("last.1: 6 connections into a neuron, Small has 4",)),
    "places": (convolved, (1, 4),
     ("4: 8 connections into a neuron, Small has 4",)),
    "pools": (lambda: convolved(nn.MaxPool1d(2)), (1, 4),
     ("2: 5 connections into a neuron, Small has 4",)),
    "none": (lambda: nn.Sequential(nn.Linear(4, 5, bias=False), snn.LIF(5)), (4,),
     ("5 outputs, Small has 3",)),
}  # fmt: skip


@pytest.mark.parametrize("way", MISFITS)
def test_connections_are_counted_over_all_that_reaches_or_leaves(
    way: str, small: tt.chips.Chip
) -> None:
    torch.manual_seed(0)
    build, shape, wanted = MISFITS[way]
    model = build()
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):  # rounded to zero, they would be no connections
            nn.init.constant_(parameter, 0.5)
    prepared = quantize.prepare(model, spikes(9, 2, *shape), small, weight_bits=4)
    assert {*quantize.convert(prepared)[1].misfits} == {*wanted}


def test_a_registered_chip_has_the_widths_and_spikes_that_it_says(small: tt.chips.Chip) -> None:
    model, x = nn.Sequential(nn.Linear(3, 2, bias=False), snn.LIF(2)), spikes(9, 2, 3)
    with pytest.raises(ValueError, match="weight_bits must be 2 to 4, got 8"):
        quantize.prepare(model, x, small)
    biased = nn.Sequential(nn.Linear(3, 2), snn.LIF(2))
    with pytest.raises(ValueError, match="0: quantised models have no bias on Small"):
        quantize.prepare(biased, x, small, weight_bits=4)
    integer, _ = quantize.convert(quantize.prepare(widened(model), x, small, weight_bits=4))
    clipped, many = (10 * x.clone(), 10 * x + 9 * x)
    assert torch.equal(tt.unroll(integer, many), tt.unroll(integer, clipped, from_rest=True))
    real = quantize.prepare(model, torch.rand(9, 2, 3), small, weight_bits=4)
    border = real.get_submodule("input")
    assert isinstance(border, integers.Quantize)
    assert border.bits == 3  # of 0 to 10 those that a width has
    assert replace(small, name="Other") not in tt.chips.target._TARGETS
