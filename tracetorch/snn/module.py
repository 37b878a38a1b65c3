"""``TTModule``: an ``nn.Module`` whose states are cleared and detached in one call."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_flag, check_module
from tracetorch.core.double_backward import explain_double_backward
from tracetorch.core.leaked_tracer import is_leaked_tracer
from tracetorch.core.thread_owner import check_thread
from tracetorch.core.torch_private import dispatch_modes, is_jit_tracing
from tracetorch.core.walk import named_modules
from tracetorch.snn.memory import (
    Call,
    Memory,
    Read,
    UnknownBatchError,
    begin_call,
    checked_init,
    checked_shape,
    end_call,
    unless_taken,
)
from tracetorch.snn.state_holder import StateHolder, layer_label, leaked_message
from tracetorch.snn.traversal import call_action, traverse

_HELD = "_memory_"  # what the attribute begins with that holds a memory


class TTModule(StateHolder):
    """An ``nn.Module`` whose hidden states, however deep, are cleared and detached in one call.

    Inherit from it as you would from ``nn.Module``. ``zero_states`` and ``detach_states`` may be
    overridden; an override calls ``super()`` and runs exactly once however often its module is met.
    A module that remembers something itself, from step to step, declares it by :meth:`memory`.

    Example:
        >>> class Net(TTModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.cells = [LIF(3), LIF(3)]  # a plain list is found too
        ...
        ...     def forward(self, x):
        ...         return self.cells[1](self.cells[0](x))
        >>> net = Net()
        >>> net(torch.ones(2, 3)).shape
        torch.Size([2, 3])
        >>> net.zero_states()
        >>> net.cells[0].mem is None
        True
        >>> net.get_param_count()
        12
    """

    declares_memory: ClassVar[bool] = True
    """Whether :meth:`memory` may be called; neuron layers have ``states`` instead."""
    # none until there is one; a mapping proxy would be true for torch.compile, although it is empty
    _memories: Mapping[str, Memory] = {}
    _memory_call: Call | None = None
    _memory_reads: Sequence[Read] = ()  # that may yet be written to
    _memory_is_called = False  # whether the module is being called, which then looks itself

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Set every state to ``None``, or with ``where`` reset just those samples.

        Args:
            where: boolean mask over dimension 0, the batch; ``True`` resets the sample. States of
                the others keep their values and their graph; states that are ``None`` stay so.

        Raises:
            TypeError: the mask is not a boolean tensor, or an override of ``zero_states`` in the
                model does not take ``where``.
            ValueError: the mask does not fit the batch of a layer, or dimension 0 of a layer holds
                its neurons. Nothing has been changed then.
        """
        traverse(self, "zero_states", where)
        if self._memories or not self.declares_memory:
            self.zero_own_states(where)

    def detach_states(self) -> None:
        """Cut every state from the graph that computed it; the values stay."""
        traverse(self, "detach_states")
        self.detach_own_states()

    def get_param_count(self) -> int:
        """Count the parameter values in the module and all it holds, shared ones once."""
        found = {id(p): p for _, module in named_modules(self) for p in module.parameters()}
        return sum(p.numel() for p in found.values())

    def check_reset(self, path: str, where: Tensor) -> None:
        """Raise where ``zero_states(where=...)`` would fail on this very module.

        Args:
            path: path of the module in the model, for the message.
            where: the mask.
        """
        parameters = inspect.signature(self.zero_states).parameters.values()
        if not any(p.name == "where" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise TypeError(
                f"{type(self).__name__}.zero_states, at {path or 'the root'!r}, does not take "
                "where=. Declare zero_states(self, *, where=None) and pass it on to super()."
            )
        if self.active_states:
            self.check_mask_fits(lambda: layer_label(self, path), where)

    # Memory of the module's own

    @unless_taken
    def memory(
        self,
        name: str,
        shape: int | Sequence[int] | None = None,
        *,
        init: float | Tensor = 0.0,
        learnable: bool = False,
    ) -> None:
        """Declare a memory: a state that ``forward`` reads and writes as the attribute ``name``.

        Before it has been assigned it reads as its initial value: ``[B, *shape]``, ``B`` the batch
        of the first tensor that the call was given; without a shape as a tensor that broadcasts to
        any, for only the first assignment says how large it is. Every sample has its own, the batch
        in front. ``zero_states()`` returns to the initial value, ``zero_states(where=mask)`` for
        some samples; ``detach_states``, ``.to()``, copies, ``tt.get_states``, ``tt.save`` and
        ``tt.export`` treat it as a state of a neuron. ``tt.unroll`` runs such a model by step.

        What is read is a copy. A write into it in place, ``self.buf[:, 0] = x``, ``self.h.add_(x)``
        or ``h = self.h; h += x``, is a ``ValueError`` at the end of the call, unless the memory is
        assigned after it was read: ``buf = self.buf; buf[:, 0] = x; self.buf = buf``.
        ``torch.compile`` and ``torch.vmap`` do not see it: run such a module once without them.

        Args:
            name: of the attribute; an identifier that is not taken.
            shape: of the value of one sample, a number for one dimension; ``None``: that of the
                value first assigned.
            init: what it is before the first assignment: a number, or a tensor that broadcasts to
                ``shape``.
            learnable: make ``initial_<name>`` a parameter, one value for each element of ``shape``.

        Raises:
            TypeError: an argument is of another type.
            ValueError: the name is taken, a size is below 1, or ``init`` does not fit.

        Example:
            >>> class Leaky(TTModule):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.memory("last", 3)
            ...
            ...     def forward(self, x):
            ...         self.last = 0.5 * self.last + x
            ...         return self.last
            >>> model = Leaky()
            >>> [model(torch.ones(1, 3)).tolist() for _ in range(2)]
            [[[1.0, 1.0, 1.0]], [[1.5, 1.5, 1.5]]]
        """
        if not isinstance(name, str):
            raise TypeError(
                f"{type(self).__name__}.memory(name, ...) declares a state and takes a name, got "
                f"{type(name).__name__}."
            )
        for each in (name, f"initial_{name}"):
            if not each.isidentifier() or each in self._memories or hasattr(self, each):
                raise ValueError(
                    f"{type(self).__name__} cannot call a memory {name!r}: {each!r} must be an "
                    "identifier that is not yet taken."
                )
        sizes = None if shape is None else checked_shape(name, shape)
        value = checked_init(name, init, sizes, check_flag("learnable", learnable))
        if learnable and value is not None:
            self.register_parameter(f"initial_{name}", nn.Parameter(value))
        elif value is not None:
            self.register_buffer(f"initial_{name}", value)
        if not self._memories:
            self.__dict__["_memories"] = {}
            self.__dict__.update(_memory_call=None, _memory_reads=[], _memory_is_called=False)
            self.register_forward_pre_hook(begin_call, with_kwargs=True)
            self.register_forward_hook(end_call)
        self.__dict__[_HELD + name] = None
        self.__dict__["_memories"][name] = Memory(sizes)

    @property
    def active_states(self) -> tuple[str, ...]:
        """The names of the memories that this module has declared."""
        return tuple(self._memories)

    @property
    def transient_attributes(self) -> frozenset[str]:
        """The attributes that a call changes, which are the memories and notes of the call."""
        if not self._memories:
            return frozenset()
        notes = ("_memory_call", "_memory_reads", "_memory_is_called")
        zeroed = ("_zeroed_in_backward", "_zeroed_in_trace")
        return frozenset((*map(self.attribute_of, self._memories), *notes, *zeroed))

    def attribute_of(self, state: str) -> str:
        """Return the name of the attribute that holds a memory; it is ``None`` at rest."""
        return _HELD + state

    def start_of(self, state: str, like: Tensor) -> Tensor:
        """Return what a memory is before the first step, in the shape of a live one."""
        return self._start(state, like.shape, like.dtype, like.device)

    def _start(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        value: Tensor | None = getattr(self, f"initial_{name}", None)
        if value is None:
            return torch.zeros(tuple(shape), dtype=dtype, device=device)
        value = value.to(device, dtype)
        # a copy: no state shares memory with anything
        return value.expand(tuple(shape)).clone(memory_format=torch.contiguous_format)

    def check_state_has_batch(self, label: Callable[[], str], name: str, state: Tensor) -> None:
        """Raise where a memory is one number for all samples."""
        if state.ndim == 0:
            raise ValueError(
                f"{label()} holds {name} as one number for all samples, of which a mask cannot "
                "restart some. Assign a value with the batch in front."
            )

    def begin_call(self, call: Call | None) -> None:
        """Note the batch of a call that begins.

        Raises:
            ValueError: a memory is that of another batch, or was written to in place before.
        """
        if not torch.compiler.is_compiling():
            check_thread(self)
            if not self._memory_is_called:  # or the call before has failed
                self._check_reads()
            self.__dict__["_memory_reads"] = []
        self._memory_call = call
        for name in self._memories:
            state: Tensor | None = getattr(self, _HELD + name)
            if call is None or state is None or state.ndim == 0 or is_leaked_tracer(state):
                continue
            if state.shape[0] != call.batch:
                raise ValueError(
                    f"{self.state_label()} holds {name} of shape {list(state.shape)}, and is given "
                    f"a batch of {call.batch} ({call.source(self.forward)}). Call zero_states() "
                    "before a new sequence or another batch size, zero_states(where=mask) to "
                    "restart some samples."
                )
        if not torch.compiler.is_compiling():
            self.__dict__["_memory_is_called"] = True

    def end_call(self) -> None:
        """Note that a call is over.

        Raises:
            ValueError: a memory was written to in place, and not assigned.
        """
        if not torch.compiler.is_compiling():
            self.__dict__["_memory_is_called"] = False
            self._check_reads(every=True)

    def _check_reads(self, every: bool = False) -> None:
        """Raise where a value that was handed out was written to, and forget those that are gone.

        Args:
            every: those too that somebody still holds, and all are forgotten.
        """
        reads = self._memory_reads
        self.__dict__["_memory_reads"] = (
            [] if every else [r for r in reads if r.value() is not None]
        )
        for read in reads:
            held = self.__dict__[_HELD + read.name]
            if (
                read.shared._version != read.version
                and held is read.state  # or another value has been set since
                and (every or read.value() is None)
            ):
                name = read.name
                raise ValueError(
                    f"{name} of {self.state_label()} was written to in place, and the write is "
                    f"lost: what is read is a copy. Assign: {name} = self.{name}; {name}[:, 0] = "
                    f"x; self.{name} = {name}. Of a value that is not to be remembered change "
                    f"self.{name}.clone()."
                )

    def _recall(self, name: str) -> Tensor:
        """Return a memory, and note that it was handed out."""
        if torch.compiler.is_compiling() or dispatch_modes() or is_jit_tracing():
            return self._value_of(name)
        called = self._memory_is_called
        if not called:
            self._check_reads()
        if torch.is_inference_mode_enabled():  # whose own tensors do not count writes
            with torch.inference_mode(False), torch.no_grad():
                value = self._value_of(name)
        else:
            value = self._value_of(name)
        state = self.__dict__[_HELD + name]
        # outside a call nobody may be waiting for it: not its graph
        shared = value if called else value.detach()
        read = Read(name, weakref.ref(value), shared, value._version, state)
        self.__dict__["_memory_reads"].append(read)
        return value

    def _value_of(self, name: str) -> Tensor:
        """Return a copy of a memory: what was assigned last, or what it starts from."""
        self.check_states_current()
        state: Tensor | None = getattr(self, _HELD + name)
        if state is not None:
            if is_leaked_tracer(state):
                raise ValueError(leaked_message(self.state_label(), name))
            return state.clone()
        shape, call = self._memories[name].shape, self._memory_call
        value: Tensor | None = getattr(self, f"initial_{name}", None)
        if shape is None:
            if value is not None:
                return value.clone()
            return torch.zeros((), device=None if call is None else call.device)
        if call is None:
            raise UnknownBatchError(
                f"{self.state_label()} has no value of {name} yet, and knows no batch: it is that "
                "of the first tensor, with a dimension, that the module is called with. Call the "
                "module, not its forward, or assign a value before."
            )
        exact = value is not None and not value.is_floating_point()
        dtype = value.dtype if value is not None and exact else call.dtype
        return self._start(name, (call.batch, *shape), dtype, call.device)

    def _remember(self, name: str, value: object) -> None:
        """Assign a memory; ``None`` returns it to what it starts from."""
        if not torch.compiler.is_compiling():
            check_thread(self)
            reads = [read for read in self._memory_reads if read.name != name]
            self.__dict__["_memory_reads"] = reads
        if value is not None:
            self.check_states_current()
            # a copy, which a later in-place operation on the value does not reach
            (value,) = explain_double_backward([self._check_memory(name, value).clone()])
        setattr(self, _HELD + name, value)

    def _check_memory(self, name: str, value: object, label: str | None = None) -> Tensor:
        """Return a value of a memory, or raise where it does not fit the declaration."""
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            raise TypeError(
                f"{label or self.state_label()} remembers a tensor as {name}, got "
                f"{type(value).__name__}. What it starts from is declared by "
                f"self.memory({name!r}, init=..., learnable=...)."
            )
        shape = self._memories[name].shape
        if shape is not None and (value.ndim == 0 or value.shape[1:] != shape):
            raise ValueError(
                f"{label or self.state_label()} remembers {name} as [B, "
                f"{', '.join(map(str, shape))}], got shape {list(value.shape)}."
                + self._batch_note()
            )
        return value

    def _batch_note(self) -> str:
        """Say where the batch of the call that runs comes from, for a message."""
        call = self._memory_call if self._memory_is_called else None
        return "" if call is None else f" B is {call.batch}: {call.source(self.forward)}."

    def _check_not_a_memory(self, name: str) -> None:
        """Raise where a memory has the name of what is registered."""
        if name in self._memories:
            raise ValueError(
                f"{name!r} is taken: it is a memory of {type(self).__name__}. Use another name."
            )

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a buffer, as ``nn.Module.register_buffer``.

        Raises:
            ValueError: a memory has its name.
        """
        self._check_not_a_memory(name)
        super().register_buffer(name, tensor, persistent)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, as ``nn.Module.register_parameter``.

        Raises:
            ValueError: a memory has its name.
        """
        self._check_not_a_memory(name)
        super().register_parameter(name, param)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module, as ``nn.Module.add_module``.

        Raises:
            ValueError: a memory has its name.
        """
        self._check_not_a_memory(name)
        super().add_module(name, module)

    if not TYPE_CHECKING:  # attributes have nn.Module's types

        def __getattr__(self, name):
            if name in self._memories:
                return self._recall(name)
            return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._memories:
            self._remember(name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._memories:
            raise AttributeError(f"{name} is a memory, and is not deleted: assign None.")
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        """List the memories too."""
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return [*names, *self._memories]

    def __getstate__(self) -> dict[str, Any]:
        attributes = super().__getstate__()
        if self._memories:  # copies declare, and note, for themselves
            attributes |= {
                "_memories": dict(self._memories),
                "_memory_call": None,
                "_memory_reads": [],
                "_memory_is_called": False,
            }
        return attributes


def zero_states(module: nn.Module, *, where: Tensor | None = None) -> None:
    """Clear the states of any module, an ``nn.Sequential`` say, as :meth:`.TTModule.zero_states`.

    Args:
        module: any ``nn.Module``.
        where: boolean mask over dimension 0; without it every state becomes ``None``.

    Raises:
        TypeError: ``module`` is not an ``nn.Module``, or as the method.
        ValueError: as the method.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> _ = net(torch.ones(2, 4))
        >>> zero_states(net, where=torch.tensor([True, False]))
        >>> net[1].mem[0]
        tensor([0., 0., 0.], grad_fn=<SelectBackward0>)
        >>> zero_states(net)
        >>> net[1].mem is None
        True
    """
    check_module(module)
    if isinstance(module, TTModule):
        call_action(module, "zero_states", where)
    else:
        traverse(module, "zero_states", where)


def detach_states(module: nn.Module) -> None:
    """Detach the states of any module, as :meth:`.TTModule.detach_states`.

    Args:
        module: any ``nn.Module``.

    Raises:
        TypeError: ``module`` is not an ``nn.Module``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> _ = net(torch.ones(2, 4))
        >>> detach_states(net)
        >>> net[1].mem.requires_grad
        False
    """
    check_module(module)
    if isinstance(module, TTModule):
        module.detach_states()
    else:
        traverse(module, "detach_states")
