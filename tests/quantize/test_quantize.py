"""Training forward and integer model are equal: by step, by layer, in every state."""

from __future__ import annotations

import copy
import itertools
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests import cases
from tests.cases import few, stepped, weighted_sum
from tests.quantize.networks import CHIPS, FEW_CASES, case, convolutional, spikes, widened
from tracetorch import chips, integers, quantize, snn
from tracetorch.quantize.build import common_scale
from tracetorch.quantize.reader import read_chain
from tracetorch.quantize.stages import parts_of, stages_in


def states(model: nn.Module) -> dict[str, Tensor]:
    found = tt.get_states(model)
    return {name: value for name, value in found.items() if value is not None}


def assert_equal(one: nn.Module, other: nn.Module, x: Tensor) -> Tensor:
    """Both compute the same by layer and by step, and end in the same states."""
    with torch.no_grad():
        outputs, ends = [], []
        for model in (one, other):
            for by in (tt.unroll, stepped):
                tt.zero_states(model)
                outputs.append(by(model, x))
                ends.append(states(model))
    for output, end in zip(outputs, ends, strict=True):
        assert torch.equal(output, outputs[0])
        assert end.keys() == ends[0].keys()
        for name, value in end.items():
            assert torch.equal(value, ends[0][name]), name
    assert ends[0]
    tt.zero_states(one)
    tt.zero_states(other)
    result: Tensor = outputs[0]
    return result


SILENT = ("random 12", "Xylo 2 3")  # the only cases in which no neuron of the output fires


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FEW_CASES)
def test_the_trained_forward_is_the_integer_model(name: str) -> None:
    """Before training and after it, on other inputs than the sample too."""
    model, x, arguments = case(name)
    prepared = quantize.prepare(model, x, **arguments)
    optimiser = torch.optim.Adam(prepared.parameters(), 1e-2)
    others = x.flip(0), x
    for other in others:
        integer, report = quantize.convert(prepared)
        assert assert_equal(prepared, integer, other).any() or name in SILENT
        assert max(layer.saturated_states for layer in report.layers) == 0
        for _ in range(2):
            optimiser.zero_grad()
            weighted_sum(tt.unroll(prepared, x, from_rest=True)).backward()
            optimiser.step()
    fractions = {n: v for n, v in integer.state_dict().items() if not torch.equal(v, v.round())}
    assert fractions.keys() <= {"input.scale"}
    weights = [m.weight for m in integer.modules() if hasattr(m, "weight_bits")]
    assert {weight.dtype for weight in weights} <= {torch.int8, torch.int16}
    assert not [p for p in integer.parameters() if p.requires_grad]


@pytest.mark.slow
def test_a_sample_is_run_twice_to_prepare_and_once_to_convert(monkeypatch) -> None:
    model, x, _ = case("random 3")
    calls, forward = [], nn.Sequential.forward

    def counting(self: nn.Sequential, given: Tensor) -> Tensor:
        calls.append(type(self))
        return forward(self, given)

    monkeypatch.setattr(nn.Sequential, "forward", counting)
    prepared = quantize.prepare(model, x)
    # two steps show a graph, that of the integers too; three are compared with it
    plain, made = [nn.Sequential] * (2 + 3 + len(x)), [quantize.Prepared] * (2 + len(x))
    assert calls == plain + made
    calls.clear()
    quantize.convert(prepared)
    assert calls == [nn.Sequential] * (2 + len(x))


def test_branches_come_to_a_common_scale() -> None:
    for one, other, factors in ((1.0, 1.0, (1, 1)), (0.5, 2.0, (1, 4)), (1.2, 0.8, (3, 2))):
        scale, found = common_scale(torch.tensor(one), torch.tensor(other))
        assert found == factors
        assert float(scale) * found[0] == pytest.approx(one)
        assert float(scale) * found[1] == pytest.approx(other)
    for name in ("residual", "unlike branches"):
        model, x, _ = case(name)
        prepared = quantize.prepare(model, x, weight_bits=12, state_bits=20)
        integer, report = quantize.convert(prepared)
        assert max(layer.output_error for layer in report.layers) < 0.03
        sums = [module for module in integer.modules() if isinstance(module, integers.Add)]
        assert (sums[0].factors == (1, 1)) == (name == "residual")
        into, _ = quantize.convert(quantize.prepare(widened(model, 0.3), x, None, 12, 20))
        into.load_state_dict(integer.state_dict())
        assert_equal(integer, into, x)


@pytest.mark.slow
def test_a_residual_network_of_the_models_is_quantised() -> None:
    torch.manual_seed(0)
    model = tt.models.SEWResNet(18, 10, images="small", width=8, neuron=snn.LIF)
    x = torch.rand(4, 1, 3, 16, 16)
    prepared = quantize.prepare(model, x, weight_bits=12, state_bits=22)
    integer, report = quantize.convert(prepared)
    assert assert_equal(prepared, integer, x).unique().numel() > 10
    assert max(layer.output_error for layer in report.layers[:-1]) < 0.05


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", cases.FEW_LAYERS)
def test_each_of_the_twelve_layers_is_near_the_float_one(name: str) -> None:
    torch.manual_seed(0)
    layer = cases.layer(name, 6)
    x = spikes(40, 4, 5)
    model = nn.Sequential(nn.Linear(5, 6), layer)
    widened(model[0])
    prepared = quantize.prepare(model, x, weight_bits=12, state_bits=20)
    integer, report = quantize.convert(prepared)
    assert_equal(prepared, integer, x)
    assert report.layers[0].output_error < 0.02
    assert report.layers[0].weight_error < 0.002
    wanted, found = tt.unroll(model, x), report.output_scale * tt.unroll(integer, x)
    # spikes of several sizes have 8 bits
    assert float((wanted - found).detach().abs().median()) < (6e-3 if "B" in name else 2e-3)
    if name in cases.SPIKING:
        assert wanted.detach().abs().sum() > 10
        assert isinstance(integer[1], integers.LeakyIntegrator)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["SLIF", "BSRLIF"])
def test_fine_integers_have_the_gradients_of_the_floats(name: str) -> None:
    torch.manual_seed(0)
    arguments = {"rec_weight": 0.4, "neg_scale": 0.5} if "B" in name else {}
    model = nn.Sequential(
        nn.Linear(12, 20), getattr(snn, name)(20, **arguments), nn.Linear(20, 5), snn.SReadout(5)
    )
    for parameter in model.parameters():
        parameter.data *= 3.0 if parameter.ndim == 2 else 1.0
    x = spikes(20, 8, 12)
    prepared = quantize.prepare(model, x, weight_bits=16, state_bits=24)
    weighted_sum(tt.unroll(model, x)).backward()
    weighted_sum(prepared.output_scale * tt.unroll(prepared, x)).backward()
    wanted = dict(model.named_parameters())
    found = {
        path.replace("parametrizations.", "").removesuffix(".original"): parameter
        for path, parameter in prepared.named_parameters()
    }
    assert found.keys() == wanted.keys()
    for source, parameter in found.items():
        grad, expected = parameter.grad, wanted[source].grad
        assert grad is not None
        assert expected is not None
        assert float((grad - expected).norm() / expected.norm()) < 0.15, source


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["random 3", "convolutional", "Xylo 2 1"])
def test_gradients_agree_by_step_and_by_layer(name: str) -> None:
    model, x, arguments = case(name)
    prepared = quantize.prepare(model, x, **arguments)
    found = []
    for by in (tt.unroll, stepped):
        prepared.zero_states()
        prepared.zero_grad()
        weighted_sum(by(prepared, x)).backward()
        found.append({n: p.grad for n, p in prepared.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() == dict(prepared.named_parameters()).keys()
    for path, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][path], rtol=2e-3, atol=1e-5, msg=path)
        assert grad.abs().sum() > 0 or "gamma" in path, path


def test_a_batch_norm_is_folded_as_it_is_in_evaluation() -> None:
    model, x = convolutional()
    (first, *_), given = stages_in(parts_of(read_chain(model, x))), x[0]
    model.eval()
    conv, norm = (model.get_submodule(path) for path in "01")
    torch.testing.assert_close(first.product(given), norm(conv(given)))
    prepared = quantize.prepare(model, x)
    assert not [m for m in prepared.modules() if isinstance(m, nn.BatchNorm2d)]


def test_training_through_four_bits_gains() -> None:
    """A task that a network of 4 bits learns through its own forward."""
    torch.manual_seed(0)
    x, classes = spikes(15, 64, 10, share=0.2), torch.randint(0, 3, (64,))
    x[:, torch.arange(64), classes] = 1
    model = nn.Sequential(nn.Linear(10, 16), snn.LIF(16), nn.Linear(16, 3), snn.Readout(3))
    prepared = quantize.prepare(model, x, weight_bits=4)
    optimiser = torch.optim.Adam(prepared.parameters(), 5e-2)

    def loss() -> Tensor:
        y = prepared.output_scale * tt.unroll(prepared, x, from_rest=True)
        return nn.functional.cross_entropy(y[-1], classes)

    first = loss().item()
    for _ in range(40):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < 0.6 * first
    integer, report = quantize.convert(prepared)
    assert float((tt.unroll(integer, x)[-1].argmax(1) == classes).float().mean()) > 0.9
    assert {layer.weight_bits for layer in report.layers} == {4}
    weight = integer.get_buffer("0.weight")
    assert -8 <= weight.min() <= weight.max() <= 7


def test_the_forward_of_a_model_may_be_its_own() -> None:
    first, readout = (nn.Sequential(*each) for each in (
        (nn.Linear(4, 6), snn.LIF(6)), (nn.Dropout(0.5), nn.Linear(6, 2), snn.Readout(2))
    ))  # fmt: skip
    net = cases.Net(lambda n, x: n.readout(n.first[1](n.first[0](x))), first=first, readout=readout)
    prepared = quantize.prepare(net, spikes(8, 2, 4))
    names = [name for name, _ in prepared.named_children()]
    assert names == ["first_0", "first_1", "readout_1", "readout_2"]
    assert [each.path for each in quantize.convert(prepared)[1].layers] == ["first.0", "readout.1"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_dict_changes_nothing_where_it_comes_from(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv1d(2, 4, 3), snn.LIF(4, dim=-2), nn.Conv1d(4, 3, 1), snn.Readout(3, dim=-2)),
        nn.AvgPool1d(3),
    )
    prepared = quantize.prepare(widened(model).to(dtype), spikes(20, 2, 2, 12).to(dtype))
    units = [getattr(neuron, "unit", None) for neuron in prepared]
    before = prepared.output_scale, *units, *(layer.unit for layer in prepared.plan.layers)
    assert before[0] != float(torch.tensor(before[0]))  # float32 has no such number
    prepared.load_state_dict(prepared.state_dict())
    units = [getattr(neuron, "unit", None) for neuron in prepared]
    after = prepared.output_scale, *units, *(layer.unit for layer in prepared.plan.layers)
    assert all(map(np.array_equal, before, after))


def test_the_report_says_what_became_of_each_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), snn.LIF(6), nn.Linear(6, 2), snn.Readout(2))
    x = torch.rand(12, 3, 5)
    prepared = quantize.prepare(model, x, weight_bits=4, state_bits=12)
    with torch.no_grad():  # far beyond what 4 bits hold
        prepared.get_parameter("0.parametrizations.weight.original")[0, 0] = 50.0
    _, report = quantize.convert(prepared)
    first, last = report.layers
    assert (first.path, first.neurons, first.weight_bits, first.state_bits) == ("0", "1", 4, 12)
    assert first.scale.shape == (6,)
    assert last.scale.shape == ()
    assert first.saturated_weights == 1 / 30
    assert last.saturated_weights == 0
    assert first.weight_error > 0.5 > last.weight_error > 0
    assert report.output_scale == float(last.scale) == prepared.output_scale
    assert report.misfits == report.differences == ()
    # 30 and 12 weights of 4 bits, 8 biases of 32, and of the neurons 6 and 2 decays, 6 thresholds
    assert report.num_bytes == 15 + 6 + 32 + 2 * 14
    printed = str(report).splitlines()
    assert printed[0].split()[:3] == ["layer", "neurons", "scale"]
    assert printed[-1].startswith("81 bytes; one integer of the output is ")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("chip", few([None, "Xylo 2"], "Xylo 2"))
def test_the_report_names_thresholds_and_biases_that_are_clipped(
    chip: str | None, learns: bool
) -> None:
    """Also those that do not learn, which no float stands for: thresholds that round to zero."""
    torch.manual_seed(0)
    neuron: Any = snn.LeakyIntegrator
    small = torch.tensor([1e-7] * 2 * (not learns) + [1.0] * (6 + 2 * learns))
    model = nn.Sequential(
        *(nn.Linear(4, 8), neuron(8, pos_threshold_setup={"value": small, "learnable": learns})),
        *(nn.Linear(8, 3, bias=False), neuron(3, pos_threshold_setup={}, bias_setup={"rank": 1})),
    )
    target: Any = {} if chip is None else {"chip": CHIPS[chip]}
    prepared = quantize.prepare(model, spikes(20, 4, 4), **target)
    wanted = {} if learns else {"1.pos_threshold": 0.25}
    for label, value, share in (("0.bias", 1e6, 1 / 8), ("3.bias", -1e6, 1 / 3)) * learns:
        found = {name: shares for e in quantize.convert(prepared)[1].layers
                 for name, shares in e.saturated_parameters.items()}  # fmt: skip
        assert found == pytest.approx(wanted)
        keys = {name: key for layer in prepared.plan.layers for key, name in layer.names.items()}
        path, name = keys[label]
        prepared.get_submodule(path).parametrizations[name].original.data[1] = value  # type: ignore[index, union-attr]
        wanted[label] = share
    report = quantize.convert(prepared)[1]
    found = {n: share for e in report.layers for n, share in e.saturated_parameters.items()}
    assert found == pytest.approx(wanted)
    assert f"saturated: {25.0 if not learns else 12.5}% of " in str(report)


def delayed_network(**arguments: Any) -> tuple[nn.Sequential, snn.DelayedLinear]:
    torch.manual_seed(0)
    first = snn.DelayedLinear(5, 6, max_delay=4, **arguments)
    model = nn.Sequential(first, snn.LIF(6), snn.Delay(6, max_delay=2), nn.Linear(6, 2), snn.LIF(2))
    widened(model, 2.0)
    return model, first


def test_rounded_delays_are_reported() -> None:
    (model, first), x = delayed_network(), spikes(30, 4, 5)
    prepared = quantize.prepare(model, x, weight_bits=12, state_bits=20)
    _, report = quantize.convert(prepared)
    off = (first.delay - first.delay.round()).abs()
    assert report.differences == (
        f"0 (DelayedLinear) has delays between two steps, rounded by {off.mean():.2f} of a step in "
        f"the mean, {off.max():.2f} at most",
    )
    first.round_()
    prepared = quantize.prepare(model, x, weight_bits=12, state_bits=20)
    _, report = quantize.convert(prepared)
    assert report.differences == ()
    assert max(layer.output_error for layer in report.layers) < 0.02
    # 42 weights of 12 bits, 8 biases and 2 thresholds of 32, the other 14 of neurons 16; 36 delays
    assert report.num_bytes == 42 * 12 // 8 + 10 * 4 + 14 * 2 + 36


def test_delays_learn_on_where_they_learned() -> None:
    x = spikes(12, 2, 5)
    for learnable in (True, False):
        model, first = delayed_network(learnable=learnable)
        prepared = quantize.prepare(model, x)
        weighted_sum(tt.unroll(prepared, x)).backward()
        floats = {n: p for n, p in prepared.named_parameters() if "delay" in n}
        assert [n.partition(".")[0] for n in floats] == ["0", "2"] if learnable else ["2"]
        for raw in floats.values():
            assert raw.grad is not None
            assert raw.grad.any()
            raw.data += 1.0
        integer, _ = quantize.convert(prepared)
        delay: Any = integer.get_submodule("0").delay
        wanted = (first.raw_delay + 1.0 * learnable).clamp(0, 4).round()
        assert torch.equal(delay, wanted)
        assert not list(integer.parameters())


def test_inputs_that_are_integers_need_no_border() -> None:
    model = nn.Sequential(nn.Linear(2, 3), snn.LIF(3))
    whole = torch.tensor([-3.0, 127.0]).expand(4, 1, 2)
    assert "input" not in dict(quantize.prepare(model, whole).named_children())
    for x, largest in ((whole + 1, 127), (whole / 2, 127), (whole * 100, 127)):
        border = quantize.prepare(model, x).get_submodule("input")
        assert isinstance(border, integers.Quantize)
        assert border(x).abs().max() == largest
        assert np.isclose(float(border.scale), float(x.abs().max()) / 127)
    model.extend([nn.Linear(3, 1), snn.LIF(1)])
    border = quantize.prepare(model, torch.rand(4, 2, 2), CHIPS["Xylo 2"]).get_submodule("input")
    assert isinstance(border, integers.Quantize)
    assert (border.bits, border.signed) == (4, False)  # rates become numbers of spikes


@pytest.mark.slow
def test_integers_load_into_those_of_another_sample(tmp_path: Path) -> None:
    """Shifts, and the binary point of a recurrent weight, go with the weights."""

    def made(size: float, bits: int = 8) -> Any:
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(4, 6), snn.RLIF(6), nn.Linear(6, 2), snn.Readout(2))
        with torch.no_grad():
            model[1].raw_rec_weight.fill_(size)
            model[2].weight.mul_(size)
        return quantize.convert(quantize.prepare(model, x, weight_bits=bits))[0]

    x = spikes(6, 3, 4)
    one, into, loaded = made(0.3), made(30.0), made(30.0)
    assert one[1].rec_weight_fraction != into[1].rec_weight_fraction
    assert one[2].shift != into[2].shift or one[0].shift != into[0].shift
    into.load_state_dict(one.state_dict())
    tt.save(one, tmp_path / "one.safetensors")
    tt.load(tmp_path / "one.safetensors", loaded)
    expected = tt.unroll(one, x, from_rest=True)
    for other in (into, loaded):
        assert torch.equal(tt.unroll(other, x, from_rest=True), expected)
        assert (repr(other[0]), repr(other[2])) == (repr(one[0]), repr(one[2]))
    with pytest.raises(RuntimeError, match=r"0\._extra_state: made with another weight_bits, .*=4"):
        made(0.3, bits=4).load_state_dict(one.state_dict())
    with pytest.raises(
        ValueError, match=r"weight_bits: 8 in the file, 4 .* as the file describes it"
    ):
        tt.load(tmp_path / "one.safetensors", made(0.3, bits=4))


@pytest.mark.parametrize("more", [-1, 0, 4])
def test_a_prepared_file_of_earlier_versions_loads(more: int, tmp_path: Path) -> None:
    """They had floats behind what a sample decided; one that has less is of another network."""

    class Longer(quantize.prepared.Prepared):
        def get_extra_state(self) -> Tensor:
            state = super().get_extra_state()
            return state[:more] if more < 0 else torch.cat([state, torch.ones(more)])

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), snn.LIF(6), nn.Linear(6, 2)), spikes(6, 3, 4)
    one, into = quantize.prepare(model, x), quantize.prepare(model, x[:2])
    one.__class__ = Longer
    tt.save(one, tmp_path / "one.safetensors")
    if more < 0:
        with pytest.raises(ValueError, match="Prepare the same network in the same way"):
            tt.load(tmp_path / "one.safetensors", into, strict=False)
        return
    tt.load(tmp_path / "one.safetensors", into, strict=False)
    assert into.output_scale == one.output_scale
    assert_equal(one, into, x)


def test_the_report_says_what_the_inputs_are_and_which_bits_are_unused() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 4), snn.LIF(4)), torch.rand(20, 9, 16)
    _, report = quantize.convert(quantize.prepare(model, x))
    border, unused = report.notes
    assert border.startswith("input: divide by 0.0078")
    assert border.endswith("round, -128 to 127")
    assert unused.startswith("layer 0 uses ")
    assert all(note in str(report).splitlines() for note in report.notes)
    bits = int(unused.partition("state_bits=")[2].partition(",")[0])
    assert len(quantize.convert(quantize.prepare(model, x, state_bits=bits))[1].notes) == 1


@pytest.mark.parametrize(
    "first", [nn.Linear(3, 4), nn.Conv1d(3, 4, 5), nn.Sequential(nn.Flatten(), nn.Linear(15, 4))]
)
def test_the_report_names_features_that_rounding_takes(first: nn.Module) -> None:
    """One scale holds for all: beside a large one, or above an offset, a feature is a constant."""
    torch.manual_seed(0)
    shape = (20, 9, 3) if isinstance(first, nn.Linear) else (20, 9, 3, 5)
    x = torch.randn(shape)
    dim = -1 if isinstance(first, nn.Linear) else -2
    model = nn.Sequential(first)
    assert len(quantize.convert(quantize.prepare(model, x))[1].notes) == 1
    x.select(dim, 1).mul_(100).add_(1500)
    found = quantize.convert(quantize.prepare(model, x))[1].notes[1]
    assert re.search(r"2 of 3 features: 0 \(\d+%\), 2 \(\d+%\), for one scale holds", found)
    x.select(dim, 0).fill_(7.0)  # what does not vary loses nothing
    found = quantize.convert(quantize.prepare(model, x))[1].notes[1]
    assert "1 of 3 features: 2 (" in found
    (found,) = quantize.convert(quantize.prepare(model, (x > 0).float()))[1].notes
    assert found == "input: integers as they are, 0 to 1; others are not rounded"


@pytest.mark.parametrize(("padding", "zeros"), [("valid", 0), ("same", (1, 4))])
def test_a_convolution_pads_as_its_name_says(padding: Any, zeros: Any) -> None:
    torch.manual_seed(0)
    named = nn.Conv2d(2, 3, (3, 5), dilation=(1, 2), padding=padding)
    counted = nn.Conv2d(2, 3, (3, 5), dilation=(1, 2), padding=zeros)
    counted.load_state_dict(named.state_dict())
    x = torch.rand(4, 2, 2, 6, 11)
    one, other = (
        quantize.convert(quantize.prepare(nn.Sequential(conv, snn.LIF(3, dim=-3)), x))[0]
        for conv in (named, counted)
    )
    assert_equal(one, other, x)
    assert repr(one) == repr(other)


DECIDED = few(["Xylo 2 1", "delayed", "along a line", "random 1"], "delayed")


@pytest.mark.parametrize("name", DECIDED)
def test_a_state_dict_holds_what_the_sample_decided(name: str) -> None:
    model, x, arguments = case(name)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(torch.linspace(0.1, 3, parameter.numel()).reshape(parameter.shape))
    prepared = quantize.prepare(model, x, **arguments)
    tt.unroll(prepared, x)  # holds states with a graph
    copied = copy.deepcopy(prepared)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.4)
        ends = [tt.unroll(each, x, from_rest=True) for each in (prepared, copied)]
    assert not torch.equal(*ends)
    loaded = quantize.prepare(other, x[:6], **arguments)
    loaded.load_state_dict(prepared.state_dict())
    assert loaded.output_scale == prepared.output_scale
    assert_equal(prepared, loaded, x)
    converted = [quantize.convert(each) for each in (prepared, loaded)]
    assert_equal(loaded, converted[1][0], x)
    with torch.no_grad():
        one, same = (tt.unroll(integer, x, from_rest=True) for integer, _ in converted)
    assert torch.equal(one, same)
    for layer, again in zip(*(report.layers for _, report in converted), strict=True):
        assert torch.equal(layer.scale, again.scale)
        assert layer.weight_error == again.weight_error
    for each in (prepared, loaded):
        weighted_sum(tt.unroll(each, x, from_rest=True)).backward()
    grads = [{n: p.grad for n, p in each.named_parameters()} for each in (prepared, loaded)]
    for path, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][path], rtol=0, atol=0, msg=path)


def test_the_scale_of_a_report_is_that_of_the_states_behind_a_pool() -> None:
    torch.manual_seed(0)
    model = widened(nn.Sequential(nn.Conv1d(2, 4, 3), nn.AvgPool1d(5), nn.Flatten(), snn.LIF(8)))
    x = spikes(20, 2, 2, 12)
    integer, report = quantize.convert(quantize.prepare(model, x, state_bits=22))
    held = [
        tt.unroll(each, x, from_rest=True, record=["3.mem"])[1]["3.mem"]
        for each in (model, integer)
    ]
    torch.testing.assert_close(
        report.layers[0].scale * held[1][0], held[0][0].detach(), rtol=0.02, atol=1e-2
    )


def named(**modules: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(modules))


def widths(*sizes: int) -> list[nn.Module]:
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


def test_names_are_kept_apart_and_those_of_its_own_given_to_nobody() -> None:
    a, b, c, d, e, f = widths(4, 6, 6, 5)
    model = named(b=nn.Sequential(a, b), b_0=c, b_1=d, b_0_=e, b_2=f)
    prepared = nearly(model, spikes(20, 4, 4), weight_bits=12)
    labels = [(layer.label, layer.neurons_label) for layer in prepared.plan.layers]
    assert list(itertools.chain(*labels)) == ["b.0", "b.1", "b_0", "b_1", "b_0_", "b_2"]
    assert list(prepared._modules) == ["b_0__", "b_1_", "b_0", "b_1", "b_0_", "b_2"]
    for name in ("input", "plan", "output_scale"):
        first, neurons = widths(4, 6)
        prepared = nearly(
            named(**{name: first, "n": neurons}), torch.rand(20, 4, 4), weight_bits=12
        )
        assert list(prepared._modules) == ["input", f"{name}_", "n"]
    model = named(a=a, b=b, b_later=c, d=d, e=e, f=f)
    later = quantize.prepare(model, spikes(9, 2, 4), chip=chips.xylo.XYLO_2)
    names = ["input", "a", "b", "b_later_", "b_later", "d", "d_later", "e", "f"]
    assert list(later._modules) == names


@pytest.mark.one_in(2)
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


@pytest.mark.slow
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


@pytest.mark.one_in(2)
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
