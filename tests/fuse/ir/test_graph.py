from __future__ import annotations

import math

from tracetorch.fuse.ir.graph import Builder, Graph


def test_equal_operations_are_one_line() -> None:
    builder = Builder()
    assert builder.emit("add", "x", 2.0) == builder.emit("add", "x", 2.0)
    assert len(builder.lines) == 1
    # equal as numbers, but different operands
    others = [builder.emit("add", "x", literal) for literal in (0.0, -0.0, True, 1.0)]
    assert len(set(others)) == 4


def test_multiplication_by_one_is_no_line() -> None:
    builder = Builder()
    assert builder.emit("mul", "x", 1.0) == "x"
    assert builder.emit("mul", 1.0, "x") == "x"
    assert builder.lines == []


def test_names_show_which_values_are_boolean() -> None:
    builder = Builder()
    above = builder.emit("gt", "x", 0.0)
    assert builder.is_boolean(above)
    assert builder.is_boolean(builder.emit("not", above))
    assert builder.is_boolean(True)
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


def test_literals_are_listed_once_in_order() -> None:
    builder = Builder()
    shifted = builder.emit("add", "x", 0.5)
    scaled = builder.emit("mul", shifted, -2.0)
    both = builder.emit("where", True, scaled, 0.5)
    graph = Graph(tuple(builder.lines), {"y": both, "nan": math.nan, "flag": False})
    assert list(graph.literals()) == [(0.5).hex(), (-2.0).hex(), math.nan.hex()]
