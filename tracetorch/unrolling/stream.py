"""``Stream``: states of a model that are kept apart from the model, one stream or many."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module
from tracetorch.core.torch_private import (
    NO_BACKWARD,
    current_backward,
    exclude_from_compile,
    functorch_active,
    is_tracing,
)
from tracetorch.core.walk import named_modules
from tracetorch.snn.module import detach_states, zero_states
from tracetorch.snn.passes import LOOK_EVERY, Entry, Pass, Stateful, current_pass, report_nan_behind
from tracetorch.snn.states import ExtraStates, get_states, set_states
from tracetorch.unrolling.unroll import unroll

R = TypeVar("R")


class Stream:
    """Run a model as a stream with states of its own: one of many, in one thread or in several.

    The model's own states are neither read nor written: a server keeps one model, and a stream for
    each client. A call is one time step; one that fails changes nothing. A stream starts from rest,
    with the batch size of its first input, until ``zero_states()``. Streams of one model may run at
    once in several threads, each in one at a time. What a module keeps outside of states they
    share: running statistics in training, attributes of a ``forward`` that are no :meth:`memory
    <.TTModule.memory>`.

    Args:
        model: any module with neuron layers, whose call is one step.

    Raises:
        TypeError, ValueError: no module; an online learner; a stream is copied or pickled.

    Example:
        >>> net = LIF(2, beta=0.5)
        >>> one, other = Stream(net), Stream(net)
        >>> one(torch.ones(1, 2)).tolist(), one(torch.ones(1, 2)).tolist()
        ([[0.0, 0.0]], [[1.0, 1.0]])
        >>> other(torch.ones(1, 2)).tolist(), net.mem is None
        ([[0.0, 0.0]], True)
    """

    def __init__(self, model: nn.Module) -> None:
        check_module(model)
        if any(isinstance(module, ExtraStates) for _, module in named_modules(model)):
            raise ValueError(
                "an online learner carries traces, one stream of them. Make a learner for each "
                "stream, each with a copy of the model."
            )
        self.model = model
        self._states = _StreamPass(model)
        self._running = threading.Lock()
        self._steps_run = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one time step; ``torch.compile`` leaves it as it is.

        Args:
            args: positional inputs, as for the model.
            kwargs: inputs by name.

        Raises:
            ValueError: another thread runs the stream, or it is called inside of another model's
                run, of a transform of ``torch.func``, of ``backward()``, or as a layer.
            RuntimeError: a trace would freeze its states.
        """
        return self._run(_step, self.model, args, kwargs)

    def unroll(self, x: Any, **options: Any) -> Any:
        """Run a whole sequence ``[T, B, ...]``, as :func:`tracetorch.unroll` does.

        Args:
            x: the inputs.
            options: as for :func:`tracetorch.unroll`.
        """
        return self._run(unroll, self.model, x, **options)

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Start from rest again, with any batch size; with ``where`` restart just those samples.

        Args:
            where: boolean mask over the batch.
        """
        self._run(zero_states, self.model, where=where)

    def detach_states(self) -> None:
        """Cut the states from the graph that computed them; the values stay."""
        self._run(detach_states, self.model)

    def get_states(self) -> dict[str, Tensor]:
        """Return copies of the states by path, as :func:`tracetorch.get_states`."""
        return self._run(get_states, self.model)

    def set_states(self, states: Mapping[str, Tensor]) -> None:
        """Go on from states of this or of another stream, or of the model.

        Args:
            states: what ``get_states`` gave, as for :func:`tracetorch.set_states`.
        """
        self._run(set_states, self.model, states)

    def __reduce__(self) -> NoReturn:
        raise TypeError("copy no stream: make a tt.Stream(model), and set_states(get_states())")

    @exclude_from_compile
    def _run(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Call a function within the pass that is held."""
        if current_pass() is not None:
            raise ValueError(
                "a stream was called inside of tt.unroll or of a stream: its states would be no "
                "part of that call. Give its output as an input."
            )
        check_can_go_on("a stream", "Use stream.unroll(x, segment=...) to save memory.")
        if not self._running.acquire(blocking=False):
            raise ValueError(
                "a stream is run by two threads at once. Make a tt.Stream(model) for each."
            )
        try:
            result = self._states.call(function, *args, **kwargs)
            self._states.check_known(*(e.module for e in self._states.entries.values()))
            self._steps_run += function is _step
            if function is unroll or (function is _step and self._steps_run % LOOK_EVERY == 0):
                report_nan_behind(self._states, self.model)
            return result
        finally:
            self._running.release()


def check_can_go_on(label: str, instead: str) -> None:
    """Raise where a call of what carries states may be repeated, or is not of one batch."""
    if functorch_active():
        raise ValueError(
            f"{label} cannot run in torch.func transforms, vmap or grad say: what it carries is of "
            "one batch, with gradients by backward(). Call it outside."
        )
    if current_backward() != NO_BACKWARD:
        raise ValueError(
            f"{label} was called inside backward(), by activation checkpointing it seems: what it "
            f"carries has gone on since, and a step cannot be repeated. {instead}"
        )
    if is_tracing():
        raise RuntimeError(
            f"{label} is traced, and the states that it carries would be frozen as constants. "
            "tt.export.step(model, sample) makes a program whose states go in and come out."
        )


def _step(model: nn.Module, args: Any, kwargs: Any) -> Any:
    run = Pass()
    y = run.call(model, *args, **kwargs)
    run.commit()
    return y


class _StreamPass(Pass):
    """The pass of a stream, which no call opens or commits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(from_rest=True)
        self.parent, self.model = None, model
        self.known: set[int] = set()

    def _meet(self, module: Stateful, within: Stateful | None) -> Entry:
        if not torch.compiler.is_compiling():  # which cannot follow the walk
            self.check_known(module)
        return super()._meet(module, within)

    def check_known(self, *modules: Stateful) -> None:
        """Raise where a module is no part of the model: no walk over it finds its states."""
        if not self.known.issuperset(map(id, modules)):
            self.known = {id(module) for _, module in named_modules(self.model)}
        for module in modules:
            if id(module) not in self.known:
                raise ValueError(
                    f"{module._label()} is called in a stream, and is no part of its model, whose "
                    "states the stream holds. Register it in the model."
                )
