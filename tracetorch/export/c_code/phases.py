"""Divide one step of a learner into what is done when: a step, learning, and moving traces on.

A tape has one step of a learner in the order in which Python ran it. Here it is put into three
phases, and in each phase operations over the same places stand together, so that they become one
loop. What needs neither traces nor the signal is computed in the step and kept, for weights may be
others later; not what has more values than its operands, an outer product say, which is made in the
loop that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from tracetorch.core.torch_private import pytree
from tracetorch.export.c_code.reader import operation_of, places_of
from tracetorch.export.c_code.stages import Phase
from tracetorch.export.c_code.tape import VALUE
from tracetorch.fuse.ir.lower import has_rule

_PHASE = "phase"  # the key of a node's phase in its ``meta``


def phase_of(node: Node) -> Phase | None:
    """Return the phase of a node of a divided graph; ``None`` for what is given."""
    return node.meta.get(_PHASE)


def divided(
    graph: Graph, given: Sequence[Node], ends: Mapping[Phase, list[Node]], late: Iterable[Node]
) -> Graph:
    """Return a graph of placeholders ``given`` with nodes in phases, whose ends are its output."""
    _push_slices(graph, {node for phase in Phase for node in ends[phase]})
    cones = {phase: ancestors(ends[phase]) for phase in Phase}
    # a matrix that learning alone needs is not kept until then: weights are still what they were
    alone = cones[Phase.LEARN] - cones[Phase.STEP] - cones[Phase.ADVANCE]
    waits = dict.fromkeys(late, True)
    for node in graph.nodes:
        if node not in waits and node.op == "call_function":
            needs = any(waits[each] for each in node.all_input_nodes)
            waits[node] = needs or _expands(node) or (node in alone and _is_late(node))
        waits.setdefault(node, False)
    kept = {n for phase in (Phase.LEARN, Phase.ADVANCE) for n in cones[phase] if not waits[n]}
    new = Graph()
    constants = [node for node in graph.nodes if node.op == "get_attr"]
    first = {node: new.node_copy(node) for node in (*given, *constants)}
    results: list[Node] = []
    for phase in Phase:
        own = cones[phase] | kept
        if phase is not Phase.STEP:
            own = {node for node in cones[phase] if waits[node]}
        made = dict(first)
        for node in _in_loops(own - first.keys(), graph):
            made[node] = new.node_copy(node, made.__getitem__)
            made[node].meta[_PHASE] = phase
        results += [made[node] for node in ends[phase]]
        first = made if phase is Phase.STEP else first
    new.output(results)
    return new


def ancestors(ends: Iterable[Node]) -> set[Node]:
    """Return nodes, and all that they are computed from."""
    found: set[Node] = set()
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def _is_pointwise(node: Node) -> bool:
    return node.op == "call_function" and has_rule(operation_of(node)) and not is_view(node)


def is_view(node: Node) -> bool:
    """Whether an operation looks at the memory of its first argument in another way."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(each.alias_info is not None for each in schema.returns)


def _distinct(value: Tensor) -> int:
    """Return the number of values in memory: what is repeated counts once."""
    sizes = zip(value.shape, value.stride(), strict=True)
    return torch.Size([size for size, stride in sizes if stride]).numel()


def _is_late(node: Node) -> bool:
    """Whether a value that learning alone needs is computed there; so is that in float64."""
    value = node.meta[VALUE]
    return _is_matrix(node) or (isinstance(value, Tensor) and value.dtype is torch.float64)


def _is_matrix(node: Node) -> bool:
    value = node.meta[VALUE]
    return isinstance(value, Tensor) and len(places_of(value.shape)) > 1


def _loops(node: Node) -> bool:
    """Whether an operation becomes a part of a loop over the places of its result."""
    outer = operation_of(node) in ("mm", "bmm", "addmm") and is_outer(node)
    return isinstance(node.meta.get(VALUE), Tensor) and (outer or _is_pointwise(node))


def _expands(node: Node) -> bool:
    """Whether a result is a matrix that has more values than any of its operands."""
    values = [each.meta[VALUE] for each in node.all_input_nodes]
    sizes = [_distinct(each) for each in values if isinstance(each, Tensor)]
    return _loops(node) and _is_matrix(node) and node.meta[VALUE].numel() > max(sizes, default=0)


def is_outer(node: Node) -> bool:
    """Whether a product of matrices has sums of one term."""
    left: Any = node.all_input_nodes[operation_of(node) == "addmm"]
    return int(left.meta[VALUE].shape[-1]) == 1


def _in_loops(nodes: set[Node], graph: Graph) -> Iterable[Node]:
    """Yield nodes after what they need, those over the same places together, few places first."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    left = {node: sum(each in nodes for each in node.all_input_nodes) for node in nodes}
    ready = [node for node, count in left.items() if not count]
    matrices = _of_matrices(nodes, graph)
    now: tuple[int, ...] | None = None

    def rank(node: Node) -> tuple[Any, ...]:
        value = node.meta[VALUE]
        if is_view(node) or not isinstance(value, Tensor):
            return (0, 0, 0, order[node])
        same = _loops(node) and places_of(value.shape) == now
        return (1, not same, node in matrices, value.numel(), order[node])

    while ready:
        node = min(ready, key=rank)
        ready.remove(node)
        value = node.meta[VALUE]
        if not is_view(node) and isinstance(value, Tensor):
            now = places_of(value.shape) if _loops(node) else None
        yield node
        for user in dict.fromkeys(node.users):
            if user in left and user in nodes:
                left[user] -= 1
                if not left[user]:
                    ready.append(user)


def _of_matrices(nodes: set[Node], graph: Graph) -> set[Node]:
    """Return nodes that make outer products, and what follows from those: weights move last."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node in nodes and (_expands(node) or any(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


# Views of what pointwise operations make


def _push_slices(graph: Graph, ends: Collection[Node]) -> None:
    """Compute a slice of a pointwise result from slices of its operands: no memory for the rest."""
    pending = [node for node in graph.nodes if operation_of(node) in ("slice", "select")]
    while pending:
        node = pending.pop(0)
        views = [node]
        while is_view(views[-1]) and not _is_pointwise(views[-1].all_input_nodes[0]):
            views.append(views[-1].all_input_nodes[0])
        # what is repeated is small: it needs no smaller part
        repeats = any(_distinct(each.meta[VALUE]) < each.meta[VALUE].numel() for each in views)
        if not is_view(views[-1]) or repeats or node in ends:
            continue
        made = views[-1].all_input_nodes[0]
        pushed = _pushed(graph, node, made, views[::-1])
        if pushed is not None:
            pending += pushed


def _pushed(graph: Graph, node: Node, made: Node, views: list[Node]) -> list[Node] | None:
    """Put a pointwise operation behind the views of it; return the views of its operands."""
    shape = made.meta[VALUE].shape
    ends: dict[Node, Node] = {}
    values: list[tuple[Callable[..., Any], tuple[Any, ...], Tensor]]
    for operand in dict.fromkeys(made.all_input_nodes):
        value: Tensor = operand.meta[VALUE]
        values = []
        try:
            for target, rest in [
                (torch.ops.aten.expand.default, (list(shape),)),
                *((each.target, each.args[1:]) for each in views),
            ]:
                value = target(value, *rest)  # type: ignore[operator]
                values.append((target, rest, value))  # type: ignore[arg-type]
        except RuntimeError:  # the operand's repeated places have no such view
            return None
        last = operand
        with graph.inserting_before(node):
            for target, rest, value in values:
                last = graph.call_function(target, (last, *rest))
                last.meta[VALUE] = value
        ends[operand] = last
    with graph.inserting_before(node):
        args, kwargs = pytree.tree_map_only(Node, ends.__getitem__, (made.args, made.kwargs))
        moved = graph.call_function(made.target, args, kwargs)  # type: ignore[arg-type]
    moved.meta = {**made.meta, VALUE: node.meta[VALUE]}
    node.replace_all_uses_with(moved)
    graph.erase_node(node)
    return list(ends.values())
