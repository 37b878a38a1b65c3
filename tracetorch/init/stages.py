"""Find what drives each neuron layer of a model: the affine layer before it, and its recurrence."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from operator import add, mul
from typing import Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tracetorch.core.hooks import hooked_weights
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import BatchNormBase, is_alias
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.batch_norm import BatchNormThroughTime
from tracetorch.snn.connectivity import connectivity, raw_weight
from tracetorch.snn.delay import DelayedLinear
from tracetorch.snn.model_graph import ModelGraph, Node, is_layer, read_model
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.sparse_linear import SparseLinear
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs

Ends: TypeAlias = Callable[[Node], bool]

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, SparseLinear)
# of the variance comes from a recurrent connection: 1 - alpha in Rossbroich, Gygax and Zenke (2022)
RECURRENT = 0.1


class Stage(NamedTuple):
    path: str  # of the neuron layer
    neuron: Neuron
    source_path: str  # of the affine layer before it
    # a linear layer, a convolution, or a batch norm with a weight; its outputs, or channels, are
    # the neurons
    source: nn.Module
    # the linear layer or convolution that feeds its output back, or None
    connection: nn.Module | None
    loop: str | None  # path of the Recurrent that the layer is in, or None
    drivers: list[nn.Module]  # all affine layers that drive the neurons, the source too
    between: list[str]  # what is called between the source and the neurons, as messages name it


class Calls(NamedTuple):
    by: Literal["layer", "step"]  # how the model runs
    stages: list[Stage]  # the neuron layers with what drives them, in the order of the calls
    left: list[Stage]  # those behind batch norms that drive several, where norms may stay


def follow_calls(model: nn.Module, inputs: Inputs, *, norms_as_they_are: bool = False) -> Calls:
    """Pair every neuron layer with the last affine layer that drives it; leave out one without."""
    by: Literal["layer", "step"] = "step"
    few = inputs.first(2)
    with restored(model), torch.no_grad(), suppress(ValueError):
        unroll(model, few.tensors, steps=few.repeats, from_rest=True)
        by = "layer"
    modules, own = dict(named_modules(model)), sources(model)
    graph = read_step(model, inputs, own)
    # what has weights of another kind, as a layer norm, is on the way
    driven = driven_modules(
        graph, own, lambda n: n.module is not None and (has_step(n.module) or n.path in own)
    )
    loops = {id(m.neuron): (p, m) for p, m in modules.items() if isinstance(m, Recurrent)}
    kept: set[str] = set()  # norms that drive several layers
    for path, ends in driven.items():
        found = [end for end in ends if has_step(modules[end])]
        if (
            norms_as_they_are
            and len(found) > 1
            and isinstance(unwrapped("", own[path])[1], BatchNormBase)
        ):
            kept.add(path)
        elif len(found) > 1:
            raise ValueError(
                f"{path!r} drives {', '.join(map(repr, found))}: one scale cannot fit them all. "
                "Give each neuron layer a layer with weights of its own."
            )
    norms = [unwrapped("", own[path])[1] for path in kept]
    stages: list[Stage] = []
    left: list[Stage] = []
    for node in graph.nodes:
        drivers = [path for path, ends in driven.items() if node.module and node.path in ends]
        seen = any(node.path == stage.path for stage in (*stages, *left))
        if not has_step(node.module) or not drivers or seen:
            continue
        stage = _stage(graph, node, drivers, *loops.get(id(node.module), (None, None)))
        if kept.intersection(drivers) and isinstance(stage.source, BatchNormBase):
            left.append(stage)
        else:
            alone = [m for m in stage.drivers if all(m is not norm for norm in norms)]
            stages.append(stage._replace(drivers=alone))
            _check(stage)
    _check_untied(stages)
    if not stages and not left:
        raise ValueError(
            f"{type(model).__name__} has no neuron layer behind a linear layer, a convolution or a "
            "batch norm with a weight: there is nothing to initialise."
        )
    return Calls(by, stages, left)


def sources(model: nn.Module) -> dict[str, nn.Module]:
    """Return what may drive neurons, by path: affine layers, and what holds one as its own."""
    modules = dict(named_modules(model))
    inside: set[int] = set()
    for module in modules.values():
        if isinstance(module, Recurrent):
            inside |= {id(part) for _, part in named_modules(module.connection)}
        else:
            inside |= {id(unwrapped("", module)[1])} - {id(module)}
    return {
        path: module
        for path, module in modules.items()
        if id(module) not in inside and is_affine(unwrapped("", module)[1])
    }


def unwrapped(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    """Return the affine layer whose output is that of a module which holds it, and its path."""
    inner: nn.Module = module
    if isinstance(module, DelayedLinear):
        inner = module.linear
    elif isinstance(module, BatchNormThroughTime):
        inner = module.norm
    elif isinstance(module, nn.MultiheadAttention):
        inner = module.out_proj
    names = {id(child): name for name, child in module.named_children()}
    return (path if inner is module else join_path(path, names[id(inner)])), inner


def read_step(model: nn.Module, inputs: Inputs, own: Collection[str]) -> ModelGraph:
    """Return the graph of the first step of the inputs, in which sources and neurons are nodes."""
    modules = dict(named_modules(model))
    leaves = {id(modules[path]) for path in own}

    def is_leaf(module: nn.Module) -> bool:
        if id(module) in leaves or has_step(module):
            return True
        if any(has_step(each) or id(each) in leaves for _, each in named_modules(module)):
            return False
        return is_layer(module) or bool(module._parameters)

    step = next(inputs.first(1).each_step())
    args = step if isinstance(step, tuple) else () if isinstance(step, dict) else (step,)
    kwargs = step if isinstance(step, dict) else {}
    return read_model(model, *args, is_leaf=is_leaf, strict=False, **kwargs)


def driven_modules(graph: ModelGraph, own: Collection[str], ends: Ends) -> dict[str, list[str]]:
    """Return the paths of the modules that each source drives, up to an end of the way."""
    driven: dict[str, list[str]] = {}
    for source in graph.nodes:
        if source.module is not None and source.path in own:
            found = driven.setdefault(source.path, [])
            reached = sorted(_walk(graph.users[source], graph.users, ends), key=lambda n: n.index)
            found += [n.path for n in reached if n.module and ends(n) and n.path not in found]
    return driven


def has_weights(node: Node) -> bool:
    """Whether a module makes something of its own of what it is given: neurons, or weights."""
    if isinstance(node.module, SequenceLayer):
        return has_step(node.module) or is_affine(unwrapped("", node.module)[1])
    return node.module is not None and any(True for _ in node.module.parameters())


def _walk(first: Collection[Node], following: dict[Node, list[Node]], ends: Ends) -> list[Node]:
    """Return nodes and those that follow, not beyond what ends a way."""
    seen: dict[Node, None] = {}
    waiting = list(first)
    while waiting:
        node = waiting.pop(0)
        if node not in seen:
            seen[node] = None
            waiting += [] if ends(node) else following[node]
    return list(seen)


def _stage(
    graph: ModelGraph, node: Node, drivers: list[str], loop_path: str | None, loop: Recurrent | None
) -> Stage:
    before = {each: each.inputs for each in graph.nodes}
    upstream = _walk(before[node], before, lambda each: has_step(each.module))
    own = [each for each in upstream if each.module is not None and each.path in drivers]
    last = max(own, key=lambda each: each.index)
    on_the_way = set(
        _walk(graph.users[last], graph.users, lambda n: has_step(n.module))
    ).intersection(upstream)
    between = sorted(on_the_way, key=lambda each: each.index)
    connection = None if loop is None else loop.connection
    source_path, source = unwrapped(last.path, cast(nn.Module, last.module))
    return Stage(
        path=node.path,
        neuron=cast(Neuron, node.module),
        source_path=source_path,
        source=source,
        connection=connection.linear if isinstance(connection, DelayedLinear) else connection,
        loop=loop_path,
        drivers=[unwrapped("", cast(nn.Module, each.module))[1] for each in own],
        between=[each.place for each in between],
    )


def _check(stage: Stage) -> None:
    path, connection = stage.path, stage.connection
    if connection is not None and not isinstance(connection, _PRODUCTS):
        raise ValueError(
            f"the recurrent connection of {path!r} is {type(connection).__name__}: only linear "
            "layers and convolutions can be initialised."
        )
    title = f"{stage.source_path!r}, before {path!r},"
    if isinstance(stage.source, SparseLinear) and stage.source.group is not None:
        raise ValueError(
            f"{title} has weights that edges share (group=): a neuron has no scale of its own. Set "
            "them yourself."
        )
    for module in (stage.source,) if connection is None else (stage.source, connection):
        check_own_weight(title, module)
        pairs = [zip(p.shape, p.stride(), strict=True) for p in module.parameters()]
        if any(size > 1 and not stride for sizes in pairs for size, stride in sizes):
            raise ValueError(
                f"{title} has a parameter whose values share memory, by .expand() say. Clone it."
            )
        if outputs_of(module) != stage.neuron.num_neurons:
            raise ValueError(
                f"{title} has {outputs_of(module)} outputs for {stage.neuron.num_neurons} neurons: "
                "it is not known what drives them."
            )
        title = f"the recurrent connection of {path!r}"


def _check_untied(stages: list[Stage]) -> None:
    """Raise where neuron layers share a weight or a bias, which can have one scale alone."""
    seen: list[tuple[Tensor, Stage]] = []
    for stage in stages:
        modules = [m for m in (stage.source, stage.connection) if m is not None]
        for parameter in (p for module in modules for p in module.parameters()):
            for owner in (owner for other, owner in seen if overlap(parameter, other)):
                raise ValueError(
                    f"{owner.path!r} and {stage.path!r} are driven by one parameter, of "
                    f"{owner.source_path!r} and {stage.source_path!r}, which cannot fit both. "
                    "Initialise the network before you tie them, or give each its own layer."
                )
            seen.append((parameter, stage))


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or views of one storage that may share memory."""
    starts = [int(t.storage_offset()) for t in (one, other)]
    lengths = [sum(map(mul, t.shape, t.stride())) - sum(t.stride()) for t in (one, other)]
    # parts of one vector, as vector_to_parameters makes them, lie beside each other
    beside = max(starts) > min(map(add, starts, lengths))
    return one is other or (is_alias(one, other) and not beside)


def is_affine(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a weight that can be initialised."""
    if isinstance(module, BatchNormBase):
        return bool(module.affine)
    return isinstance(module, _PRODUCTS)


def check_own_weight(title: str, module: nn.Module) -> None:
    """Raise where a weight is computed from other values, which what is written into it leaves."""
    if hooked_weights(module) or (is_parametrized(module) and connectivity(module) is None):
        raise ValueError(
            f"{title} is parametrized, pruned, or has a norm of torch.nn.utils: its weight follows "
            "from other values. Initialise the network before you add this."
        )


def outputs_of(module: nn.Module) -> int:
    if isinstance(module, SparseLinear):
        return module.out_features
    return module.num_features if isinstance(module, BatchNormBase) else len(raw_weight(module))


def scale_rows(module: nn.Module, factors: Tensor | float) -> None:
    """Multiply the weights of each output, and its bias: by factors of their own, or by one."""
    with torch.no_grad():
        weight = raw_weight(module)
        factors = torch.as_tensor(factors).to(weight)
        if isinstance(module, SparseLinear):
            # groups, of connections, are scaled by one number alone
            weight.mul_(factors.index_select(0, module.edges[1]) if factors.ndim else factors)
        else:
            behind = 0 if isinstance(module, BatchNormBase) else weight.ndim - 1
            weight.mul_(factors.expand(outputs_of(module)).view(-1, *[1] * behind))
        if isinstance(module.bias, Tensor):
            module.bias.mul_(factors.to(module.bias))
