"""Run a model by step as well before its way by layer is believed.

By layer is right where nothing remembers outside of layers, and samples are treated alike: that is
run, not read off the code. The first time a model is met in a mode, its pass by layer is compared
with its first three steps, in which layers return what they gave by layer; then once more with
random spikes in their place, for a silent network shows little.
"""

from __future__ import annotations

import os
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.core.hooks import forward_hooks, has_spectral_norm
from tracetorch.core.snapshot import Values, random_restored
from tracetorch.core.torch_private import BatchNormBase, DropoutBase, pytree
from tracetorch.core.walk import modules_of
from tracetorch.snn.module import TTModule, keeps_states
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.passes import Layer, Pass, current_pass
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling.inputs import Inputs, call

STEPS = 3
_BY_STEP = 'Use unroll(..., by="step")'
_WHY = (
    "the model remembers something from step to step outside the states of neuron layers, or it "
    "does not treat the samples of a batch independently, or does not keep the batch first. "
    f"{_BY_STEP}, or make what it remembers a state of an snn.Neuron"
)
_RNN = (
    "keeps a memory of its own, and would take samples or all steps of them for one sequence. Call "
    "it on sequences outside of unroll, or use an nn.GRUCell, say, with a memory: self.memory."
)
# Base classes of other libraries' neurons, which keep their membranes themselves: silent in the
# first steps, they show nothing.
_FOREIGN_NEURONS = {
    "snntorch": "SpikingNeuron",
    "spikingjelly": "MemoryModule",
    "sinabs": "StatefulLayer",
}
_RTOL, _ATOL = 1e-4, 1e-5  # of a product of matrices in another order, and relative to the largest
_EPSILONS = 2  # at least so many of the dtype in which products are rounded, relative to either

Records = dict[int, list[tuple[Tensor, Tensor]]]
"""What modules were given and gave in the first steps, ``[k, B, ...]``, by id, in their calls."""


# Values that two ways of computing have given


def agree(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether there are as many values, and tensors agree to rounding."""
    return len(one) == len(other) and all(
        isinstance(a, Tensor) == isinstance(b, Tensor)
        and (not isinstance(a, Tensor) or (a.shape == b.shape and is_close(a, b)))
        for a, b in zip(one, other, strict=True)
    )


def is_close(one: Tensor, other: Tensor, share: float = 0.0) -> bool:
    """Whether all values but a share agree to rounding, to that of autocast within it."""
    if torch.equal(one, other):
        return True
    if not one.is_floating_point():
        differ = one != other
    else:
        eps, kind = torch.finfo(one.dtype).eps, one.device.type
        if torch.is_autocast_enabled(kind) and one.dtype is not torch.float64:  # which it leaves
            eps = max(eps, torch.finfo(torch.get_autocast_dtype(kind)).eps)
        finite = one[torch.isfinite(one)]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        rtol, atol = (max(least, _EPSILONS * eps) for least in (_RTOL, _ATOL))
        atol *= max(scale, 1e-3)
        differ = ~torch.isclose(one, other, rtol=rtol, atol=atol, equal_nan=True)
    return int(differ.count_nonzero()) <= share * one.numel()


# What is known without a run


def interleaves(model: nn.Module) -> bool:
    """Whether steps of a layer must stand between others': own code in it may share anything."""
    outside = [module for _, module in modules_of(model, closed=Recurrent)]
    layers = [module for module in outside if isinstance(module, Recurrent)]
    inside = [m for layer in layers for _, m in modules_of(layer) if m is not layer]
    places = Counter(map(id, (*outside, *inside)))
    # steps that read more than their arguments, which another module's code may write
    readers = {id(m) for m in outside if has_step(m) and not m.cell.is_comparable}
    return (
        (bool(readers) and any(_is_own(m) for m in outside if id(m) not in readers))
        or any(map(_computes_per_sample, outside))
        or any(map(_is_own, (*layers, *inside)))
        or any(places[id(m)] > 1 and (isinstance(m, TTModule) or m._buffers) for m in inside)
    )


def _is_own(module: nn.Module) -> bool:
    """Whether a module runs code that is no library's, which may share anything."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if "forward" in vars(module) or not all(map(_is_librarys, hooks)):
        return True
    if has_step(module):  # compiled, it sees its arguments alone
        cell = module.cell
        own = type(module).forward is not Neuron.forward or cell.runs_by_step
        return own or not cell.is_comparable
    return not _is_librarys(type(module))


def _is_librarys(code: object) -> bool:
    name = getattr(code, "__module__", None) or ""
    return name.partition(".")[0] in ("torch", "tracetorch")


def check_supported(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise where a module cannot run by layer, whatever its values are."""
    for path, module in modules:
        kind: Any = type(module)
        label, reason = f"{path or 'the model'} ({kind.__name__})", None
        if isinstance(module, nn.RNNBase):
            raise ValueError(f"{label} {_RNN}")
        for base in kind.__mro__:
            library = base.__module__.partition(".")[0]
            if base.__name__ == _FOREIGN_NEURONS.get(library):
                reason = f"is a neuron of {library}, which keeps its state from step to step"
        if isinstance(module, SequenceLayer):
            # an override of the step alone would never be called
            step = next(base for base in kind.__mro__ if "forward_step" in vars(base))
            sequence = next(base for base in kind.__mro__ if "forward_sequence" in vars(base))
            if step is not sequence and issubclass(step, sequence):
                reason = "overrides forward_step, and not forward_sequence, which runs all steps"
        if reason is not None:
            raise ValueError(f"{label} {reason}: it cannot run by layer. {_BY_STEP}.")


def _computes_per_sample(module: nn.Module) -> bool:
    """Whether a module belongs to an engine, of Opacus, that computes gradients per sample."""
    kinds: Any = type(module).__mro__
    names = {kind.__name__ for kind in kinds if kind.__module__.partition(".")[0] == "opacus"}
    return "AbstractGradSampleModule" in names and "GradSampleModuleNoOp" not in names


def _refuse_one_step(path: str, module: nn.RNNBase, args: Any, kwargs: Any) -> None:
    x = args[0] if args else kwargs.get("input")
    if isinstance(x, Tensor) and x.ndim == 2:  # with three dimensions it has a time of its own
        raise ValueError(f"{path or 'the model'} ({type(module).__name__}) {_RNN}")


def refused_one_step(model: nn.Module) -> AbstractContextManager[None]:
    """Raise within a block where an ``nn.RNNBase`` takes the batch of a step for a sequence."""
    modules = () if torch.compiler.is_compiling() else model.named_modules()
    found = [(m, partial(_refuse_one_step, p)) for p, m in modules if isinstance(m, nn.RNNBase)]
    return forward_hooks(earliest=found) if found else nullcontext()


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


trusted: dict[int, Trust] = {}


if hasattr(os, "register_at_fork"):
    # with the locks, which a thread that is not there any more may hold
    os.register_at_fork(after_in_child=trusted.clear)


# The run


class RecordingPass(Pass):
    """A pass by layer that notes what layers were given and gave in the first steps."""

    def __init__(self, kept: int, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.kept = kept
        self.records: Records = {}

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
        self.records.setdefault(id(module), []).append((x, y))


class _Differs(BaseException):  # which no code of a user takes for an error
    """Both ways differ at a module, or in what the model gives."""

    def __init__(self, module: object) -> None:
        self.module = module


class _Replay(Pass):
    """A pass in which layers return what they gave by layer: that of one step, or of all."""

    def __init__(self, records: Records, taken: Callable[[Tensor], Tensor], compares: bool) -> None:
        super().__init__(from_rest=True)
        self.records, self.taken, self.compares = records, taken, compares
        self.made: Counter[int] = Counter()
        self.seen: list[tuple[int, Tensor]] = []

    def __call__(
        self, layer: Layer, x: Tensor, given: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> Tensor:
        """Return what a layer gave by layer."""
        if given or named or len(layer.inputs) > 1:
            layer._all_further(x, given, named)
        return self.at(layer, x)

    def at(self, module: Any, x: Tensor) -> Tensor:
        """Return what a module gave; raise where it is given another input than then."""
        made, records = self.made[id(module)], self.records.get(id(module), [])
        if made >= len(records):
            raise _Differs(module)
        self.made[id(module)] += 1
        self.seen.append((id(module), x.detach().clone()))
        expected, y = records[made]
        if self.compares and not agree([self.taken(expected)], [self.seen[-1][1]]):
            raise _Differs(module)
        return self.taken(y)


class _Noted:
    """Buffers, weights of a user's modules, numbers in attributes: what a user's code may set."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        own = [m for _, m in modules if _is_own(m)]
        weights = [p for m in own for p in m.parameters(False) if type(p) is nn.Parameter]
        self.buffers = [
            (module, name, buffer, buffer.detach().clone())
            for _, module in modules
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self.values = Values([*(buffer for _, _, buffer, _ in self.buffers), *weights])
        self.attributes = [
            (vars(module), dict(vars(module)))
            for _, module in modules
            if not isinstance(module, SequenceLayer) and not keeps_states(module)
        ]

    def restore(self) -> None:
        """Give the modules back what was noted."""
        for module, name, buffer, _ in self.buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
        self.values.restore()
        self._restore_attributes()

    def begin_again(self, still: set[int]) -> None:
        """Give back what was, buffers as other tensors: a graph may wait for those of the pass."""
        for module, name, _, value in self.buffers:
            now = module._buffers.get(name)
            if id(module) in still or isinstance(module, torch.jit.ScriptModule):
                continue
            if now is None or not torch.equal(now, value):
                module._buffers[name] = value.clone()
        self._restore_attributes()

    def _restore_attributes(self) -> None:
        for now, before in self.attributes:
            for name in {**now, **before}:
                both = now.get(name), before.get(name)
                if both[0] is not both[1] and any(isinstance(v, (Tensor, float)) for v in both):
                    now.pop(name, None)
                    now.update({name: both[1]} if name in before else {})


class FirstRun:
    """A first run of a model: what was before the pass by layer, and the comparison."""

    def __init__(self, model: nn.Module, inputs: Inputs, steps: int) -> None:
        self.model, self.steps, self.batch = model, min(steps, inputs.steps), inputs.batch
        # the model may write into its inputs
        first = inputs.first(self.steps)
        self.inputs = replace(first, tensors=first.map(torch.clone))
        self.modules = modules_of(model)
        self.before = _Noted(self.modules)
        training = [m for _, m in modules_of(model, closed=Recurrent) if m.training]
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

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore values and random states behind a block, in which weights' norms stand still."""
        now = _Noted(self.modules)
        devices = {buffer.device.index for _, _, buffer, _ in now.buffers if buffer.is_cuda}
        with random_restored(devices):
            try:
                for module in self.spectral:
                    module.training = False
                yield
            finally:
                for module in self.spectral:
                    module.training = True
                now.restore()

    def compare(self, run: RecordingPass, outputs: Sequence[Any]) -> bool:
        """Compare the pass by layer with the first steps; whether nothing was random."""
        self._check_unchanged()
        expected = [y.detach()[: self.steps].clone() for y in outputs]
        # a spectral norm's weights are those of the pass
        still = {id(m) for each in (*self.spectral, *self.forced) for m in each.modules()}
        with torch.no_grad(), self.restored():
            self.before.begin_again(still)
            self.at: tuple[Records, int] = run.records, 0
            try:
                self._by_step(run.records, expected)
                self._with_spikes(run.records)
                self._check_unchanged()
            except _Differs as differs:
                if self._is_random():
                    return False
                path = next((p for p, m in self.modules if m is differs.module), "")
                label = f"{path or 'the model'} ({type(differs.module).__name__})"
                what = "gives other outputs" if path == "" else "is given other inputs"
                raise ValueError(f"{label} {what} by layer than by step: {_WHY}.") from None
        return True

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

    def _by_step(self, records: Records, expected: Sequence[Tensor]) -> None:
        """Run the steps one by one, and compare what layers are given, and the outputs."""
        for t in range(self.steps):
            self.at = records, t
            run, found = self._call(records, t, compares=True)
            for key, calls in records.items():
                if run.made[key] < len(calls):
                    raise _Differs(next((m for _, m in self.modules if id(m) == key), self.model))
            if not agree([y[t] for y in expected], found):
                raise _Differs(self.model)

    def _with_spikes(self, records: Records) -> None:
        """Compare both ways once more, with random spikes in place of what layers gave."""
        if _has_peers():  # processes go on alike, whatever their values are
            return
        generator = torch.Generator().manual_seed(0)
        spiked = {
            key: [(x, (torch.rand(y.shape, generator=generator) > 0.5).to(y)) for x, y in calls]
            for key, calls in records.items()
        }
        try:
            run, outputs = self._call(spiked)
            expected = [torch.unflatten(y, 0, (self.steps, -1)) for y in outputs]
        except Exception:  # of values that these layers never give
            return
        met: Records = {}
        for key, x in run.seen:
            calls = met.setdefault(key, [])
            calls.append((torch.unflatten(x, 0, (self.steps, -1)), spiked[key][len(calls)][1]))
        self._by_step(met, expected)

    def _call(
        self, records: Records, t: int | None = None, compares: bool = False
    ) -> tuple[_Replay, list[Tensor]]:
        """Call the model on one of the steps, or on all of them, with what layers gave."""
        if t is None:
            run = _Replay(records, lambda values: values.flatten(0, 1).clone(), compares)
            x = pytree.tree_map(torch.clone, self.inputs.folded())
        else:
            run = _Replay(records, lambda values: values[t, : self.batch].clone(), compares)
            x = self.inputs.map(lambda x: (x if self.inputs.static else x[t]).clone())
        model: nn.Module = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module  # without the engine, which exchanges something at each call
        try:
            y = run.call(call, model, x)
        except Exception as error:
            raise ValueError(
                f"the model runs by layer, and fails on one step ({type(error).__name__}: {error})"
                f": {_WHY}, or depends on the size of the batch."
            ) from error
        return run, [each.detach().clone() for each in pytree.tree_leaves(y)]

    def _is_random(self) -> bool:
        """Whether a step gives the same with the same seed, and something else with another."""
        if _has_peers():
            return False

        def once(seed: int) -> list[Tensor]:
            for seed_all in (torch.manual_seed, random.seed, np.random.seed):
                seed_all(seed)
            run, outputs = self._call(*self.at)
            return [*(x for _, x in run.seen), *outputs]

        try:
            first = once(1)
            return agree(first, once(1)) and not all(
                agree(first, once(seed)) for seed in range(2, 6)
            )
        except (_Differs, ValueError):  # its way depends on the batch
            return False


def _has_peers() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


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
