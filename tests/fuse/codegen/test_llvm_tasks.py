from __future__ import annotations

from array import array

import pytest

from tracetorch.fuse.codegen.llvm_tasks import HEADER, LINE, TaskWriter
from tracetorch.fuse.runtime.machine_code import compiled, unavailable_reason

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="llvmlite is missing")


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("tasks", [0, 1, 5, 20])
def test_first_worker_does_the_shares_of_all_that_have_not_come(tasks: int, workers: int) -> None:
    k = TaskWriter("note")
    add, done = k.integer(), k.array("i64")
    done[k.number] = done[k.number] + add
    kernel = compiled(k.text(), "note")
    counts = array("q", [0] * 24)
    block = array("q", [tasks, workers, 0, 0, 5, counts.buffer_info()[0]])
    assert len(block) == HEADER + 2
    block.extend([0] * (-len(block) % LINE + LINE * workers))
    kernel.run(block.buffer_info()[0])
    assert list(counts) == [5] * tasks + [0] * (24 - tasks)
    kernel.run(block.buffer_info()[0])
    assert list(counts) == [5] * tasks + [0] * (24 - tasks)
