"""Export one time step of a model, and read it: stages, and arrays for what goes in and out."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import named_modules
from tracetorch.export.c_code.operations import RULES
from tracetorch.export.c_code.reader import FLOATS, Reader
from tracetorch.export.c_code.stages import Array, Copy, Role, StepProgram, View
from tracetorch.export.program import constants_of, named_leaves, run_step
from tracetorch.export.step import decomposed, export_step
from tracetorch.snn.noise import Noise
from tracetorch.snn.norm_folding import needs_batch


@dataclass(frozen=True)
class ExportedStep:
    """Program of one time step of a model."""

    exported: ExportedProgram  # the program of PyTorch
    program: StepProgram  # its stages
    states: Mapping[str, Tensor]  # what it starts from


def read_step(
    model: nn.Module, x: Any, record: Mapping[str, nn.Module] | None = None
) -> ExportedStep:
    """Export one time step of a model, and read it as stages; decomposed only where it must be."""
    for path, module in named_modules(model):
        for name in (path, *module._parameters, *module._buffers):
            words = any(map(keyword.iskeyword, name.split(".")))
            if words or re.search(r'["\\\x00-\x1f\x7f]', name):
                raise ValueError(
                    f"the name {name!r} in the model holds a word of Python, a quotation mark, a "
                    "backslash or a control character, which torch.export cannot write. Rename it."
                )
        if needs_batch(module):
            raise ValueError(
                f"{path or 'the model'} ({type(module).__name__}) cannot be written in C: it takes "
                "its statistics from the batch. It needs track_running_stats=True."
            )
        if isinstance(module, Noise):
            raise ValueError(
                f"{path or 'the model'} ({type(module).__name__}) cannot be written in C: its "
                "stream is a counter of 64 bits through integers that wrap (Threefry), and its "
                "normal numbers take log and cos, which no two math.h round alike; the stream here "
                "would not be that of PyTorch. Let forward take the random numbers as an input, "
                "and draw them in C as you like."
            )
    traced, signature = export_step(model, x, batch=1, record=record, as_traced=True)
    states = signature.initial_states(1, torch.device("cpu"))
    schemas = [getattr(node.target, "_schema", None) for node in traced.graph.nodes]
    if not any(schema is not None and schema.is_mutable for schema in schemas):
        try:
            return ExportedStep(traced, read_program(traced, x, states), states)
        except ValueError:
            pass  # the same error comes again, where its parts have no C either
    parts = decomposed(traced, model)
    return ExportedStep(parts, read_program(parts, x, states), states)


def read_program(program: ExportedProgram, x: Any, states: Mapping[str, Tensor]) -> StepProgram:
    """Return one time step of a program, on an input and states of a batch of one, as stages."""
    reader = Reader(program.graph_module, constants_of(program), RULES)
    signature, spec = program.graph_signature, program.call_spec
    arguments, _ = pytree.tree_unflatten(list(signature.user_inputs), spec.in_spec)
    given, given_states = arguments
    y, next_states = pytree.tree_unflatten(list(signature.user_outputs), spec.out_spec)
    leaves: list[Tensor] = pytree.tree_leaves(x)
    placed = [
        (Role.INPUT, name, node, value)
        for (name, node), value in zip(named_leaves("x", given), leaves, strict=True)
    ]
    placed += [(Role.STATE, name, node, states[name]) for name, node in given_states.items()]
    values: list[Tensor] = []
    step = StepProgram({}, {}, {}, reader.stages)
    for role, name, node, value in placed:
        if value.dtype not in (*FLOATS, torch.bool):
            raise ValueError(
                f"{'the state ' * (role is Role.STATE)}{name} is of {value.dtype}; C is written "
                "for float32, for float64 that holds integers, and for truth values. Convert the "
                "sample, sample.float(); keep such a state outside, and give what follows from it "
                "as an input."
            )
        dense = value.detach().contiguous().clone()
        values.append(dense)
        start = dense.flatten() if role is Role.STATE else None
        array = Array(role, name, dense.numel(), dense.dtype is torch.bool, start)
        (step.inputs if role is Role.INPUT else step.states)[name] = array
        reader.views[node] = View(array, tuple(dense.shape), tuple(dense.stride()))
        if dense.dtype in FLOATS:
            reader.dtypes.add(dense.dtype)
    at = len(leaves)
    with torch.no_grad():
        run_step(program, values[:at], dict(zip(given_states, values[at:], strict=True)), reader)
    reader.close()
    step.double = torch.float64 in reader.dtypes
    nodes = {node.name: node for node in program.graph.nodes}
    last = [(step.states[name], name, node) for name, node in next_states.items()]
    for name, node in named_leaves("y", y):
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


def holds_spikes(values: Tensor) -> bool:
    """Whether most values of an input are zero."""
    return bool((values == 0).double().mean() > 0.5)
