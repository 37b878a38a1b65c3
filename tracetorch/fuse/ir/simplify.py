"""Simplify a kernel before it is printed: drop memory, and lines whose results nothing reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tracetorch.fuse.ir.kernel import (
    If,
    Kernel,
    Lanes,
    Load,
    Loop,
    Operation,
    Role,
    Statement,
    Store,
    Value,
    operands,
    statements,
)


def values_read(body: Sequence[Statement]) -> frozenset[Value]:
    """Return the values that the statements of a body read, and what its loops carry on."""
    read: set[Value] = set()
    for each in statements(body):
        read |= {v for v in operands(each) if isinstance(v, Value)}
        if isinstance(each, Loop):
            read |= {c.next for c in each.carried if isinstance(c.next, Value)}
    return frozenset(read)


def without_dead_lines(kernel: Kernel) -> Kernel:
    """Return a kernel without operations, loads and carried values that nothing reads."""
    while True:
        read = values_read(kernel.body)
        body = _living(kernel.body, read)
        if body == kernel.body:
            return kernel
        kernel = replace(kernel, body=body)


def _living(body: Sequence[Statement], read: frozenset[Value]) -> tuple[Statement, ...]:
    kept: list[Statement] = []
    for each in body:
        if isinstance(each, (Operation, Load)):
            if each.result in read:
                kept.append(each)
        elif isinstance(each, Loop):
            carried = tuple(c for c in each.carried if c.inside in read or c.result in read)
            kept.append(replace(each, carried=carried, body=_living(each.body, read)))
        elif isinstance(each, (If, Lanes)):
            inner = replace(each, body=_living(each.body, read))
            if inner.body:
                kept.append(inner)
        else:
            kept.append(each)
    return tuple(kept)


def without_memory(kernel: Kernel, roles: Sequence[Role]) -> Kernel:
    """Return a kernel without the buffers of some roles, and what goes from or to them.

    What is loaded from them must go nowhere but to other memory, as checkpoints do to the past.
    """
    buffers = tuple(buffer for buffer in kernel.buffers if buffer.role not in roles)
    loaded = {
        each.result
        for each in statements(kernel.body)
        if isinstance(each, Load) and each.buffer.role in roles
    }

    def kept(body: Sequence[Statement]) -> tuple[Statement, ...]:
        found: list[Statement] = []
        for each in body:
            if isinstance(each, Store) and (each.buffer.role in roles or each.value in loaded):
                continue
            if isinstance(each, (Loop, If, Lanes)):
                each = replace(each, body=kept(each.body))
            found.append(each)
        return tuple(found)

    return without_dead_lines(replace(kernel, buffers=buffers, body=kept(kernel.body)))
