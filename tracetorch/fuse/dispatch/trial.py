"""Run a kernel on a small sample before it is believed, beside the eager step.

Each the first time that it runs on a device, with the parameters of the call. What does not
compile, launch or agree is refused by name, and the eager step runs. The sample is waited for: an
error of the device shows here. What never returns, or is wrong in long sequences, does not.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tracetorch.core import __version__
from tracetorch.core.torch_private import dispatch_modes, global_modes_off, has_values
from tracetorch.fuse.dispatch.backends import report_fallback, select_backend
from tracetorch.fuse.ir.graph import COMPARISONS, LOGIC
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime.allocation import Layout, layout_of
from tracetorch.fuse.runtime.backend import Backend, Operands, plan_gradients, run_plan
from tracetorch.fuse.runtime.threefry import uniforms

_STEPS = 5
_NEURONS, _LANES = 43, 129  # awkward: the last block of lanes is never full
# Of the largest value: exp and its like differ from PyTorch's in the last place, and a step that is
# stiff makes more of it; a sum over lanes has another order. Spikes differ by much more, or not.
_EPSILONS = 1024
# Operations that have one right result, which PyTorch and a kernel must both give.
_EXACT = {"add", "sub", "mul", "neg", "abs", "max", "min", "where", "float", *COMPARISONS, *LOGIC}
# of the kernels of random numbers, by backend, device and dtype; None where one is right
_failures: dict[tuple[str, torch.device, torch.dtype], str | None] = {}


def is_believed(
    backend: Backend, plan: Plan, layout: Layout, given: Operands, *, backward: bool
) -> bool:
    """Whether a kernel is to run; tried where that is new, but where it has nothing to do."""
    device = given.inputs[0].device
    if device in plan.program.refused:
        return False
    if not layout.lanes or (backward, device) in plan.tried or is_capturing(device):
        return True
    reason = failure_of(backend, plan, given, backward=backward)
    if reason is None:
        plan.tried.add((backward, device))
        return True
    plan.program.refused[device] = reason
    report_fallback(plan.program.layer, backend.name, reason)
    return False


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is recorded, so that nothing can be waited for."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def failure_of(backend: Backend, plan: Plan, given: Operands, *, backward: bool) -> str | None:
    """Return how a kernel of a plan fails on a sample of a call, as a reason, or ``None``."""
    # of the same kernels, in segments so short that a sample has two
    tile = plan.tile * -(-plan.checkpoint_interval // (_STEPS - 1))
    short = replace(plan, tile=tile, whole=plan.whole and replace(plan.whole, tile=tile))
    difference_in = _difference_backward if backward else _difference_forward

    def compare() -> str | None:
        # in one sample a sum may cancel, or a membrane lie where exp in its last place decides
        for seed in range(2):
            if (found := difference_in(backend, short, _sample_of(plan, given, seed))) is None:
                break
        return found

    name = f"{'backward' if backward else 'forward'} of program {plan.program.key}"
    return _failure_in(compare, f"the {backend.name} kernel {name}", given.inputs[0].device)


def _failure_in(compare: Callable[[], str | None], what: str, device: torch.device) -> str | None:
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

    # multiples of a power of two that sums and products keep exact, half of them 0
    def values_like(each: Tensor) -> Tensor:
        peak = float(each[:_STEPS].detach().abs().max())
        size = math.frexp(peak if 0 < peak < math.inf else 1.0)[1] - 3
        values = torch.randint(-8, 9, shape, generator=generator, device="cpu")
        values *= torch.randint(0, 2, shape, generator=generator, device="cpu")
        return (values * 2.0**size).to(each)

    corner = tuple([slice(neurons if dim == place else 1) for dim in range(ndim)])
    states = [state.detach()[corner].nan_to_num(0, 0, 0) for state in given.states]
    params = [param.detach().reshape(-1) for param in given.params]
    return Operands(
        [values_like(each) for each in given.inputs],
        [state.expand(sizes).clone() for state in states],
        [param[: neurons if param.numel() > 1 else 1].clone() for param in params],
    )


def _meet_thresholds(plan: Plan, sample: Operands) -> None:
    """Write first inputs next to which a neuron spikes or not, where all operations are exact."""
    if not {line.op for line in plan.program.forward.lines} <= _EXACT:
        return

    def outputs(x: Tensor) -> Tensor:
        inputs = [x.unsqueeze(0), *(each[:1] for each in sample.inputs[1:])]
        return run_plan(plan, sample._replace(inputs=inputs))[0][0]

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
    for each in (*spoiled.inputs, *spoiled.states):
        for start, value in enumerate((math.nan, math.inf, -math.inf)):
            each.view(-1)[start::61] = value
    return spoiled


def _difference_forward(backend: Backend, plan: Plan, sample: Operands) -> str | None:
    """Compare what a forward kernel returns with the eager loop."""
    _meet_thresholds(plan, sample)
    for each in (sample, _with_nan(sample)):
        with torch.no_grad():
            expected = run_plan(plan, each)
        found = backend.forward(plan, layout_of(each.inputs[0], plan.dim), each)[:-1]
        reason = _difference(plan.results, found, expected)
        if reason is not None:
            return reason
    return None


def _difference_backward(backend: Backend, plan: Plan, sample: Operands) -> str | None:
    """Compare what a backward kernel returns with autograd of the eager loop."""
    program, layout = plan.program, layout_of(sample.inputs[0], plan.dim)
    *results, checkpoints = backend.forward(plan.whole or plan, layout, sample)
    generator = torch.Generator("cpu").manual_seed(1)
    grads: list[Tensor | None] = []
    incoming: list[Tensor] = []
    for name, smooth, result in zip(plan.results, plan.smooth_results, results, strict=True):
        values = torch.randn(result.shape, generator=generator, device="cpu").to(result)
        is_given = smooth and name not in plan.absent
        grads.append(values if is_given else None)
        incoming.append(values if is_given else torch.zeros_like(result))
    found = backend.backward(plan, layout, sample, checkpoints, incoming)
    expected = plan_gradients(plan, sample, grads)
    of = (*program.inputs, *program.states, *program.params)
    names = [f"the gradient of {name}" for name in of]
    computed = [each for each in zip(names, found, expected, strict=True) if each[2].numel()]
    return _difference(*zip(*computed, strict=True)) if computed else None


def _difference(
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


# Random numbers


def draw_uniforms(position: Tensor, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what :func:`.threefry.uniforms` does, by a kernel where one can run."""
    device = position.device
    backend = None if torch.compiler.is_compiling() else select_backend(device)
    if (
        backend is None
        or dispatch_modes()
        or not has_values(position)
        or backend.unavailable_reason(device) is not None
    ):
        return uniforms(position, steps, dtype)
    key = backend.name, device, dtype

    def compare() -> str | None:
        lanes = torch.arange(131, device=device)
        position = 2**32 - 2 + lanes.remainder(3) + (lanes << 33)
        found, expected = (draw(position, 3, dtype) for draw in (backend.uniforms, uniforms))
        return None if all(map(torch.equal, found, expected)) else "gives other numbers"

    if backend.tried and key not in _failures and not is_capturing(device):
        what = f"the {backend.name} kernel of random numbers in {dtype}"
        _failures[key] = _failure_in(compare, what, device)
    reason = _failures.get(key) if backend.tried else None
    if reason is None:
        return backend.uniforms(position, steps, dtype)
    report_fallback("Noise", backend.name, reason)
    return uniforms(position, steps, dtype)
