"""Carry eligibility traces from step to step, and attach them to a layer's states in the graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tracetorch.core.torch_private import version_of
from tracetorch.core.walk import Opaque
from tracetorch.online_learning.lanes import (
    LaneDerivatives,
    LinearMap,
    added,
    features,
    lanes,
    multiplied,
    split,
    weights_of,
)
from tracetorch.online_learning.rules import LearningRule
from tracetorch.snn.module import layer_label
from tracetorch.snn.sequence_layer import SequenceLayer

Key = TypeVar("Key")
Trace: TypeAlias = list[Tensor | None]  # one for each state of a layer; ``None`` is zero
Pull: TypeAlias = Callable[[Sequence[Tensor | None]], Iterable[Tensor | None]]
Link: TypeAlias = tuple[str, nn.Linear]  # an earlier layer, and the product between it and a later
# the states of a layer, with their versions: an assignment and an edit in place show
Marks: TypeAlias = list[tuple[Tensor | None, int | None]]


class Contribution(NamedTuple):
    module: LinearMap  # the linear layer or convolution
    x: Tensor  # its input
    factor: Tensor  # derivative of the layer's input by the product's output, lane by lane


class Traces(Opaque):
    """The derivatives of a layer's states by what it learns."""

    def __init__(
        self,
        shared: bool,
        parameters: dict[str, Trace] | None = None,
        products: dict[LinearMap, Trace] | None = None,
    ) -> None:
        self.shared = shared  # by all neurons of the layer, those of products
        self.parameters = parameters or {}  # by the constrained ones, shaped like the states
        # by weights before the layer: [samples and places, neurons, inputs], shared ones without N
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
        """Return these traces, of a later layer's states, after one more step.

        They are multiplied by the mean of its derivatives. ``output`` has those of the earlier
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


def with_gradients(
    values: Sequence[Tensor], sources: Sequence[Tensor | None], pull: Pull
) -> Sequence[Tensor]:
    """Return values, cut from their graph, as functions of sources.

    ``pull`` maps gradients by the values to those by the sources; ``None`` is zero.
    """
    cut = [value.detach() for value in values]
    results: Sequence[Tensor] = _WithGradients.apply(  # type: ignore[no-untyped-call]
        pull, len(cut), *cut, *sources
    )
    return results


def with_derivatives(
    values: Sequence[Tensor],
    derivatives: LaneDerivatives,
    x: Tensor,
    states: Sequence[Tensor | None],
    parameters: Mapping[str, Tensor],
) -> Sequence[Tensor]:
    """Return values with these derivatives by the input, the states before, and parameters."""
    by_state, by_input, by_parameter = derivatives
    sources = [*states, x, *parameters.values()]
    columns = [
        *zip(*by_state, strict=True),
        by_input,
        *([row[name] for row in by_parameter] for name in parameters),
    ]
    kinds = [None if source is None else (source.shape, source.dtype) for source in sources]

    def pull(by_value: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        for kind, column in zip(kinds, columns, strict=True):
            total = added(map(multiplied, by_value, column))
            if kind is None or total is None:
                yield None
            else:
                yield total.sum_to_size(kind[0]).to(kind[1])

    return with_gradients(values, sources, pull)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pull: Pull, count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.pull = pull
        ctx.set_materialize_grads(False)
        return tuple(value.clone() for value in tensors[:count] if value is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by_value: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, None, *[None] * len(by_value), *ctx.pull(by_value))


class Filter(NamedTuple):
    """Traces of a layer, as the layer behind the next product filters them: of its own states."""

    traces: Traces  # of the earlier layer, one for each state of the later one
    ndim: int  # of the earlier layer's states, for its parameters
    dtype: torch.dtype


class LearnerState(Opaque):
    def __init__(
        self, model: nn.Module, layers: Mapping[str, SequenceLayer], rule: LearningRule
    ) -> None:
        self.model, self.layers, self.rule = model, layers, rule
        self.traces: dict[str, Traces] = {}
        # of a layer, by the earlier layer and the product between the two
        self.filters: dict[str, dict[Link, Filter]] = {}
        self.left: dict[str, Marks | None] = {}  # the states after the last step
        # for which inputs the step of a layer has been found pointwise: its path, and their shape
        self.pointwise: set[tuple[str, torch.Size]] = set()
        self.probes: dict[tuple[Any, ...], list[Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # a copy has states of its own, with these values
        return {**vars(self), "probes": {}, "left": {path: self.fits(path) for path in self.layers}}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        for path, fits in attributes["left"].items():
            self.left[path] = marks(self.layers[path]) if fits else None

    def fits(self, path: str) -> bool:
        """Whether the states of a layer are those that its traces belong to."""
        left = self.left.get(path)
        return left is not None and same(marks(self.layers[path]), left)

    def check_fits(self, path: str) -> None:
        if not self.fits(path):
            raise ValueError(
                f"{layer_label(self.layers[path], path)} has other states than the learner's last "
                "step left: its traces do not fit them. Call zero_states() or detach_states() of "
                "the learner, not of the model."
            )

    def replace(self, traces: dict[str, Traces], filters: dict[str, dict[Link, Filter]]) -> None:
        """Take other traces, which belong to the states as they are now."""
        self.traces, self.filters = traces, filters
        self.left = {path: marks(layer) for path, layer in self.layers.items()}

    def change(self, changed: Callable[[str, Traces], Traces]) -> None:
        """Replace the traces of every layer: ``changed`` is given its path and each of them."""
        filters = {
            path: {
                link: each._replace(traces=changed(path, each.traces))
                for link, each in filters.items()
            }
            for path, filters in self.filters.items()
        }
        self.replace({path: changed(path, each) for path, each in self.traces.items()}, filters)

    def follow_states(self) -> None:
        """Move the traces to where the states have been moved; forget them with the states."""
        first = {path: getattr(each, each.active_states[0]) for path, each in self.layers.items()}
        if any(first[path] is None for path in self.traces):
            self.replace({}, {})
        self.change(lambda path, traces: traces.mapped(lambda each: each.to(first[path])))


def marks(layer: SequenceLayer) -> Marks:
    """Return the active states of a layer, with their versions."""
    states = (getattr(layer, name) for name in layer.active_states)
    return [(state, None if state is None else version_of(state)) for state in states]


def same(now: Marks, then: Marks) -> bool:
    return all(a is b and v == w for (a, v), (b, w) in zip(now, then, strict=True))
