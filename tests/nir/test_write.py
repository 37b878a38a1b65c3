"""Models into graphs: what modules become, how values flow, and what has no counterpart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracetorch as tt
from tests.cases import layer, sequence
from tests.networks import Charged, Doubled, Net
from tests.nir.cases import DT, NEURONS, double, full, line, run, simulated
from tests.nir.test_read import branches, nested, recurrent
from tests.refusals import check, refusals
from tracetorch import snn


def agrees(net: nn.Module, shape: tuple[int, ...], steps: int = 30, **how: Any) -> nir.NIRGraph:
    """The model, its graph read again, and its graph by the paper's equations are one."""
    double(net)
    made = tt.nir.to_nir(net, shape, **how)
    x = 2 * sequence(steps, 2, *shape)
    y = run(net, x)
    for z in (run(tt.nir.from_nir(made, dt=DT), x), simulated(made, x)):
        torch.testing.assert_close(y, z, rtol=0, atol=1e-11)
    assert y.abs().sum() > 0
    return made


class Branches(snn.TTModule):
    """Branches, a skip connection, functions in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.cells = nn.ModuleList([layer("LIF", 3, dim=-3), layer("BSRLIF", 3, dim=-3)])
        self.conv = nn.Conv2d(3, 3, 3, padding="same", bias=False)
        self.drop, self.pool = nn.Dropout(0.5), nn.AvgPool2d(2)
        self.head, self.readout = nn.Linear(12, 4), layer("SReadout", 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cells[0](self.stem(x))
        x = self.cells[1](x + self.drop(self.conv(x))) + x
        y = self.head(self.drop(torch.flatten(self.pool(x), 1)))
        return self.readout(torch.add(y, y)) + y


def calls(function: Any) -> nn.Module:
    """A linear layer, and whatever a test wants to do with what it gives."""
    parts = {"drop": nn.Dropout(), "norm": nn.BatchNorm1d(3), "narrow": nn.Linear(3, 1)}
    parts |= {"linear": nn.Linear(3, 3), "lif": snn.LIF(3)}
    return Net(lambda m, x: function(m, m.linear(x)), **parts, weight=nn.Parameter(torch.ones(3)))


def normalised(net: nn.Module) -> nn.Module:
    """With statistics as after training, and no longer training."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if isinstance(tensor, Tensor):
                    tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return net.eval()


def test_branches_skips_and_functions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = normalised(Branches())
    made = agrees(net, (1, 4, 4), steps=12)
    assert "stem_1" not in made.nodes  # folded into the convolution
    assert {("cells_0", "cells_1"), ("conv", "cells_1"), ("head", "output")} <= {*made.edges}
    tt.nir.save(net, tmp_path / "net.nir", (1, 4, 4))  # which nir itself checks
    assert nir.read(tmp_path / "net.nir").nodes.keys() == made.nodes.keys()


MODULES: tuple[tuple[nn.Module, tuple[int, ...], str], ...] = (
    (nn.Linear(3, 2), (3,), "Affine"),
    (nn.Linear(3, 2, bias=False), (3,), "Linear"),
    (nn.Conv1d(2, 3, 4, stride=2, padding=1), (2, 9), "Conv1d"),
    (nn.Conv1d(2, 3, 3, padding="same", bias=False), (2, 9), "Conv1d"),
    (nn.Conv2d(2, 3, (2, 3), stride=(2, 1), dilation=(1, 2)), (2, 6, 7), "Conv2d"),
    (nn.Conv2d(4, 4, 3, groups=2), (4, 5, 5), "Conv2d"),
    (nn.Conv2d(2, 2, 3, padding="valid"), (2, 5, 5), "Conv2d"),
    (nn.AvgPool2d(2), (2, 5, 5), "AvgPool2d"),
    (nn.AvgPool2d((3, 2), (2, 1), (1, 0)), (2, 5, 5), "AvgPool2d"),
    (nn.AvgPool2d(2, divisor_override=4), (2, 4, 4), "AvgPool2d"),
    (nn.AvgPool2d(2, divisor_override=1), (2, 4, 4), "SumPool2d"),
    (nn.AdaptiveAvgPool2d(2), (2, 4, 6), "AvgPool2d"),
    (nn.AdaptiveAvgPool2d((None, 1)), (2, 4, 6), "AvgPool2d"),
    (nn.Flatten(), (2, 3, 4), "Flatten"),
    (nn.Flatten(2), (2, 3, 4), "Flatten"),
    (nn.Flatten(-3, -2), (2, 3, 4), "Flatten"),
    (normalised(nn.BatchNorm1d(3)), (3,), "Affine"),
    (normalised(nn.BatchNorm1d(3)), (3, 4), "Conv1d"),
    (normalised(nn.BatchNorm2d(3, affine=False)), (3, 4, 2), "Conv2d"),
)


@pytest.mark.parametrize(("module", "shape", "kind"), MODULES)
def test_modules_of_pytorch(module: nn.Module, shape: tuple[int, ...], kind: str) -> None:
    made = agrees(module, shape, steps=2)
    assert type(made.nodes["0"]).__name__ == kind


@pytest.mark.parametrize("bias", [False, True])
def test_recurrence_through_a_module(bias: bool) -> None:
    """Its bias acts at the first step, where no spike has been."""
    torch.manual_seed(0)
    dense = snn.Recurrent(layer("SLIF", 3, pos_threshold=0.3), nn.Linear(3, 3, bias=bias))
    back = nn.Conv2d(2, 2, 3, padding=1, bias=bias)
    for made, shape in (
        (dense, (3,)),
        (snn.Recurrent(layer("BSRLIF", 2, dim=-3), back), (2, 3, 3)),
    ):
        agrees(nn.Sequential(made, nn.Flatten()), shape, steps=15)
        with pytest.raises(ValueError, match=r"the model .Recurrent..* Use mode='exact'"):
            tt.nir.to_nir(made, shape, mode="compact")


def test_grouped_convolutions_are_written_whole_where_peers_read() -> None:
    net, how = nn.Conv2d(4, 6, 3, groups=2), {"mode": "compact"}
    assert agrees(net, (4, 5, 5), steps=2).nodes["0"].groups == 2
    assert agrees(net, (4, 5, 5), steps=2, **how).nodes["0"].groups == 1


@pytest.mark.parametrize(
    ("net", "nodes"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), ["0"]),
        (nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2)), ["0"]),
        (calls(lambda m, y: y + m.norm(y)), ["linear", "norm"]),
        (calls(lambda m, y: m.linear(y)), ["linear", "linear_1"]),
    ],
    ids=["folded", "folded, no bias", "others listen", "called twice"],
)
def test_which_nodes_there_are(net: nn.Module, nodes: list[str]) -> None:
    made = agrees(normalised(net), (3,), steps=2)
    assert sorted(made.nodes.keys() - {"input", "inputs_0", "output"}) == nodes


def test_inputs_keep_their_order_in_a_file(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, b: Tensor, a: Tensor) -> Any:
            x, y = self.left(b), self.right(a)
            return {"both": x + y, "right": y}

    def same(found: Any) -> None:
        torch.testing.assert_close(found, net(b, a), rtol=0, atol=0)

    net, path = double(Both()), tmp_path / "net.nir"
    b, a = sequence(2, 3, seed=1), sequence(2, 3, seed=2)
    tt.nir.save(net, path, (b, a))
    again = tt.nir.from_nir(path, dt=DT)
    same(again(b, a))
    tt.nir.save(again, path, (b, a))
    same(tt.nir.from_nir(path, dt=DT)(b, a))
    made = tt.nir.to_nir(net, (b, a))
    for order in ("[", "[1, 2]", '["a"]', '["a", "a"]', "{}", 3):  # as by name
        made.metadata["inputs"] = order
        same(tt.nir.from_nir(made, dt=DT)(a, b))
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'a'"):
        tt.nir.to_nir(net, (3,))


def test_what_was_read_can_be_written_again() -> None:
    """With all of NIR's parameters, and the values they have now; within another model too."""
    within = nn.Sequential(nn.Linear(2, 3), tt.nir.from_nir(recurrent(), dt=DT))
    models = [(tt.nir.from_nir(given, dt=DT), shape) for given, shape in (
        (branches(), (2, 5, 5)), (recurrent(), (3,)), (nested(), (4,)))]  # fmt: skip
    for model, shape in (*models, (double(within), (2,))):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("weight", "scale", "raw_v_leak")):
                    parameter.mul_(0.9)
        again = tt.nir.from_nir(tt.nir.to_nir(model, shape), dt=DT)
        x = 2 * sequence(30, 2, *shape)
        torch.testing.assert_close(run(model, x), run(again, x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("shape", [(3,), (2, 3, 2)])
def test_every_neuron_that_was_read_can_be_written(kind: str, shape: tuple[int, ...]) -> None:
    delay = nir.Delay(np.arange(np.prod(shape)).reshape(shape) % 3 * DT)
    ends = nir.Threshold(full(shape, -1, 1, 9)), nir.Scale(full(shape, -1, 1, 8))
    given = line(delay, NEURONS[kind](shape), *ends, into=shape, out=shape)
    again = tt.nir.to_nir(tt.nir.from_nir(given, dt=DT), shape)
    node = again.nodes["n1"]
    for name, value in vars(given.nodes["n1"]).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(getattr(node, name), value, rtol=1e-12, atol=1e-15)
    x = sequence(20, 2, *shape)
    torch.testing.assert_close(simulated(given, x), simulated(again, x), rtol=0, atol=1e-11)


def test_neurons_that_differ_in_every_place_subtract_exactly() -> None:
    shape = (2, 3, 2)
    tau, threshold = full(shape, 3e-4, 3e-3, 0), full(shape, 0.3, 1, 1)
    lif = nir.LIF(tau, np.ones(shape), np.zeros(shape), threshold)
    model = tt.nir.from_nir(line(lif, into=shape, out=shape), dt=DT, reset="subtract")
    x = 3 * sequence(30, 2, *shape)
    y = run(model, x)
    assert y.mean() > 0.02
    made = tt.nir.to_nir(model, shape)
    assert torch.equal(y, run(tt.nir.from_nir(made, dt=DT), x))
    assert torch.equal(y, simulated(made, x))


def test_subtraction_that_a_node_cannot_say() -> None:
    model = tt.nir.from_nir(recurrent(), dt=DT, reset="subtract")
    with pytest.raises(ValueError, match=r"node 'a'.*read with reset='subtract', which its node"):
        tt.nir.to_nir(model, (3,))
    made = tt.nir.to_nir(model, (3,), allow_hard_reset=True)
    x = 2 * sequence(20, 2, 3)
    again = tt.nir.from_nir(made, dt=DT, reset="subtract")
    torch.testing.assert_close(run(model, x), run(again, x), rtol=0, atol=1e-11)
    other = line(nir.I(np.ones(2)), into=(2,), out=(2,))
    with pytest.raises(ValueError, match=r"node 'n0'.*read with dt=0.0001, and cannot be written"):
        tt.nir.to_nir(tt.nir.from_nir(other, dt=DT), (2,), dt=1e-3)


# What has no counterpart


def alias(y: Tensor, again: Tensor, x: Tensor) -> Tensor:
    """A sum in place, seen under the other name too."""
    again += x
    return y + again


class Fatigue(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x + mem), x


class Halved(snn.LIF):
    """A subclass that gives its step other parameters."""

    def step_kwargs(self, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
        kwargs = super().step_kwargs(ndim, dtype)
        return {**kwargs, "beta": kwargs["beta"] / 2}


CHARGED: Any = snn.LIF(3)
CHARGED.state("mem", init=0.0)
CHARGED.initial_state = Charged(3).initial_state


REFUSED: tuple[tuple[nn.Module, tuple[int, ...], str], ...] = (
    (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), (3,), "1 .ReLU. has no counterpart.*snn.LIF"),
    (nn.MaxPool2d(2), (1, 4, 4),
     "the model .MaxPool2d. has no counterpart in NIR. Use nn.AvgPool2d"),
    (Fatigue(3), (3,), r"the model .Fatigue. has no counterpart in NIR. NIR has the t"),
    (Doubled(3), (3,), "the model .Doubled. has a forward of its own"),
    (Halved(3), (3,), "the model .Halved..* has methods of its own that see each step"),
    (Charged(3), (3,), "the model .Charged..* has an initial_state of its own. Repl"),
    (CHARGED, (3,), "the model .LIF..* has an initial_state of its own. Repl"),
    (snn.Recurrent(Fatigue(3), nn.Linear(3, 3)), (3,), "neuron of the model .Rec..*no counterpart"),
    (snn.Recurrent(snn.LIF(3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))), (3,),
     "the connection of the model .Rec..* is a chain, of Linear, Linear, and must be one module"),
    (snn.Recurrent(snn.LIF(3), nn.ReLU()), (3,), "connection of the model .Rec..*no counterpart"),
    (snn.Recurrent(snn.LIF(3), snn.LIF(3)), (3,), "to itself by LIF; in NIR it must be nn.Linear"),
    (snn.Recurrent(snn.LIF(3), nn.Linear(3, 2)), (3,),
     "needs a connection that keeps the shape .1, 3., got .1, 2."),
    (snn.Delay(3, max_delay=2, delay=0.5), (3,), r"the model .Delay..*parts of a step.*round_\(\)"),
    (snn.Delay(3, max_delay=2, delay=1.0, sigma=1.0), (3,), r"by parts of a step.*Call round_\(\)"),
    (snn.DelayedLinear(3, 3, max_delay=2), (3,), "the model .DelayedLinear. has no counterpart"),
    (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), (1, 4, 4),
     "padding_mode='circular'; NIR"),
    (nn.AvgPool2d(2, ceil_mode=True), (1, 4, 4), "has ceil_mode,"),
    (nn.AvgPool2d(2, padding=1, count_include_pad=False), (1, 4, 4), "has .*count_incl"),
    (nn.AdaptiveAvgPool2d(3), (1, 4, 4), "windows of one size do not divide"),
    (nn.Linear(3, 3), (2, 3), "'0' .Affine.: it takes 1 dim.*, the input has shape .2, 3.. Put a"),
    (nn.BatchNorm1d(3), (3,), r"takes its statistics from the batch. Call model.eval\(\)"),
    (nn.Linear(3, 3), (2,), r"fails on one step of the sample, \[1, 2\] with the batch: .*mat1"),
    (nn.Sequential(nn.Linear(3, 3), snn.LIF(3)).bfloat16(), (3,),
     r"0.weight is torch.bfloat16, and a file is read in float32 .* Give model.float\(\)"),
    (nn.Flatten(0), (3,), "it leaves no batch in front"),
    (calls(lambda m, y: y * 2), (3,), r"mul\(\) in the model's forward has no counterpart"),
    (calls(lambda m, y: y + m.weight), (3,), "is given 'weight' by itself"),
    (calls(lambda m, y: y + m.narrow(y)), (3,),
     "'output' .Output.: it adds up inputs of the shapes"),
    (calls(lambda m, y: y + y[:, :1]), (3,), r"getitem\(\) in the model's forward"),
    (calls(lambda m, y: m.lif(m.lif(y))), (3,), "lif .LIF. is called twice in one step"),
    (snn.LIF(1, dim=0), (3,), "has its neurons at dim=0, which must not be the batch's"),
    (calls(lambda m, y: 3), (3,), "must return a tensor that it has computed"),
    (calls(lambda m, y: {"a": (y, y)}), (3,), "must return a tensor, or a tuple or dict of tens"),
)  # fmt: skip


@pytest.mark.parametrize(("net", "shape", "why"), REFUSED)
def test_what_has_no_counterpart(net: nn.Module, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        tt.nir.to_nir(net, shape)


def test_an_argument_may_be_left_at_its_default() -> None:
    class Optional(nn.Module):
        def __init__(self, function: Any, first: nn.Module) -> None:
            super().__init__()
            self.function, self.first = function, first

        def forward(self, x: Tensor, scale: float = 2.0, start: int = 1) -> Tensor:
            return self.function(self.first(x), scale, start)

    net = Optional(lambda y, scale, start: y, nn.Linear(3, 3))
    assert sorted(tt.nir.to_nir(net, (3,)).nodes) == ["first", "output", "x"]
    net.function = lambda y, scale, start: y + scale
    with pytest.raises(ValueError, match=r"add\(\) in the model's forward has no counterpart"):
        tt.nir.to_nir(net, (3,))
    net = Optional(lambda y, scale, start: y.flatten(start_dim=start), nn.Identity())
    assert tt.nir.to_nir(net, (2, 3)).nodes["flatten"].start_dim == 0
    sample = torch.ones(1, 3)
    tt.nir.to_nir(Net(lambda m, x: x.add_(x)), sample)  # which is left as it was
    assert torch.equal(sample, torch.ones(1, 3))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, y: (y.add_(m.lif(y)), y)[1],
        lambda m, y: alias(y, y, m.lif(y)),
        lambda m, y: alias(y, m.lif(y), m.linear(y)),
        lambda m, y: sum([y, m.lif(y), m.linear(y)]),
    ],
)
def test_a_sum_in_place_or_of_a_list_is_read_as_it_is_computed(forward: Any) -> None:
    agrees(double(calls(forward)), (3,))


def test_a_model_that_cannot_be_read_is_refused() -> None:
    """``tests/snn/test_model_graph.py`` has the others."""
    net = nn.Sequential(nn.Linear(3, 3), snn.LIF(3))
    net[0].register_forward_hook(lambda m, i, y: y * 2)
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(3, 3)), backend="eager")
    hidden = [snn.LIF(3)]
    lost: Any = nn.Linear(3, 2)
    with torch.no_grad():
        lost.weight[0, 0] = float("nan")
    delay: Any = tt.nir.from_nir(line(nir.Delay(np.full(3, DT)), into=(3,), out=(3,)), dt=DT)
    twice = [nn.Sequential(nn.Linear(3, 3), m, m) for m in (snn.LIF(3), delay, delay.nodes["n0"])]
    for model, why in (
        (net, r"0 \(Linear\) has a hook"),
        (compiled, r"OptimizedModule\) has .* what was compiled, _orig_mod"),
        (calls(lambda m, y: hidden[0](y)), r"\(\) in the model's forward"),
        (nn.Sequential(lost), r"node '0' .Affine.: weight must be finite"),
        *((each, r"1 \(\w+\) is called twice in one step") for each in twice),
    ):
        with pytest.raises(ValueError, match=why):
            tt.nir.to_nir(model, (3,))


def test_pruned_and_normalised_weights_are_those_that_the_model_uses() -> None:
    net: Any = double(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), snn.LIF(3)))
    prune.random_unstructured(net[0], "weight", 0.5)
    nn.utils.spectral_norm(net[1]).eval()
    with torch.no_grad():  # as an optimizer step would; the module's own weight is stale now
        net[0].weight_orig.mul_(3)
        net[1].weight_orig.mul_(3)
    made = tt.nir.to_nir(net, (3,))
    net(sequence(1, 3))
    tt.zero_states(net)
    for name, linear in (("0", net[0]), ("1", net[1])):
        assert np.array_equal(made.nodes[name].weight, linear.weight.detach().numpy())


@pytest.mark.parametrize(("dim", "shape"), [(-1, (3,)), (1, (3, 2)), (-3, (3, 2, 1))])
def test_delay_in_seconds(dim: int, shape: tuple[int, ...]) -> None:
    layer = snn.Delay(3, dim, max_delay=5, delay=torch.tensor([4.0, 0.0, 2.0]))
    graph = tt.nir.to_nir(layer, shape, dt=DT)
    (node,) = (each for each in graph.nodes.values() if isinstance(each, nir.Delay))
    steps = np.array([4, 0, 2]).reshape(-1, *[1] * (len(shape) - 1))
    np.testing.assert_array_equal(node.delay, np.broadcast_to(steps * DT, shape))
    x = sequence(9, 2, *shape)
    again = tt.nir.from_nir(graph, dt=DT)
    assert torch.equal(run(again, x), run(layer, x))


NET = nn.Linear(3, 2)


@refusals(
    r"""
    3, (3,) -> TypeError: expected an nn.Module, got int
    NET, "3" -> TypeError: sample must be a tensor .B, ...., a tuple of
    NET, 3 -> TypeError: sample must be a tensor
    NET, () -> TypeError: sample must be a tensor
    NET, (0,) -> TypeError: sample must be a tensor
    NET, (1.5,) -> TypeError: sample must be a tensor
    NET, None -> TypeError: sample must be a tensor
    NET, (3,), mode="small" -> ValueError: 'exact' or 'compact', got 'small'
    NET, (3,), allow_hard_reset=1 -> TypeError: must be True or False, got 1
    nn.Identity(), torch.ones(4) -> ValueError: a sample needs a dimension behind
    NET, torch.ones(1, 3).double()
        -> ValueError: fails on one step of the sample, .* must have the same dtype
    """
)
def test_wrong_arguments(call: str, error: str) -> None:
    check(f"tt.nir.to_nir({call})", error, globals())


# Files


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dt": 1e-3}, (1e-2, "euler", "exact")),
        ({"discretization": "exponential"}, (-1e-4 / np.log(0.9), "exponential", "exact")),
        ({"mode": "compact", "allow_hard_reset": True}, (1e-3, "euler", "compact")),
    ],
    ids=str,
)
def test_options_of_a_graph_are_those_of_a_file(
    options: Any, expected: Any, tmp_path: Path
) -> None:
    """Of a decay of 0.9: the time constant, and what the file says of itself."""
    made = double(snn.LIF(3, beta_rank=0))
    tt.nir.save(made, tmp_path / "net.nir", (3,), **options)
    for found in (nir.read(tmp_path / "net.nir"), tt.nir.to_nir(made, (3,), **options)):
        nodes = [found, *(n for n in found.nodes.values() if isinstance(n, nir.NIRGraph))]
        (tau,) = {t for g in nodes for n in g.nodes.values() for t in set(getattr(n, "tau", ()))}
        meta = found.metadata
        assert tau == pytest.approx(expected[0])
        assert (meta["discretization"], meta["mode"]) == expected[1:]
        assert meta["dt"] == options.get("dt", 1e-4)
