"""Build the spiking model of a graph."""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import Tensor, nn

from tracetorch.convert.activations import Change, IntegrateAndFire, RunningSum
from tracetorch.convert.network import Cat, Network, Node
from tracetorch.convert.thresholds import Rule, Rules
from tracetorch.snn.model_graph import unused
from tracetorch.snn.module import TTModule

_TAKEN = {*dir(nn.Sequential()), *dir(nn.ModuleDict())}  # names that no module may have


class Wired(TTModule):
    """Modules, each given the sum of some values before it, or if it joins them all of them."""

    # for each value behind the input the name of what computes it, empty for a sum alone, and the
    # places of what that is given
    wiring: tuple[tuple[str, tuple[int, ...]], ...]
    output: int  # its place

    def __init__(
        self,
        wiring: tuple[tuple[str, tuple[int, ...]], ...],
        parts: dict[str, nn.Module],
        output: int,
    ) -> None:
        super().__init__()
        self.wiring, self.output = wiring, output
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for name, places in self.wiring:
            given = [values[place] for place in places]
            if name and isinstance(self.parts[name], Cat):
                values.append(self.parts[name](*given))
                continue
            total, *others = given
            for other in others:
                total = total + other
            values.append(self.parts[name](total) if name else total)
        return values[self.output]


def build(network: Network, rules: Rules, burst: int) -> tuple[nn.Module, dict[Node, str]]:
    """Return the spiking model of a network, in float64, and the paths of its neurons."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    wiring: list[tuple[str, tuple[int, ...]]] = []
    places = [0]  # in the wiring, of the value of each node
    neurons: dict[Node, str] = {}
    for node in network.nodes[1:]:
        inputs = tuple(places[source] for source in node.inputs)
        sums: list[tuple[str, nn.Module | None]] = [("", None)]
        for part, module in _modules(node, rules, burst) or sums:
            name = ""
            if module is not None:
                name = unused(node.name.replace(".", "_") + part or "layer", {*_TAKEN, *parts})
                parts[name] = module
                if node.activation is not None:
                    neurons[node] = name
            wiring.append((name, inputs))
            inputs = (len(wiring),)
        places.append(len(wiring))
    output = places[network.output]
    chain = [(name, (place,)) for place, name in enumerate(parts)]
    if wiring == chain and output == len(wiring):
        return nn.Sequential(parts), neurons
    model = Wired(tuple(wiring), dict(parts), output)
    return model, {node: f"parts.{name}" for node, name in neurons.items()}


def _modules(node: Node, rules: Rules, burst: int) -> list[tuple[str, nn.Module]]:
    """Return the modules that compute a node over time, each with the end of its name."""
    shape = node.shape
    # features are the last dimension of two, channels the second of more
    dim = -1 if len(shape) == 2 else 1 - len(shape)
    if node.activation is not None:
        return [("", _neurons(shape[dim], dim, rules[node], burst))]
    if node.module is None:
        return []
    module = copy.deepcopy(node.module)
    if node.kind == "max":
        return [
            ("_sum", RunningSum(shape[dim], dim)),
            ("", module),
            ("_change", Change(shape[dim], dim)),
        ]
    return [("", module)]


def _neurons(size: int, dim: int, rule: Rule, burst: int) -> IntegrateAndFire:
    # a number for all neurons, or one for each
    threshold = rule.threshold.flatten() if rule.threshold.ndim else float(rule.threshold)
    layer = IntegrateAndFire(size, threshold, burst, dim).double()
    # to the last bit of float64, where the constructor rounds to the default dtype
    layer.raw_pos_threshold.copy_(rule.threshold.reshape(layer.raw_pos_threshold.shape))
    layer.initial_mem.copy_(layer.raw_pos_threshold / 2)
    return layer
