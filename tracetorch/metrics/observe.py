"""One run of a model from rest, and what each of its modules did in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import named_modules
from tracetorch.metrics.activity import firings
from tracetorch.metrics.connections import Tally
from tracetorch.metrics.size import WEIGHTED
from tracetorch.probe.layers import called_in_order, spike_functions
from tracetorch.ragged import aligned, check_mask, filled
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, parse_inputs

# Beside neurons that spike, what NeuroBench takes for an activation.
_ACTIVATIONS = (nn.ReLU, nn.Sigmoid)


@dataclass
class Seen:
    """What one module did; counts are over all steps and samples.

    Args:
        path: where it stands.
        module: the module.
    """

    path: str
    module: nn.Module
    tally: Tally = field(default_factory=Tally)
    shape: tuple[int, ...] | None = None
    values: int = 0
    nonzero: int = 0
    fired: Tensor | None = None
    chances: Tensor | None = None
    updates: float = 0.0
    output_bytes: int = 0
    state_bytes: int = 0

    @property
    def spikes(self) -> bool:
        """Whether its output is spikes."""
        return bool(spike_functions(self.module))

    @property
    def activates(self) -> bool:
        """Whether NeuroBench would call its output an activation."""
        return self.spikes or isinstance(self.module, _ACTIVATIONS)


class Real:
    """Which of the steps that a call holds are real.

    Args:
        mask: ``[T, B]``, or ``None`` where all are.
        at_once: a call holds all steps, or else the one that is run.
    """

    def __init__(self, mask: Tensor | None, at_once: bool) -> None:
        self.mask = mask
        self.at_once = at_once
        self.step = -1

    def of(self, seen: Seen, x: Tensor) -> Tensor | None:
        """The part of the mask for ``x`` ``[S, B, ...]``.

        Raises:
            ValueError: the module was not given samples one by one.
        """
        if self.mask is None:
            return None
        part = self.mask if self.at_once else self.mask[self.step : self.step + 1]
        if x.shape[:2] != part.shape:
            raise ValueError(
                f"mask: {seen.path or 'the model'} ({type(seen.module).__name__}) works on "
                f"{list(x.shape[:2])} where steps and batch are {list(part.shape)}: which of its "
                "rows are padding cannot be told. Count each sequence by itself, without mask=."
            )
        return part


def observe(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None,
    by: Literal["layer", "step"],
    mask: Tensor | None = None,
) -> tuple[list[Seen], Inputs]:
    """Every module with what it did at real steps, and the inputs.

    It runs from rest, in evaluation mode and without a graph; the model is as before after it.
    """
    check_module(model)
    given = parse_inputs(x, steps, 0, True)
    if mask is not None:
        leaf: Tensor = pytree.tree_leaves(given.tensors)[0]
        check_mask(mask, "x", leaf.new_empty(given.steps, given.batch))
    real = Real(mask, by == "layer")
    found = [Seen(path, module) for path, module in named_modules(model)]
    with restored(model), torch.no_grad():
        at_rest(model)
        called = called_in_order(model, given, by)
        membranes = {
            f"{seen.path}.{name}" if seen.path else name: seen
            for seen in found
            if (name := membrane_of(seen.module)) is not None and seen.path in called
        }
        steps_in_call = given.steps if by == "layer" else 1
        with _listening(model, found, steps_in_call, given.batch, real):
            _, states = unroll(model, x, steps=steps, by=by, record=list(membranes))
        for name, trajectory in states.items():
            membranes[name].updates = _updates(trajectory, mask)
        for seen in found:
            if isinstance(seen.module, Neuron):
                held = (getattr(seen.module, name) for name in seen.module.active_states)
                seen.state_bytes = sum(s.numel() * s.element_size() for s in held if s is not None)
    return found, given


def _updates(membrane: Tensor, mask: Tensor | None) -> float:
    """Changes of a membrane ``[T, B, ...]`` from one real step to the next, the first counted."""
    moved = membrane[1:] != membrane[:-1]
    if mask is not None:
        # real steps first, in their order: what lies between them is cut out
        order = (~mask).to(torch.uint8).argsort(dim=0, stable=True)
        membrane = membrane.gather(0, aligned(order, membrane).expand_as(membrane))
        there = mask.gather(0, order)[1:]
        moved = (membrane[1:] != membrane[:-1]) & aligned(there, membrane[1:])
    return float(membrane[0].numel() + torch.count_nonzero(moved))


def at_rest(model: nn.Module) -> None:
    """Evaluation mode and no states."""
    for _, module in named_modules(model):
        module.eval()
    zero_states(model)


def membrane_of(module: nn.Module) -> str | None:
    """The state that is the membrane: ``mem``, or the first of a neuron that calls it otherwise."""
    if isinstance(module, Recurrent) or not isinstance(module, Neuron) or not module.active_states:
        return None
    return "mem" if "mem" in module.active_states else module.active_states[0]


@contextmanager
def _listening(
    model: nn.Module, found: list[Seen], steps: int, batch: int, real: Real
) -> Iterator[None]:
    def begin(module: nn.Module, args: Any) -> None:
        real.step += 1

    hooks = [model.register_forward_pre_hook(begin)]
    for seen in found:

        def take(module: nn.Module, args: Any, kwargs: Any, output: Any, seen: Seen = seen) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            _take(seen, x, output, steps, batch, real)

        hooks.append(seen.module.register_forward_hook(take, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _take(seen: Seen, x: Any, output: Any, steps: int, batch: int, real: Real) -> None:
    if isinstance(seen.module, WEIGHTED) and isinstance(x, Tensor):
        x_steps = _by_step(x, steps, batch)
        mask = real.of(seen, x_steps)
        share = 1.0 if mask is None else float(mask.double().mean())
        seen.tally.add(seen.module, filled(x_steps, mask), share)
    if not isinstance(output, Tensor) or output.ndim == 0:
        return
    if not (isinstance(x, Tensor) and x.data_ptr() == output.data_ptr()):  # no view of the input
        seen.output_bytes += output.numel() * output.element_size()
    output = _by_step(output, steps, batch)
    seen.shape = tuple(output.shape[2:])
    if not seen.activates:
        return
    mask = real.of(seen, output)
    share = 1.0 if mask is None else float(mask.double().mean())
    output = filled(output, mask)
    seen.values += round(output.numel() * share)
    seen.nonzero += int(torch.count_nonzero(output))
    if seen.spikes and isinstance(seen.module, Neuron):
        fired, chances = firings(output, dim=seen.module.dim, mask=None)
        chances = (chances * share).round()
        seen.fired = fired if seen.fired is None else seen.fired + fired
        seen.chances = chances if seen.chances is None else seen.chances + chances


def _by_step(x: Tensor, steps: int, batch: int) -> Tensor:
    """``[S, B, ...]``: the steps that one call holds, all of them by layer, else one.

    A model may have folded more into its batch, the patches of an image say: ``[T * B * k, ...]``.
    """
    if steps > 1 and x.ndim and len(x) and len(x) % (steps * batch) == 0:
        return torch.unflatten(x, 0, (steps, -1))
    return x.unsqueeze(0)
