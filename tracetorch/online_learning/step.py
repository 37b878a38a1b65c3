"""``Step``: one step of a model with eligibility traces, as a pass that advances them.

A layer that is called asks the pass, as ever, and so its traces advance where its step runs:
whatever the model, hooks or a ``forward`` of the layer's own do around that is part of the graph.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tracetorch.core.checks import is_finite
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.torch_private import global_hooks, pytree
from tracetorch.core.walk import join_path, named_modules, named_parameters
from tracetorch.online_learning.lanes import (
    LaneDerivatives,
    LinearMap,
    StepCall,
    is_close,
    is_linear_map,
    learned_parameters,
    probes,
    weights_of,
)
from tracetorch.online_learning.rules import Derivatives, reached, reached_from
from tracetorch.online_learning.traces import (
    Attachment,
    Contribution,
    Filter,
    LearnerState,
    Link,
    Marks,
    Traces,
    attach,
    marks,
    same,
    with_derivatives,
)
from tracetorch.snn.module import layer_label
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.passes import Layer, Pass
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer

_NO_TRACE = "no trace of earlier steps"
_CONSTANT = "earlier steps are constants"
_SHARED = "its neurons share one trace, with the mean of their decays"
_MEAN = "what it does there later decays with the mean of the neurons' decays"
_RECURRENCE = "the outputs of the step before are constants"
_STORED = "what it holds of earlier steps is constant, for it has no step"
_OPTION = "a parameter of a spike function, without a trace"


class DroppedPath(NamedTuple):
    """A path through time along which a rule sends no gradient, or a changed one.

    Args:
        origin: path of the parameter, or of the layer, that the path begins at.
        layer: path of the layer whose states it runs through.
        reason: what is missing.

    Example:
        >>> print(DroppedPath("0.weight", "3", "no trace"))
        0.weight -> states of 3: no trace
    """

    origin: str
    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin} -> states of {self.layer}: {self.reason}"


class _Call(NamedTuple):
    module: LinearMap
    x: Tensor
    edge: GradientEdge
    shape: torch.Size


class Output(NamedTuple):
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
    def __init__(self, learner: LearnerState) -> None:
        self._learner = learner
        self._calls: dict[Any, _Call] = {}
        self._outputs: dict[Any, Output] = {}

    def add_product(self, module: LinearMap, args: Any, kwargs: Any, y: Tensor) -> None:
        if y.requires_grad:
            edge, x = get_gradient_edge(y), args[0] if args else kwargs["input"]
            self._calls[edge.node] = _Call(module, x, edge, y.shape)

    def add_output(
        self, path: str, output: Tensor, x: Tensor, inputs: Inputs, traces: Callable[[], Traces]
    ) -> None:
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
        # at each step, for derivatives that are zero now mix nothing, and a mode, a batch or a
        # branch may change; a probe passes through a diagonal Jacobian as it is
        key, known = (y.shape, y.dtype, y.device), self._learner.probes
        if key not in known:
            known[key] = probes(y)
        for probe in known[key]:
            if not is_close(pulled_back(probe), probe * plain):
                return None
        return plain


class Step(Pass):
    """A step in progress: it keeps states and traces apart until it has succeeded."""

    def __init__(self, before: LearnerState) -> None:
        super().__init__()
        self.before = before
        self.traces: dict[str, Traces] = {}
        self.filters: dict[str, dict[Link, Filter]] = {}
        self.dropped: dict[DroppedPath, None] = {}
        self._paths: dict[int, str] = {}  # of modules, by identity; none without traces
        self._entered: dict[str, Marks] = {}
        self._exited: dict[str, Marks] = {}
        self._graph = StepGraph(before)

    def run(self, args: Any, kwargs: Any) -> Any:
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value.is_floating_point() and not is_finite(value):
                raise ValueError(
                    f"an input of shape {list(value.shape)} has NaN or infinite values, which "
                    "would stay in the traces. Leave the step out, or use the last good input."
                )
        before = self.before
        modules = named_modules(before.model)
        _check_model(modules, before.layers, has_traces=before.rule.derivatives is not None)
        for path, layer in before.layers.items():
            self._enter(path, layer)
        maps = []
        if before.rule.derivatives is not None:
            self._paths = {id(module): path for path, module in reversed(modules)}
            maps = [(m, self._graph.add_product) for _, m in modules if is_linear_map(m)]
        # What the user's hooks make of an output is like any operation behind the module.
        with forward_hooks(first=maps):
            y = before.model(*args, **kwargs)
        for path, layer in before.layers.items():
            self._check_states(path, layer)
        if before.rule.lossless and self.dropped:
            paths = "\n  ".join(map(str, self.dropped))
            raise ValueError(
                "the gradients cannot be exact online, for there are paths through time that "
                f"no trace follows:\n  {paths}\nrule='eprop' drops or changes them."
            )
        return y

    def _enter(self, path: str, layer: SequenceLayer) -> None:
        """Cut the states of a layer from the last step's graph, and attach its traces to them."""
        before = self.before
        states = [getattr(layer, name) for name in layer.active_states]
        live: list[Tensor] = [state for state in states if state is not None]
        if live:
            replaced: Sequence[Tensor] = [state.detach() for state in live]
            if path in before.traces:
                before.check_fits(path)
                own, fed = before.traces[path], before.filters.get(path, {})
                self.traces[path], self.filters[path] = own, fed
                found = [_attachment(own, layer, live[0].ndim, live[0].dtype)]
                for (earlier, product), (traces, ndim, dtype) in fed.items():
                    source = before.layers[earlier]
                    found.append(_attachment(traces, source, ndim, dtype, product))
                replaced = attach(found, live)
            for name, state in zip(layer.active_states, replaced, strict=True):
                setattr(layer, name, state)
        self._entered[path] = marks(layer)
        if not has_step(layer):
            if layer._state_kind.learned:
                self._drop(path, path, _RECURRENCE if isinstance(layer, Recurrent) else _STORED)
        elif before.rule.derivatives is None:
            self._drop(path, path, _CONSTANT)

    def _drop(self, origin: str, path: str, reason: str) -> None:
        self.dropped[DroppedPath(origin, path, reason)] = None

    def _check_states(self, path: str, layer: SequenceLayer) -> None:
        """Raise where the states are not those that the layer's call left, or not finite."""
        now = marks(layer)
        left = self._exited.get(path, self._entered[path])
        if self._paths and has_step(layer) and not same(now, left):
            raise ValueError(_changed_inside(layer, path))
        for name, (state, _) in zip(layer.active_states, now, strict=True):
            if isinstance(state, Tensor) and not is_finite(state):
                raise ValueError(
                    f"{name} of {layer_label(layer, path)} has NaN or infinite values, which "
                    "would stay in its traces. Look at the weights before the layer."
                )

    def __call__(
        self, layer: Layer, x: Tensor, given: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> Tensor:
        path, derivatives = self._paths.get(id(layer)), self.before.rule.derivatives
        if path is None or derivatives is None or not has_step(layer):
            return super().__call__(layer, x, given, named)
        if not same(marks(layer), self._entered[path]):
            raise ValueError(
                f"{layer_label(layer, path)} is called twice in one step, which has one trace. "
                "Build a layer for each call."
                if path in self._exited
                else _changed_inside(layer, path)
            )
        further = layer._all_further(x, given, named)
        for name, value in zip(layer.inputs[1:], further, strict=True):
            if value.requires_grad:
                raise ValueError(
                    f"{layer_label(layer, path)} has a further input, {name}, with a gradient, and "
                    "traces follow x alone. Detach it, or train by backpropagation through time."
                )
        output = layer.forward_step(x, *further)
        self._exited[path] = marks(layer)
        if not torch.is_grad_enabled():
            # its new states are constants, whatever came in: a monitor, an encoder
            self.traces.pop(path, None)
            self.filters.pop(path, None)
            return output
        call = self._checked_call(path, layer, x, further)
        return self._advance(path, x, call, output, derivatives(call))

    def _checked_call(
        self, path: str, layer: Neuron, x: Tensor, further: Sequence[Tensor]
    ) -> StepCall:
        """Return the call of ``step`` that a call of a layer was, checked once for each shape."""
        dtype = layer._check_input(x)
        work, *constants = (each.detach().to(dtype).expand(x.shape) for each in (x, *further))
        states = {
            name: layer.initial_state(name, work.shape, dtype, work.device)
            if state is None
            else state.detach()
            for name, (state, _) in zip(layer.active_states, self._entered[path], strict=True)
        }
        call = StepCall(layer, work, constants, states, layer.step_kwargs(x.ndim, dtype))
        # what mixes samples cannot show in a batch of one
        if (path, work.shape) not in self.before.pointwise:
            call.check(layer_label(layer, path))
            self.before.pointwise.add((path, work.shape))
        return call

    def _advance(
        self, path: str, x: Tensor, call: StepCall, output: Tensor, found: Derivatives
    ) -> Tensor:
        block, dropped, of_output = found
        for reason in dropped:
            self._drop(path, path, reason)
        layer = call.layer
        if of_output is not None:
            # the step's graph has other derivatives of output and next states than the rule
            ends = [state for state, _ in self._exited[path] if state is not None]
            both = LaneDerivatives(*map(operator.add, of_output, block))
            entered = [state for state, _ in self._entered[path]]
            learned = learned_parameters(layer, call.kwargs)
            output, *states = with_derivatives([output, *ends], both, x, entered, learned)
            for name, state in zip(layer.active_states, states, strict=True):
                setattr(layer, name, state)
            self._exited[path] = marks(layer)
        inputs = self._graph.inputs_of(x)
        traces = self.traces.get(path, Traces(self.before.rule.shared))

        def traces_of_output() -> Traces:
            derivatives = call.derivatives(of_output=True) if of_output is None else of_output
            return traces.advanced(derivatives, inputs.products)

        self._graph.add_output(path, output, call.x, inputs, traces_of_output)
        self.traces[path] = traces.advanced(block, inputs.products)
        self.filters[path] = self._filtered(path, block, inputs.fed)
        self._note_dropped(path, layer, inputs)
        return output

    def _filtered(
        self, path: str, block: LaneDerivatives, fed: Mapping[Link, Feed]
    ) -> dict[Link, Filter]:
        """Advance the traces of the layers before the products that feed a layer."""
        before = self.filters.get(path, {})
        advanced: dict[Link, Filter] = {}
        for link in dict.fromkeys([*before, *fed]):
            traces, ndim, dtype = before.get(link, Filter(Traces(False), 0, torch.float32))
            output, factor, own = Traces(False), torch.ones(()), block
            if link in fed:
                source, by_product, factor = fed[link]
                output, ndim, dtype = source.traces(), source.ndim, source.dtype
                by_input = [None if d is None else d * by_product.to(d) for d in block.by_input]
                own = block._replace(by_input=by_input)
            advanced[link] = Filter(traces.filtered(output, factor, own), ndim, dtype)
            every = itertools.chain(own.by_input, *own.by_state)
            if any(
                d is not None and d.numel() and bool((d != d.flatten()[0]).any()) for d in every
            ):
                self._drop(link[0], path, _MEAN)
        return advanced

    def _note_dropped(self, path: str, layer: Neuron, inputs: Inputs) -> None:
        if self.before.rule.shared:
            for each in inputs.products:
                self._drop(join_path(self._paths[id(each.module)], "weight"), path, _SHARED)
        for name in layer._options:
            option = getattr(layer, name)
            if isinstance(option, nn.Module) and any(p.requires_grad for p in option.parameters()):
                self._drop(join_path(path, name), path, _OPTION)
        if inputs.leaves:
            known = {id(p): name for name, p in named_parameters(self.before.model).items()}
            for origin in sorted({known.get(id(leaf), "an input") for leaf in inputs.leaves}):
                self._drop(origin, path, _NO_TRACE)


def _attachment(
    traces: Traces,
    layer: SequenceLayer,
    ndim: int,
    dtype: torch.dtype,
    product: nn.Linear | None = None,
) -> Attachment:
    learned = learned_parameters(cast(Neuron, layer), layer.step_kwargs(ndim, dtype))
    parameters = {name: learned[name] for name in traces.parameters if name in learned}
    return Attachment(traces, parameters, product)


def _check_model(
    modules: Sequence[tuple[str, nn.Module]],
    layers: Mapping[str, SequenceLayer],
    *,
    has_traces: bool,
) -> None:
    """Raise where traces cannot follow what modules do now, or the neuron layers are others."""
    now = {path: module for path, module in modules if isinstance(module, SequenceLayer)}
    changed = [path for path in (*now, *layers) if now.get(path) is not layers.get(path)]
    if changed:
        raise ValueError(
            f"the neuron layer {changed[0]!r} has been added, removed or replaced since the "
            "learner was made, and no trace follows it. Make a new learner by tt.online(model)."
        )
    if not has_traces:
        return
    if global_hooks():
        raise ValueError(
            "a hook is registered on all modules there are, and traces cannot see what it changes. "
            "Remove it with its handle's remove(), or register it on single modules."
        )
    for path, module in modules:
        if module._backward_hooks or module._backward_pre_hooks:
            raise ValueError(
                f"{layer_label(module, path)} has a backward hook, which could not act on the "
                "derivatives of earlier steps. Remove it with its handle's remove(), or train by "
                "backpropagation through time."
            )
        if has_step(module) and (
            "forward_step" in vars(module) or type(module).forward_step is not Neuron.forward_step
        ):
            raise ValueError(
                f"{layer_label(module, path)} has a forward_step of its own, and traces are "
                "derived from step alone. Put what it adds into step, or another module."
            )


def _changed_inside(layer: SequenceLayer, path: str) -> str:
    return (
        f"{layer_label(layer, path)} has its states changed inside forward(), where its traces "
        "cannot follow. Call the layer itself, and zero_states() of the learner instead."
    )
