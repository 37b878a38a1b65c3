"""Check by layer against by step (``check=True``): every module by itself, on what it was given.

By layer and by step a model differs in rounding, and a spike that differs moves all behind it.
So no two whole runs are compared. The model runs by layer once, and every call of a module in that
run is repeated step by step, with the outputs that were recorded in place of the modules inside it.
What remains is the module's own arithmetic, in which both ways agree to rounding, or not at all.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stateful_layer import StateSnapshot
from tracetorch.unrolling.inputs import Inputs, call
from tracetorch.unrolling.layer_pass import LayerPass

_RTOL, _ATOL = 1e-4, 1e-5  # of a product of matrices in another order, and relative to the largest
_SEED = 0
_SCALES = (2.0, 0.1)  # of random values: some faults show among large ones, some among small

_log = logging.getLogger("tracetorch")


class _RandomState:
    """The global generators of random numbers at one time: PyTorch's, Python's and NumPy's."""

    def __init__(self) -> None:
        self._torch = torch.get_rng_state()
        self._others = Values(global_generators(), whole=True)

    def restore(self) -> None:
        """Let all draw the same numbers once more."""
        torch.set_rng_state(self._torch)
        self._others.restore()


def _seed(seed: int) -> None:
    """Seed them all."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@dataclass
class _Call:
    """A call of a module in the pass by layer.

    Args:
        path: path of the module.
        module: the module.
        args: its positional and keyword arguments.
        output: what it returned.
        inner: arguments and output of its ``forward`` alone, behind and before its other hooks.
        first: index of the first call that was made inside it; those calls end before it does.
        random: states of the random number generators before it.
    """

    path: str
    module: nn.Module
    args: tuple[Any, Any]
    output: Any
    inner: tuple[Any, Any]
    first: int
    random: _RandomState

    def name(self) -> str:
        """Name the module for messages."""
        return f"{self.path or 'the model'} ({type(self.module).__name__})"


@dataclass
class Coverage:
    """Coverage of a check.

    Args:
        steps: time steps.
        compared: calls of modules that were repeated step by step.
        synthetic: calls that were repeated on random values, for silence and equal samples in the
            model could not have shown a difference.
        skipped: paths of modules that could not be compared, each with the reason.
        uncalled: paths of modules that were not called.
    """

    steps: int
    compared: int = 0
    synthetic: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    uncalled: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"{self.compared} calls of modules compared over {self.steps} steps",
            f"{self.synthetic} of them begun on random values",
        ]
        parts += [f"not compared: {path}, {reason}" for path, reason in self.skipped.items()]
        if self.uncalled:
            parts.append(f"not called: {', '.join(self.uncalled)}")
        return "; ".join(parts)


def check_both_ways(model: nn.Module, inputs: Inputs) -> Coverage:
    """Raise at the first module that computes something else by layer than by step.

    The model runs in the modes that it has. States, buffers, modes and the random state are
    restored. What was covered is returned, and logged at the level INFO.

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
    coverage = Coverage(inputs.steps)
    with restored(model), torch.no_grad():
        start = StateSnapshot([m for _, m in modules_of(model) if isinstance(m, SequenceLayer)])
        check = _Check(modules, inputs, start, coverage)
        check.model(model)
    _log.info("tt.unroll(check=True): %s.", coverage)
    return coverage


class _Check:
    """The comparison of one model's modules.

    Args:
        modules: every module with its path; a ``Recurrent`` is one.
        inputs: the inputs of the model.
        start: the states before the first step.
        coverage: what has been compared.
    """

    def __init__(
        self,
        modules: Sequence[tuple[str, nn.Module]],
        inputs: Inputs,
        start: StateSnapshot,
        coverage: Coverage,
    ) -> None:
        self.modules = modules
        self.steps = inputs.steps
        self.inputs = inputs
        self.start = start
        self.coverage = coverage

    def model(self, model: nn.Module) -> None:
        """Compare every call that a pass of the whole model makes."""
        calls, ends = self.by_layer(lambda: call(model, self.inputs.folded()))
        _check_finite(self.inputs, calls)
        seen = {id(each.module) for each in calls}
        self.coverage.uncalled = [path for path, m in self.modules if path and id(m) not in seen]
        for index, each in enumerate(calls):  # inner modules first
            self.compare(each, calls[each.first : index], ends)
            if self._has_time(each):
                for scale in _SCALES:
                    self.synthetic(each, scale)

    def synthetic(self, original: _Call, scale: float) -> None:
        """Compare a module on random values: silence and equal samples would show no difference."""
        path = original.path or "the model"
        if not any(isinstance(x, Tensor) and x.is_floating_point() for x in _leaves(original.args)):
            return
        generator = torch.Generator().manual_seed(_SEED)

        def noise(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            values = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            return (scale * values).to(x)

        args, kwargs = pytree.tree_map_only(Tensor, noise, original.args)
        self.start.restore()
        module = original.module
        try:
            calls, ends = self.by_layer(lambda: module(*args, **kwargs))
        except Exception as failure:  # a module may refuse values out of its range
            self.coverage.skipped[f"{path} on random values"] = str(failure).partition("\n")[0]
            return
        self.coverage.synthetic += 1
        for index, each in enumerate(calls):
            self.compare(each, calls[each.first : index], ends)

    def by_layer(self, run: Any) -> tuple[list[_Call], StateSnapshot]:
        """Run by layer, and return all calls with the states at the end."""
        calls: list[_Call] = []
        # calls in progress: their arguments, how many had ended when they began, the random state
        # then, and the output of forward
        begun: list[tuple[Any, int, _RandomState, list[Any]]] = []
        paths = {id(module): path for path, module in self.modules}

        thread = get_ident()  # of another, a call reaches the hooks before it is refused

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if get_ident() == thread:
                begun.append((_copied((args, kwargs)), len(calls), _RandomState(), []))

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if get_ident() == thread:
                begun[-1][-1].append(_copied(output))

        def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if get_ident() != thread:
                return
            arguments, first, state, returned = begun.pop()
            inner = _copied((args, kwargs)), returned[0]
            path = paths[id(module)]
            calls.append(_Call(path, module, arguments, _copied(output), inner, first, state))

        every_module = [module for _, module in self.modules]
        neurons = [module for module in every_module if isinstance(module, SequenceLayer)]
        has_compiled = any(map(is_compiled, every_module))

        self.start.restore()
        with (
            torch.random.fork_rng(devices=[]),
            forward_hooks(
                earliest=[(module, begin) for module in every_module],
                first=[(module, note) for module in every_module],
                after=[(module, end) for module in every_module],
            ),
            LayerPass(neurons, self.steps, None, has_compiled),
        ):
            _seed(_SEED)
            run()
        # A layer stands in the snapshot once for each of its states.
        layers = {id(layer): layer for layer, _, _ in self.start.states}
        return calls, StateSnapshot(layers.values())

    def _has_time(self, each: _Call) -> bool:
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
        path, module = each.path or "the model", each.module
        if not self._has_time(each):
            self.coverage.skipped[path] = "its arguments do not begin with time and batch"
            return
        fault = self.fault(each, inner)
        if fault is not None and isinstance(module, DropoutBase) and module.training:
            self.coverage.skipped[path] = "PyTorch's dropout is random, sample by sample"
            return
        if fault is None and isinstance(module, SequenceLayer):
            fault = self._other_states(module, ends)
        if fault is not None:
            raise ValueError(
                f'{each.name()} {fault}: {self.reason(each, inner)}. Use unroll(..., by="step").'
            )
        self.coverage.compared += 1

    def fault(self, each: _Call, inner: Sequence[_Call]) -> str | None:
        """Run a call step by step; return how it differs from by layer, or ``None``."""
        outputs: list[list[Any]] = []
        self.start.restore()
        with self._stubs(inner) as stubs, torch.random.fork_rng(devices=[]):
            each.random.restore()  # the very numbers that it drew by layer
            for t in range(self.steps):
                stubs.begin(t)
                outputs.append(_leaves(self._step(each, t)))
                if stubs.fault is not None:
                    return stubs.fault
        folded = _leaves(each.output)
        if any(len(step) != len(folded) for step in outputs):
            return "returns another number of outputs by layer than by step"
        for whole, *steps in zip(folded, *outputs, strict=True):
            if not isinstance(whole, Tensor):
                continue
            stepped = torch.stack(steps)
            if not _holds_steps(whole, self.steps):
                return "gives other outputs by layer than by step"
            unfolded = torch.unflatten(whole, 0, (self.steps, -1))
            if unfolded.shape != stepped.shape or not is_close(unfolded, stepped):
                return "gives other outputs by layer than by step"
        return None

    def _step(self, each: _Call, t: int) -> Any:
        """Call the module on one step of its arguments."""
        args, kwargs = _step_of(each.args, self.steps, t)
        return each.module(*args, **kwargs)

    @contextmanager
    def _stubs(self, inner: Sequence[_Call]) -> Iterator[_Stubs]:
        """Let the modules inside a call return what was recorded of them."""
        stubs = _Stubs(inner, self.steps)
        with ExitStack() as stack:
            for module in {id(each.module): each.module for each in inner}.values():
                attributes = vars(module)
                previous = attributes.get("forward")
                attributes["forward"] = stubs.forward_of(module)
                stack.callback(_restore_forward, attributes, previous)
            yield stubs

    def _other_states(self, layer: SequenceLayer, ends: StateSnapshot) -> str | None:
        for owner, name, by_layer in ends.states:
            by_step = getattr(layer, name, None) if owner is layer else None
            if by_layer is None or by_step is None:
                continue
            if by_layer.shape != by_step.shape or not is_close(by_layer, by_step):
                return f"leaves another state {name} by layer than by step"
        return None

    # Why they differ

    def reason(self, each: _Call, inner: Sequence[_Call]) -> str:
        """Return why a module differs: randomness, memory, or a batch that is mixed."""
        module = each.module
        if isinstance(module, BatchNormBase):
            return "in training it takes its statistics over the batch, by layer over time too"
        remembers = "it remembers something from step to step outside the states of neuron layers"
        first, again = self._leaves_of(each, inner, 0, 0), self._leaves_of(each, inner, 0, 0)
        if not _all_close(first, again):
            return remembers
        if not _all_close(first, self._leaves_of(each, inner, 0, 1)):
            return "it is random, and draws other numbers for all steps at once than step by step"
        alone = self._leaves_of(each, inner, self.steps - 1, 0)
        within = self._leaves_of(each, inner, self.steps - 1, 0, before=True)
        if not _all_close(alone, within) and not isinstance(module, SequenceLayer):
            return remembers
        return (
            "it does not treat the samples of a batch independently, or does not keep the batch "
            "first"
        )

    def _leaves_of(
        self, each: _Call, inner: Sequence[_Call], t: int, seed: int, *, before: bool = False
    ) -> list[Any]:
        """Return the outputs of step ``t``, from the start or after the steps before it."""
        self.start.restore()
        with (
            restored(each.module, tensors=True),
            self._stubs(inner) as stubs,
            torch.random.fork_rng(devices=[]),
        ):
            _seed(seed)
            for step in range(0 if before else t, t):
                stubs.begin(step)
                self._step(each, step)
            stubs.begin(t)
            return _leaves(self._step(each, t))


class _Stubs:
    """Recorded calls in place of modules, and whether they are called with the same arguments.

    Args:
        calls: what was recorded by layer.
        steps: time steps.
    """

    def __init__(self, calls: Sequence[_Call], steps: int) -> None:
        self.calls: dict[int, list[_Call]] = {}
        for each in calls:
            self.calls.setdefault(id(each.module), []).append(each)
        self.steps = steps
        self.t = 0
        self.made: dict[int, int] = {}
        self.fault: str | None = None

    def begin(self, t: int) -> None:
        """Begin a step."""
        self.t, self.made = t, {}

    def forward_of(self, module: nn.Module) -> Any:
        """Return a ``forward`` that gives what was recorded of ``module``."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            number = self.made.get(id(module), 0)
            self.made[id(module)] = number + 1
            recorded = self.calls[id(module)]
            if number >= len(recorded):
                self.fault = f"calls {recorded[0].name()} more often by step than by layer"
                number = -1
            each = recorded[number]
            arguments, output = each.inner
            expected = _leaves(_step_of(arguments, self.steps, self.t))
            if not _all_close(expected, _leaves((args, kwargs))):
                self.fault = f"gives {each.name()} other inputs by layer than by step"
            return _step_of(output, self.steps, self.t)

        return forward


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


def _check_finite(inputs: Inputs, calls: Sequence[_Call]) -> None:
    """Raise where NaN comes in or is made: a spike of it is 0, and hides it.

    Raises:
        ValueError: the inputs, or the first module that gives NaN, are named.
    """
    places = [("the input", _leaves(inputs.tensors))]
    places += [(f"the output of {each.name()}", _leaves(each.output)) for each in calls]
    for place, tensors in places:
        for tensor in tensors:
            if isinstance(tensor, Tensor) and bool(torch.isnan(tensor).any()):
                raise ValueError(
                    f"{place} has NaN. A neuron's spike is 0 there, so that what follows looks "
                    "finite. Clean the data, or find the operation that makes it."
                )


def _restore_forward(attributes: dict[str, Any], previous: Any) -> None:
    if previous is None:
        del attributes["forward"]
    else:
        attributes["forward"] = previous


def _copied(tree: Any) -> Any:
    """Copy tensors, so that in-place operations behind a module do not change the record."""
    return pytree.tree_map_only(Tensor, torch.clone, tree)


def _leaves(tree: Any) -> list[Any]:
    return pytree.tree_leaves(tree)


def _all_close(one: Sequence[Any], other: Sequence[Any]) -> bool:
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            return False
        if isinstance(a, Tensor) and (a.shape != b.shape or not is_close(a, b)):
            return False
    return True


def is_close(one: Tensor, other: Tensor, share: float = 0.0) -> bool:
    """Whether all values agree to rounding, but for a share of them that may differ."""
    if torch.equal(one, other):
        return True
    if not one.is_floating_point():
        differ = one != other
    else:
        finite = one[torch.isfinite(one)]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        atol = _ATOL * max(scale, 1e-3)
        differ = ~torch.isclose(one, other, rtol=_RTOL, atol=atol, equal_nan=True)
    return int(differ.count_nonzero()) <= share * one.numel()
