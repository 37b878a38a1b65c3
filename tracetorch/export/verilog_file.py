"""Write a model of integers as a circuit in Verilog: ``verilog``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_integer, check_module
from tracetorch.core.files import write_texts
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import one_trace_at_a_time
from tracetorch.export.c_code.recorded import RecordedStep, record_step
from tracetorch.export.program import named_leaves
from tracetorch.export.verilog_code.arrangement import arranged
from tracetorch.export.verilog_code.files import MAKEFILE, bench_module, recorded_files
from tracetorch.export.verilog_code.network import network
from tracetorch.snn.module import zero_states
from tracetorch.unrolling.inputs import Inputs, call, parse_inputs

_MOST_LANES = 32


@dataclass(frozen=True)
class VerilogReport:
    """Memories of a network as a circuit, and the cycles of its step as a formula of spikes.

    Cells and the clock are what the tools find: ``make synth`` and ``make route`` print them.

    Args:
        files: names of the files.
        lanes: values that a word of a memory holds.
        memory_bits: size of each memory that is written, by what it holds.
        table_bits: size of all tables of constants, weights among them.
        fixed_cycles: cycles of a step without any spike, from ``step`` to ``done``.
        event_cycles: cycles that each spike adds, by who fired.
        reset_cycles: cycles from the end of a reset until the network is ready.
        ports: words of each ``value``: ``"int8"`` of 8 bits in two's complement, ``"uint1"``, by
            the name of the input or output.
        input_range: least and largest value of each input for which widths are proved, by name.

    Example:
        >>> report = VerilogReport((), 1, {}, 0, 20, {"x": 3, "1": 2}, 7, {}, {})
        >>> report.cycles({"x": 4, "1": 1})
        34
        >>> report.formula
        '20 + 3*[x] + 2*[1]'
    """

    files: tuple[str, ...]
    lanes: int
    memory_bits: Mapping[str, int]
    table_bits: int
    fixed_cycles: int
    event_cycles: Mapping[str, int]
    reset_cycles: int
    ports: Mapping[str, str]
    input_range: Mapping[str, tuple[float, float]]

    def cycles(self, events: Mapping[str, int]) -> int:
        """Return the cycles of a step in which so many values of each source are not zero."""
        unknown = [name for name in events if name not in self.event_cycles]
        if unknown:
            raise ValueError(f"events are of {[*self.event_cycles]}, got {unknown[0]!r}.")
        return self.fixed_cycles + sum(n * self.event_cycles[name] for name, n in events.items())

    @property
    def formula(self) -> str:
        """The cycles of a step, in terms of how many values of each source are not zero."""
        terms = [str(self.fixed_cycles)]
        terms += [f"{each}*[{name}]" for name, each in self.event_cycles.items()]
        return " + ".join(terms)

    def __str__(self) -> str:
        ranges = ", ".join(
            f"{n} {low:.0f} to {high:.0f}" for n, (low, high) in self.input_range.items()
        )
        lines = [
            f"lanes        {self.lanes}",
            f"inputs       {ranges}",
            "values       " + ", ".join(f"{name} {word}" for name, word in self.ports.items()),
            f"memories     {sum(self.memory_bits.values())} bits: "
            + ", ".join(f"{name} {bits}" for name, bits in self.memory_bits.items()),
            f"tables       {self.table_bits} bits of constants",
            f"cycles       {self.formula} from step to done, if outputs are taken at once; [name] "
            f"is how many of its values are not zero; {self.reset_cycles} after a reset",
            "cells        make synth",
            "clock        make route",
            "power        not estimated: no tool here knows it",
        ]
        return "\n".join(lines) + "\n"


def verilog(
    model: nn.Module, folder: str | os.PathLike[str], sample: Any, *, lanes: int = 1
) -> VerilogReport:
    """Write one time step of an integer ``model`` as a circuit, in Verilog-2005 for FPGAs.

    ::

        network   clk, reset, ready;  step, done;  for every input and output:
                  valid, ready, address, value     what is zero is not sent

    The model's numbers are integers (``tt.quantize``, ``tt.integers``, ``tt.chips``, or a ``step``
    of your own). Give what is not zero of an input, by its place, while ``ready``; then a pulse of
    ``step``; the outputs that are not zero come, and ``done``. A reset begins a stream.

    There is a module for each kind of neuron, its step without a clock, in which every wire has the
    width that is proved for it; one for each layer, which walks over memories of just that width,
    ``lanes`` values at a time; and one for the network, which runs the layers in turn. A product
    adds a row of weights for every event of its source. Linear layers take ``lanes`` weights at a
    time; convolutions, pools, copies and sums one value in a cycle.

    ``make sim`` plays the sample through it and compares with PyTorch; ``make lint``, ``synth``,
    ``netlist``, ``route`` need ``iverilog``, ``verilator``, ``yosys`` and ``nextpnr``.

    A first ``tt.integers.Quantize`` is left to whoever gives the inputs, as in
    :func:`tt.export.c`.

    Args:
        model: any module whose call is one time step; it is unchanged afterwards.
        folder: made if it is not there; files of these names are replaced, and none where an
            error is raised.
        sample: a recorded input ``[T, B, ...]`` of integers: a tensor, or a tuple or a dict of
            them. Inputs may be what lies in its range; each of its ``B`` streams is played.
        lanes: how many values a word of a memory holds: 1, 2, 4, 8, 16 or 32.

    Returns:
        Memories, and the cycles of a step: :class:`tt.export.VerilogReport`.

    Raises:
        TypeError: ``model`` is no module, ``lanes`` no integer, or ``sample`` holds anything but
            tensors.
        ValueError: ``lanes`` is none of those; the model is refused as by :func:`tt.export.c` with
            ``dtype="int"``; or a step divides by what may not be positive, or does not round.
        OSError: the files cannot be written; those that there are stay as they are.

    Example:
        >>> import tempfile
        >>> from tracetorch import integers
        >>> net = nn.Sequential(integers.Linear(4, 3), integers.LeakyIntegrator(3, pos_threshold=9))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = verilog(net, folder, torch.ones(10, 1, 4))
        ...     "network.v" in os.listdir(folder)
        True
        >>> report.formula
        '22 + 3*[x]'
    """
    check_module(model)
    if check_integer("lanes", lanes) not in {2**n for n in range(_MOST_LANES.bit_length())}:
        raise ValueError(f"lanes must be 1, 2, 4, 8, 16 or {_MOST_LANES}, got {lanes}.")
    inputs = parse_inputs(sample)
    if not inputs.batch:
        raise ValueError("x has no sample: its batch is 0, and a recorded input is needed.")
    files, report = _files(model, inputs, lanes)
    write_texts(folder, files)
    return report


@one_trace_at_a_time
def _files(model: nn.Module, inputs: Inputs, lanes: int) -> tuple[dict[str, str], VerilogReport]:
    recorded = record_step(model, inputs, True)
    arrangement = arranged(recorded.program, recorded.widths, lanes)
    made = network(arrangement, recorded.notes)
    files = {f"{name}.v": text for name, text in made.modules.items()}
    files |= {f"{each.name}.hex": each.text for each in made.tables}
    files |= recorded_files(made, recorded.named, _answers(recorded))
    files["testbench.v"] = bench_module(made, recorded.inputs.batch, recorded.inputs.steps)
    files["Makefile"] = MAKEFILE.format(sources=" ".join(f"{name}.v" for name in made.modules))
    events: dict[str, int] = {}
    for layer in made.layers:
        if layer.source is not None:
            label = layer.source.label
            events[label] = events.get(label, 0) + layer.event_cycles
    report = VerilogReport(
        (*files, "report.txt"),
        lanes,
        {store.name: store.bits for store in made.stores},
        sum(each.bits for each in made.tables),
        sum(layer.cycles for layer in made.layers),
        events,
        made.layers[-1].cycles,
        {
            end.name: f"{'' if end.store.word.signed else 'u'}int{end.store.word.bits}"
            for end in (*made.inputs, *made.outputs)
        },
        recorded.input_range,
    )
    files["report.txt"] = str(report).encode("ascii", "replace").decode()
    return files, report


def _answers(recorded: RecordedStep) -> Mapping[str, Tensor]:
    """Return what the model answers to the sample, ``[T, B, ...]``, by the program's names."""
    model, found = recorded.model, list[dict[str, Tensor]]()
    with torch.no_grad(), restored(model, training=False):
        zero_states(model)
        for x in recorded.inputs.each_step():
            found.append(dict(named_leaves("y", call(model, x))))
    answers = {name: torch.stack([step[name] for step in found]) for name in found[0]}
    for name, y in answers.items():
        if y.shape[1:2] != (recorded.inputs.batch,):
            raise ValueError(
                f"{name} has shape {list(y.shape[1:])} for a batch of {recorded.inputs.batch}: a "
                "circuit computes one stream. Give an output the batch first, and sum over others."
            )
    return answers
