"""Find in the autograd graph of a step the products that feed a layer, and the layers before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tracetorch.online_learning.dropped import reached, reached_from
from tracetorch.online_learning.lanes import is_close, probes
from tracetorch.online_learning.learner_state import LearnerState, Link
from tracetorch.online_learning.linear_maps import LinearMap, weights_of
from tracetorch.online_learning.traces import Contribution, Traces


class _Call(NamedTuple):
    """A call of a product: its input, its output's place in the graph, and its shape."""

    module: LinearMap
    x: Tensor
    edge: GradientEdge
    shape: torch.Size


class Output(NamedTuple):
    """The output of a neuron layer in one step: its place in the graph, and its traces."""

    path: str  # of the layer
    edge: GradientEdge  # of the output
    shape: torch.Size
    traces: Callable[[], Traces]  # compute the traces of the output, as those of a single state
    # what reaches the layer's states through layers before it, or without a trace
    leaves: list[Tensor]
    ndim: int  # of its states
    dtype: torch.dtype


class Feed(NamedTuple):
    """An earlier layer's output that feeds a layer through a product."""

    output: Output  # of the earlier layer
    by_product: Tensor  # derivative of the layer's input by the product's output, lane by lane
    factor: Tensor  # derivative of the product's input by the earlier output, lane by lane


class Inputs(NamedTuple):
    """Origins of the input of a layer in the graph of a step."""

    products: list[Contribution]  # those that feed it
    fed: dict[Link, Feed]  # the layers before those
    leaves: list[Tensor]  # of the graph, that reach the layer by other paths


class StepGraph:
    """The products and neuron layers that a step has called so far, by their nodes in its graph."""

    def __init__(self, learner: LearnerState) -> None:
        self._learner = learner
        self._calls: dict[Any, _Call] = {}
        self._outputs: dict[Any, Output] = {}

    def add_product(self, module: LinearMap, args: Any, kwargs: Any, y: Tensor) -> None:
        """Note a call of a product: a hook on its forward pass."""
        if y.requires_grad:
            edge, x = get_gradient_edge(y), args[0] if args else kwargs["input"]
            self._calls[edge.node] = _Call(module, x, edge, y.shape)

    def add_output(
        self, path: str, output: Tensor, x: Tensor, inputs: Inputs, traces: Callable[[], Traces]
    ) -> None:
        """Note the output of a neuron layer, which layers behind it may follow."""
        if output.requires_grad:
            edge = get_gradient_edge(output)
            # a layer behind follows this one's own parameters and products, not what is before
            before = [
                leaf for each in inputs.fed.values() for leaf in reached_from(each.output.edge.node)
            ]
            leaves = [*inputs.leaves, *before]
            self._outputs[edge.node] = Output(
                path, edge, output.shape, traces, leaves, x.ndim, x.dtype
            )

    def inputs_of(self, x: Tensor) -> Inputs:
        """Find the products that a layer's input came from, and the layers before those."""
        inputs = Inputs([], {}, [])
        if not x.requires_grad:
            return inputs
        met, leaves = reached([get_gradient_edge(x).node], self._calls.keys())
        inputs.leaves.extend(leaves)
        for node, product in self._calls.items():
            if node not in met:
                continue
            factor = self._factor(x, product.edge, product.shape)
            if factor is None:
                inputs.leaves.extend(reached_from(node))
                continue
            # one that is frozen passes gradients on, and has no trace of this step
            if any(weight.requires_grad for weight in weights_of(product.module)):
                inputs.products.append(Contribution(product.module, product.x, factor))
            if product.x.requires_grad:
                self._add_earlier(inputs, product, factor)
        return inputs

    def _add_earlier(self, inputs: Inputs, product: _Call, factor: Tensor) -> None:
        """Add the layers before a product, whose traces are filtered by the layer behind it."""
        linear = product.module if isinstance(product.module, nn.Linear) else None
        follows = linear is not None and not self._learner.rule.shared
        outputs = self._outputs if follows else {}
        ends, others = reached([get_gradient_edge(product.x).node], outputs.keys())
        inputs.leaves.extend(others)
        for end, output in outputs.items():
            if end not in ends:
                continue
            through = self._factor(product.x, output.edge, output.shape)
            if linear is None or through is None or (output.path, linear) in inputs.fed:
                inputs.leaves.extend(reached_from(end))
            else:
                inputs.fed[output.path, linear] = Feed(output, factor, through)
                inputs.leaves.extend(output.leaves)

    def _factor(self, y: Tensor, edge: GradientEdge, shape: torch.Size) -> Tensor | None:
        """Differentiate a tensor by an earlier one; ``None`` where it is not lane by lane."""

        def pulled_back(cotangent: Tensor) -> Tensor:
            return torch.autograd.grad(y, [edge], cotangent, retain_graph=True)[0]

        ones = torch.ones_like(y)
        if get_gradient_edge(y).node is edge.node:
            return ones
        if y.shape != shape:
            return None
        plain = pulled_back(ones)
        # At each step, for no answer holds for the next: derivatives that are zero now mix nothing,
        # and a mode, a batch or a branch may change. It is one more pass through what is between
        # the two modules, which the step differentiates once already. A probe passes through a
        # diagonal Jacobian as it is.
        key, known = (y.shape, y.dtype, y.device), self._learner.probes
        if key not in known:
            known[key] = probes(y)
        for probe in known[key]:
            if not is_close(pulled_back(probe), probe * plain):
                return None
        return plain
