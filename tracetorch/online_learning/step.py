"""Run one step of a model with eligibility traces, and find what its autograd graph gives them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import forward_hooks
from tracetorch.core.walk import join_path, named_modules, named_parameters
from tracetorch.online_learning.dropped import DroppedPath
from tracetorch.online_learning.held import Filter, Held, Link, Marks, marks, same, states_of
from tracetorch.online_learning.lanes import LaneDerivatives, StepCall, learned_parameters
from tracetorch.online_learning.products import Product, is_product, replaced_part
from tracetorch.online_learning.refused import (
    changed_inside,
    check_backward_hooks,
    check_forward,
    check_layers,
)
from tracetorch.online_learning.rewire import with_derivatives
from tracetorch.online_learning.rules.learning_rule import Derivatives
from tracetorch.online_learning.step_graph import Feed, Inputs, StepGraph
from tracetorch.online_learning.traces import Attachment, Traces, attach
from tracetorch.snn.module import layer_label
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer

_NO_TRACE = "no trace of earlier steps"
_CONSTANT = "earlier steps are constants"
_SHARED = "its neurons share one trace, with the mean of their decays"
_MEAN = "what it does there later decays with the mean of the neurons' decays"
_RECURRENCE = "the outputs of the step before are constants"
_STORED = "what it holds of earlier steps is constant, for it has no step"
_OPTION = "a parameter of a spike function, without a trace"
_UNFROZEN = (
    "it was frozen in earlier steps, so there is no trace of those; zero_states() or "
    "detach_states() of the learner starts anew"
)


class Step:
    """A step in progress: it keeps what it has found apart until it has succeeded."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.traces: dict[str, Traces] = {}
        self.filters: dict[str, dict[Link, Filter]] = {}
        self.frozen: dict[str, frozenset[str]] = {}
        self.dropped: dict[DroppedPath, None] = {}
        self._frozen: set[str] = set()  # weights of products that were frozen in this step
        self._names: dict[int, str] = {}  # of parameters and modules, by identity
        self._entered: dict[str, Marks] = {}
        self._exited: dict[str, Marks] = {}
        self._graph = StepGraph(held)
        # further inputs of a layer that its own modules compute, by path and name
        self._computed: dict[tuple[str, str], Tensor] = {}

    def enter(self, path: str, layer: SequenceLayer) -> None:
        """Cut the states of a layer from the last step's graph, and attach its traces to them."""
        states = states_of(layer)
        traces = self.held.traces.get(path)
        live = [state for state in states if state is not None]
        if live:
            if traces is None:
                replaced: Sequence[Tensor] = [state.detach() for state in live]
            else:
                self.held.check_fits(path)
                self.traces[path] = traces
                self.filters[path] = self.held.filters.get(path, {})
                self.frozen[path] = self.held.frozen.get(path, frozenset())
                replaced = attach(self._attachments(path, cast(Neuron, layer), live[0]), live)
            for name, state in zip(layer.active_states, replaced, strict=True):
                setattr(layer, name, state)
        self._entered[path] = marks(layer)
        if not has_step(layer):
            if layer.state_kind.learned:
                reason = _RECURRENCE if isinstance(layer, Recurrent) else _STORED
                self.drop(path, path, reason)
        elif self.held.rule.derivatives is None:
            self.drop(path, path, _CONSTANT)

    def _attachments(self, path: str, layer: Neuron, state: Tensor) -> list[Attachment]:
        """List the traces of a layer's states: its own, and those of layers before it."""
        found = [_attachment(self.traces[path], layer, state.ndim, state.dtype)]
        for (earlier, product), (traces, ndim, dtype) in self.filters[path].items():
            neuron = cast(Neuron, self.held.layers[earlier])
            found.append(_attachment(traces, neuron, ndim, dtype, product))
        return found

    def drop(self, origin: str, path: str, reason: str) -> None:
        """Note a path that is dropped."""
        self.dropped[DroppedPath(origin, path, reason)] = None

    def observed(self) -> Any:
        """Observe the calls of products and neuron layers within a block.

        Raises:
            ValueError: a hook or a forward of the user's would make the traces wrong.
        """
        held = self.held
        modules = named_modules(held.model)
        check_layers(modules, held.layers)
        if held.rule.derivatives is None:
            return forward_hooks()
        check_backward_hooks(modules)
        self._names = {id(module): path for path, module in reversed(modules)}
        layers = {p: layer for p, layer in held.layers.items() if has_step(layer)}
        for path, layer in layers.items():
            check_forward(path, layer)
        products = [module for _, module in modules if is_product(module)]
        further = [
            (module, partial(self._after_input, path, name))
            for path, layer in layers.items()
            for name, module in layer.named_children()
            if name in layer.inputs
        ]
        return forward_hooks(
            before=[(layer, partial(self._before, path)) for path, layer in layers.items()],
            # What the user's hooks make of an output is like any operation behind the module.
            first=[
                *((module, self._after_product) for module in products),
                *((layer, partial(self._after_neuron, path)) for path, layer in layers.items()),
            ],
            after=further,
        )

    def leave(self) -> None:
        """Note what was frozen in this step.

        Raises:
            ValueError: a layer's states are not those that its observed call has left.
        """
        if self.held.rule.derivatives is None:
            return
        for path in self.traces:
            self.frozen[path] = self.frozen.get(path, frozenset()) | self._frozen
        for path, layer in self.held.layers.items():
            expected = self._exited.get(path, self._entered[path])
            if has_step(layer) and not same(marks(layer), expected):
                raise ValueError(changed_inside(layer, path))

    def _after_product(self, module: Product, args: Any, kwargs: Any, y: Tensor) -> None:
        if y.requires_grad:
            self._graph.add_product(module, args[0] if args else kwargs["input"], y)
        elif torch.is_grad_enabled():
            self._frozen.update(self._weight_names(module).values())

    def _weight_names(self, module: Product) -> dict[nn.Parameter, str]:
        path = self._names[id(module)]
        return {p: join_path(path, n) for n, p in module.named_parameters()}

    def _after_input(
        self, path: str, name: str, module: nn.Module, args: Any, kwargs: Any, y: Tensor
    ) -> None:
        self._computed[path, name] = y

    def _further(self, path: str, layer: Neuron, args: Any, kwargs: Any) -> list[Tensor]:
        """Return the inputs of a call after ``x``, which must be constants."""
        given = iter(args[1:])
        found: list[Tensor] = []
        for name in layer.inputs[1:]:
            known = self._computed.get((path, name), kwargs.get(name))
            value = next(given) if known is None else known
            if value.requires_grad:
                raise ValueError(
                    f"{layer_label(layer, path)} has a further input, {name}, with a gradient, and "
                    "traces follow x alone. Detach it, or train by backpropagation through time."
                )
            found.append(value)
        return found

    def _before(self, path: str, layer: Neuron, args: Any) -> None:
        if not same(marks(layer), self._entered[path]):
            raise ValueError(
                f"{layer_label(layer, path)} is called twice in one step, which has one trace. "
                "Build a layer for each call."
                if path in self._exited
                else changed_inside(layer, path)
            )

    def _after_neuron(
        self, path: str, layer: Neuron, args: Any, kwargs: Any, output: Tensor
    ) -> Tensor | None:
        self._exited[path] = marks(layer)
        derivatives = self.held.rule.derivatives
        if torch.is_grad_enabled() and derivatives is not None:
            x = args[0] if args else kwargs["x"]
            call = self._call(path, layer, x, args, kwargs)
            return self._advance(path, x, call, output, derivatives(call))
        # its new states are constants, whatever came in: a monitor, an encoder
        for carried in (self.traces, self.filters, self.frozen):
            carried.pop(path, None)
        return None

    def _call(self, path: str, layer: Neuron, x: Tensor, args: Any, kwargs: Any) -> StepCall:
        """Return the call of ``step`` that a call of a layer was, checked once for each shape."""
        dtype = layer.check_input(x)
        further = self._further(path, layer, args, kwargs)
        work, *constants = (each.detach().to(dtype).expand(x.shape) for each in (x, *further))
        states = {
            name: layer.initial_state(name, work.shape, dtype, work.device)
            if state is None
            else state.detach()
            for name, (state, _) in zip(layer.active_states, self._entered[path], strict=True)
        }
        call = StepCall(layer, work, constants, states, layer.step_kwargs(x.ndim, dtype))
        # what mixes samples cannot show in a batch of one
        if (path, work.shape) not in self.held.pointwise:
            call.check(layer_label(layer, path))
            self.held.pointwise.add((path, work.shape))
        return call

    def _advance(
        self, path: str, x: Tensor, call: StepCall, output: Tensor, found: Derivatives
    ) -> Tensor | None:
        """Advance the traces of a layer that was called; return its output where it is another."""
        block, dropped, of_output = found
        for reason in dropped:
            self.drop(path, path, reason)
        if of_output is not None:
            output = self._rewired(path, x, call, output, block, of_output)
        inputs = self._graph.inputs_of(x)
        traces = self.traces.get(path, Traces(self.held.rule.shared))

        def traces_of_output() -> Traces:
            derivatives = call.derivatives(of_output=True) if of_output is None else of_output
            return traces.advanced(derivatives, inputs.products)

        self._graph.add_output(path, output, call.x, inputs, traces_of_output)
        self.traces[path] = traces.advanced(block, inputs.products)
        self.filters[path] = self._filtered(path, block, inputs.fed)
        self._note_dropped(path, call.layer, inputs)
        return None if of_output is None else output

    def _rewired(
        self,
        path: str,
        x: Tensor,
        call: StepCall,
        output: Tensor,
        block: LaneDerivatives,
        of_output: LaneDerivatives,
    ) -> Tensor:
        """Give output and next states the rule's derivatives, where the step's graph has others."""
        ends = [state for state, _ in self._exited[path] if state is not None]
        both = LaneDerivatives(*map(operator.add, of_output, block))
        entered = [state for state, _ in self._entered[path]]
        layer, learned = call.layer, learned_parameters(call.layer, call.kwargs)
        replaced, *states = with_derivatives([output, *ends], both, x, entered, learned)
        for name, state in zip(layer.active_states, states, strict=True):
            setattr(layer, name, state)
        self._exited[path] = marks(layer)
        return replaced

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
            if not all(map(_is_uniform, [*own.by_input, *itertools.chain(*own.by_state)])):
                self.drop(link[0], path, _MEAN)
        return advanced

    def _note_dropped(self, path: str, layer: Neuron, inputs: Inputs) -> None:
        """Note what the rule and the traces of a layer leave out."""
        if self.held.rule.shared:
            for each in inputs.products:
                self.drop(join_path(self._names[id(each.module)], "weight"), path, _SHARED)
        own = {p: join_path(path, name) for name, p in layer.named_parameters(recurse=False)}
        before = self.frozen.get(path, frozenset())
        for parameters in (own, *(self._weight_names(each.module) for each in inputs.products)):
            for parameter, name in parameters.items():
                if parameter.requires_grad and name in before:
                    self.drop(name, path, _UNFROZEN)
        self.frozen[path] = before | {n for p, n in own.items() if not p.requires_grad}
        for name in layer.options:
            option = getattr(layer, name)
            if isinstance(option, nn.Module) and any(p.requires_grad for p in option.parameters()):
                self.drop(join_path(path, name), path, _OPTION)
        if inputs.leaves:
            known = {id(p): name for name, p in named_parameters(self.held.model).items()}
            modules = dict(named_modules(self.held.model))
            for origin in sorted({known.get(id(leaf), "an input") for leaf in inputs.leaves}):
                owner = modules.get(origin.rpartition(".")[0])
                why = None if owner is None else replaced_part(owner)
                self.drop(origin, path, _NO_TRACE if why is None else f"{_NO_TRACE}: {why}")


def _attachment(
    traces: Traces, layer: Neuron, ndim: int, dtype: torch.dtype, product: nn.Linear | None = None
) -> Attachment:
    learned = learned_parameters(layer, layer.step_kwargs(ndim, dtype))
    parameters = {name: learned[name] for name in traces.parameters if name in learned}
    return Attachment(traces, parameters, product)


def _is_uniform(derivative: Tensor | None) -> bool:
    if derivative is None or not derivative.numel():
        return True
    return bool((derivative == derivative.flatten()[0]).all())
