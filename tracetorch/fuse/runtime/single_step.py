"""Run one step on the CPU: a compiled kernel on memory at given addresses, in one thread."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tracetorch.fuse.codegen.llvm_kernel import print_kernel
from tracetorch.fuse.codegen.llvm_tasks import HEADER
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import step_kernel
from tracetorch.fuse.ir.verify import verify
from tracetorch.fuse.runtime.machine_code import compiled, this_machine


def compiled_step(
    plan: Plan, rows: int, columns: int, packed: Any, literals: Any
) -> Callable[[int, int, list[int]], None]:
    """Return a function of addresses: of input, output, all states before the step and behind it.

    Args:
        plan: the plan.
        rows: of the lanes, which share parameters.
        columns: lanes of a row.
        packed: an array with one row of ``columns`` values for each parameter. It is read at each
            step; the caller keeps it alive, as what follows.
        literals: an array of the numbers of the plan.
    """
    printed = print_kernel(verify(step_kernel(plan)), this_machine().processor, serial=True)
    run = compiled(printed.text, printed.name).run
    # in the order of llvm_kernel.GEOMETRY: one task, of all lanes
    fixed = [0] * HEADER + [columns, rows * columns, rows, rows, columns, columns, 1]
    for k in range(len(plan.program.params)):
        fixed += (packed.ctypes.data + k * columns * packed.itemsize, columns)
    fixed.append(literals.ctypes.data)
    first = struct.pack(f"={len(fixed)}q", *fixed)
    pack = struct.Struct(f"={2 + 2 * len(plan.program.states)}q").pack

    # ctypes passes the address of the bytes, and keeps them
    return lambda x, output, states: run(first + pack(x, output, *states))
