"""Turn a function over a range of tasks into one that threads call by address, on one argument.

Each worker has a share of the tasks, the same in every call, so that what a core has in its caches
is of use to it again; one that has done its own goes on with the shares of the others. The argument
is the address of a block of 64-bit integers::

    0           the number of tasks
    1           the number of workers
    2           the address of a function that returns the number of the calling worker; or else 0
    3           how many workers have come, where there is no such function
    4 ...       the arguments: an integer as it is, an array as the address of its first value;
                the scratch of each worker as the address of that of worker 0, and the bytes from
                one to the next
    ...         for each worker, a cache line apart, how many tasks of its share have been taken

An array has no length there: a kernel that needs one takes it as an integer.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

LINE = 8  # integers in a cache line, which two workers should not write to
HEADER = 4  # integers before the arguments

_INTRINSICS = '''
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic


@intrinsic
def fetch_add(typing, block, index):
    """Add one to a counter that other threads add to as well; return what it was."""

    def generate(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        one = context.get_constant(types.int64, 1)
        return builder.atomic_rmw("add", place, one, "seq_cst")

    return types.int64(block, types.int64), generate


@intrinsic
def pointer(typing, address, dtype):
    """Take an integer as the address of values of a dtype."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(types.int64, dtype), generate


@intrinsic
def call(typing, address):
    """Call the C function at an address, which returns an int."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), ()).as_pointer()
        function = builder.inttoptr(arguments[0], kind)
        return builder.sext(builder.call(function, ()), ir.IntType(64))

    return types.int64(types.int64), generate
'''


def task_function(source: str, name: str, types: Sequence[Any], scratch: int) -> str:
    """Return the source of a function that takes the address of a block.

    Args:
        source: a module.
        name: a function in it: of ``first`` and ``last``, the range of tasks that it does, and
            then of integers and arrays. It does not return early.
        types: Numba's types of its arguments: ``int64``, or an array of one dimension.
        scratch: how many arrays at the end are scratch, of which each worker has its own.

    Raises:
        ValueError: the function contains ``return``, which would leave tasks undone.

    """
    tree = ast.parse(source)
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    if any(isinstance(node, ast.Return) for node in ast.walk(function)):
        raise ValueError(f"a function over tasks must not return early, {name} does.")
    first, last, *names = (argument.arg for argument in function.args.args)
    lines = [
        "task_count, task_workers, task_number = task_block[0], task_block[1], task_block[2]",
        "task_worker = call(task_number) if task_number else fetch_add(task_block, 3)",
    ]
    place = HEADER
    for index, (argument, kind) in enumerate(zip(names, types[2:], strict=True)):
        value, place = f"task_block[{place}]", place + 1
        if index >= len(names) - scratch:
            value, place = f"{value} + task_worker * task_block[{place}]", place + 1
        if hasattr(kind, "dtype"):
            value = f"carray(pointer({value}, np.{kind.dtype}), {1 << 40})"
        lines.append(f"{argument} = {value}")
    place = -(-place // LINE) * LINE
    lines += [
        "for task_other in range(task_workers):",
        "    task_owner = (task_worker + task_other) % task_workers",
        f"    task_counter = {place} + {LINE} * task_owner",
        "    task_begin = task_count * task_owner // task_workers",
        "    task_end = task_count * (task_owner + 1) // task_workers",
        "    task_next = task_begin + fetch_add(task_block, task_counter)",
        "    while task_next < task_end:",
        f"        {first}, {last} = task_next, task_next + 1",
        "        task_next = task_begin + fetch_add(task_block, task_counter)",
    ]
    entry: Any = ast.parse(f"def {name}(task_block):\n    " + "\n    ".join(lines)).body[0]
    # the function's own lines go into the innermost loop, where the range of tasks is known
    entry.body[-1].body[-1].body[1:1] = function.body
    tree.body[tree.body.index(function)] = entry
    return f"{_INTRINSICS}\n\n{ast.unparse(tree)}\n"
