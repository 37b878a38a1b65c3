"""Order the nodes of a NIR graph for a time step, and find the edges that wait for the next."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from tracetorch.nir.layer_values import restored
from tracetorch.nir.node_graph import LAYER, MEMBRANES, Node, NodeGraph, Shape
from tracetorch.nir.options import Clock

Edge: TypeAlias = tuple[str, str]
Sources: TypeAlias = defaultdict[str, list[str]]

INPUT_ORDER = "inputs"  # the key in a graph's metadata under which our writer keeps it
# A cycle must pass through one of these.
_BREAKS_CYCLES = (*MEMBRANES, LAYER, "Delay", "Threshold")


@dataclass(frozen=True)
class Wiring:
    """Hold what flows where in a flat graph, by the names of the nodes."""

    order: list[str]  # in which the nodes compute
    inputs: list[str]  # in the order of the model's arguments
    outputs: list[str]
    # for each node, those whose output of this step it adds up, and of the step before
    now: Sources = field(default_factory=lambda: defaultdict(list))
    late: Sources = field(default_factory=lambda: defaultdict(list))
    shapes: dict[str, Shape] = field(default_factory=dict)  # of each node's output

    def input_shape(self, name: str) -> Shape:
        """Return the shape of what enters a node; an Input is its own source."""
        return self.shapes[self.now[name][0] if self.now[name] else name]


def wire(graph: NodeGraph, clock: Clock) -> tuple[dict[str, Node], Wiring]:
    """Flatten and order a graph; nodes that lead to no Output are left out.

    An edge is late if it closes a cycle: walked depth first from the Inputs, in the order of the
    edges, it leads back to a node that the walk is still inside of.
    """
    nodes, edges = _flat(graph, clock)
    inputs, outputs = sorted(graph.names("Input")), sorted(graph.names("Output"))
    with suppress(TypeError, ValueError, RecursionError):  # as forward took them
        order = [str(name) for name in json.loads(graph.metadata.get(INPUT_ORDER, ""))]
        inputs = order if sorted(order) == inputs else inputs
    if not inputs or not outputs:
        raise ValueError("the graph needs an Input and an Output node: where it begins and ends.")
    order, late = depth_first(inputs, edges)
    # Inputs that lead nowhere are arguments of the model still.
    needed = {*depth_first(outputs, [(end, start) for start, end in edges])[0], *inputs}
    wiring = Wiring([name for name in order if name in needed], inputs, outputs)
    for start, end in edges:
        if end in needed:
            (wiring.late if (start, end) in late else wiring.now)[end].append(start)
    for name in {end for _, end in edges}.intersection(inputs):
        raise ValueError(f"node {name!r} is an Input, and an edge leads into it.")
    # What is left without the nodes that remember must have no cycles: they would be equations.
    instant = {name for name, node in nodes.items() if node.kind not in _BREAKS_CYCLES}
    for start, end in depth_first(
        list(nodes), [edge for edge in edges if instant.issuperset(edge)]
    )[1]:
        raise ValueError(f"a cycle has no neuron in it: {start!r} leads back to {end!r} at once.")
    for name in sorted(needed.difference(order)):
        raise ValueError(f"node {name!r} gets nothing from any Input.")
    return {name: nodes[name] for name in wiring.order}, wiring


def _flat(graph: NodeGraph, clock: Clock, prefix: str = "") -> tuple[dict[str, Node], list[Edge]]:
    """Return all nodes, inner ones as ``outer.inner``, and edges; our own layers stay whole."""
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    # where edges to and from a node of this graph end in the flat one
    enter = {name: f"{prefix}{name}" for name in graph.nodes}
    leave = dict(enter)
    for name, full in list(enter.items()):
        node = restored(graph.nodes[name], clock) or graph.nodes[name]
        if isinstance(node, NodeGraph):
            inputs, outputs = node.names("Input"), node.names("Output")
            if len(inputs) != 1 or len(outputs) != 1:
                raise ValueError(
                    f"graph {full!r} has {len(inputs)} Inputs and {len(outputs)} Outputs; inside "
                    "another graph it needs one of each, for an edge cannot say which it means."
                )
            enter[name], leave[name] = f"{full}.{inputs[0]}", f"{full}.{outputs[0]}"
            inner, inner_edges = _flat(node, clock, f"{full}.")
        else:
            inner, inner_edges = {full: node}, []
        edges += inner_edges
        if clash := nodes.keys() & inner.keys():
            raise ValueError(f"two nodes would be called {min(clash)!r}. Rename one.")
        nodes |= inner
    return nodes, edges + [(leave[start], enter[end]) for start, end in graph.edges]


def depth_first(roots: list[str], edges: list[Edge]) -> tuple[list[str], set[Edge]]:
    """Return what ``roots`` lead to, sources first, and the edges that close cycles."""
    following: defaultdict[str, list[str]] = defaultdict(list)
    first: dict[str, int] = {}
    for i, (start, end) in enumerate(edges):
        following[start].append(end)
        first.setdefault(start, i)
    closing: set[Edge] = set()
    inside: set[str] = set()
    done: dict[str, None] = {}  # in the order in which the walk leaves the nodes
    # a stack instead of recursion: a file may chain any number of nodes
    for root in sorted(roots, key=lambda name: first.get(name, len(edges))):
        inside.add(root)
        stack = [(root, iter(following[root]))]
        while stack:
            name, rest = stack[-1]
            end = next(rest, "")
            if not end:
                stack.pop()
                inside.discard(name)
                done[name] = None
            elif end in inside:
                closing.add((name, end))
            elif end not in done:
                inside.add(end)
                stack.append((end, iter(following[end])))
    return list(reversed(done)), closing
