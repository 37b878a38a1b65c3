"""Write a neuron as NIR nodes, exactly, from its step: any step that is linear but for spikes.

::

    state     LI where it keeps a part of itself in a step, I where it keeps all of itself
    spike     Threshold
    reset     by subtraction: a Scale of the spike, back to the state one step later
              to zero: the state is a LIF, or an IF, which shows nothing but its spikes
    a value of the step before: an edge that closes a cycle; where it would close none, a Delay

The node of a state that spikes act on is the value that they are made of, before they do: of
``mem = beta * mem + x`` the node ``mem``; of ``mem - spike * threshold`` the edge that leads back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import numpy as np

from tracetorch.nir.node_graph import Edge, Node, NodeGraph, Shape, boundary, elementwise, reached
from tracetorch.nir.options import Array, Clock
from tracetorch.nir.step_algebra import (
    INPUT,
    Kept,
    Signal,
    Spike,
    Sum,
    Symbol,
    SymbolicStep,
    named,
    symbolic_step,
    walk,
)
from tracetorch.nir.wiring import late_edges
from tracetorch.snn import Neuron
from tracetorch.snn.model_graph import unused

# What sums are made of: ("x", 0), ("one", 0), ("old", state), ("node", state), ("spike", identity).
Key: TypeAlias = "tuple[str, int | str]"
Factors: TypeAlias = dict[Key, Array]

_X: Key = ("x", 0)
_ONE: Key = ("one", 0)


def neuron_graph(layer: Neuron, shape: Shape, clock: Clock) -> Node | NodeGraph:
    """Return the node or the graph that computes ``layer`` for samples of ``shape``."""
    step = symbolic_step(layer, shape)
    for apart in (False, True):
        graph = _Writer(step, shape, clock, apart).written()
        if graph is not None:
            return graph
    raise ValueError(
        "has spikes that lead to each other within a step, of which a reader of NIR could not tell "
        "what comes a step later"
    )


@dataclass
class _State:
    """A state: the value that its node has, and what becomes of that until the next step."""

    value: Signal  # of the node
    after: list[tuple[Array, Signal]] = field(default_factory=list)  # added to it for the next step
    spike: Spike | None = None  # the one that resets it to zero and a constant; None: none does
    v_reset: Array | float = 0.0  # that constant


class _Flattener:
    """Expand values to sums of what they are made of."""

    def __init__(self, shape: Shape, owners: dict[int, str]) -> None:
        self.shape, self.owners = shape, owners
        self.known: dict[int, Factors] = {}

    def factors(self, signal: Signal) -> Factors:
        """Return a value as a sum."""
        if id(signal) in self.owners:
            return {("node", self.owners[id(signal)]): np.ones(self.shape)}
        if id(signal) not in self.known:
            self.known[id(signal)] = self.expanded(signal)
        return self.known[id(signal)]

    def expanded(self, signal: Signal) -> Factors:
        """Return a value as a sum, also that of a node."""
        if isinstance(signal, Sum):
            total: defaultdict[Key, Array] = defaultdict(lambda: np.zeros(self.shape))
            for factor, part in signal.terms:
                for key, each in self.factors(part).items():
                    total[key] = total[key] + factor * each
            total[_ONE] = total[_ONE] + signal.added
            return {key: factor for key, factor in total.items() if factor.any()}
        if isinstance(signal, Symbol):
            symbol: Key = _X if signal.name == INPUT else ("old", signal.name)
            return {symbol: np.ones(self.shape)}
        which = "kept" if isinstance(signal, Kept) else "spike"
        return {(which, id(signal)): np.ones(self.shape)}


class _Writer:
    """Write the nodes that an output needs, and the edges between them.

    ``apart``: what spikes add to a state reaches its node a step later, wherever the step adds it.
    """

    def __init__(self, step: SymbolicStep, shape: Shape, clock: Clock, apart: bool) -> None:
        self.step, self.shape, self.clock, self.apart = step, shape, clock, apart
        self.signals = {id(each): each for each in walk(step.output, *step.ends.values())}
        whole = _Flattener(shape, {})
        self.states = {n: self.state(n, end, whole) for n, end in step.ends.items()}
        self.hidden = [name for name, state in self.states.items() if state.spike is not None]
        self.resets = {id(self.states[name].spike): name for name in self.hidden}
        remember = [n for n, s in self.states.items() if ("old", n) in whole.factors(s.value)]
        self.flat = _Flattener(shape, {id(self.states[name].value): name for name in remember})
        self.graph = NodeGraph({"input": boundary("Input", shape)})
        self.names: dict[Key, str] = {_X: "input"}
        self.waiting: list[Key] = []
        # factors of edges: from a node of this step, and of the step before
        self.now: dict[Edge, Array] = {}
        self.late: dict[Edge, Array] = {}

    def state(self, name: str, end: Signal, whole: _Flattener) -> _State:
        """Split what a state becomes into the value of its node, and what spikes do to that."""
        total = whole.factors(end)
        kept = [key for key in total if key[0] == "kept"]
        resets = {key: cast(Kept, self.signals[int(key[1])]) for key in kept}
        own = [key for key, it in resets.items() if ("old", name) in whole.factors(it.value)]
        if own:
            reset = resets[own[0]]
            fired: Key = ("spike", id(reset.spike))
            if total.keys() <= {own[0], fired} and (total[own[0]] == 1).all():
                return _State(reset.value, [], reset.spike, total.get(fired, np.zeros(self.shape)))
            self.refuse_hidden(own[0])
        after: list[tuple[Array, Signal]] = []
        while isinstance(end, Sum):
            holding = [i for i, (_, s) in enumerate(end.terms) if ("old", name) in whole.factors(s)]
            if len(holding) != 1 or end.added.any():
                break
            factor, value = end.terms[holding[0]]
            others = [term for i, term in enumerate(end.terms) if i != holding[0]]
            made_of = list(walk(*(signal for _, signal in others)))
            at_once = walk(*(signal for _, signal in others), through_spikes=False)
            acted_on = any(signal is value for signal in made_of)
            if not acted_on or isinstance(value, Symbol) or not (factor == 1).all():
                break
            if any(isinstance(signal, Symbol | Kept) for signal in at_once):
                break
            after, end = after + others, value
        left = whole.factors(end)
        if self.apart and ("old", name) in left:
            spikes = [
                (f, self.signals[int(key[1])]) for key, f in left.items() if key[0] == "spike"
            ]
            after += spikes
            end = Sum(self.shape, ((np.ones(self.shape), end), *((-f, each) for f, each in spikes)))
        return _State(end, after)

    def refuse_hidden(self, key: Key) -> None:
        """Raise for a state behind a reset to zero."""
        name = key[1]
        if key[0] == "kept":
            reset = self.signals[int(key[1])]
            ends = ((n, walk(end, through_spikes=False)) for n, end in self.step.ends.items())
            name = next((n for n, made_of in ends if any(s is reset for s in made_of)), "a value")
        raise ValueError(
            f"reads {name!r} behind a reset to zero, a product with a spike; in NIR a LIF resets "
            "so, and shows nothing but its spikes"
        )

    # Nodes

    def written(self) -> Node | NodeGraph | None:
        """Return the graph, or its one node; ``None`` where a reader would find others late."""
        self.names["output", 0] = "output"
        self.connect("output", self.flat.factors(self.step.output))
        while self.waiting:
            key = self.waiting.pop(0)
            name = self.names[key]
            if key == _ONE:
                self.graph.add_one(self.shape, "input")
            elif key[0] == "spike":
                self.spike(name, cast(Spike, self.signals[int(key[1])]))
            else:
                self.graph.nodes[name] = self.membrane(name, str(key[1]))
        self.graph.nodes["output"] = boundary("Output", self.shape)
        if not self.lay_edges():
            return None
        inner = [each for name, each in self.graph.nodes.items() if name not in ("input", "output")]
        alone = len(inner) == 1 and len(self.graph.edges) == 2
        return inner[0] if alone else self.graph

    def node(self, key: Key) -> str:
        """Return the name of a node; it is written later if it is new."""
        kind, which = key
        if kind == "spike" and which in self.resets:
            key, kind, which = ("node", self.resets[int(which)]), "node", self.resets[int(which)]
        if key in self.names:
            return self.names[key]
        taken = [*self.names.values(), "output", "silence", *["one"] * (kind != "one")]
        wanted = kind if kind in ("one", "spike") else str(which)
        self.names[key] = unused(wanted, taken)
        self.waiting.append(key)
        return self.names[key]

    def spike(self, name: str, signal: Spike) -> None:
        factors = dict(self.flat.factors(signal.argument))
        threshold = -factors.pop(_ONE, np.zeros(self.shape))
        self.graph.nodes[name] = elementwise("Threshold", self.shape, threshold=threshold)
        self.connect(name, factors)

    def membrane(self, name: str, state: str) -> Node:
        """Return the node of a state, and connect it."""
        it = self.states[state]
        factors = dict(self.flat.expanded(it.value))
        decay = factors.pop(("old", state), np.zeros(self.shape))
        one = np.ones(self.shape)
        if not decay.any():  # it remembers nothing of itself
            kind, fields, gain = "Scale", {"scale": one}, one
        elif (decay == 1).all():
            kind, fields, gain = "I", {"r": one / self.clock.dt}, one
        elif ((decay > 0) & (decay < 1)).all():
            lost = 1 - decay
            averages = any(np.array_equal(factor, lost) for factor in factors.values())
            kind, gain = "LI", lost if averages else one
            fields = {"tau": self.clock.tau(lost), "r": gain / lost, "v_leak": 0 * one}
        else:
            found = decay[~((decay > 0) & (decay < 1))].flat[0]
            problem = f"keeps {found:g} times {state!r} in a step; a node of NIR keeps a part of"
            raise ValueError(f"{problem} its state, or in all neurons all of it")
        self.connect(name, {key: factor / gain for key, factor in factors.items()})
        before = self.before(it.after)
        self.connect(name, {}, {key: decay * factor / gain for key, factor in before.items()})
        if it.spike is None:
            return elementwise(kind, self.shape, **fields)
        compared = dict(self.flat.factors(it.spike.argument))
        threshold = -compared.pop(_ONE, np.zeros(self.shape))
        v_reset = np.broadcast_to(it.v_reset, self.shape)
        itself = compared.keys() == {("node", state)} and (compared["node", state] == 1).all()
        # an IF starts from v_reset
        if not itself or kind == "Scale" or (kind == "I" and v_reset.any()):
            problem = f"resets {state!r} to zero by a spike of {named(it.spike.argument)}"
            raise ValueError(f"{problem}; a LIF or IF of NIR is reset by a spike of itself alone")
        return elementwise(f"{kind}F", self.shape, **fields, v_threshold=threshold, v_reset=v_reset)

    # Edges

    def connect(self, name: str, factors: Factors, late: Factors | None = None) -> None:
        """Add edges into a node: of this step, and of the step before."""
        now = {key: factor for key, factor in factors.items() if key[0] != "old"}
        late = dict(late or {})
        for (_, state), scale in ((k, f) for k, f in factors.items() if k[0] == "old"):
            for key, factor in self.old(str(state)).items():
                late[key] = late.get(key, 0.0) + scale * factor
        for found, edges in ((now, self.now), (late, self.late)):
            for key, factor in found.items():
                if key[0] == "kept" or (key[0] == "node" and key[1] in self.hidden):
                    self.refuse_hidden(key)
                edge = self.node(key), name
                edges[edge] = edges.get(edge, np.zeros(self.shape)) + factor

    def old(self, name: str) -> Factors:
        """Return what a state was one step before, as a sum of what nodes gave then."""
        it = self.states[name]
        if it.spike is None and id(it.value) not in self.flat.owners:
            # it is a copy of something else
            factors = self.flat.factors(it.value)
            if not any(key[0] == "old" for key in factors):
                return factors
        factors = {("node", name): np.ones(self.shape)}
        for key, factor in self.before(it.after).items():
            factors[key] = factors.get(key, np.zeros(self.shape)) + factor
        return factors

    def before(self, after: list[tuple[Array, Signal]]) -> Factors:
        """Return the sum of what was added to a state."""
        return self.flat.expanded(Sum(self.shape, tuple(after)))

    def lay_edges(self) -> bool:
        """Lay the edges, by Scale and Delay; return whether a reader finds late those that are."""
        now = {edge: factor for edge, factor in self.now.items() if factor.any()}
        late = {edge: factor for edge, factor in self.late.items() if factor.any()}
        silent = self.silent([*self.graph.edges, *now], [*late])
        direct = [*self.graph.edges, *silent, *now]
        # a node in each edge that is late: nothing, or where a reader would not find it, a Delay
        between = {edge: " to ".join(edge) for edge in late}
        ends = {edge: (between[edge], edge[1]) for edge in late}
        nodes = self.graph.nodes | {each: Node("Flatten") for each in between.values()}
        ways = [*direct, *((edge[0], each) for edge, each in between.items()), *ends.values()]
        back = set(late)
        while early := {edge for edge in back if ends[edge] not in self.found(nodes, ways)}:
            back -= early
            nodes |= {between[edge]: Node("Delay") for edge in early}
        if self.found(nodes, ways) != {ends[edge] for edge in back}:
            return False
        edges = [*silent, *(self.scaled(edge, factor, "to") for edge, factor in now.items())]
        delays: dict[str, str] = {}
        for (start, end), factor in late.items():
            if (start, end) in back:
                edges.append(self.scaled((start, end), factor, "back_to"))
                continue
            if start not in delays:
                delays[start] = unused(f"{start}_before", self.graph.nodes)
                seconds = elementwise("Delay", self.shape, delay=self.clock.dt)
                edges.append((start, self.graph.add(delays[start], seconds)))
            edges.append(self.scaled((delays[start], end), factor, "to"))
        self.graph.edges.extend(edges)
        return True

    def found(self, nodes: Mapping[str, Node | NodeGraph], edges: Collection[Edge]) -> set[Edge]:
        """Return the edges that a reader finds late."""
        return late_edges(cast("Mapping[str, Node]", nodes), edges)

    def silent(self, now: list[Edge], late: list[Edge]) -> list[Edge]:
        """Return edges of zeros to nodes that nothing leads to from the input."""
        found: list[Edge] = []
        while True:
            seen = reached(["input"], [*now, *late, *found])
            missed = [name for name in self.graph.nodes if name not in seen]
            if not missed:
                return found
            if "silence" not in self.graph.nodes:
                self.graph.add("silence", elementwise("Scale", self.shape, scale=0.0), "input")
                now = [*now, ("input", "silence")]
            ends = {end for _, end in now}  # those are in no cycle: one of the nodes begins a way
            found.append(("silence", next(name for name in missed if name not in ends)))

    def scaled(self, edge: Edge, factor: Array, word: str) -> Edge:
        """Return the last edge of a way from node to node, through a Scale if there is a factor."""
        if (factor == 1).all():
            return edge
        start, end = edge
        name = unused(f"{start}_{word}_{end}", self.graph.nodes)
        self.graph.add(name, elementwise("Scale", self.shape, scale=factor))
        self.graph.edges.append((start, name))
        return name, end
