"""What has no integer form is refused, by name and at once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.networks import Charged, Net, Residual
from tests.quantize.networks import spikes, widened
from tests.refusals import check, refusals, unchanged
from tracetorch import quantize, snn
from tracetorch.chips.xylo import XYLO_1, XYLO_2

X, NARROW = spikes(9, 3, 4), spikes(4, 2, 2)
LIF, SHARED = snn.LIF(6), snn.LIF(2)
XYLO_3 = tt.chips.Chip(**{**vars(XYLO_2), "name": "Another"})
NAMES = {"tt": tt, "Added": Residual, "Charged": Charged, "XYLO_1": XYLO_1}
WIDE: Any = {"weight_bits": 16, "state_bits": 24}


def first() -> nn.Linear:
    return nn.Linear(4, 6)


def refuse(*modules: nn.Module, x: Tensor = X, chip: Any = None, **options: Any) -> None:
    model = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    with unchanged(model):
        quantize.prepare(model, x, chip, **options)


def narrow(*modules: nn.Module, **options: Any) -> None:
    refuse(nn.Sequential(*modules), x=NARROW, **options)


def behind(*modules: nn.Module) -> None:
    refuse(first(), *modules)


def on_chip(neurons: Any, *out: nn.Module, x: Tensor = NARROW, chip: Any = XYLO_2) -> None:
    """Refuse a network that has what fits before it and behind."""
    out = out or (nn.Linear(3, 1), snn.LIF(1))
    refuse(nn.Linear(2, 3), neurons, *out, x=x, chip=chip)


class Tenth(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * super().forward(x)


class Quarter(snn.Recurrent):
    def forward(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor:
        y: Tensor = 0.25 * super().forward(x)
        return y


class Late(snn.DelayedLinear):
    """A subclass, whose forward may be any."""


def hooked(module: nn.Module, path: str = "") -> nn.Module:
    """A module whose output a hook changes, or the output of one within it."""
    module.get_submodule(path).register_forward_hook(lambda module, args, output: 0.2 * output)
    return module


def calls(between: Any) -> nn.Module:
    torch.manual_seed(0)
    return widened(
        Net(lambda net, x: between(2, net.b(between(1, net.a(x)))), a=nn.Linear(4, 6), b=snn.LIF(6))
    )


def in_place(index: int) -> Any:
    return lambda here, x: x.mul_(0.3) if here == index else x


def uncounted(index: int, x: Tensor) -> Tensor:
    """Change an output in a way that PyTorch does not count."""
    if index == 1:
        x.data *= 0.3
    return x


def at_times() -> Any:
    """Change an output in every third call of what is called before each module."""
    counted = itertools.count()
    return lambda index, x: 0.3 * x if index == 1 and next(counted) % 3 == 2 else x


def beside(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.b(net.a(x))
    net.c(y)
    return y


def by_name(net: Any, x: Tensor) -> Any:
    return {"y": net.b(net.a(x))}


def with_nan(path: str) -> nn.Module:
    model = nn.Sequential(first(), snn.LIF(6))
    model.get_parameter(path).data[0] = torch.nan
    return model


def starting(neuron: Any, init: float) -> nn.Module:
    neuron.state("mem", init=init)
    return nn.Sequential(first(), neuron)


def normed(layer: snn.DelayedLinear) -> nn.Module:
    nn.utils.parametrizations.weight_norm(layer.linear)
    return layer


def signed() -> Any:
    return snn.connect(nn.Linear(2, 2), signs=torch.tensor([1, -1]))


def turned() -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(2)
    nn.init.constant_(norm.weight, -1.0)
    return norm


def twice_parametrized() -> Any:
    layer = signed()
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


def late_norm() -> nn.Module:
    norm = nn.BatchNorm1d(5)
    norm.running_var = torch.rand(5) * 4 + 0.2
    return norm


def conv(size: int, **options: Any) -> None:
    refuse(nn.Conv1d(2, 3, size, **options), x=torch.rand(4, 2, 2, 5))


def spread_on_xylo(bias: bool, beta: Any) -> None:
    neurons = snn.LIF(5, dim=-2, beta=beta, beta_ema=True)
    layers = nn.Linear(7, 5, bias=bias), neurons, nn.Linear(5, 1), snn.LIF(1)
    quantize.prepare(nn.Sequential(*layers), spikes(9, 2, 5, 7), XYLO_2)


def sharing(share: Any) -> None:
    a, b, c, d = nn.Linear(4, 4), snn.LIF(4), nn.Linear(4, 4), snn.LIF(4)
    share(a, c)
    quantize.prepare(nn.Sequential(a, b, c, d), X)


def tied(a: Any, c: Any) -> None:
    c.weight = a.weight


def one_row(a: Any, c: Any) -> None:
    c.bias = nn.Parameter(a.weight.data[2])


def apart(a: Any, c: Any) -> None:
    """Weights that are parts of one memory, and have nothing in common."""
    memory = torch.randn(2, 4, 4)
    a.weight, c.weight = nn.Parameter(memory[0]), nn.Parameter(memory[1])


def test_parts_of_one_memory_that_have_nothing_in_common_are_prepared() -> None:
    sharing(apart)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@refusals(
    r"""
    refuse(first(), LIF, x=[X]) -> TypeError: sample must be a tensor of floats
    refuse(first(), LIF, x=X.long()) -> TypeError: got torch.int64: give torch.as_tensor
    refuse(first(), LIF, x=0 * X) -> ValueError: sample is zero everywhere, and the scales
    refuse(first(), LIF, x=X[..., :1]) -> ValueError: fails on a step .*, \[9, 3, 1\]
    refuse(first(), LIF, x=X.double()) -> ValueError: must have the same dtype
    refuse(first(), LIF, x=X.half()) -> ValueError: sample is torch.float16
    refuse(first(), LIF, x=X * torch.nan) -> ValueError: sample has values that are not finite
    refuse(first(), LIF, x=X[0]) -> ValueError: sample must be a sequence
    refuse(first(), LIF, chip="xylo") -> TypeError: chip must be a tt.chips.Chip or None
    refuse(first(), LIF, weight_bits=17) -> ValueError: weight_bits must be 2 to 16, got
    refuse(first(), LIF, state_bits=7) -> ValueError: state_bits must be 8 to 24, got 7
    quantize.prepare("LIF", X) -> TypeError: expected an nn.Module, got str
    quantize.convert(LIF) -> TypeError: what tt.quantize.prepare returned, got LIF
    quantize.convert(quantize.prepare(nn.Sequential(first(), snn.LIF(6)), X)[:1])
        -> TypeError: what tt.quantize.prepare returned, got Sequential
    conv(4, padding="same")
        -> ValueError: \(Conv1d\) pads one zero more at one end .*kernel of 4\).* a number as padd
    conv(3, padding=1, padding_mode="reflect")
        -> ValueError: padding_mode='reflect', and integers pad with zeros
    narrow(Added(nn.Linear(2, 2)), snn.LIF(2))
        -> ValueError: 0\.body \(Linear\) is added to another branch, and its values are too wide
    narrow(nn.Linear(2, 2), SHARED, nn.Linear(2, 2), SHARED)
        -> ValueError: is called twice in a step
    narrow(snn.LIF(2)) -> ValueError: 0 \(LIF\) has no product before it
    behind(nn.Linear(6, 2)) -> ValueError: 1 \(Linear\) follows a product or a readout
    behind(nn.ReLU()) -> ValueError: 1 \(ReLU\) has no integer form. What has one: Linear
    behind(tt.neurons.ALIF(6)) -> ValueError: 1 \(ALIF\) has no integer form
    narrow(nn.BatchNorm1d(2), nn.Linear(2, 2))
        -> ValueError: 0 \(BatchNorm1d\) is folded into the product right before it
    behind(nn.BatchNorm1d(6, track_running_stats=False))
        -> ValueError: no running statistics to fold
    refuse(nn.Linear(7, 5), late_norm(), snn.LIF(5), x=spikes(9, 3, 5, 7))
        -> ValueError: 1 \(BatchNorm1d\) normalises dimension 1 of \[3, 5, 5\]
    behind(snn.Delay(6, max_delay=3, sigma=0.5))
        -> ValueError: 1 \(Delay\) spreads its delays over several steps, sigma=0.5, .*or round_\(\)
    narrow(snn.DelayedLinear(2, 2, max_delay=3, sigma=2.0))
        -> ValueError: 0 \(DelayedLinear\) spreads its delays over several steps, sigma=2
    behind(snn.Recurrent(LIF, snn.DelayedLinear(6, 6, max_delay=1, sigma=1.0)))
        -> ValueError: \(DelayedLinear\) spr
    narrow(normed(snn.DelayedLinear(2, 2, max_delay=3)))
        -> ValueError: 0 \(DelayedLinear\) is parametrized
    narrow(Late(2, 2, max_delay=3)) -> ValueError: 0 \(Late\) has no integer form
    behind(snn.Recurrent(snn.Readout(6), nn.Linear(6, 6)))
        -> ValueError: 1 \(Recurrent\) feeds back the values of a readout
    behind(snn.Recurrent(LIF, nn.Tanh()))
        -> ValueError: 1 \(Recurrent\) has a connection that is no .*: connection \(Tanh\)
    narrow(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
        -> ValueError: 0 \(Linear\) is parametrized
    narrow(twice_parametrized()) -> ValueError: 0 \(Linear\) is parametrized
    narrow(signed(), turned(), snn.LIF(2))
        -> ValueError: 1 \(BatchNorm1d\) has a negative weight, which turns the signs around
    behind(snn.Readout(6, beta=0.99999))
        -> ValueError: 1: beta=0\.9999\d+ becomes 1 in integers of 12 bits.* below 0.999878
    refuse(nn.Dropout()) -> ValueError: no Linear or convolution
    behind(hooked(snn.LIF(6))) -> ValueError: 1 \(LIF\) has a hook
    behind(hooked(snn.Recurrent(snn.LIF(6), nn.Linear(6, 6)), "connection"))
        -> ValueError: 1.connection \(Linear\) has a
    refuse(nn.utils.spectral_norm(first()), LIF)
        -> ValueError: 0 \(Linear\) has a hook .* remove_spectral_norm
    refuse(calls(in_place(1))) -> ValueError: mul_\(\) in the model's forward has no integer form be
    refuse(calls(in_place(2))) -> ValueError: mul_\(\) in the model's forward has no integer form be
    refuse(calls(uncounted)) -> ValueError: set\(\) in the model's forward reads numbers of a value
    refuse(calls(at_times()), x=spikes(20, 3, 4))
        -> ValueError: output over the sample is not that of its modules
    refuse(Net(beside, a=first(), b=LIF, c=nn.Linear(6, 2)))
        -> ValueError: the modules of the model are no chain, nor branches of one whose outputs
    refuse(Net(by_name, a=first(), b=LIF))
        -> ValueError: the model returns a dict, and a quan
    behind(Quarter(snn.LIF(6), nn.Linear(6, 6))) -> ValueError: 1 \(Quarter\) is no snn.Rec
    behind(Tenth(6), LIF) -> ValueError: 1 \(Tenth\) has no integer form
    refuse(first().bfloat16(), LIF) -> ValueError: 0.weight is torch.bfloat16
    quantize.prepare(with_nan("0.weight"), X) -> ValueError: 0.weight has values that are not finite
    quantize.prepare(with_nan("1.raw_beta"), X) -> ValueError: 1.raw_beta has values that are not
    refuse(starting(snn.LIF(6), 0.5))
        -> ValueError: 1 \(LIF\) starts from states other than zero, and an
    behind(Charged(6)) -> ValueError: 1 \(Charged\) has methods of its own, and no integer form
    refuse(starting(Charged(6), 0.0))
        -> ValueError: 1 \(Charged\) has methods of its own, and no integer form
    behind(snn.BSRLIF(6, pos_scale=0.0, neg_scale=0.0))
        -> ValueError: 1: quantised models have spikes of some size
    refuse(nn.Linear(1600, 8), snn.LIF(8), nn.Linear(8, 2), x=torch.rand(10, 4, 1600), **WIDE)
        -> ValueError: 0 \(Linear\) can reach \d+, and torch.float32 holds
    sharing(tied) -> ValueError: 2.weight is 0.weight too, or shares memory
    sharing(one_row) -> ValueError: 2.bias is 0.weight too, or shares memory
    refuse(nn.Linear(4, 3), chip=XYLO_2) -> ValueError: ^the model: quantised models have neurons th
    on_chip(snn.LIF(3), nn.Linear(3, 1), snn.Readout(1))
        -> ValueError: 3: quantised models have neurons that spike: Xylo 2 returns spikes
    on_chip(snn.BLIF(3)) -> ValueError: 1: .* one sign and size
    on_chip(snn.RLIF(3)) -> ValueError: no recurrent trace on Xylo
    on_chip(snn.Recurrent(snn.LIF(3), nn.Linear(3, 3)))
        -> ValueError: no bias in the connection of a Recurrent
    on_chip(snn.LIF(3), chip=XYLO_1) -> ValueError: no bias on Xylo 1
    on_chip(snn.LeakyIntegrator(3, pos_threshold_setup={}, bias_setup={}))
        -> ValueError: one bias for a neuron on Xylo 2
    refuse(nn.Linear(4, 3), snn.LIF(3), chip=XYLO_2) -> ValueError: hidden and output
    on_chip(snn.LIF(3), snn.Delay(3, max_delay=1, delay=1.0), nn.Linear(3, 1), snn.LIF(1))
        -> ValueError: Linear and neurons alone
    on_chip(snn.LIF(3), snn.SEWBlock(nn.Sequential(nn.Linear(3, 3), snn.LIF(3))), nn.Linear(3, 1))
        -> ValueError: the model: .* Xylo, without .* branches
    on_chip(snn.LIF(3), nn.Linear(3, 1), snn.Recurrent(snn.LIF(1), nn.Linear(1, 1, False)))
        -> ValueError: among the outputs
    refuse(snn.DelayedLinear(4, 3, max_delay=2), snn.LIF(3), nn.Linear(3, 2), SHARED, chip=XYLO_2)
        -> ValueError: 0: quantised models have no delays on Xylo, which has none: Linear instead
    on_chip(snn.Recurrent(snn.LIF(3), snn.DelayedLinear(3, 3, False, max_delay=2)))
        -> ValueError: 1\.connection: quantised models have no delays on Xylo
    on_chip(snn.LIF(3), x=-NARROW) -> ValueError: inputs that are no spikes
    on_chip(snn.LIF(3), x=NARROW - 1) -> ValueError: Xylo 2 takes 0 to 15 of
    on_chip(snn.LIF(3), chip=XYLO_3)
        -> ValueError: one that tt.chips has, Xylo 1, Xylo 2, XyloAudio 3, XyloIMU, got Another
    refuse(first(), LIF, chip=XYLO_2, weight_bits=9)
        -> ValueError: weight_bits must be 2 to 8, got 9
    spread_on_xylo(False, torch.linspace(0.5, 0.9, 5))
        -> ValueError: 1: decays that differ from neuron to neuron
    spread_on_xylo(True, 0.5) -> ValueError: 0: its bias goes into the neurons
    tt.nir.to_nir(quantize.prepare(nn.Sequential(first(), snn.LIF(6)), X), (4,))
        -> ValueError: 0 .* has no counterpart in NIR
    """
)
def test_what_has_no_integers_is_refused(call: str, error: str) -> None:
    given = X.clone(), NARROW.clone()
    check(call, error, {**globals(), **NAMES})
    assert torch.equal(given[0], X)
    assert torch.equal(given[1], NARROW)
