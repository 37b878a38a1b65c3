"""Advance eligibility traces, and attach them to the states of a layer in the autograd graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tracetorch.core.walk import Opaque
from tracetorch.online_learning.lanes import LaneDerivatives, added, multiplied
from tracetorch.online_learning.linear_maps import LinearMap, features, lanes, split, weights_of
from tracetorch.online_learning.rewire import with_gradients

Key = TypeVar("Key")
Trace: TypeAlias = list[Tensor | None]  # one for each state of a layer; ``None`` is zero


class Contribution(NamedTuple):
    """A product that feeds a neuron layer in one step."""

    module: LinearMap  # the linear layer or convolution
    x: Tensor  # its input
    factor: Tensor  # derivative of the layer's input by the product's output, lane by lane


class Traces(Opaque):
    """The derivatives of a layer's states by what it learns.

    Args:
        shared: products have one trace for all neurons of the layer.
        parameters: derivatives by the constrained parameters, shaped like the states.
        products: derivatives by the weights of products before the layer, ``[M, N, K]``: samples
            and places, neurons, inputs; ``[M, K]`` where they are shared.
    """

    def __init__(
        self,
        shared: bool,
        parameters: dict[str, Trace] | None = None,
        products: dict[LinearMap, Trace] | None = None,
    ) -> None:
        self.shared = shared
        self.parameters = parameters or {}
        self.products = products or {}

    def advanced(self, block: LaneDerivatives, inputs: Sequence[Contribution]) -> Traces:
        """Return the traces after one more step; these stay, for graphs that are still alive."""
        names = dict.fromkeys([*self.parameters, *(n for r in block.by_parameter for n in r)])
        modules = dict.fromkeys([*self.products, *(each.module for each in inputs)])
        parameters = {}
        for name in names:
            new = ([direct.get(name)] for direct in block.by_parameter)
            parameters[name] = _next(block.by_state, self.parameters.get(name), new)
        products = {each: self._advanced_product(block, each, inputs) for each in modules}
        return Traces(self.shared, parameters, products)

    def _advanced_product(
        self, block: LaneDerivatives, module: LinearMap, inputs: Sequence[Contribution]
    ) -> Trace:
        def coefficient(derivative: Tensor) -> Tensor:
            # what a trace is multiplied by: a number, or one a lane
            return derivative.mean() if self.shared else lanes(module, derivative).unsqueeze(-1)

        rows = [
            (each.factor, features(module, each.x.detach()).unsqueeze(0 if self.shared else 1))
            for each in inputs
            if each.module is module
        ]

        def added_by(direct: Tensor | None) -> Iterator[Tensor]:
            if direct is not None:
                for factor, row in rows:
                    yield coefficient(direct * factor.to(direct)) * row.to(direct)

        new = map(added_by, block.by_input)
        trace = _next(block.by_state, self.products.get(module), new, coefficient)
        if not self.shared:
            return trace
        return [None if each is None else each.reshape(-1, each.shape[-1]) for each in trace]

    def filtered(self, output: Traces, factor: Tensor, block: LaneDerivatives) -> Traces:
        """Return these traces, of the states of a later layer, after one more step.

        The later layer is between a product and its own states. Its lanes are one for this: the
        traces are multiplied by the mean of its derivatives. ``output`` has those of the earlier
        layer's output, and ``factor`` is the derivative of the product's input by it.
        """
        decays = [[None if d is None else d.mean() for d in row] for row in block.by_state]
        inflows = [None if d is None else d.mean() for d in block.by_input]

        def advanced(trace: Trace | None, fed: Tensor | None) -> Trace:
            return _next(decays, trace, [[multiplied(each, fed)] for each in inflows])

        parameters = {
            name: advanced(trace, multiplied(factor, fed))
            for name, trace, fed in _joined(self.parameters, output.parameters)
        }
        products = {
            module: advanced(trace, multiplied(lanes(module, factor).unsqueeze(-1), fed))
            for module, trace, fed in _joined(self.products, output.products)
        }
        return Traces(self.shared, parameters, products)

    def restarted(self, where: Tensor) -> Traces:
        """Return the traces with those of samples, ``where`` over the batch, set to zero."""

        def cleared(trace: Tensor) -> Tensor:
            # a sample has several rows where it has places
            rows = where.to(trace.device).repeat_interleave(len(trace) // len(where))
            return trace.masked_fill(rows.view(-1, *[1] * (trace.ndim - 1)), 0)

        return self.mapped(cleared)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Traces:
        """Return the traces with every tensor changed."""

        def changed(trace: Trace) -> Trace:
            return [None if each is None else change(each) for each in trace]

        return Traces(
            self.shared,
            {name: changed(trace) for name, trace in self.parameters.items()},
            {module: changed(trace) for module, trace in self.products.items()},
        )


class Attachment(NamedTuple):
    """Traces that the gradient of a layer's states is multiplied by."""

    traces: Traces  # one for each of the states
    parameters: dict[str, Tensor]  # the constrained parameters with traces, part of the graph
    # what is between, where the traces are those of the layer before it
    product: nn.Linear | None = None

    def gradients(self, by_state: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        """Multiply gradients of the states by the traces: parameters first, then weights."""
        traces = self.traces
        if self.product is not None:
            weight = self.product.weight.detach()
            by_state = [None if g is None else g @ weight.to(g) for g in by_state]
        for name, value in self.parameters.items():
            summed = added(map(multiplied, by_state, traces.parameters[name]))
            yield None if summed is None else summed.sum_to_size(value.shape)
        equation = "mn,mk->nk" if traces.shared else "mn,mnk->nk"
        for module, trace in traces.products.items():
            summed = added(
                None if g is None or e is None else torch.einsum(equation, lanes(module, g), e)
                for g, e in zip(by_state, trace, strict=True)
            )
            weights = weights_of(module)
            yield from [None] * len(weights) if summed is None else split(module, summed)


def attach(attachments: Sequence[Attachment], states: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return states as functions of what there are traces for: their gradient meets the traces."""
    sources: list[Tensor] = []
    for each in attachments:
        sources += each.parameters.values()
        sources += (weight for module in each.traces.products for weight in weights_of(module))

    def pull(by_state: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        return itertools.chain.from_iterable(each.gradients(by_state) for each in attachments)

    return with_gradients(states, sources, pull)


def _next(
    block: Sequence[Sequence[Tensor | None]],
    before: Trace | None,
    new: Iterable[Iterable[Tensor | None]],
    coefficient: Callable[[Tensor], Tensor] = lambda derivative: derivative,
) -> Trace:
    """Multiply the traces of before by the block, and add what is new in each state."""
    trace: Trace = []
    for row, terms in zip(block, new, strict=True):
        pairs = zip(row, before or (), strict=False)
        carried = (None if d is None or e is None else coefficient(d) * e for d, e in pairs)
        trace.append(added(itertools.chain(carried, terms)))
    return trace


def _joined(
    own: dict[Key, Trace], output: dict[Key, Trace]
) -> Iterator[tuple[Key, Trace | None, Tensor | None]]:
    """Iterate over the traces of a layer, and those of an output, by key."""
    for key in dict.fromkeys([*own, *output]):
        yield key, own.get(key), output[key][0] if key in output else None
