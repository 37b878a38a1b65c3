"""Read a model by running it: the chain of its modules, branches included, and what neurons do."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tracetorch.core.hooks import call_is_forward
from tracetorch.core.snapshot import restored
from tracetorch.core.walk import named_modules
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.sequence_layer import SequenceLayer

_SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__}


class Call(NamedTuple):
    """Module of a chain, and the shape of what it returns."""

    path: str
    module: nn.Module
    shape: torch.Size


class Join(NamedTuple):
    """Two branches of a chain, whose outputs are added."""

    first: Chain
    second: Chain


Chain = list[Call | Join]


@dataclass
class Reading:
    """What a run of a model over a sample shows.

    Args:
        chain: its modules, in order.
        output: over the sample.
        largest: of every neuron layer, the largest magnitude of each neuron's states, by path.
        signs: of the outputs of every neuron layer, by path.
    """

    chain: Chain
    output: Tensor
    largest: dict[str, dict[str, Tensor]]
    signs: dict[str, Tensor]


def label(path: str, module: nn.Module) -> str:
    """Return how messages name a module."""
    return f"{path or 'the model'} ({type(module).__name__})"


def check_plain(path: str, module: nn.Module) -> None:
    """Check that a call of a module is its class's forward, and nothing else.

    Raises:
        ValueError: it is not.
    """
    if not call_is_forward(module):
        raise ValueError(
            f"{label(path, module)} has a hook or a forward of its own, or is compiled, and what "
            "that computes has no integer form. Remove it; torch.nn.utils.remove_weight_norm, "
            "remove_spectral_norm and prune.remove make a weight plain that a hook computes."
        )


@torch.no_grad()
def read(model: nn.Module, x: Tensor) -> Reading:
    """Run a model over a sample from rest, step by step, and see what it is made of.

    Each module must be given what another one returned, or the sum of two of such, in every step;
    values are compared, not only tensors.

    Args:
        model: nothing of it changes. It runs as in evaluation.
        x: a sequence.

    Raises:
        ValueError: a call runs something between modules, or one of them twice.
    """
    chains: list[Chain] = []
    outputs: list[Tensor] = []
    largest: dict[str, dict[str, Tensor]] = defaultdict(dict)
    signs: dict[str, list[Tensor]] = defaultdict(list)
    with restored(model, training=False), ExitStack() as hooks:
        recorder = _Recorder()
        closed: list[str] = []
        for path, module in named_modules(model):
            if any(path.startswith(f"{outer}.") for outer in closed):
                continue
            if isinstance(module, SequenceLayer) or "parametrizations" in module._modules:
                closed.append(path)
            elif next(module.children(), None) is not None:
                continue
            check_plain(path, module)
            before, after = partial(recorder.enter, path), recorder.leave
            hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(after))
        zero_states(model)
        for step in x.unbind(0):
            recorder.begin(step.clone())
            with recorder:
                output = model(recorder.x)
            chains.append(recorder.chain(output))
            outputs.append(output)
            for call in recorder.calls[1:]:
                neuron = getattr(call.module, "neuron", call.module)
                if isinstance(neuron, LeakyIntegrator):
                    signs[call.path].append(call.output.sign().to(torch.int8))
                    _keep_largest(largest[call.path], neuron)
    for chain in chains:
        if chain != chains[0]:
            raise ValueError("the model calls other modules in one step than in another.")
    stacked = {path: torch.stack(each) for path, each in signs.items()}
    return Reading(chains[0], torch.stack(outputs), largest, stacked)


def _keep_largest(largest: dict[str, Tensor], layer: Neuron) -> None:
    """Keep the largest magnitude of each neuron's states."""
    for name in {"mem", "syn"}.intersection(layer.active_states):
        dim = layer.dim
        each = getattr(layer, name).abs().movedim(dim, 0).flatten(1).amax(1)
        largest[name] = torch.maximum(largest[name], each) if name in largest else each


@dataclass
class _Call:
    """Call of a module, or a sum: the places of what it took, and what it returned."""

    path: str
    module: Any
    sources: tuple[int, ...]
    output: Any = None


@dataclass(eq=False)
class _Recorder(TorchFunctionMode):
    """Follow tensors from module to module through a step, and through sums between modules."""

    x: Tensor = field(default_factory=lambda: torch.empty(0))
    calls: list[_Call] = field(default_factory=list)
    # by identity: the tensor, what its values were, and which call returned it
    known: dict[int, tuple[Tensor, Tensor, int]] = field(default_factory=dict)
    # of each call, those through whose outputs everything goes that reaches it, and itself
    trunks: list[list[int]] = field(default_factory=list)
    inside: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def begin(self, x: Tensor) -> None:
        """Begin a step."""
        self.x, self.calls, self.known, self.trunks, self.inside = x, [], {}, [], 0
        self.append(_Call("", None, (), x))

    def append(self, call: _Call) -> None:
        """Keep a call, and the values of what it returned."""
        if isinstance(call.output, Tensor):
            values = call.output.detach().clone()
            self.known[id(call.output)] = call.output, values, len(self.calls)
        pairs = zip(*(self.trunks[source] for source in call.sources), strict=False)
        common = [each[0] for each in pairs if len(set(each)) == 1]
        self.trunks.append([*common, len(self.calls)])
        self.calls.append(call)

    def source(self, value: object) -> int | None:
        """Return which call returned a value; ``None`` where none did, or it has changed since."""
        _, values, place = self.known.get(id(value), (None, None, None))
        return place if values is not None and torch.equal(values, value) else None  # type: ignore[arg-type]

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note a sum of two values that modules returned."""
        is_sum = not self.inside and func in _SUMS and len(args) == 2 and not kwargs
        sources = [self.source(each) for each in args] if is_sum else [None]
        result = func(*args, **(kwargs or {}))
        if None not in sources and result.shape == args[0].shape == args[1].shape:
            self.append(_Call("+", None, tuple(sources), result))  # type: ignore[arg-type]
        return result

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Keep what a module takes."""
        if len(args) != 1 or kwargs:
            raise ValueError(
                f"{label(path, module)} is called with other arguments than one input."
            )
        source = self.source(args[0])
        if source is None:
            raise ValueError(
                f"{label(path, module)} is given something else than what a module before it "
                "returned, or the sum of two. A model is quantised as a chain of modules: use "
                "nn.Flatten and the like for what its forward computes in between."
            )
        self.pending = _Call(path, module, (source,))
        self.inside += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep what a module returns."""
        self.inside -= 1
        self.pending.output = output
        self.append(self.pending)

    def chain(self, output: Any) -> Chain:
        """Return the chain of modules that a step was.

        Raises:
            ValueError: it was none.
        """
        end = self.source(output)
        modules = [call.module for call in self.calls if call.module is not None]
        for call in self.calls[1:]:
            if call.module is not None and sum(m is call.module for m in modules) > 1:
                raise ValueError(
                    f"{label(call.path, call.module)} is called twice in a step: build two of it."
                )
        if end is None:
            raise ValueError(
                "the model's forward computes something behind its last module. A model is "
                "quantised as a chain of modules: leave that to whoever calls it."
            )
        chain = self.between(0, end)
        if _num_calls(chain) != len(modules):
            raise ValueError(
                "the modules of the model are no chain, nor branches of one whose outputs are "
                "added: the output of one is not used, or enters a branch from beside."
            )
        return chain

    def between(self, start: int, end: int) -> Chain:
        """Return the chain from the output of one call to that of another."""
        found: Chain = []
        while end != start:
            call = self.calls[end]
            if call.module is not None:
                found.append(Call(call.path, call.module, getattr(call.output, "shape", None)))  # type: ignore[arg-type]
                (end,) = call.sources
            else:
                fork = self.trunks[end][-2]
                first, second = (self.between(fork, source) for source in call.sources)
                found.append(Join(first, second))
                end = fork
        return found[::-1]


def _num_calls(chain: Chain) -> int:
    """Return how many modules a chain calls."""
    return sum(
        1 if isinstance(each, Call) else _num_calls(each.first) + _num_calls(each.second)
        for each in chain
    )
