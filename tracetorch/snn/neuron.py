"""``Neuron``: a pure ``step``, the states it carries from call to call, the parameters it has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tracetorch.snn.guard import guard
from tracetorch.snn.left_behind import is_left_behind
from tracetorch.snn.module import TTModule, is_exporting
from tracetorch.snn.parameters import (
    DECAY,
    THRESHOLD,
    WEIGHT,
    Constraint,
    Decay,
    Rank,
    SpikeFunction,
    Threshold,
    Value,
    Weight,
    check_count,
    check_integer,
    complete,
    negative_softplus,
)
from tracetorch.snn.walk import path_on_stack

if TYPE_CHECKING:
    from tracetorch.unrolling.recording import Recording

_ARITHMETIC = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}

_NO_BACKWARD = -1  # what PyTorch says outside of one

_FROZEN = (
    "torch.export and torch.jit.trace would freeze the state of a neuron layer as a constant: the "
    "traced program would start every call from the same state. tt.export.step(model, sample) "
    "makes a program whose states go in and come out, tt.export.sequence one over time; or trace a "
    "module that calls zero_states() first and loops over time inside."
)

N = TypeVar("N", bound="Neuron")


class Neuron(TTModule):
    """A layer of neurons that all follow one ``step``.

    A subclass lists its ``states``, declares its parameters in ``__init__`` with :meth:`decay`,
    :meth:`threshold`, :meth:`weight` and :meth:`option`, and writes ``step`` as a static method,
    once, in pointwise PyTorch::

        step(x, <states>, *, <parameters and options by name>) -> (output, <states>)

    Calling the layer runs one time step. States are ``None`` until the first input, then tensors
    shaped like it; they live on the layer as plain attributes, follow ``.to()``, stay out of the
    ``state_dict``, and are copied, detached, by ``pickle`` and ``copy.deepcopy``.

    The arithmetic is float32 for bfloat16 and float16 inputs, otherwise in the input's dtype; the
    states have the arithmetic's dtype, the output has the input's.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step: -1 for ``[B, N]``, -3 for
            ``[B, C, H, W]``.

    Shape:
        Input and output have one shape, any that has ``num_neurons`` at ``dim``.

    Raises:
        TypeError: an argument or the input is of the wrong type; the input is not a
            floating-point tensor.
        ValueError: an argument is out of range; the input lacks ``dim``, has another size there, or
            does not fit the states that the layer holds.

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

    states: ClassVar[tuple[str, ...]] = ()
    step: ClassVar[Callable[..., tuple[Any, ...]]]

    num_neurons: int
    dim: int

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...  # noqa: D102 (nn.Module's, typed)

    def __new__(cls: type[N], *args: Any, **kwargs: Any) -> N:
        """Remember the call, for ``repr``."""
        layer = super().__new__(cls)
        if args or kwargs:
            object.__setattr__(layer, "_call", _spell(cls, args, kwargs))
        return layer

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__()
        self.num_neurons = check_count("num_neurons", num_neurons)
        self.dim = check_integer("dim", dim)
        self._constraints: dict[str, Constraint] = {}
        self._options: tuple[str, ...] = ()
        self._steppers: list[object] = []
        self._zeroed_in_trace = False
        self._zeroed_in_backward = _NO_BACKWARD
        self.layer_pass: Callable[[Neuron, Tensor], Tensor] | None = None
        if isinstance(type(self).states, str):
            raise TypeError(
                f"{type(self).__name__}.states must be a tuple of names, got "
                f"{type(self).states!r}. A tuple of one is ({type(self).states!r},)."
            )
        for name in type(self).states:
            self._check_name(name)
            setattr(self, name, None)

    # Declaring

    def decay(
        self,
        name: str,
        value: Value | Mapping[str, Any] | Decay = 0.9,
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
        self._declare(name, complete(name, value, default), Decay.constraint)

    def threshold(
        self,
        name: str,
        value: Value | Mapping[str, Any] | Threshold = 1.0,
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
        setup = complete(name, value, default)
        self._declare(name, setup, negative_softplus if negative else Threshold.constraint)
        self.option(spike, setup.surrogate)

    def weight(
        self,
        name: str,
        value: Value | Mapping[str, Any] | Weight = 0.0,
        *,
        rank: Rank = 1,
        learnable: bool = True,
    ) -> None:
        """Declare a parameter without bounds, ``raw_<name>`` itself.

        Args:
            name: the argument of ``step`` that receives it.
            value: a number, a tensor of rank 0 or 1, or a whole setup (a dict or a
                :class:`Weight`).
            rank: 0 for one value in the layer, 1 for one per neuron.
            learnable: an ``nn.Parameter`` if true, a buffer if not.

        """
        default = Weight(WEIGHT.value, rank, learnable)
        self._declare(name, complete(name, value, default), Weight.constraint)

    def option(self, name: str, value: object) -> None:
        """Declare a constant that ``step`` receives: a flag, a word, a number, a spike function.

        It becomes an attribute of that name and may be assigned anew; a module (a surrogate with a
        learnable slope, say) is registered as one, a tensor as a buffer, so that it moves along.
        """
        self._check_name(name)
        if isinstance(value, Tensor):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)
        self._options += (name,)

    def _declare(self, name: str, setup: Weight, constraint: Constraint) -> None:
        self._check_name(name)
        raw = setup.raw(name, self.num_neurons)
        if setup.learnable:
            self.register_parameter(f"raw_{name}", nn.Parameter(raw))
        else:
            self.register_buffer(f"raw_{name}", raw)
        self._constraints[name] = constraint

    def _check_name(self, name: str) -> None:
        if not name.isidentifier() or hasattr(self, name):
            raise ValueError(
                f"{type(self).__name__} cannot call a state, parameter or option {name!r}: it must "
                "be an identifier that is not yet taken."
            )

    # Reading

    @property
    def kept_states(self) -> tuple[str, ...]:
        """The states this layer has; the others of ``states`` stay ``None``."""
        return self.states

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the constants that ``step`` receives."""
        return self._options

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Names of the tensors that the parameters are constrained from."""
        return tuple(f"raw_{name}" for name in self._constraints)

    def arguments(self, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
        """What ``step`` receives by name: constrained parameters, shaped to broadcast, and options.

        Args:
            ndim: number of dimensions of the tensor of one step.
            dtype: dtype of the arithmetic; raw parameters are cast to it before the constraint.

        """
        after = -self.dim - 1 if self.dim < 0 else ndim - self.dim - 1
        given: dict[str, Any] = {}
        for name, constraint in self._constraints.items():
            value = constraint(getattr(self, f"raw_{name}").to(dtype))
            given[name] = value.reshape(-1, *[1] * after) if value.ndim and after else value
        for name in self._options:
            given[name] = getattr(self, name)
        return given

    def __getattr__(self, name: str) -> Any:
        constraints = self.__dict__.get("_constraints", {})
        if name in constraints:
            return constraints[name](getattr(self, f"raw_{name}"))
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_constraints", ()):
            constraint = self._constraints[name].__name__
            raise AttributeError(
                f"{name} follows from raw_{name}: it is {constraint}(raw_{name}). Write "
                f"raw_{name}, or give {name} to the constructor."
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        call = self.__dict__.get("_call", f"{type(self).__name__}(...)")
        inner = super().__repr__() if self._modules else ""
        return f"{call}{inner[inner.index('(') :]}" if inner else call

    # Calling

    def forward(self, x: Tensor) -> Tensor:
        """One time step; inside ``tt.unroll`` by layer, all of them, folded into the batch."""
        if self.layer_pass is not None:
            return self.layer_pass(self, x)
        return self.one_step(x)

    def one_step(self, x: Tensor) -> Tensor:
        """One time step; compiled where there is no graph to build."""
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            streamed = _streaming()(self, x)
            if streamed is not None:
                return streamed
        dtype = self.check_input(x)
        states = self.states_for(x, dtype)
        work = x.to(dtype)
        results = self.step(work, *states, **self.arguments(x.ndim, dtype))
        output, kept, values = self.check_result(work, results)
        if any(_share(output, state) for state in states if state is not None):
            output = output.clone()
        output, *values = guard([output, *values])
        for name, value in zip(kept, values, strict=True):
            setattr(self, name, value)
        return output.to(x.dtype)

    def sequence(
        self, x: Tensor, record: Sequence[str], recording: Recording
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All the steps of ``x`` ``[T, ...]`` at once; outputs and the trajectories of states."""
        from tracetorch.fuse import sequence  # fuse is built on this class

        return sequence(self, x, record=record)

    def check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        """The dtype of the arithmetic; raises where ``x``, one step or many, does not fit."""
        if not self._zeroed_in_trace and _is_tracing():
            if torch.compiler.is_dynamo_compiling():
                torch._dynamo.graph_break(msg=_FROZEN)  # old versions swallow what is raised
            raise RuntimeError(_FROZEN)
        if not torch.compiler.is_compiling():
            backward = torch._C._current_graph_task_id()
            if backward not in (_NO_BACKWARD, self._zeroed_in_backward):
                raise RuntimeError(
                    f"{self.named()} is run again inside backward(), by activation checkpointing "
                    "it seems, from the state it has now instead of the one it had. Checkpoint a "
                    "function that calls zero_states() first and loops over time inside."
                )
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{self.named()} takes a tensor, got {type(x).__name__}. "
                "Wrap arrays in torch.as_tensor(...)."
            )
        if x.dtype not in _ARITHMETIC:
            raise TypeError(
                f"{self.named()} takes float16, bfloat16, float32 or float64, got {x.dtype}. "
                "Convert the input with .float()."
            )
        shape = x.shape[1:] if sequence else x.shape
        told = f"one step of the input {list(x.shape)}" if sequence else "the input"
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(
                f"{self.named()} has its neurons at dim {self.dim}, {told} has only "
                f"{len(shape)} dimensions, shape {list(shape)}."
            )
        if shape[self.dim] != self.num_neurons:
            raise ValueError(
                f"{self.named()} has {self.num_neurons} neurons, {told} has "
                f"{shape[self.dim]} at dim {self.dim}, shape {list(shape)}. "
                f"Build the layer with num_neurons={shape[self.dim]}, or name another dim."
            )
        return _ARITHMETIC[x.dtype]

    def states_for(
        self, x: Tensor, dtype: torch.dtype, *, sequence: bool = False
    ) -> list[Tensor | None]:
        """The states as ``step`` receives them: live ones checked, missing ones zero."""
        shape = x.shape[1:] if sequence else x.shape
        states: list[Tensor | None] = []
        kept = self.kept_states
        for name in self.states:
            state = getattr(self, name)
            if name not in kept:
                states.append(None)
            elif state is None:
                states.append(torch.zeros(shape, dtype=dtype, device=x.device))
            else:
                if not isinstance(state, Tensor):
                    raise TypeError(
                        f"{self.named()} needs a tensor as {name}, got {type(state).__name__}."
                    )
                if is_left_behind(state, x):
                    raise ValueError(_left_behind(self.named(), name))
                if state.shape != shape or state.device != x.device or state.dtype != dtype:
                    self._refuse(name, state, shape, x.device, dtype)
                states.append(state)
        if not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled():
            # autograd may not save what inference_mode made
            states = [s.clone() if s is not None and s.is_inference() else s for s in states]
        return states

    def _refuse(
        self, name: str, state: Tensor, shape: torch.Size, device: torch.device, dtype: torch.dtype
    ) -> None:
        raise ValueError(
            f"{self.named()} holds the state {name} of shape {list(state.shape)}, {state.dtype}, "
            f"on {state.device}; the input has shape {list(shape)} and needs {dtype} on "
            f"{device}. Call zero_states() before a new sequence or another batch size, "
            "zero_states(where=mask) to restart some samples; states follow model.to(...)."
        )

    def check_result(
        self, x: Tensor, results: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, list[str], list[Tensor]]:
        """The output, and names and values of the kept states."""
        step = f"{type(self).__name__}.step"
        if not isinstance(results, tuple) or len(results) != 1 + len(self.states):
            raise ValueError(
                f"{step} must return a tuple of the output and the states {self.states}, got "
                f"{len(results) if isinstance(results, tuple) else type(results).__name__}."
            )
        kept: list[str] = []
        values: list[Tensor] = []
        for name, value in zip(("output", *self.states), results, strict=True):
            if name != "output" and name not in self.kept_states:
                continue
            if not isinstance(value, Tensor) or value.shape != x.shape:
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{step} must return {name} in the input's shape {list(x.shape)}, got {got}."
                )
            if name != "output" and value.dtype != x.dtype:
                raise ValueError(
                    f"{step} must return {name} in the dtype it works in, {x.dtype}, "
                    f"got {value.dtype}."
                )
            # a later in-place operation on the output or the input must not reach into a state
            aliased = name != "output" and any(_share(value, other) for other in (x, *values))
            kept.append(name)
            values.append(value.clone() if aliased else value)
        return values[0], kept[1:], values[1:]

    def named(self) -> str:
        """How messages call the layer: with its path in the model that is being called."""
        path = path_on_stack(self)
        return f"layer {path!r}, {self!r}," if path else f"{self!r}"

    # Keeping

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Set the states to ``None``, or those of the samples in ``where`` to zero.

        Args, Raises: as :meth:`TTModule.zero_states`.
        """
        super().zero_states(where=where)
        if where is None:
            self._zeroed_in_trace = _is_tracing()
            if not torch.compiler.is_compiling():
                self._zeroed_in_backward = torch._C._current_graph_task_id()
        elif torch.compiler.is_dynamo_compiling():
            self._check_fit(repr(self), where)
        for name in self.kept_states:
            state = getattr(self, name)
            if where is None or state is None:
                setattr(self, name, None)
            else:
                mask = where.to(state.device).reshape(-1, *[1] * (state.ndim - 1))
                setattr(self, name, torch.where(mask, torch.zeros_like(state), state))

    def states_were_set(self) -> None:
        """The states are those of now: also in a trace, or where backward() runs this again."""
        self._zeroed_in_trace = _is_tracing()
        self._zeroed_in_backward = torch._C._current_graph_task_id()

    def detach_states(self) -> None:
        """Cut the states from the graph that computed them; the next step names dead ones."""
        super().detach_states()
        for name in self.kept_states:
            state = getattr(self, name)
            if state is not None and not is_left_behind(state):
                setattr(self, name, state.detach())

    def check_reset(self, path: str, where: Tensor) -> None:
        """Raise where ``zero_states(where=...)`` would fail on this very layer."""
        super().check_reset(path, where)
        self._check_fit(f"layer {path!r}, {self!r}," if path else f"{self!r}", where)

    def _check_fit(self, layer: str, where: Tensor) -> None:
        for name in self.kept_states:
            state = getattr(self, name)
            if state is None:
                continue
            if is_left_behind(state):
                raise ValueError(_left_behind(layer, name))
            if self.dim in (0, -state.ndim):
                raise ValueError(
                    f"{layer} has its neurons at dimension 0, where the mask looks for the batch; "
                    f"{name} has shape {list(state.shape)}. Give the input a batch dimension."
                )
            if len(state) != len(where):
                raise ValueError(
                    f"{layer} holds {name} for a batch of {len(state)}, shape {list(state.shape)}; "
                    f"the mask has {len(where)} entries."
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Neuron:
        """Move the states along with the parameters; ``.half()`` leaves their dtype as it is."""
        moved: dict[str, Tensor | None] = {}
        for name in self.kept_states:
            state = getattr(self, name)
            if state is None or is_left_behind(state):
                continue
            with _EmptyLike() as emptied:
                value = fn(state)
            if emptied.seen:  # to_empty() keeps no values
                moved[name] = None
            elif _ARITHMETIC.get(value.dtype) is value.dtype:
                moved[name] = value
            else:
                moved[name] = state.to(value.device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in moved:
            setattr(self, name, moved[name])
        return self

    def __getstate__(self) -> dict[str, Any]:
        held = {**self.__dict__, "_steppers": []}
        for name in self.kept_states:
            if held[name] is not None:
                held[name] = self.value_of(name)
        return held

    def value_of(self, name: str, path: str = "") -> Tensor:
        """A detached copy of a live state, for keeps.

        Args:
            name: which.
            path: where the layer stands, for the message.

        Raises:
            ValueError: a trace or a transform that is over has left the state behind.
        """
        state: Tensor = getattr(self, name)
        if is_left_behind(state):
            raise ValueError(
                _left_behind(f"layer {path!r}, {self!r}," if path else repr(self), name)
            )
        return state.detach().clone()

    def _replicate_for_data_parallel(self) -> Neuron:
        raise RuntimeError(
            f"{self!r}: nn.DataParallel runs copies of the model and throws their states away at "
            "every call. Use DistributedDataParallel, one process per device."
        )


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether an in-place operation on one tensor would reach the other."""
    if one is other:
        return True
    return not torch.compiler.is_compiling() and bool(torch._C._is_alias_of(one, other))  # type: ignore[attr-defined]


def _left_behind(layer: str, name: str) -> str:
    return (
        f"{layer} holds a state {name} without values, left behind by a traced or transformed "
        "call. Call zero_states()."
    )


def _is_tracing() -> bool:
    """Whether a program is being recorded that will run without this module's Python."""
    return is_exporting() or torch.jit.is_tracing()  # type: ignore


@functools.cache
def _streaming() -> Callable[[Neuron, Tensor], Tensor | None]:
    from tracetorch.fuse.streaming import stream  # fuse is built on this module

    return stream


class _EmptyLike(TorchFunctionMode):
    """Notices ``torch.empty_like``, by which ``Module.to_empty`` can be told from a move."""

    seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen |= func is torch.empty_like
        return func(*args, **(kwargs or {}))


def _spell(cls: type[Neuron], args: tuple[object, ...], kwargs: dict[str, object]) -> str:
    """The constructor call as one would write it, arguments at their default left out."""
    signature = inspect.signature(cls.__init__)
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:  # __init__ is about to say so itself
        return f"{cls.__name__}(...)"
    spelled: list[str] = []
    for i, (name, value) in enumerate(list(bound.arguments.items())[1:]):
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            spelled += map(_shown, value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            spelled += [f"{key}={_shown(each)}" for key, each in value.items()]
        elif type(value) is not type(parameter.default) or not _equal(value, parameter.default):
            spelled.append(_shown(value) if i == 0 else f"{name}={_shown(value)}")
    return f"{cls.__name__}({', '.join(spelled)})"


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Weight):
        told = [f"{field.name}={_shown(getattr(value, field.name))}" for field in fields(value)]
        return f"{type(value).__name__}({', '.join(told)})"
    if isinstance(value, nn.Module):
        return type(value).__name__
    return repr(value)


def _equal(value: object, default: object) -> bool:
    return not isinstance(value, Tensor) and bool(value == default)
