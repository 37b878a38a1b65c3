"""``Pass``: the states of all layers that a call meets, read where they are met, committed at once.

A pass is ambient for its thread, and writes to layers by one call of C that nothing interrupts. A
clock, read when it begins and in that call, tells one that would go on from the states of two. By
layer a ``forward`` that reads, sets or clears states is refused; what runs inside a layer runs by
step. A pass inside a pass reads from the outer one and commits to it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from itertools import chain, count, islice
from typing import Any, NoReturn, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import (
    NO_BACKWARD,
    current_backward,
    dispatch_modes,
    functorch,
    functorch_active,
    is_jit_tracing,
    is_tracing,
    observed_by,
    unsafe_view,
)
from tracetorch.core.walk import Opaque, join_path, named_modules

P = ParamSpec("P")
R = TypeVar("R")

WRITTEN = "_states_written"  # the attribute that holds when states were written last, in a list
_clock = count(1)
LOOK_EVERY = 100  # single steps: a look for NaN takes microseconds, a step tens of them
_log = logging.getLogger("tracetorch")


Stateful: TypeAlias = Any  # a TTModule, whose file imports this one
Layer: TypeAlias = Any  # a SequenceLayer


class _Ambient(threading.local):
    """The pass that runs in this thread; ``torch.compile`` follows such an attribute."""

    current: Pass | None

    def __init__(self) -> None:
        # on each thread's own part: a compiler guards on whether it is there
        self.current = None


ambient = _Ambient()


def current_pass() -> Pass | None:
    """Return the pass that runs in this thread, or ``None``."""
    return ambient.current


def states_of(module: Stateful, action: str = "use its states") -> dict[str, Any]:
    """Return the states of a module by attribute: those of the pass, else those on the module."""
    run = ambient.current
    return module.__dict__ if run is None else run.states_of(module, action)


def weight_in_loop(
    module: object, compute: Callable[[torch.dtype], Tensor], dtype: torch.dtype
) -> Tensor:
    # only what runs a module asks: a method that a subclass overrides is not handed its own result
    known = None if ambient.current is None else ambient.current.weights.get(id(module))
    return known if known is not None and known.dtype == dtype else compute(dtype)


class Restarts(Opaque):
    """A checked mask of where samples start anew before a step, read once for a pass."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.now: Tensor | None = None  # by which the layer that runs is restarted
        self._steps: list[bool] | None = None

    @property
    def steps(self) -> list[bool]:
        """For every step whether a sample starts anew; true where nobody can read the mask."""
        if self._steps is None:
            unread = torch.compiler.is_compiling() or observed_by((self.mask,)) is not None
            self._steps = (
                [True] * len(self.mask) if unread else self.mask.flatten(1).any(1).tolist()
            )
        return self._steps


class Entry:
    """The states of one module in a pass, by attribute; without a constructor, which takes time."""

    __slots__ = ("called", "module", "states", "within")

    called: bool
    module: Stateful
    states: dict[str, Any]
    within: Any  # the layer inside which it runs, step by step, or itself; None by step


class Pass:
    """The states of the layers that a call meets; ``folded``: by layer, ``steps`` in the batch."""

    def __init__(
        self,
        steps: int = 1,
        *,
        folded: bool = False,
        from_rest: bool = False,
        reset: Restarts | None = None,
        recorder: Any = None,
    ) -> None:
        self.steps, self.folded, self.from_rest = steps, folded, from_rest
        self.reset, self.recorder = reset, recorder
        self.parent = ambient.current
        self.entries: dict[int, Entry] = {}
        self.running: Any = None  # by layer the layer that runs its steps now
        self.notes: dict[int, Any] = {}  # what a module keeps for the length of the call, by its id
        self.weights: dict[int, Tensor] = {}  # what a loop computes once for all of its steps
        compiling = torch.compiler.is_compiling()
        self.began = 0 if compiling else next(_clock)
        observed = not compiling and (dispatch_modes() or is_jit_tracing())
        self.traced = bool(observed) and is_tracing()
        self.backward = NO_BACKWARD if compiling else current_backward()

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function within the pass."""
        outer = ambient.current
        try:  # an interrupt must not leave the pass behind, so it is set inside the block
            ambient.current = self
            return function(*args, **kwargs)
        finally:
            ambient.current = outer

    # States

    def states_of(self, module: Stateful, action: str = "use its states") -> dict[str, Any]:
        """Return the states of a module by attribute, to read and to write."""
        running = self.running
        if running is None and self.folded:
            raise ValueError(
                f"{module._label()} runs all of its time steps at once, so a forward cannot "
                f'{action} in each of them. Use tt.unroll(..., by="step").'
            )
        entry = self.entries.get(id(module)) or self._meet(module, running)
        if entry.within is not running:
            self._refuse_place(module)
        return entry.states

    def _meet(self, module: Stateful, within: Stateful | None) -> Entry:
        """Read the states of a module that the pass has not met yet."""
        entry = Entry()
        entry.module, entry.within, entry.called = module, within, False
        names = module._state_attributes
        if self.from_rest:
            entry.states = dict.fromkeys(names)
        else:
            if self.parent is not None:
                source = self.parent.states_of(module)
            else:
                source = module.__dict__
                written = source.get(WRITTEN)
                if written and written[0] > self.began > 0:
                    raise RuntimeError(
                        f"the states of {module._label()} were written since this pass began, by "
                        "another thread: continue a stream in one thread at a time, or run from "
                        "rest, tt.unroll(..., from_rest=True)."
                    )
                if (self.traced and not module._zeroed_in_trace) or (
                    self.backward not in (NO_BACKWARD, module._zeroed_in_backward)
                ):
                    module._refuse_stale_states()
            entry.states = {name: source[name] for name in names}
        self.entries[id(module)] = entry
        return entry

    def _refuse_place(self, module: Stateful) -> NoReturn:
        raise ValueError(
            f"{module._label()} is called inside of a layer that runs all of its time steps at "
            'once, a Recurrent, and also outside of it. Use tt.unroll(..., by="step").'
        )

    def has_restarted(self, module: Stateful, where: Tensor) -> bool:
        """Whether a module has run all steps, and restarted, before the layer whose input it is."""
        if self.running is None or self.reset is None or self.reset.now is not where:
            return False
        entry = self.entries.get(id(module))
        return entry is not None and entry.within is not self.running

    def is_current(self) -> bool:
        """Whether the states are those of the trace, or the backward pass, that runs now."""
        return self.traced == is_tracing() and self.backward == current_backward()

    def check_outlives_transforms(self) -> None:
        """Raise where states are of a ``vmap``: a later one of its level would go on from them."""
        if not functorch_active() or self.parent is not None:
            return
        for entry in self.entries.values():
            for name, state in entry.states.items():
                if isinstance(state, Tensor) and functorch.is_batchedtensor(state):
                    raise ValueError(
                        f"{entry.module._label()} would keep a state {name} of all samples of "
                        "a vmap. Use tt.unroll(..., from_rest=True) in torch.vmap."
                    )

    def commit(self) -> None:
        """Write all states back, to the modules or to the outer pass, all together."""
        entries = self.entries.values()
        if torch.compiler.is_compiling():
            for entry in entries:
                for name, state in entry.states.items():
                    setattr(entry.module, name, state)
            return
        parent = self.parent
        now: list[int] = []
        stamps = [{WRITTEN: now}] * (len(entries) if parent is None else 0)
        news = [entry.states for entry in entries]
        targets = [
            entry.module.__dict__ if parent is None else parent.states_of(entry.module)
            for entry in entries
        ]
        # freed behind the commit, for that may run code
        olds = [list(map(target.get, new)) for target, new in zip(targets, news, strict=True)]
        clock = map(list.extend, (now,), (islice(_clock, 1),))
        deque(
            chain(clock, map(dict.update, targets, news), map(dict.update, targets, stamps)),
            maxlen=0,
        )
        del olds

    # Calls of layers

    def __call__(
        self, layer: Layer, x: Tensor, given: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> Tensor:
        """Run a layer: one step, or, by layer, all the steps that ``x`` ``[T * B, ...]`` holds."""
        several = given or named or len(layer.inputs) > 1
        if not self.folded or self.running is not None:
            further = layer._all_further(x, given, named) if several else ()
            y: Tensor = layer.forward_step(x, *further)
            if self.recorder is not None:
                y = self.recorder.after(layer, x, y)
            return y
        entry = self.entries.get(id(layer)) or self._meet(layer, layer)
        if entry.within is not layer:
            self._refuse_place(layer)
        if entry.called:
            raise ValueError(
                f"{layer._label()} is called twice in one step, so its steps cannot be run all at "
                'once. Use unroll(..., by="step").'
            )
        entry.called = True
        steps = self.steps
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] % steps:
            layer._check_input(x)
            raise ValueError(
                f"{layer._label()} got shape {list(x.shape)}, which does not hold {steps} time "
                "steps in dimension 0: something before it does not keep the batch first. Use "
                'by="step".'
            )
        further = ()
        if several:
            every = layer._all_further(x, given, named)
            further = tuple([_unfolded(layer, each, x, steps) for each in every])
        x = x.view((steps, x.shape[0] // steps, *x.shape[1:]))
        self.running = layer
        try:
            if further or self.reset is not None or self.recorder is not None:
                y = self._run_general(layer, x, further)
            else:
                y, _ = layer.forward_sequence(x)
        finally:
            self.running = None
        if not y.is_contiguous():
            return y.flatten(0, 1)
        folded = (y.shape[0] * y.shape[1], *y.shape[2:])
        # without a graph a view is as good, and costs a third; a trace is checked without one
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_jit_tracing():
            return unsafe_view(y, folded)
        return y.view(folded)

    def _run_general(self, layer: Layer, x: Tensor, further: tuple[Tensor, ...]) -> Tensor:
        """Run the sequence of a layer with further inputs, restarts or a recorder."""
        y: Tensor
        more: dict[str, Any] = {"further": further} if further else {}
        recorder = self.recorder
        record = () if recorder is None else recorder.states_wanted_of(layer)
        if recorder is not None:
            # what the model does in place with the input must not reach the record
            x = recorder.own_input(layer, x)
        if self.reset is None:
            y, trajectories = layer.forward_sequence(x, record, **more)
        else:
            if x.shape[1] != self.reset.mask.shape[1]:
                raise ValueError(
                    f"{layer._label()} got {x.shape[1]} samples in each step, and reset= says of "
                    f'{self.reset.mask.shape[1]} where they start anew. Use unroll(..., by="step").'
                )
            y, trajectories = layer._restarted(x, record, self.reset, further)
        if recorder is not None:
            y = recorder.after(layer, x, y, trajectories)
        return y


def _unfolded(layer: Layer, value: Tensor, x: Tensor, steps: int) -> Tensor:
    """Unfold time of an input beside ``x``; what is the same in all steps stays as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    folded, samples = value.shape[0] == x.shape[0], x.shape[0] // steps
    if value.ndim == x.ndim and folded:
        return value.reshape((steps, samples, *value.shape[1:]))
    # Of fewer dimensions it may be one value per neuron, or, with one sample, time folded into
    # samples, which would then be taken for neurons.
    constant = value.shape[0] in (1, samples) or value.ndim < x.ndim
    if not constant or (folded and steps > 1 and samples == 1):
        raise ValueError(
            f"{layer._label()} got an input of shape {list(value.shape)} beside one of "
            f"{list(x.shape)}, which holds {steps} time steps in dimension 0. Give it as many "
            "steps, or, what is the same in all of them, a dimension of size 1 in front; or use "
            'by="step".'
        )
    return value


def note_written(module: Stateful) -> None:
    """Note that the states of a module were cleared or set, where no pass runs."""
    if ambient.current is None and not torch.compiler.is_compiling():
        module.__dict__[WRITTEN] = [next(_clock)]


def in_one_commit(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in the pass that runs, or one of its own: all layers go on, or none."""
    if ambient.current is not None:
        return function(*args, **kwargs)
    run = Pass()
    result = run.call(function, *args, **kwargs)
    run.commit()
    return result


class State:
    """A state of a layer as an attribute: the entry of the pass that runs, else the layer's own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layer: Any, kind: type | None = None) -> Any:
        if layer is None:
            return self
        run = ambient.current
        states = (
            layer.__dict__ if run is None else run.states_of(layer, f"read its state {self.name}")
        )
        try:
            return states[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def __set__(self, layer: Any, value: Any) -> None:
        run = ambient.current
        if run is None or self.name not in layer.__dict__:  # the constructor
            layer.__dict__[self.name] = value
        else:
            run.states_of(layer, f"set its state {self.name}")[self.name] = value


def report_nan_behind(run: Pass, model: nn.Module) -> None:
    """Log that a state is NaN which a pass over a model has left."""
    if run.traced or functorch_active():
        return

    def name_of(layer: Layer, state: str) -> str:
        paths = (path for path, module in named_modules(model) if module is layer)
        return join_path(next(paths, ""), state)

    layers: list[tuple[Any, dict[str, Any]]] = []
    for entry in run.entries.values():  # a comprehension would be one more call
        layers.append((entry.module, entry.states))
    _report_nan(layers, name_of)


def count_step(layer: Layer) -> None:
    """Count a single step outside of any pass, and look for NaN now and then."""
    notes = layer.__dict__
    notes["_steps_run"] = number = notes.get("_steps_run", 0) + 1
    if number % LOOK_EVERY == 0 and observed_by(modes=False) is None:
        layers = [(module, module.__dict__) for module in layer.modules()]
        _report_nan(layers, lambda module, state: f"{state} of {module._label()}")


def _report_nan(
    layers: list[tuple[Any, dict[str, Any]]], name_of: Callable[[Any, str], str]
) -> None:
    """Log, once for all of these layers, that a state is NaN; for a GPU one would have to wait."""
    for layer, states in layers:
        # a memory of a module's own may hold what it likes, and what a delay holds does not stay
        if not hasattr(type(layer), "_nan_reported") or layer._state_kind.tail:
            continue
        for name in layer.states:
            state = states.get(name)
            if type(state) is not Tensor or not state.is_cpu:
                continue
            # by one number, for it is behind every sequence: NaN and infinity show in the sum
            total = state.detach().sum().item()
            if total - total == 0 or not bool(state.isnan().any()):
                continue
            reported = any(getattr(each, "_nan_reported", False) for each, _ in layers)
            if not reported and observed_by(modes=False) is None:
                _log.warning(_NAN, name_of(layer, name))
                for each, _ in layers:
                    each.__dict__["_nan_reported"] = True
            return


_NAN = (
    "%s is NaN, and stays so until zero_states(). A neuron's spike is 0 there, so that what "
    "follows looks finite; but a gradient makes weights NaN, behind a mask too, for 0 * NaN is "
    "NaN. tt.diagnose names where it begins. Fill padding by x.masked_fill(~mask[..., None], 0); "
    "of a stream, if not x.isfinite().all(), use the last good input."
)
