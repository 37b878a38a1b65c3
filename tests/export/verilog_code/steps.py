"""Steps of integer neurons as circuits, and values to try them with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tracetorch.export.c_code.arrangement import living
from tracetorch.export.c_code.read_program import read_step
from tracetorch.export.c_code.stages import Copy, Pointwise, Role, StepProgram, View
from tracetorch.export.c_code.widths import Widths, found_widths
from tracetorch.export.verilog_code.circuit import Circuit, step_circuit
from tracetorch.fuse.ir.intervals import Interval


def needs(*tools: str) -> Any:
    """Return the mark of a test that runs tools, skipped where one is missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)} on this machine")


@dataclass(frozen=True)
class Step:
    """Step of a neuron layer: one pointwise stage, and its circuit."""

    layer: nn.Module
    program: StepProgram
    widths: Widths
    stage: Pointwise
    circuit: Circuit
    inputs: dict[str, Interval]


def step_of(layer: nn.Module, *, span: tuple[int, int] = (-100, 100), double: bool = False) -> Step:
    """Return the step of a layer of three neurons, whose inputs lie within a span."""
    count = len(getattr(layer, "inputs", ("x",)))
    dtype = torch.float64 if double else torch.float32
    layer = layer.to(dtype)
    x = tuple(torch.zeros(1, 3, dtype=dtype) for _ in range(count))
    exported = read_step(layer, x[0] if count == 1 else x)
    program = living(exported.program)
    inputs = {name: Interval(*span) for name in program.inputs}
    widths = found_widths(program, inputs)
    (stage,) = (each for each in program.stages if isinstance(each, Pointwise))
    circuit = step_circuit(stage, widths, program.double)
    return Step(layer, replace(program), widths, stage, circuit, inputs)


def drawn(step: Step, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Draw values of inputs and states, extremes among them, ``[count, 3]``."""
    random = np.random.default_rng(seed)
    dtype = torch.float64 if step.program.double else torch.float32
    values: dict[str, Tensor] = {}
    for name, array in step.program.ends.items():
        if array.role is Role.OUTPUT:
            continue
        found = step.widths.ranges[array]
        low, high = int(np.min(found.low)), int(np.max(found.high))
        drawn = random.integers(low, high, (count, 3), endpoint=True)
        small = np.clip(random.integers(-300, 300, (count, 3)), low, high)
        ends = random.choice([low, min(low + 1, high), max(high - 1, low), high], (count, 3))
        near = [v for v in (-1, 0, 1) if low <= v <= high] or [low]
        zero = random.choice(near, (count, 3))
        chosen = random.integers(0, 5, (count, 3))
        picked = np.choose(chosen, [drawn, drawn, small, ends, zero])
        values[name] = torch.tensor(picked, dtype=torch.bool if array.boolean else dtype)
    return values


def expected(step: Step, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what PyTorch makes of inputs and states: outputs and next states, by name."""
    layer: Any = step.layer
    for name in step.program.states:
        setattr(layer, name, values[name].clone())
    with torch.no_grad():
        y = layer(*(values[name] for name in step.program.inputs))
    (output,) = step.program.outputs
    return {output: y, **{name: getattr(layer, name) for name in step.program.states}}


def places(view: View, values: Tensor) -> np.ndarray[Any, Any]:
    """Return what a view of an array has of its values ``[count, size]``."""
    return values.flatten(1)[:, view.places().flatten()].double().numpy()


def port_values(step: Step, values: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return what each port reads, ``[count * 3]``."""
    names = {id(array): name for name, array in step.program.ends.items()}
    count = len(next(iter(values.values())))
    found = {}
    for name, view in step.stage.reads.items():
        if view.array.role is Role.TABLE:
            given = view.array.values.flatten().expand(count, -1)
            read = places(view, given) * 2.0 ** step.widths.points.get(view.array, 0)
        else:
            read = places(view, values[names[id(view.array)]])
        found[name] = read.astype(np.int64).flatten()
    return found


def expected_ports(step: Step, values: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return what each port writes, as PyTorch has it."""
    results = expected(step, values)
    names = {id(array): name for name, array in step.program.ends.items()}
    # what is copied to a state, or to an output, at the end
    for copy in step.program.stages:
        if isinstance(copy, Copy) and copy.source.whole:
            names[id(copy.source.array)] = names[id(copy.target.array)]
    found = {}
    for name, view in step.stage.writes.items():
        result = results[names[id(view.array)]]
        found[name] = result.double().numpy().astype(np.int64).flatten()
    return found
