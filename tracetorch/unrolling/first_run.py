"""Run a model by step as well before its way by layer is believed.

By layer is right where nothing remembers outside of layers, and samples are treated alike. Whether
that is so is not read off the code: it is run. The first time a model is met in a mode, its pass by
layer is compared with its first three steps, in which layers return what they gave by layer; then
once more with random spikes in their place, for a silent network shows little. No two whole runs
are compared: they differ in rounding, and one spike moves all behind it.

Not found is what remembers after the third step, and what is switched after the first call;
``check=`` runs as many steps as one likes. What is random is believed. Buffers, attributes and
generators are restored. What a ``Recurrent`` of a user's own code shares is found by
:mod:`tracetorch.unrolling.loops`.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from tracetorch.core.hooks import has_spectral_norm
from tracetorch.core.snapshot import Values, random_restored, set_values
from tracetorch.core.torch_private import BatchNormBase, DropoutBase, pytree
from tracetorch.core.walk import modules_of
from tracetorch.snn.module import keeps_states
from tracetorch.snn.neuron import has_step
from tracetorch.snn.passes import Layer, Pass, current_pass
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stream_watch import path_of, state_with_nan
from tracetorch.unrolling.agreement import agree
from tracetorch.unrolling.inputs import Inputs, call
from tracetorch.unrolling.loops import Loops, SharedError, Step, seed_all

STEPS = 3
_BY_STEP = 'Use unroll(..., by="step")'
_MIXES = "it does not treat the samples of a batch independently, or does not keep the batch first"
_REMEMBERS = (
    "it remembers something from step to step outside the states of neuron layers. "
    f"{_BY_STEP}, or make it a state of an snn.Neuron"
)

_log = logging.getLogger("tracetorch")
_leaves: Callable[[Any], list[Any]] = pytree.tree_leaves


class RecordingPass(Pass):
    """A pass by layer that notes what layers were given and gave in the first steps."""

    def __init__(self, kept: int, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.kept = kept
        self.records: dict[int, list[tuple[nn.Module, Tensor, Tensor]]] = {}

    def __call__(
        self, layer: Layer, x: Tensor, given: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> Tensor:
        """Run a layer, and note what it was given and gave."""
        if self.running is not None:
            return super().__call__(layer, x, given, named)
        before = x.detach().clone() if isinstance(x, Tensor) else x
        y = super().__call__(layer, x, given, named)
        self.note(layer, before, y)
        return y

    def note(self, module: Any, x: Tensor, y: Tensor) -> None:
        """Note the first steps of what a module was given and gave, ``[T * B, ...]``."""
        x, y = (
            torch.unflatten(each.detach(), 0, (self.steps, -1))[: self.kept].clone()
            for each in (x, y)
        )
        self.records.setdefault(id(module), []).append((module, x, y))


Records = dict[int, list[tuple[nn.Module, Tensor, Tensor]]]
"""What modules were given and gave in the first steps, ``[k, B, ...]``, by id, in their calls."""


class _Differs(Exception):  # noqa: N818 (no error, a finding)
    """Difference between both ways."""


class _Replay(Pass):
    """A pass in which layers return what they gave: one step, or some folded into the batch.

    Args:
        records: what layers were given and gave, ``[k, B, ...]``.
        rows: which steps and samples the batch of this pass holds; ``None``: all of all steps.
        compares: whether inputs are compared with those by layer.
        loop: runs this step of a ``Recurrent`` too, and raises where it differs.
    """

    def __init__(
        self,
        records: Records,
        rows: tuple[Tensor, Tensor] | None,
        compares: bool = False,
        loop: Callable[[Recurrent, Tensor], None] | None = None,
    ) -> None:
        super().__init__(from_rest=True)
        self.records, self.rows, self.compares, self.loop = records, rows, compares, loop
        self.made: Counter[int] = Counter()
        self.seen: list[Tensor] = []

    def __call__(
        self, layer: Layer, x: Tensor, given: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> Tensor:
        """Return what a layer gave by layer."""
        if given or named or len(layer.inputs) > 1:
            layer._all_further(x, given, named)
        return self.at(layer, x)

    def at(self, module: Any, x: Tensor) -> Tensor:
        """Return what a module gave; raise where it is given another input than then."""
        made = self.made[id(module)]
        records = self.records.get(id(module), [])
        if made >= len(records):
            raise _Differs("calls a layer by step that it does not call, or less often, by layer")
        self.made[id(module)] += 1
        self.seen.append(x.detach().clone())
        _, expected, y = records[made]
        if self.compares and not agree([_taken(expected, self.rows)], [self.seen[-1]]):
            raise _Differs("gives a layer other inputs by layer than by step")
        if self.loop is not None:
            self.loop(module, _taken(expected, self.rows))
        return _taken(y, self.rows)

    def check_all_made(self) -> None:
        """Raise where a layer that was called by layer was not called."""
        if any(self.made[key] < len(records) for key, records in self.records.items()):
            raise _Differs("calls a layer by layer that it does not call, or less often, by step")


class _SpikedPass(_Replay):
    """A pass by layer in which layers return random spikes, and which notes what they are given."""

    def __init__(self, records: Records) -> None:
        super().__init__(records, None)
        self.generator = torch.Generator().manual_seed(0)
        self.spiked: Records = {}

    def at(self, module: Any, x: Tensor) -> Tensor:
        """Return random spikes for all steps."""
        given = x.detach().clone()
        y = super().at(module, x)
        shape = self.records[id(module)][self.made[id(module)] - 1][2].shape
        spikes = torch.rand(shape, generator=self.generator, device="cpu") > 0.5
        y = spikes.to(y)
        x = torch.unflatten(given, 0, (shape[0], -1))
        self.spiked.setdefault(id(module), []).append((module, x, y))
        return y.flatten(0, 1).clone()


def _taken(values: Tensor, rows: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the chosen steps and samples of values ``[k, B, ...]`` as one batch, copied."""
    return values.flatten(0, 1).clone() if rows is None else values[rows]


class Trust:
    """Modes and orders of layers in which a model has been run by step too."""

    def __init__(self, model: nn.Module) -> None:
        key = id(model)
        # by the method: at exit a model may go when the names of this module are None already
        forget = trusted.pop
        self.model = weakref.ref(model, lambda _: forget(key, None))
        self.lock = threading.RLock()  # one first run of a model at a time
        self.met: set[tuple[Any, ...]] = set()
        self.modes: set[bool] = set()
        self.products: Any = None
        self.per_sample = False  # whether an engine computes gradients per sample


trusted: dict[int, Trust] = {}


if hasattr(os, "register_at_fork"):
    # with the locks, which a thread that is not there any more may hold
    os.register_at_fork(after_in_child=trusted.clear)


class _Noted:
    """Buffers of modules, numbers in attributes of plain ones, and weights, to put them back."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]], weights: Values) -> None:
        self.weights = weights
        self.buffers = [
            (module, name, buffer, buffer.detach().clone())
            for _, module in modules
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self.attributes = [
            (vars(module), dict(vars(module)))
            for _, module in modules
            if not isinstance(module, SequenceLayer) and not keeps_states(module)
        ]

    def restore(self) -> None:
        """Give the modules back what was noted."""
        for module, name, buffer, value in self.buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            set_values(buffer, value)
        for now, before in self.attributes:
            now.update({n: v for n, v in before.items() if isinstance(v, (Tensor, float))})
        self.weights.restore()


class FirstRun:
    """A first run of a model: what was before the pass by layer, and the comparison."""

    def __init__(self, model: nn.Module, inputs: Inputs, steps: int) -> None:
        self.model, self.steps = model, min(steps, inputs.steps)
        self.batch = inputs.batch
        # the model may write into its inputs
        first = inputs.first(self.steps)
        self.inputs = replace(first, tensors=first.map(torch.clone))
        inside: set[int] = set()
        self.modules = modules_of(model)
        self.at: tuple[Records, int] = ({}, 0)
        self.loops = Loops(self.modules)
        self.before = _Noted(self.modules, self.loops.weights)
        for _, module in self.modules:
            if isinstance(module, Recurrent):
                inside.update(id(m) for _, m in modules_of(module) if m is not module)
        training = [m for _, m in self.modules if m.training and id(m) not in inside]
        self.forced = [
            m
            for m in training
            if isinstance(m, (BatchNormBase, DropoutBase)) and "forward" not in vars(m)
        ]
        self.spectral = [m for m in training if has_spectral_norm(m)]
        self.layers = [
            (p, m, _definition(m)) for p, m in self.modules if isinstance(m, SequenceLayer)
        ]

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Within a block, norms and dropout in training are noted, and return what they gave."""
        try:
            for module in self.forced:
                vars(module)["forward"] = partial(_noted, module)
            yield
        finally:
            for module in self.forced:
                vars(module).pop("forward", None)

    def compare(self, run: RecordingPass, outputs: Sequence[Any]) -> bool:
        """Compare the pass by layer with the first steps; whether nothing was random."""
        _check_not_shared(run)
        self._check_unchanged()
        expected = [y.detach()[: self.steps].clone() for y in outputs]
        with torch.no_grad(), self.restored():
            self._begin_again()
            try:
                self.loops.prepare(run)
                with self.loops.begun() as loop:
                    self._by_step(run.records, expected, loop)
                self._with_spikes(run.records)
                self._check_unchanged()
            except _Differs as finding:
                reason = self._reason()
                if reason is None:
                    return False
                whole = f"the model ({type(self.model).__name__}) {finding}"
                raise ValueError(f"{self._place() or whole}: {reason}.") from None
        return True

    def check_finite(self, run: RecordingPass) -> None:
        """Raise where NaN comes in or is made: a spike of it is 0, and hides it.

        An infinite value is named where a state is NaN, which may have come of it.
        """
        paths = {id(module): path or "the model" for path, module in self.modules}
        with torch.no_grad(), self.restored():
            events = _events(lambda: self._step(run.records, None))
        places = [("the input", _leaves(self.inputs.tensors))]
        for kind, module, values in events:
            if kind == "out":
                name = f"the output of {paths.get(id(module), '')} ({type(module).__name__})"
                places.append((name, values))
        if place := next((place for place, values in places if _any(torch.isnan, values)), None):
            raise ValueError(
                f"{place} has NaN. A neuron's spike is 0 there, so that what follows looks "
                "finite. Clean the data, or find the operation that makes it."
            )
        found = state_with_nan((entry.module, entry.states) for entry in run.entries.values())
        place = next((place for place, values in places if _any(torch.isinf, values)), None)
        if found is None or (place is None and self.steps < run.steps):
            return
        cause = f"{place} has infinite values. Clean the data, or find the operation that makes it"
        if place is None:
            cause = (
                "nothing that was given or computed is: look at the layer's parameters, and at the "
                "states it began with, which tt.zero_states(model) clears"
            )
        path = path_of(self.model, *found)
        raise ValueError(f"{path} is NaN at the end of the sequence, and {cause}.")

    def _begin_again(self) -> None:
        """Give what was set before the pass back: what is set once is set from a step then.

        Buffers, as other tensors, for a graph may be waiting for these, and not of a spectral norm,
        whose weights are those of the pass. Attributes, where the pass has set values.
        """
        still = {id(m) for each in (*self.spectral, *self.forced) for m in each.modules()}
        for module, name, _, value in self.before.buffers:
            now = module._buffers.get(name)
            if id(module) in still or isinstance(module, torch.jit.ScriptModule):
                continue
            if now is None or not torch.equal(now, value):
                module._buffers[name] = value.clone()
        for attributes, before in self.before.attributes:
            for name, value in [*attributes.items()]:
                if isinstance(value, (Tensor, float)) and value is not before.get(name):
                    if name in before:
                        attributes[name] = before[name]
                    else:
                        del attributes[name]

    def _check_unchanged(self) -> None:
        """Raise where the forward has changed a layer, all of whose steps run with one value."""
        for path, layer, (cell, raws) in self.layers:
            now, values = _definition(layer)
            same = all(
                raws[name].shape == values[name].shape
                and torch.allclose(raws[name], values[name], rtol=0, atol=0, equal_nan=True)
                for name in raws.keys() & values.keys()
            )
            if now is not cell or not same:
                raise ValueError(
                    f"{path or 'the model'} ({type(layer).__name__}) was changed by the forward "
                    "pass: by layer all of its steps run with the same parameters and options. "
                    f"{_BY_STEP}."
                )

    def _by_step(
        self, records: Records, expected: Sequence[Tensor], loop: Step | None = None
    ) -> None:
        """Run the steps one by one, and compare what layers are given, and the outputs."""
        for t in range(self.steps):
            self.at = records, t  # where a difference is found, it is looked into
            of_step = None if loop is None else partial(loop, t)
            trial, found = self._step(records, self._rows_of(t), compares=True, loop=of_step)
            trial.check_all_made()
            if not agree([y[t] for y in expected], found):
                raise _Differs("gives other outputs by layer than by step")

    def _with_spikes(self, records: Records) -> None:
        """Compare both ways once more, with random spikes in place of what layers gave."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return  # processes go on alike, whatever their values are
        spiked = _SpikedPass(records)
        try:
            x = pytree.tree_map(torch.clone, self.inputs.folded())
            outputs = _leaves(spiked.call(call, self._own_model(), x))
            expected = [torch.unflatten(y, 0, (self.steps, -1)).clone() for y in outputs]
        except _Differs:
            raise
        except Exception:  # of values that these layers never give
            return
        self._by_step(spiked.spiked, expected)

    def _rows_of(self, t: int) -> tuple[Tensor, Tensor]:
        """Return the places of all samples of a step."""
        samples = torch.arange(self.batch)
        return torch.full_like(samples, t), samples

    def _step(
        self,
        records: Records,
        rows: tuple[Tensor, Tensor] | None,
        compares: bool = False,
        loop: Callable[[Recurrent, Tensor], None] | None = None,
    ) -> tuple[_Replay, list[Tensor]]:
        """Call the model on a batch of chosen steps and samples, or on all of them."""
        trial = _Replay(records, rows, compares, loop)
        static = self.inputs.static
        if rows is None:
            x = pytree.tree_map(torch.clone, self.inputs.folded())
        else:
            x = self.inputs.map(lambda x: x[rows[1]].clone() if static else x[rows].clone())
        try:
            y = trial.call(call, self._own_model(), x)
        except (_Differs, SharedError):
            raise
        except Exception as error:
            raise ValueError(
                "the model runs by layer, and fails on one step "
                f"({type(error).__name__}: {error}): {_REMEMBERS}, or it depends on the size of "
                "the batch."
            ) from error
        return trial, [each.detach().clone() for each in _leaves(y)]

    def _own_model(self) -> nn.Module:
        """Return the model, without an engine around it that exchanges something at each call."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            inner: nn.Module = self.model.module
            return inner
        return self.model

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore values and random states behind a block, in which weights' norms stand still."""
        weights = Values(weight for weight, _ in self.loops.weights.values)
        noted = _Noted(self.modules, weights)
        devices = {buffer.device.index for _, _, buffer, _ in noted.buffers if buffer.is_cuda}
        with random_restored(devices):
            try:
                for module in self.spectral:
                    module.training = False
                yield
            finally:
                for module in self.spectral:
                    module.training = True
                noted.restore()

    # What differs, where, and why

    def _reason(self) -> str | None:
        """Return why both ways differ; ``None`` where it is by random numbers."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return f"{_REMEMBERS}, or {_MIXES}"
        records, t = self.at

        def once(rows: tuple[Tensor, Tensor] | None, seed: int = 1) -> list[Tensor]:
            seed_all(seed)
            trial, outputs = self._step(records, rows)
            return [*trial.seen, *outputs]

        rows = self._rows_of(t)
        try:
            first = once(rows)
            if not agree(first, once(rows)):
                return _REMEMBERS
            if not all(agree(first, once(rows, seed)) for seed in range(2, 6)):
                return None
            # all steps folded once more: what only remembers gives the same as the step alone
            folded = [
                torch.unflatten(each, 0, (self.steps, -1))[rows]
                if each.ndim and each.shape[0] == self.steps * self.batch
                else each
                for each in once(None)
            ]
        except (_Differs, ValueError):  # its way depends on the batch
            return f"{_MIXES}. {_BY_STEP}"
        return _REMEMBERS if agree(first, folded) else f"{_MIXES}. {_BY_STEP}"

    def _place(self) -> str | None:
        """Name the module whose own code differs, or ``None`` where none can be named."""
        paths = {id(module): path or "the model" for path, module in self.modules}
        records, t = self.at
        rows = self._rows_of(t)

        def difference(begin: Callable[[], None]) -> str | None:
            begin()
            folded = _events(lambda: self._step(records, None))
            begin()
            stepped = _events(lambda: self._step(records, rows))
            return _first_difference(folded, stepped, rows, self.steps, paths)

        # from before the pass; else as it is by now, say a counter
        return difference(self._begin_again) or difference(lambda: None)


def _definition(layer: SequenceLayer) -> tuple[Any, dict[str, Tensor]]:
    """Return what a layer is, and the values of what its parameters follow from."""
    with torch.no_grad():  # of a parametrization nothing is saved for backward
        raws = {
            name: raw.clone()
            for name in layer._raw_names
            # no DTensor: FSDP shards parameters, and makes plain ones within the forward pass
            if type(raw := getattr(layer, name)) in (nn.Parameter, Tensor) and not raw.is_meta
        }
    return layer.cell if has_step(layer) else None, raws


def _noted(module: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute a norm or dropout in training, in place of its own ``forward``."""
    run = current_pass()
    if isinstance(run, _Replay):
        return run.at(module, x)
    before = x.detach().clone()
    y: Tensor = type(module).forward(module, x, *args, **kwargs)
    if isinstance(run, RecordingPass) and run.running is None:
        run.note(module, before, y)
    return y


def _check_not_shared(run: Pass) -> None:
    """Raise where two ``Recurrent``s hold one module with states or buffers, out of order."""
    owners: dict[int, Recurrent] = {}
    for entry in run.entries.values():
        layer = entry.module
        if not isinstance(layer, Recurrent) or entry.within is not layer:
            continue
        for path, module in modules_of(layer):
            holds = keeps_states(module) or any(True for _ in module.buffers(recurse=False))
            if module is layer or not holds:
                continue
            if owners.setdefault(id(module), layer) is not layer:
                raise ValueError(
                    f"{path} ({type(module).__name__}) stands in two Recurrents, each of which "
                    "runs all of its steps at once, so that its states or buffers would be out of "
                    f"order. {_BY_STEP}."
                )


def _any(test: Callable[[Tensor], Tensor], values: Sequence[Any]) -> bool:
    return any(isinstance(v, Tensor) and bool(test(v).any()) for v in values)


_Event = tuple[str, nn.Module, list[Any]]


def _events(run: Callable[[], object]) -> list[_Event]:
    """Return what all modules are given and give, in this thread, in their order."""
    thread, events = threading.get_ident(), list[_Event]()

    def note(kind: str, module: nn.Module, values: Any) -> None:
        if threading.get_ident() == thread:
            tensors = [v.detach().clone() for v in _leaves(values) if isinstance(v, Tensor)]
            events.append((kind, module, tensors))

    handles = [
        register_module_forward_pre_hook(lambda module, args: note("in", module, args)),
        register_module_forward_hook(lambda module, args, y: note("out", module, y)),
    ]
    try:
        run()
    except (_Differs, ValueError):  # what came before it tells where
        pass
    finally:
        for handle in handles:
            handle.remove()
    return events


def _first_difference(
    folded: list[_Event],
    stepped: list[_Event],
    rows: tuple[Tensor, Tensor],
    steps: int,
    paths: dict[int, str],
) -> str | None:
    """Name the innermost module in whose own code two runs differ first."""

    def label(module: nn.Module) -> str:
        return f"{paths.get(id(module), '')} ({type(module).__name__})".lstrip()

    def at_step(value: Tensor) -> Tensor:
        if value.ndim and value.shape[0] == steps * len(rows[0]):
            return torch.unflatten(value, 0, (steps, -1))[rows]
        return value

    within: list[nn.Module] = []
    for (kind, module, before), (other, again, now) in zip(folded, stepped, strict=False):
        if kind != other or module is not again:
            return f"{label(within[-1])} calls other modules by layer than by step"
        same = agree([at_step(each) for each in before], now)
        if kind == "in":
            if not same and within:
                return (
                    f"{label(within[-1])} gives {label(module)} other inputs by layer than by step"
                )
            within.append(module)
        else:
            if not same:
                return f"{label(module)} gives other outputs by layer than by step"
            within.pop()
    return None
