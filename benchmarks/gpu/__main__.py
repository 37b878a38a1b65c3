"""Write the table of kernels that were compiled for GPUs: ``python -m benchmarks.gpu``."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence

import torch

from benchmarks.gpu.compiled import TARGETS, Compiled, compiled
from benchmarks.gpu.page import PAGE, write
from tracetorch import neurons, snn
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.kernel import Schedule
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel
from tracetorch.fuse.runtime.gpu import TritonBackend

BEGIN = "<!-- written by python -m benchmarks.gpu -->"
_NOT_NEURONS = ("Neuron", "LeakyIntegrator")


def layers() -> dict[str, snn.Neuron]:
    """Return a layer of each neuron of the library, by name."""
    found: dict[str, snn.Neuron] = {}
    for package in (snn, neurons):
        for name in package.__all__:
            kind = getattr(package, name)
            is_neuron = isinstance(kind, type) and issubclass(kind, snn.Neuron)
            if is_neuron and name not in _NOT_NEURONS:
                found[name] = kind(3)
    return found


def kernels(
    layer: snn.Neuron, dtype: torch.dtype = torch.float32, recorded: float = 0.0
) -> tuple[Schedule, Schedule]:
    """Return the kernels of a layer that learns in a dense network, a share of states recorded."""
    layer = layer.to(dtype)
    program = program_of(layer.cell, 2, dtype, layer.step_kwargs(2, dtype))
    record = program.states[: math.ceil(recorded * len(program.states))]
    gradients = (True, program.inputs, program.params)
    plan = Plan(program, "triton", -1, record, *gradients, TritonBackend.tile)
    return forward_kernel(plan), backward_kernel(plan)


def table(targets: Sequence[str], names: Sequence[str] | None = None) -> str:
    """Return the table in Markdown."""
    head = ["neuron", *(f"{target} {way}" for target in targets for way in ("forward", "backward"))]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    every: list[Compiled] = []
    for name, layer in layers().items():
        if names is not None and name not in names:
            continue
        found = [compiled(kernel, target) for target in targets for kernel in kernels(layer)]
        lines.append(f"| {name} | {' | '.join(map(_cell, found))} |")
        every += found
    most = max(each.registers for each in every)
    shared = max(each.shared for each in every)
    spilled = sum(each.spilled_in_loops for each in every)
    changed = sum(each.contracted + each.flushed + each.widened for each in every)
    lines += [
        "",
        f"Compiled by Triton {_version()} for {' and '.join(targets)}, in float32, as for a dense "
        f"layer that learns. Of a thread at most {most} registers; {shared or 'no'} bytes of "
        f"shared memory; {spilled or 'no'} registers in memory inside of the loops over time; "
        f"{changed or 'no'} instructions that round otherwise than the step.",
    ]
    return "\n".join(lines)


def _cell(found: Compiled) -> str:
    if not found.loops:  # the disassembler is NVIDIA's
        return str(found.registers)
    return f"{found.registers}, {math.ceil(found.instructions)}"


def _version() -> str:
    import triton

    return str(triton.__version__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, and write the table; return 2 where there is no Triton."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["sm_80", "sm_90"])
    parser.add_argument("--neurons", nargs="+", metavar="NAME", help="only these, printed")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed; it compiles without a GPU: make .venv/.triton, and run")
        print("PYTHONPATH=.venv/triton python -m benchmarks.gpu")
        return 2
    text = table(options.targets, options.neurons)
    if options.neurons is None:
        write(text, BEGIN)
        print(f"the table is in {PAGE}")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
