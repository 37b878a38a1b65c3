"""Read a model as a chain of modules, with branches that are added, and run it over a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from tracetorch.core.snapshot import restored
from tracetorch.snn.model_graph import ModelGraph, Node, check_plain_weights, read_model
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import get_states

_TRIED = 3  # steps over which a graph is compared with the model that it was read from


class Call(NamedTuple):
    """Module of a chain, and the shape of what it returns."""

    path: str
    module: nn.Module
    shape: torch.Size


class Join(NamedTuple):
    """Two branches, whose outputs are added: of calls, or of what these are cut into."""

    first: list[Any]
    second: list[Any]


Chain: TypeAlias = list[Call | Join]


def read_chain(model: nn.Module, x: Tensor) -> Chain:
    """Return the modules that a call of a model runs, in order, and where branches are added."""
    check_plain_weights(model)

    def is_leaf(module: nn.Module) -> bool:
        parametrized = "parametrizations" in module._modules
        return isinstance(module, SequenceLayer) or parametrized or not any(module.children())

    graph = read_model(model, x[0], is_leaf=is_leaf)
    chain = _Graph(graph).chain()
    _check_same(model, graph, x[:_TRIED])
    return chain


@torch.no_grad()
def _check_same(model: nn.Module, graph: ModelGraph, x: Tensor) -> None:
    found = []
    with restored(model, training=False):
        for run in (model, graph.run):
            zero_states(model)
            outputs = [run(step.clone()) for step in x.unbind(0)]
            found.append([*outputs, *get_states(model).values()])
    for wanted, value in zip(*found, strict=True):
        if wanted is not value and not torch.equal(wanted, value):
            raise ValueError(
                "the model's output over the sample is not that of its modules: its forward "
                "computes something besides. A model is quantised as a chain of modules."
            )


class _Graph:
    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        # of each node, those through which everything goes that reaches it, and itself
        self.trunks: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            pairs = zip(*(self.trunks[source] for source in node.inputs), strict=False)
            self.trunks[node] = [*(each[0] for each in pairs if len(set(each)) == 1), node]

    def chain(self) -> Chain:
        start, *calls = self.graph.nodes
        layers = [node for node in calls if _module_of(node) is not None]
        for node in calls:
            again = [each for each in layers if each.module is node.module is not None]
            if len(again) > 1:
                raise ValueError(f"{node.place} is called twice in a step: build two of it.")
            adds = node.operation in ("add", "add_") and len(node.inputs) == len(node.args) == 2
            alike = {each.shape for each in node.inputs} == {node.shape} and not node.kwargs
            if node not in layers and not (adds and alike):
                raise ValueError(
                    f"{node.place} has no integer form between modules. A model is quantised as a "
                    "chain of modules, each given what the one before returned, and of branches "
                    "whose spikes are added: use nn.MaxPool2d and the like, and leave what follows "
                    "the last module to whoever calls the model."
                )
        if not isinstance(self.graph.output, Node):
            raise ValueError(
                f"the model returns a {type(self.graph.output).__name__}, and a quantised one "
                "returns one tensor. Let its forward return what the last module gives."
            )
        chain = self.between(start, self.graph.output)
        if len(list(flat(chain))) != len(layers):
            raise ValueError(
                "the modules of the model are no chain, nor branches of one whose outputs are "
                "added: the output of one is not used, or enters a branch from beside."
            )
        return chain

    def between(self, start: Node, node: Node) -> Chain:
        found: Chain = []
        while node is not start:
            module = _module_of(node)
            if module is not None:
                found.append(Call(node.name, module, node.shape or torch.Size()))
                (node,) = node.inputs
            else:
                fork = self.trunks[node][-2]
                first, second = (self.between(fork, source) for source in node.inputs)
                found.append(Join(first, second))
                node = fork
        return found[::-1]


def _module_of(node: Node) -> nn.Module | None:
    """Return the module that computes a node of one input, if one does, flatten and mean too."""
    module = node.module
    if node.operation == "flatten":
        dims = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        return nn.Flatten(**{"start_dim": 0, **dims})
    if module is None or len(node.inputs) != 1 or len(node.args) != 1 or node.kwargs:
        return None
    of: dict[type[nn.Module], int] = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2}
    ndim = of.get(type(module))
    if ndim is not None and node.shape is not None and node.shape[-ndim:].numel() == 1:
        places: Any = node.inputs[0].shape
        return (nn.AvgPool1d if ndim == 1 else nn.AvgPool2d)(places[-ndim:])
    return module


def flat(parts: Iterable[Any]) -> Iterator[Any]:
    """Iterate over the parts of a chain, with those of its branches in place of each join."""
    for part in parts:
        if isinstance(part, Join):
            yield from flat((*part.first, *part.second))
        else:
            yield part


@torch.no_grad()
def run_by_step(
    model: nn.Module, x: Tensor, neurons: Mapping[str, Neuron], see: Callable[[str, Neuron], None]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a model over a sequence from rest, as in evaluation; nothing of it changes."""
    signs: dict[str, list[Tensor]] = {name: [] for name in neurons}

    def keep_sign(name: str, layer: nn.Module, args: Any, output: Tensor) -> None:
        signs[name].append(output.sign().to(torch.int8))

    outputs = []
    with restored(model, training=False), ExitStack() as hooks:
        for name, layer in neurons.items():
            hooks.enter_context(layer.register_forward_hook(partial(keep_sign, name)))
        zero_states(model)
        for step in x.unbind(0):
            outputs.append(model(step))
            for name, layer in neurons.items():
                see(name, layer)
    return torch.stack(outputs), {name: torch.stack(each) for name, each in signs.items()}
