"""Step a model with a learning rule in place of backpropagation through time: ``online``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tracetorch.core.checks import suggestion
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.walk import join_path, named_modules
from tracetorch.online_learning.dropped import DroppedPath, reached
from tracetorch.online_learning.lanes import (
    check_pointwise,
    is_close,
    lane_derivatives,
    learned_parameters,
)
from tracetorch.online_learning.products import Product, is_product
from tracetorch.online_learning.traces import Contribution, Traces, attach
from tracetorch.probe.layers import neuron_layers, spike_functions
from tracetorch.snn.module import TTModule, zero_states
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.stateful_layer import layer_label
from tracetorch.snn.states import StateSnapshot
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import call, parse_inputs

Rule: TypeAlias = Literal["exact", "eprop", "ottt", "local"]

_NO_TRACE = "earlier steps have no trace; within a step the gradient is exact"
_LOCAL = "earlier steps are constants"
_SPIKES = "a spike's own effects (reset, refractoriness, recurrent traces) are constants"
_SHARED = "its neurons share one trace, with the mean of their decays"
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
        self._left: dict[str, list[Tensor | None]] = {}
        self._dropped: dict[DroppedPath, None] = {}
        # what has been found out once: step is pointwise, and so is what is between two modules
        self._pointwise: set[str] = set()
        self._direct: dict[tuple[str, Product], bool] = {}

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
        self._traces = step.traces
        self._dropped.update(step.dropped)
        self._note_states()
        return y

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Set states and traces to zero, with ``where`` those of some samples.

        Args, Raises: as :meth:`TTModule.zero_states`.
        """
        super().zero_states(where=where)
        if where is None:
            self._traces = {}
        else:
            self._traces = {p: traces.restarted(where) for p, traces in self._traces.items()}
        self._note_states()

    def detach_states(self) -> None:
        """Make constants of the states: the traces start anew from them."""
        super().detach_states()
        self._traces = {}
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


class _Step:
    """One step of a learner in progress: what it has found, kept apart until it has succeeded."""

    def __init__(self, learner: OnlineLearner) -> None:
        self.learner = learner
        self.traces: dict[str, Traces] = {}
        self.dropped: dict[DroppedPath, None] = {}
        self._entered: dict[str, list[Tensor | None]] = {}
        self._calls: list[_Call] = []
        self._called: set[str] = set()

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
                replaced = attach(traces, _learned(layer, held[0].ndim, held[0].dtype), held)
            for name, state in zip(layer.active_states, replaced, strict=True):
                setattr(layer, name, state)
        self._entered[path] = _states_of(layer)
        if not hasattr(layer, "step"):
            self.drop(path, path, _RECURRENCE)
        elif self.learner.rule == "local":
            self.drop(path, path, _LOCAL)

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
            inputs = self._inputs(path, x)
            traces = self.traces.get(path, Traces(shared))
            self.traces[path] = traces.advanced(block, inputs)
            self._note_dropped(path, layer, bool(spikes), inputs)

        return hook

    def _note_dropped(
        self, path: str, layer: Neuron, spikes: bool, inputs: Sequence[Contribution]
    ) -> None:
        """Note what the rule and the traces leave out of a layer itself."""
        names = {id(m): p for p, m in named_modules(self.learner.model)}
        if spikes:
            self.drop(path, path, _SPIKES)
        if self.learner.rule == "ottt":
            for each in inputs:
                self.drop(join_path(names[id(each.module)], "weight"), path, _SHARED)
        for name in layer.options:
            option = getattr(layer, name)
            if isinstance(option, nn.Module) and any(p.requires_grad for p in option.parameters()):
                self.drop(join_path(path, name), path, _OPTION)

    def _inputs(self, path: str, x: Tensor) -> list[Contribution]:
        """Find the products that a layer's input came from; note all else that reaches it."""
        if not x.requires_grad:
            return []
        calls = {each.edge.node: each for each in self._calls}
        root = get_gradient_edge(x)
        met, leaves = reached([root.node], calls.keys())
        found: list[Contribution] = []
        for node, each in calls.items():
            if node not in met:
                continue
            factor = self._factor(path, x, each, root.node is node)
            if factor is None:
                leaves += reached([parent for parent, _ in node.next_functions], ())[1]
            else:
                found.append(Contribution(each.module, each.x, factor))
                if each.x.requires_grad:
                    leaves += reached([get_gradient_edge(each.x).node], ())[1]
        names = {id(p): name for p, name in _named_parameters(self.learner.model)}
        for origin in sorted({names.get(id(leaf), "an input") for leaf in leaves}):
            self.drop(origin, path, _NO_TRACE)
        return found

    def _factor(self, path: str, x: Tensor, each: _Call, same: bool) -> Tensor | None:
        """Differentiate a layer's input by a product's output; ``None`` if not lane by lane."""
        ones = torch.ones_like(x)
        if same:
            return ones
        direct = self.learner._direct
        key = path, each.module
        if x.shape != each.shape or direct.get(key) is False:
            return None
        plain = _gradient(x, each.edge, ones)
        if key not in direct:
            generator = torch.Generator().manual_seed(0)
            signs = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device).sign()
            direct[key] = is_close(_gradient(x, each.edge, signs), signs * plain)
        return plain if direct[key] else None


def _gradient(x: Tensor, edge: GradientEdge, cotangent: Tensor) -> Tensor:
    return torch.autograd.grad(x, [edge], cotangent, retain_graph=True)[0]


def _states_of(layer: Neuron) -> list[Tensor | None]:
    return [getattr(layer, name) for name in layer.active_states]


def _learned(layer: Neuron, ndim: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return learned_parameters(layer.step_kwargs(ndim, dtype), layer.constraints)


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
