"""Print the step of a neuron as C and as Verilog, with marks where the page puts its numbers.

A mark is a name between ``⟨`` and ``⟩``. Both are printed as ``tt.export.c`` and
``tt.export.verilog`` print the step of a layer whose neurons differ: parameters are read from
tables in C, and from ports in Verilog. The circuit is that of the integer neuron that
``tt.quantize`` makes of the layer; what it refuses has its reason instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tracetorch import integers
from tracetorch.core.version import __version__
from tracetorch.export.c_code.files import header, table
from tracetorch.export.c_code.printer import c_words, float_literal
from tracetorch.export.c_code.source import model_source, names_of
from tracetorch.export.c_code.stages import Array, Pointwise, Role, StepProgram, View
from tracetorch.export.c_code.widths import found_widths
from tracetorch.export.verilog_code.circuit import Circuit, step_circuit
from tracetorch.export.verilog_code.step_module import declared, step_module
from tracetorch.fuse.codegen.targets import c_target
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.intervals import Interval
from tracetorch.fuse.ir.trace import Program
from tracetorch.plot.firing_lines import smallest_shape
from tracetorch.quantize.stages import refuse_neurons
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.neuron import Neuron

DECAY_BITS, STATE_BITS, WEIGHT_BITS, SPIKE = 12, 16, 8, 128
"""Of the circuit: bits of decays, of states, behind the point of the weight of a trace of spikes;
and how many integers a spike is that has a size, or a trace that decays."""
_STRUCT, _END = "typedef struct {\n", "\n} tt_stream;"
_DECAYS = ("alpha", "beta", "gamma")
_LIMIT = 2 ** (STATE_BITS - 1) - 1
_MOST = 2.0**23
# the least and the largest integer of each parameter
_ENDS = {
    **dict.fromkeys(_DECAYS, (0.0, 2.0**DECAY_BITS - 1)),
    **dict.fromkeys(("pos_threshold", "neg_threshold"), (1.0, float(_LIMIT))),
    **dict.fromkeys(("pos_scale", "neg_scale"), (-8.0 * SPIKE, 8.0 * SPIKE)),
    **dict.fromkeys(("rec_weight", "bias"), (-_MOST, _MOST)),
}


INTEGERS = {
    "decays": DECAY_BITS,
    "states": STATE_BITS,
    "weights": WEIGHT_BITS,
    "spike": SPIKE,
}
"""What the page rounds with."""


def mark(name: str) -> str:
    """Return what stands where the page puts a number."""
    return f"⟨{name}⟩"


def kwargs_in(layer: Neuron, dtype: torch.dtype) -> dict[str, Any]:
    """Return the step kwargs of a layer; options that are tensors, too, in ``dtype``."""
    with torch.no_grad():
        kwargs = layer.step_kwargs(len(smallest_shape(layer.cell)), dtype)
    return {
        name: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for name, v in kwargs.items()
    }


def _stage(
    path: str, program: Program, params: Mapping[str, Tensor], starts: Mapping[str, float]
) -> tuple[StepProgram, dict[str, Array]]:
    """Return the step of one lane as a program of one stage, and the tables of its parameters."""
    graph = program.forward
    tables = {
        name: Array(Role.TABLE, name, 1, values=params[name])
        for name in program.params
        if f"p_{name}" in graph.reads()
    }
    given, answer = Array(Role.INPUT, "x", 1), Array(Role.OUTPUT, "y", 1)
    states = {
        name: Array(Role.STATE, name, 1, values=torch.tensor([starts.get(name, 0.0)]))
        for name in program.states
    }

    def view(array: Array) -> View:
        return View(array, (1,), (0,))

    reads = {"x": view(given)}
    reads |= {f"s_{name}": view(array) for name, array in states.items()}
    reads |= {f"p_{name}": view(array) for name, array in tables.items()}
    writes = {"output": view(answer)}
    writes |= {f"next_{name}": view(array) for name, array in states.items()}
    stage = Pointwise(path, (1,), reads, graph, writes)
    made = StepProgram({"x": given}, {"y": answer}, states, [stage], program.dtype == torch.float64)
    return made, tables


# C


def c_files(layer: Neuron, overrides: Mapping[str, Any]) -> tuple[str, str]:
    """Return ``model.h`` and ``model.c`` of a neuron, with marks for parameters and initial states.

    ``overrides`` are step kwargs.
    """
    ndim = len(smallest_shape(layer.cell))
    kwargs = {**kwargs_in(layer, torch.float32), **overrides}
    program = program_of(layer.cell, ndim, torch.float32, kwargs)
    operation = c_target("float32").unknown_operation(program.forward)
    if operation is not None:
        raise ValueError(f"C has no {operation} of float32.")
    # numbers that nothing else in the text is
    starts = {name: 0.0123456789 + k for k, name in enumerate(program.states)}
    follows = {name for name in program.states if hasattr(layer, f"initial_{name}")}
    made, tables = _stage(
        type(layer).__name__,
        program,
        {name: torch.tensor([0.0987654321]) for name in program.params},
        {name: starts[name] for name in follows},
    )
    names = names_of(made, c_words())
    for name, array in tables.items():
        names.tables[array], names.types[array] = f"param_{name}", "float"
    text = model_source(made, names, (), None).text
    for name, array in tables.items():
        whole = table(names.tables[array], "float", array.values)
        text = text.replace(whole, whole.replace(float_literal(0.0987654321), mark(name)))
    for name in follows:
        text = text.replace(float_literal(starts[name]), mark(f"start {name}"))
    return header(made, names, [f"traceTorch {__version__}"]), text


# Verilog


def refusal(layer: Neuron) -> str | None:
    """Return why ``tt.quantize`` makes no integers of a neuron; ``None`` where it does."""
    reason = refuse_neurons(layer)
    return None if reason is None else f"{type(layer).__name__} {reason}"


def verilog_module(layer: LeakyIntegrator, overrides: Mapping[str, Any]) -> str:
    """Return the circuit of an integer neuron's step, and around it a module with its registers.

    The mark of a parameter says its bits, too. ``overrides`` are step kwargs.
    """
    kwargs = {**layer.step_kwargs(1, torch.float64), **overrides}
    ends: dict[str, Any] = {
        name: torch.tensor(each) for name, each in _ENDS.items() if kwargs.get(name) is not None
    }
    sized = "pos_scale" in ends
    if kwargs["gamma"] is not None and not sized:
        spikes = [n for n in ("pos", "neg") if f"{n}_threshold" in ends]
        ends |= {f"{n}_scale": torch.tensor(float(SPIKE)) for n in spikes}
    integer = integers.LeakyIntegrator(
        2,
        decay=integers.Multiplier(DECAY_BITS),
        state_bits=STATE_BITS,
        rec_weight_fraction=WEIGHT_BITS if "rec_weight" in ends else 0,
        reset=kwargs["reset"],
        **{f"{name}_ema": kwargs[f"{name}_ema"] for name in _DECAYS},
        **ends,
    )
    given = integer.step_kwargs(1, torch.float64)
    program = program_of(integer.cell, 1, torch.float64, given)
    values = {name: torch.as_tensor(given[name]) for name in program.params}
    made, _ = _stage(type(layer).__name__, program, values, {})
    widths = found_widths(made, {"x": Interval(-_LIMIT - 1.0, float(_LIMIT), 0.0)})
    (stage,) = made.stages
    circuit = step_circuit(stage, widths)  # type: ignore[arg-type]
    names = {each: each.removeprefix("s_").removeprefix("p_") for each in circuit.reads}
    names |= {"output": "y"} | {each: each for each in circuit.writes if each != "output"}
    circuit = replace(circuit, port_names=names)
    return f"{_registers(circuit)}\n{step_module('neuron_step', circuit)}"


def _registers(circuit: Circuit) -> str:
    """Return the module that keeps the states of a step from cycle to cycle."""
    states = [name.removeprefix("s_") for name in circuit.reads if name.startswith("s_")]
    params = {
        name.removeprefix("p_"): word.bits
        for name, word in circuit.reads.items()
        if name.startswith("p_")
    }

    lines = [
        "// One step in each cycle of the clock.",
        "module neuron (",
        *("  input wire clk,", "  input wire reset,"),
        f"  input wire {declared(circuit.reads['x'])}x,",
        f"  output wire {declared(circuit.writes['output'])}y",
        ");",
    ]
    for name in states:
        word = declared(circuit.reads[f"s_{name}"])
        lines += [f"  reg {word}{name};", f"  wire {word}next_{name};"]
    ports = [".x(x)", *(f".{name}({name})" for name in states)]
    ports += [f".{name}({mark(f'{name} {bits}')})" for name, bits in params.items()]
    ports += [".y(y)", *(f".next_{name}(next_{name})" for name in states)]
    lines += ["  neuron_step step (", ",\n".join(f"    {port}" for port in ports), "  );"]
    lines += ["  always @(posedge clk) begin"]
    lines += [f"    {name} <= reset ? 0 : next_{name};" for name in states]
    return "\n".join([*lines, "  end", "endmodule", ""])


def described_sources(layer: Neuron, resets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sources of a neuron for each of the step kwargs, or why there are none.

    What the headers of all neurons share stands in :func:`header_ends`.
    """
    refused, made = refusal(layer), [c_files(layer, each) for each in resets]
    circuits = []
    if refused is None and isinstance(layer, LeakyIntegrator):
        circuits = [verilog_module(layer, each) for each in resets]
    members = made[0][0].partition(_STRUCT)[2].partition(_END)[0]
    return {
        "c": [text for _, text in made],
        "members": members,
        "verilog": circuits,
        "refusal": refused or "",
    }


def header_ends(layer: Neuron) -> list[str]:
    """Return what stands in ``model.h`` before the members of the struct, and behind them."""
    text = c_files(layer, {})[0]
    before, struct, rest = text.partition(_STRUCT)
    return [before + struct, _END + rest.partition(_END)[2]]
