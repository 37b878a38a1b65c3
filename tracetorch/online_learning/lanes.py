"""Differentiate one ``step`` lane by lane: the derivatives of its next states, by autograd.

A lane is one neuron of one sample. ``step`` is pointwise, so the sum over all lanes of a next state
has the derivatives of every lane as its gradient, and one backward pass gives a row of every block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.snn.neuron import Neuron


class LaneDerivatives(NamedTuple):
    """Derivatives of the next states, each shaped like the input; ``None`` is zero everywhere.

    Args:
        by_state: ``by_state[i][j]``, of next state ``i`` by state ``j``: the block.
        by_input: of every next state by the input.
        by_parameter: of every next state by the constrained parameters that learn, by name.
    """

    by_state: list[list[Tensor | None]]
    by_input: list[Tensor | None]
    by_parameter: list[dict[str, Tensor | None]]


def learned_parameters(
    kwargs: Mapping[str, Any], constraints: Collection[str]
) -> dict[str, Tensor]:
    """Return the constrained parameters among the step kwargs that require a gradient."""
    return {n: v for n, v in kwargs.items() if n in constraints and v.requires_grad}


def lane_derivatives(
    layer: Neuron,
    x: Tensor,
    states: Sequence[Tensor | None],
    kwargs: Mapping[str, Any],
    detached: Collection[str] = (),
    *,
    of_output: bool = False,
    further: Sequence[Tensor] = (),
) -> LaneDerivatives:
    """Differentiate the next states of one step by its states, its input and its parameters.

    Args:
        layer: the neuron layer.
        x: the input, in the dtype of the arithmetic.
        states: as ``step`` takes them.
        kwargs: of ``step``.
        detached: names of spike functions that are constants here.
        of_output: differentiate the output in place of the next states.
        further: inputs after ``x``, constants, of its shape.
    """
    sources, output, ends = _run(layer, x, further, states, kwargs, detached)
    count = len(layer.active_states)
    names = list(learned_parameters(kwargs, layer.constraints))
    rows = [_gradients(end, sources, None) for end in ([output] if of_output else ends)]
    return LaneDerivatives(
        [row[:count] for row in rows],
        [row[count] for row in rows],
        [dict(zip(names, row[count + 1 :], strict=True)) for row in rows],
    )


def check_step(
    layer: Neuron,
    x: Tensor,
    states: Sequence[Tensor | None],
    kwargs: Mapping[str, Any],
    label: str,
    further: Sequence[Tensor] = (),
) -> None:
    """Raise where a call is more than its ``step``, or a lane depends on another lane.

    The product of random signs with a diagonal Jacobian is the diagonal times the signs, exactly.

    Args:
        layer: the neuron layer, after the call.
        x: the input of the call, in the dtype of the arithmetic.
        states: before the call, as ``step`` takes them.
        kwargs: of ``step``.
        label: of the layer, for the message.
        further: inputs after ``x``, constants, of its shape.
    """
    ends = _run(layer, x, further, states, kwargs)[2]
    if not all(map(is_close, ends, (getattr(layer, name) for name in layer.active_states))):
        raise ValueError(
            f"{label} has other states than its step computes from the same input: it draws random "
            "numbers, or its forward does more than the step. Traces are derived from step alone."
        )

    # A generator of its own: the user's random numbers are not drawn from.
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)

    drawn = [None if state is None else state + noise() for state in states]
    sources, output, ends = _run(layer, x + noise(), further, drawn, kwargs)
    for end in (output, *ends):
        signs = noise().sign()
        for plain, signed in zip(
            _gradients(end, sources, None), _gradients(end, sources, signs), strict=True
        ):
            if plain is not None and signed is not None and not is_close(signed, signs * plain):
                raise ValueError(
                    f"{label} has a step that mixes neurons or samples: there is no derivative by "
                    "lane. Traces need a step of pointwise operations; put what mixes into a "
                    "module before the layer."
                )


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding; NaN equals NaN."""
    largest = float(b.detach().abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6 * largest, equal_nan=True)


def _run(
    layer: Neuron,
    x: Tensor,
    further: Sequence[Tensor],
    states: Sequence[Tensor | None],
    kwargs: Mapping[str, Any],
    detached: Collection[str] = (),
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Run ``step`` on leaves of the lanes' shape; return leaves, output and next active states."""

    def leaf(value: Tensor) -> Tensor:
        return value.detach().expand(x.shape).clone().requires_grad_()

    with torch.enable_grad():
        given = leaf(x)
        held = [None if state is None else leaf(state) for state in states]
        learned = learned_parameters(kwargs, layer.constraints)
        leaves = {name: leaf(value) for name, value in learned.items()}
        constants = {name: _detached(kwargs[name]) for name in detached}
        output, *ends = layer.step(given, *further, *held, **{**kwargs, **leaves, **constants})
    active = layer.active_states
    sources = [*(s for s in held if s is not None), given, *leaves.values()]
    return sources, output, [end for n, end in zip(layer.states, ends, strict=True) if n in active]


def _detached(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda u: function(u).detach()


def _gradients(
    end: Tensor, sources: Sequence[Tensor], weights: Tensor | None
) -> list[Tensor | None]:
    """Gradient of the sum over all lanes; the graph is kept for the next states."""
    if not end.requires_grad:
        return [None] * len(sources)
    cotangent = torch.ones_like(end) if weights is None else weights
    return list(torch.autograd.grad(end, sources, cotangent, retain_graph=True, allow_unused=True))
