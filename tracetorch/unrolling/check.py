"""Check by layer against by step (``check=True``): every module by itself, on what it was given.

By layer and by step a model differs in rounding, and a spike that differs moves all behind it.
So no two whole runs are compared. The model runs by layer once, and every call of a module in that
run is repeated step by step, with the outputs that were recorded in place of the modules inside it.
What remains is the module's own arithmetic, in which both ways agree to rounding, or not at all.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import BatchNormBase, DropoutBase, is_compiled, pytree
from tracetorch.core.values import Values, global_generators
from tracetorch.core.walk import modules_of
from tracetorch.snn.module import zero_states
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.restarts import Restarts
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stateful_layer import StateSnapshot, keeps_states
from tracetorch.unrolling.inputs import Inputs, call
from tracetorch.unrolling.layer_pass import LayerPass

_RTOL, _ATOL = 1e-4, 1e-5  # of a product of matrices in another order, and relative to the largest
_EPSILONS = 2  # at least so many of the dtype in which products are rounded, relative to either
_SCALES = (2.0, 0.1)  # of random values: some faults show among large ones, some among small
_REMEMBERS = "it remembers something from step to step outside the states of neuron layers"
_RANDOM = "it is random, and draws other numbers for all steps at once than step by step"
_MIXES = "it does not treat the samples of a batch independently, or does not keep the batch first"

_log = logging.getLogger("tracetorch")
_leaves: Callable[[Any], list[Any]] = pytree.tree_leaves


def check_both_ways(model: nn.Module, inputs: Inputs) -> None:
    """Raise at the first module that computes something else by layer than by step.

    The model runs in the modes that it has. States, buffers, modes and the random state are
    restored. What was covered is logged at the level INFO.

    Args:
        model: any module.
        inputs: its inputs, detached, over all the steps that are to be compared.

    Raises:
        ValueError: a module differs; it is named, with the reason: memory, randomness or batch.
    """
    # what computes a weight belongs to the layer that has it, and is given no steps
    weights = [m for _, m in modules_of(model) if isinstance(m, ParametrizationList)]
    computes = {id(inner) for each in weights for _, inner in modules_of(each)}
    modules = [each for each in modules_of(model, closed=Recurrent) if id(each[1]) not in computes]
    with restored(model), torch.no_grad():
        start = StateSnapshot([m for _, m in modules_of(model) if keeps_states(m)])
        reset = None if inputs.reset is None else Restarts(inputs.reset)
        check = _Check(modules, inputs.steps, start, reset)
        calls, ends = check.by_layer(lambda: call(model, inputs.folded()))
        _check_finite(inputs, calls)
        for index, each in enumerate(calls):  # inner modules first
            check.compare(each, calls[each.first : index], ends)
            for scale in _SCALES if check.has_time(each) else ():
                check.synthetic(each, scale)
    seen = {id(each.module) for each in calls}
    uncalled = [path for path, module in modules if path and id(module) not in seen]
    covered = [
        f"{check.compared} calls of modules compared over {inputs.steps} steps",
        f"{check.synthetics} of them begun on random values",
        *(f"not compared: {path}, {reason}" for path, reason in check.skipped.items()),
        *([f"not called: {', '.join(uncalled)}"] if uncalled else []),
    ]
    _log.info("tt.unroll(check=True): %s.", "; ".join(covered))


@dataclass
class _Call:
    """A call of a module in the pass by layer."""

    path: str
    module: nn.Module
    args: tuple[Any, Any]
    output: Any
    inner: tuple[Any, Any]  # of its forward alone, behind and before its other hooks
    first: int  # index of the first call that was made inside it; those calls end before it does
    redraw: Callable[[], None]  # lets the generators draw what they drew in it

    def __str__(self) -> str:
        return f"{self.path} ({type(self.module).__name__})"


def _generators() -> Callable[[], None]:
    """Return what lets PyTorch's, Python's and NumPy's global generators draw the same again."""
    state, others = torch.get_rng_state(), Values(global_generators(), whole=True)

    def redraw() -> None:
        torch.set_rng_state(state)
        others.restore()

    return redraw


class _Check:
    """The comparison of one model's modules, each with its path, a ``Recurrent`` as one.

    ``start`` are the states before the first step, ``reset`` says where samples start anew.
    """

    def __init__(
        self,
        modules: Sequence[tuple[str, nn.Module]],
        steps: int,
        start: StateSnapshot,
        reset: Restarts | None,
    ) -> None:
        self.modules, self.steps, self.start, self.reset = modules, steps, start, reset
        self.compared = self.synthetics = 0
        self.skipped: dict[str, str] = {}

    def by_layer(self, run: Callable[[], object]) -> tuple[list[_Call], StateSnapshot]:
        """Run by layer, and return all calls with the states at the end."""
        calls: list[_Call] = []
        # of calls in progress: arguments, how many had ended before, generators, and forward's own
        begun: list[list[Any]] = []
        paths = {id(module): path or "the model" for path, module in self.modules}
        thread = get_ident()  # of another, a call reaches the hooks before it is refused

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if get_ident() == thread:
                begun.append([_copied((args, kwargs)), len(calls), _generators()])

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if get_ident() == thread:
                begun[-1].append((_copied((args, kwargs)), _copied(output)))

        def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if get_ident() == thread:
                arguments, first, redraw, inner = begun.pop()
                path, output = paths[id(module)], _copied(output)
                calls.append(_Call(path, module, arguments, output, inner, first, redraw))

        every = [module for _, module in self.modules]
        neurons = [module for module in every if isinstance(module, SequenceLayer)]
        self.start.restore()
        with (
            torch.random.fork_rng(devices=[]),
            forward_hooks(
                earliest=[(module, begin) for module in every],
                first=[(module, note) for module in every],
                after=[(module, end) for module in every],
            ),
            LayerPass(neurons, self.steps, None, any(map(is_compiled, every)), self.reset),
        ):
            _seed(0)
            run()
        # a layer stands in the snapshot once for each of its states
        layers = {id(layer): layer for layer, _, _ in self.start.states}
        return calls, StateSnapshot(layers.values())

    def synthetic(self, each: _Call, scale: float) -> None:
        """Compare a module on random values: silence and equal samples would show no difference."""
        if not any(isinstance(x, Tensor) and x.is_floating_point() for x in _leaves(each.args)):
            return
        generator = torch.Generator().manual_seed(0)

        def noise(x: Tensor) -> Tensor:
            values = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            return (scale * values).to(x) if x.is_floating_point() else x

        args, kwargs = pytree.tree_map_only(Tensor, noise, each.args)
        try:
            calls, ends = self.by_layer(lambda: each.module(*args, **kwargs))
        except Exception as failure:  # a module may refuse values out of its range
            self.skipped[f"{each.path} on random values"] = str(failure).partition("\n")[0]
            return
        self.synthetics += 1
        for index, inner in enumerate(calls):
            self.compare(inner, calls[inner.first : index], ends)

    def has_time(self, each: _Call) -> bool:
        """Whether there are tensors among the arguments, and all begin with time and batch."""
        tensors = [leaf for leaf in _leaves(each.args) if isinstance(leaf, Tensor)]
        return bool(tensors) and all(_holds_steps(leaf, self.steps) for leaf in tensors)

    def compare(self, each: _Call, inner: Sequence[_Call], ends: StateSnapshot) -> None:
        """Repeat one call step by step.

        Args:
            each: the call.
            inner: calls of the modules inside it, in their order.
            ends: the states after the pass by layer.
        """
        module = each.module
        if not self.has_time(each):
            self.skipped[each.path] = "its arguments do not begin with time and batch"
            return
        fault = self._fault(each, inner)
        if fault is not None and isinstance(module, DropoutBase) and module.training:
            self.skipped[each.path] = "PyTorch's dropout is random, sample by sample"
            return
        for owner, name, state in ends.states if fault is None else ():
            again = getattr(owner, name, None) if owner is module else None
            if state is not None and again is not None and not _agree([state], [again]):
                fault = f"leaves another state {name} by layer than by step"
        if fault is not None:
            reason = self._reason(each, inner)
            raise ValueError(f'{each} {fault}: {reason}. Use unroll(..., by="step").')
        self.compared += 1

    def _fault(self, each: _Call, inner: Sequence[_Call]) -> str | None:
        """Run a call step by step; return how it differs from by layer, or ``None``."""
        outputs: list[list[Any]] = []
        self.start.restore()
        with _Stubs(inner, self.steps) as stubs, torch.random.fork_rng(devices=[]):
            each.redraw()
            for t in range(self.steps):
                self._restart(each, t)
                outputs.append(stubs.step(each, t))
                if stubs.fault is not None:
                    return stubs.fault
        folded = _leaves(each.output)
        if all(len(step) == len(folded) for step in outputs):
            columns = zip(*outputs, strict=True)
            if _agree(folded, [_folded(column) for column in columns]):
                return None
        return "gives other outputs by layer than by step"

    def _restart(self, each: _Call, t: int) -> None:
        """Let samples start anew before a step, in the module that is repeated."""
        if self.reset is not None and self.reset.steps[t]:
            zero_states(each.module, where=self.reset.mask[t])

    def _reason(self, each: _Call, inner: Sequence[_Call]) -> str:
        """Return why a module differs: randomness, memory, or a batch that is mixed."""
        if isinstance(each.module, BatchNormBase):
            return "in training it takes its statistics over the batch, by layer over time too"

        def last(steps: Sequence[int], seed: int = 0) -> list[Any]:
            self.start.restore()
            with (
                restored(each.module),
                _Stubs(inner, self.steps) as stubs,
                torch.random.fork_rng(devices=[]),
            ):
                _seed(seed)
                for t in steps:
                    self._restart(each, t)
                    found = stubs.step(each, t)
                return found

        first = last([0])
        if not _agree(first, last([0])):
            return _REMEMBERS
        if not _agree(first, last([0], seed=1)):
            return _RANDOM
        within = last(range(self.steps))
        if not isinstance(each.module, SequenceLayer) and not _agree(
            last([self.steps - 1]), within
        ):
            return _REMEMBERS
        return _MIXES


class _Stubs:
    """Within a block, modules return what was recorded of them by layer, step by step.

    ``fault`` says whether they were called otherwise than by layer.
    """

    def __init__(self, calls: Sequence[_Call], steps: int) -> None:
        self.calls: dict[int, list[_Call]] = {}
        for each in calls:
            self.calls.setdefault(id(each.module), []).append(each)
        self.steps = steps
        self.t = 0
        self.made: dict[int, int] = {}
        self.fault: str | None = None

    def __enter__(self) -> _Stubs:
        attributes = [vars(recorded[0].module) for recorded in self.calls.values()]
        self.own = [(each, each["forward"]) for each in attributes if "forward" in each]
        for each, recorded in zip(attributes, self.calls.values(), strict=True):
            each["forward"] = self._forward_of(recorded)
        return self

    def __exit__(self, *_: object) -> None:
        for recorded in self.calls.values():
            del vars(recorded[0].module)["forward"]
        for attributes, forward in self.own:
            attributes["forward"] = forward

    def step(self, each: _Call, t: int) -> list[Any]:
        """Return the outputs of one step of a call."""
        self.t, self.made = t, {}
        args, kwargs = _step_of(each.args, self.steps, t)
        return _leaves(each.module(*args, **kwargs))

    def _forward_of(self, recorded: list[_Call]) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            number = self.made.get(id(recorded), 0)
            self.made[id(recorded)] = number + 1
            if number >= len(recorded):
                self.fault = f"calls {recorded[0]} more often by step than by layer"
                number = -1
            arguments, output = recorded[number].inner
            expected = _leaves(_step_of(arguments, self.steps, self.t))
            if not _agree(expected, _leaves((args, kwargs))):
                self.fault = f"gives {recorded[number]} other inputs by layer than by step"
            return _step_of(output, self.steps, self.t)

        return forward


def _seed(seed: int) -> None:
    """Seed all global generators of random numbers."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _holds_steps(leaf: Tensor, steps: int) -> bool:
    """Whether dimension 0 can hold time and batch."""
    return leaf.ndim > 0 and leaf.shape[0] % steps == 0


def _step_of(tree: Any, steps: int, t: int) -> Any:
    """Take step ``t`` of every tensor that begins with time and batch; keep the others."""

    def take(leaf: Tensor) -> Tensor:
        if not _holds_steps(leaf, steps):
            return leaf
        return torch.unflatten(leaf, 0, (steps, -1))[t].clone()

    return pytree.tree_map_only(Tensor, take, tree)


def _folded(column: Sequence[Any]) -> Any:
    """Fold the steps of one output into one, as by layer."""
    return torch.cat([*map(torch.atleast_1d, column)]) if isinstance(column[0], Tensor) else None


def _check_finite(inputs: Inputs, calls: Sequence[_Call]) -> None:
    """Raise where NaN comes in or is made: a spike of it is 0, and hides it.

    Raises:
        ValueError: the inputs, or the first module that gives NaN, are named.
    """
    places = [("the input", _leaves(inputs.tensors))]
    places += [(f"the output of {each}", _leaves(each.output)) for each in calls]
    for place, tensors in places:
        if any(isinstance(each, Tensor) and bool(each.isnan().any()) for each in tensors):
            raise ValueError(
                f"{place} has NaN. A neuron's spike is 0 there, so that what follows looks "
                "finite. Clean the data, or find the operation that makes it."
            )


def _copied(tree: Any) -> Any:
    """Copy tensors, so that in-place operations behind a module do not change the record."""
    return pytree.tree_map_only(Tensor, torch.clone, tree)


def _agree(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether there are as many values, and tensors agree to rounding."""
    pairs = list(zip(one, other, strict=False))
    return len(one) == len(other) and all(
        isinstance(a, Tensor) == isinstance(b, Tensor)
        and (not isinstance(a, Tensor) or (a.shape == b.shape and is_close(a, b, eps=_epsilon(a))))
        for a, b in pairs
    )


def _epsilon(value: Tensor) -> float:
    """Return that of the dtype in which products are rounded: the value's, or that of autocast."""
    if not value.is_floating_point():
        return 0.0
    eps, kind = torch.finfo(value.dtype).eps, value.device.type
    if value.dtype is torch.float64 or not torch.is_autocast_enabled(kind):  # which leaves float64
        return eps
    return max(eps, torch.finfo(torch.get_autocast_dtype(kind)).eps)


def is_close(one: Tensor, other: Tensor, share: float = 0.0, eps: float = 0.0) -> bool:
    """Whether all values agree to rounding, but for a share of them that may differ.

    Args:
        one: of a shape.
        other: of the same.
        share: of the values that may differ.
        eps: of the dtype in which products were rounded; 0 for one of full precision.
    """
    if torch.equal(one, other):
        return True
    if not one.is_floating_point():
        differ = one != other
    else:
        finite = one[torch.isfinite(one)]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        rtol, atol = (max(least, _EPSILONS * eps) for least in (_RTOL, _ATOL))
        atol *= max(scale, 1e-3)
        differ = ~torch.isclose(one, other, rtol=rtol, atol=atol, equal_nan=True)
    return int(differ.count_nonzero()) <= share * one.numel()
