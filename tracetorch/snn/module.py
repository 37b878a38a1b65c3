"""``TTModule``: an ``nn.Module`` whose states are cleared and detached in one call.

States are plain attributes, never buffers, which DistributedDataParallel would broadcast over the
membranes of every process but one. ``zero_states`` goes to the nearest ``TTModule``s below, each of
which goes on through ``super()``, so that overrides run, once.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tracetorch.core.checks import check_module
from tracetorch.core.torch_private import (
    NO_BACKWARD,
    constant_in_compile,
    current_backward,
    exclude_from_compile,
    graph_break,
    is_exporting,
    is_leaked_tracer,
    is_tracing,
    kept_for_child,
)
from tracetorch.core.walk import named_modules, path_on_stack
from tracetorch.snn.memory import (
    CALL,
    GivingWay,
    attribute_of,
    declare,
    leaked_message,
    recall,
    remember,
    start_of,
)
from tracetorch.snn.passes import WRITTEN, current_pass, note_written, states_of

Action: TypeAlias = Literal["zero_states", "detach_states"]

_FROZEN_STATE = (
    "torch.export, torch.jit.trace and make_fx would freeze the state of a neuron layer as a "
    "constant. tt.export.step(model, sample) makes a program whose states go in and come out, "
    "tt.export.sequence one over time; or trace what calls zero_states() first and loops over time."
)
_HIDDEN = (
    "torch.compile cannot reach a stateful module that is held in a plain list, dict or object. "
    "Register it (nn.ModuleList, nn.ModuleDict), or zero the states outside."
)


class TTModule(nn.Module):
    """An ``nn.Module`` whose hidden states, however deep, are cleared and detached in one call.

    An override of ``zero_states`` or ``detach_states`` calls ``super()``, and runs once in a model.
    What a module itself remembers it declares by :meth:`memory`.

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
        >>> net.cells[0].mem is None, net.get_param_count()
        (True, 12)
    """

    # none until there is one; a mapping proxy would be true for torch.compile, although it is empty
    _memories: Mapping[str, tuple[int, ...] | None] = {}
    _declares_memory = True  # neuron layers have ``states`` instead
    # where the states were zeroed or set: in this trace, in this backward pass
    _zeroed_in_trace = False
    _zeroed_in_backward = NO_BACKWARD

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
        if self.active_states:
            self._zero_own_states(where)

    def detach_states(self) -> None:
        """Cut every state from the graph that computed it; the values stay."""
        traverse(self, "detach_states")
        if not self.active_states:
            return
        states = states_of(self, "call detach_states()")
        for attribute in self._state_attributes:
            state = states[attribute]
            if state is not None and not is_leaked_tracer(state):
                states[attribute] = state.detach()

    def get_param_count(self) -> int:
        """Count the parameter values in the module and all it holds, shared ones once."""
        found = {id(p): p for _, module in named_modules(self) for p in module.parameters()}
        return sum(p.numel() for p in found.values())

    # What states there are

    @property
    def active_states(self) -> tuple[str, ...]:
        """The names of the states that this module has, the memories that it has declared."""
        return tuple(self._memories)

    @property
    def _state_attributes(self) -> tuple[str, ...]:
        """The names of the attributes that hold the states, in the order of ``active_states``."""
        return tuple(map(attribute_of, self._memories))

    def _attribute_of(self, state: str) -> str:
        return attribute_of(state)

    def _start_of(self, state: str, like: Tensor) -> Tensor:
        return start_of(self, state, like.shape, like.dtype, like.device)

    def _moved_state(self, state: Tensor, moved: Tensor) -> Tensor:
        return moved

    def _label(self) -> str:
        return layer_label(self, path_on_stack(self))

    def _refuse_stale_states(self) -> None:
        """Raise where a trace would freeze a state, or a backward pass runs a step again."""
        if not self._zeroed_in_trace and is_tracing():
            if torch.compiler.is_dynamo_compiling():
                graph_break(_FROZEN_STATE)  # old versions swallow what is raised
            raise RuntimeError(_FROZEN_STATE)
        if torch.compiler.is_compiling():
            return  # nor is a guard set on what is read below
        if current_backward() not in (NO_BACKWARD, self._zeroed_in_backward):
            raise RuntimeError(
                f"{self._label()} is run again inside backward(), from the state it has now "
                "instead of the one it had, by activation checkpointing or an engine of gradients "
                "per sample (Opacus). Checkpoint a function that calls zero_states() and loops "
                "over time; freeze the parameters of neurons, or use torch.func.vmap of a grad."
            )

    def _check_states_current(self) -> None:
        """Raise where a step would run on states of another trace or backward pass."""
        run = current_pass()
        if run is None or not (torch.compiler.is_compiling() or run.is_current()):
            self._refuse_stale_states()

    def _mark_states_current(self) -> None:
        """Note the trace or backward pass that the states belong to: who sets them calls it."""
        self._zeroed_in_trace = is_tracing()
        if not torch.compiler.is_compiling():
            self._zeroed_in_backward = current_backward()

    # Clearing

    def _zero_own_states(self, where: Tensor | None) -> None:
        """Set the states of this very module to ``None``, or start some samples anew."""
        if self._has_restarted(where):
            return
        states = states_of(self, "call zero_states()")
        if where is None:
            self._mark_states_current()
        elif torch.compiler.is_dynamo_compiling():
            # whose repr of modules inside a module it cannot follow
            name = type(self).__name__ if self._modules else repr(self)
            self._check_mask_fits(lambda: name, where)
        for name in self.active_states:
            attribute = self._attribute_of(name)
            state = states[attribute]
            if where is None or state is None:
                states[attribute] = None
            else:
                mask = where.to(state.device).reshape(-1, *[1] * (state.ndim - 1))
                states[attribute] = torch.where(mask, self._start_of(name, state), state)
        note_written(self)

    def _has_restarted(self, where: Tensor | None) -> bool:
        run = current_pass()
        return run is not None and where is not None and run.has_restarted(self, where)

    def _check_reset(self, path: str, where: Tensor) -> None:
        """Raise where ``zero_states(where=...)`` would fail on this very module."""
        parameters = inspect.signature(self.zero_states).parameters.values()
        if not any(p.name == "where" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise TypeError(
                f"{type(self).__name__}.zero_states, at {path or 'the root'!r}, does not take "
                "where=. Declare zero_states(self, *, where=None) and pass it on to super()."
            )
        if self.active_states and not self._has_restarted(where):
            self._check_mask_fits(lambda: layer_label(self, path), where)

    def _check_mask_fits(self, label: Callable[[], str], where: Tensor) -> None:
        """Raise where the mask of ``zero_states(where=...)`` does not fit a live state."""
        states = states_of(self, "call zero_states()")
        for name in self.active_states:
            attribute = self._attribute_of(name)
            state = states[attribute]
            if state is None:
                continue
            if is_leaked_tracer(state):
                raise ValueError(leaked_message(label(), name))
            self._check_state_has_batch(label, name, state)
            if len(state) != len(where):
                raise ValueError(
                    f"{label()} holds {name} for a batch of {len(state)}, shape "
                    f"{list(state.shape)}; the mask has {len(where)} entries."
                )

    def _check_state_has_batch(self, label: Callable[[], str], name: str, state: Tensor) -> None:
        """Raise where dimension 0 of a state does not hold the batch."""
        if state.ndim == 0:
            raise ValueError(
                f"{label()} holds {name} as one number for all samples, of which a mask cannot "
                "restart some. Assign a value with the batch in front."
            )

    # Copying and moving

    def __getstate__(self) -> dict[str, Any]:
        attributes = self.__dict__.copy()
        attributes.pop(WRITTEN, None)  # of this process
        states = states_of(self, "copy it") if self.active_states else attributes
        for name in self.active_states:
            attribute = self._attribute_of(name)
            state = states[attribute]
            if state is not None:
                state = kept_for_child(detached_state(self, name, state))
            attributes[attribute] = state
        if self._memories:
            attributes[CALL] = None
        return attributes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TTModule:
        states = states_of(self, "move it") if self.active_states else {}
        moved: dict[str, Tensor | None] = {}
        for attribute in self._state_attributes:
            state = states.get(attribute)
            if state is None or is_leaked_tracer(state):
                continue
            with _EmptyLikeDetector() as detector:
                value = fn(state)
            # to_empty() keeps no values
            moved[attribute] = None if detector.seen else self._moved_state(state, value)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        states.update(moved)
        return self

    def _replicate_for_data_parallel(self) -> Any:
        if self.active_states:
            raise RuntimeError(
                f"{layer_label(self, '')}: nn.DataParallel runs copies and throws their states "
                "away. Use DistributedDataParallel, one process per device."
            )
        return super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]

    # Memory of the module's own

    def memory(
        self,
        name: str,
        shape: int | Sequence[int] | None = None,
        *,
        init: float | Tensor = 0.0,
        learnable: bool = False,
    ) -> None:
        """Declare a memory: a state that ``forward`` reads and writes as the attribute ``name``.

        Until it is assigned, and after ``zero_states()``, it reads as its initial value ``[B,
        *shape]``, ``B`` the batch of the first tensor of the call; without a shape as one that
        broadcasts to any; outside of a call as ``None``. ``tt.unroll`` runs such a model by step.

        Assign, and do not write in place: what a call reads is a copy, and a write into it that is
        not assigned a ``ValueError`` at its end, which ``torch.compile`` and ``torch.vmap`` do not
        see: ``buf = self.buf; buf[:, 0] = x; self.buf = buf``.

        Args:
            name: of the attribute; an identifier that is not taken.
            shape: of one sample, a number for one dimension; ``None``: of what is first assigned.
            init: the initial value: a number, or a tensor that broadcasts to ``shape``.
            learnable: make ``initial_<name>`` a parameter, one value for each element of ``shape``.

        Raises:
            TypeError, ValueError: the name is taken, a size is below 1, ``init`` does not fit.

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
        declare(self, name, shape, init, learnable)

    if not TYPE_CHECKING:
        memory = GivingWay(memory)

    if not TYPE_CHECKING:  # attributes have nn.Module's types

        def __getattr__(self, name):
            if name in self._memories:
                return recall(self, name)
            return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._memories:
            remember(self, name, value)
        else:
            super().__setattr__(name, value)


class _EmptyLikeDetector(TorchFunctionMode):
    """Notice ``torch.empty_like``, by which ``Module.to_empty`` differs from a move."""

    seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen |= func is torch.empty_like
        return func(*args, **(kwargs or {}))


def keeps_states(module: object) -> TypeGuard[TTModule]:
    """Whether a module is a neuron layer, or has declared a memory."""
    return isinstance(module, TTModule) and bool(module.active_states)


def detached_state(module: TTModule, name: str, state: Tensor, path: str = "") -> Tensor:
    """Copy a live state, detached."""
    if is_leaked_tracer(state):
        raise ValueError(leaked_message(layer_label(module, path), name))
    return state.detach().clone()


def layer_label(layer: object, path: str | None) -> str:
    """Name a layer for messages in one line, with its path where it is known."""
    call = repr(layer).partition("(\n")[0]  # without the modules inside
    return f"layer {path!r}, {call}," if path else call


# Traversal


class _Traversal(threading.local):
    """The modules that a call has reached, and whose ``super()`` it awaits, in each thread."""

    def __init__(self) -> None:
        # set here, not on the class: torch.compile specialises on the attributes of the object
        self.reached: set[int] = set()
        self.awaited: tuple[nn.Module, Action, Tensor | None] | None = None


_traversal = _Traversal()


def traverse(root: nn.Module, action: Action, where: Tensor | None = None) -> None:
    """Call ``action`` of every stateful module below ``root``, each once."""
    compiling = torch.compiler.is_dynamo_compiling()
    outer = awaited, reached = _traversal.awaited, _traversal.reached
    # whether an override has called super(); whatever else it calls is a traversal of its own
    goes_on = (
        awaited is not None and awaited[0] is root and awaited[1] == action and awaited[2] is where
    )
    if not goes_on:
        # an export raises by itself, at the first step of a layer that was not reached
        if compiling and not is_exporting() and _has_hidden_states(root):
            graph_break(_HIDDEN)
            _traverse_uncompiled(root, action, where)
            return
        if where is not None:
            check_mask(where)
            for path, module in () if compiling else named_modules(root):
                if isinstance(module, TTModule):
                    module._check_reset(path, where)
        reached = {id(root)}
        _traversal.reached = reached
    try:
        for module in _registered_below(root) if compiling else _nearest_below(root):
            if id(module) not in reached:
                reached.add(id(module))
                _traversal.awaited = module, action, where
                _call_action(module, action, where)
    finally:
        _traversal.awaited, _traversal.reached = (None, reached) if goes_on else outer


def _nearest_below(root: nn.Module) -> list[nn.Module]:
    """List the outermost stateful modules below ``root``."""
    found = named_modules(root, closed=TTModule)
    return [each for _, each in found if isinstance(each, TTModule) and each is not root]


def _registered_below(root: nn.Module) -> list[nn.Module]:
    """List those that are registered, which ``torch.compile`` can follow."""
    found: list[nn.Module] = []
    for module in root.children():
        found += [module] if isinstance(module, TTModule) else _registered_below(module)
    return found


def _call_action(module: nn.Module, action: Action, where: Tensor | None = None) -> None:
    """Call a method of a module; ``where`` only when given, for an override need not take it."""
    if not isinstance(module, TTModule):
        traverse(module, action, where)
    elif where is None:
        getattr(module, action)()
    else:
        getattr(module, action)(where=where)


_traverse_uncompiled = exclude_from_compile(traverse)


@constant_in_compile
def _has_hidden_states(root: nn.Module) -> bool:
    """Whether a stateful module is held outside ``root.modules()``; called once per compilation."""
    registered = {id(module) for module in root.modules()}
    return any(
        isinstance(module, TTModule) and id(module) not in registered
        for _, module in named_modules(root)
    )


def check_mask(where: object) -> None:
    """Raise unless ``where`` is a boolean mask over the batch."""
    if not isinstance(where, Tensor) or where.dtype != torch.bool:
        got = f"a tensor of {where.dtype}" if isinstance(where, Tensor) else type(where).__name__
        raise TypeError(
            f"where must be a boolean tensor, got {got}. Try where=torch.as_tensor(done, "
            "dtype=torch.bool)."
        )
    if where.ndim != 1:
        raise ValueError(
            f"where must have one dimension, the batch, got shape {list(where.shape)}."
        )


def zero_states(module: nn.Module, *, where: Tensor | None = None) -> None:
    """Clear the states of any module, an ``nn.Sequential`` say, as :meth:`.TTModule.zero_states`.

    Args:
        module: any ``nn.Module``.
        where: boolean mask over dimension 0; without it every state becomes ``None``.

    Raises:
        TypeError, ValueError: ``module`` is not an ``nn.Module``, or as the method.

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
    _call_action(module, "zero_states", where)


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
    _call_action(module, "detach_states")
