"""In which order the nodes of a graph compute, and which edges wait for the next time step."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tracetorch.nir.claims import original
from tracetorch.nir.clock import Clock
from tracetorch.nir.graph import BREAKS_CYCLES, Graph, Node, Shape
from tracetorch.nir.shapes import leaving
from tracetorch.snn import LeakyIntegrator


@dataclass(frozen=True)
class Known:
    """A node, or a graph of them, that is one of our own layers."""

    layer: LeakyIntegrator
    shape: Shape
    kind: str = "LIF"  # as far as cycles go


@dataclass(frozen=True)
class Wiring:
    """What flows where in a flat graph.

    Args:
        order: names of the nodes, in the order in which they compute.
        now: for each node, the nodes whose output of this step it adds up.
        late: likewise, of the step before.
        shapes: of each node's output, without the batch.
        inputs: names of the Inputs, in order.
        outputs: names of the Outputs, in order.
    """

    order: list[str]
    now: dict[str, list[str]]
    late: dict[str, list[str]]
    shapes: dict[str, Shape]
    inputs: list[str]
    outputs: list[str]


def plan(graph: Graph, clock: Clock) -> tuple[dict[str, Node | Known], Wiring]:
    """Flatten, order and check a graph.

    An edge is late if it closes a cycle: walked depth first from the Inputs, in the order of the
    edges, it leads back to a node that the walk is still inside of.

    Raises:
        ValueError: a node has no input, a cycle has no neuron, shapes do not fit, there is no
            Input or no Output.
    """
    nodes, edges = flat(graph, clock)
    inputs, outputs = _in_order(graph), graph.named("Output")
    for kind, found in (("Input", inputs), ("Output", outputs)):
        if not found:
            raise ValueError(f"the graph has no {kind} node: where does it {_DOES[kind]}?")
    fed = {end for _, end in edges}
    for name in inputs:
        if name in fed:
            raise ValueError(f"node {name!r} is an Input, and an edge leads into it.")
    _check_cycles(nodes, edges)
    late = _closing(inputs, edges)
    order = _order(nodes, [edge for edge in edges if edge not in late])
    needed = _leading_to(outputs, edges)
    now: dict[str, list[str]] = {name: [] for name in order if name in needed}
    behind: dict[str, list[str]] = {name: [] for name in now}
    for edge in edges:
        if edge[1] in now:
            (behind if edge in late else now)[edge[1]].append(edge[0])
    for name in now:
        if not now[name] and name not in inputs:
            raise ValueError(f"node {name!r} gets nothing from any Input.")
    shapes: dict[str, Shape] = {}
    for name in now:
        shapes[name] = _shape_of(name, nodes[name], [shapes[n] for n in now[name]])
    for name, sources in behind.items():
        for source in sources:
            came, wanted = shapes[source], _entering(nodes[name], [shapes[n] for n in now[name]])
            if came != wanted:
                raise ValueError(
                    f"node {name!r} gets shape {list(wanted)}, and {list(came)} back from "
                    f"{source!r}."
                )
    # Inputs that lead nowhere are inputs still
    for name in inputs:
        if name not in now:
            now[name], behind[name] = [], []
            shapes[name] = _shape_of(name, nodes[name], [])
    wiring = Wiring(list(now), now, behind, shapes, inputs, outputs)
    return {name: nodes[name] for name in now}, wiring


INPUTS = "inputs"  # the key in a graph's metadata under which our writer says their order


def _in_order(graph: Graph) -> list[str]:
    """The Inputs as ``forward`` took them, where the graph says so; by name otherwise."""
    inputs = graph.named("Input")
    told = graph.metadata.get(INPUTS)
    try:
        order = json.loads(told) if isinstance(told, str) else None
    except (ValueError, RecursionError):
        return inputs
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        return inputs
    return order if sorted(order) == inputs else inputs


_DOES = {"Input": "begin", "Output": "end"}


def flat(
    graph: Graph, clock: Clock, prefix: str = ""
) -> tuple[dict[str, Node | Known], list[tuple[str, str]]]:
    """All nodes in one graph, those of inner ones under ``outer.inner``; our own layers whole."""
    nodes: dict[str, Node | Known] = {}
    enter: dict[str, str] = {}
    leave: dict[str, str] = {}
    edges: list[tuple[str, str]] = []

    def put(name: str, node: Node | Known) -> None:
        if name in nodes:
            raise ValueError(f"two nodes would be called {name!r}. Rename one.")
        nodes[name] = node

    for name, node in graph.nodes.items():
        full = f"{prefix}{name}"
        enter[name] = leave[name] = full
        ours = original(node, clock)
        if ours is not None:
            put(full, Known(*ours))
        elif isinstance(node, Graph):
            ends = node.named("Input"), node.named("Output")
            if len(ends[0]) != 1 or len(ends[1]) != 1:
                raise ValueError(
                    f"graph {full!r} has {len(ends[0])} Inputs and {len(ends[1])} Outputs; inside "
                    "another graph it needs one of each, for an edge cannot say which it means."
                )
            inner, inner_edges = flat(node, clock, f"{full}.")
            for each, part in inner.items():
                put(each, part)
            edges += inner_edges
            enter[name], leave[name] = (f"{full}.{end[0]}" for end in ends)
        else:
            put(full, node)
    edges += [(leave[a], enter[b]) for a, b in graph.edges]
    return nodes, edges


def _following(edges: list[tuple[str, str]]) -> dict[str, list[str]]:
    following: dict[str, list[str]] = {}
    for start, end in edges:
        following.setdefault(start, []).append(end)
    return following


def _closing(inputs: list[str], edges: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges that close a cycle, by a walk without recursion: files may chain any number."""
    following = _following(edges)
    closing: set[tuple[str, str]] = set()
    inside: set[str] = set()
    done: set[str] = set()
    first = {start: i for i, (start, _) in reversed(list(enumerate(edges)))}
    starts = sorted(inputs, key=lambda name: first.get(name, len(edges)))
    for start in starts:
        stack = [(start, iter(following.get(start, ())))]
        inside.add(start)
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
                stack.append((end, iter(following.get(end, ()))))
    return closing


def _order(nodes: dict[str, Node | Known], edges: list[tuple[str, str]]) -> list[str]:
    following = _following(edges)
    waiting = dict.fromkeys(nodes, 0)
    for _, end in edges:
        waiting[end] += 1
    ready = [name for name, count in waiting.items() if not count]
    order: list[str] = []
    while ready:
        name = ready.pop()
        order.append(name)
        for end in following.get(name, ()):
            waiting[end] -= 1
            if not waiting[end]:
                ready.append(end)
    if len(order) < len(nodes):
        stuck = sorted(set(nodes) - set(order))
        raise ValueError(
            f"nodes {stuck[:5]} wait for each other, and no Input leads into their cycle."
        )
    return order


def _check_cycles(nodes: dict[str, Node | Known], edges: list[tuple[str, str]]) -> None:
    """Raise where a cycle has no neuron: it would define its value by itself."""
    passive = {name for name, node in nodes.items() if node.kind not in BREAKS_CYCLES}
    within = [(a, b) for a, b in edges if a in passive and b in passive]
    try:
        _order({name: nodes[name] for name in passive}, within)
    except ValueError as stuck:
        raise ValueError(f"a cycle has no neuron in it: {stuck}") from stuck


def _leading_to(outputs: list[str], edges: list[tuple[str, str]]) -> set[str]:
    before = _following([(end, start) for start, end in edges])
    needed = set(outputs)
    stack = list(outputs)
    while stack:
        for name in before.get(stack.pop(), ()):
            if name not in needed:
                needed.add(name)
                stack.append(name)
    return needed


def _entering(node: Node | Known, came: list[Shape]) -> Shape:
    if isinstance(node, Node) and node.kind == "Input" and not came:
        return tuple(node.settings["shape"])
    return came[0]


def _shape_of(name: str, node: Node | Known, came: list[Shape]) -> Shape:
    if len(set(came)) > 1:
        raise ValueError(
            f"node {name!r} adds up inputs of different shapes: {[list(shape) for shape in came]}."
        )
    shape = _entering(node, came)
    if isinstance(node, Known):
        if node.shape != shape:
            raise ValueError(
                f"node {name!r} is made for shape {list(node.shape)}, and gets {list(shape)}."
            )
        return shape
    return leaving(name, node, shape)
