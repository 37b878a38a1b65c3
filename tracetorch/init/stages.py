"""Find what drives each neuron layer of a model: the affine layer before it, and its recurrence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from tracetorch.core.checks import check_finite
from tracetorch.core.hooks import hooked_weights
from tracetorch.core.torch_private import BatchNormBase, is_alias
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.batch_norm import BatchNormThroughTime
from tracetorch.snn.connectivity import connectivity, raw_weight
from tracetorch.snn.delay import Delay, SynapticDelays
from tracetorch.snn.module import keeps_states
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# of the variance comes from a recurrent connection: 1 - alpha in Rossbroich, Gygax and Zenke (2022)
RECURRENT = 0.1


# what holds an affine layer of its own, which makes its output
_HOLDERS = (SynapticDelays, BatchNormThroughTime, nn.MultiheadAttention)


class Stage(NamedTuple):
    """A neuron layer and what drives it.

    Args:
        path: path of the neuron layer.
        neuron: the layer.
        source_path: path of the affine layer before it.
        source: a linear layer, a convolution, or a batch norm with a weight; its outputs, or
            channels, are the neurons.
        connection: the linear layer or convolution that feeds its output back, or ``None``.
        delays: the layer whose product the source is, or ``None``.
        connection_delays: the layer whose product the connection is, or ``None``.
        before: what comes before the source since the last neurons, by path.
        behind: the delays between the source and the neurons, by path.
        loop: path of the :class:`~tracetorch.snn.Recurrent` that the layer is in, or ``None``.
    """

    path: str
    neuron: Neuron
    source_path: str
    source: nn.Module
    connection: nn.Module | None
    delays: SynapticDelays | None
    connection_delays: SynapticDelays | None
    before: dict[str, nn.Module]
    behind: dict[str, Delay]
    loop: str | None


def stages(model: nn.Module, order: Iterable[str] | None = None) -> list[Stage]:
    """Pair every neuron layer with the last affine layer before it; one without is left out.

    Args:
        model: the model.
        order: paths of its modules in the order in which they are called; as they are registered
            where it is ``None``.

    Raises:
        ValueError: there is no such pair; without an order, something feeds back to several layers;
            an affine layer has another number of outputs, no values yet, or a parametrization; or a
            recurrent connection is not a linear layer or a convolution.
    """
    modules = dict(named_modules(model))
    for path, module in modules.items() if order is None else ():
        is_loop = isinstance(module, Recurrent) and module.holds_population
        if is_loop or (keeps_states(module) and not isinstance(module, SequenceLayer)):
            what = "the output of several layers" if is_loop else "what it remembers, it seems,"
            raise ValueError(
                f"{path or 'the model'!r} ({type(module).__name__}) feeds back {what} to the first "
                "of its layers, and how large that is shows in a run alone. Use calibrate_ with a "
                "batch."
            )
    recurrent = {id(m.neuron): (p, m) for p, m in modules.items() if isinstance(m, Recurrent)}
    passed = {path: m for path, m in modules.items() if isinstance(m, Delay)} | sources(model)
    found: list[Stage] = []
    before: dict[str, nn.Module] = {}
    for path in modules if order is None else order:
        module = modules[path]
        if path in passed:
            before[path] = module
        elif has_step(module):
            stage = _stage(path, module, before, *recurrent.get(id(module), (None, None)))
            if stage is not None:
                _check(stage)
                found.append(stage)
            elif order is None:
                _check_registration(path, found)
            before = {}
    _check_untied(found)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no neuron layer behind a linear layer, a convolution or a "
            "batch norm with a weight: there is nothing to initialise."
        )
    return found


def sources(model: nn.Module) -> dict[str, nn.Module]:
    """Return what may drive neurons, by path: affine layers, and what holds one as its own."""
    modules = dict(named_modules(model))
    inside: set[int] = set()
    for module in modules.values():
        if isinstance(module, Recurrent):
            inside |= {id(part) for _, part in named_modules(module.connection)}
        elif isinstance(module, _HOLDERS):
            inside.add(id(unwrapped("", module)[1]))
    return {
        path: module
        for path, module in modules.items()
        if id(module) not in inside and _drives(module)
    }


def _drives(module: nn.Module) -> bool:
    """Whether a module is an affine layer that learns, or holds one."""
    if isinstance(module, SynapticDelays):
        return is_affine(module.product)  # not one of integers
    return isinstance(module, _HOLDERS) or is_affine(module)


def unwrapped(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    """Return the affine layer whose output is that of a module which holds it, and its path."""
    held: nn.Module = module
    if isinstance(module, SynapticDelays):
        held = module.product
    elif isinstance(module, BatchNormThroughTime):
        held = module.norm
    elif isinstance(module, nn.MultiheadAttention):
        held = module.out_proj
    if held is module:
        return path, module
    name = next(name for name, child in module.named_children() if child is held)
    return join_path(path, name), held


def _check_registration(path: str, found: list[Stage]) -> None:
    """Raise where layers are registered in groups: not each before the neurons it drives."""
    for stage in found:
        products = [
            name
            for name, module in stage.before.items()
            if isinstance(module, (*_PRODUCTS, SynapticDelays))
        ]
        if isinstance(stage.source, BatchNormBase):
            products = products[:-1]  # the last one is that of the norm
        if products:
            raise ValueError(
                f"{path!r} has no layer with a weight registered between the neurons before it and "
                f"itself, and {products[-1]!r} has no neurons behind it, before "
                f"{stage.source_path!r}: so it is not known what drives them. Register layers in "
                "the order of their calls, or use calibrate_, which follows the calls."
            )


def _check_untied(found: list[Stage]) -> None:
    """Raise where neuron layers share a weight or a bias, which can have one scale alone."""
    seen: list[tuple[Tensor, Stage]] = []
    for stage in found:
        own = [
            parameter
            for module in (stage.source, stage.connection)
            if module is not None
            for parameter in module.parameters()
        ]
        for number, parameter in enumerate(own):
            for other, owner in [*seen, *((each, stage) for each in own[:number])]:
                if overlap(parameter, other):
                    raise ValueError(
                        f"{owner.path!r} and {stage.path!r} are driven by one parameter, of "
                        f"{owner.source_path!r} and {stage.source_path!r}, which cannot fit both. "
                        "Initialise the network before you tie them, or give each its own layer."
                    )
            if any(
                n > 1 and not step
                for n, step in zip(parameter.shape, parameter.stride(), strict=True)
            ):
                raise ValueError(
                    f"a parameter of {stage.source_path!r}, before {stage.path!r}, holds values "
                    "that share memory with each other, as .expand() gives them: they cannot be "
                    "set by themselves. Give it memory of its own, with .clone()."
                )
        seen += [(parameter, stage) for parameter in own]


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have an element of memory in common, as views of one storage may."""
    if one is other:
        return True
    if not is_alias(one, other) or one.numel() == 0 or other.numel() == 0:
        return False
    spans = _span(one), _span(other)
    # parts of one vector, as vector_to_parameters makes them, lie beside each other
    if max(span.start for span in spans) >= min(span.stop for span in spans):
        return False
    ones, others = (
        torch.arange(span.start, span.stop).as_strided(tensor.shape, tensor.stride())
        for span, tensor in zip(spans, (one, other), strict=True)
    )
    return bool(torch.isin(ones, others).any())


def _span(tensor: Tensor) -> range:
    """Return from where to where in its storage the elements of a tensor lie."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    start = int(tensor.storage_offset())
    return range(start, start + 1 + sum((size - 1) * stride for size, stride in steps))


def _stage(
    path: str,
    neuron: Neuron,
    before: dict[str, nn.Module],
    loop_path: str | None,
    loop: Recurrent | None,
) -> Stage | None:
    """Return a neuron layer and what drives it; ``None`` where that is no affine layer."""
    before, behind = dict(before), {}
    while before:
        source_path, source = before.popitem()
        if not isinstance(source, Delay):
            break
        behind[source_path] = source
    else:
        return None
    connection = None if loop is None else loop.connection
    delays, connection_delays = (
        module if isinstance(module, SynapticDelays) else None for module in (source, connection)
    )
    source_path, source = unwrapped(source_path, source)
    if connection_delays is not None:
        connection = connection_delays.product
    return Stage(
        path, neuron, source_path, source, connection, delays, connection_delays, before, behind,
        loop_path,
    )  # fmt: skip


def check_moments(target: object, mean: object) -> tuple[float, float]:
    """Return deviation and mean that membranes shall have, checked."""
    checked = check_finite("target", target), check_finite("mean", mean)
    if not checked[0] > 0:
        raise ValueError(
            f"target must be above 0, in distances to the threshold, got {checked[0]}."
        )
    return checked


def is_affine(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a weight that can be initialised."""
    if isinstance(module, BatchNormBase):
        return bool(module.affine)
    return isinstance(module, _PRODUCTS)


def _check(stage: Stage) -> None:
    path, neuron, source_path, source, connection, *_ = stage
    if connection is not None and not isinstance(connection, _PRODUCTS):
        raise ValueError(
            f"the recurrent connection of {path!r} is {type(connection).__name__}: only linear "
            "layers and convolutions can be initialised."
        )
    for module in (source,) if connection is None else (source, connection):
        check_own_weight(
            f"{source_path!r}, before {path!r},"
            if module is source
            else f"the recurrent connection of {path!r}",
            module,
        )
        if any(is_lazy(p) or p.is_meta for p in module.parameters()):
            raise ValueError(f"{source_path!r} has no values yet. Run the model once before.")
        outputs = outputs_of(module)
        if outputs != neuron.num_neurons:
            raise ValueError(
                f"{source_path!r} has {outputs} outputs, {path!r} behind it has "
                f"{neuron.num_neurons} neurons: it is not known what drives them."
            )


def check_own_weight(title: str, module: nn.Module) -> None:
    """Raise where a weight is computed from other values, which what is written into it leaves."""
    computed = is_parametrized(module) and connectivity(module) is None
    problem = "is parametrized" if computed else ""
    if hooked_weights(module):
        problem = "is pruned, or has a norm of torch.nn.utils"
    if problem:
        raise ValueError(
            f"{title} {problem}: its weight follows from other values. Initialise the network "
            "before you add this."
        )


def weight_of(module: nn.Module) -> Tensor:
    """Return what holds the weight of an affine layer, to be read and written.

    Its outputs come first; those of a norm are last. Of a layer of ``tt.snn.connect`` it is the raw
    weight.
    """
    return raw_weight(module)


def outputs_of(module: nn.Module) -> int:
    """Return the number of outputs of an affine layer, those of a convolution its channels."""
    return module.num_features if isinstance(module, BatchNormBase) else len(raw_weight(module))


def scale_rows(module: nn.Module, factors: Tensor | float) -> None:
    """Multiply the weights of each output, and its bias: by factors of their own, or by one."""
    with torch.no_grad():
        weight = weight_of(module)
        factors = torch.as_tensor(factors).to(weight).expand(outputs_of(module))
        behind = 0 if isinstance(module, BatchNormBase) else weight.ndim - 1
        weight.mul_(factors.view(-1, *[1] * behind))
        if isinstance(module.bias, Tensor):
            module.bias.mul_(factors.to(module.bias))
