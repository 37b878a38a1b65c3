from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
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


def test_arithmetic_of_integers() -> None:
    def write(k: TaskWriter) -> None:
        a, b, out = k.integer(), k.integer(), k.array("i64")
        results = [
            *(a + b, a - b, a * b, a // b, a % b, a & b, a | b, a ^ b, a << b, a >> b),
            *(k.least(a, b), k.largest(a, b), k.select(a.equals(b), 1, 2)),
        ]
        for place, result in enumerate(results):
            out[place] = result

    for a, b in ((29, 3), (3, 29), (7, 7)):
        out = np.full(13, -1)
        run(write, a, b, out)
        expected = [a + b, a - b, a * b, a // b, a % b, a & b, a | b, a ^ b, a << b, a >> b]
        assert out.tolist() == [*expected, min(a, b), max(a, b), 1 if a == b else 2]


def test_short_integers_are_extended_with_zeros_and_cut() -> None:
    def write(k: TaskWriter) -> None:
        short, word = k.array("i16"), k.array("i64")
        word[0] = short[0]
        short[1] = word[1]

    short, word = np.array([65535, 0], np.uint16), np.array([0, (5 << 16) + 9])
    run(write, short, word)
    assert word[0] == 65535
    assert short[1] == 9


@pytest.mark.parametrize(("start", "stop", "step"), [(0, 0, 1), (3, 10, 1), (0, 10, 4), (5, 2, 1)])
def test_loop_carries_values(start: int, stop: int, step: int) -> None:
    def write(k: TaskWriter) -> None:
        first, last, out = k.integer(), k.integer(), k.array("i64")
        with k.loop(first, last, k.literal(1, "i64"), step=step) as each:
            each.next = (each.carried[0] * 2 + each.index,)
        out[0] = each.carried[0]

    out, expected = np.zeros(1, np.int64), 1
    for index in range(start, stop, step):
        expected = expected * 2 + index
    run(write, start, stop, out)
    assert out[0] == expected


@pytest.mark.parametrize("number", [0, 1, 3, 4])
def test_branches(number: int) -> None:
    def write(k: TaskWriter) -> None:
        n, out = k.integer(), k.array("i64")
        zero = k.literal(0, "i64")

        def summed() -> list[Value]:
            with k.repeat(below(n), zero, zero) as each:
                each.next = each.index + 1, each.carried[1] + 10
            return [each.carried[1]]

        out[0] = k.choose(n >= 3, summed, lambda: [n])[0]
        with k.when(n.equals(3)):
            out[1] = 1

    out = np.zeros(2, np.int64)
    run(write, number, out)
    assert out.tolist() == [10 * number if number >= 3 else number, number == 3]


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


def test_operand_of_another_type_is_an_error() -> None:
    k = TaskWriter("wrong")
    x = k.array("float")[0]
    with pytest.raises(TypeError, match="is not a float"):
        x + k.number


def test_iteration_that_does_not_set_what_it_carries_is_an_error() -> None:
    k = TaskWriter("wrong")
    error = pytest.raises(ValueError, match="an iteration sets 1 of 2 values")
    with error, k.loop(0, 3, k.literal(0, "i64")):
        pass
