"""Count what a step of an exported program costs, a mean over a recorded input."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from tracetorch.export.c_code.reader import operation_of
from tracetorch.export.c_code.stages import Array, Copy, Pointwise, Pool, Product, Stage, Sum
from tracetorch.export.program import run_step
from tracetorch.metrics.operations import SynapticOperations


@dataclass(frozen=True)
class StepCosts:
    """Costs of a step, means over the steps of an input."""

    operations: SynapticOperations  # products of a weight and an input
    updates: float  # values of membranes that change; at the first step all do
    # how often each place of a product's source is not zero, by the product's node
    events: Mapping[str, Tensor]


class _Watcher(Interpreter):
    """Run a program, and keep the sources of its products."""

    def __init__(self, program: ExportedProgram, products: Collection[str]) -> None:
        super().__init__(program.graph_module)
        self.products = products
        self.sources: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n.name in self.products:
            # of addmm the second argument, behind the bias
            self.sources[n.name] = self.env[n.all_input_nodes[operation_of(n) == "addmm"]]
        return super().run_node(n)


def step_costs(
    program: ExportedProgram,
    steps: Sequence[Any],
    states: Mapping[str, Tensor],
    stages: Sequence[Stage],
    membranes: Collection[str],
) -> StepCosts:
    """Run an exported step over an input, and count."""
    products = {stage.node: stage for stage in stages if isinstance(stage, Product)}
    watcher = _Watcher(program, products)
    events: dict[str, Tensor] = {}
    macs = acs = updates = 0.0
    reach = {name: fan_out(stage, stage.weight != 0) for name, stage in products.items()}
    sums = {name for name, stage in products.items() if bool((stage.weight == 1).all())}
    with torch.no_grad():
        for t, x in enumerate(steps):
            _, after = run_step(program, x, states, watcher)
            for name, source in watcher.sources.items():
                fired = (source != 0).double().flatten()
                events[name] = events.get(name, 0.0) + fired / len(steps)
                effective = float((fired * reach[name]).sum())
                # as NeuroBench: one real value makes every operation of a step a MAC
                if name in sums or bool(((source == 0) | (source.abs() == 1)).all()):
                    acs += effective
                else:
                    macs += effective
            for name in membranes:
                changed = after[name] != states[name]
                updates += int(changed.sum()) if t else changed.numel()
            states = after
    count = len(steps)
    dense = sum(_products_of(stage) for stage in products.values())
    operations = SynapticOperations(macs / count, acs / count, dense)
    return StepCosts(operations, updates / count, events)


def memory_accesses(
    stages: Sequence[Stage],
    events: Mapping[str, Tensor],
    by_event: Collection[Array],
    sparse: Collection[str] = (),
) -> float:
    """Return how many values a step reads and writes, given how often each source is not zero."""
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
        elif isinstance(stage, Product):
            total += stage.target.size * (1 if stage.bias is None else 2)
            # beside a weight its place, and of each row where it begins and ends
            places = int(stage.node in sparse)
            rows = float(stage.target.size)
            if stage.source.array in by_event:
                fired = events[stage.node]
                weights = fan_out(stage, stage.weight != 0 if places else None)
                # a weight is read, and a sum read and written
                total += stage.source.size + (3 + places) * float((fired * weights).sum())
                rows = float(fired.sum())
            else:
                kept = float((stage.weight != 0).sum()) if places else _products_of(stage)
                total += (2 + places) * kept
            total += 2 * rows * places
    return total


def fan_out(stage: Product, chosen: Tensor | None = None) -> Tensor:
    """Return how many weights an input at each place of the source meets, in PyTorch's order."""
    weight = torch.ones_like(stage.weight) if chosen is None else chosen
    # by input channel and place in the kernel
    each = torch.unflatten(weight.double(), 0, (stage.groups, -1)).sum(1).flatten(0, 1)
    taps = [_taps(stage, dim).double() for dim in (0, 1)]
    found = torch.einsum("ckl,kh,lw->chw", each, *taps)
    if not stage.node.startswith("conv"):
        # the rows of a linear product come before its features
        found = found.permute(1, 2, 0)
    return found.flatten()


def _taps(stage: Product, dim: int) -> Tensor:
    """Return which rows of the kernel (columns, for ``dim`` 1) reach each place of the source."""
    kernel = torch.arange(stage.weight.shape[2 + dim])[:, None]
    place = torch.arange(stage.source.shape[1 + dim])
    moved = place + stage.padding[dim] - kernel * stage.dilation[dim]
    output = moved // stage.stride[dim]
    inside = (output >= 0) & (output < stage.target.shape[1 + dim])
    return inside & (moved % stage.stride[dim] == 0)


def _products_of(stage: Product) -> float:
    """Return the number of products of a weight and an input, padding left out."""
    return float(fan_out(stage).sum())
