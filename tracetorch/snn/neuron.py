"""``Neuron``: a layer with a pure ``step``, the parameters it declares, and one call per step."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from tracetorch.core.double_backward import explain_double_backward
from tracetorch.core.hooks import hooked_weights
from tracetorch.core.snapshot import restored_on_error
from tracetorch.core.thread_owner import check_thread, release, take
from tracetorch.core.torch_private import (
    NO_BACKWARD,
    current_backward,
    exclude_from_compile,
    has_values,
)
from tracetorch.core.walk import Opaque
from tracetorch.fuse.dispatch.prepared_sequence import OwnMethods, PreparedSequences
from tracetorch.fuse.dispatch.sequence import run_sequence
from tracetorch.fuse.dispatch.single_step import SingleStepCache
from tracetorch.fuse.step_results import check_step_results, share_memory
from tracetorch.snn.lost_writes import warn_of_lost_writes
from tracetorch.snn.parameters import (
    DECAY,
    THRESHOLD,
    UNSET,
    WEIGHT,
    Clamp,
    Constraint,
    Decay,
    DecaySetup,
    NegativeThreshold,
    Rank,
    SpikeFunction,
    Threshold,
    ThresholdSetup,
    Value,
    Weight,
    WeightSetup,
    constraint_gradient,
    fraction,
    negative_softplus,
    resolve_setup,
)
from tracetorch.snn.representation import constructor_call
from tracetorch.snn.stateful_layer import (
    ARITHMETIC_DTYPE,
    StatefulLayer,
    StateSnapshot,
    running,
)
from tracetorch.snn.unknown_arguments import check_arguments

StepKwargs = Callable[[int, torch.dtype], dict[str, Any]]
Check = Callable[[str, object], object]

N = TypeVar("N", bound="Neuron")


# of the dtypes in which an output is narrower than the arithmetic
_SIGNIFICANT_BITS = {torch.bfloat16: 8, torch.float16: 11}

# of each class what was found to fit: its step, which may be edited in place, states and inputs
_checked_classes: WeakKeyDictionary[type[Neuron], tuple[object, ...]] = WeakKeyDictionary()


class Declarations(Opaque):
    """The declarations of a layer: the constraint of every parameter, the names of its options.

    Those in ``fixed`` cannot be assigned anew, those in ``checks`` only what these return.
    """

    def __init__(self) -> None:
        self.constraints: dict[str, Constraint] = {}
        self.kinds: dict[str, type[Weight]] = {}
        self.options: tuple[str, ...] = ()
        self.fixed: tuple[str, ...] = ()
        self.checks: dict[str, Check] = {}


class _ConstructorSignature:
    """The signature of a class, that of its ``__init__``; instances have none of their own.

    Python 3.10 would show that of ``__new__`` for a class whose ``__init__`` is a base's.
    """

    def __get__(self, layer: object, kind: type) -> inspect.Signature:
        if layer is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(kind.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Neuron(StatefulLayer):
    """A layer of neurons that all follow one ``step``.

    A subclass lists its ``states``, declares its parameters in ``__init__`` with :meth:`decay`,
    :meth:`threshold`, :meth:`weight`, :meth:`gate` and :meth:`option`, states that start from other
    values than zero with :meth:`state`, and writes ``step`` as a static method, once, in pointwise
    PyTorch::

        step(x, <states>, *, <parameters and options by name>) -> (output, <states>)

    A neuron with several inputs lists them all, ``inputs = ("x", "modulator")``; ``step`` takes
    them in this order before the states, and so does a call, ``layer(x, modulator)`` or
    ``layer(x, modulator=modulator)``. What broadcasts to the shape of ``x`` is admitted. An input
    of whose name the layer holds a module is not passed: it is what that module computes from
    ``x``, such as the numbers of a :class:`Noise`.

    A parameter reads as it is used, ``layer.beta``, and is set by assignment, ``layer.beta = 0.5``:
    what is written into the value in place is lost.

    Calling the layer runs one time step. States are ``None`` until the first input, then tensors
    shaped like it; they live on the layer as plain attributes, follow ``.to()``, stay out of the
    ``state_dict``, and are copied, detached, by ``pickle`` and ``copy.deepcopy``.

    The arithmetic is float32 for bfloat16 and float16 inputs, otherwise in the input's dtype; the
    states have the arithmetic's dtype, the output has the input's.

    E-prop (``tt.online``) leaves the reset out. Which states a spike resets is found from ``step``;
    where that is not what is meant, the class lists them, ``reset_states = ("mem",)``.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step: -1 for ``[B, N]``, -3 for
            ``[B, C, H, W]``.

    Shape:
        Input and output have one shape, any that has ``num_neurons`` at ``dim``.

    Raises:
        TypeError: an argument or the input is of the wrong type; the input is not a
            floating-point tensor.
        ValueError: an argument is out of range; ``step`` does not take the states by their names
            and in their order; the input lacks ``dim``, has another size there, or does not fit the
            states that the layer holds.

    Example:
        >>> class AdaptiveLIF(Neuron):
        ...     states = ("mem", "fatigue")
        ...
        ...     def __init__(self, num_neurons, dim=-1):
        ...         super().__init__(num_neurons, dim)
        ...         self.decay("beta", 0.9)
        ...         self.threshold("base", 1.0)
        ...
        ...     @staticmethod
        ...     def step(x, mem, fatigue, *, beta, base, spike):
        ...         mem = beta * mem + x
        ...         fired = spike(mem - base - fatigue)
        ...         return fired, mem - fired * base, 0.95 * fatigue + 0.1 * fired
        >>> layer = AdaptiveLIF(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).tolist()
        [[0.0, 1.0]]
        >>> layer.fatigue.tolist()
        [[0.0, 0.10000000149011612]]

    """

    __signature__ = _ConstructorSignature()
    inputs: ClassVar[tuple[str, ...]] = ("x",)
    reset_states: ClassVar[tuple[str, ...] | None] = None
    """The states that a spike resets, for e-prop (``tt.online``); ``None``: found from ``step``."""
    step: ClassVar[Callable[..., tuple[Any, ...]]]

    layer_pass: Callable[..., Tensor] | None
    """What a call does instead of one step while ``tt.unroll`` runs the model by layer."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor: ...  # noqa: D102 (nn.Module's, typed)

    def __new__(cls: type[N], *args: Any, **kwargs: Any) -> N:
        """Remember the constructor call, for ``repr``; raise for arguments it does not have."""
        check_arguments(cls, kwargs)
        layer = super().__new__(cls)
        if args or kwargs:
            object.__setattr__(layer, "_call", constructor_call(cls, args, kwargs))
        return layer

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self._declared = Declarations()
        self._single_steps = SingleStepCache()
        self._sequences = PreparedSequences()
        self.layer_pass = None
        kind: Any = type(self)
        step = getattr(kind, "step", None)
        declared = (step, getattr(step, "__code__", None), kind.states, kind.inputs)
        if _checked_classes.get(kind) != declared:
            self._check_step()
            _checked_classes[kind] = declared

    def _check_step(self) -> None:
        """Raise where ``step`` takes inputs or states by other names or in another order."""
        label, states, inputs = type(self).__name__, type(self).states, type(self).inputs
        if not isinstance(inputs, tuple) or inputs[:1] != ("x",):
            raise TypeError(
                f"{label}.inputs must be a tuple of names that begins with 'x', got {inputs!r}."
            )
        for name in inputs:
            self._check_name(name)
        reset = type(self).reset_states
        if reset is not None and (isinstance(reset, str) or not set(reset) <= set(states)):
            raise ValueError(
                f"{label}.reset_states must be a tuple of names from {states}, got {reset!r}."
            )
        step = getattr(self, "step", None)
        try:
            parameters = inspect.signature(step).parameters.values()  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return  # a layer without a step, or a callable without a signature
        if any(each.kind is each.VAR_POSITIONAL for each in parameters):
            return
        names = [
            each.name
            for each in parameters
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]
        further = inputs[1:]
        # without a * behind the states, parameters follow; those are passed by name
        first = 1 + len(further)
        given, taken = tuple(names[1:first]), tuple(names[first : first + len(states)])
        if given != further:
            raise ValueError(
                f"{label}.inputs is {inputs}, but {label}.step takes {given} after "
                f"{''.join(names[:1])}. It receives the inputs by position, before the states: "
                "name them alike, in one order."
            )
        if taken != states:
            raise ValueError(
                f"{label}.states is {states}, but {label}.step takes {taken} after {inputs[-1]}. "
                "It receives the states by position: name them alike, in one order."
            )

    # Declaring

    def state(self, name: str, init: Value) -> None:
        """Declare the initial value of a state: what it is before the first step; zero if left out.

        It is the buffer ``initial_<name>``, and so moves along and is in the ``state_dict``.
        ``zero_states()`` returns to it.

        Args:
            name: one of ``states``.
            init: a number, or a tensor of rank 0 or 1 (one value per neuron).

        Example:
            >>> class Resting(Neuron):
            ...     states = ("v",)
            ...
            ...     def __init__(self, num_neurons):
            ...         super().__init__(num_neurons)
            ...         self.state("v", init=-65.0)
            ...
            ...     @staticmethod
            ...     def step(x, v):
            ...         return v, v + x
            >>> layer = Resting(2)
            >>> layer(torch.ones(1, 2)).tolist(), layer.v.tolist()
            ([[-65.0, -65.0]], [[-64.0, -64.0]])

        """
        if name not in type(self).states:
            raise ValueError(
                f"{type(self).__name__} has no state {name!r} to give an initial value: its states "
                f"are {type(self).states}."
            )
        self._check_name(f"initial_{name}")
        setup = resolve_setup(f"init of {name}", init, Weight(0.0, 0, False))
        self.register_buffer(f"initial_{name}", setup.raw(f"init of {name}", self.num_neurons))

    def decay(
        self,
        name: str,
        value: DecaySetup = 0.9,
        *,
        rank: Rank = 1,
        learnable: bool = True,
    ) -> None:
        """Declare a parameter in (0, 1), ``sigmoid(raw_<name>)``.

        Args:
            name: the argument of ``step`` that receives it.
            value: a number, a tensor of rank 0 or 1, or a whole setup (a dict or a :class:`Decay`).
            rank: 0 for one value in the layer, 1 for one per neuron.
            learnable: an ``nn.Parameter`` if true, a buffer if not.

        """
        default = Decay(DECAY.value, rank, learnable, DECAY.use_averaging)
        self._declare(name, resolve_setup(name, value, default), Decay.constraint)

    def gate(
        self,
        name: str,
        value: DecaySetup = 0.5,
        *,
        rank: Rank = 1,
        learnable: bool = True,
    ) -> None:
        """Declare a parameter in (0, 1) that is no decay, ``sigmoid(raw_<name>)``.

        As :meth:`decay`, but nothing reads a half-life off it.

        Args:
            name: the argument of ``step`` that receives it.
            value: a number, a tensor of rank 0 or 1, or a whole setup (a dict or a :class:`Decay`).
            rank: 0 for one value in the layer, 1 for one per neuron.
            learnable: an ``nn.Parameter`` if true, a buffer if not.

        """
        default = Decay(0.5, rank, learnable, DECAY.use_averaging)
        self._declare(name, resolve_setup(name, value, default), fraction)

    def threshold(
        self,
        name: str,
        value: ThresholdSetup = 1.0,
        *,
        rank: Rank = 1,
        learnable: bool = True,
        surrogate: SpikeFunction | None = None,
        spike: str = "spike",
        negative: bool = False,
    ) -> None:
        """Declare a positive parameter, ``softplus(raw_<name>)``, and its spike function.

        Args:
            name: the argument of ``step`` that receives the threshold.
            value: a number, a tensor of rank 0 or 1, or a whole setup (a dict or a
                :class:`Threshold`).
            rank: 0 for one value in the layer, 1 for one per neuron.
            learnable: an ``nn.Parameter`` if true, a buffer if not.
            surrogate: the spike function, ``u -> spikes``; ``atan_surrogate(2.0)`` if left out.
            spike: the argument of ``step`` that receives the spike function.
            negative: the threshold lies below zero, ``-softplus(raw_<name>)``; ``value`` is its
                magnitude.

        """
        default = Threshold(
            THRESHOLD.value,
            rank,
            learnable,
            THRESHOLD.surrogate if surrogate is None else surrogate,
        )
        setup = resolve_setup(name, value, default)
        self._declare(name, setup, negative_softplus if negative else Threshold.constraint)
        if negative:
            self._declared.kinds[name] = NegativeThreshold
        self.option(spike, setup.surrogate)

    def weight(
        self,
        name: str,
        value: WeightSetup = 0.0,
        *,
        rank: Rank = 1,
        learnable: bool = True,
        low: float | None = None,
        high: float | None = None,
        above: str | None = None,
    ) -> None:
        """Declare a parameter that is ``raw_<name>`` itself, held between bounds if there are any.

        Where learning leads ``raw_<name>`` out of the bounds, the value stays at the nearest one,
        and the gradient passes, so that it can come back.

        Args:
            name: the argument of ``step`` that receives it.
            value: a number, a tensor of rank 0 or 1, or a whole setup (a dict or a
                :class:`Weight`).
            rank: 0 for one value in the layer, 1 for one per neuron.
            learnable: an ``nn.Parameter`` if true, a buffer if not.
            low: the least value; ``None`` for no bound.
            high: the largest value; ``None`` for no bound.
            above: another parameter, declared before, that every value lies above.

        Raises:
            ValueError: the value is out of its bounds, or not finite.

        """
        default = Weight(WEIGHT.value, rank, learnable)
        clamp = Clamp(low, high, above)
        constraint = Weight.constraint if clamp == Clamp() else clamp
        self._declare(name, resolve_setup(name, value, default), constraint)
        raw = getattr(self, f"raw_{name}").detach()
        if clamp == Clamp() or raw.is_meta:
            return
        held = self.constrained(name, raw)
        if not torch.equal(raw, held):
            ends = [f"at least {low:g}"] if low is not None else []
            ends += [f"at most {high:g}"] if high is not None else []
            ends += [f"above {above}"] if above is not None else []
            given = raw[raw != held][0].item()
            raise ValueError(f"{name} must be {' and '.join(ends)}, got {given:g}.")

    def option(
        self, name: str, value: object, *, fixed: bool = False, check: Check | None = None
    ) -> None:
        """Declare a constant that ``step`` receives: a flag, a word, a number, a spike function.

        It becomes an attribute of that name and may be assigned anew; a module (a surrogate with a
        learnable slope, say) is registered as one, a tensor as a buffer, so that it moves along.

        Args:
            name: the argument of ``step`` that receives it.
            value: the constant.
            fixed: it cannot be assigned anew, for tensors of the layer have its size, or, where it
                is ``None``, for the layer lacks this part.
            check: ``check(name, value)`` returns the constant, here and when it is assigned anew,
                or raises; a function of a module, so that layers can be pickled.

        """
        self._check_name(name)
        if check is not None:
            value = check(name, value)
            self._declared.checks[name] = check
        if isinstance(value, Tensor):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)
        self._declared.options += (name,)
        if fixed:
            self._declared.fixed += (name,)

    def _declare(self, name: str, setup: Weight, constraint: Constraint) -> None:
        self._check_name(name)
        raw = setup.raw(name, self.num_neurons)
        if setup.learnable:
            self.register_parameter(f"raw_{name}", nn.Parameter(raw))
        else:
            self.register_buffer(f"raw_{name}", raw)
        self._declared.constraints[name] = constraint
        self._declared.kinds[name] = type(setup)

    # Reading

    @property
    def passed_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that a call passes; modules of the layer compute the others."""
        modules = self._modules
        return tuple([n for n in self.inputs if n == "x" or modules.get(n) is None])

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the constants that ``step`` receives."""
        return self._declared.options

    @property
    def constraints(self) -> Mapping[str, Constraint]:
        """The constraint of every parameter, by name; ``value = constraint(raw_<name>)``."""
        return self._declared.constraints

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Names of the tensors that the parameters are constrained from."""
        return tuple([f"raw_{name}" for name in self._declared.constraints])

    def constrained(self, name: str, raw: Tensor) -> Tensor:
        """Return the value of a parameter that follows from a raw one.

        Args:
            name: the parameter.
            raw: what to constrain, as ``raw_<name>``.

        """
        constraint = self._declared.constraints[name]
        if isinstance(constraint, Clamp) and constraint.above is not None:
            other = getattr(self, f"raw_{constraint.above}").to(raw)
            return constraint(raw, self.constrained(constraint.above, other))
        return constraint(raw)

    def step_kwargs(self, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
        """Return the keyword arguments of ``step``: parameters, shaped to broadcast, and options.

        Args:
            ndim: number of dimensions of the tensor of one step.
            dtype: dtype of the arithmetic; raw parameters are cast to it before the constraint.

        """
        trailing = -self.dim - 1 if self.dim < 0 else ndim - self.dim - 1
        kwargs: dict[str, Any] = {}
        parameters = self._parameters
        for name in self._declared.constraints:
            raw = parameters.get(f"raw_{name}")
            if raw is None:  # a buffer, or a parametrization
                raw = getattr(self, f"raw_{name}")
            value = self.constrained(name, raw.to(dtype))
            kwargs[name] = value.reshape(-1, *[1] * trailing) if value.ndim and trailing else value
        for name in self._declared.options:
            kwargs[name] = getattr(self, name)
        return kwargs

    @property
    def transient_attributes(self) -> frozenset[str]:
        """The states, and what else a step changes (notes that hold for one call)."""
        notes = (
            "_single_steps",
            "_doubtful_step",
            "_sequences",
            "_takes_steps",
            "_zeroed_in_backward",
            "_zeroed_in_trace",
            "layer_pass",
        )
        return frozenset((*self.active_states, *notes, "step_kwargs"))

    @contextmanager
    def override_step_kwargs(self, replacement: StepKwargs) -> Iterator[None]:
        """Let ``replacement(ndim, dtype)`` give the step kwargs within a block.

        An export makes the parameters constants of a program in this way.

        Args:
            replacement: called instead of :meth:`step_kwargs`.
        """
        attributes = vars(self)
        previous = attributes.get("step_kwargs")  # overrides may nest
        attributes["step_kwargs"] = replacement
        try:
            yield
        finally:
            if previous is None:
                del attributes["step_kwargs"]
            else:
                attributes["step_kwargs"] = previous

    def __getattr__(self, name: str) -> Any:
        if name in type(self).states and self.__dict__.get("layer_pass") is not None:
            check_thread(self)
            # a pass by layer has set the states aside, for those of one step are not known
            raise ValueError(
                f"{self.label()} runs all of its time steps at once, so a forward cannot read its "
                f'state {name} of one step. Use tt.unroll(..., by="step").'
            )
        declared = self.__dict__.get("_declared")
        if declared is not None and name in declared.constraints:
            raw = getattr(self, f"raw_{name}")
            value = self.constrained(name, raw)
            if value is not raw:
                warn_of_lost_writes(self, name, value)
            return value
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        declared = self.__dict__.get("_declared")
        if declared is not None and name in declared.constraints:
            if not torch.compiler.is_compiling() and _assigned_by_torch():
                constraint = declared.constraints[name].__name__
                raise AttributeError(
                    f"{name} follows from raw_{name}: it is {constraint}(raw_{name}). Give "
                    f"functional_call raw_{name}, through which gradients flow."
                )
            self._assign(name, value)
            return
        if declared is not None and name in declared.fixed:
            if self.__dict__.get(name, UNSET) is None:
                if value is None:
                    return
                raise AttributeError(
                    f"{self!r} has no {name}: the constructor has left it out, and the states that "
                    "it needs. Build a layer that has it."
                )
            raise AttributeError(
                f"{name} is fixed by the constructor: tensors of the layer have its size. Build "
                "another layer."
            )
        if declared is not None and name in declared.checks:
            value = declared.checks[name](name, value)
        super().__setattr__(name, value)

    @exclude_from_compile
    def _assign(self, name: str, value: Any) -> None:
        """Write the raw tensor of a parameter in place, so that the parameter reads ``value``.

        Its rank, and the optimizer that holds the raw tensor, stay as they are.
        """
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} of {self!r} was given a tensor with a gradient, and none flows through an "
                "assignment. Give value.detach(), or assign under torch.no_grad(); what is to be "
                f"learned is raw_{name}."
            )
        raw_name, raw = f"raw_{name}", self._raw_of(name, value)
        if raw_name in self.__dict__:
            raise ValueError(
                f"{self.label()} computes {raw_name} before every call, by pruning or a norm of "
                f"weights; what is assigned to {name} would not last. Remove that first."
            )
        current = getattr(self, raw_name)
        if raw.is_meta and not current.is_meta:
            raise ValueError(
                f"{self.label()} was given a tensor on the meta device as {name}: it has no values."
            )
        if raw.ndim > current.ndim:
            raise ValueError(
                f"{self.label()} has one {name} for all neurons, got {len(raw)} values. Give one "
                "number, or build the layer with rank 1."
            )
        wanted = self._declared.kinds.get(name, Weight).constraint(raw.double())
        stored = current is self._parameters.get(raw_name, self._buffers.get(raw_name))
        written = [current] if stored else [*self.parameters(), *self.buffers()]
        with torch.no_grad(), restored_on_error(written):
            if stored:
                current.copy_(raw)
            else:  # by the right inverse of its parametrization
                setattr(self, raw_name, raw.to(current).expand_as(current).clone())
            found = self.constrained(name, getattr(self, raw_name))
            tolerance = min(100 * torch.finfo(found.dtype).eps, 0.1)
            if has_values(found) and not torch.allclose(
                found.double(), wanted.to(found.device).expand_as(found), tolerance, 1e-6
            ):
                raise ValueError(
                    f"{self.label()} cannot have {value} as {name}: out of its bounds, it would "
                    f"be {found.tolist()}."
                )

    def _raw_of(self, name: str, value: Any) -> Tensor:
        """Return the raw tensor of a value, checked as a constructor checks it."""
        return self._declared.kinds[name](value, 0).raw(name, self.num_neurons)

    def __dir__(self) -> list[str]:
        """List the parameters by name too, and leave out the parts that the layer does not have."""
        names: set[str] = set(super().__dir__())  # type: ignore[no-untyped-call]
        names.discard("__signature__")  # of the class alone
        attributes = self.__dict__
        if "_declared" in attributes:
            names.update(self.constraints)
            names.difference_update(set(self.states).difference(self.active_states))
            names.difference_update(n for n in self.options if attributes.get(n, n) is None)
        return sorted(names)

    def __repr__(self) -> str:
        call = self.__dict__.get("_call", f"{type(self).__name__}(...)")
        inner = super().__repr__() if self._modules else ""
        return f"{call}{inner[inner.index('(') :]}" if inner else call

    def __getstate__(self) -> dict[str, Any]:
        # compiled steps belong to this process and this layer
        return {
            **super().__getstate__(),
            "_single_steps": SingleStepCache(),
            "_sequences": PreparedSequences(),
            "layer_pass": None,
        }

    # Calling

    def forward(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor:
        """Run one time step; inside ``tt.unroll`` by layer all of them, folded into the batch."""
        try:
            several = bool(further or named) or len(self.inputs) > 1
        except fx.proxy.TraceError:  # traced as the root: all arguments are stand-ins
            self._check_fx(x)
            raise
        return self._forward_several(x, further, named) if several else self._forward(x)

    def _forward_several(
        self, x: Tensor, given: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> Tensor:
        """Run the modules that compute inputs, and then the layer."""
        if self.layer_pass is not None or torch.compiler.is_compiling():
            return self._forward(x, *self._all_further(x, given, named))
        check_thread(self)  # before anything is taken that would be restored
        within = [each for each in self.modules() if isinstance(each, StatefulLayer)]
        before = StateSnapshot(each for each in within if each is not self)
        try:
            return self._forward(x, *self._all_further(x, given, named))
        except BaseException:
            before.restore()  # a failed call changes no state, those of noise included
            raise

    def _forward(self, x: Tensor, *further: Tensor) -> Tensor:
        if self.layer_pass is not None:
            if not torch.compiler.is_dynamo_compiling():
                check_thread(self)
            return self.layer_pass(self, x, *further)
        if torch.compiler.is_compiling() or not self.states:
            return self.forward_step(x, *further)
        if running.by_layer:
            raise ValueError(
                f"{self!r} cannot be reached through the attributes of the model that runs by "
                "layer, only through a closure or a global: it would take all time steps for one "
                'batch. Hold it in an attribute, or use tt.unroll(..., by="step").'
            )
        outermost = take(self)
        try:
            return self.forward_step(x, *further)
        finally:
            if outermost:
                release(self)

    def _all_further(
        self, x: Tensor, given: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the inputs after ``x``: those that were given, and those that modules compute."""
        passed = self.passed_inputs[1:]
        # by position first, as the arguments of any function
        values = {**dict(zip(passed, given, strict=False)), **named}
        if len(given) + len(named) != len(passed) or values.keys() != set(passed):
            by_name = "".join(f" and {name}" for name in named)
            raise TypeError(
                f"{self.label()} takes ({', '.join(('x', *passed))}), got {1 + len(given)} "
                f"inputs{by_name}. A module of the layer computes an input if it has its name."
            )
        further = []
        for name in self.inputs[1:]:
            further.append(values[name] if name in values else getattr(self, name)(x))
        return tuple(further)

    def _working(
        self, x: Tensor, further: Sequence[Tensor], dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        """Return all inputs in the dtype of the arithmetic and the shape of ``x``, checked."""
        if len(further) != len(self.inputs) - 1:
            raise TypeError(
                f"{self.label()} takes ({', '.join(self.inputs)}), got {1 + len(further)} inputs."
                + (
                    " Call the layer itself, or tt.unroll(layer, x)."
                    if len(self.inputs) > 1
                    else ""
                )
            )
        work = [x.to(dtype)]
        for name, value in zip(self.inputs[1:], further, strict=True):
            if not isinstance(value, Tensor) or value.dtype not in ARITHMETIC_DTYPE:
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"{self.label()} takes floating-point tensors as inputs, got {got} as {name}."
                )
            if value.shape != x.shape:
                sizes = zip(reversed(value.shape), reversed(x.shape), strict=False)
                if value.ndim > x.ndim or any(a not in (1, b) for a, b in sizes):
                    raise ValueError(
                        f"{self.label()} takes inputs of one shape; {name} has the shape "
                        f"{list(value.shape)}, which does not broadcast to {list(x.shape)} of x."
                    )
                value = value.expand(x.shape)
            work.append(value.to(dtype))
        return tuple(work)

    def _kwargs_for(self, x: Tensor, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
        """Return the step kwargs; ``output_bits`` among them is that of ``x``."""
        kwargs = self.step_kwargs(ndim, dtype)
        if x.dtype is not dtype and "output_bits" in kwargs:
            kwargs["output_bits"] = _SIGNIFICANT_BITS[x.dtype]
        return kwargs

    def forward_step(self, x: Tensor, *further: Tensor) -> Tensor:
        """Run one time step; compiled where there is no graph to build."""
        if (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not further
            and len(self.inputs) == 1
            and not self._doubtful_step  # the second step tells, and a compiled one checks nothing
        ):
            output = self._single_steps.run(self, x)
            if output is not None:
                return output
        dtype = self.check_input(x)
        states = self.states_for(x, dtype)
        work = self._working(x, further, dtype)
        kwargs = self._kwargs_for(x, x.ndim, dtype)
        results = self.step(*work, *states, **kwargs)
        output, ends = check_step_results(self, work, results)
        # a later in-place operation on the output must reach neither an input nor a state of before
        if any(share_memory(output, each) for each in (*work, *states) if each is not None):
            output = output.clone()
        output, *values = explain_double_backward([output, *ends.values()])
        # assigned last and all together, so that a failed call changes nothing
        for name, value in zip(ends, values, strict=True):
            setattr(self, name, value)
        return output.to(x.dtype)

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = (), *, further: Sequence[Tensor] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` at once: what a loop over them computes.

        Steps of arithmetic, comparisons and roots, as those of all layers here, give the same bits.
        Functions such as ``exp`` and ``log`` may differ in the last places: compiled steps call
        other libraries than PyTorch does. Gradients are summed in another order.

        It starts from the states the layer holds, initial ones where it holds none, and leaves the
        last ones in it, part of the graph; so a sequence cut anywhere gives the same outputs and
        gradients. When it fails the layer is as before.

        Args:
            x: the inputs ``[T, ...]``.
            record: names of states whose trajectories are wanted too.
            further: the inputs after ``x``, in the order of ``inputs``.

        Shape:
            ``x`` and the outputs ``[T, ...]`` in one dtype; each trajectory ``[T, ...]`` in the
            dtype of the states.

        Raises:
            TypeError, ValueError: as the layer itself; or it has no such state to record.
            RuntimeError: a backend requested by name cannot run the layer.

        Example:
            >>> layer = LIF(3, beta=0.5)
            >>> outputs, states = layer.forward_sequence(torch.ones(4, 2, 3), record=["mem"])
            >>> outputs[:, 0, 0].tolist()
            [0.0, 1.0, 1.0, 1.0]
            >>> states["mem"].shape
            torch.Size([4, 2, 3])
            >>> layer.mem.shape
            torch.Size([2, 3])

        """
        if (
            not record
            and len(self.inputs) == 1
            and not further
            and not torch.compiler.is_compiling()
            and current_backward() in (NO_BACKWARD, self._zeroed_in_backward)
        ):
            prepared = self._sequences.run(self, x, _METHODS)
            if prepared is not None:
                self.__dict__.update(prepared[1])
                return prepared[0], {}
        dtype = self.check_input(x, sequence=True)
        states = self.states_for(x, dtype, sequence=True)
        active = self.active_states
        self.check_record(record)
        if x.shape[0] == 0:
            return x.clone(), {name: x.to(dtype, copy=True) for name in record}
        work = self._working(x, further, dtype)
        kwargs = self._kwargs_for(x, x.ndim - 1, dtype)
        output, ends, trajectories = run_sequence(self, work, states, kwargs, tuple(record))
        for name, end in zip(active, ends, strict=True):
            setattr(self, name, end)
        return output.to(x.dtype), dict(zip(record, trajectories, strict=True))


def _assigned_by_torch() -> bool:
    """Whether PyTorch assigns an attribute: ``functional_call``, which puts tensors in place."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "__setattr__":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("torch.")


# what a prepared sequence does without: where a class overrides one, the general way is taken
_METHODS = OwnMethods(
    Neuron.step_kwargs,
    Neuron.check_input,
    Neuron.states_for,
    Neuron.initial_state,
    constraint_gradient,
)


def transient_attributes_of(module: nn.Module) -> frozenset[str]:
    """Return what a call of a module may change: its mode, hooked weights, a neuron's states."""
    own = frozenset({"training", *hooked_weights(module)})
    return own | module.transient_attributes if isinstance(module, Neuron) else own
