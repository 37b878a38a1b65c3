"""A prepared network is the model that was given: nothing lost, nothing silently another."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.networks import Charged
from tests.quantize.networks import spikes, widened
from tracetorch import chips, quantize, snn


class Calls(nn.Module):
    """Modules by name, called in order, and what a function does in between."""

    def __init__(self, modules: dict[str, nn.Module], between: Any = None) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        for index, module in enumerate(self.children()):
            if self.between is not None:
                x = self.between(index, x)
            x = module(x)
        return x if self.between is None else self.between(len(self._modules), x)


def widths(*sizes: int) -> list[nn.Module]:
    """Linear layers and neurons in turn."""
    pairs = itertools.pairwise(sizes)
    return [module for a, b in pairs for module in (nn.Linear(a, b), snn.LIF(b))]


def nearly(model: nn.Module, x: Tensor, **arguments: Any) -> quantize.Prepared:
    """Prepare a model in many bits, and see that it fires nearly as the model does."""
    torch.manual_seed(0)
    prepared = quantize.prepare(widened(model), x, **arguments)
    integer, report = quantize.convert(prepared)
    with torch.no_grad():
        wanted = tt.unroll(model, x, from_rest=True)
        found = tt.unroll(prepared, x, from_rest=True)
        assert torch.equal(tt.unroll(integer, x), found)
    assert wanted.any()
    assert float((wanted != prepared.output_scale * found).double().mean()) < 0.02
    assert all(layer.output_error < 0.02 for layer in report.layers)
    return prepared


def test_names_are_kept_apart() -> None:
    a, b, c, d, e, f = widths(4, 6, 6, 5)
    outer = nn.Sequential(a, b)
    model = Calls({"b": outer, "b_0": c, "b_1": d, "b_0_": e, "b_2": f})
    prepared = nearly(model, spikes(20, 4, 4), weight_bits=12)
    labels = [(layer.label, layer.neurons_label) for layer in prepared.plan.layers]
    assert list(itertools.chain(*labels)) == ["b.0", "b.1", "b_0", "b_1", "b_0_", "b_2"]
    assert list(prepared._modules) == ["b_0__", "b_1_", "b_0", "b_1", "b_0_", "b_2"]


@pytest.mark.parametrize("name", ["input", "plan", "output_scale", "_get_name"])
def test_names_of_its_own_are_given_away_to_nobody(name: str) -> None:
    first, neurons = widths(4, 6)
    x = torch.rand(20, 4, 4)
    prepared = nearly(
        Calls({"lin": nn.Sequential(OrderedDict({name + "x": first})), "n": neurons}), x
    )
    assert list(prepared._modules) == ["input", f"lin_{name}x", "n"]
    if name != "_get_name":
        first, neurons = widths(4, 6)
        prepared = nearly(Calls({name: first, "n": neurons}), x, weight_bits=12)
        assert list(prepared._modules) == ["input", f"{name}_", "n"]


def test_a_step_later_has_a_name_of_its_own() -> None:
    a, b, c, d, e, f = widths(4, 6, 6, 5)
    model = Calls({"a": a, "b": b, "b_later": c, "d": d, "e": e, "f": f})
    prepared = quantize.prepare(model, spikes(9, 2, 4), chip=chips.xylo.XYLO_2)
    names = ["input", "a", "b", "b_later_", "b_later", "d", "d_later", "e", "f"]
    assert list(prepared._modules) == names


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", ["delay", "Xylo"])
def test_what_is_converted_is_at_rest(kind: str, graph: bool) -> None:
    torch.manual_seed(0)
    a, b, c, d = widths(6, 8, 2)
    delay = snn.Delay(8, max_delay=2, delay=torch.arange(8.0) % 3)
    model = widened(nn.Sequential(a, b, *[delay] * (kind == "delay"), c, d))
    x = spikes(12, 3, 6)
    chip = chips.xylo.XYLO_2 if kind == "Xylo" else None
    prepared = quantize.prepare(model, x, chip=chip)
    with torch.set_grad_enabled(graph):
        tt.unroll(prepared, x)
    integer, _ = quantize.convert(prepared)
    assert not any(value.any() for value in tt.get_states(integer).values() if value is not None)
    with torch.no_grad():
        found = tt.unroll(integer, x)
        assert found.any()
        assert torch.equal(found, tt.unroll(prepared, x, from_rest=True))


class Tenth(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * super().forward(x)


class Quarter(snn.Recurrent):
    def forward(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor:
        y: Tensor = 0.25 * super().forward(x)
        return y


class Small(nn.MaxPool1d):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = 0.4 * super().forward(x)
        return y


def hooked(module: nn.Module, path: str = "") -> nn.Module:
    """A module whose output a hook changes, or the output of one within it."""
    module.get_submodule(path).register_forward_hook(lambda module, args, output: 0.2 * output)
    return module


def in_place(index: int) -> Any:
    """Change what is given to a module of a number."""
    return lambda here, x: x.mul_(0.3) if here == index else x


def by_data(index: int, x: Tensor) -> Tensor:
    """Change an output in a way that PyTorch does not count."""
    if index == 1:
        x.data *= 0.3
    return x


def at_times() -> Any:
    """Change an output in every third call of what is called before each module."""
    calls = itertools.count()
    return lambda index, x: 0.3 * x if index == 1 and next(calls) % 3 == 2 else x


class Beside(nn.Module):
    """Call a module for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), snn.LIF(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        self.c(y)
        return y


class ByName(nn.Sequential):
    """Return what the last module gives in a dict."""

    def forward(self, x: Tensor) -> Any:
        return {"y": super().forward(x)}


def recurrent() -> nn.Module:
    return snn.Recurrent(snn.LIF(6), nn.Linear(6, 6))


def behind(module: nn.Module) -> Any:
    """Make a model that begins with a product of six outputs."""
    return lambda: nn.Sequential(nn.Linear(4, 6), module)


def calls(between: Any) -> Any:
    return lambda: Calls({"a": nn.Linear(4, 6), "b": snn.LIF(6)}, between)


# which hooks and forwards no graph tells of is tested with the reader of graphs
COMPUTES = r"mul_\(\) in the model's forward has no integer form between"
HIDDEN: dict[str, tuple[Any, str]] = {
    "hook": (behind(hooked(snn.LIF(6))), r"1 \(LIF\) has a hook"),
    "hook within": (behind(hooked(recurrent(), "connection")), r"1.connection \(Linear\) has a"),
    "weight norm": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 6)), snn.LIF(6)),
                    r"0 \(Linear\) has a hook .* remove_spectral_norm"),
    "in place": (calls(in_place(1)), COMPUTES),
    "at the end": (calls(in_place(2)), COMPUTES),
    "uncounted": (calls(by_data), r"set\(\) in the model's forward reads numbers of a value"),
    "at times": (calls(at_times()), "output over the sample is not that of its modules"),
    "unused": (Beside, "the modules of the model are no chain, nor branches of one whose outputs"),
    "a dict": (lambda: ByName(nn.Linear(4, 6), snn.LIF(6)), "the model returns a dict, and a quan"),
    "Recurrent": (behind(Quarter(snn.LIF(6), nn.Linear(6, 6))), r"1 \(Quarter\) is no snn.Rec"),
    "BatchNorm": (lambda: nn.Sequential(nn.Linear(4, 6), Tenth(6), snn.LIF(6)),
                  r"1 \(Tenth\) has no integer form"),
    "MaxPool": (lambda: nn.Sequential(nn.Linear(4, 6), Small(1), snn.LIF(6)),
                r"1 \(Small\) has no integer form"),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_model_computes_besides_is_refused(name: str) -> None:
    make, message = HIDDEN[name]
    torch.manual_seed(0)
    x = spikes(20, 3, 4)
    given = x.clone()
    with pytest.raises(ValueError, match=message):
        quantize.prepare(widened(make()), x)
    assert torch.equal(x, given)


def test_a_batch_norm_of_another_dimension_is_refused() -> None:
    norm = nn.BatchNorm1d(5)
    norm.running_var = torch.rand(5) * 4 + 0.2
    with pytest.raises(
        ValueError, match=r"1 \(BatchNorm1d\) normalises dimension 1 of \[3, 5, 5\]"
    ):
        quantize.prepare(nn.Sequential(nn.Linear(7, 5), norm, snn.LIF(5)), spikes(9, 3, 5, 7))


SPREAD = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.3])


@pytest.mark.parametrize("name", ["Linear", "Conv1d", "Recurrent"])
def test_units_are_those_of_neurons_in_another_dimension(name: str) -> None:
    torch.manual_seed(0)
    model, x = {
        "Linear": lambda: (nn.Sequential(nn.Linear(7, 5), snn.LIF(5, dim=-2)), spikes(20, 4, 5, 7)),
        "Conv1d": lambda: (nn.Sequential(nn.Conv1d(2, 5, 1), snn.LIF(5)), spikes(20, 4, 2, 5)),
        "Recurrent": lambda: (
            nn.Sequential(nn.Conv1d(2, 5, 1), snn.Recurrent(snn.LIF(5, dim=-2), nn.Linear(5, 5))),
            spikes(20, 4, 2, 5),
        ),
    }[name]()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= SPREAD.reshape(-1, *[1] * (weight.ndim - 1))
    prepared = nearly(model, x, weight_bits=12)
    assert prepared.plan.layers[0].unit.ndim == 0


def test_units_are_kept_for_each_channel_where_they_can_be() -> None:
    model = nn.Sequential(
        *(nn.Conv1d(2, 5, 3), snn.LIF(5, dim=1), nn.Conv1d(5, 4, 2), nn.Flatten(), snn.LIF(4)),
        *(nn.Linear(4, 3), snn.LIF(3)),
    )
    prepared = nearly(model, spikes(20, 4, 2, 4), weight_bits=12)
    assert [layer.unit.shape for layer in prepared.plan.layers] == [(5,), (4,), (3,)]


def test_a_chip_refuses_decays_and_biases_of_another_dimension() -> None:
    x = spikes(9, 2, 5, 7)
    for bias, beta, message in (
        (False, torch.linspace(0.5, 0.9, 5), "1: decays that differ from neuron to neuron"),
        (True, 0.5, "0: its bias goes into the neurons"),
    ):
        neurons = snn.LIF(5, dim=-2, beta=beta, beta_ema=True)
        model = nn.Sequential(nn.Linear(7, 5, bias=bias), neurons, nn.Linear(5, 1), snn.LIF(1))
        with pytest.raises(ValueError, match=message):
            quantize.prepare(model, x, chip=chips.xylo.XYLO_2)


def test_sizes_of_spikes_that_stop_to_learn_are_reported() -> None:
    x = spikes(9, 2, 4)

    def differences(**arguments: Any) -> tuple[str, ...]:
        neurons = snn.BSRLIF(6, **arguments)
        model = nn.Sequential(nn.Linear(4, 6), neurons, nn.Linear(6, 2), snn.Readout(2))
        return quantize.convert(quantize.prepare(model, x))[1].differences

    assert differences(pos_scale=0.5, neg_scale=0.5) == (
        "1 (BSRLIF) has spikes of one size, 0.5: pos_scale and neg_scale will not learn",
    )
    assert differences(pos_scale=0.5, neg_scale=0.5, learn_pos_scale=False) == (
        "1 (BSRLIF) has spikes of one size, 0.5: neg_scale will not learn",
    )
    assert differences(pos_scale=0.5, neg_scale=1.0) == ()
    with pytest.raises(ValueError, match="1: quantised models have spikes of some size"):
        differences(pos_scale=0.0, neg_scale=0.0)


def test_parameters_of_two_modules_are_refused() -> None:
    a, b, c, d = widths(4, 4, 4)
    c.weight = a.weight
    with pytest.raises(ValueError, match=r"2.weight is 0.weight too, or shares memory"):
        quantize.prepare(nn.Sequential(a, b, c, d), spikes(9, 2, 4))


def flat(a: nn.Linear, c: nn.Linear) -> None:
    """Weights that are parts of one memory, and have nothing in common."""
    memory = torch.randn(2, 4, 4)
    a.weight, c.weight = nn.Parameter(memory[0]), nn.Parameter(memory[1])


def tied(a: nn.Linear, c: nn.Linear) -> None:
    c.weight = nn.Parameter(a.weight.data)


def transposed(a: nn.Linear, c: nn.Linear) -> None:
    c.weight = nn.Parameter(a.weight.data.t())


def one_row(a: nn.Linear, c: nn.Linear) -> None:
    c.bias = nn.Parameter(a.weight.data[2])


@pytest.mark.parametrize("share", [tied, transposed, one_row, flat])
def test_parameters_that_share_memory_are_refused(share: Any) -> None:
    a, b, c, d = widths(4, 4, 4)
    share(a, c)
    model, x = nn.Sequential(a, b, c, d), spikes(9, 2, 4)
    if share is flat:
        quantize.prepare(model, x)
        return
    there = r"2.bias" if share is one_row else r"2.weight"
    with pytest.raises(ValueError, match=f"{there} is 0.weight too, or shares memory"):
        quantize.prepare(model, x)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_short_sample_is_compared_when_its_spikes_arrive(steps: int) -> None:
    model = widened(nn.Sequential(*widths(4, 6, 5, 3)), 4.0)
    x = 9 * spikes(steps, 4, 4, share=0.9)
    _, report = quantize.convert(quantize.prepare(model, x, chip=chips.xylo.XYLO_2))
    errors = [layer.output_error for layer in report.layers]
    assert all(0 <= error < 1 for error in errors)


@pytest.mark.parametrize("convolution", [False, True])
def test_autocast_does_not_reach_the_integers(convolution: bool) -> None:
    torch.manual_seed(0)
    first: list[nn.Module] = [nn.Linear(60, 8)]
    x = torch.rand(12, 3, 60)
    if convolution:
        first = [nn.Conv1d(6, 8, 5), nn.AvgPool1d(2), nn.Flatten()]
        x = x.reshape(12, 3, 6, 10)
    width = 24 if convolution else 8
    model = nn.Sequential(
        *(*first, snn.Recurrent(snn.LIF(width), nn.Linear(width, width))),
        *(nn.Linear(width, 2), snn.Readout(2)),
    )
    prepared = quantize.prepare(widened(model), x)
    integer, _ = quantize.convert(prepared)
    with torch.no_grad():
        wanted = tt.unroll(integer, x, from_rest=True)
        assert wanted.any()
        with torch.autocast("cpu", torch.bfloat16):
            for quantised in (prepared, integer):
                assert torch.equal(tt.unroll(quantised, x, from_rest=True), wanted)
    with pytest.raises(TypeError, match="expected an input of float32 or float64, got"):
        integer[-2](torch.ones(1, width).bfloat16())


def plain() -> nn.Sequential:
    return nn.Sequential(*widths(4, 6))


def of_nan(path: str) -> nn.Module:
    model = plain()
    model.get_parameter(path).data[0] = torch.nan
    return model


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1600, 8), snn.LIF(8), nn.Linear(8, 2), snn.Readout(2))


def charged() -> nn.Module:
    """Neurons that start from another state than zero."""
    model = plain()
    model[1].state("mem", init=0.5)  # type: ignore[operator]
    return model


def charged_from_zero() -> nn.Module:
    """Neurons that add to the declared state which they start from."""
    neuron = Charged(6)
    neuron.state("mem", init=0.0)
    return nn.Sequential(nn.Linear(4, 6), neuron)


WIDE: Any = {"weight_bits": 16, "state_bits": 24}
WRONG: list[tuple[Any, str]] = [
    (lambda x: quantize.prepare(plain().bfloat16(), x), "0.weight is torch.bfloat16"),
    (lambda x: quantize.prepare(plain(), x.half()), "sample is torch.float16"),
    (lambda x: quantize.prepare(plain(), x * torch.nan), "sample has values that are not finite"),
    (lambda x: quantize.prepare(of_nan("0.weight"), x), "0.weight has values that are not finite"),
    (lambda x: quantize.prepare(of_nan("1.raw_beta"), x), "1.raw_beta has values that are not"),
    (lambda x: quantize.prepare(charged(), x),
     r"1 \(LIF\) starts from states other than zero, and an"),
    (lambda x: quantize.prepare(nn.Sequential(nn.Linear(4, 6), Charged(6)), x),
     r"1 \(Charged\) has methods of its own, and no integer form"),
    (lambda x: quantize.prepare(charged_from_zero(), x),
     r"1 \(Charged\) has methods of its own, and no integer form"),
    (lambda x: quantize.prepare(nn.Linear(4, 3), x, chip=chips.xylo.XYLO_2),
     "^the model: quantised models have neurons that spike"),
    (lambda x: quantize.prepare(wide(), torch.rand(10, 4, 1600), **WIDE),
     r"0 \(Linear\) can reach \d+, and torch.float32 holds"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_what_has_no_integers_is_refused_at_once(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(spikes(9, 2, 4))
