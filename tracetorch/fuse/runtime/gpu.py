"""Run the printed time loops on a GPU: layout, memory and launches around the Triton kernels.

Under ``TRITON_INTERPRET=1`` they run on tensors of the CPU, slowly, to be tested.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.torch_private import global_modes_off
from tracetorch.fuse.codegen.triton_loops import (
    BLOCK,
    LEAST,
    compile_options,
    triton_source,
    unknown,
)
from tracetorch.fuse.ir.plan import TILE, Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel
from tracetorch.fuse.ir.trace import Program
from tracetorch.fuse.runtime import threefry
from tracetorch.fuse.runtime.allocation import Layout, allocate_results, strided, wrong_memory
from tracetorch.fuse.runtime.backend import Backend, Operands
from tracetorch.fuse.runtime.cpu import parameter_gradients
from tracetorch.fuse.runtime.machine_code import module_of


def _kernel(plan: Plan, name: str) -> Any:
    """Return a kernel of a plan, imported at the first call."""
    if name not in plan.kernels:
        schedule = backward_kernel if name == "backward" else forward_kernel
        source = triton_source(schedule(plan))
        plan.kernels[name] = getattr(module_of(source, f"triton_{name}"), name)
    return plan.kernels[name]


def launch(kernel: Any, lanes: int, device: torch.device, arguments: dict[str, Any]) -> None:
    """Run a kernel on so many lanes, on the device's stream."""
    for value in arguments.values():  # the memory of another GPU would end the process
        if isinstance(value, Tensor) and value.device != device:
            raise wrong_memory(value, value.dtype, device)
    is_gpu = device.type == "cuda"
    options = compile_options("hip" if is_gpu and torch.version.hip else device.type)
    with torch.cuda.device(device) if is_gpu else np.errstate(all="ignore"):
        kernel[(-(-lanes // BLOCK),)](**arguments, **options)


@functools.cache
def literals(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers on a device, for as arguments those of float64 would be truncated.

    Copied once, and kept: memory freed on one stream could be given away while another reads it.
    """
    with global_modes_off():
        return torch.tensor(numbers, dtype=dtype, device=device)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1)


def _inputs(plan: Plan, layout: Layout, given: Operands, every: int) -> dict[str, Any]:
    """Return the arguments that both kernels take."""
    x = given.inputs[0]
    steps = x.shape[0]
    arguments: dict[str, Any] = {
        "steps": steps,
        "every": every,
        "segments": max(1, -(-steps // max(1, every))),
        "lanes": layout.lanes,
        "width": layout.neurons * layout.inner,
        "inner": layout.inner,
        "at_literals": literals(plan.literals, plan.program.dtype, x.device),
    }
    for name, each in zip(plan.program.inputs, given.inputs, strict=True):
        arguments |= _sequence(f"input_{name}", each, layout)
    # Stride 0 broadcasts one value over all neurons without a copy.
    for name, param in zip(plan.program.params, given.params, strict=True):
        arguments[f"at_parameter_{name}"] = param.detach().reshape(-1)
        arguments[f"stride_parameter_{name}"] = int(param.numel() > 1)
    return arguments


def _sequence(label: str, sequence: Tensor, layout: Layout) -> dict[str, Any]:
    """Return the arguments of a sequence of any strides."""
    flat, step, row = strided(sequence.detach(), layout)
    return {f"at_{label}": flat, f"step_{label}": step, f"row_{label}": row}


def _states(prefix: str, states: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    return {
        f"at_{prefix}_{name}": _flat(layout.arrange(state).contiguous())
        for name, state in states.items()
    }


class TritonBackend(Backend):
    """Kernels for the GPU."""

    name = "triton"
    tile = 8 * TILE  # a GPU walks all lanes at once, and has less memory for the past of each
    tried = True

    def device_type(self) -> str:
        return "cpu" if _is_interpreted() else "cuda"

    @functools.cache  # noqa: B019 (there is one object)
    def uninstalled_reason(self) -> str | None:
        on_gpu = not _is_interpreted() and torch.cuda.is_available()
        if importlib.util.find_spec("triton") is None:
            if on_gpu:
                return "there is a GPU, but Triton is not installed: pip install triton"
            return "Triton is not installed; it comes with PyTorch for CUDA and ROCm"
        if not (on_gpu or _is_interpreted()):
            return "there is no GPU"
        if on_gpu and torch.version.hip is None and torch.cuda.get_device_capability() < (7, 0):
            return "the GPU is older than Triton supports"
        try:
            import triton
        except Exception as failure:
            return f"Triton cannot be imported: {failure}"
        found = str(getattr(triton, "__version__", None))
        numbers = re.match(r"(\d+)\.(\d+)", found)
        if numbers is None:
            return f"what is imported as triton is not Triton: {triton}"
        if tuple(map(int, numbers.groups())) < LEAST:
            least = ".".join(map(str, LEAST))
            upgrade = "pip install --upgrade triton"
            return f"Triton {found} is too old, the kernels need {least}: {upgrade}"
        return None

    def unsupported_reason(self, program: Program, device: torch.device) -> str | None:
        operation = unknown(program.graph)
        if operation is None:
            return super().unsupported_reason(program, device)
        return f"its step uses {operation}, which Triton kernels lack"

    def prepare(self, plan: Plan, device: torch.device) -> None:
        """Copy a plan's numbers before a compiled program, whose CUDA graph owns what it makes."""
        literals(plan.literals, plan.program.dtype, device)

    def forward(self, plan: Plan, layout: Layout, given: Operands) -> list[Tensor]:
        program, x = plan.program, given.inputs[0]
        steps = x.shape[0]
        output, last, trajectories, checkpoints = allocate_results(plan, layout, x)
        ends = dict(zip(program.states, last, strict=True))
        records = dict(zip(plan.record, trajectories, strict=True))
        # Without lanes every result is empty already, and there is no grid to launch.
        if layout.lanes:
            starts = dict(zip(program.states, given.states, strict=True))
            # Without checkpoints the whole sequence is one segment.
            every = plan.checkpoint_interval if plan.checkpoints(steps) else steps
            # By name, because the printed kernel has an argument for each state and parameter.
            arguments = {
                **_inputs(plan, layout, given, every),
                **_states("start", starts, layout),
                "at_output": _flat(layout.arrange(output)),
                **_states("end", ends, layout),
                **_states("record", records, layout),
                "at_checkpoints": checkpoints,
            }
            launch(_kernel(plan, "forward"), layout.lanes, x.device, arguments)
        return [output, *ends.values(), *records.values(), checkpoints]

    def backward(
        self, plan: Plan, layout: Layout, given: Operands, checkpoints: Tensor, grads: list[Tensor]
    ) -> list[Tensor]:
        inputs, states, params = given
        program, x = plan.program, inputs[0]
        dtype, steps = program.dtype, x.shape[0]
        # of the output, final states, and trajectories
        last = 1 + len(states)
        g_ends = dict(zip(program.states, grads[1:last], strict=True))
        g_records = dict(zip(plan.record, grads[last:], strict=True))
        nothing = x.new_empty(0, dtype=dtype)
        count = len(plan.differentiated)
        new = layout.allocate(x, dtype, sequences=count, steps=len(program.states))
        d_inputs = dict(zip(plan.differentiated, new, strict=False))
        d_states = dict(zip(program.states, new[count:], strict=True))
        # One sum for each lane needs no atomics and so is deterministic; float64, because it adds
        # up all time steps.
        sums = x.new_zeros(len(plan.trained), layout.lanes, dtype=torch.float64)
        if layout.lanes:
            starts = dict(zip(program.states, states, strict=True))
            # One segment of states at a time: the kernel recomputes them from a checkpoint.
            past = len(plan.recomputed) * min(plan.checkpoint_interval, steps) * layout.lanes
            arguments = {
                **_inputs(plan, layout, given, plan.checkpoint_interval),
                **_states("start", {name: starts[name] for name in plan.recomputed}, layout),
                "at_checkpoints": checkpoints,
                "at_past": x.new_empty(past, dtype=dtype),
                # Incoming gradients keep their strides: that of a sum is expanded from one value.
                **_sequence("grad_output", grads[0], layout),
                **_states("grad_end", g_ends, layout),
                **_states("grad_input", d_inputs, layout),
                **_states("grad_start", d_states, layout),
                "at_sums": sums,
            }
            for name, grad in g_records.items():
                arguments |= _sequence(f"grad_record_{name}", grad, layout)
            launch(_kernel(plan, "backward"), layout.lanes, x.device, arguments)
        # Sum over the rows and lanes of each neuron; a value for the layer sums neurons too.
        shape = (len(plan.trained), layout.outer, layout.neurons, layout.inner)
        d_params = dict.fromkeys(program.params, nothing)
        d_params |= parameter_gradients(plan, params, sums.view(shape).sum((1, 3)))
        of_inputs = [d_inputs.get(name, nothing) for name in program.inputs]
        return [*of_inputs, *d_states.values(), *d_params.values()]

    def uniforms(self, position: Tensor, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        shape, device = (steps, *position.shape), position.device
        one, other = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        arguments = {
            "at_position": position.contiguous(),
            "at_one": one,
            "at_other": other,
            "lanes": position.numel(),
            "values": one.numel(),
        }
        if one.numel():
            launch(_uniforms(str(dtype).removeprefix("torch.")), one.numel(), device, arguments)
        return one, other


@functools.cache
def _uniforms(real: str) -> Any:
    return module_of(threefry.triton_source(real), "triton_uniforms").uniforms


def _is_interpreted() -> bool:
    """Whether Triton interprets its kernels, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
