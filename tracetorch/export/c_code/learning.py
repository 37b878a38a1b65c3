"""Record one step of a learner of ``tt.online`` or ``tt.STDP`` for a program in C.

The learner itself runs one step of one sample on a tape, which has all that PyTorch computes there:
the step of the model, the traces, the backward pass from a signal, and the update. So no rule is
written a second time. By then every trace is there, and what was recorded is compared with the
learner on other steps, from rest.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from tracetorch.core.torch_private import TorchDispatchMode, global_modes_off, pytree
from tracetorch.export.c_code.arrangement import living
from tracetorch.export.c_code.learners import Trial
from tracetorch.export.c_code.operations import RULES
from tracetorch.export.c_code.phases import ancestors, divided, is_outer, phase_of
from tracetorch.export.c_code.reader import Reader, Rule, operation_of, path_of, refused
from tracetorch.export.c_code.stages import (
    Array,
    Contraction,
    Copy,
    Phase,
    Role,
    Stage,
    StepProgram,
    View,
    moved,
    reads_of,
)
from tracetorch.export.c_code.tape import SIMPLER, Tape
from tracetorch.export.program import named_leaves
from tracetorch.fuse import backend
from tracetorch.fuse.ir.graph import Builder, Value


class LearningReader(Reader):
    """Reader of a divided graph, each of whose stages is of a phase."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, (), LEARNING_RULES)
        self.phase = Phase.STEP
        self._read = 0  # number of stages whose phase is known

    def run_node(self, n: Node) -> Any:
        """Run an operation, and read it; what comes in another phase is no part of this loop."""
        phase = phase_of(n)
        if phase is not None and phase is not self.phase:
            self.finish()
            self.phase = phase
        return super().run_node(n)

    def finish(self) -> None:
        """Close the open group, and give the stages so far their phase."""
        self.close()
        new = [replace(each, phase=self.phase) for each in self.stages[self._read :]]
        self.stages[self._read :] = new
        self._read = len(self.stages)


def _matrices(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a product of matrices: of weights that are constant, or of two that change."""
    *first, left, right = node.args[:3]
    name = operation_of(node)
    chosen = [*first, right]
    if name != "bmm" and all(isinstance(n, Node) and n.name in reader.constants for n in chosen):
        RULES[name](reader, node, made)
        return
    if node.kwargs or (name == "bmm" and made.shape[0] != 1 and not is_outer(node)):
        raise refused(node, "it sums over several rows of one step, or has a factor")
    if is_outer(node):

        def emit(operand: Callable[[Any], Value], builder: Builder) -> Value:
            product = builder.emit("mul", operand(left), operand(right))
            return builder.emit("add", operand(first[0]), product) if first else product

        reader.emitted(node, made, emit)
        return
    target = reader.new(node, made.contiguous())
    views = [reader.view(each) for each in (left, right)]  # type: ignore[arg-type]
    start = reader.view(first[0]).broadcast(tuple(made.shape)) if first else None  # type: ignore[arg-type]
    source, factor, into = (_matrix(each) for each in (*views, target))
    begin = None if start is None else _matrix(start)
    reader.append(node, Contraction(path_of(node), source, factor, into, begin), target)


def _matrix(view: View) -> View:
    """Return a view without the one batch that ``bmm`` has."""
    return replace(view, shape=view.shape[-2:], strides=view.strides[-2:])


def _summed(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a sum, or nothing where each is of one term."""
    given: Any = node.args[0]
    if reader.env[given].numel() != made.numel():
        RULES["sum"](reader, node, made)
        return
    view = reader.view(given).squeezed()
    sizes = iter(zip(view.shape, view.strides, strict=True))
    pairs = [next(sizes) if size != 1 else (1, 0) for size in made.shape]
    reader.views[node.name] = replace(
        view, shape=tuple(p[0] for p in pairs), strides=tuple(p[1] for p in pairs)
    )


def _convolution(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a convolution, which PyTorch calls by another name where it records gradients."""
    *args, transposed, _, groups = node.args
    if transposed:
        raise refused(node, "it is transposed")
    node.args = (*args, groups)
    RULES["conv2d"](reader, node, made)


def _pool(reader: Reader, node: Node, made: tuple[Tensor, ...]) -> None:
    """Append a pool, which PyTorch asks for the places of its maxima where it records gradients."""
    RULES["max_pool2d"](reader, node, made[0])


LEARNING_RULES: dict[str, Rule] = {
    **RULES,
    "convolution": _convolution,
    "max_pool2d_with_indices": _pool,
    **dict.fromkeys(("mm", "addmm", "bmm"), _matrices),
    **dict.fromkeys(("sum", "mean"), _summed),
}


class OrderedSums(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute products of matrices, sums and means term by term in ascending order, in a block.

    PyTorch adds in an order that depends on the processor. With this one, what a block computes of
    operations that round alike everywhere is bit for bit what C computes.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        if name in ("mm", "bmm"):
            return _product(None, *args)
        if name == "addmm" and not kwargs:
            return _product(*args)
        if name in ("sum", "mean") and args[0].is_floating_point():
            dims, keeps = (*args[1:], False)[:2] if len(args) > 1 else (None, False)
            return _added(args[0], dims, keeps, name == "mean")
        return func(*args, **kwargs)


def _product(start: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    terms = left.unsqueeze(-1) * right.unsqueeze(-3)  # [..., rows, terms, columns]
    begin = torch.zeros_like(terms[..., 0, :]) if start is None else start
    return _accumulated(begin.expand_as(terms[..., 0, :]), terms.movedim(-2, 0))


def _added(x: Tensor, dims: Any, keeps: bool, is_mean: bool) -> Tensor:
    chosen = [d % x.ndim for d in dims] if dims else list(range(x.ndim))
    kept = [d for d in range(x.ndim) if d not in chosen]
    terms = x.permute(*sorted(chosen), *kept).reshape(-1, *(x.shape[d] for d in kept))
    total = _accumulated(torch.zeros_like(terms[0]), terms) if len(terms) else terms.sum(0)
    total = total / len(terms) if is_mean else total
    return (
        total.reshape([1 if d in chosen else n for d, n in enumerate(x.shape)]) if keeps else total
    )


def _accumulated(start: Tensor, terms: Tensor) -> Tensor:
    """Add terms one after the other, along the first dimension, each sum rounded."""
    rows = torch.cat([start[None], terms]).numpy()
    return torch.from_numpy(np.array(np.add.accumulate(rows, 0)[-1]))


_COMPARED = 4  # steps of the learner with which the recorded one is compared
_WARM = 20  # steps after which every trace is there: one more with every layer


@dataclass(frozen=True)
class LearningRecord:
    """Step of a learner as stages in phases, and what it learns from drawn signals."""

    program: StepProgram
    signals: dict[str, Tensor]  # ``[T, ...]``, of each step of the sample, by name
    weights: dict[str, Tensor]  # after these steps, by name
    steps: int  # their number
    exact: bool  # whether each operation that was recorded is one of PyTorch
    notes: tuple[str, ...]  # lines for whoever calls it


def record_learning(
    trial: Trial, steps: Sequence[Any], start: Mapping[str, Tensor], double: bool = False
) -> LearningRecord:
    """Read one step of a learner, and let it learn from drawn signals over inputs of a sample."""
    first = {name: weight.detach().clone() for name, weight in trial.learned.items()}
    with global_modes_off(), backend("eager"):
        tape = _record(copy.deepcopy(trial), steps)
        program = _read(tape, start, first, double)
        trial.learned = {name: trial.learned[name] for name in program.learned}
        signals = {
            name: _drawn(max(len(steps), _COMPARED), form.shape, number)
            for number, (name, form) in enumerate(tape.given["signal"].items())
        }
        _compare(tape, copy.deepcopy(trial), steps, signals, {**start, **first})
        with OrderedSums():  # type: ignore[no-untyped-call]
            count = _learn(trial, steps, signals)
    signals = {name: each[:count] for name, each in signals.items()}
    weights = {name: weight.detach().clone() for name, weight in trial.learned.items()}
    exact = not any(node.meta.get(SIMPLER) for node in tape.module.graph.nodes)
    return LearningRecord(living(program), signals, weights, count, exact, trial.notes())


@dataclass(frozen=True)
class _Taped:
    """Step of a learner on a tape: a module of what is given, by kind and name, in their order."""

    module: GraphModule
    given: dict[str, dict[str, Tensor]]  # "x", "state", "learned", "trace", "signal"
    ends: list[tuple[Phase, str, str]]  # phase, kind and name of each result


def _record(trial: Trial, steps: Sequence[Any]) -> _Taped:
    """Run the learner until every trace is there, and one step more on a tape."""
    known: set[str] | None = None
    for x in itertools.islice(itertools.cycle(steps), _WARM):
        _, new = trial.step(x, trial.signals)
        found = {*trial.traces(), *trial.states()}
        if found == known:
            break
        known = found
    # a parameter without a gradient, when every trace is there, never changes
    trial.learned = {name: w for name, w in trial.learned.items() if new[name] is not None}
    if not trial.learned:
        raise ValueError(f"nothing learns: {trial.silent}")
    trial.renew()  # states and traces lie each in memory of its own
    x = pytree.tree_map(lambda each: each.detach().clone(), steps[0])
    given = {
        "x": dict(named_leaves("x", x)),
        "state": trial.states(),
        "learned": dict(trial.learned),
        "trace": trial.traces(),
        "signal": {n: torch.randn_like(s) for n, s in trial.signals.items()},
    }
    places = [(kind, name) for kind, each in given.items() for name in each]
    inputs = {f"{kind} {name}": given[kind][name] for kind, name in places}
    with Tape(inputs, frozenset(LEARNING_RULES)) as tape, tape.within(trial.model):
        y, new = trial.step(x, given["signal"])
    results: dict[tuple[Phase, str, str], Node] = {}
    for name, value in named_leaves("y", y):
        results[Phase.STEP, "y", name] = tape.node(value)
    for name, value in trial.states().items():
        results[Phase.STEP, "state", name] = tape.node(value)
    for name in given["learned"]:
        results[Phase.LEARN, "learned", name] = tape.node(new[name])
    for name, value in trial.traces().items():
        results[trial.phase, "trace", name] = tape.node(value)
    placeholders = dict(zip(places, tape.graph.find_nodes(op="placeholder"), strict=True))
    results = _living(results, placeholders)
    traces = {name for _, kind, name in results if kind == "trace"}
    given["trace"] = {name: t for name, t in given["trace"].items() if name in traces}
    kept = {place: n for place, n in placeholders.items() if place[1] in given[place[0]]}
    late = [node for (kind, _), node in kept.items() if kind in ("trace", "signal")]
    ends = {phase: [n for end, n in results.items() if end[0] is phase] for phase in Phase}
    graph = divided(tape.graph, list(kept.values()), ends, late)
    in_order = [end for phase in Phase for end in results if end[0] is phase]
    return _Taped(GraphModule(tape.root, graph), given, in_order)


def _living(
    results: dict[tuple[Phase, str, str], Node], placeholders: Mapping[tuple[str, str], Node]
) -> dict[tuple[Phase, str, str], Node]:
    """Return results without the traces that no weight ever learns from."""
    needed = {end for end in results if end[1] != "trace"}
    while True:
        reached = ancestors(results[end] for end in needed)
        more = {end for end in results if placeholders.get(end[1:]) in reached} - needed
        if not more:
            return {end: node for end, node in results.items() if end in needed}
        needed |= more


def _read(
    tape: _Taped, start: Mapping[str, Tensor], weights: Mapping[str, Tensor], double: bool
) -> StepProgram:
    """Return the step on a tape as stages in phases."""
    reader = LearningReader(tape.module)
    step = StepProgram({}, {}, {}, reader.stages, double)
    groups = {
        "x": step.inputs,
        "state": step.states,
        "learned": step.learned,
        "trace": step.traces,
        "signal": step.signals,
    }
    placeholders = iter(tape.module.graph.find_nodes(op="placeholder"))
    values: list[Tensor] = []
    for kind, named in tape.given.items():
        for name, value in named.items():
            value = value.detach()
            role = Role.INPUT if kind in ("x", "signal") else Role.STATE
            known = {"state": start, "learned": weights}.get(kind)
            initial = torch.zeros_like(value) if known is None else known[name].detach()
            array = Array(
                role, name, value.numel(), value.dtype is torch.bool, initial.flatten().clone()
            )
            groups[kind][name] = array
            view = View(array, tuple(value.shape), tuple(value.stride()))
            reader.views[next(placeholders).name] = view
            values.append(value)
    with torch.no_grad():
        reader.run(*values)
    reader.finish()
    (output,) = tape.module.graph.find_nodes(op="output")
    copies: list[Copy] = []
    for (phase, kind, name), node in zip(tape.ends, output.args[0], strict=True):
        view = reader.view(node)
        if kind == "y":
            step.outputs[name] = Array(Role.OUTPUT, name, view.size, view.array.boolean)
        into = step.outputs[name] if kind == "y" else groups[kind][name]
        target = View(into, view.shape, tuple(torch.empty(view.shape).stride()))
        copies.append(Copy(name, view, target, phase=phase))
    stages = [*step.stages, *copies]
    step.stages = sorted(_kept(step, stages), key=lambda each: [*Phase].index(each.phase))
    return step


def _kept(step: StepProgram, stages: Sequence[Stage]) -> list[Stage]:
    """Keep what later phases read and will then be gone, the input say, in work memory."""
    gone = {Phase.LEARN: {*step.inputs.values(), *step.states.values()}}
    gone[Phase.ADVANCE] = gone[Phase.LEARN] | {*step.learned.values()}
    first: list[Stage] = []
    places: dict[Array, Array] = {}
    changed: list[Stage] = []
    for each in stages:
        read = {view.array for view in reads_of(each)} & gone.get(each.phase, set())
        for array in sorted(read, key=lambda a: a.label):
            if array not in places:
                places[array] = Array(Role.WORK, array.label, array.size, array.boolean)
                old, new = (View(a, (a.size,), (1,)) for a in (array, places[array]))
                first.append(Copy(f"{array.label} of this step", old, new))
            each = moved(each, array, places[array])
        changed.append(each)
    return first + changed


def _drawn(steps: int, shape: torch.Size, number: int) -> Tensor:
    """Return signals of so many steps: normal, and the same every time."""
    return torch.randn(steps, *shape, generator=torch.Generator().manual_seed(number))


def _compare(
    tape: _Taped,
    trial: Trial,
    steps: Sequence[Any],
    signals: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
) -> None:
    """Raise where the recorded step, from ``first`` at rest, differs from the learner's."""
    now = {kind: dict(values) for kind, values in tape.given.items()}
    now["trace"] = {name: torch.zeros_like(value) for name, value in now["trace"].items()}
    for kind in ("state", "learned"):
        now[kind] = {name: first[name].detach() for name in now[kind]}
    for t, x in enumerate(itertools.islice(itertools.cycle(steps), _COMPARED)):
        now["x"] = dict(named_leaves("x", x))
        now["signal"] = {name: signals[name][t] for name in now["signal"]}
        with torch.no_grad():
            made = tape.module(*(v for each in now.values() for v in each.values()))
        _, new = trial.step(x, now["signal"])
        trial.apply(new)
        for (_, kind, name), value in zip(tape.ends, made, strict=True):
            if kind != "y":
                now[kind][name] = value
        expected = {**trial.states(), **trial.learned}
        for name, value in {**now["state"], **now["learned"]}.items():
            # however small a step is, it is compared with itself
            moved = float((expected[name] - first[name]).detach().abs().max())
            if not torch.allclose(value, expected[name], 1e-6, 1e-3 * moved):
                raise ValueError(
                    f"{name} is another one after a step of the learner than after the step that "
                    "was recorded of it: forward or backward branches on values, or something "
                    "beside states remembers. Only what tensors compute is written in C."
                )


def _learn(trial: Trial, steps: Sequence[Any], signals: Mapping[str, Tensor]) -> int:
    """Learn in every step, from rest, until the learner refuses one, for it has diverged."""
    for t, x in enumerate(steps):
        try:
            _, new = trial.step(x, {name: each[t] for name, each in signals.items()})
        except ValueError:
            if not t:
                raise
            return t
        trial.apply(new)
    return len(steps)
