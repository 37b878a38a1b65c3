"""Differentiate one ``step`` lane by lane: the derivatives of its next states, by autograd.

A lane is one neuron of one sample. ``step`` is pointwise, so the sum over all lanes of a next state
has the derivatives of every lane as its gradient, and one backward pass gives a row of every block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tracetorch.online_learning.dropped import reached
from tracetorch.snn.neuron import Neuron

_DIGIT = 16  # values of a probe: with more, the smallest would be lost beside the largest


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
    run = _run(layer, x, further, states, kwargs, {name: _detached for name in detached})
    ends = [run.output] if of_output else run.ends
    return _by_source(layer, kwargs, [_gradients(end, run.sources, None) for end in ends])


def lane_derivatives_without_resets(
    layer: Neuron,
    x: Tensor,
    states: Sequence[Tensor | None],
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
        layer, x, states, kwargs, further: as for :func:`lane_derivatives`.
        spikes: names of the spike functions.
    """
    fired: list[Tensor] = []

    def noted(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def spike(u: Tensor) -> Tensor:
            fired.append(function(u))
            return fired[-1]

        return spike

    full = _run(layer, x, further, states, kwargs, {name: noted for name in spikes})
    constant = _run(layer, x, further, states, kwargs, {name: _detached for name in spikes})
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

    block = _by_source(layer, kwargs, [row(i) for i in every])
    if later:
        of_output = _by_source(layer, kwargs, [row(count)])
    return WithoutResets(block, tuple(dropped), of_output)


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
        x, states, parameters: what they are functions of; the states are the active ones.
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


def _by_source(
    layer: Neuron, kwargs: Mapping[str, Any], rows: Sequence[list[Tensor | None]]
) -> LaneDerivatives:
    """Split the rows of gradients into those by states, input and parameters."""
    count = len(layer.active_states)
    names = list(learned_parameters(kwargs, layer.constraints))
    return LaneDerivatives(
        [row[:count] for row in rows],
        [row[count] for row in rows],
        [dict(zip(names, row[count + 1 :], strict=True)) for row in rows],
    )


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


def _other_ends(run: _Run, i: int) -> dict[int, Tensor]:
    """Return the next states that another one may have been computed from."""
    return {
        k: end
        for k, end in enumerate(run.ends)
        if end.grad_fn is not None and end.grad_fn is not run.value(i).grad_fn
    }


def _sources_of(run: _Run, i: int, stops: Collection[Any] = ()) -> set[int]:
    """Return the places of the sources that a next state depends on."""
    found = {id(leaf) for leaf in reached([_node(run.value(i))], stops)[1]}
    return {place for place, source in enumerate(run.sources) if id(source) in found}


def _meets(run: _Run, i: int, fired: Sequence[Tensor]) -> bool:
    """Whether a next state follows from a spike, otherwise than through another next state."""
    spikes = {each.grad_fn for each in fired if each.grad_fn is not None}
    others = {end.grad_fn for end in _other_ends(run, i).values()} - spikes
    return bool(reached([_node(run.value(i))], spikes | others)[0] & spikes)


def _node(end: Tensor) -> Any:
    return torch.autograd.graph.get_gradient_edge(end).node if end.requires_grad else None


def _direct_gradients(run: _Run, i: int) -> tuple[list[Tensor | None], dict[int, Tensor]]:
    """Differentiate a next state by the sources, and by the next states it was computed from."""
    through: dict[int, Tensor] = {}

    def cut(k: int) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            through[k] = gradient
            return torch.zeros_like(gradient)

        return hook

    others = _other_ends(run, i)
    handles = [end.register_hook(cut(k)) for k, end in others.items()]
    try:
        found = _gradients(run.value(i), run.sources, None)
    finally:
        for handle in handles:
            handle.remove()
    # behind a cut there are zeros, which say nothing of what is there
    places = _sources_of(run, i, {end.grad_fn for end in others.values()})
    return [d if place in places else None for place, d in enumerate(found)], through


def check_step(
    layer: Neuron,
    x: Tensor,
    states: Sequence[Tensor | None],
    kwargs: Mapping[str, Any],
    label: str,
    further: Sequence[Tensor] = (),
) -> None:
    """Raise where a call is more than its ``step``, or a lane depends on another lane.

    Args:
        layer: the neuron layer, after the call.
        x: the input of the call, in the dtype of the arithmetic.
        states: before the call, as ``step`` takes them.
        kwargs: of ``step``.
        label: of the layer, for the message.
        further: inputs after ``x``, constants, of its shape.
    """
    ends = _run(layer, x, further, states, kwargs).ends
    if not all(map(is_close, ends, (getattr(layer, name) for name in layer.active_states))):
        raise ValueError(
            f"{label} has other states than its step computes from the same input: it draws random "
            "numbers, or its forward does more than the step. Traces are derived from step alone."
        )

    # A generator of its own: the user's random numbers are not drawn from.
    generator = torch.Generator().manual_seed(0)

    def noise(size: float) -> Tensor:
        drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return size * drawn.to(x.device)

    # far from here too: what mixes may be silent where the states are small
    for size in (1.0, 10.0):
        drawn = [None if state is None else state + noise(size) for state in states]
        run = _run(layer, x + noise(size), further, drawn, kwargs)
        for end in (run.output, *run.ends):
            plain = _gradients(end, run.sources, None)
            for probe in probes(x):
                for one, probed in zip(plain, _gradients(end, run.sources, probe), strict=True):
                    if one is not None and probed is not None and not is_close(probed, probe * one):
                        raise ValueError(
                            f"{label} has a step that mixes neurons or samples: there is no "
                            "derivative by lane. Traces need a step of pointwise operations; put "
                            "what mixes into a module before the layer."
                        )


def probes(x: Tensor) -> list[Tensor]:
    """Return cotangents that a diagonal Jacobian, and no other, multiplies lane by lane.

    Each holds 16 powers of two with signs, so that a product with it is exact in any dtype. They
    are the digits of a lane's number in a random order, so any two lanes differ in one of them. One
    more, in an order of its own, is there for what cancels in these.

    Args:
        x: a tensor of the lanes' shape, dtype and device.
    """
    generator = torch.Generator().manual_seed(0)
    numbers, others = (torch.randperm(x.numel(), generator=generator) for _ in range(2))
    digits = [others % _DIGIT, numbers % _DIGIT]
    while _DIGIT ** (len(digits) - 1) < x.numel():
        numbers = numbers // _DIGIT
        digits.append(numbers % _DIGIT)
    values = [(1 - 2 * (kinds % 2)) * 2 ** (kinds // 2) for kinds in digits]
    return [each.view(x.shape).to(x.device, x.dtype) for each in values]


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding; NaN equals NaN."""
    largest = float(b.detach().abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6 * largest, equal_nan=True)


class _Run(NamedTuple):
    """One ``step`` on leaves of the lanes' shape.

    Args:
        sources: the leaves: active states, input, learned parameters.
        output: of the step.
        ends: the next active states.
    """

    sources: list[Tensor]
    output: Tensor
    ends: list[Tensor]

    def value(self, i: int) -> Tensor:
        """Return a next state, or the output behind the last of them."""
        return (*self.ends, self.output)[i]


def _run(
    layer: Neuron,
    x: Tensor,
    further: Sequence[Tensor],
    states: Sequence[Tensor | None],
    kwargs: Mapping[str, Any],
    replaced: Mapping[str, Callable[[Any], Any]] | None = None,
) -> _Run:
    """Run ``step``; ``replaced`` maps names of spike functions to what wraps them."""

    def leaf(value: Tensor) -> Tensor:
        return value.detach().expand(x.shape).clone().requires_grad_()

    with torch.enable_grad():
        given = leaf(x)
        held = [None if state is None else leaf(state) for state in states]
        learned = learned_parameters(kwargs, layer.constraints)
        leaves = {name: leaf(value) for name, value in learned.items()}
        wrapped = {name: wrap(kwargs[name]) for name, wrap in (replaced or {}).items()}
        output, *ends = layer.step(given, *further, *held, **{**kwargs, **leaves, **wrapped})
    active = layer.active_states
    sources = [*(s for s in held if s is not None), given, *leaves.values()]
    return _Run(sources, output, [end for n, end in zip(layer.states, ends, strict=True) if n in active])


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
