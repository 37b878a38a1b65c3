"""A model is read as the graph of what one step calls, or refused in one sentence."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

import tracetorch as tt
from tests.networks import Counts
from tests.refusals import unchanged
from tracetorch import snn
from tracetorch.snn.model_graph import ModelGraph, Node, read_model


class Calls(nn.Module):
    """A forward that a function decides on, behind a linear layer."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.lif, self.drop = nn.Linear(3, 3), snn.LIF(3), nn.Dropout()
        self.relu, self.weight = nn.ReLU(inplace=True), nn.Parameter(torch.ones(3))
        self.log: dict[str, Any] = {"seen": []}
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.linear(x))


def alias(y: Tensor, z: Tensor, added: Tensor) -> Tensor:
    z += added
    return y + z


def written(y: Tensor, part: Tensor) -> Tensor:
    found = torch.zeros(1, 6)
    found[:, :3] = y
    found[:, 3:] = part
    return found


def calls(graph: ModelGraph) -> list[tuple[str, list[str]]]:
    return [(node.name, [each.name for each in node.inputs]) for node in graph.nodes[1:]]


READ: dict[str, tuple[Callable[[Any, Tensor], Any], list[tuple[str, list[str]]]]] = {
    "shortcut": (lambda m, y: m.lif(y) + y, [("lif", ["linear"]), ("add", ["lif", "linear"])]),
    "sum": (lambda m, y: sum([y, m.lif(y)]), [("lif", ["linear"]), ("add", ["linear", "lif"])]),
    "in place": (lambda m, y: alias(y, y, m.lif(y)),
     [("lif", ["linear"]), ("add", ["linear", "lif"]), ("add_1", ["add", "add"])]),
    "module in place": (lambda m, y: m.relu(y) + y, [("relu", ["linear"]), ("add", ["relu"] * 2)]),
    "twice": (lambda m, y: m.drop(m.drop(y)), [("drop", ["linear"]), ("drop_1", ["drop"])]),
    "nothing": (lambda m, y: F.dropout(y, training=False).contiguous(), []),
    "method, function": (lambda m, y: F.relu(y.relu()),
     [("relu_1", ["linear"]), ("relu_2", ["relu_1"])]),
    "shape": (lambda m, y: y.view(y.shape[0], -1, len(y)), [("view", ["linear"])]),
    "parts": (lambda m, y: torch.cat(y.chunk(3, 1)[:2], 1),
     [("chunk", ["linear"])] + [(f"chunk_{i}", ["chunk"])
     for i in range(3)] + [("cat", ["chunk_0", "chunk_1"])]),
    "written": (lambda m, y: written(y, m.lif(y)),
     [("lif", ["linear"]), ("setitem", ["linear"]), ("setitem_1", ["setitem", "lif"])]),
    "constant": (lambda m, y: y * torch.ones(3), [("mul", ["linear"])]),
    "a state is there": (lambda m, y: y if m.lif(y) is None or m.lif.mem is None else y + 1,
     [("lif", ["linear"]), ("add", ["linear"])]),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_calls_in_order_and_what_they_compute(name: str) -> None:
    function, expected = READ[name]
    net, x = Calls(function).eval(), torch.randn(1, 3)
    graph = read_model(net, x)
    assert calls(graph)[1:] == expected
    assert all(node.shape is not None for node in graph.nodes if node.name != "chunk")
    tt.zero_states(net)
    wanted = net(x)
    tt.zero_states(net)
    if name != "a state is there":
        assert torch.equal(graph.run(x), wanted)


def test_names_places_shapes_and_users() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), Calls(lambda m, y: {"a": y, "b": m.lif(y).sum(-1)}))
    graph = read_model(net[1], torch.ones(5, 3))
    assert [node.place for node in graph.nodes] == [
        *("input 'x'", "linear (Linear)", "lif (LIF)", "sum() in the model's forward")
    ]
    assert [list(node.shape or ()) for node in graph.nodes] == [[5, 3], [5, 3], [5, 3], [5]]
    assert {name: node.index for name, node in graph.output.items()} == {"a": 1, "b": 3}
    assert graph.users[graph.nodes[1]] == [graph.nodes[2]]
    assert graph.nodes[3].operation == "sum"
    inner = read_model(nn.Sequential(nn.Identity(), Calls(lambda m, y: -y)), torch.ones(5, 3))
    assert inner.nodes[-1].place == "neg() in the forward of 1 (Calls)"
    assert inner.nodes[-1].path == "1"
    assert repr(inner.nodes[-1]) == "Node(3, 'neg', inputs=[2])"


def test_several_inputs_and_outputs() -> None:
    attention = nn.MultiheadAttention(4, 2)
    x = torch.randn(2, 3, 4)
    graph = read_model(attention, x, x, value=x)
    assert [node.name for node in graph.inputs] == ["query", "key", "value"]
    assert [node.index for node in graph.output] == [4, 5]
    assert graph.nodes[3].inputs == graph.inputs
    wanted = attention.eval()(x, x, x)
    # given three tensors, it has another formula
    assert all(map(torch.allclose, graph.run(x, x, x), wanted))


def test_leaves() -> None:
    recurrent = snn.Recurrent(snn.LIF(3), nn.Linear(3, 3))
    net, x = nn.Sequential(nn.Linear(3, 3), recurrent, Calls(lambda m, y: y)), torch.ones(1, 3)
    assert [n.name for n in read_model(net, x).nodes[1:]] == ["0", "1", "2.linear"]
    graph = read_model(net, x, is_leaf=lambda m: isinstance(m, Calls | nn.Linear), strict=False)
    assert [n.name for n in graph.nodes[1:] if n.module] == ["0", "1.connection", "2"]
    assert [n.path for n in read_model(snn.LIF(3), x).nodes] == ["", ""]


def test_a_chain() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Flatten(), snn.LIF(2)))
    x = torch.ones(1, 3)
    assert [node.path for node in read_model(net, x).chain()] == ["0", "1.0", "1.1"]
    for function, message in (
        (lambda m, y: m.lif(y.relu()), r"relu\(\) in the model's forward is not a module that is"),
        (lambda m, y: (m.lif(y), m.drop(y))[1], r"drop \(Dropout\) is not a module that is given"),
        (lambda m, y: (m.lif(y), y)[1], r"does not return what lif \(LIF\) gives"),
    ):
        with pytest.raises(ValueError, match=message):
            read_model(Calls(function), x).chain()


def hooked(function: Callable[[nn.Module], Any]) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 3), snn.LIF(3))
    function(net[0])
    return net


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "hook": (hooked(lambda m: m.register_forward_hook(lambda m, x, y: y * 2)),
     r"0 \(Linear\) has a hook or a forward of its own"),
    "pre-hook": (hooked(lambda m: m.register_forward_pre_hook(lambda m, x: None)),
     r"0 \(Linear\) has a hook"),
    "forward": (hooked(lambda m: setattr(m, "forward", abs)), r"0 \(Linear\) has a hook or a forw"),
    "compiled": (hooked(lambda m: m.compile()), r"0 \(Linear\) has .* or is compiled"),
    "memory": (Counts(3), r"the model \(Counts\) keeps a memory of its own, 'last', which"),
    "parameter": (Calls(lambda m, y: y + m.weight), r"add\(\) in .* is given 'weight' by itself"),
    "state": (Calls(lambda m, y: m.lif(y) + m.lif.mem), "given 'lif.mem' by itself, and param"),
    "branch": (Calls(lambda m, y: y if y.sum() > 0 else -y), r"bool\(\) in .* reads num"),
    "number": (Calls(lambda m, y: y * y.max().item()), r"item\(\) in the model's forward reads"),
    "view": (Calls(lambda m, y: alias(y, m.drop(y), m.lif(y))),
     r"add\(\) in .* is given the value of linear \(Linear\) from before it was wr"),
    "keeps": (Calls(lambda m, y: (setattr(m, "last", y), y)[1]), "forward of Calls sets 'last', "),  # type: ignore[func-returns-value]
    "keeps deeper": (Calls(lambda m, y: (m.log["seen"].append(1), y)[1]), "Calls sets 'log', "),
    "resets": (Calls(lambda m, y: (m.lif(y), m.lif.zero_states(), y)[2]),
     "forward of Calls sets 'lif.mem', which .*zero_states"),
    "resets before": (Calls(lambda m, y: (m.lif.zero_states(), m.lif(y))[1]),
     "forward of Calls sets 'lif.mem', which"),
    "number returned": (Calls(lambda m, y: 3), "must return a tensor that it has computed"),
    "constant returned": (Calls(lambda m, y: torch.ones(3)), "must return a tensor that it has"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_does_not_tell(name: str) -> None:
    net, message = REFUSED[name]
    with unchanged(net), pytest.raises(ValueError, match=message):
        read_model(net, torch.ones(1, 3))
    assert torch._C._len_torch_function_stack() == 0  # nothing is watched any more
    if name in ("branch", "parameter", "keeps", "hook", "view"):
        graph = read_model(net, torch.ones(1, 3), strict=False)
        assert isinstance(graph.output, Node)


def test_a_model_that_cannot_run_raises_what_it_raises() -> None:
    calls = [0]

    def second(m: Any, y: Tensor) -> Tensor:
        calls[0] += 1
        return m.linear(y if calls[0] == 1 else y[:, :1])

    with pytest.raises(TypeError, match="missing 1 required"):
        read_model(nn.Bilinear(3, 3, 2), torch.ones(1, 3))
    for net, size in ((nn.Linear(3, 2), 4), (Calls(second), 3)):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            read_model(net, torch.ones(1, size))
    assert torch._C._len_torch_function_stack() == 0


def test_the_model_is_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), snn.LIF(3)).train()
    net(torch.rand(4, 3))
    state, x = net[3].mem, torch.rand(4, 3)
    given = x.clone()
    with unchanged(net):
        read_model(nn.Sequential(net, nn.ReLU(inplace=True)), x)
        read_model(Calls(lambda m, y: y), x.requires_grad_())
    assert net[3].mem is state
    assert torch.equal(x, given)
    with torch.inference_mode():
        assert calls(read_model(net, torch.rand(4, 3)))[-1] == ("3", ["2"])


def test_another_thread_may_run_the_model_meanwhile() -> None:
    started, go_on, runs = threading.Event(), threading.Event(), []

    def wait(m: Any, y: Tensor) -> Tensor:
        runs.append(m)
        if len(runs) == 2:  # the step that is watched
            started.set()
            assert go_on.wait(120)
        return m.lif(y)

    net, x = Calls(wait), torch.rand(2, 3)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_model, net, x)
        assert started.wait(120)
        before = net.drop(net.linear(x))
        go_on.set()
        graph = reading.result()
    assert [node.name for node in graph.nodes] == ["x", "linear", "lif"]
    assert before.shape == (2, 3)
