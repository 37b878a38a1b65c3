"""Read an exported program as one time step: stages, and arrays for what goes in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tracetorch.core.torch_private import pytree
from tracetorch.export.c_code.operations import RULES
from tracetorch.export.c_code.reader import FLOATS, Reader
from tracetorch.export.c_code.stages import Array, Copy, Role, StepProgram, View


def read_program(program: ExportedProgram, x: Any, states: Mapping[str, Tensor]) -> StepProgram:
    """Return one time step of a program as stages.

    Args:
        program: made by ``tt.export.step``.
        x: an input of one step, at a batch of one.
        states: what they start from, at a batch of one.

    Raises:
        ValueError: an operation has no C; it is named, with the path of its module.
    """
    reader = Reader(program, RULES)
    signature = program.graph_signature
    arguments, _ = pytree.tree_unflatten(list(signature.user_inputs), program.call_spec.in_spec)
    ends, state_ends = pytree.tree_unflatten(
        list(signature.user_outputs), program.call_spec.out_spec
    )
    given: dict[str, Tensor] = {}
    inputs: dict[str, Array] = {}
    held: dict[str, Array] = {}
    leaves: list[tuple[str, Tensor, Role, str]] = [
        (node, value, Role.INPUT, name)
        for (name, node), value in zip(
            named_leaves("x", arguments[0]), pytree.tree_leaves(x), strict=True
        )
    ]
    leaves += [(arguments[1][name], states[name], Role.STATE, name) for name in arguments[1]]
    for node, value, role, name in leaves:
        if role is Role.STATE and value.dtype not in (*FLOATS, torch.bool):
            raise ValueError(
                f"the state {name} is of {value.dtype}, for which there is no C: states are floats "
                "and truth values. Keep it outside, and give what follows from it as an input."
            )
        if value.dtype not in (*FLOATS, torch.bool):
            raise ValueError(
                f"{name} is of {value.dtype}; C is written for float32, or for float64 that holds "
                "integers. Convert the sample, sample.float()."
            )
        dense = value.detach().contiguous().clone()
        given[node] = dense
        start = dense.flatten() if role is Role.STATE else None
        array = Array(role, name, dense.numel(), dense.dtype is torch.bool, start)
        (inputs if role is Role.INPUT else held)[name] = array
        reader.views[node] = View(array, tuple(dense.shape), tuple(dense.stride()))
        if dense.dtype in FLOATS:
            reader.dtypes.add(dense.dtype)
    order = [n.name for n in program.graph.nodes if n.op == "placeholder"]
    with torch.no_grad():
        reader.run(*({**given, **reader.given}[name] for name in order))
    reader.close()
    nodes = {node.name: node for node in program.graph.nodes}
    step = StepProgram(inputs, {}, held, reader.stages, torch.float64 in reader.dtypes)
    last = [(held[name], name, node) for name, node in state_ends.items()]
    for name, node in named_leaves("y", ends):
        result = reader.env.get(nodes[node]) if node in nodes else None
        if not isinstance(result, Tensor):
            raise ValueError(f"the output {name} of forward is no tensor: {node!r}.")
        array = Array(Role.OUTPUT, name, result.numel(), result.dtype is torch.bool)
        step.outputs[name] = array
        last.append((array, name, node))
    for array, name, node in last:
        view = reader.view(nodes[node])
        into = View(array, view.shape, tuple(torch.empty(view.shape).stride()))
        step.stages.append(Copy(name, view, into))
    return step


def named_leaves(name: str, value: Any) -> Sequence[tuple[str, Any]]:
    """Name every leaf of a nest, ``y_0_aux`` for ``y[0]["aux"]``."""
    if isinstance(value, (tuple, list)):
        return [pair for i, each in enumerate(value) for pair in named_leaves(f"{name}_{i}", each)]
    if isinstance(value, dict):
        return [p for key, each in value.items() for p in named_leaves(f"{name}_{key}", each)]
    return [(name, value)]
