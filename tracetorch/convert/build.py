"""Build the spiking model of a graph."""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import Tensor, nn

from tracetorch.convert.activations import Change, IntegrateAndFire, RunningSum
from tracetorch.convert.network import Cat, Network, Node
from tracetorch.convert.thresholds import Rule, Rules, Times
from tracetorch.snn.model_graph import unused
from tracetorch.snn.module import TTModule


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
        """Run one time step."""
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


def build(network: Network, rules: Rules, times: Times) -> tuple[nn.Module, dict[Node, str]]:
    """Return the spiking model of a network, in float64, and the paths of its neurons."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    wiring: list[tuple[str, tuple[int, ...]]] = []
    places = [0]  # in the wiring, of the value of each node
    neurons: dict[Node, str] = {}
    for node in network.nodes[1:]:
        inputs = tuple(places[source] for source in node.inputs)
        sums: list[tuple[str, nn.Module | None]] = [("", None)]
        for part, module in _modules(node, rules, times) or sums:
            name = ""
            if module is not None:
                name = _unused(node.name.replace(".", "_") + part, parts)
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


def _unused(name: str, parts: dict[str, nn.Module]) -> str:
    """Return a name that a module may have, and none of ``parts`` has."""
    taken = (nn.Sequential(), nn.ModuleDict())
    base = name or "layer"
    while any(hasattr(each, base) for each in taken):
        base += "_"
    return unused(base, parts)


def _modules(node: Node, rules: Rules, times: Times) -> list[tuple[str, nn.Module]]:
    """Return the modules that compute a node over time, each with the end of its name."""
    shape = node.shape
    # features are the last dimension of two, channels the second of more
    dim = -1 if len(shape) == 2 else 1 - len(shape)
    if node.activation is not None:
        return [("", _neurons(shape[dim], dim, rules[node], times).double())]
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


def _neurons(size: int, dim: int, rule: Rule, times: Times) -> IntegrateAndFire:
    """Return the neurons of an activation."""
    # a number for all neurons, or one for each
    threshold = rule.threshold.flatten() if rule.threshold.ndim else float(rule.threshold)
    layer = IntegrateAndFire(size, threshold, times.burst, dim)
    layer.double()
    # to the last bit of float64, where the constructor rounds to the default dtype
    exact = rule.threshold.reshape(layer.raw_pos_threshold.shape)
    layer.raw_pos_threshold.copy_(exact)
    layer.initial_mem.copy_(exact / 2)
    return layer
