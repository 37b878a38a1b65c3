"""Show backends, events, kernels, their cache and the tree: ``python -m tracetorch``."""

from __future__ import annotations

import ast
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import tracetorch
from tracetorch import events, fuse, neurons, snn
from tracetorch.events.passes import unavailable
from tracetorch.fuse.codegen.c_kernel import c_source
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel, step_kernel
from tracetorch.fuse.runtime import machine_code

USAGE = "usage: python -m tracetorch info | cache | cache --clear | kernels LAYER | tree"


def info() -> str:
    """Versions, each backend with the reason why it cannot run, if there is one, and events."""
    lines = [
        f"traceTorch {tracetorch.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} threads",
        f"kernels are kept in {machine_code.folder()}",
    ]
    for name in fuse.NAMES:
        if name != "auto":
            reason = fuse.unavailable_reason(name)
            lines.append(f"{name:8}{'available' if reason is None else f'no: {reason}'}")
    if (reason := unavailable()) is not None:
        return "\n".join([*lines, f"events  no: {reason}"])
    # the density of its input below which a linear layer computes with events
    sizes = ((6400, 256), (1024, 256), (128, 256))
    shares = ", ".join(f"{rows} rows {events.crossover(rows, n, n):.0%}" for rows, n in sizes)
    lines.append(
        f"events  {events.requested_mode()}, linear layers by layer on the CPU; of 256 inputs and "
        f"outputs below {shares}. tt.metrics.profile says it of each layer"
    )
    return "\n".join(lines)


def cache() -> str:
    """Folder of the compiled kernels, their number, and their size."""
    kernels = machine_code.cached_kernels()
    size = sum(kernel.size for kernel in kernels)
    return (
        f"folder  {machine_code.folder()}\nkernels {len(kernels)}\n"
        f"size    {size / 1e6:.1f} MB of at most {machine_code.limit() / 1e6:g} MB"
    )


def clear_cache() -> str:
    """Remove the compiled kernels, and say what is left."""
    machine_code.clear()
    return cache()


def kernels(name: str) -> str:
    """Return the kernels of a layer of ``snn`` or ``neurons``, in C: forward, backward, step."""
    kind = getattr(snn, name, getattr(neurons, name, None))
    if not (isinstance(kind, type) and issubclass(kind, snn.Neuron) and kind is not snn.Neuron):
        raise ValueError(f"there is no neuron {name!r} in tracetorch.snn or tracetorch.neurons.")
    layer = kind(1)
    program = program_of(layer.cell, 2, torch.float32, layer.step_kwargs(2, torch.float32))
    plan = Plan(program, "cpu", -1, (), True, program.inputs, program.params)
    return "\n".join(c_source(k(plan)) for k in (forward_kernel, backward_kernel, step_kernel))


def tree() -> str:
    """List the files of the package, each with the first line of its docstring."""
    package = Path(tracetorch.__file__).parent
    lines = ["tracetorch/"]
    folder = package
    for file in sorted(package.rglob("*.py"), key=lambda f: (f.parent, f.name)):
        depth = len(file.relative_to(package).parts)
        if file.parent != folder:
            folder = file.parent
            lines.append(f"{'  ' * (depth - 1)}{folder.name}/")
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        first = docstring.split("\n")[0]
        lines.append(f"{'  ' * depth + file.name:32}{first}".rstrip())
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
    commands = {"info": info, "cache": cache, "cache --clear": clear_cache, "tree": tree}
    command: Callable[[], str] | None = commands.get(" ".join(arguments))
    if len(arguments) == 2 and arguments[0] == "kernels":
        command = partial(kernels, arguments[1])
    if command is None:
        print(USAGE, file=sys.stderr)  # noqa: T201
        return 2
    try:
        print(command())  # noqa: T201
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
