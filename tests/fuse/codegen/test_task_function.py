from __future__ import annotations

import pytest

from tracetorch.fuse.codegen.task_function import task_function

int64 = object()  # a type without `dtype` is an integer's


def test_function_that_returns_early_is_refused() -> None:
    source = "def early(first, last):\n    if first:\n        return\n"
    with pytest.raises(ValueError, match="must not return early, early does"):
        task_function(source, "early", [int64, int64], 0)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("tasks", [0, 1, 5, 20])
def test_first_worker_does_the_shares_of_all_that_have_not_come(tasks: int, workers: int) -> None:
    source = "def note(first, last, sign):\n    done.append((first, last, sign))\n"
    printed = task_function(source, "note", [int64] * 3, 0)
    done: list[tuple[int, int, int]] = []

    def fetch_add(block: list[int], index: int) -> int:
        block[index] += 1
        return block[index] - 1

    names = {"done": done, "fetch_add": fetch_add}
    # without the intrinsics, which only Numba can run
    exec(printed[printed.index("def note") :], names)
    block = [tasks, workers, 0, 0, -1, *[0] * 100]
    names["note"](block)  # type: ignore[operator]
    assert done == [(task, task + 1, -1) for task in range(tasks)]
    names["note"](block)  # type: ignore[operator]
    assert len(done) == tasks
