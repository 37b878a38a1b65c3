"""Arrange a step for a circuit: stages in turn, and a memory for every array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tracetorch.export.c_code.arrangement import planned
from tracetorch.export.c_code.files import identifiers
from tracetorch.export.c_code.stages import (
    Array,
    Copy,
    Pointwise,
    Product,
    Role,
    Stage,
    StepProgram,
    View,
    reads_of,
    writes_of,
)
from tracetorch.export.c_code.widths import Widths
from tracetorch.export.verilog_code.layer import in_order
from tracetorch.export.verilog_code.memories import Store
from tracetorch.export.verilog_code.wires import word_of


@dataclass(frozen=True)
class Arrangement:
    """Stages of a step in turn, and the memories that they walk over."""

    program: StepProgram  # with these stages
    outputs: Mapping[str, View]  # where each output lies when all stages are done
    stores: Mapping[Array, Store]
    sums: Mapping[Array, Tensor | None]  # what products add to, and what it starts from
    states: Mapping[Array, Tensor | None]  # what each state starts from
    tables: Mapping[Array, Tensor]  # constants, as integers
    widths: Widths  # of all arrays


def arranged(program: StepProgram, widths: Widths, lanes: int) -> Arrangement:
    """Arrange a living program; what several lanes would read out of order is copied."""
    maker = _Maker(widths, lanes)
    stages = [part for each in planned(program).stages for part in maker.parts(each)]
    outputs: dict[Array, View] = {}
    kept: list[Stage] = []
    for i, each in enumerate(stages):
        if isinstance(each, Copy) and _reads_result(each, stages[i + 1 :]):
            outputs[each.target.array] = each.source
        else:
            kept.append(each)
    ends = {n: outputs.get(a, _whole(a)) for n, a in program.outputs.items()}
    touched = [view.array for each in kept for view in (*reads_of(each), *writes_of(each))]
    touched += [view.array for view in ends.values()]
    used = list(dict.fromkeys([*program.inputs.values(), *touched]))
    stores = _stores(program, used, maker.widths, lanes)
    states = {a: _integers(a, widths) for a in program.states.values() if a in used}
    tables = {a: _integers(a, maker.widths) for a in used if a.role is Role.TABLE}
    return Arrangement(
        replace(program, stages=kept), ends, stores, maker.sums,
        {a: v if bool(v.any()) else None for a, v in states.items()}, tables, maker.widths,
    )  # fmt: skip


def _whole(array: Array) -> View:
    return View(array, (array.size,), (1,))


def _integers(array: Array, widths: Widths) -> Tensor:
    values: Tensor = array.values
    return (values.double() * 2.0 ** widths.points.get(array, 0)).round()


class _Maker:
    """Rewrites stages, and keeps what it made."""

    def __init__(self, widths: Widths, lanes: int) -> None:
        self.ranges, self.points = dict(widths.ranges), dict(widths.points)
        self.dtype = widths.dtype
        self.lanes = lanes
        self.sums: dict[Array, Tensor | None] = {}

    @property
    def widths(self) -> Widths:
        """Ranges, those of new arrays included."""
        return Widths(self.ranges, self.points, self.dtype)

    def new(
        self, like: Array, size: int, role: Role = Role.WORK, values: Tensor | None = None
    ) -> Array:
        """Return a new array for values of another."""
        array = Array(role, like.label, size, like.boolean, values)
        self.ranges[array] = self.ranges[like]
        if like in self.points:
            self.points[array] = self.points[like]
        return array

    def parts(self, stage: Stage) -> list[Stage]:
        """Return the stages that do what one does."""
        if isinstance(stage, Product):
            return self.product(stage)
        if isinstance(stage, Pointwise):
            return self.pointwise(stage)
        return [stage]

    def product(self, stage: Product) -> list[Stage]:
        """Return a product that adds to an array of its own, which starts from its bias."""
        target, after = stage.target.array, list[Stage]()
        if target.role is Role.STATE:
            array = self.new(target, target.size)
            after = [Copy(stage.path, _whole(array), _whole(target))]
            stage = replace(stage, target=replace(stage.target, array=array))
        if stage.bias is None:
            self.sums[stage.target.array] = None
        else:
            start = torch.zeros(stage.target.array.size, dtype=torch.float64)
            places = stage.target.places().flatten(1)
            start[places] = stage.bias.double()[:, None].expand(places.shape)
            self.sums[stage.target.array] = start
        return [replace(stage, bias=None), *after]

    def pointwise(self, stage: Pointwise) -> list[Stage]:
        """Return a step whose memories are each read in one order, with lanes in their own."""
        before, after = list[Stage](), list[Stage]()
        reads, writes = dict(stage.reads), dict(stage.writes)
        seen: dict[Array, View] = {}
        for name, view in stage.reads.items():
            twice = seen.setdefault(view.array, view) != view
            if not twice and (view.whole or self.lanes == 1):
                continue
            flat = view.places().flatten()
            if view.array.role is Role.TABLE:
                array = self.new(
                    view.array, len(flat), Role.TABLE, view.array.values.flatten()[flat]
                )
            else:
                array = self.new(view.array, len(flat))
                target = View(array, view.shape, in_order(view.shape))
                before.append(Copy(stage.path, view, target))
            reads[name] = View(array, view.shape, in_order(view.shape))
        for name, view in stage.writes.items():
            if not view.whole and self.lanes > 1:
                array = self.new(view.array, view.size)
                writes[name] = View(array, view.shape, in_order(view.shape))
                after.append(Copy(stage.path, writes[name], view))
        return [*before, replace(stage, reads=reads, writes=writes), *after]


def _reads_result(copy: Copy, rest: list[Stage]) -> bool:
    """Whether a copy is a whole output, that could be read where it comes from."""
    source, target = copy.source.array, copy.target
    written = {view.array for each in rest for view in writes_of(each)}
    whole = target.array.role is Role.OUTPUT and target.whole and copy.places is None
    return whole and source.role in (Role.WORK, Role.STATE) and source not in written


def _stores(
    program: StepProgram, used: list[Array], widths: Widths, lanes: int
) -> dict[Array, Store]:
    """Return a memory for every array, with a name of its own."""
    known = {
        a: n for ends in (program.inputs, program.outputs, program.states) for n, a in ends.items()
    }
    prefix = {Role.INPUT: "in_", Role.OUTPUT: "out_", Role.STATE: "state_", Role.WORK: "work_"}
    labels = [known.get(a, a.label) for a in used]
    names = identifiers(
        [prefix.get(a.role, "table_") + n for a, n in zip(used, labels, strict=True)]
    )
    stores = {}
    for array, name, label in zip(used, names, labels, strict=True):
        word = word_of(widths.ranges[array], widths.points.get(array, 0), array.boolean)
        stores[array] = Store(name, label, array.size, word, lanes)
    return stores
