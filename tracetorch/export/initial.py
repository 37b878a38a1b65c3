"""Make the initial states of an exported program."""

from __future__ import annotations

from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram

from tracetorch.core.checks import check_count
from tracetorch.core.torch_private import pytree
from tracetorch.export.step import initial_key
from tracetorch.export.tensor_spec import TensorSpec


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
    values = program.state_dict if isinstance(program, ExportedProgram) else {}
    return {
        name: spec.full(
            size,
            # tt.export.sequence holds the tensors of one step under a slash
            next((values[k] for k in (key, f"/{key}") if k in values), 0.0),
            own_device if device is None else device,
        )
        for name, (spec, own_device) in _state_specs(program).items()
        for key in [initial_key(name)]
    }


def _state_specs(program: ExportedProgram) -> dict[str, tuple[TensorSpec, torch.device]]:
    """Return shape, dtype and device of every state of a program by name."""
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"program must be an ExportedProgram, got {type(program).__name__}. "
            "Make one with tt.export.step(model, sample)."
        )
    # Every node of the graph holds a fake tensor, whose shape is symbolic in the batch.
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    leaves = [values.get(name) for name in program.graph_signature.user_inputs]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    if len(args) != 2 or kwargs or not isinstance(args[1], dict):
        raise ValueError(
            "the program does not take (x, states): it is none that tt.export.step or "
            "tt.export.sequence made."
        )
    states: dict[str, Tensor] = args[1]
    # The batch is the one symbol in the sizes of all states.
    symbols: set[Any] = set()
    for state in states.values():
        for size in state.shape:
            if isinstance(size, SymInt):
                symbols |= size.node.expr.free_symbols
    if len(symbols) > 1:
        raise ValueError(f"the program's states follow several sizes, {symbols}, not one batch.")
    specs: dict[str, tuple[TensorSpec, torch.device]] = {}
    for name, state in states.items():
        shape = tuple(_spec_size(size, symbols) for size in state.shape)
        dtype = str(state.dtype).removeprefix("torch.")
        specs[name] = TensorSpec(shape, dtype), state.device
    return specs


def _spec_size(size: int | SymInt, symbols: set[Any]) -> int | str:
    """Write a size of a symbolic shape as a :class:`TensorSpec` has it.

    Raises:
        ValueError: the size is no multiple of the batch.
    """
    if not isinstance(size, SymInt):
        return size
    (batch,) = symbols
    factor = int(size.node.expr.subs(batch, 1))
    if size.node.expr != factor * batch:
        raise ValueError(f"a state of the program has the size {size.node.expr}, of {batch}.")
    return "batch" if factor == 1 else f"{factor}*batch"
