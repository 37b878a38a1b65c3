"""The tables of kernels that were compiled for GPUs, and of their predicted times."""

import re

import pytest

from benchmarks.gpu import predicted
from benchmarks.gpu.__main__ import BEGIN, layers, table
from benchmarks.gpu.page import PAGE, between
from benchmarks.gpu.predicted import CARDS, Counts, counts, moved_table, seconds, time_table
from tests.cases import LAYERS, NEURONS
from tracetorch.fuse.ir.kernel import Axis, Dtype, Extent, KernelBuilder, Role, Size

ROWS = dict(re.findall(r"^\| (\w+) \| (\d.*) \|$", between(BEGIN), flags=re.M))


def test_the_page_has_a_row_for_every_neuron():
    assert ROWS.keys() == layers().keys() == {*LAYERS, *NEURONS}
    for said in ("registers in memory inside of the loops", "instructions that round otherwise"):
        assert f"no {said}" in PAGE.read_text()


def test_rows_are_what_the_command_writes():
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    (row,) = re.findall(r"^\| LIF \| (.*) \|$", table(["sm_80", "sm_90"], ["LIF"]), flags=re.M)
    if f"Compiled by Triton {triton.__version__} for" in PAGE.read_text():
        assert row == ROWS["LIF"]
    # another release compiles a little better or worse
    found, expected = (list(map(int, re.findall(r"\d+", each))) for each in (row, ROWS["LIF"]))
    assert found == pytest.approx(expected, rel=0.5)


LANE, LANES = Axis.LANE, Extent.LANES


def test_counts_of_a_kernel() -> None:
    k = KernelBuilder("forward", "sums", Dtype.FLOAT32)
    steps = k.size("steps")
    x = k.buffer(Role.INPUT, "x", (Size(steps), LANES))
    y = k.buffer(Role.OUTPUT, "", (Size(steps), LANES))
    end = k.buffer(Role.END, "mem", (LANES,))
    with k.lanes():
        with k.loop("t", 0, steps, {"mem": 0.0}) as walk:
            given = k.load(x, (walk.index, LANE), "x")
            quotient = k.op("div", given, walk.carried["mem"])
            walk.next["mem"] = k.op("add", quotient, given)
            k.store(y, (walk.index, LANE), quotient)
        k.store(end, (LANE,), walk.results["mem"])
    found = counts(k.kernel(), 100, 100)
    assert found.moved == found.distinct == {"input_x": 400, "output": 400, "end_mem": 4}
    assert found.operations == 100 * (10 + 1)
    assert found.walks == [(100, 44.0, True)]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_the_slowest_of_four(card: predicted.Card) -> None:
    def made(moved: float, operations: float, chain: float, is_ahead: bool = True) -> Counts:
        found = Counts(operations=operations, walks=[(100, chain, is_ahead)])
        found.moved["x"] = found.distinct["x"] = int(moved)
        return found

    lanes, rest = 1 << 20, (16, card, 128)
    memory = seconds(made(40_000, 10, 1), lanes, *rest)
    assert memory == pytest.approx(40_000 * lanes / card.memory)
    issued = seconds(made(4, 1e6, 1), lanes, *rest)
    assert issued == pytest.approx(1e6 * lanes / (card.processors * 128 * card.clock))
    # few lanes: a chain, or the wait for the cache that is 200 cycles away
    assert seconds(made(4, 1, 1000), 128, *rest) == pytest.approx(100 * 1040 / card.clock)
    assert seconds(made(4, 1, 40, False), 128, *rest) == pytest.approx(100 * 240 / card.clock)


def test_the_page_has_the_predicted_tables() -> None:
    assert between(predicted.BEGIN) == "\n".join([*moved_table(), "", *time_table()])
