"""Differentiate one ``step`` as e-prop does: a spike is a constant where it resets a state.

Two runs of the step are differentiated, one with its spikes constant for the states that are reset,
and one as it is for the others. A next state that was computed from another one goes on through
that one's derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tracetorch.online_learning.dropped import reached
from tracetorch.online_learning.lanes import (
    LaneDerivatives,
    Run,
    by_source,
    detached_spikes,
    gradients,
    run_step,
)
from tracetorch.snn.neuron import Neuron


class WithoutResets(NamedTuple):
    """The derivatives of a step without its resets.

    Args:
        block: of the next states.
        dropped: names of the states whose reset is left out.
        of_output: the derivatives of the output, as those of a single next state, where it follows
            from the reset by a spike of the step before: the step's own graph has that, too.
    """

    block: LaneDerivatives
    dropped: tuple[str, ...]
    of_output: LaneDerivatives | None


def derivatives_without_resets(
    layer: Neuron,
    x: Tensor,
    states: Mapping[str, Tensor],
    kwargs: Mapping[str, Any],
    spikes: Collection[str],
    further: Sequence[Tensor] = (),
) -> WithoutResets:
    """Differentiate the next states as e-prop does: a spike is a constant where it resets a state.

    A spike's effect on any other state, an adaptation, stays, and its path goes on through the
    states that are reset as through any. ``Neuron.reset_states`` names them. Where it is ``None``,
    they are those that the input reaches in any number of steps, but for spikes. A state that holds
    the spikes of the step before, and nothing else, is a spike where it resets.

    Args:
        layer: the neuron layer.
        x: the input, in the dtype of the arithmetic.
        states: the active ones, by name.
        kwargs: of ``step``.
        spikes: names of the spike functions.
        further: inputs after ``x``, constants, of its shape.
    """
    fired: list[Tensor] = []

    def noted(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def spike(u: Tensor) -> Tensor:
            fired.append(function(u))
            return fired[-1]

        return spike

    full = run_step(layer, x, further, states, kwargs, dict.fromkeys(spikes, noted))
    constant = run_step(layer, x, further, states, kwargs, dict.fromkeys(spikes, detached_spikes))
    names = layer.active_states
    count = len(names)  # of the sources, states come first, then the input
    every = range(count)
    lane = set(range(count + 1))
    without_spikes = [_sources_of(constant, i) & lane for i in every]
    holds_spike = {j for j in every if not without_spikes[j] and _sources_of(full, j) & lane}
    if layer.reset_states is None:
        reset = _reached_by_input(without_spikes, count)
    else:
        reset = {i for i in every if names[i] in layer.reset_states}
    dropped: dict[str, None] = {}
    of_output: LaneDerivatives | None = None
    rows: dict[int, list[Tensor | None]] = {}
    later: set[int] = set()  # states that hold a spike which resets

    def row(i: int) -> list[Tensor | None]:
        if i not in rows:
            run = constant if i in reset else full
            direct, through = _direct_gradients(run, i)
            if i in reset:
                resetting = {j for j in holds_spike if direct[j] is not None}
                direct = [None if j in resetting else d for j, d in enumerate(direct)]
                later.update(resetting)
                if resetting or _meets(full, i, fired):
                    dropped[names[i]] = None
            for k, factor in through.items():
                direct = [
                    a if b is None else b * factor if a is None else a + b * factor
                    for a, b in zip(direct, row(k), strict=True)
                ]
            rows[i] = direct
        return rows[i]

    block = by_source(layer, kwargs, [row(i) for i in every])
    if later:
        of_output = by_source(layer, kwargs, [row(count)])
    return WithoutResets(block, tuple(dropped), of_output)


def _reached_by_input(without_spikes: Sequence[set[int]], count: int) -> set[int]:
    """Return the states that the input reaches over any number of steps."""
    found: set[int] = set()
    while True:
        more = {
            i
            for i, sources in enumerate(without_spikes)
            if i not in found and (count in sources or sources & found)
        }
        if not more:
            return found
        found |= more


def _other_ends(run: Run, i: int) -> dict[int, Tensor]:
    """Return the next states that another one may have been computed from."""
    return {
        k: end
        for k, end in enumerate(run.ends)
        if end.grad_fn is not None and end.grad_fn is not run.value(i).grad_fn
    }


def _sources_of(run: Run, i: int, stops: Collection[Any] = ()) -> set[int]:
    """Return the places of the sources that a next state depends on."""
    found = {id(leaf) for leaf in reached([_node(run.value(i))], stops)[1]}
    return {place for place, source in enumerate(run.sources) if id(source) in found}


def _meets(run: Run, i: int, fired: Sequence[Tensor]) -> bool:
    """Whether a next state follows from a spike, otherwise than through another next state."""
    spikes = {each.grad_fn for each in fired if each.grad_fn is not None}
    others = {end.grad_fn for end in _other_ends(run, i).values()} - spikes
    return bool(reached([_node(run.value(i))], spikes | others)[0] & spikes)


def _node(end: Tensor) -> Any:
    return torch.autograd.graph.get_gradient_edge(end).node if end.requires_grad else None


def _direct_gradients(run: Run, i: int) -> tuple[list[Tensor | None], dict[int, Tensor]]:
    """Differentiate a next state by the sources, and by the next states it was computed from."""
    through: dict[int, Tensor] = {}

    def cut(k: int) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            through[k] = gradient
            return torch.zeros_like(gradient)

        return hook

    others = _other_ends(run, i)
    handles = [end.register_hook(cut(k)) for k, end in others.items()]  # type: ignore[no-untyped-call]
    try:
        found = gradients(run.value(i), run.sources, None)
    finally:
        for handle in handles:
            handle.remove()
    # behind a cut there are zeros, which say nothing of what is there
    places = _sources_of(run, i, {end.grad_fn for end in others.values()})
    return [d if place in places else None for place, d in enumerate(found)], through


def with_derivatives(
    values: Sequence[Tensor],
    derivatives: LaneDerivatives,
    x: Tensor,
    states: Sequence[Tensor | None],
    parameters: Mapping[str, Tensor],
) -> Sequence[Tensor]:
    """Return values as functions with other derivatives than those of their graph.

    Args:
        values: tensors of the lanes' shape; their own graph is cut.
        derivatives: of them.
        x: the input that they are functions of.
        states: the active ones, as before the step.
        parameters: the constrained parameters that learn, by name.
    """
    rows = [
        [*by_state, by_input, *(by_parameter[name] for name in parameters)]
        for by_state, by_input, by_parameter in zip(*derivatives, strict=True)
    ]
    sources = [*states, x, *parameters.values()]
    held = [value.detach() for value in values]
    results: Sequence[Tensor] = _WithDerivatives.apply(  # type: ignore[no-untyped-call]
        rows, len(held), *held, *sources
    )
    return results


class _WithDerivatives(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: list[list[Tensor | None]], count: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.rows = rows
        ctx.sources = [None if s is None else (s.shape, s.dtype) for s in tensors[count:]]
        ctx.set_materialize_grads(False)
        return tuple(value.clone() for value in tensors[:count] if value is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by_value: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = []
        for place, source in enumerate(ctx.sources):
            total = None
            for gradient, row in zip(by_value, ctx.rows, strict=True):
                if gradient is not None and row[place] is not None:
                    product = gradient * row[place]
                    total = product if total is None else total + product
            if total is not None and source is not None:
                total = total.sum_to_size(source[0]).to(source[1])
            found.append(None if source is None else total)
        return (None, None, *[None] * len(by_value), *found)
