"""Step a model with a learning rule in place of backpropagation through time: ``online``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tracetorch.core.checks import suggestion
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.walk import join_path, named_modules
from tracetorch.online_learning.dropped import DroppedPath, reached, reached_from
from tracetorch.online_learning.lanes import (
    LaneDerivatives,
    check_pointwise,
    is_close,
    lane_derivatives,
    learned_parameters,
)
from tracetorch.online_learning.products import Product, is_product
from tracetorch.online_learning.traces import Attachment, Contribution, Traces, attach
from tracetorch.probe.layers import neuron_layers, spike_functions
from tracetorch.snn.module import TTModule, zero_states
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.stateful_layer import layer_label
from tracetorch.snn.states import StateSnapshot
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import call, parse_inputs

Rule: TypeAlias = Literal["exact", "eprop", "ottt", "local"]

_Link: TypeAlias = tuple[str, nn.Linear]

_NO_TRACE = "earlier steps have no trace; within a step the gradient is exact"
_LOCAL = "earlier steps are constants"
_SPIKES = "a spike's own effects (reset, refractoriness, recurrent traces) are constants"
_SHARED = "its neurons share one trace, with the mean of their decays"
_MEAN = "what it does there later decays with the mean of the neurons' decays"
_RECURRENCE = "the outputs of the step before are constants"
_OPTION = "a parameter of a spike function, without a trace"


def online(model: nn.Module, rule: Rule = "exact") -> OnlineLearner:
    """Learn online: step a model so that ``backward()`` at each step needs no step before it.

    Instead of the graph of all steps, eligibility traces are carried along: the derivatives of
    every state by what drives it. With the states ``s`` of one lane (a neuron of a sample), which
    ``step`` maps to those of the next step, and a parameter or weight ``w``::

        e[t] = (ds[t] / ds[t-1]) e[t-1] + ds[t] / dw          a block of S x S for S states
        dloss[t] / dw = (dloss[t] / ds[t-1]) e[t-1] + (what one step's graph gives)

    ``step`` is differentiated by autograd, so any neuron with a pointwise ``step`` will do. There
    are traces for the parameters of every neuron layer, and for the weights of the ``nn.Linear`` or
    ``nn.Conv2d`` before it, where everything between the two is pointwise, and of a linear
    connection in :class:`~tracetorch.snn.Recurrent`. Memory does not depend on the number of
    steps; it is ``S * B * N * K`` values for ``N`` neurons with ``K`` inputs (``S * B * K`` with
    ``"ottt"``, and for a convolution one more factor, the places).

    The rules, from the most to the least exact:

    - ``"exact"``: real-time recurrent learning, in blocks. The gradients are those of
      backpropagation through time; where they cannot be, as with one neuron layer behind another,
      the first step raises and names the paths.
    - ``"eprop"``: the block with the spike functions' own derivatives left out: what a spike does
      to its own neuron later is a constant. Between layers gradients go through one step's graph.
    - ``"ottt"``: as ``"eprop"``, with one trace for all neurons of a layer, of its inputs alone.
    - ``"local"``: no traces; every state is a constant, so gradients know of one step alone.

    Args:
        model: any module with neuron layers, whose call is one step.
        rule: one of the four.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no neuron layer, or there is no such rule.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2))
        >>> learner = online(net)
        >>> for x in torch.rand(1000, 8, 4):
        ...     learner(x).square().sum().backward()  # adds this step's part to .grad
        >>> learner.dropped
        ()
        >>> learner.zero_states()

    Sources: Williams and Zipser, "A learning algorithm for continually running fully recurrent
    neural networks", Neural Computation 1 (1989); Bellec et al., "A solution to the learning
    dilemma for recurrent networks of spiking neurons", Nature Communications 11, 3625 (2020);
    Xiao et al., "Online training through time for spiking neural networks", NeurIPS 2022;
    ``"local"`` is the rule of Meng et al., "Towards memory- and time-efficient backpropagation for
    training spiking neural networks", ICCV 2023.
    """
    return OnlineLearner(model, rule)


class _Call(NamedTuple):
    """One call of a product: its input, its output's place in the graph, and its shape."""

    module: Product
    x: Tensor
    edge: GradientEdge
    shape: torch.Size


class _Filter(NamedTuple):
    """Traces of a layer, filtered by the layer behind the next product: derivatives of its states.

    Args:
        ndim, dtype: of the earlier layer's states, for its parameters.
    """

    traces: Traces
    ndim: int
    dtype: torch.dtype


class OnlineLearner(TTModule):
    """A model that is stepped with eligibility traces; :func:`online` describes the rules.

    A call is one step, and its output is part of a graph of this step alone. The states of before
    enter it as functions of the parameters whose derivatives are the traces, so an ordinary
    ``backward()`` gives the rule's gradients, at each step or of a sum over some of them. A layer
    may be given states before its first step; they are constants. After that,
    states are zeroed through the learner, so that traces go with them.

    Args:
        model: any module with neuron layers, whose call is one step.
        rule: ``"exact"``, ``"eprop"``, ``"ottt"`` or ``"local"``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no neuron layer, or there is no such rule.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2), Readout(2))
        >>> learner = OnlineLearner(net, "eprop")
        >>> learner(torch.rand(8, 4)).shape
        torch.Size([8, 2])
        >>> learner.dropped[0].origin, learner.dropped[0].layer
        ('1', '1')
        >>> [path.origin for path in learner.dropped if path.layer == "3"]
        ['0.bias', '0.weight', '1.raw_beta', '1.raw_pos_threshold']
    """

    def __init__(self, model: nn.Module, rule: Rule = "exact") -> None:
        super().__init__()
        self._layers = neuron_layers(model)
        if rule not in get_args(Rule):
            raise ValueError(
                f"there is no rule {rule!r}.{suggestion(rule, get_args(Rule))} There are "
                f"{', '.join(map(repr, get_args(Rule)))}."
            )
        self.model = model
        self.rule = rule
        self._traces: dict[str, Traces] = {}
        # of a layer, by the earlier layer and the product between the two
        self._filters: dict[str, dict[_Link, _Filter]] = {}
        self._left: dict[str, list[Tensor | None]] = {}
        self._dropped: dict[DroppedPath, None] = {}
        # what has been found out once: step is pointwise, and so is what is between two modules
        self._pointwise: set[str] = set()
        self._direct: dict[tuple[Any, ...], bool] = {}

    @property
    def dropped(self) -> tuple[DroppedPath, ...]:
        """The paths through time that the rule has dropped or changed, in the steps so far."""
        return tuple(self._dropped)

    def extra_repr(self) -> str:
        """Name the rule."""
        return f"rule={self.rule!r}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step of the model, and advance the traces.

        Raises:
            ValueError: gradients are disabled; a state was set from outside between two steps; a
                layer is called twice in a step, or its ``step`` is not pointwise; or the rule is
                ``"exact"`` and the gradients would not be. Nothing has been changed then.
        """
        if not torch.is_grad_enabled():
            raise ValueError(
                "an online learner needs gradients, which are disabled here. To evaluate, call the "
                "model itself, or tt.unroll(model, x, from_rest=True)."
            )
        step = _Step(self)
        before = StateSnapshot(self._layers.values())
        try:
            for path, layer in self._layers.items():
                step.enter(path, layer)
            with step.observed():
                y = self.model(*args, **kwargs)
            if self.rule == "exact" and step.dropped:
                paths = "\n  ".join(map(str, step.dropped))
                raise ValueError(
                    "the gradients cannot be exact online, for there are paths through time that "
                    f"no trace follows:\n  {paths}\nThey are dropped by rule='eprop'."
                )
        except BaseException:
            before.restore()
            raise
        self._traces, self._filters = step.traces, step.filters
        self._dropped.update(step.dropped)
        self._note_states()
        return y

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Set states and traces to zero, with ``where`` those of some samples.

        Args, Raises: as :meth:`TTModule.zero_states`.
        """
        super().zero_states(where=where)
        if where is None:
            self._traces, self._filters = {}, {}
        else:
            self._traces = {p: traces.restarted(where) for p, traces in self._traces.items()}
            self._filters = {
                path: {
                    link: each._replace(traces=each.traces.restarted(where))
                    for link, each in filters.items()
                }
                for path, filters in self._filters.items()
            }
        self._note_states()

    def detach_states(self) -> None:
        """Make constants of the states: the traces start anew from them."""
        super().detach_states()
        self._traces, self._filters = {}, {}
        self._note_states()

    def _note_states(self) -> None:
        self._left = {path: _states_of(layer) for path, layer in self._layers.items()}

    def certificate(self, batch: Sequence[Any], loss: Callable[..., Tensor]) -> dict[str, float]:
        """Compare the rule's gradients with those of backpropagation through time on a batch.

        Both start from rest, and nothing of the model or the learner is changed.

        Args:
            batch: a tuple of the input, as for ``tt.unroll``, and the other arguments of the loss.
            loss: ``loss(y, *rest)``, a scalar tensor, where ``y`` is the output ``[T, B, ...]``.

        Returns:
            The cosine between the two gradients by parameter: 1 where they agree in direction, 0
            where they have nothing in common, or where one of them is zero.

        Raises:
            TypeError: ``batch`` is not a tuple.
            ValueError: as :func:`tracetorch.unroll`, or as a step of the learner.

        Example:
            >>> net = nn.Sequential(nn.Linear(4, 9), LIF(9), nn.Linear(9, 2), Readout(2))
            >>> batch = torch.rand(20, 8, 4), torch.arange(8) % 2
            >>> def loss(y, target):
            ...     return nn.functional.cross_entropy(y.mean(0), target)
            >>> cosines = online(net, "eprop").certificate(batch, loss)
            >>> {name: round(cosine, 3) for name, cosine in cosines.items() if name[0] in "23"}
            {'2.weight': 1.0, '2.bias': 1.0, '3.raw_beta': 1.0}
        """
        if isinstance(batch, Tensor) or not isinstance(batch, Sequence) or not batch:
            raise TypeError(
                "batch must be a tuple of the input and the other arguments of the loss, (x, "
                f"target), got {'a tensor' if isinstance(batch, Tensor) else repr(batch)}."
            )
        x, *rest = batch
        inputs = parse_inputs(x, None, 0, True)
        parameters = {name: p for p, name in _named_parameters(self.model) if p.requires_grad}

        def gradients(y: Tensor) -> list[Tensor]:
            found = torch.autograd.grad(
                loss(y, *rest), list(parameters.values()), allow_unused=True, materialize_grads=True
            )
            return [each.detach() for each in found]

        with restored(self.model):
            expected = gradients(unroll(self.model, x, by="step", from_rest=True))
        with restored(self.model):
            zero_states(self.model)
            learner = OnlineLearner(self.model, self.rule)
            found = gradients(torch.stack([call(learner, each) for each in inputs.each_step()]))
        pairs = zip(found, expected, strict=True)
        return dict(zip(parameters, (_cosine(a, b) for a, b in pairs), strict=True))


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


class _Step:
    """One step of a learner in progress: what it has found, kept apart until it has succeeded."""

    def __init__(self, learner: OnlineLearner) -> None:
        self.learner = learner
        self.traces: dict[str, Traces] = {}
        self.filters: dict[str, dict[_Link, _Filter]] = {}
        self.dropped: dict[DroppedPath, None] = {}
        self._entered: dict[str, list[Tensor | None]] = {}
        self._calls: list[_Call] = []
        self._called: set[str] = set()
        self._outputs: dict[Any, _Output] = {}  # by their node in the graph

    def enter(self, path: str, layer: Neuron) -> None:
        """Cut the states of a layer from the last step's graph, and attach its traces to them."""
        states = _states_of(layer)
        traces = self.learner._traces.get(path)
        held = [state for state in states if state is not None]
        if held:
            if traces is None:
                replaced: Sequence[Tensor] = [state.detach() for state in held]
            else:
                left = self.learner._left[path]
                if any(now is not then for now, then in zip(states, left, strict=True)):
                    raise ValueError(
                        f"{layer_label(layer, path)} has other states than the learner's last step "
                        "left: its traces do not fit them. Call zero_states() or detach_states() "
                        "of the learner, not of the model."
                    )
                self.traces[path] = traces
                self.filters[path] = self.learner._filters.get(path, {})
                replaced = attach(self._attachments(path, layer, held[0]), held)
            for name, state in zip(layer.active_states, replaced, strict=True):
                setattr(layer, name, state)
        self._entered[path] = _states_of(layer)
        if not hasattr(layer, "step"):
            self.drop(path, path, _RECURRENCE)
        elif self.learner.rule == "local":
            self.drop(path, path, _LOCAL)

    def _attachments(self, path: str, layer: Neuron, state: Tensor) -> list[Attachment]:
        """List the traces of a layer's states: its own, and those of layers before it."""
        found = [_attachment(self.traces[path], layer, state.ndim, state.dtype)]
        for (earlier, product), (traces, ndim, dtype) in self.filters[path].items():
            neuron = self.learner._layers[earlier]
            found.append(_attachment(traces, neuron, ndim, dtype, product))
        return found

    def drop(self, origin: str, path: str, reason: str) -> None:
        """Note a path that is dropped."""
        self.dropped[DroppedPath(origin, path, reason)] = None

    def observed(self) -> Any:
        """Observe the calls of products and neuron layers within a block."""
        learner = self.learner
        if learner.rule == "local":
            return forward_hooks()
        layers = {p: layer for p, layer in learner._layers.items() if hasattr(layer, "step")}
        products = [m for _, m in named_modules(learner.model) if is_product(m)]
        return forward_hooks(
            before=[(layer, self._before(path)) for path, layer in layers.items()],
            after=[
                *((module, self._after_product) for module in products),
                *((layer, self._after_neuron(path)) for path, layer in layers.items()),
            ],
        )

    def _after_product(self, module: Product, args: Any, kwargs: Any, y: Tensor) -> None:
        if y.requires_grad:
            x = args[0] if args else kwargs["input"]
            self._calls.append(_Call(module, x, get_gradient_edge(y), y.shape))

    def _before(self, path: str) -> Callable[[Neuron, Any], None]:
        def hook(layer: Neuron, args: Any) -> None:
            states = zip(_states_of(layer), self._entered[path], strict=True)
            if any(now is not then for now, then in states):
                twice = path in self._called
                raise ValueError(
                    f"{layer_label(layer, path)} is called twice in one step, "
                    "which has one trace. Build a layer for each call."
                    if twice
                    else f"{layer_label(layer, path)} has its states changed inside forward(), "
                    "where its traces cannot follow. Call zero_states() of the learner instead."
                )

        return hook

    def _after_neuron(self, path: str) -> Callable[..., None]:
        learner = self.learner

        def hook(layer: Neuron, args: Any, kwargs: Any, output: Tensor) -> None:
            self._called.add(path)
            x = args[0] if args else kwargs["x"]
            dtype = layer.check_input(x)
            work = x.detach().to(dtype)
            entered = dict(zip(layer.active_states, self._entered[path], strict=True))
            states = [
                None if name not in entered else torch.zeros_like(work) if s is None else s.detach()
                for name in layer.states
                for s in [entered.get(name)]
            ]
            values = layer.step_kwargs(x.ndim, dtype)
            if path not in learner._pointwise:
                check_pointwise(layer, work, values, layer_label(layer, path))
                learner._pointwise.add(path)
            shared = learner.rule == "ottt"
            spikes = [] if learner.rule == "exact" else spike_functions(layer)
            block = lane_derivatives(layer, work, states, values, spikes)
            inputs, fed, leaves = self._inputs(path, x)
            # a layer behind follows this one's own parameters and products, not what is before
            before = [leaf for each in fed.values() for leaf in reached_from(each.output.edge.node)]
            traces = self.traces.get(path, Traces(shared))

            def of_output() -> Traces:
                own = lane_derivatives(layer, work, states, values, of_output=True)
                return traces.advanced(own, inputs)

            if output.requires_grad:
                edge = get_gradient_edge(output)
                self._outputs[edge.node] = _Output(
                    path, edge, output.shape, of_output, [*leaves, *before], x.ndim, dtype
                )
            self.traces[path] = traces.advanced(block, inputs)
            self.filters[path] = self._filtered(path, block, fed)
            self._note_dropped(path, layer, bool(spikes), inputs, leaves)

        return hook

    def _filtered(
        self, path: str, block: LaneDerivatives, fed: Mapping[_Link, _Feed]
    ) -> dict[_Link, _Filter]:
        """Advance the traces of the layers before the products that feed a layer."""
        held = self.filters.get(path, {})
        advanced: dict[_Link, _Filter] = {}
        for link in dict.fromkeys([*held, *fed]):
            traces, ndim, dtype = held.get(link, _Filter(Traces(False), 0, torch.float32))
            output, factor, own = Traces(False), torch.ones(()), block
            if link in fed:
                source, by_product, factor = fed[link]
                output, ndim, dtype = source.traces(), source.ndim, source.dtype
                by_input = [None if d is None else d * by_product.to(d) for d in block.by_input]
                own = block._replace(by_input=by_input)
            advanced[link] = _Filter(traces.filtered(output, factor, own), ndim, dtype)
            if not all(map(_is_uniform, [*own.by_input, *itertools.chain(*own.by_state)])):
                self.drop(link[0], path, _MEAN)
        return advanced

    def _note_dropped(
        self,
        path: str,
        layer: Neuron,
        spikes: bool,
        inputs: Sequence[Contribution],
        leaves: Sequence[Tensor],
    ) -> None:
        """Note what the rule and the traces of a layer leave out."""
        if spikes:
            self.drop(path, path, _SPIKES)
        if self.learner.rule == "ottt" and inputs:
            names = {id(m): p for p, m in named_modules(self.learner.model)}
            for each in inputs:
                self.drop(join_path(names[id(each.module)], "weight"), path, _SHARED)
        for name in layer.options:
            option = getattr(layer, name)
            if isinstance(option, nn.Module) and any(p.requires_grad for p in option.parameters()):
                self.drop(join_path(path, name), path, _OPTION)
        if leaves:
            known = {id(p): name for p, name in _named_parameters(self.learner.model)}
            for origin in sorted({known.get(id(leaf), "an input") for leaf in leaves}):
                self.drop(origin, path, _NO_TRACE)

    def _inputs(
        self, path: str, x: Tensor
    ) -> tuple[list[Contribution], dict[_Link, _Feed], list[Tensor]]:
        """Find the products that a layer's input came from, and the layers before those.

        Returns:
            The products; the layers before them; and the leaves of the graph that reach the layer
            by other paths.
        """
        found: list[Contribution] = []
        fed: dict[_Link, _Feed] = {}
        if not x.requires_grad:
            return found, fed, []
        calls = {each.edge.node: each for each in self._calls}
        met, leaves = reached([get_gradient_edge(x).node], calls.keys())
        for node in met:
            product = calls[node]
            factor = self._factor((path, product.module), x, product.edge, product.shape)
            if factor is None:
                leaves += reached_from(node)
                continue
            found.append(Contribution(product.module, product.x, factor))
            if not product.x.requires_grad:
                continue
            # traces of the layers before a product are filtered by e-prop and by the exact rule
            follows = type(product.module) is nn.Linear and self.learner.rule != "ottt"
            stops = self._outputs.keys() if follows else ()
            outputs, others = reached([get_gradient_edge(product.x).node], stops)
            leaves += others
            for end in outputs:
                output = self._outputs[end]
                link = output.path, product.module
                key = (output.path, path, product.module)
                through = self._factor(key, product.x, output.edge, output.shape)
                if through is None or link in fed:
                    leaves += reached_from(end)
                else:
                    fed[link] = _Feed(output, factor, through)
                    leaves += output.leaves
        return found, fed, leaves

    def _factor(
        self, key: tuple[Any, ...], y: Tensor, edge: GradientEdge, shape: torch.Size
    ) -> Tensor | None:
        """Differentiate a tensor by an earlier one; ``None`` where it is not lane by lane."""
        ones = torch.ones_like(y)
        if get_gradient_edge(y).node is edge.node:
            return ones
        direct = self.learner._direct
        if y.shape != shape or direct.get(key) is False:
            return None
        plain = _gradient(y, edge, ones)
        if key not in direct:
            # random signs pass through a diagonal as they are
            generator = torch.Generator().manual_seed(0)
            signs = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device).sign()
            direct[key] = is_close(_gradient(y, edge, signs), signs * plain)
        return plain if direct[key] else None


def _gradient(x: Tensor, edge: GradientEdge, cotangent: Tensor) -> Tensor:
    return torch.autograd.grad(x, [edge], cotangent, retain_graph=True)[0]


def _states_of(layer: Neuron) -> list[Tensor | None]:
    return [getattr(layer, name) for name in layer.active_states]


def _attachment(
    traces: Traces, layer: Neuron, ndim: int, dtype: torch.dtype, product: nn.Linear | None = None
) -> Attachment:
    learned = learned_parameters(layer.step_kwargs(ndim, dtype), layer.constraints)
    parameters = {name: learned[name] for name in traces.parameters if name in learned}
    return Attachment(traces, parameters, product)


def _is_uniform(derivative: Tensor | None) -> bool:
    return derivative is None or bool((derivative == derivative.flatten()[0]).all())


def _named_parameters(model: nn.Module) -> list[tuple[nn.Parameter, str]]:
    """List the parameters of a model, those of hidden modules too, each once."""
    found: dict[nn.Parameter, str] = {}
    for path, module in named_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            found.setdefault(parameter, join_path(path, name))
    return list(found.items())


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else 0.0
