"""Make the initial states of an exported program."""

from __future__ import annotations

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram

from tracetorch.core.checks import check_count
from tracetorch.core.torch_private import pytree
from tracetorch.export.step import initial_key


def initial_states(
    program: ExportedProgram, batch: int, *, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return the states of a program before the first step: zeros, or what a layer declares.

    Shapes and values are those of the program itself, also of one that ``torch.export.load`` read.

    Args:
        program: a program made by ``tt.export.step`` or ``tt.export.sequence``.
        batch: size of the batch, at least 1.
        device: device of the states; that of the program if left out.

    Raises:
        TypeError: ``program`` is no ``ExportedProgram``, or ``batch`` no integer.
        ValueError: ``tt.export`` did not make the program, or ``batch`` is below 1.

    Example:
        >>> from tracetorch.export.step import step
        >>> program = step(LIF(3), torch.rand(1, 3))
        >>> initial_states(program, batch=2)
        {'mem': tensor([[0., 0., 0.],
                [0., 0., 0.]])}
    """
    size = check_count("batch", batch)
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"program must be an ExportedProgram, got {type(program).__name__}. "
            "Make one with tt.export.step(model, sample)."
        )
    # Every node of the graph holds a fake tensor, whose shape is symbolic in the batch.
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    leaves = [nodes.get(name) for name in program.graph_signature.user_inputs]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    if len(args) != 2 or kwargs or not isinstance(args[1], dict):
        raise ValueError(
            "the program does not take (x, states): it is none that tt.export.step or "
            "tt.export.sequence made."
        )
    states: dict[str, Tensor] = {}
    for name, state in args[1].items():
        key = initial_key(name)
        # tt.export.sequence holds the tensors of one step under a slash
        values = program.state_dict.get(key, program.state_dict.get(f"/{key}", torch.tensor(0.0)))
        start = values.to(state.device if device is None else device, state.dtype)
        shape = [_at_batch(each, size) for each in state.shape]
        states[name] = start.expand(shape).clone(memory_format=torch.contiguous_format)
    return states


def _at_batch(size: int | SymInt, batch: int) -> int:
    """Return a size, the one symbol in which is the batch, for a number."""
    if not isinstance(size, SymInt):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))
