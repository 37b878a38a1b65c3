"""Run a kernel on a small sample before it is believed, beside the eager step.

The first time a kernel runs on a device, it runs on a few lanes and steps, with the parameters of
the call: its results are those of the eager step, or its gradients. What does not compile, launch
or agree is refused there. Some inputs are those next to which, by one last place, a neuron spikes
or not, and some are NaN or infinite. The sample is waited for, so that an error of the device shows
here, and not somewhere behind the call.

A kernel that never returns cannot be found so, nor one that is wrong in long sequences alone.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tracetorch.core.torch_private import global_modes_off
from tracetorch.core.version import __version__
from tracetorch.fuse.ir.graph import COMPARISONS, LOGIC
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime import eager
from tracetorch.fuse.runtime.backend import Backend, Operands
from tracetorch.fuse.runtime.layout import layout_of

SWITCH = "TRACETORCH_CHECK_KERNELS"

_STEPS = 5
_NEURONS, _LANES = 43, 129  # awkward: the last block of lanes is never full
# Of the largest value: exp and its like differ from PyTorch's in the last place, and a step that is
# stiff makes more of it; a sum over lanes has another order. Spikes differ by much more, or not.
_EPSILONS = 1024
# Operations that have one right result, which PyTorch and a kernel must both give.
_EXACT = {"add", "sub", "mul", "neg", "abs", "max", "min", "where", "float", *COMPARISONS, *LOGIC}


def is_wanted(backend: Backend) -> bool:
    """Whether kernels of a backend are tried: by the environment, or where it says so."""
    setting = os.environ.get(SWITCH, "")
    if setting not in ("", "0", "1"):
        raise ValueError(
            f"{SWITCH} must be 1, which tries every kernel before it is used, or 0, none, got "
            f"{setting!r}. Leave it out to try those for a GPU."
        )
    return type(backend).tried if setting == "" else setting == "1"


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is recorded, so that nothing can be waited for."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def failure_of(backend: Backend, plan: Plan, given: Operands, *, backward: bool) -> str | None:
    """Return how a kernel of a plan fails on a sample of a call, as a reason, or ``None``."""

    def found_in(sample: Operands) -> str | None:
        if backward:
            return _compare_gradients(backend, plan, sample)
        _meet_thresholds(plan, sample)
        found = _compare_results(backend, plan, sample)
        return found or _compare_results(backend, plan, _with_nan(sample))

    def compare() -> str | None:
        # in one sample a sum may cancel, or a membrane lie where exp in its last place decides
        return found_in(samples[0]) and found_in(samples[1])

    plan = _in_short_segments(plan)
    with global_modes_off():
        samples = [_sample_of(plan, given, seed) for seed in range(2)]
    name = f"{'backward' if backward else 'forward'} of program {plan.program.key}"
    return failure_in(compare, f"the {backend.name} kernel {name}", given.inputs[0].device)


def _in_short_segments(plan: Plan) -> Plan:
    """Return a plan of the same kernels of which a sample has two segments."""
    tile = plan.tile * -(-plan.checkpoint_interval // (_STEPS - 1))
    return replace(plan, tile=tile, whole=plan.whole and replace(plan.whole, tile=tile))


def failure_in(compare: Callable[[], str | None], what: str, device: torch.device) -> str | None:
    """Return how a kernel fails in a comparison, or ``None``; raise if it has broken the device."""
    with global_modes_off():
        try:
            found = compare()
            _wait_for(device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            found = f"fails with {type(error).__name__}: {str(error).strip()}"
            try:
                _wait_for(device)
            except Exception as lost:
                raise RuntimeError(
                    f"{what} has left {device} unusable for this process, {lost}. Start again "
                    f"under tt.fuse.backend('eager'), and please report it ({_versions(device)})."
                ) from error
    if found is None:
        return None
    return (
        f"{what} on {device} {found} ({_versions(device)}). Please report this line, and the "
        "layer's step, at https://github.com/Yegor-men/tracetorch/issues"
    )


def _sample_of(plan: Plan, given: Operands, seed: int) -> Operands:
    """Return a sample of a call: its parameters and states, and inputs of its size."""
    x, generator = given.inputs[0], torch.Generator("cpu").manual_seed(seed)
    ndim, place = x.ndim - 1, x.ndim - 1 + plan.dim
    neurons = min(x.shape[1 + place], _NEURONS if ndim > 1 else _LANES)
    sizes = [1] * ndim
    sizes[place] = neurons
    inner = 3 if 0 < place < ndim - 1 else 1  # lanes of a neuron that lie together
    if ndim > 1:  # more than one block of lanes
        sizes[-1] *= inner
        sizes[0 if place else -1] = _LANES // (neurons * inner) + 1
    shape = (min(len(x), _STEPS), *sizes)

    corner = tuple([slice(neurons if dim == place else 1) for dim in range(ndim)])
    states = [state.detach()[corner].nan_to_num(0, 0, 0) for state in given.states]
    params = [param.detach().reshape(-1) for param in given.params]
    return Operands(
        [random_like(each, shape, generator) for each in given.inputs],
        [state.expand(sizes).clone() for state in states],
        [param[: neurons if param.numel() > 1 else 1].clone() for param in params],
    )


def random_like(like: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return multiples of a power of two that sums and products keep exact, half of them 0."""
    peak = float(like[:_STEPS].detach().abs().max())
    size = math.frexp(peak if 0 < peak < math.inf else 1.0)[1] - 3
    values = torch.randint(-8, 9, tuple(shape), generator=generator, device="cpu")
    values *= torch.randint(0, 2, tuple(shape), generator=generator, device="cpu")
    return (values * 2.0**size).to(like)


def _meet_thresholds(plan: Plan, sample: Operands) -> None:
    """Write first inputs next to which a neuron spikes or not, where all operations are exact."""
    if not {line.op for line in plan.program.forward.lines} <= _EXACT:
        return

    def outputs(x: Tensor) -> Tensor:
        inputs = [x.unsqueeze(0), *(each[:1] for each in sample.inputs[1:])]
        return eager.run_plan(plan, sample._replace(inputs=inputs))[0][0]

    x = sample.inputs[0]
    with torch.no_grad():
        high = torch.full_like(x[0], 16 * float(x.abs().max()))
        low = -high
        least, most = outputs(low), outputs(high)
        middle, found = (least + most) / 2, least < most
        for _ in range(12 - round(math.log2(torch.finfo(x.dtype).eps))):  # until neighbours
            between = (low + high) / 2
            above = outputs(between) > middle
            low, high = torch.where(above, low, between), torch.where(above, between, high)
        places = torch.arange(found.numel(), device=x.device).view(found.shape) % 3
        x[0] = torch.where(found & (places == 0), low, x[0])
        x[0] = torch.where(found & (places == 1), high, x[0])


def _with_nan(sample: Operands) -> Operands:
    """Return a sample in which some values are not finite."""
    spoiled = Operands(*[[each.clone() for each in group] for group in sample])
    for group in (spoiled.inputs, spoiled.states):
        for each in group:
            flat = each.view(-1)
            for start, value in enumerate((math.nan, math.inf, -math.inf)):
                flat[start::61] = value
    return spoiled


def _compare_results(backend: Backend, plan: Plan, sample: Operands) -> str | None:
    """Compare what a forward kernel returns with the eager loop."""
    with torch.no_grad():
        expected = eager.run_plan(plan, sample)
    found = backend.forward(plan, layout_of(sample.inputs[0], plan.dim), sample)[:-1]
    return difference(plan.results, found, expected)


def _compare_gradients(backend: Backend, plan: Plan, sample: Operands) -> str | None:
    """Compare what a backward kernel returns with autograd of the eager loop."""
    program, x = plan.program, sample.inputs[0]
    layout = layout_of(x, plan.dim)
    whole = plan.whole or plan
    *results, checkpoints = backend.forward(whole, layout, sample)
    generator = torch.Generator("cpu").manual_seed(1)
    grads: list[Tensor | None] = []
    for name, smooth, result in zip(plan.results, plan.smooth_results, results, strict=True):
        values = torch.randn(result.shape, generator=generator, device="cpu").to(result)
        grads.append(values if smooth and name not in plan.absent else None)
    incoming = [
        torch.zeros_like(r) if g is None else g for r, g in zip(results, grads, strict=True)
    ]
    found = backend.backward(plan, layout, sample, checkpoints, incoming)
    expected = eager.plan_gradients(plan, sample, grads)
    names = (*program.inputs, *program.states, *program.params)
    computed = [i for i, value in enumerate(expected) if value.numel()]
    return difference(
        [f"the gradient of {names[i]}" for i in computed],
        [found[i] for i in computed],
        [expected[i] for i in computed],
    )


def difference(
    names: Sequence[str], found: Sequence[Tensor], expected: Sequence[Tensor]
) -> str | None:
    """Say where values differ by more than rounding, and by how much."""
    for name, value, other in zip(names, found, expected, strict=True):
        value = value.detach().reshape(other.shape)
        finite = other[other.isfinite()].abs()
        largest = float(finite.max()) if finite.numel() else 0.0
        bound = _EPSILONS * torch.finfo(other.dtype).eps * largest
        differ = ~torch.isclose(value, other, rtol=0.0, atol=bound, equal_nan=True)
        if bool(differ.any()):
            one, two = value[differ][0].item(), other[differ][0].item()
            return (
                f"gives {one:.9g} for {two:.9g} of the eager step in {name}, in "
                f"{int(differ.sum())} of {differ.numel()} values"
            )
    return None


def _wait_for(device: torch.device) -> None:
    """Wait for a device, and raise what has failed there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _versions(device: torch.device) -> str:
    """Say what somebody who looks for the fault needs to have."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    triton = sys.modules.get("triton")
    others = [] if triton is None else [f"Triton {triton.__version__}"]
    return ", ".join([named, f"tracetorch {__version__}", f"PyTorch {torch.__version__}", *others])
