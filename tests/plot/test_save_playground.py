from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from tests.cases import LAYERS, NEURONS, READOUTS
from tests.networks import Charged, Doubled, Leaky, Twice
from tests.refusals import check, refusals, unchanged
from tracetorch import snn
from tracetorch.functional.surrogates import Surrogate
from tracetorch.plot.firing_lines import firing_lines, silent_step
from tracetorch.snn.neuron import spike_functions

NAMES = {"Doubled": Doubled, "Twice": Twice}


class Plain(snn.Neuron):
    states = ("mem",)

    def __init__(self, num_neurons: int, dim: int = -1, tau: float = 5.0) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", 1 - 1 / tau)
        self.threshold("base", 0.7)
        self.threshold("floor", 0.4, negative=True, spike="low")
        self.weight("gain", 1.5)
        self.option("shift", torch.tensor([0.25, 0.5]))

    @staticmethod
    def step(x: Tensor, mem: Any, *, beta: Any, base: Any, floor: Any, gain: Any, **o: Any) -> Any:
        mem = beta * mem + gain * x + o["shift"]
        fired = o["spike"](mem - base) - o["low"](floor - mem)
        return fired, mem - fired * base


class Misnamed(Plain):
    """Plain neuron whose arguments are called like parameters that they are not."""

    def __init__(self, num_neurons: int, beta: float = 5.0, base: float = 0.0) -> None:
        super().__init__(num_neurons, tau=beta)


@dataclass(frozen=True)
class cauchy(Surrogate):  # noqa: N801 (as the library's own)
    width: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        return 1 / (1 + (u / self.width) ** 2)


@dataclass(frozen=True)
class graded(cauchy):  # noqa: N801
    def __call__(self, u: Tensor) -> Tensor:
        return torch.relu(u)


class Functions(Plain):
    """Neuron that needs every function that could stand for the derivative of a spike."""

    @staticmethod
    def step(x: Tensor, mem: Any, **o: Any) -> Any:
        mem = torch.acosh(x) + torch.atanh(x) + torch.tan(x) + torch.log10(x) + torch.asinh(x)
        return o["spike"](mem + torch.acos(x)), mem


class Erf(Plain):
    @staticmethod
    def step(x: Tensor, mem: Any, **o: Any) -> Any:
        return torch.erf(x), mem


def page_of(layers: Any, tmp_path: Path, **options: Any) -> str:
    tt.plot.save_playground(layers, tmp_path / "page.html", **options)
    return (tmp_path / "page.html").read_text()


def neurons_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="playground">(.*?)</script>', page)
    assert found is not None
    neurons: list[dict[str, Any]] = json.loads(found[1])["neurons"]
    return neurons


def test_page_has_the_initial_states_of_one_neuron_and_a_readouts_membrane_once(tmp_path) -> None:
    layer = tt.neurons.Izhikevich(2, b=torch.tensor([0.2, 0.25]))
    (neuron,) = neurons_of(page_of(layer, tmp_path, neuron=1))
    assert neuron["states"] == ["v", "u"]
    assert neuron["start"] == [-65.0, -16.25]
    (neuron,) = neurons_of(page_of(tt.neurons.GLIF(2), tmp_path))
    assert neuron["start"] == [0.0, 0.0]
    kinds = {each["name"]: each["kind"] for each in neuron["params"]}
    assert (kinds["leak_gate"], kinds["beta"]) == ("fraction", "decay")
    assert neuron["call"]["name"] == "tt.neurons.GLIF"
    (neuron,) = neurons_of(page_of(snn.SRReadout(1), tmp_path))
    assert (neuron["shown"], neuron["output"]) == (["syn", "rec"], "output = mem")
    assert (neuron["choices"], neuron["spiking"]) == ([], False)


def test_unit_of_the_input_is_that_of_the_neuron(tmp_path: Path) -> None:
    for layer, neuron, unit in (
        (snn.LIF(2), 0, 1.0),
        (snn.SReadout(2), 0, 1.0),  # does not fire
        (snn.LIF(2, pos_threshold=torch.tensor([1.0, 40.0]), dim=-2), 1, 10.0),
        (snn.LIF(2, pos_threshold=1e9), 0, 1.0),  # never
        (tt.neurons.SEAdLIF(1), 0, 10.0),
        (tt.neurons.AdEx(1), 0, 100.0),
    ):
        layer(torch.ones(2, 2, 2) if layer.num_neurons == 2 else torch.ones(1, 1))
        with unchanged(layer):
            (found,) = neurons_of(page_of(layer, tmp_path, neuron=neuron))
        assert found["unit"] == unit, layer


def test_page_has_the_parameters_of_one_neuron(tmp_path: Path) -> None:
    layer = snn.BLIF(3, beta=torch.tensor([0.5, 0.6, 0.7]), pos_threshold=2.0, dim=-3)
    page = page_of(layer, tmp_path, neuron=1)
    assert page_of(layer, tmp_path, neuron=1) == page
    assert not re.search(r"https?://", page)
    (neuron,) = neurons_of(page)
    values = {each["name"]: (each["kind"], each["value"]) for each in neuron["params"]}
    assert values["beta"] == ("decay", 0.6)
    assert values["pos_threshold"] == ("positive", 2.0)
    assert values["neg_threshold"] == ("negative", -1.0)
    assert values["pos_scale"] == ("weight", 1.0)
    assert neuron["letters"] == {"S": False, "R": False, "B": True, "readout": False}
    made = {"name": "tt.snn.BLIF", "fixed": ["3", "dim=-3"], "alone": ["1"]}
    assert neuron["call"] == made
    assert neuron["about"]["equations"].startswith("mem = beta * mem + x\n")
    for reset in ("subtract:  mem = mem + n * neg_threshold", "zero:      mem = mem + n * mem"):
        assert f"\nreset {reset}\n" in neuron["about"]["equations"]
    assert ";" not in neuron["about"]["equations"]
    assert [each["name"] for each in neuron["choices"]] == ["reset", "detach_reset", "surrogate"]
    assert len(neuron["variants"]) == 3 * 2  # a surrogate has no loops of its own
    assert len(neuron["slopes"]) == 7


def test_own_neurons_have_all_their_parameters_and_no_arguments_that_are_none(tmp_path) -> None:
    (neuron,) = neurons_of(page_of(Plain(2), tmp_path, neuron=1))
    values = {each["name"]: each["value"] for each in neuron["params"]}
    assert values == {"beta": 0.8, "base": 0.7, "floor": -0.4, "gain": 1.5, "shift": 0.5}
    assert neuron["letters"] is None
    assert neuron["label"] == "Plain"
    assert neuron["shown"] == ["mem"]
    assert [each["name"] for each in neuron["choices"]] == ["surrogate"]
    assert not any(each["keyword"] for each in neuron["params"])
    (neuron,) = neurons_of(page_of(Misnamed(2, beta=8.0), tmp_path))
    assert not any(each["keyword"] for each in neuron["params"])


def test_surrogates_of_the_layer_stand_first(tmp_path: Path) -> None:
    layer = snn.LIF(1, surrogate_derivative=cauchy(0.5))
    (neuron,) = neurons_of(page_of(layer, tmp_path))
    surrogate = neuron["choices"][2]
    assert surrogate["labels"][surrogate["index"]] == "cauchy(width=0.5)"
    assert surrogate["keywords"][0] == {"surrogate_derivative": "cauchy(width=0.5)"}
    two = snn.BLIF(1, neg_surrogate_derivative=cauchy(0.5))
    (neuron,) = neurons_of(page_of(two, tmp_path))
    assert [each["name"] for each in neuron["choices"]] == ["reset", "detach_reset"]
    assert "neg_spike=cauchy(width=0.5)" in neuron["options"]
    # one with another forward is the layer's alone
    (neuron,) = neurons_of(page_of(snn.LIF(1, surrogate_derivative=graded()), tmp_path))
    assert [each["name"] for each in neuron["choices"]] == ["reset", "detach_reset"]
    assert "pos_spike=graded(width=1.0)" in neuron["options"]


class Random(Plain):
    @staticmethod
    def step(x: Tensor, mem: Any, **o: Any) -> Any:
        return torch.rand_like(x) * x, mem


class Method(Plain):
    def step(self, x: Tensor, mem: Any, **o: Any) -> Any:  # type: ignore[override]
        return x, mem


@refusals(
    r"""
    torch.nn.Linear(2, 2)
        -> TypeError: an nn.Sequential of nn.Linear and neurons, got 'Linear': Linear
    {"a": 3} -> TypeError: mapping from names to them, .* got 'a': int
    {} -> TypeError: layers must be an snn.Neuron, .* got 'layers': dict
    snn.LIF(2), neuron=2 -> ValueError: neuron of LIF\(2\) must lie in 0 to 1, got 2
    snn.LIF(2), title=3 -> TypeError: title must be a string, got int
    Random(2) -> ValueError: Random\(2\) cannot be compiled: .*rand_like
    Method(2) -> ValueError: cannot be compiled: its step is not a static method
    Erf(2) -> ValueError: its step uses erf, which JavaScript lacks
    Functions(2) -> ValueError: uses all of acosh, .*\. Write one of them by others
    snn.LIF(1, surrogate_derivative=torch.nn.Hardtanh())
        -> ValueError: reads pos_spike \(Hardtanh\)
    snn.LIF(2).to("meta") -> ValueError: 'raw_beta' has no values yet
    snn.Recurrent(snn.LIF(2), torch.nn.Linear(2, 2))
        -> ValueError: has no step.* Of a Recurrent show the neuron inside
    net() -> ValueError: the network has no neurons
    net(torch.nn.ReLU(), snn.LIF(4)) -> ValueError: 1 \(ReLU\) is none that a page
    net(snn.LIF(5)) -> ValueError: LIF\(5\).* 5 neurons
    shared() -> ValueError: 1 \(LIF\) shares '1.raw_beta' with '1.raw_beta'
    tied() -> ValueError: 3 \(Linear\) shares '3.weight' with '2.weight'
    not_finite() -> ValueError: not JSON compliant
    hooked() -> ValueError: 0 \(Linear\) has a hook or a forward of its own
    own_forward() -> ValueError: 0 \(Linear\) has a hook or a forward of its own
    Doubled(4) -> ValueError: Doubled\(4\) has a forward of its own, which a page
    charged() -> ValueError: has an initial_state of its own, which a page
    Twice(snn.LIF(2)) -> ValueError: 0 \(LIF\) shares '0.raw_beta' with '0.raw_
    net(snn.LIF(4, dim=-3)) -> ValueError: the input has no dim -3
    fits(snn.Delay(4, max_delay=2)) -> ValueError: 2 \(Delay\) is none that a page
    fits().to("meta") -> ValueError: '0.weight' has no values yet
    fits(), neuron=1 -> ValueError: neuron is for a single layer, got 1
    snn.LIF(4), data=(X, LABELS) -> ValueError: data are for a network, .*LIF
    fits(), data=X -> TypeError: must be a pair .* got 'data': Tensor
    fits(), data=(X[0], LABELS) -> ValueError: finite floats \[T, B, 3\], .* got
    fits(), data=(X, LABELS[1:]) -> ValueError: integers \[B\] from 0 to 3, .* got
    fits(), held_out=(X, LABELS) -> ValueError: held_out is measured beside data, got
    fits(), data=(X, LABELS), held_out=(X, LABELS + 3) -> ValueError: held_out 'data': x
    fits(), data=(X, LABELS), held_out={"b": (X, LABELS)}
        -> ValueError: held_out has 'b', and data have \['data'\]
    {"a": fits(), "b": net(snn.LIF(4), torch.nn.Linear(4, 2))}
        -> ValueError: network 'b' has 3 inputs and 2 outputs, and 'a' 3 and 4
    {"a": fits(), "b": snn.LIF(4)} -> TypeError: mapping from names to them, .* 'a': Seq
    """
)
def test_invalid_arguments_are_rejected(call: str, error: str, tmp_path: Path) -> None:
    def page(layers: Any, **options: Any) -> None:
        page_of(layers, tmp_path, **options)

    (tmp_path / "page.html").write_text("before")
    check(f"page({call})", error, {**globals(), **NAMES, "page": page})
    assert (tmp_path / "page.html").read_text() == "before"


def net(*layers: torch.nn.Module) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), *layers)


def own_forward() -> torch.nn.Sequential:
    model = net(snn.LIF(4))
    model[0].forward = torch.relu
    return model


def charged() -> snn.Neuron:
    layer = Charged(4)
    layer.state("mem", init=0.0)
    return layer


def hooked() -> torch.nn.Sequential:
    model = net(snn.LIF(4))
    model[0].register_forward_hook(lambda module, given, output: 2 * output)
    return model


def shared() -> torch.nn.Sequential:
    layer = snn.LIF(4)
    return net(layer, torch.nn.Linear(4, 4), layer)


def tied() -> torch.nn.Sequential:
    model = net(snn.LIF(4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[3].weight = model[2].weight
    return model


def not_finite() -> torch.nn.Sequential:
    model = net(snn.LIF(4))
    model.get_parameter("1.raw_beta").data[2] = torch.nan
    return model


X, LABELS = torch.zeros(5, 6, 3), torch.arange(6) % 2


def fits(*more: torch.nn.Module) -> torch.nn.Sequential:
    return net(snn.LIF(4), *more)


def test_data_are_pairs_of_any_kind_in_the_shortest_form(tmp_path) -> None:
    model, noise = net(snn.LIF(4)), torch.rand(5, 6, 3)
    pair = page_of(model, tmp_path, data=(noise, LABELS))
    assert pair == page_of(model, tmp_path, data=[noise, LABELS])
    times = torch.tensor([[1, 4, 2], [0, 3, 3]])  # [B, F]
    x = torch.nn.functional.one_hot(times, 5).permute(2, 0, 1).float()
    sets = {"currents": torch.full((5, 2, 3), 0.5), "spikes": x, "sequences": 2 * x}
    data = {name: (each, LABELS[:2]) for name, each in sets.items()}
    page = page_of(net(snn.LIF(4)), tmp_path, data=data)
    found = re.search(r'<script type="application/json" id="network">(.*?)</script>', page)
    assert found is not None
    currents, spikes, sequences = json.loads(found[1])["sets"]
    assert (currents["form"], currents["numbers"]) == ("values", [0.5] * 6)
    assert (spikes["form"], spikes["numbers"]) == ("times", times.flatten().tolist())
    assert sequences["form"] == "sequences"
    assert sequences["numbers"][:5] == [0, 2, 0, 0, 0]


# how many, where it is not one
COUNTS = dict.fromkeys(READOUTS, 0) | {"SigmaDelta": 0, "MultiLevelLIF": 4}
COUNTS |= {name: 2 for name in LAYERS if name.startswith("B")}
# of which state, where it is not the first
STATES = {"RF": "imag", "TCLIF": "soma"}
# values of parameters, where they are: of the other neurons a number, or what changes in time
CONSTANT = {"AdLIF", "SEAdLIF", "AlphaLIF", "RF", "TCLIF", "GLIF", "EIF", "QIF", "AdEx"}
INPUTS = {"AdLIF": 10.0, "SEAdLIF": 10.0, "BRF": 60.0, "EIF": 15.0, "QIF": 20.0, "AdEx": 60.0}
INPUTS |= {"Izhikevich": 30.0, "MultiLevelLIF": 3.0}


def made(name: str) -> snn.Neuron:
    layer: snn.Neuron = getattr(snn if name in LAYERS else tt.neurons, name)(1).double()
    return layer


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [*LAYERS, *NEURONS])
def test_a_neuron_fires_beyond_its_lines_and_nowhere_else(name: str) -> None:
    layer = made(name)
    cell, spikes = layer.cell, spike_functions(layer)
    with torch.no_grad():
        kwargs = layer.step_kwargs(1, torch.float64)
        layer(torch.zeros(1, dtype=torch.float64))
        start = {state: float(getattr(layer, state)) for state in cell.active}
        found = firing_lines(cell, spikes, start, kwargs)
        lines, names = [line for line, _ in found], [parameter for _, parameter in found]
        assert len(lines) == COUNTS.get(name, 1)
        assert [cell.states[line.place] for line in lines] == [
            STATES.get(name, cell.active[0] if name not in LAYERS else "mem")
        ] * len(lines)
        if name in LAYERS:
            assert names == ["pos_threshold", "neg_threshold"][: len(lines)]
        else:
            assert (names != [None] * len(lines)) == (name in CONSTANT)

        torch.manual_seed(0)
        states: dict[str, Any] = {state: getattr(layer, state) for state in cell.active}
        fired = 0
        for x in INPUTS.get(name, 0.8) * torch.randn(150, 1, dtype=torch.float64).add(0.5):
            tensors = (x, *map(states.get, cell.states))
            ends, _ = silent_step(cell.step, spikes, tensors, kwargs)
            output, following = cell.run((x,), states, kwargs)
            expected = 0.0
            for line in lines:
                level = line(*tensors, **kwargs)[0]
                assert (level - ends[line.place]).abs() > 1e-12  # else rounding would decide
                if line.sign * (ends[line.place] - level) > 0:
                    expected += line.sign
            if lines:
                ready = states.get("countdown", torch.zeros(1)) == 0
                assert float(output) == (expected if ready else 0.0)
                fired += expected != 0
            states = following
        assert fired > 3 or not lines


def test_a_line_goes_on_from_the_states_of_the_neuron() -> None:
    layer = made("ALIF").requires_grad_(False)
    kwargs = layer.step_kwargs(1, torch.float64)
    start = {"mem": 0.0, "adaptation": 0.0}
    ((line, _),) = firing_lines(layer.cell, ["spike"], start, kwargs)
    mem, adaptation = torch.tensor([0.9], dtype=torch.float64), torch.tensor([2.0]).double()
    level, *after = line(mem.new_tensor([3.0]), mem, adaptation, **kwargs)
    assert float(level) == pytest.approx(1 + 0.257 * 2, abs=1e-6)
    _, *expected = layer.step(mem.new_tensor([3.0]), mem, adaptation, **kwargs)
    assert all(map(torch.equal, after, expected))


class Distant(Leaky):
    """Neuron that fires by what no state shows: the product of its input and its membrane."""

    @staticmethod
    def step(x: Tensor, mem: Any, *, beta: Any, base: Any, spike: Any) -> tuple[Any, ...]:
        mem = beta * mem + x
        return spike(mem * x - base), mem


def test_the_page_has_parameters_and_loops_and_no_line_where_none_is(tmp_path: Any) -> None:
    (neuron,) = neurons_of(page_of(Plain(2), tmp_path, neuron=1))
    names = [each["name"] for each in neuron["params"]]
    assert [names[line["param"]] for line in neuron["lines"]] == ["base", "floor"]
    assert [line["sign"] for line in neuron["lines"]] == [1.0, -1.0]
    assert neuron["variants"][0][3] == [None, None]
    (neuron,) = neurons_of(page_of(tt.neurons.ALIF(1), tmp_path))
    assert neuron["lines"] == [{"state": "mem", "sign": 1.0, "param": None}]
    (moving,) = neuron["variants"][0][3]
    assert len(moving) == 2
    (neuron,) = neurons_of(page_of(Distant(1), tmp_path))
    assert neuron["lines"] == []
