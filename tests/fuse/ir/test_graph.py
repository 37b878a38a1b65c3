"""Graphs, and the table of their intervals: every argument has its line, width and unit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tracetorch.fuse.ir.graph import Builder, Graph
from tracetorch.fuse.ir.intervals import MOST_EXACT, Interval, _widened, bounds, hull, invariant


def test_equal_operations_are_one_line_and_what_changes_nothing_none() -> None:
    builder = Builder()
    assert builder.emit("add", "x", 2.0) == builder.emit("add", "x", 2.0)
    assert builder.emit("mul", "x", 1.0) == builder.emit("mul", 1.0, "x") == "x"
    assert len(builder.lines) == 1
    # equal as numbers, but different operands
    others = [builder.emit("add", "x", literal) for literal in (0.0, -0.0, True, 1.0)]
    assert len(set(others)) == 4
    above = builder.emit("gt", "x", 0.0)
    assert all(map(builder.is_boolean, (above, builder.emit("not", above), True)))
    assert not any(map(builder.is_boolean, (builder.emit("neg", "x"), 1.0, "x", "beta", "b")))


def test_selection_keeps_the_lines_that_outputs_need() -> None:
    builder = Builder()
    decayed = builder.emit("mul", "p_beta", "s_mem")
    following = builder.emit("add", decayed, "x")
    shifted = builder.emit("add", "s_top", 0.25)
    graph = Graph(tuple(builder.lines), {"next_mem": following, "next_top": shifted, "d_x": "g"})
    assert graph.reads() == {"p_beta", "s_mem", "x", "s_top", "g"}
    assert str(graph.select(["next_mem"])) == (
        "v0 = mul(p_beta, s_mem)\nv1 = add(v0, x)\nnext_mem: v1"
    )
    assert graph.select(["next_top"]).reads() == {"s_top"}
    assert graph.select(["d_x"]).lines == ()
    numbers = Graph(graph.lines, {"y": 0.25, "z": -2.0, "nan": math.nan, "flag": False})
    assert list(numbers.literals()) == [(0.25).hex(), (-2.0).hex(), math.nan.hex()]


def halves() -> Graph:
    """Half of x, rounded down, and whether the half is positive."""
    builder = Builder()
    half = builder.emit("mul", "x", 0.5)
    whole = builder.emit("floor", half)
    positive = builder.emit("gt", half, 0.0)
    either = builder.emit("or", positive, builder.emit("not", positive))
    chosen = builder.emit("where", builder.emit("and", positive, either), whole, 0.0)
    return Graph(tuple(builder.lines), {"half": half, "whole": whole, "chosen": chosen})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_table_has_the_interval_of_every_argument(dtype: torch.dtype) -> None:
    table = bounds(halves(), {"x": Interval(-5, 9)}, dtype)
    assert table.exact
    half, whole, chosen = (table.outputs[name] for name in ("half", "whole", "chosen"))
    assert (half.low, half.high, half.unit, half.bits) == (-2.5, 4.5, 0.5, 5)
    assert (whole.low, whole.high, whole.unit, whole.bits) == (-3, 4, 1, 4)
    assert (chosen.low, chosen.high) == (-3, 4)
    for line, interval in table.lines:
        assert table[line.name] is interval
        assert all(table[arg].bits >= 1 for arg in line.args)
    assert table["x"].bits == 5
    assert (table[0.1].low == 0.1) == (dtype is torch.float64)


def test_what_rounding_has_done_is_followed() -> None:
    rounded = {"exact": False, "signed": True}
    for given, exact in (
        (Interval(-5, 9, -np.inf, **rounded), False),
        (Interval(-5, 9, -np.inf, **rounded, floored=True), False),
        (Interval(-5, 9, **rounded), False),
        (Interval(-5, 9), True),
    ):
        assert bounds(halves(), {"x": given}, torch.float32).exact is exact
    builder = Builder()
    floor = builder.emit("floor", "x")
    above = builder.emit("gt", "x", 0.0)
    graph = Graph(tuple(builder.lines), {"y": floor, "z": above})
    found = bounds(graph, {"x": Interval(0, 9, -np.inf, **rounded, floored=True)}, torch.float32)
    assert (bool(found.outputs["y"].exact), bool(found.outputs["z"].exact)) == (True, True)
    found = bounds(graph, {"x": Interval(0, 9, -np.inf, exact=False)}, torch.float32)
    assert (bool(found.outputs["y"].exact), bool(found.outputs["z"].exact)) == (False, False)


def test_a_quotient_reaches_its_ends() -> None:
    # 49 * (1 / 49) is 0.9999999999999999, of which nothing is left when rounded down
    for divisor in range(1, 200):
        builder = Builder()
        floor = builder.emit("floor", builder.emit("div", "x", float(divisor)))
        graph = Graph(tuple(builder.lines), {"y": floor})
        found = bounds(graph, {"x": Interval(-3 * divisor, divisor)}, torch.float32).outputs["y"]
        assert (found.low, found.high, bool(found.exact)) == (-3, 1, True)


def test_states_grow_until_nothing_grows_any_more() -> None:
    step = Interval(-7, 93)

    def kept(states: dict[str, Interval], last: bool) -> tuple[str, dict[str, Interval]]:
        return "found", {"count": step}

    def counted(states: dict[str, Interval], last: bool) -> tuple[Interval, dict[str, Interval]]:
        grown = Interval(states["count"].low + step.low, states["count"].high + step.high)
        return grown, {"count": grown}

    assert invariant({"count": Interval(0, 0)}, kept) == ("found", {"count": hull(step, step)})
    half = Interval(-0.5, 1.5, step=-1)
    found = invariant({"count": half}, lambda states, last: ("found", {"count": half}))[1]["count"]
    assert (found.low, found.high) == (-0.5, 1.5)
    assert _widened(Interval(0, 0), replace(half, step=0)).high >= 1.5  # what grows does not shrink
    grown, states = invariant({"count": Interval(0, 0)}, counted)
    # beyond what float64 holds, where counting changes nothing any more
    assert min(states["count"].magnitude, -grown.low) > MOST_EXACT[torch.float64]
