"""``SequenceLayer``: a layer with states that runs one time step, or a whole sequence."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, fx, nn

from tracetorch.cell import Cell, Constraint, ConstructorCall
from tracetorch.core.hooks import hooked_weights
from tracetorch.core.thread_owner import check_thread, release, take
from tracetorch.core.walk import MODULE_ATTRIBUTES, Opaque
from tracetorch.functional.surrogates import Surrogate
from tracetorch.snn.module import TTModule
from tracetorch.snn.parameters import UNSET
from tracetorch.snn.representation import constructor_call, is_default, written
from tracetorch.snn.stateful_layer import StatefulLayer, StateSnapshot, running
from tracetorch.snn.unknown_arguments import ASSIGNED, check_arguments, check_assigned

Check = Callable[[str, object], object]

L = TypeVar("L", bound="SequenceLayer")

_NO_CALL = ConstructorCall("", (), {})


class Declarations(Opaque):
    """The declarations of a layer: the constraint of every parameter, the names of its options.

    Those in ``fixed`` cannot be assigned anew, those in ``checks`` only what these return.
    ``arguments`` says which arguments of the constructor's ``call`` are values of parameters and
    options. ``cells`` describe what the layer was, the last one first.

    Args:
        call: the constructor call that makes the layer.
        given: its arguments, those at their default too.
    """

    def __init__(self, call: ConstructorCall, given: Mapping[str, object]) -> None:
        self.call = call
        self.arguments: dict[str, tuple[str, ...]] = {}
        self.constraints: dict[str, Constraint] = {}
        self.options: tuple[str, ...] = ()
        self.fixed: tuple[str, ...] = ()
        self.checks: dict[str, Check] = {}
        self.cells: list[Cell] = []
        # the constructor's caller holds the arguments while they are compared, and no one later
        self._identities = {name: (id(value), type(value)) for name, value in given.items()}

    def note_argument(self, name: str, value: object) -> None:
        """Note which arguments are the value of a parameter or an option, if any are.

        They are the very object, under the same name; a surrogate is, under any.
        """
        is_surrogate = isinstance(value, Surrogate)
        found = [
            argument
            for argument, identity in self._identities.items()
            if identity == (id(value), type(value)) and (is_surrogate or argument == name)
        ]
        if found:
            self.arguments[name] = tuple(found)

    def note_assigned(self, kind: type, name: str, value: object) -> None:
        """Let the call say what a parameter or an option is now, if one argument is its value.

        Args:
            kind: the class of the layer, whose constructor knows the defaults.
            name: of the parameter or the option.
            value: that it has now.
        """
        arguments = self.arguments.get(name, ())
        if len(arguments) == 1:  # copies of the layer share the dict
            named = {**self.call.named, arguments[0]: written(value)}
            if is_default(kind, arguments[0], value):
                del named[arguments[0]]
            self.call = self.call._replace(named=named)

    def __getstate__(self) -> dict[str, Any]:
        own = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(self).items()
        }
        return {**own, "cells": [], "_identities": {}}  # of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.keys() != vars(Declarations(state.get("call", _NO_CALL), {})).keys():
            raise ValueError(
                "this pickle of a neuron layer was written by another version of traceTorch, which "
                "kept other declarations. Load it with that version and write it with tt.save, or "
                "save its state_dict; both load here into a model that is built anew."
            )
        vars(self).update(state)


class _ConstructorSignature:
    """The signature of a class, that of its ``__init__``; instances have none of their own.

    Python 3.10 would show that of ``__new__`` for a class whose ``__init__`` is a base's.
    """

    def __get__(self, layer: object, kind: type) -> inspect.Signature:
        if layer is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(kind.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class SequenceLayer(StatefulLayer):
    """A layer that keeps states from step to step, and runs one step or a whole sequence.

    Base of :class:`Neuron`, whose ``step`` runs, and of layers with a memory of another kind: a
    recurrent connection, delays, noise, norms and dropout over time. A child writes
    :meth:`forward_step` and :meth:`forward_sequence`; calling the layer runs one step, and inside
    ``tt.unroll`` by layer all of them.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: ``num_neurons`` is below 1.

    Example:
        >>> isinstance(LIF(3), SequenceLayer), isinstance(Delay(3, max_delay=2), SequenceLayer)
        (True, True)
    """

    __signature__ = _ConstructorSignature()
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    layer_pass: Callable[..., Tensor] | None
    """What a call does instead of one step while ``tt.unroll`` runs the model by layer."""
    _declared: Declarations

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor: ...  # noqa: D102 (nn.Module's, typed)

    def __new__(cls: type[L], *args: Any, **kwargs: Any) -> L:
        """Remember the constructor call, for ``repr``; raise for arguments it does not have."""
        check_arguments(cls, kwargs)
        layer = super().__new__(cls)
        call = constructor_call(cls, args, kwargs)
        object.__setattr__(layer, "_declared", Declarations(*call))
        return layer

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.layer_pass = None

    def option(
        self, name: str, value: object, *, fixed: bool = False, check: Check | None = None
    ) -> None:
        """Declare a constant: a flag, a word, a number, a spike function; ``step`` receives it.

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
        self._declared.note_argument(name, value)
        if fixed:
            self._declared.fixed += (name,)

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

    @property
    def transient_attributes(self) -> frozenset[str]:
        """The states, and what else a step changes (notes that hold for one call)."""
        notes = (
            "_doubtful_step",
            "_graph_steps",
            "_nan_reported",
            "_steps_run",
            "_takes_steps",
            "_zeroed_in_backward",
            "_zeroed_in_trace",
            "layer_pass",
        )
        return frozenset((*self.active_states, *notes, "step_kwargs"))

    @property
    def passed_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that a call passes."""
        return self.inputs

    def __getattr__(self, name: str) -> Any:
        if name in type(self).states and self.__dict__.get("layer_pass") is not None:
            check_thread(self)
            # a pass by layer has set the states aside, for those of one step are not known
            raise ValueError(
                f"{self.label()} runs all of its time steps at once, so a forward cannot read its "
                f'state {name} of one step. Use tt.unroll(..., by="step").'
            )
        # past TTModule: no layer has a memory beside its states
        return nn.Module.__getattr__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__dict__":
            # torch.export makes proxies of modules that have two names, which share attributes
            object.__setattr__(self, name, value)
            return
        declared = self._declared
        if name in declared.fixed:
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
        if isinstance(value, nn.Parameter) and name in type(self).states:
            raise TypeError(
                f"{name} of {self!r} is a state, which every step sets anew, and no parameter. "
                "Give a tensor; what it starts from is declared by self.state(name, init=...)."
            )
        if name in declared.checks:
            value = declared.checks[name](name, value)
        if name in ASSIGNED and name not in declared.options:
            attributes = self.__dict__  # an option that is None is a part that the layer lacks
            given = [each for each in declared.options if attributes.get(each, UNSET) is not None]
            check_assigned(self, name, (*declared.constraints, *given))
        nn.Module.__setattr__(self, name, value)
        if name in declared.options:
            declared.note_assigned(type(self), name, value)

    def __dir__(self) -> list[str]:
        """List the parameters by name too, and leave out the parts that the layer does not have."""
        names: set[str] = set(super().__dir__())
        names -= {"__signature__", "memory"}  # of the class alone
        attributes = self.__dict__
        names.update(self.constraints)
        names.difference_update(set(self.states).difference(self.active_states))
        names.difference_update(n for n in self.options if attributes.get(n, n) is None)
        return sorted(names)

    def __repr__(self) -> str:
        call = str(self._declared.call)
        inner = super().__repr__() if self._modules else ""
        return f"{call}{inner[inner.index('(') :]}" if inner else call

    def __getstate__(self) -> dict[str, Any]:
        # copy.copy(layer) shares tensors, and not the dicts that name them, nor its hooks
        attributes = super().__getstate__()
        copies = {
            name: copy.copy(value)
            for name, value in attributes.items()
            if name == "_declared" or (name in MODULE_ATTRIBUTES and isinstance(value, dict))
        }
        return {**attributes, **copies, "layer_pass": None}

    # Calling

    def forward(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor:
        """Run one time step; inside ``tt.unroll`` by layer all of them, folded into the batch."""
        try:
            several = further or named or len(self.inputs) > 1
        except fx.proxy.TraceError:  # traced as the root: all arguments are stand-ins
            self._check_fx(x)
            raise
        if several:
            return self._forward_several(x, further, named)
        if self.layer_pass is not None:
            return self.layer_pass(self, x)
        return self._run_step(x)

    def _forward_several(
        self, x: Tensor, given: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> Tensor:
        """Run the modules that compute inputs, and then the layer."""
        if self.layer_pass is not None:
            return self.layer_pass(self, x, *self._all_further(x, given, named))
        if torch.compiler.is_compiling():
            return self._run_step(x, *self._all_further(x, given, named))
        check_thread(self)  # before anything is taken that would be restored
        within = [each for each in self.modules() if isinstance(each, StatefulLayer)]
        before = StateSnapshot(each for each in within if each is not self)
        try:
            return self._run_step(x, *self._all_further(x, given, named))
        except BaseException:
            before.restore()  # a failed call changes no state, those of noise included
            raise

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

    def _run_step(self, x: Tensor, *further: Tensor) -> Tensor:
        """Run one time step while this thread owns the layer."""
        if torch.compiler.is_compiling() or not self.states:
            return self.forward_step(x, *further)
        if running.by_layer:
            raise ValueError(
                f"{self!r} cannot be reached through the attributes of the model that runs by "
                "layer, only through a closure or a global: it would take all time steps for one "
                'batch. Hold it in an attribute, or use tt.unroll(..., by="step").'
            )
        outermost = take(self)
        try:  # without the star where there is nothing behind it, for it takes time at every step
            return self.forward_step(x, *further) if further else self.forward_step(x)
        finally:
            if outermost:
                release(self)

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step."""
        raise NotImplementedError(f"{type(self).__name__} needs a method forward_step.")

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` ``[T, ...]``; return outputs and recorded trajectories.

        Args:
            x: the inputs ``[T, ...]``.
            record: names of states whose trajectories are wanted too.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method forward_sequence.")


def transient_attributes_of(module: nn.Module) -> frozenset[str]:
    """Return what a call of a module may change: its mode, hooked weights, a neuron's states."""
    own = frozenset({"training", *hooked_weights(module)})
    return own | module.transient_attributes if isinstance(module, TTModule) else own
