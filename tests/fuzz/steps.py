"""Compare random steps by every printer with the loop that autograd differentiates."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tests import cases
from tests.fuse.codegen import test_c_kernel, test_javascript
from tests.fuse.verify import verify
from tests.fuzz.draw import random_neuron
from tracetorch import fuse, snn
from tracetorch.fuse.codegen.javascript import unknown
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel, step_kernel

Results: TypeAlias = "tuple[dict[str, Tensor], dict[str, Tensor | None]]"
Run: TypeAlias = "Callable[[snn.Neuron, Tensor, dict[str, Tensor]], dict[str, Tensor]]"


@dataclass(frozen=True)
class Case:
    """A random step, and which of its results a loss reads."""

    seed: int
    layer: snn.Neuron
    x: Tensor
    starts: dict[str, Tensor]
    reads: tuple[str, ...]


def drawn(seed: int) -> Case:
    """Draw a case; every other has a silent sample, of which slopes may be infinite."""
    draw = random.Random(-1 - seed)
    layer = random_neuron(seed, monitors=True).double()
    steps, batch = draw.choice([1, 2, 6, 9]), draw.choice([1, 3])
    x = cases.sequence(steps, batch, 5, seed=seed)
    starts: dict[str, Tensor] = {}
    if draw.random() < 0.5:
        x[:, 0] = 0
        x[-1] = 0
    elif draw.random() < 0.5:
        starts = {n: x[0].roll(i + 1) for i, n in enumerate(layer.active_states)}
    every = ["output"]
    for name in layer.active_states:
        every += [name, f"record {name}"]
    reads = draw.sample(every, draw.randrange(1, len(every)))
    return Case(seed, layer, x, starts, tuple(reads))


def plain(layer: snn.Neuron, x: Tensor, starts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run the step in a loop of nothing but autograd."""
    kwargs = layer.step_kwargs(x.ndim - 1, x.dtype)
    states = {name: starts.get(name, torch.zeros_like(x[0])) for name in layer.active_states}
    outputs: list[Tensor] = []
    records: dict[str, list[Tensor]] = {name: [] for name in states}
    for now in x.unbind():
        output, *after = layer.cell.step(now, *states.values(), **kwargs)
        states = dict(zip(states, after, strict=True))
        outputs.append(output)
        for name, state in states.items():
            records[name].append(state)
    recorded = {f"record {name}": torch.stack(each) for name, each in records.items()}
    return {"output": torch.stack(outputs), **states, **recorded}


def by_backend(name: str) -> Run:
    def run(layer: snn.Neuron, x: Tensor, starts: dict[str, Tensor]) -> dict[str, Tensor]:
        layer.zero_states()
        for state, value in starts.items():
            setattr(layer, state, value)
        with fuse.backend(name):
            y, records = layer.forward_sequence(x, record=layer.active_states)
        ends = {state: getattr(layer, state) for state in layer.active_states}
        return {"output": y, **ends, **{f"record {n}": each for n, each in records.items()}}

    return run


def results(case: Case, run: Run) -> Results:
    """Return all results, and the gradients of a loss on some of them."""
    layer, x = case.layer, case.x.clone().requires_grad_()
    starts = {name: value.clone().requires_grad_() for name, value in case.starts.items()}
    layer.zero_grad()
    values = run(layer, x, starts)
    read = [cases.weighted_sum(values[name]) for name in case.reads if values[name].requires_grad]
    grads: dict[str, Tensor | None] = {}
    if read:
        torch.stack(read).sum().backward()
        grads = {n: p.grad for n, p in layer.named_parameters()}
        grads |= {"x": x.grad, **{f"start {n}": s.grad for n, s in starts.items()}}
    return {name: value.detach() for name, value in values.items()}, grads


def same(found: Results, expected: Results, where: str) -> None:
    """Assert equal outputs, near states and gradients, and the same gradients that are absent."""
    assert torch.equal(found[0]["output"], expected[0]["output"]), f"{where}: spikes"
    near: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": True}
    for kind, one, other in zip(("value", "gradient"), found, expected, strict=True):
        for name in other:
            f, e = one[name], other[name]
            assert (f is None) == (e is None), f"{where}: {kind} of {name} is absent"
            if e is not None:
                torch.testing.assert_close({f"{where}, {name}": f}, {f"{where}, {name}": e}, **near)


def check(seed: int, folder: Path | None = None) -> str | None:
    """Compare a step by every printer, in C in a folder; return why it does not compile."""
    case = drawn(seed)
    reason = fuse.unsupported_reason("cpu", case.layer, case.x)
    if reason is not None:
        return reason
    expected = results(case, plain)
    for backend in ("cpu", "eager", *["triton"] * (fuse.unavailable_reason("triton") is None)):
        same(results(case, by_backend(backend)), expected, f"seed {seed}, {backend}")
    one_by_one(case, expected[0])
    if folder is not None:
        own = folder / str(seed)  # a library that is loaded must not be written over
        own.mkdir()
        for kernel in kernels(case, "cpu"):
            test_c_kernel.compare(kernel, own, 6, 3, exact=False)
    return None


def one_by_one(case: Case, expected: Mapping[str, Tensor]) -> None:
    """Compare the compiled single step."""
    layer = case.layer
    layer.zero_states()
    for name, value in case.starts.items():
        setattr(layer, name, value.clone())
    with torch.no_grad():
        outputs = torch.stack([layer(now) for now in case.x.unbind()])
    assert torch.equal(outputs, expected["output"]), f"seed {case.seed}: spikes of single steps"
    for name in layer.active_states:
        torch.testing.assert_close(getattr(layer, name), expected[name], rtol=1e-9, atol=1e-9)


def kernels(case: Case, backend: str) -> Sequence[Any]:
    """Return the kernels of a case, the backward one of the cotangents that there are."""
    program = cases.trace_layer(case.layer, 2, torch.float64)
    whole = Plan(program, backend, -1, program.states, True, program.inputs, program.params)
    names = ["output", *program.states, *(f"record {name}" for name in program.states)]
    plan = whole.given([name if name in case.reads else None for name in names])
    kernels = forward_kernel(whole), backward_kernel(plan), step_kernel(whole)
    return [verify(kernel) for kernel in kernels]


NODE = shutil.which("node")


class Node:
    """Run JavaScript as a page of a browser does, in Node."""

    script = ""

    def set_content(self, text: str) -> None:
        self.script = "const window = globalThis;\n"

    def add_script_tag(self, content: str) -> None:
        self.script += content + ";\n"

    def evaluate(self, function: str, argument: Any) -> Any:
        write = "(k, v) => typeof v === 'number' && !Number.isFinite(v) ? String(v) : v"
        call = f"({function})({json.dumps(argument)})"
        text = f"{self.script}\nconsole.log(JSON.stringify({call}, {write}))"
        done = subprocess.run([str(NODE), "-"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

        def read(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: read(each) for key, each in value.items()}
            return [read(v) for v in value] if isinstance(value, list) else float(value)

        return read(json.loads(done.stdout))


def check_javascript(seeds: Sequence[int]) -> None:
    """Compare random steps in JavaScript, of one lane each."""
    layers = [random_neuron(seed, monitors=True).double() for seed in seeds]
    x = torch.ones(2, 1, 5, dtype=torch.float64)
    compiled = [
        layer
        for layer in layers
        if fuse.unsupported_reason("cpu", layer, x) is None
        and unknown(cases.trace_layer(layer, 2, torch.float64).graph) is None
    ]
    test_javascript.compare(Node(), compiled, exact=False)
