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
from torch import Tensor

from tracetorch.core.checks import check_count, check_finite

P = ParamSpec("P")
R = TypeVar("R")
_REGISTRIES = ("_modules", "_parameters", "_buffers")


class Memory(NamedTuple):
    """The declaration of a memory.

    Args:
        shape: of the value of one sample; ``None``: that of the value first assigned.
    """

    shape: tuple[int, ...] | None


class Call(NamedTuple):
    """Batch, dtype and device of a call, which a memory needs to know.

    Args:
        batch: the size of dimension 0 of the first tensor.
        dtype: of the first floating-point tensor, the default one where there is none.
        device: of the first tensor.
        argument: the place of that tensor among the arguments, or its name.
        shape: of that tensor.
    """

    batch: int
    dtype: torch.dtype
    device: torch.device
    argument: int | str
    shape: tuple[int, ...]

    def source(self, forward: Callable[..., object]) -> str:
        """Say which tensor gave the batch.

        Args:
            forward: that was called.
        """
        argument = self.argument
        if isinstance(argument, int):
            names = [*inspect.signature(forward).parameters]
            argument = names[argument] if argument < len(names) else f"number {argument}"
        return (
            f"argument {argument}, dimension 0, shape {list(self.shape)}; a call is one time step "
            'of a module with memory, and tt.unroll(..., by="step") runs [T, B, ...]'
        )


class Read(NamedTuple):
    """A value of a memory that was handed out, and what tells that it was written to.

    Args:
        name: of the memory.
        value: that was handed out.
        shared: a tensor with its memory and its count of writes.
        version: that count when it was handed out.
        state: the state that it is a copy of; ``None`` at rest.
    """

    name: str
    value: weakref.ref[Tensor]
    shared: Tensor
    version: int
    state: Tensor | None


class UnknownBatchError(ValueError, AttributeError):
    """A memory has no value before the module is called: to ``hasattr`` it is not there."""


def call_of(args: Iterable[object], kwargs: Mapping[str, object]) -> Call | None:
    """Note the batch of a call, and where it is computed; ``None`` without a batch.

    Args:
        args: its arguments by place.
        kwargs: its arguments by name.
    """
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

    Args:
        method: the method.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], R]) -> None:
        self.method = method
        update_wrapper(cast("Callable[P, R]", self), method)

    def __get__(self, module: Any, kind: type) -> Callable[P, R]:
        if module is None:
            return self.method  # type: ignore[return-value]
        name = self.method.__name__
        taken = any(name in module.__dict__.get(each, ()) for each in _REGISTRIES)
        if taken or not module.declares_memory:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")
        return self.method.__get__(module)  # type: ignore[no-any-return]


def begin_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note the batch of a call of a module with memory: a forward pre-hook.

    Raises:
        ValueError: a state is that of another batch, or was written to in place before.
    """
    module.begin_call(call_of(args, kwargs))


def end_call(module: Any, args: tuple[Any, ...], output: object) -> None:
    """Look for writes that the call has lost: a forward hook of a module with memory.

    Raises:
        ValueError: a memory was written to in place.
    """
    module.end_call()


def checked_shape(name: str, shape: object) -> tuple[int, ...]:
    """Return a shape of one sample, which one number may stand for.

    Raises:
        TypeError: it is neither a number nor numbers.
        ValueError: a size is below 1.
    """
    if isinstance(shape, int) or not isinstance(shape, Sequence):
        return (check_count(f"the shape of {name}", shape),)
    return tuple([check_count(f"the shape of {name}", size) for size in shape])


def checked_init(
    name: str, init: object, shape: tuple[int, ...] | None, learnable: bool
) -> Tensor | None:
    """Return the initial value to keep; ``None`` where it is zero, and is not learned.

    Raises:
        TypeError: it is neither a number nor a tensor, or cannot be learned.
        ValueError: it does not fit the shape.
    """
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
