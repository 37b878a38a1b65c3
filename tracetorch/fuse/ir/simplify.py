"""Simplify a kernel before it is printed: drop memory, and lines whose results nothing reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tracetorch.fuse.ir import kernel as ir


def values_read(body: Sequence[ir.Statement]) -> frozenset[ir.Value]:
    """Return the values that the statements of a body read, and what its loops carry on."""
    read: set[ir.Value] = set()
    for each in ir.statements(body):
        read |= {v for v in ir.operands(each) if isinstance(v, ir.Value)}
        if isinstance(each, ir.Loop):
            read |= {c.next for c in each.carried if isinstance(c.next, ir.Value)}
    return frozenset(read)


def without_dead_lines(kernel: ir.Kernel) -> ir.Kernel:
    """Return a kernel without operations, loads and carried values that nothing reads."""
    while True:
        read = values_read(kernel.body)
        body = _living(kernel.body, read)
        if body == kernel.body:
            return kernel
        kernel = replace(kernel, body=body)


def _living(body: Sequence[ir.Statement], read: frozenset[ir.Value]) -> tuple[ir.Statement, ...]:
    kept: list[ir.Statement] = []
    for each in body:
        if isinstance(each, (ir.Operation, ir.Load)):
            if each.result in read:
                kept.append(each)
        elif isinstance(each, ir.Loop):
            carried = tuple(c for c in each.carried if c.inside in read or c.result in read)
            kept.append(replace(each, carried=carried, body=_living(each.body, read)))
        elif isinstance(each, (ir.If, ir.Lanes)):
            inner = replace(each, body=_living(each.body, read))
            if inner.body:
                kept.append(inner)
        else:
            kept.append(each)
    return tuple(kept)


def without_memory(kernel: ir.Kernel, roles: Sequence[ir.Role]) -> ir.Kernel:
    """Return a kernel without buffers of some roles, which may go only to other memory."""
    buffers = tuple(buffer for buffer in kernel.buffers if buffer.role not in roles)
    loaded = {
        each.result
        for each in ir.statements(kernel.body)
        if isinstance(each, ir.Load) and each.buffer.role in roles
    }

    def kept(body: Sequence[ir.Statement]) -> tuple[ir.Statement, ...]:
        found: list[ir.Statement] = []
        for each in body:
            if isinstance(each, ir.Store) and (each.buffer.role in roles or each.value in loaded):
                continue
            if isinstance(each, (ir.Loop, ir.If, ir.Lanes)):
                each = replace(each, body=kept(each.body))
            found.append(each)
        return tuple(found)

    return without_dead_lines(replace(kernel, buffers=buffers, body=kept(kernel.body)))
