"""Order the nodes of a NIR graph for a time step, and find the edges that wait for the next.

A cycle begins at those of its nodes where the Inputs enter it. An edge of the cycle into such a
node is late if it comes out of what spikes, or from behind it: if every way from where the Inputs
enter to its source crosses a node of the cycle that spikes. What is then left of cycles is treated
alike, and one in which nothing spikes by the nodes that hold a state. So what is late follows from
the nodes, and not from the order in which a file happens to have them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from tracetorch.nir.nodes import Edge, Node, NodeGraph, Shape, driven, reached

Sources: TypeAlias = defaultdict[str, list[str]]
Value: TypeAlias = tuple[str, bool]  # of a node: of this step, or if true of the step before
N = TypeVar("N", bound=Hashable)

INPUT_ORDER = "inputs"  # the key in a graph's metadata under which our writer keeps it


@dataclass(frozen=True)
class Wiring:
    """Hold what flows where in a flat graph, by the names of the nodes."""

    order: list[str]  # of all nodes, each behind those whose output it adds up in the same step
    inputs: list[str]  # in the order of the model's arguments
    outputs: list[str]
    # for each node, those whose output of this step it adds up, and of the step before
    now: Sources = field(default_factory=lambda: defaultdict(list))
    late: Sources = field(default_factory=lambda: defaultdict(list))
    # What a step computes, and of what: also anew what stands behind a spike of the step before.
    plan: list[tuple[Value, list[Value]]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # nodes whose outputs are kept for the next step
    silent: set[str] = field(default_factory=set)  # Scales by zero, which make constants
    shapes: dict[str, Shape] = field(default_factory=dict)  # of each node's output

    def input_shape(self, name: str) -> Shape:
        """Return the shape of what enters a node; an Input is its own source."""
        return self.shapes[self.now[name][0] if self.now[name] else name]


def wire(graph: NodeGraph) -> tuple[dict[str, Node], Wiring]:
    """Flatten and order a graph; nodes that lead to no Output are left out."""
    nodes, edges = _flat(graph)
    edges.sort()  # nothing depends on the order in which a file has them
    inputs, outputs = sorted(graph.names("Input")), sorted(graph.names("Output"))
    with suppress(TypeError, ValueError, RecursionError):  # as forward took them
        order = [str(name) for name in json.loads(graph.metadata.get(INPUT_ORDER, ""))]
        inputs = order if sorted(order) == inputs else inputs
    if not inputs or not outputs:
        raise ValueError("the graph needs an Input and an Output node: where it begins and ends.")
    for name in sorted({end for _, end in edges}.intersection(inputs)):
        raise ValueError(f"node {name!r} is an Input, and an edge leads into it.")
    # Without the nodes that remember there must be no cycles: they would be equations.
    for cycle in cycles(edge for edge in edges if not any(nodes[end].holds for end in edge)):
        names = ", ".join(map(repr, sorted(cycle)))
        raise ValueError(f"a cycle has no neuron in it: {names} wait for each other.")
    late = late_edges(nodes, edges)
    order = ordered(sorted(inputs), [edge for edge in edges if edge not in late])
    # Inputs that lead nowhere are arguments of the model still.
    needed = {*reached(outputs, [(end, start) for start, end in edges]), *inputs}
    for name in sorted(needed.difference(order)):
        raise ValueError(f"node {name!r} gets nothing from any Input.")
    wiring = Wiring([name for name in order if name in needed], inputs, outputs)
    for start, end in edges:
        if end in needed:
            (wiring.late if (start, end) in late else wiring.now)[end].append(start)
    wiring.silent.update(name for name, node in nodes.items() if node.silent)
    _plan(wiring, nodes, edges)
    return {name: nodes[name] for name in wiring.order}, wiring


def late_edges(nodes: Mapping[str, Node], edges: Collection[Edge]) -> set[Edge]:
    """Return the edges that bring what spiked in the step before."""
    variable = driven(nodes, edges)
    spiking = {name for name, node in nodes.items() if node.spikes}
    holding = {name for name, node in nodes.items() if node.holds}
    late: set[Edge] = set()
    pending = [(cycle, list(edges)) for cycle in cycles(edges)]
    while pending:
        cycle, left = pending.pop()
        entering = [(a, b) for a, b in left if b in cycle and a not in cycle]
        # a constant drives a node, and begins nothing
        entries = {b for a, b in entering if a in variable} or {b for _, b in entering}
        inside = [(a, b) for a, b in left if a in cycle and b in cycle]
        for breaks in (spiking, holding):
            first = reached(entries, [(a, b) for a, b in inside if a not in breaks])
            back = {(a, b) for a, b in inside if b in entries and (a in breaks or a not in first)}
            if back:
                late |= back
                left = [edge for edge in left if edge not in back]
                inside = [edge for edge in inside if edge not in back]
                pending += [(each, left) for each in cycles(inside)]
                break
    return late


def _plan(wiring: Wiring, nodes: Mapping[str, Node], edges: Collection[Edge]) -> None:
    """Note what a step computes, and what it keeps for the next."""
    cycle_of = {name: i for i, cycle in enumerate(cycles(edges)) for name in cycle}
    sources: dict[Value, list[Value]] = {}
    waiting: list[Value] = [(name, False) for name in wiring.outputs]
    while waiting:
        value = name, before = waiting.pop()
        if value in sources:
            continue
        now, late = wiring.now.get(name, []), wiring.late.get(name, [])
        if not before:
            sources[value] = [*((each, False) for each in now), *((each, True) for each in late)]
        elif nodes[name].holds:
            sources[value] = []
            wiring.kept.append(name)
            waiting.append((name, False))
        else:  # what comes from outside of the cycle, a constant, is the same in every step
            same = cycle_of[name]
            sources[value] = [(each, cycle_of.get(each) == same) for each in (*now, *late)]
        waiting += sources[value]
    wiring.kept.sort()
    roots = sorted(value for value, made_of in sources.items() if not made_of)
    order = ordered(
        roots, [(each, value) for value, made_of in sources.items() for each in made_of]
    )
    wiring.plan.extend((value, sources[value]) for value in order if sources[value])


def _flat(graph: NodeGraph, prefix: str = "") -> tuple[dict[str, Node], list[Edge]]:
    """Return all nodes, inner ones as ``outer.inner``, and edges."""
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    # where edges to and from a node of this graph end in the flat one
    enter = {name: f"{prefix}{name}" for name in graph.nodes}
    leave = dict(enter)
    for name, full in list(enter.items()):
        node = graph.nodes[name]
        if isinstance(node, NodeGraph):
            inputs, outputs = node.names("Input"), node.names("Output")
            if len(inputs) != 1 or len(outputs) != 1:
                has = f"has {len(inputs)} Inputs and {len(outputs)} Outputs"
                raise ValueError(
                    f"graph {full!r} {has}; inside another graph it needs one of each."
                )
            enter[name], leave[name] = f"{full}.{inputs[0]}", f"{full}.{outputs[0]}"
            inner, inner_edges = _flat(node, f"{full}.")
        else:
            inner, inner_edges = {full: node}, []
        edges += inner_edges
        if clash := nodes.keys() & inner.keys():
            raise ValueError(f"two nodes would be called {min(clash)!r}. Rename one.")
        nodes |= inner
    return nodes, edges + [(leave[start], enter[end]) for start, end in graph.edges]


def ordered(roots: Iterable[N], edges: Iterable[tuple[N, N]]) -> list[N]:
    """Return what ``roots`` lead to, and where there are no cycles sources first."""
    following: defaultdict[N, list[N]] = defaultdict(list)
    for start, end in edges:
        following[start].append(end)
    seen: set[N] = set()
    left: list[N] = []  # in the order in which the walk leaves the nodes
    # a stack instead of recursion: a file may chain any number of nodes
    for root in roots:
        stack = [] if root in seen else [(root, iter(following[root]))]
        seen.add(root)
        while stack:
            unseen = next((each for each in stack[-1][1] if each not in seen), None)
            if unseen is None:
                left.append(stack.pop()[0])
            else:
                seen.add(unseen)
                stack.append((unseen, iter(following[unseen])))
    return left[::-1]


def cycles(edges: Iterable[Edge]) -> list[set[str]]:
    """Return the sets of nodes that lead to each other, or one to itself (Kosaraju 1978)."""
    edges = list(edges)
    sources: defaultdict[str, list[str]] = defaultdict(list)
    for start, end in edges:
        sources[end].append(start)
    loops = {start for start, end in edges if start == end}
    left = ordered(sorted({name for edge in edges for name in edge}), edges)
    unseen, found = set(left), []
    for root in left:
        one, waiting = set(), [root]
        while waiting:
            name = waiting.pop()
            if name in unseen:
                unseen.remove(name)
                one.add(name)
                waiting += sources[name]
        if len(one) > 1 or one & loops:
            found.append(one)
    return found
