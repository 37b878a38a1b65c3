"""Steps of integer neurons as circuits, and values to try them with."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tracetorch import chips, integers, snn
from tracetorch.export.c_code.arrangement import living
from tracetorch.export.c_code.recorded import read_step
from tracetorch.export.c_code.stages import Copy, Pointwise, Role, StepProgram
from tracetorch.export.c_code.widths import Widths, found_widths
from tracetorch.export.verilog_code.circuit import Circuit, step_circuit
from tracetorch.export.verilog_code.step_module import step_module
from tracetorch.export.verilog_code.wires import COMPUTE, PLACES
from tracetorch.fuse.ir.intervals import Interval


def needs(*tools: str) -> Any:
    """Return the mark of a test that runs tools, skipped where one is missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)} on this machine")


LEAKS = [
    *(integers.Multiplier(8, rounding) for rounding in ("trunc", "floor", "nearest")),
    *(integers.Shift(rounding) for rounding in ("floor", "trunc", "nearest", "at_least_one")),
]
PARTS: dict[str, dict[str, Any]] = {
    "": {},
    "S": {"alpha": (200, 3)},
    "R": {"gamma": (220, 2), "rec_weight": 3, "bias": -5},
    "RS": {"alpha": (200, 3), "gamma": (220, 2), "rec_weight": 3, "bias": 7},
}
ENDS: dict[str, dict[str, Any]] = {
    "Readout": {},
    "LIF": {"pos_threshold": 100},
    "BLIF": {"pos_threshold": 100, "neg_threshold": 80, "pos_scale": 2, "neg_scale": 3},
}
_SPREAD = torch.tensor([-1.0, 0.0, 1.0])


def leaky(leak: Any, parts: str = "", ends: str = "LIF", **more: Any) -> nn.Module:
    """Return a leaky integrator of three neurons, each with decays of its own."""
    shifts = isinstance(leak, integers.Shift)
    given = {**PARTS[parts], **ENDS[ends], "beta": (230, 4), **more}
    decays = {name: given[name][shifts] for name in ("alpha", "beta", "gamma") if name in given}
    given.update({name: decay + _SPREAD for name, decay in decays.items()})
    return integers.LeakyIntegrator(3, decay=leak, **given)


def xylo(**more: Any) -> nn.Module:
    """Return neurons of Xylo, each with parameters of its own."""
    shifts = {"dash_mem": 4 + _SPREAD, "dash_syn": torch.tensor([3.0, 1.0, 7.0])}
    thresholds = torch.tensor([100.0, 1000.0, 30.0])
    return chips.xylo.LIF(3, **{**shifts, "pos_threshold": thresholds, **more})


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
    circuit = step_circuit(stage, widths)
    return Step(layer, program, widths, stage, circuit, inputs)


def evaluated(circuit: Circuit, reads: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a circuit writes, in units of ``2^-point`` where a table has a point."""
    values: dict[int, Any] = {}
    for wire in circuit.wires:
        if wire.op in ("read", "const"):
            found = reads[wire.name] if wire.op == "read" else wire.k
        else:
            places = (wire.k,) if wire.op in PLACES else ()
            found = COMPUTE[wire.op](*(values[arg.number] for arg in wire.args), *places)
        values[wire.number] = found
    return {name: values[wire.number] for name, wire in circuit.ends.items()}


def drawn(step: Step, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Draw values of inputs and states, extremes among them, ``[count, 3]``."""
    generator = np.random.default_rng(seed)
    dtype = torch.float64 if step.program.double else torch.float32
    values: dict[str, Tensor] = {}
    for name, array in step.program.ends.items():
        if array.role is Role.OUTPUT:
            continue
        found = step.widths.ranges[array]
        low, high = int(np.min(found.low)), int(np.max(found.high))
        drawn = generator.integers(low, high, (count, 3), endpoint=True)
        small = np.clip(generator.integers(-300, 300, (count, 3)), low, high)
        ends = generator.choice([low, min(low + 1, high), max(high - 1, low), high], (count, 3))
        near = [v for v in (-1, 0, 1) if low <= v <= high] or [low]
        zero = generator.choice(near, (count, 3))
        chosen = generator.integers(0, 5, (count, 3))
        picked = np.choose(chosen, [drawn, drawn, small, ends, zero])
        values[name] = torch.tensor(picked, dtype=torch.bool if array.boolean else dtype)
    return values


def port_values(step: Step, values: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return what each port reads, ``[count * 3]``."""
    names = {id(array): name for name, array in step.program.ends.items()}
    count = len(next(iter(values.values())))
    found = {}
    for name, view in step.stage.reads.items():
        table = view.array.role is Role.TABLE
        given = (
            view.array.values.flatten().expand(count, -1)
            if table
            else values[names[id(view.array)]]
        )
        read = given.flatten(1)[:, view.places().flatten()].double().numpy()
        points = step.widths.points.get(view.array, 0) if table else 0
        found[name] = (read * 2.0**points).astype(np.int64).flatten()
    return found


def expected_ports(step: Step, values: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return what each port writes, as PyTorch has it: outputs and next states."""
    layer: Any = step.layer
    for name in step.program.states:
        setattr(layer, name, values[name].clone())
    with torch.no_grad():
        y = layer(*(values[name] for name in step.program.inputs))
    (output,) = step.program.outputs
    results = {output: y, **{name: getattr(layer, name) for name in step.program.states}}
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


# Random steps of integers

_UNARY = (
    *("{a}.abs()", "-{a}", "{a}.clamp(-20, 35)", "torch.relu({a})", "torch.sign({a})"),
    *("integers.shift_right({a}, 2, 'nearest')", "integers.shift_right({a}, 3, 'at_least_one')"),
    *("torch.trunc({a} * 2**-3)", "torch.round({a} * 0.25)", "torch.ceil({a} / 8)"),
    *("integers.wrap({a}, 6)", "integers.saturate({a}, 7)", "integers.wrap({a}, 5, signed=False)"),
    *("integers.multiply({a}, -37, 5, 'trunc')", "integers.multiply({a}, 13, 4, 'nearest')"),
    *("3 * {a} - 40", "torch.floor(({a} + 0.5) * 2**-2)", "torch.floor({a}.abs() / 7)"),
)
_BINARY = (
    *("{a} + {b}", "{a} - {b}", "torch.maximum({a}, {b})", "torch.minimum({a}, {b} + 3)"),
    *("torch.where({a} > {b}, {a}, {b} - 3)", "{a}.masked_fill({b} > 1, 5.0)"),
    *("({a} >= {b}).to(x.dtype) * 5 + {a}", "{a} * (1 - ({b} == 4).to(x.dtype))"),
    *("{a} * {b}.clamp(-9, 3)", "integers.multiply({a}, {b}.clamp(-90, 90), 4, 'floor')"),
    "torch.where(({a} > 2) & ~({b} < 0) | ({a} != {b}), 1.0, {a})",
    "torch.floor({a} / {b}.abs().clamp(min=1)).clamp(0, 5)",
    "torch.trunc({a} / {b}.clamp(2, 9))",
    "integers.shift_right({a}, {b}.clamp(0, 7), 'trunc')",
    "integers.shift_right({a}, {b}.clamp(0, 31), 'at_least_one')",
    "torch.add({a}, {b}, alpha=-3)",
)
_TEMPLATE = """
class RandomStep(snn.Neuron):
    states = ("mem", "trace")

    @staticmethod
    def step(x, mem, trace):
{body}
        mem = integers.saturate({last} + mem, {bits})
        trace = integers.wrap({before} + x, {bits})
        return ({last} > 3).to(x.dtype), mem, trace
"""


def random_step(seed: int) -> nn.Module:
    """Return a neuron of two states whose step is six random operations on integers."""
    draw = random.Random(seed)
    names, body = ["x", "mem", "trace"], []
    for number in range(6):
        a, b = draw.choice(names), draw.choice(names[-4:])
        line = draw.choice(draw.choice((_UNARY, _BINARY))).format(a=a, b=b)
        body.append(f"        v{number} = integers.saturate({line}, 13)")
        names.append(f"v{number}")
    source = _TEMPLATE.format(
        body="\n".join(body), last="v5", before=draw.choice(names), bits=draw.choice((5, 9, 12))
    )
    known: dict[str, Any] = {"torch": torch, "snn": snn, "integers": integers}
    exec(compile(source, f"<step {seed}>", "exec"), {**known, "__name__": __name__}, known)
    layer: nn.Module = known.pop("RandomStep")(3)
    return layer


# Tools


def simulated(step: Step, reads: dict[str, Any], folder: Path) -> Any:
    """Return what iverilog makes of values of the ports, by the names of the stage."""
    circuit = step.circuit
    count = len(next(iter(reads.values())))
    wide = sum(word.bits for word in circuit.reads.values())
    lines = []
    for row in range(count):
        value = 0
        for name, word in circuit.reads.items():
            value = value << word.bits | int(reads[name][row]) % (1 << word.bits)
        lines.append(f"{value:x}")
    (folder / "in.hex").write_text("\n".join(lines) + "\n")
    (folder / "step.v").write_text(step_module("step", circuit))
    ports = circuit.port_names
    ends = {name: word.bits for name, word in circuit.writes.items()}
    declared = "".join(f"  wire [{bits - 1}:0] {ports[n]};\n" for n, bits in ends.items())
    given = "".join(
        f"  wire [{word.bits - 1}:0] {ports[n]};\n" for n, word in circuit.reads.items()
    )
    bench = (
        f"module bench;\n  reg [{wide - 1}:0] rows [0:{count - 1}];\n  reg [{wide - 1}:0] row;\n"
        f"{given}{declared}  assign {{{', '.join(ports[n] for n in circuit.reads)}}} = row;\n"
        f"  step dut ({', '.join(f'.{p}({p})' for p in ports.values())});\n  integer i;\n"
        f'  initial begin\n    $readmemh("in.hex", rows);\n    for (i = 0; i < {count}; i = i + 1)'
        f" begin\n      row = rows[i]; #1;\n"
        f'      $display("{" ".join(["%b"] * len(ends))}", {", ".join(ports[n] for n in ends)});\n'
        "    end\n  end\nendmodule\n"
    )
    (folder / "bench.v").write_text(bench)
    run(["iverilog", "-g2005", "-Wall", "-o", "sim", "bench.v", "step.v"], folder)
    rows = [line.split() for line in run(["vvp", "-n", "sim"], folder).splitlines()]
    assert len(rows) == count
    found = {}
    for place, (name, word) in enumerate(circuit.writes.items()):
        values = [int(row[place], 2) for row in rows]
        if word.signed:
            values = [v - (1 << word.bits) if v >> (word.bits - 1) else v for v in values]
        found[name] = np.array(values)
    return found


def run(command: list[str], folder: Path, quiet: bool = True) -> str:
    """Return what a tool prints; assert that it succeeds, and if ``quiet`` warns of nothing."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    # a preprocessor that its package misplaces: without it nothing is lost here
    said = [line for line in (done.stdout + done.stderr).splitlines() if "ivlpp" not in line]
    assert done.returncode == 0, "\n".join(said)
    assert not (quiet and [line for line in said if "arning" in line]), "\n".join(said)
    return done.stdout
