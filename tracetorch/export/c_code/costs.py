"""Count what a step costs: reads and writes of arrays, a mean over a recorded input."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from tracetorch.core.torch_private import pytree
from tracetorch.export.c_code.reader import constants_of, operation_of
from tracetorch.export.c_code.stages import Array, Copy, Pointwise, Pool, Product, Stage, Sum


class _Watcher(Interpreter):
    """Run a program, and keep where the sources of its products are not zero."""

    def __init__(self, program: ExportedProgram, products: Collection[str]) -> None:
        super().__init__(program.graph_module)
        self.products = products
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n.name in self.products:
            # of addmm the second argument, behind the bias
            # behind the bias, where the bias comes first
            given = self.env[n.all_input_nodes[operation_of(n) == "addmm"]]
            self.seen[n.name] = (given != 0).double().flatten()
        return super().run_node(n)


def mean_events(
    program: ExportedProgram,
    steps: Sequence[Any],
    states: Mapping[str, Tensor],
    products: Collection[str],
) -> dict[str, Tensor]:
    """Return how often each place of a product's source is not zero, a mean over steps.

    Args:
        program: the exported step.
        steps: inputs, at a batch of one.
        states: what they start from.
        products: names of the operations.
    """
    if not products:
        return {}
    watcher = _Watcher(program, products)
    arguments, _ = pytree.tree_unflatten(
        list(program.graph_signature.user_inputs), program.call_spec.in_spec
    )
    constants = constants_of(program)
    order = [n.name for n in program.graph.nodes if n.op == "placeholder"]
    totals: dict[str, Tensor] = {}
    held = dict(states)
    with torch.no_grad():
        for x in steps:
            given = dict(zip(pytree.tree_leaves(arguments[0]), pytree.tree_leaves(x), strict=True))
            given |= {arguments[1][name]: value for name, value in held.items()}
            results = watcher.run(*({**constants, **given}[name] for name in order))
            _, held = pytree.tree_unflatten(list(results), program.call_spec.out_spec)
            for name, seen in watcher.seen.items():
                totals[name] = totals[name] + seen if name in totals else seen
    return {name: total / len(steps) for name, total in totals.items()}


def memory_accesses(
    stages: Sequence[Stage],
    events: Mapping[str, Tensor],
    by_event: Collection[Array],
    sparse: Collection[str] = (),
) -> float:
    """Return how many values a step reads from and writes to arrays.

    Args:
        stages: of the step.
        events: how often each place of a product's source is not zero.
        by_event: arrays whose zeros are skipped.
        sparse: nodes of the products whose weights of zero are not stored.
    """
    total = 0.0
    for stage in stages:
        if isinstance(stage, Pointwise):
            total += math.prod(stage.shape) * (len(stage.reads) + len(stage.writes))
        elif isinstance(stage, Copy):
            total += stage.target.size * (2 if stage.places is None else 3)
        elif isinstance(stage, Pool):
            total += stage.target.size * (math.prod(stage.kernel) + 1)
        elif isinstance(stage, Sum):
            total += stage.source.size + stage.target.size
        else:
            start = stage.target.size * (1 if stage.bias is None else 2)
            if stage.node in sparse:
                # beside each weight the place that it belongs to, and of each row where it begins
                # and ends
                weights = (stage.weight != 0).flatten(1).sum(0).double()
                if stage.source.array in by_event:
                    fired = events[stage.node]
                    reached = float((fired * weights).sum())
                    total += start + stage.source.size + 2 * float(fired.sum()) + 4 * reached
                else:
                    total += start + 2 * stage.target.size + 3 * float(weights.sum())
            elif stage.source.array in by_event:
                # a weight is read, and a sum read and written
                reached = float((events[stage.node] * fan_out(stage)).sum())
                total += start + stage.source.size + 3 * reached
            else:
                total += start + 2 * products_of(stage)
    return total


def fan_out(stage: Product) -> Tensor:
    """Return how many weights an event at each place of the source meets, in PyTorch's order."""
    channels, height, width = stage.source.shape
    rows, columns = (
        torch.tensor([stage.taps(dim, place) for place in range(size)], dtype=torch.float64)
        for dim, size in ((0, height), (1, width))
    )
    each = rows[:, None] * columns * (stage.target.shape[0] // stage.groups)
    if not stage.node.startswith("conv"):
        # the rows of a linear product come before its features
        return each.expand(channels, -1, -1).permute(1, 2, 0).flatten()
    return each.expand(channels, -1, -1).flatten()


def products_of(stage: Product) -> float:
    """Return the number of products of a weight and an input, padding left out."""
    return float(fan_out(stage).sum())
