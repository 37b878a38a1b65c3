"""Memory of a module's own: a state that its ``forward`` reads and assigns (``TTModule.memory``).

It is kept under another name, ``None`` at rest. A call notes its first tensor, which says how many
samples there are. Within it what is read is a copy, and a write into it that is not assigned would
be lost: an error at its end. A compiler, and ``vmap``, count no writes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_finite, check_flag
from tracetorch.core.torch_private import (
    dispatch_modes,
    is_jit_tracing,
    is_leaked_tracer,
    version_of,
)
from tracetorch.snn.passes import current_pass, states_of

_REGISTRIES = ("_modules", "_parameters", "_buffers")
_PREFIX = "_memory_"  # what the attribute begins with that holds a memory
CALL = "_memory_call"  # what the call of a module that runs is noted as


class ModuleCall(NamedTuple):
    """Batch, dtype and device of a call of a module with memory, and what it has read."""

    shape: tuple[int, ...]  # of the first tensor that has a dimension; empty if there is none
    dtype: torch.dtype  # of the first floating-point tensor, or the default one
    device: torch.device | None
    # name, copy, its version, and the state
    reads: list[tuple[str, Tensor, int | None, Tensor | None]]


class GivingWay:
    """A method that gives way to a module, parameter or buffer of its name, and to a neuron's."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method

    def __get__(self, module: Any, kind: type) -> Any:
        if module is None:
            return self.method
        name = self.method.__name__
        taken = any(name in module.__dict__.get(each, ()) for each in _REGISTRIES)
        if taken or not module._declares_memory:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")
        return self.method.__get__(module)


def leaked_message(label: str, name: str) -> str:
    return (
        f"{label} holds a state {name} without values, left behind by a traced or transformed "
        "call. Call zero_states()."
    )


def notes_of(module: Any) -> dict[str, Any]:
    """Return where the call of a module is noted: in the pass that runs, or on the module."""
    run = current_pass()
    own: dict[str, Any] = module.__dict__
    return own if run is None else run.notes.setdefault(id(module), {})


def attribute_of(name: str) -> str:
    return _PREFIX + name


def declare(
    module: Any, name: str, shape: int | Sequence[int] | None, init: float | Tensor, learn: bool
) -> None:
    """Declare a memory of a module, as :meth:`.TTModule.memory` says."""
    for each in (name, f"initial_{name}"):
        if not isinstance(name, str) or not each.isidentifier() or hasattr(module, each):
            raise ValueError(
                f"{type(module).__name__} cannot call a memory {name!r}: {each!r} must be an "
                "identifier that is not yet taken."
            )
    sizes = None if shape is None else checked_shape(name, shape)
    value = _checked_init(name, init, sizes, check_flag("learnable", learn))
    if learn and value is not None:
        module.register_parameter(f"initial_{name}", nn.Parameter(value))
    elif value is not None:
        module.register_buffer(f"initial_{name}", value)
    attributes = module.__dict__
    if not module._memories:
        attributes[CALL] = None
        module.register_forward_pre_hook(begin_call, with_kwargs=True)
        module.register_forward_hook(end_call, always_call=True)
    attributes[_PREFIX + name] = None
    attributes["_memories"] = {**module._memories, name: sizes}  # copies declare for themselves


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
    given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim > 0]
    dtypes = [each.dtype for each in given if each.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.get_default_dtype()
    shape, device = (tuple(given[0].shape), given[0].device) if given else ((), None)
    call = ModuleCall(shape, dtype, device, [])
    states = states_of(module, "use its memory")
    for name in module._memories:
        state: Tensor | None = states[_PREFIX + name]
        if not given or state is None or state.ndim == 0 or is_leaked_tracer(state):
            continue
        if state.shape[0] != shape[0]:
            raise ValueError(
                f"{module._label()} holds {name} of shape {list(state.shape)}, and is given a "
                f"batch of {shape[0]}, dimension 0 of its first tensor of shape {list(shape)}. A "
                'call is one time step: tt.unroll(..., by="step") runs [T, B, ...]. Call '
                "zero_states() before a new sequence or another batch size."
            )
    notes_of(module)[CALL] = call


def end_call(module: Any, args: tuple[Any, ...], output: object) -> None:
    """Raise where a write is lost: a forward hook of a module with memory, also if it failed."""
    notes = notes_of(module)
    call, notes[CALL] = notes.get(CALL), None
    failed = output is None and sys.exc_info()[0] is not None
    if torch.compiler.is_compiling() or call is None or failed:
        return
    states = states_of(module)
    for name, value, version, state in call.reads:
        if version_of(value) != version and states[_PREFIX + name] is state:  # none was assigned
            raise ValueError(
                f"{name} of {module._label()} was written to in place, and the write is "
                f"lost: what is read is a copy. Assign: {name} = self.{name}; {name}[:, 0] = "
                f"x; self.{name} = {name}; or write into self.{name}.clone()."
            )


def recall(module: Any, name: str) -> Tensor | None:
    """Return a memory: within a call of the module a copy, or what it starts from."""
    state: Tensor | None = states_of(module, f"read its memory {name}")[_PREFIX + name]
    call: ModuleCall | None = notes_of(module).get(CALL)
    if call is None:
        return state
    if torch.compiler.is_compiling() or dispatch_modes() or is_jit_tracing():
        return _value_of(module, name, state, call)
    if torch.is_inference_mode_enabled():  # whose own tensors do not count writes
        with torch.inference_mode(False), torch.no_grad():
            value = _value_of(module, name, state, call)
    else:
        value = _value_of(module, name, state, call)
    call.reads.append((name, value, version_of(value), state))
    return value


def _value_of(module: Any, name: str, state: Tensor | None, call: ModuleCall) -> Tensor:
    """Return a copy of a memory: what was assigned last, or what it starts from."""
    module._check_states_current()
    if state is not None:
        if is_leaked_tracer(state):
            raise ValueError(leaked_message(module._label(), name))
        return state.clone()
    shape: tuple[int, ...] | None = module._memories[name]
    value: Tensor | None = getattr(module, f"initial_{name}", None)
    if shape is None:
        return torch.zeros((), device=call.device) if value is None else value.clone()
    if call.device is None:
        raise ValueError(
            f"{module._label()} has no value of {name} yet, and knows no batch: it is that of the "
            "first tensor, with a dimension, that the module is called with."
        )
    exact = value is not None and not value.is_floating_point()
    dtype = value.dtype if value is not None and exact else call.dtype
    return start_of(module, name, (call.shape[0], *shape), dtype, call.device)


def remember(module: Any, name: str, value: object) -> None:
    """Assign a memory; ``None`` returns it to what it starts from."""
    states = states_of(module, f"set its memory {name}")
    if value is not None:
        module._check_states_current()
        # a copy, which a later in-place operation on the value does not reach
        value = check_value(module, name, value).clone()
    states[_PREFIX + name] = value


def check_value(module: Any, name: str, value: object, label: str | None = None) -> Tensor:
    """Return a value of a memory, or raise where it does not fit the declaration."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        raise TypeError(
            f"{label or module._label()} remembers a tensor as {name}, got "
            f"{type(value).__name__}. What it starts from is declared by self.memory(...)."
        )
    shape: tuple[int, ...] | None = module._memories[name]
    if shape is not None and (value.ndim == 0 or value.shape[1:] != shape):
        raise ValueError(
            f"{label or module._label()} remembers {name} as [B, "
            f"{', '.join(map(str, shape))}], got shape {list(value.shape)}."
        )
    return value


def checked_shape(name: str, shape: object) -> tuple[int, ...]:
    if isinstance(shape, int) or not isinstance(shape, Sequence):
        return (check_count(f"the shape of {name}", shape),)
    return tuple([check_count(f"the shape of {name}", size) for size in shape])


def _checked_init(
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
            f"init of {name} is of {init.dtype}, which no gradient can move: learnable=False."
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
