"""Memory of a module's own: a state that its ``forward`` reads and writes (``TTModule.memory``).

A memory is a state as those of neuron layers are: zeroed, restarted by a mask, detached, moved,
copied, saved and exported by the same functions. It is read and written as the attribute of its
name, and kept under another one, which is ``None`` at rest: a value that is never there cannot be
mistaken for one that is, by a compiler that has seen the module at rest.

Shape. Nothing but the first assignment can say how large a memory is, unless its declaration does;
and nothing but the input of a call how many samples there are. So every call of a module with a
memory notes the batch of its first tensor, and compares it with the states that are held.

Writes. The value is copied when it is assigned and when it is read: no in-place operation reaches a
state. Such a write into what was read would be lost, and is an error: what is handed out is noted
with PyTorch's count of its writes, and looked at when the call ends, or, of a value that was read
outside a call and thrown away, when the next begins or reads it. A compiler, and ``vmap``, keep no
such count: there it is lost.

By layer all steps are one call, which cannot go from step to step: such a model is refused by name,
and runs by step. Inside a ``Recurrent`` everything runs by step.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import update_wrapper
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_finite, check_flag
from tracetorch.core.torch_private import dispatch_modes, is_jit_tracing, is_leaked_tracer
from tracetorch.core.walk import Opaque
from tracetorch.snn.passes import current_pass, states_of

P = ParamSpec("P")
R = TypeVar("R")
_REGISTRIES = ("_modules", "_parameters", "_buffers")
_PREFIX = "_memory_"  # what the attribute begins with that holds a memory


class Memory(NamedTuple):
    """The declaration of a memory."""

    shape: tuple[int, ...] | None  # of one sample; ``None``: that of the value first assigned


class Call(NamedTuple):
    """Batch, dtype and device of a call, which a memory needs to know."""

    batch: int  # the size of dimension 0 of the first tensor
    dtype: torch.dtype  # of the first floating-point tensor, or the default one
    device: torch.device  # of the first tensor
    argument: int | str  # the place of that tensor among the arguments, or its name
    shape: tuple[int, ...]  # of that tensor

    def source(self, forward: Callable[..., object]) -> str:
        """Say which tensor of a call of ``forward`` gave the batch."""
        argument = self.argument
        if isinstance(argument, int):
            names = [*inspect.signature(forward).parameters]
            argument = names[argument] if argument < len(names) else f"number {argument}"
        return (
            f"argument {argument}, dimension 0, shape {list(self.shape)}; a call is one time step "
            'of a module with memory, and tt.unroll(..., by="step") runs [T, B, ...]'
        )


class Read(NamedTuple):
    """A value of a memory that was handed out, and what tells that it was written to."""

    name: str
    value: weakref.ref[Tensor]
    shared: Tensor  # with its memory and its count of writes
    version: int  # that count when it was handed out
    state: Tensor | None  # the state that it is a copy of; ``None`` at rest


class UnknownBatchError(ValueError, AttributeError):
    """A memory has no value before the module is called: to ``hasattr`` it is not there."""


def call_of(args: Iterable[object], kwargs: Mapping[str, object]) -> Call | None:
    """Note the batch of a call, and where it is computed; ``None`` without a batch."""
    every: list[tuple[int | str, object]] = [*enumerate(args), *kwargs.items()]
    given = [(key, each) for key, each in every if isinstance(each, Tensor) and each.ndim > 0]
    if not given:
        return None
    dtypes = [each.dtype for _, each in given if each.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.get_default_dtype()
    key, first = given[0]
    return Call(first.shape[0], dtype, first.device, key, tuple(first.shape))


class unless_taken(Generic[P, R]):  # noqa: N801 (used as a decorator)
    """Make a method that gives way to what a module holds under its name.

    A module, a parameter or a buffer of that name was one before there was such a method; and a
    neuron layer may have a state or a parameter of that name. They are found as if there were none.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], R]) -> None:
        self.method = method
        update_wrapper(cast("Callable[P, R]", self), method)

    def __get__(self, module: Any, kind: type) -> Callable[P, R]:
        if module is None:
            return self.method  # type: ignore[return-value]
        name = self.method.__name__
        taken = any(name in module.__dict__.get(each, ()) for each in _REGISTRIES)
        if taken or not module._declares_memory:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")
        return self.method.__get__(module)  # type: ignore[no-any-return]


class Notes(Opaque):
    """Notes of the call of a module with memory that runs, in its pass or by itself."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.reads: list[Read] = []  # that may yet be written to
        self.is_called = False  # the end of the call looks at them then


def notes_of(module: Any) -> Notes:
    """Return the notes of the call of a module that runs."""
    run = current_pass()
    if run is None:
        own: Notes = module.__dict__["_memory_notes"]
        return own
    found: Notes | None = run.notes.get(id(module))
    if found is None:
        found = run.notes[id(module)] = Notes()
    return found


def attribute_of(name: str) -> str:
    """Return the name of the attribute that holds a memory; it is ``None`` at rest."""
    return _PREFIX + name


def declare(
    module: Any, name: str, shape: int | Sequence[int] | None, init: float | Tensor, learn: bool
) -> None:
    """Declare a memory of a module, as :meth:`.TTModule.memory` says."""
    if not isinstance(name, str):
        raise TypeError(
            f"{type(module).__name__}.memory(name, ...) declares a state and takes a name, got "
            f"{type(name).__name__}."
        )
    for each in (name, f"initial_{name}"):
        if not each.isidentifier() or each in module._memories or hasattr(module, each):
            raise ValueError(
                f"{type(module).__name__} cannot call a memory {name!r}: {each!r} must be an "
                "identifier that is not yet taken."
            )
    sizes = None if shape is None else checked_shape(name, shape)
    value = checked_init(name, init, sizes, check_flag("learnable", learn))
    if learn and value is not None:
        module.register_parameter(f"initial_{name}", nn.Parameter(value))
    elif value is not None:
        module.register_buffer(f"initial_{name}", value)
    attributes = module.__dict__
    if not module._memories:
        attributes["_memories"] = {}
        attributes["_memory_notes"] = Notes()
        module.register_forward_pre_hook(begin_call, with_kwargs=True)
        module.register_forward_hook(end_call)
    attributes[_PREFIX + name] = None
    attributes["_memories"][name] = Memory(sizes)


def check_no_memory(module: Any, name: str) -> None:
    """Raise where a memory has the name of what is to be registered."""
    if name in module._memories:
        raise ValueError(
            f"{name!r} is taken: it is a memory of {type(module).__name__}. Use another name."
        )


def start_of(
    module: Any, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return what a memory is before the first step."""
    value: Tensor | None = getattr(module, f"initial_{name}", None)
    if value is None:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    value = value.to(device, dtype)
    # a copy: no state shares memory with anything
    return value.expand(tuple(shape)).clone(memory_format=torch.contiguous_format)


def begin_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note the batch of a call of a module with memory that begins: a forward pre-hook."""
    notes, call = notes_of(module), call_of(args, kwargs)
    compiling = torch.compiler.is_compiling()
    if not compiling:
        if not notes.is_called:  # or the call before has failed
            check_reads(module, notes)
        notes.reads = []
        notes.is_called = True
    notes.call = call
    states = states_of(module, "use its memory")
    for name in module._memories:
        state: Tensor | None = states[_PREFIX + name]
        if call is None or state is None or state.ndim == 0 or is_leaked_tracer(state):
            continue
        if state.shape[0] != call.batch:
            raise ValueError(
                f"{module._label()} holds {name} of shape {list(state.shape)}, and is given "
                f"a batch of {call.batch} ({call.source(module.forward)}). Call zero_states() "
                "before a new sequence or another batch size, zero_states(where=mask) to "
                "restart some samples."
            )


def end_call(module: Any, args: tuple[Any, ...], output: object) -> None:
    """Look for writes that the call has lost: a forward hook of a module with memory."""
    if not torch.compiler.is_compiling():
        notes = notes_of(module)
        notes.is_called = False
        check_reads(module, notes, every=True)


def check_reads(module: Any, notes: Notes, every: bool = False) -> None:
    """Raise where a value that was handed out was written to, and forget those that are gone.

    With ``every`` those too that somebody still holds, and all are forgotten.
    """
    reads = notes.reads
    notes.reads = [] if every else [r for r in reads if r.value() is not None]
    for read in reads:
        if (
            read.shared._version != read.version
            and states_of(module)[_PREFIX + read.name] is read.state  # or another was set since
            and (every or read.value() is None)
        ):
            name = read.name
            raise ValueError(
                f"{name} of {module._label()} was written to in place, and the write is "
                f"lost: what is read is a copy. Assign: {name} = self.{name}; {name}[:, 0] = "
                f"x; self.{name} = {name}. Of a value that is not to be remembered change "
                f"self.{name}.clone()."
            )


def recall(module: Any, name: str) -> Tensor:
    """Return a memory, and note that it was handed out."""
    state = states_of(module, f"read its memory {name}")[_PREFIX + name]
    if torch.compiler.is_compiling() or dispatch_modes() or is_jit_tracing():
        return _value_of(module, name, state)
    notes = notes_of(module)
    if not notes.is_called:
        check_reads(module, notes)
    if torch.is_inference_mode_enabled():  # whose own tensors do not count writes
        with torch.inference_mode(False), torch.no_grad():
            value = _value_of(module, name, state)
    else:
        value = _value_of(module, name, state)
    # outside a call nobody may be waiting for it: not its graph
    shared = value if notes.is_called else value.detach()
    notes.reads.append(Read(name, weakref.ref(value), shared, value._version, state))
    return value


def _value_of(module: Any, name: str, state: Tensor | None) -> Tensor:
    """Return a copy of a memory: what was assigned last, or what it starts from."""
    module._check_states_current()
    if state is not None:
        if is_leaked_tracer(state):
            raise ValueError(
                f"{module._label()} holds a state {name} without values, left behind by a traced "
                "or transformed call. Call zero_states()."
            )
        return state.clone()
    shape, call = module._memories[name].shape, notes_of(module).call
    value: Tensor | None = getattr(module, f"initial_{name}", None)
    if shape is None:
        if value is not None:
            return value.clone()
        return torch.zeros((), device=None if call is None else call.device)
    if call is None:
        raise UnknownBatchError(
            f"{module._label()} has no value of {name} yet, and knows no batch: it is that "
            "of the first tensor, with a dimension, that the module is called with. Call the "
            "module, not its forward, or assign a value before."
        )
    exact = value is not None and not value.is_floating_point()
    dtype = value.dtype if value is not None and exact else call.dtype
    return start_of(module, name, (call.batch, *shape), dtype, call.device)


def remember(module: Any, name: str, value: object) -> None:
    """Assign a memory; ``None`` returns it to what it starts from."""
    states = states_of(module, f"set its memory {name}")
    notes = notes_of(module)
    if not torch.compiler.is_compiling():
        notes.reads = [read for read in notes.reads if read.name != name]
    if value is not None:
        module._check_states_current()
        # a copy, which a later in-place operation on the value does not reach
        call = notes.call if notes.is_called else None
        value = check_value(module, name, value, call=call).clone()
    states[_PREFIX + name] = value


def check_value(
    module: Any, name: str, value: object, label: str | None = None, call: Call | None = None
) -> Tensor:
    """Return a value of a memory, or raise where it does not fit the declaration."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        raise TypeError(
            f"{label or module._label()} remembers a tensor as {name}, got "
            f"{type(value).__name__}. What it starts from is declared by "
            f"self.memory({name!r}, init=..., learnable=...)."
        )
    shape = module._memories[name].shape
    if shape is not None and (value.ndim == 0 or value.shape[1:] != shape):
        batch = "" if call is None else f" B is {call.batch}: {call.source(module.forward)}."
        raise ValueError(
            f"{label or module._label()} remembers {name} as [B, "
            f"{', '.join(map(str, shape))}], got shape {list(value.shape)}.{batch}"
        )
    return value


def checked_shape(name: str, shape: object) -> tuple[int, ...]:
    """Return a shape of one sample, which one number may stand for."""
    if isinstance(shape, int) or not isinstance(shape, Sequence):
        return (check_count(f"the shape of {name}", shape),)
    return tuple([check_count(f"the shape of {name}", size) for size in shape])


def checked_init(
    name: str, init: object, shape: tuple[int, ...] | None, learnable: bool
) -> Tensor | None:
    """Return the initial value to keep; ``None`` where it is zero, and is not learned."""
    if not isinstance(init, Tensor):
        number = check_finite(f"init of {name}", init)
        if number == 0 and not learnable:
            return None
        init = torch.tensor(number, dtype=torch.get_default_dtype())
    if learnable and not init.is_floating_point():
        raise TypeError(
            f"init of {name} is of {init.dtype}, which no gradient can move. Give floating-point "
            "numbers, or learnable=False."
        )
    value = init.detach().clone()
    if shape is None:
        return value
    sizes = zip(reversed(value.shape), reversed(shape), strict=False)
    if value.ndim > len(shape) or any(a not in (1, b) for a, b in sizes):
        raise ValueError(
            f"init of {name} has the shape {list(value.shape)}, which does not broadcast to "
            f"{list(shape)}, the shape of the memory of one sample."
        )
    # each element is learned by itself
    return value.expand(shape).clone() if learnable else value
