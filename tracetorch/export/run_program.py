"""Run an exported step, node by node, on an input and states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter

from tracetorch.core.torch_private import pytree


def run_step(
    program: ExportedProgram,
    x: Any,
    states: Mapping[str, Tensor],
    interpreter: Interpreter | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """Return output and next states of a step."""
    interpreter = interpreter or Interpreter(program.graph_module)
    constants, given = constants_of(program), iter(pytree.tree_leaves((x, dict(states))))
    names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    results = interpreter.run(*(constants[n] if n in constants else next(given) for n in names))
    y, after = pytree.tree_unflatten(list(results), program.call_spec.out_spec)
    return y, after


def constants_of(program: ExportedProgram) -> dict[str, Tensor]:
    """Return the parameters, buffers and constants of a program, by placeholder."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    values = {**program.state_dict, **program.constants}
    return {node: values[name].detach() for node, name in names.items()}
