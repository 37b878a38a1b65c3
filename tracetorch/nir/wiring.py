"""Order the nodes of a graph for one time step, and find the edges that wait for the next step."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

from tracetorch.nir.graph import LAYER, MEMBRANES, Graph, Node, Shape, naming
from tracetorch.nir.layer_metadata import restored
from tracetorch.nir.options import Clock
from tracetorch.nir.shapes import output_shape

Edge: TypeAlias = tuple[str, str]

INPUT_ORDER = "inputs"  # the key in a graph's metadata under which our writer keeps it
# A cycle must pass through one of these; without, it would be an equation, not a network.
_BREAKS_CYCLES = (*MEMBRANES, LAYER, "Delay", "Threshold")


@dataclass(frozen=True)
class Wiring:
    """Hold what flows where in a flat graph.

    Args:
        order: names of the nodes, in the order in which they compute.
        now: for each node, the nodes whose output of this step it adds up.
        late: likewise, of the step before.
        shapes: of each node's output.
        inputs: names of the Inputs, in order.
        outputs: names of the Outputs, in order.
    """

    order: list[str]
    now: dict[str, list[str]]
    late: dict[str, list[str]]
    shapes: dict[str, Shape]
    inputs: list[str]
    outputs: list[str]

    def input_shape(self, name: str) -> Shape:
        """Return the shape of what enters a node; an Input is its own source."""
        return self.shapes[self.now[name][0] if self.now[name] else name]


def wire(graph: Graph, clock: Clock) -> tuple[dict[str, Node], Wiring]:
    """Flatten, order and check a graph; nodes that lead to no Output are left out.

    An edge is late if it closes a cycle: walked depth first from the Inputs, in the order of the
    edges, it leads back to a node that the walk is still inside of.

    Raises:
        ValueError: a node has no input, a cycle has no neuron, shapes do not fit, there is no
            Input or no Output.
    """
    nodes, edges = _flat(graph, clock)
    inputs, outputs = _ordered_inputs(graph), graph.names("Output")
    for kind, names, does in (("Input", inputs, "begin"), ("Output", outputs, "end")):
        if not names:
            raise ValueError(f"the graph has no {kind} node: where does it {does}?")
    given = set(inputs)
    for _, end in edges:
        if end in given:
            raise ValueError(f"node {end!r} is an Input, and an edge leads into it.")
    passive = {name for name, node in nodes.items() if node.kind not in _BREAKS_CYCLES}
    _sorted(
        passive, [e for e in edges if passive.issuperset(e)], "a cycle has no neuron in it: nodes"
    )
    late = _closing_edges(inputs, edges)
    on_time = [edge for edge in edges if edge not in late]
    order = _sorted(nodes, on_time, "no Input leads into a cycle: nodes")

    # Inputs that lead nowhere are arguments of the model still.
    needed = _reachable(outputs, [(end, start) for start, end in edges]) | given
    wiring = Wiring([name for name in order if name in needed], {}, {}, {}, inputs, outputs)
    for name in wiring.order:
        wiring.now[name], wiring.late[name] = [], []
    for edge in edges:
        if edge[1] in needed:
            (wiring.late if edge in late else wiring.now)[edge[1]].append(edge[0])
    for name in wiring.order:
        if not wiring.now[name] and name not in given:
            raise ValueError(f"node {name!r} gets nothing from any Input.")
        wiring.shapes[name] = _shape_of(name, nodes[name], wiring)
    for name, sources in wiring.late.items():
        for source in sources:
            shape, back = wiring.input_shape(name), wiring.shapes[source]
            if shape != back:
                raise ValueError(
                    f"node {name!r} gets shape {list(shape)}, and {list(back)} back from "
                    f"{source!r}."
                )
    return {name: nodes[name] for name in wiring.order}, wiring


def _ordered_inputs(graph: Graph) -> list[str]:
    """Return the Inputs as ``forward`` took them, where the metadata say so; by name otherwise."""
    inputs = graph.names("Input")
    try:
        order = [str(name) for name in json.loads(graph.metadata.get(INPUT_ORDER, ""))]
    except (TypeError, ValueError, RecursionError):
        return inputs
    return order if sorted(order) == inputs else inputs


def _flat(graph: Graph, clock: Clock, prefix: str = "") -> tuple[dict[str, Node], list[Edge]]:
    """Return all nodes, inner ones as ``outer.inner``, and edges; our own layers stay whole."""
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    # where edges to and from a node of this graph end in the flat one
    enter: dict[str, str] = {}
    leave: dict[str, str] = {}
    for name, node in graph.nodes.items():
        full = f"{prefix}{name}"
        enter[name] = leave[name] = full
        found = restored(node, clock) or node
        inner = {full: found} if isinstance(found, Node) else {}
        if isinstance(found, Graph):
            inputs, outputs = found.names("Input"), found.names("Output")
            if len(inputs) != 1 or len(outputs) != 1:
                raise ValueError(
                    f"graph {full!r} has {len(inputs)} Inputs and {len(outputs)} Outputs; inside "
                    "another graph it needs one of each, for an edge cannot say which it means."
                )
            inner, inner_edges = _flat(found, clock, f"{full}.")
            edges += inner_edges
            enter[name], leave[name] = f"{full}.{inputs[0]}", f"{full}.{outputs[0]}"
        for clash in nodes.keys() & inner.keys():
            raise ValueError(f"two nodes would be called {clash!r}. Rename one.")
        nodes |= inner
    return nodes, edges + [(leave[start], enter[end]) for start, end in graph.edges]


def _sorted(names: Collection[str], edges: list[Edge], complaint: str) -> list[str]:
    sorter = TopologicalSorter[str](dict.fromkeys(names, ()))
    for start, end in edges:
        sorter.add(end, start)
    try:
        return list(sorter.static_order())
    except CycleError as error:
        raise ValueError(f"{complaint} {sorted(set(error.args[1]))[:5]}.") from error


def _following(edges: list[Edge]) -> defaultdict[str, list[str]]:
    following: defaultdict[str, list[str]] = defaultdict(list)
    for start, end in edges:
        following[start].append(end)
    return following


def _closing_edges(inputs: list[str], edges: list[Edge]) -> set[Edge]:
    following = _following(edges)
    first = {start: i for i, (start, _) in reversed(list(enumerate(edges)))}
    closing: set[Edge] = set()
    inside: set[str] = set()
    done: set[str] = set()
    # a stack instead of recursion: a file may chain any number of nodes
    for root in sorted(inputs, key=lambda name: first.get(name, len(edges))):
        inside.add(root)
        stack = [(root, iter(following[root]))]
        while stack:
            name, rest = stack[-1]
            end = next(rest, None)
            if end is None:
                stack.pop()
                inside.discard(name)
                done.add(name)
            elif end in inside:
                closing.add((name, end))
            elif end not in done:
                inside.add(end)
                stack.append((end, iter(following[end])))
    return closing


def _reachable(starts: list[str], edges: list[Edge]) -> set[str]:
    following, found, stack = _following(edges), set(starts), list(starts)
    while stack:
        fresh = set(following[stack.pop()]) - found
        found |= fresh
        stack += fresh
    return found


def _shape_of(name: str, node: Node, wiring: Wiring) -> Shape:
    shapes = [wiring.shapes[source] for source in wiring.now[name]]
    if len(set(shapes)) > 1:
        raise ValueError(f"node {name!r} adds up inputs of different shapes: {shapes}.")
    with naming(name, node.kind):
        return output_shape(node, shapes[0] if shapes else node.settings["shape"])
