"""One run of a model from rest, and what each of its modules did in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracetorch.metrics.activity import firings
from tracetorch.metrics.connections import Tally
from tracetorch.metrics.size import WEIGHTED
from tracetorch.probe.layers import called_in_order, spike_functions
from tracetorch.snn.as_it_was import unchanged
from tracetorch.snn.module import check_module, zero_states
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.walk import named_modules
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, inputs

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


def observe(
    model: nn.Module, x: Any, *, steps: int | None, by: Literal["layer", "step"]
) -> tuple[list[Seen], Inputs]:
    """Every module with what it did, and the inputs.

    It runs from rest, in evaluation mode and without a graph; the model is as before after it.
    """
    check_module(model)
    given = inputs(x, steps, 0, True)
    found = [Seen(path, module) for path, module in named_modules(model)]
    with unchanged(model), torch.no_grad():
        at_rest(model)
        called = called_in_order(model, given, by)
        membranes = {
            f"{seen.path}.{name}" if seen.path else name: seen
            for seen in found
            if (name := membrane_of(seen.module)) is not None and seen.path in called
        }
        steps_in_call = given.steps if by == "layer" else 1
        with _listening(found, steps_in_call, given.batch):
            _, states = unroll(model, x, steps=steps, by=by, record=list(membranes))
        for name, trajectory in states.items():
            moved = torch.count_nonzero(trajectory[1:] != trajectory[:-1])
            membranes[name].updates = float(trajectory[0].numel() + moved)
        for seen in found:
            if isinstance(seen.module, Neuron):
                held = (getattr(seen.module, name) for name in seen.module.kept_states)
                seen.state_bytes = sum(s.numel() * s.element_size() for s in held if s is not None)
    return found, given


def at_rest(model: nn.Module) -> None:
    """Evaluation mode and no states."""
    for _, module in named_modules(model):
        module.eval()
    zero_states(model)


def membrane_of(module: nn.Module) -> str | None:
    """The state that is the membrane: ``mem``, or the first of a neuron that calls it otherwise."""
    if isinstance(module, Recurrent) or not isinstance(module, Neuron) or not module.kept_states:
        return None
    return "mem" if "mem" in module.kept_states else module.kept_states[0]


@contextmanager
def _listening(found: list[Seen], steps: int, batch: int) -> Iterator[None]:
    hooks = []
    for seen in found:

        def take(module: nn.Module, args: Any, kwargs: Any, output: Any, seen: Seen = seen) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            _take(seen, x, output, steps, batch)

        hooks.append(seen.module.register_forward_hook(take, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _take(seen: Seen, x: Any, output: Any, steps: int, batch: int) -> None:
    if isinstance(seen.module, WEIGHTED) and isinstance(x, Tensor):
        seen.tally.add(seen.module, _by_step(x, steps, batch))
    if not isinstance(output, Tensor) or output.ndim == 0:
        return
    if not (isinstance(x, Tensor) and x.data_ptr() == output.data_ptr()):  # no view of the input
        seen.output_bytes += output.numel() * output.element_size()
    seen.values += output.numel()
    seen.nonzero += int(torch.count_nonzero(output))
    output = _by_step(output, steps, batch)
    seen.shape = tuple(output.shape[2:])
    if seen.spikes and isinstance(seen.module, Neuron):
        fired, chances = firings(output, dim=seen.module.dim, mask=None)
        seen.fired = fired if seen.fired is None else seen.fired + fired
        seen.chances = chances if seen.chances is None else seen.chances + chances


def _by_step(x: Tensor, steps: int, batch: int) -> Tensor:
    """``[S, B, ...]``: the steps that one call holds, all of them by layer, else one.

    A model may have folded more into its batch, the patches of an image say: ``[T * B * k, ...]``.
    """
    if steps > 1 and x.ndim and len(x) and len(x) % (steps * batch) == 0:
        return torch.unflatten(x, 0, (steps, -1))
    return x.unsqueeze(0)
