from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
import pytest

from tracetorch.fuse.codegen.llvm_tasks import HEADER, LINE, TaskWriter
from tracetorch.fuse.codegen.llvm_writer import Value, below
from tracetorch.fuse.runtime.machine_code import compiled as compiled_text
from tracetorch.fuse.runtime.machine_code import unavailable_reason

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="llvmlite is missing")


def run(write: Callable[[TaskWriter], None], *arguments: int | np.ndarray) -> None:
    """Run the one task of a kernel."""
    k = TaskWriter("written")
    write(k)
    values = [a if isinstance(a, int) else a.ctypes.data for a in arguments]
    block = np.array([1, 1, 0, 0, *values, *[0] * 16], np.int64)
    compiled_text(k.text(), "written").run(block.ctypes.data)


@pytest.mark.parametrize(("a", "b"), [(29, 3), (3, 29), (7, 7), (3, 0)])
def test_integers_loops_and_branches(a: int, b: int) -> None:
    def write(k: TaskWriter) -> None:
        a, b, out, short = k.integer(), k.integer(), k.array("i64"), k.array("i16")
        divisor, zero = k.largest(b, 1), k.literal(0, "i64")

        def counted() -> list[Value]:
            with k.repeat(below(b), zero, zero) as each:
                each.next = each.index + 1, each.carried[1] + 10
            return [each.carried[1]]

        results = [
            *(a + b, a - b, a * b, a // divisor, a % divisor, a & b, a | b, a ^ b, a << b, a >> b),
            *(k.least(a, b), k.select(a.equals(b), 1, 2), short[0]),
            k.choose(b >= 3, counted, lambda: [b])[0],
        ]
        with k.loop(b, a, k.literal(1, "i64"), step=4) as each:
            each.next = (each.carried[0] * 2 + each.index,)
        for place, result in enumerate([*results, each.carried[0]]):
            out[place] = result
        short[1] = a + (5 << 16)
        with k.when(a.equals(b)):
            short[2] = 1

    out, short = np.full(15, -1), np.array([65535, 0, 0], np.uint16)
    run(write, a, b, out, short)
    looped, divisor = 1, max(b, 1)
    for index in range(b, a, 4):
        looped = looped * 2 + index
    expected = [a + b, a - b, a * b, a // divisor, a % divisor, a & b, a | b, a ^ b, a << b, a >> b]
    expected += [min(a, b), 1 if a == b else 2, 65535, 10 * b if b >= 3 else b, looped]
    assert out.tolist() == expected
    assert short.tolist() == [65535, a, a == b]


@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 40])
def test_masked_lanes_are_neither_read_nor_written(count: int, real: str) -> None:
    def write(k: TaskWriter) -> None:
        n, x, y = k.integer(), k.array(real), k.array(real)
        values = x.some(0, n, 16)
        y.store_some(0, n, values + values + values)

    dtype = np.float32 if real == "float" else np.float64
    x, y = np.arange(16, dtype=dtype), np.full(16, -1, dtype)
    run(write, count, x, y)
    done = min(count, 16)
    assert y.tolist() == [*(3.0 * i for i in range(done)), *[-1.0] * (16 - done)]


def test_nan_differs_from_itself() -> None:
    def write(k: TaskWriter) -> None:
        x, out = k.array("double"), k.array("i64")
        mask = k.convert("bitcast", x.vector(0, 4).differs(0.0), "i4")
        out[0] = k.convert("zext", mask, "i64")

    x, out = np.array([0.0, np.nan, -0.0, 2.0]), np.zeros(1, np.int64)
    run(write, x, out)
    assert out[0] == 0b1010


def test_operands_and_iterations_that_do_not_fit_are_errors() -> None:
    k = TaskWriter("wrong")
    with pytest.raises(TypeError, match="is not a float"):
        k.array("float")[0] + k.number
    error = pytest.raises(ValueError, match="an iteration sets 1 of 2 values")
    with error, k.loop(0, 3, k.literal(0, "i64")):
        pass


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("tasks", [0, 1, 5, 20])
def test_first_worker_does_the_shares_of_all_that_have_not_come(tasks: int, workers: int) -> None:
    k = TaskWriter("note")
    add, done = k.integer(), k.array("i64")
    done[k.number] = done[k.number] + add
    kernel = compiled_text(k.text(), "note")
    counts = array("q", [0] * 24)
    block = array("q", [tasks, workers, 0, 0, 5, counts.buffer_info()[0]])
    assert len(block) == HEADER + 2
    block.extend([0] * (-len(block) % LINE + LINE * workers))
    for _ in range(2):  # the second time nothing is left
        kernel.run(block.buffer_info()[0])
        assert list(counts) == [5] * tasks + [0] * (24 - tasks)
