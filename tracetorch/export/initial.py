"""The states of a program before its first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram

from tracetorch.core.checks import check_count
from tracetorch.core.torch_private import pytree
from tracetorch.export.port import Port


def initial_states(
    program: ExportedProgram, batch: int, *, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Zeros for every state of a program, as at the first step of a sequence.

    Their shapes stand in the program itself, also in one that ``torch.export.load`` has read.

    Args:
        program: what ``tt.export.step`` or ``tt.export.sequence`` gave.
        batch: size of the batch.
        device: where; if left out, where the program is.

    Raises:
        TypeError: ``program`` is no ``ExportedProgram``, or ``batch`` no integer.
        ValueError: the program is none of ours, or ``batch`` is below 1.

    Example:
        >>> from tracetorch.export.step import step
        >>> program = step(LIF(3), torch.rand(1, 3))
        >>> initial_states(program, batch=2)
        {'mem': tensor([[0., 0., 0.],
                [0., 0., 0.]])}
    """
    size = check_count("batch", batch)
    return {
        name: port.zeros(size, place if device is None else device)
        for name, (port, place) in _states(program).items()
    }


def _states(program: ExportedProgram) -> dict[str, tuple[Port, torch.device]]:
    """Shape and dtype of every state of a program, and its device, by name."""
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"program must be an ExportedProgram, got {type(program).__name__}. "
            "Make one with tt.export.step(model, sample)."
        )
    seen = {node.name: node.meta.get("val") for node in program.graph.nodes}
    leaves = [seen.get(name) for name in program.graph_signature.user_inputs]
    given, keywords = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    if len(given) != 2 or keywords or not isinstance(given[1], dict):
        raise ValueError(
            "the program does not take (x, states): it is none that tt.export.step or "
            "tt.export.sequence made."
        )
    states: dict[str, Tensor] = given[1]
    symbols: set[Any] = set()
    for state in states.values():
        for size in state.shape:
            if isinstance(size, SymInt):
                symbols |= size.node.expr.free_symbols
    if len(symbols) > 1:
        raise ValueError(f"the program's states follow several sizes, {symbols}, not one batch.")
    ports: dict[str, tuple[Port, torch.device]] = {}
    for name, state in states.items():
        shape = tuple(_told(size, symbols) for size in state.shape)
        ports[name] = Port(shape, str(state.dtype).removeprefix("torch.")), state.device
    return ports


def _told(size: int | SymInt, symbols: set[Any]) -> int | str:
    if not isinstance(size, SymInt):
        return size
    (batch,) = symbols
    factor = int(size.node.expr.subs(batch, 1))
    if size.node.expr != factor * batch:
        raise ValueError(f"a state of the program has the size {size.node.expr}, of {batch}.")
    return "batch" if factor == 1 else f"{factor}*batch"
