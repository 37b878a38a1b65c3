"""Run one step of a model with eligibility traces, and find what its autograd graph gives them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tracetorch.core.hooks import forward_hooks
from tracetorch.core.torch_private import global_hooks, version_of
from tracetorch.core.walk import Opaque, join_path, named_modules, named_parameters
from tracetorch.online_learning.dropped import DroppedPath, reached, reached_from
from tracetorch.online_learning.eprop import derivatives_without_resets, with_derivatives
from tracetorch.online_learning.lanes import (
    LaneDerivatives,
    check_step,
    is_close,
    lane_derivatives,
    learned_parameters,
    probes,
)
from tracetorch.online_learning.products import Product, is_product, replaced_part
from tracetorch.online_learning.traces import Attachment, Contribution, Traces, attach
from tracetorch.probe.layers import spike_functions
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stateful_layer import layer_label

Rule: TypeAlias = Literal["exact", "eprop", "ottt", "local"]

Link: TypeAlias = tuple[str, nn.Linear]

Marks: TypeAlias = list[tuple[Tensor | None, int | None]]
"""The states of a layer, with their versions: an assignment and an edit in place show."""

_NO_TRACE = "no trace of earlier steps"
_LOCAL = "earlier steps are constants"
_RESET = "the reset of {} by a spike is a constant"
_SPIKES = "all that a spike does to its own neuron (reset, adaptation) is a constant"
_SHARED = "its neurons share one trace, with the mean of their decays"
_MEAN = "what it does there later decays with the mean of the neurons' decays"
_RECURRENCE = "the outputs of the step before are constants"
_STORED = "what it holds of earlier steps is constant, for it has no step"
_OPTION = "a parameter of a spike function, without a trace"
_UNFROZEN = (
    "it was frozen in earlier steps, so there is no trace of those; zero_states() or "
    "detach_states() of the learner starts anew"
)


class _Call(NamedTuple):
    """A call of a product: its input, its output's place in the graph, and its shape."""

    module: Product
    x: Tensor
    edge: GradientEdge
    shape: torch.Size


class Filter(NamedTuple):
    """Traces of a layer, filtered by the layer behind the next product: derivatives of its states.

    Args:
        traces: of the earlier layer, one for each state of the later one.
        ndim, dtype: of the earlier layer's states, for its parameters.
    """

    traces: Traces
    ndim: int
    dtype: torch.dtype


class Held(Opaque):
    """All that is carried from step to step, besides the states.

    Args:
        model: the model.
        layers: its neuron layers by path.
        rule: the learning rule.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, SequenceLayer], rule: Rule) -> None:
        self.model, self.layers, self.rule = model, layers, rule
        self.traces: dict[str, Traces] = {}
        # of a layer, by the earlier layer and the product between the two
        self.filters: dict[str, dict[Link, Filter]] = {}
        # of a layer, the parameters that were frozen in a step since its traces began
        self.frozen: dict[str, frozenset[str]] = {}
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
            self.left[path] = _marks(self.layers[path]) if fits else None

    def fits(self, path: str) -> bool:
        """Whether the states of a layer are those that its traces belong to."""
        left = self.left.get(path)
        return left is not None and _same(_marks(self.layers[path]), left)

    def restart(self, where: Tensor | None = None) -> None:
        """Forget all traces, with ``where`` those of some samples, and note the states."""
        if where is None:
            self.traces, self.filters, self.frozen = {}, {}, {}
        else:
            self.change(lambda path, traces: traces.restarted(where))
        self.note_states()

    def change(self, changed: Callable[[str, Traces], Traces]) -> None:
        """Replace the traces of every layer: ``changed`` is given its path and each of them."""
        self.traces = {path: changed(path, traces) for path, traces in self.traces.items()}
        self.filters = {
            path: {
                link: each._replace(traces=changed(path, each.traces))
                for link, each in filters.items()
            }
            for path, filters in self.filters.items()
        }

    def follow_states(self) -> None:
        """Move the traces to where the states have been moved; forget them with the states."""

        def moved(path: str, traces: Traces) -> Traces:
            state = states_of(self.layers[path])[0]
            return traces if state is None else traces.mapped(lambda each: each.to(state))

        if any(None in states_of(self.layers[path]) for path in self.traces):
            self.restart()
        self.change(moved)
        self.note_states()

    def note_states(self) -> None:
        """Remember which states the traces belong to."""
        self.left = {path: _marks(layer) for path, layer in self.layers.items()}

    def probes_like(self, y: Tensor) -> list[Tensor]:
        """Return :func:`probes` for tensors like this, made once."""
        key = y.shape, y.dtype, y.device
        if key not in self.probes:
            self.probes[key] = probes(y)
        return self.probes[key]


class _Output(NamedTuple):
    """The output of a neuron layer in one step: its place in the graph, and its traces.

    Args:
        path: of the layer.
        edge, shape: of the output.
        traces: compute the traces of the output, as those of a single state.
        leaves: what reaches the layer's states through layers before it, or without a trace.
        ndim, dtype: of its states.
    """

    path: str
    edge: GradientEdge
    shape: torch.Size
    traces: Callable[[], Traces]
    leaves: list[Tensor]
    ndim: int
    dtype: torch.dtype


class _Feed(NamedTuple):
    """An earlier layer's output that feeds a layer through a product.

    Args:
        output: of the earlier layer.
        by_product: derivative of the layer's input by the product's output, lane by lane.
        factor: derivative of the product's input by the earlier output, lane by lane.
    """

    output: _Output
    by_product: Tensor
    factor: Tensor


class Step:
    """A step in progress: it keeps what it has found apart until it has succeeded.

    Args:
        held: what is carried from step to step; unchanged by the step.
    """

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
        self._calls: list[_Call] = []
        self._outputs: dict[Any, _Output] = {}  # by their node in the graph
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
                if not self.held.fits(path):
                    raise ValueError(
                        f"{layer_label(layer, path)} has other states than the learner's last step "
                        "left: its traces do not fit them. Call zero_states() or detach_states() "
                        "of the learner, not of the model."
                    )
                self.traces[path] = traces
                self.filters[path] = self.held.filters.get(path, {})
                self.frozen[path] = self.held.frozen.get(path, frozenset())
                replaced = attach(self._attachments(path, cast(Neuron, layer), live[0]), live)
            for name, state in zip(layer.active_states, replaced, strict=True):
                setattr(layer, name, state)
        self._entered[path] = _marks(layer)
        if not has_step(layer):
            if layer.state_kind.learned:
                reason = _RECURRENCE if isinstance(layer, Recurrent) else _STORED
                self.drop(path, path, reason)
        elif self.held.rule == "local":
            self.drop(path, path, _LOCAL)

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
        _check_layers(modules, held.layers)
        if held.rule == "local":
            return forward_hooks()
        _check_backward_hooks(modules)
        self._names = {id(module): path for path, module in reversed(modules)}
        layers = {p: layer for p, layer in held.layers.items() if has_step(layer)}
        for path, layer in layers.items():
            _check_forward(path, layer)
        products = [module for _, module in modules if is_product(module)]
        further = [
            (module, self._after_input(path, name))
            for path, layer in layers.items()
            for name, module in layer.named_children()
            if name in layer.inputs
        ]
        return forward_hooks(
            before=[(layer, self._before(path)) for path, layer in layers.items()],
            # What the user's hooks make of an output is like any operation behind the module.
            first=[
                *((module, self._after_product) for module in products),
                *((layer, self._after_neuron(path)) for path, layer in layers.items()),
            ],
            after=further,
        )

    def leave(self) -> None:
        """Note what was frozen in this step.

        Raises:
            ValueError: a layer's states are not those that its observed call has left.
        """
        if self.held.rule == "local":
            return
        for path in self.traces:
            self.frozen[path] = self.frozen.get(path, frozenset()) | self._frozen
        for path, layer in self.held.layers.items():
            expected = self._exited.get(path, self._entered[path])
            if has_step(layer) and not _same(_marks(layer), expected):
                raise ValueError(_changed_inside(layer, path))

    def _after_product(self, module: Product, args: Any, kwargs: Any, y: Tensor) -> None:
        if y.requires_grad:
            x = args[0] if args else kwargs["input"]
            self._calls.append(_Call(module, x, get_gradient_edge(y), y.shape))
        elif torch.is_grad_enabled():
            self._frozen.update(self._weight_names(module).values())

    def _weight_names(self, module: Product) -> dict[nn.Parameter, str]:
        path = self._names[id(module)]
        return {p: join_path(path, n) for n, p in module.named_parameters(recurse=False)}

    def _after_input(self, path: str, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, y: Tensor) -> None:
            self._computed[path, name] = y

        return hook

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

    def _before(self, path: str) -> Callable[[Neuron, Any], None]:
        def hook(layer: Neuron, args: Any) -> None:
            if not _same(_marks(layer), self._entered[path]):
                raise ValueError(
                    f"{layer_label(layer, path)} is called twice in one step, "
                    "which has one trace. Build a layer for each call."
                    if path in self._exited
                    else _changed_inside(layer, path)
                )

        return hook

    def _after_neuron(self, path: str) -> Callable[..., Tensor | None]:
        held = self.held

        def hook(layer: Neuron, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
            self._exited[path] = _marks(layer)
            if not torch.is_grad_enabled():
                # its new states are constants, whatever came in: a monitor, an encoder
                for carried in (self.traces, self.filters, self.frozen):
                    carried.pop(path, None)
                return None
            x = args[0] if args else kwargs["x"]
            dtype = layer.check_input(x)
            further = self._further(path, layer, args, kwargs)
            work, *constants = (each.detach().to(dtype).expand(x.shape) for each in (x, *further))
            states = {
                name: layer.initial_state(name, work.shape, dtype, work.device)
                if state is None
                else state.detach()
                for name, (state, _) in zip(layer.active_states, self._entered[path], strict=True)
            }
            values = layer.step_kwargs(x.ndim, dtype)
            # what mixes samples cannot show in a batch of one
            if (path, work.shape) not in held.pointwise:
                check_step(layer, work, states, values, layer_label(layer, path), constants)
                held.pointwise.add((path, work.shape))
            shared = held.rule == "ottt"
            spikes = [] if held.rule == "exact" else spike_functions(layer)
            own: LaneDerivatives | None = None
            if held.rule == "eprop" and spikes:
                block, resets, own = derivatives_without_resets(
                    layer, work, states, values, spikes, constants
                )
                for state in resets:
                    self.drop(path, path, _RESET.format(state))
                if own is not None:
                    output = self._rewired(path, layer, x, values, output, block, own)
            else:
                block = lane_derivatives(layer, work, states, values, spikes, further=constants)
                if spikes:
                    self.drop(path, path, _SPIKES)
            inputs, fed, leaves = self._inputs(path, x)
            # a layer behind follows this one's own parameters and products, not what is before
            before = [leaf for each in fed.values() for leaf in reached_from(each.output.edge.node)]
            traces = self.traces.get(path, Traces(shared))

            def of_output() -> Traces:
                return traces.advanced(
                    lane_derivatives(layer, work, states, values, of_output=True, further=constants)
                    if own is None
                    else own,
                    inputs,
                )

            if output.requires_grad:
                edge = get_gradient_edge(output)
                self._outputs[edge.node] = _Output(
                    path, edge, output.shape, of_output, [*leaves, *before], x.ndim, dtype
                )
            self.traces[path] = traces.advanced(block, inputs)
            self.filters[path] = self._filtered(path, block, fed)
            self._note_dropped(path, layer, inputs, leaves)
            return None if own is None else output

        return hook

    def _rewired(
        self,
        path: str,
        layer: Neuron,
        x: Tensor,
        kwargs: Mapping[str, Any],
        output: Tensor,
        block: LaneDerivatives,
        own: LaneDerivatives,
    ) -> Tensor:
        """Give output and next states the rule's derivatives, where the step's graph has others."""
        ends = [state for state, _ in self._exited[path] if state is not None]
        both = LaneDerivatives(
            own.by_state + block.by_state,
            own.by_input + block.by_input,
            own.by_parameter + block.by_parameter,
        )
        entered = [state for state, _ in self._entered[path]]
        learned = learned_parameters(kwargs, layer.constraints)
        replaced, *states = with_derivatives([output, *ends], both, x, entered, learned)
        for name, state in zip(layer.active_states, states, strict=True):
            setattr(layer, name, state)
        self._exited[path] = _marks(layer)
        return replaced

    def _filtered(
        self, path: str, block: LaneDerivatives, fed: Mapping[Link, _Feed]
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

    def _note_dropped(
        self,
        path: str,
        layer: Neuron,
        inputs: Sequence[Contribution],
        leaves: Sequence[Tensor],
    ) -> None:
        """Note what the rule and the traces of a layer leave out."""
        if self.held.rule == "ottt":
            for each in inputs:
                self.drop(join_path(self._names[id(each.module)], "weight"), path, _SHARED)
        own = {p: join_path(path, name) for name, p in layer.named_parameters(recurse=False)}
        before = self.frozen.get(path, frozenset())
        for parameters in (own, *(self._weight_names(each.module) for each in inputs)):
            for parameter, name in parameters.items():
                if parameter.requires_grad and name in before:
                    self.drop(name, path, _UNFROZEN)
        self.frozen[path] = before | {n for p, n in own.items() if not p.requires_grad}
        for name in layer.options:
            option = getattr(layer, name)
            if isinstance(option, nn.Module) and any(p.requires_grad for p in option.parameters()):
                self.drop(join_path(path, name), path, _OPTION)
        if leaves:
            known = {id(p): name for name, p in named_parameters(self.held.model).items()}
            modules = dict(named_modules(self.held.model))
            for origin in sorted({known.get(id(leaf), "an input") for leaf in leaves}):
                owner = modules.get(origin.rpartition(".")[0])
                why = None if owner is None else replaced_part(owner)
                self.drop(origin, path, _NO_TRACE if why is None else f"{_NO_TRACE}: {why}")

    def _inputs(
        self, path: str, x: Tensor
    ) -> tuple[list[Contribution], dict[Link, _Feed], list[Tensor]]:
        """Find the products that a layer's input came from, and the layers before those.

        Returns:
            The products; the layers before them; and the leaves of the graph that reach the layer
            by other paths.
        """
        found: list[Contribution] = []
        fed: dict[Link, _Feed] = {}
        if not x.requires_grad:
            return found, fed, []
        calls = {each.edge.node: each for each in self._calls}
        met, leaves = reached([get_gradient_edge(x).node], calls.keys())
        for node, product in calls.items():
            if node not in met:
                continue
            factor = self._factor(x, product.edge, product.shape)
            if factor is None:
                leaves += reached_from(node)
                continue
            found.append(Contribution(product.module, product.x, factor))
            if not product.x.requires_grad:
                continue
            # traces of the layers before a product are filtered by e-prop and by the exact rule
            linear = product.module if type(product.module) is nn.Linear else None
            follows = linear is not None and self.held.rule != "ottt"
            outputs = self._outputs if follows else {}
            ends, others = reached([get_gradient_edge(product.x).node], outputs.keys())
            leaves += others
            for end, output in outputs.items():
                if end not in ends:
                    continue
                through = self._factor(product.x, output.edge, output.shape)
                if linear is None or through is None or (output.path, linear) in fed:
                    leaves += reached_from(end)
                else:
                    fed[output.path, linear] = _Feed(output, factor, through)
                    leaves += output.leaves
        return found, fed, leaves

    def _factor(self, y: Tensor, edge: GradientEdge, shape: torch.Size) -> Tensor | None:
        """Differentiate a tensor by an earlier one; ``None`` where it is not lane by lane."""
        ones = torch.ones_like(y)
        if get_gradient_edge(y).node is edge.node:
            return ones
        if y.shape != shape:
            return None
        plain = _pulled_back(y, edge, ones)
        # At each step, for no answer holds for the next: derivatives that are zero now mix nothing,
        # and a mode, a batch or a branch may change. It is one more pass through what is between
        # the two modules, which the step differentiates once already. A probe passes through a
        # diagonal Jacobian as it is.
        for probe in self.held.probes_like(y):
            if not is_close(_pulled_back(y, edge, probe), probe * plain):
                return None
        return plain


def _pulled_back(y: Tensor, edge: GradientEdge, cotangent: Tensor) -> Tensor:
    """Multiply a cotangent by the Jacobian of a tensor by an earlier one."""
    return torch.autograd.grad(y, [edge], cotangent, retain_graph=True)[0]


def _check_layers(
    modules: Sequence[tuple[str, nn.Module]], layers: Mapping[str, SequenceLayer]
) -> None:
    """Raise where the model has other neuron layers than those that the learner was made for."""
    now = {path: module for path, module in modules if isinstance(module, SequenceLayer)}
    changed = [path for path in (*now, *layers) if now.get(path) is not layers.get(path)]
    if changed:
        raise ValueError(
            f"the neuron layer {changed[0]!r} has been added, removed or replaced since the "
            "learner was made, and no trace follows it. Make a new learner by tt.online(model)."
        )


def _check_backward_hooks(modules: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise where a hook would be called with, or change, the derivatives of the traces."""
    for path, module in modules:
        if module._backward_hooks or module._backward_pre_hooks:
            raise ValueError(
                f"{layer_label(module, path)} has a backward hook: it would be called with "
                "derivatives that traces are computed from, and could not act on those of earlier "
                "steps. Remove it with its handle's remove(), or train by backpropagation through "
                "time."
            )
    if global_hooks():
        raise ValueError(
            "a hook is registered on all modules there are, by "
            "torch.nn.modules.module.register_module_..._hook: what it changes cannot be seen by "
            "traces. Remove it with its handle's remove(), or register it on single modules."
        )


def _check_forward(path: str, layer: Neuron) -> None:
    """Raise where a call of a layer is not ``Neuron``'s, which runs ``step``."""
    for name in ("forward", "forward_step"):
        if name in vars(layer) or getattr(type(layer), name) is not getattr(Neuron, name):
            raise ValueError(
                f"{layer_label(layer, path)} has a {name} of its own, and traces are derived from "
                "step alone. Put what it adds into step, or into a module before or behind the "
                "layer."
            )


def _changed_inside(layer: SequenceLayer, path: str) -> str:
    return (
        f"{layer_label(layer, path)} has its states changed inside forward(), where its traces "
        "cannot follow. Call the layer itself, and zero_states() of the learner instead."
    )


def states_of(layer: SequenceLayer) -> list[Tensor | None]:
    """Return the active states of a layer."""
    return [getattr(layer, name) for name in layer.active_states]


def _marks(layer: SequenceLayer) -> Marks:
    return [(state, None if state is None else version_of(state)) for state in states_of(layer)]


def _same(now: Marks, then: Marks) -> bool:
    return all(a is b and v == w for (a, v), (b, w) in zip(now, then, strict=True))


def _attachment(
    traces: Traces, layer: Neuron, ndim: int, dtype: torch.dtype, product: nn.Linear | None = None
) -> Attachment:
    learned = learned_parameters(layer.step_kwargs(ndim, dtype), layer.constraints)
    parameters = {name: learned[name] for name in traces.parameters if name in learned}
    return Attachment(traces, parameters, product)


def _is_uniform(derivative: Tensor | None) -> bool:
    return derivative is None or bool((derivative == derivative.flatten()[0]).all())
