"""Start norms by the thresholds behind them, ``tdbn_``, and residual blocks as the identity."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_has_values, check_module, check_positive, check_unsharded
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored, restored_on_error
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import join_path, named_modules
from tracetorch.init.calibrate import find_shape, zeros_like_input
from tracetorch.init.response import distance_to_threshold
from tracetorch.init.stages import (
    Stage,
    check_own_weight,
    driven_modules,
    follow_calls,
    has_weights,
    overlap,
    read_step,
    unwrapped,
)
from tracetorch.snn.batch_norm import BatchNormThroughTime
from tracetorch.snn.connectivity import raw_weight
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import has_step, spike_functions
from tracetorch.snn.residual import SEWBlock
from tracetorch.unrolling.inputs import parse_inputs


def tdbn_(
    model: nn.Module, x: Any, *, alpha: float = 1.0, steps: int | None = None
) -> dict[str, str]:
    """Scale batch norms by the thresholds behind them: threshold-dependent batch norm (tdBN).

    ::

        output = weight * (x - mean) / sqrt(var + eps) + bias
        weight = alpha * threshold / sqrt(branches)

    By layer a batch norm takes its statistics over time and batch, which is the rest of tdBN. The
    threshold is the membrane's distance from rest to it, one per neuron; branches are the norms
    whose outputs add up before the neurons, two in a residual block, found in the graph of a step.
    The paper keeps ``alpha * threshold`` apart from the weight; here their product is learned.

    Args:
        model: any module; give a part of it where some norms shall stay as they are.
        x: a batch, as ``unroll`` takes it, ``[T, B, ...]``; one step of it is run.
        alpha: factor of the threshold; above 0. It is 1 in the paper.
        steps: as in ``unroll``.

    Returns:
        The path of the neuron layer behind each norm, by path of the norm.

    Raises:
        TypeError, ValueError: ``alpha`` is out of range, or the model has no batch norm; one has no
            weight, is not called, shares it with another, or drives what does not spike, or neurons
            of thresholds that differ. Nothing has been changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), LIF(3, pos_threshold=0.5))
        >>> tdbn_(net, torch.rand(10, 8, 4))
        {'1': '2'}
        >>> [round(value, 4) for value in net[1].weight.tolist()]
        [0.5, 0.5, 0.5]

    Source: Zheng, Wu, Deng, Hu and Li, Going deeper with directly-trained larger spiking neural
    networks, AAAI 2021.
    """
    check_module(model)
    check_unsharded(model, "tt.init")
    check_has_values(model)
    alpha = check_positive("alpha", alpha)
    modules = dict(named_modules(model))
    norms = _norms(modules)
    driven = driven_modules(read_step(model, parse_inputs(x, steps), norms), norms, has_weights)
    values: dict[str, Tensor] = {}
    for path, norm in norms.items():
        title = f"{path!r} ({type(modules[path]).__name__})"
        check_own_weight(title, norm)
        distance = _common_distance(title, driven.get(path, []), modules)
        if norm.weight is None or len(distance) not in (1, norm.num_features):
            raise ValueError(
                f"{title} has {norm.num_features} channels, and {driven[path][0]!r} behind it "
                f"{len(distance)} thresholds: it needs affine=True, and one threshold for all "
                "(pos_threshold_rank=0) or for each channel."
            )
        # Zheng et al. (2021): variances of branches add up, to that of the threshold
        # of another size than the neurons they are put together, and do not add up
        size = modules[driven[path][0]].num_neurons
        branches = [p for p, behind in driven.items() if driven[path][0] in behind]
        adding = sum(norms[p].num_features == size for p in branches)
        value = alpha * distance / max(1, adding) ** 0.5
        values[path] = value.to(norm.weight).expand_as(norm.weight)
    for (other, given), (path, value) in combinations(values.items(), 2):
        same = value.shape == given.shape and torch.equal(value, given)
        if overlap(norms[path].weight, norms[other].weight) and not same:
            raise ValueError(
                f"{path!r} and {other!r} share their weight, and drive neurons of thresholds that "
                "differ. Give each a weight of its own."
            )
    with torch.no_grad():
        for path, value in values.items():
            norms[path].weight.copy_(value)
    return {path: driven[path][0] for path in values}


def _norms(modules: dict[str, nn.Module]) -> dict[str, Any]:
    """Return what holds the weight of each batch norm, by the path of the module to call."""
    inside = {id(m.norm) for m in modules.values() if isinstance(m, BatchNormThroughTime)}
    norms = {
        path: unwrapped(path, module)[1]
        for path, module in modules.items()
        if isinstance(module, BatchNormThroughTime | BatchNormBase) and id(module) not in inside
    }
    if not norms:
        raise ValueError("the model has no batch norm: there is nothing to scale.")
    return norms


def _common_distance(title: str, paths: list[str], modules: dict[str, nn.Module]) -> Tensor:
    """Return the distances to the thresholds of the neurons that a norm drives, or the one."""
    neurons = {path: modules[path] for path in paths}
    if not neurons or not all(has_step(m) and spike_functions(m) for m in neurons.values()):
        found = ", ".join(f"{path!r} ({type(m).__name__})" for path, m in neurons.items())
        raise ValueError(
            f"{title} drives {found or 'nothing'} on this input, and not neurons that spike. Give "
            "the part of the model whose norms stand before such neurons."
        )
    distances = [distance_to_threshold(m, path) for path, m in neurons.items() if has_step(m)]
    distances = [d[:1] if bool((d == d[0]).all()) else d for d in distances]
    first = distances[0]
    if any(d.shape != first.shape or not torch.allclose(d, first) for d in distances):
        raise ValueError(f"{title} drives {', '.join(map(repr, paths))}, whose thresholds differ.")
    return first


_STEPS = 50  # in which a body must keep silent, or fire at each
_MOST_DOUBLED = 6  # a drive that lets it fire, from the distance to the threshold
_SAMPLES = 4


def identity_(model: nn.Module) -> None:
    """Start every :class:`~tracetorch.snn.SEWBlock` as the identity: its output is its shortcut's.

    The last batch norm, linear layer or convolution of the body gets a weight and a bias of 0, so
    that it is silent; with ``"and"`` a bias from which it fires at every step. The block is run.

    Args:
        model: any module with such blocks.

    Raises:
        TypeError, ValueError: there is no such block; a body does not end in neurons that spike,
            behind a layer with a weight, is recurrent there, needs a bias that it does not have, or
            shares memory with a layer elsewhere; or the block is not the identity then. Nothing has
            been changed then.

    Example:
        >>> body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), LIF(3))
        >>> block = SEWBlock(body)
        >>> identity_(block)
        >>> block(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])).tolist()
        [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]

    Source: Fang et al., Deep residual learning in spiking neural networks, NeurIPS 2021, section 3.
    """
    check_module(model)
    check_unsharded(model, "tt.init")
    blocks = {path: m for path, m in named_modules(model) if isinstance(m, SEWBlock)}
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no snn.SEWBlock to start as the identity.")
    shapes = {path: find_shape(block, None) for path, block in blocks.items()}
    last = {path: _last_stage(path, block, shapes[path]) for path, block in blocks.items()}
    _check_own_states(model, {join_path(p, s.source_path): s.source for p, s in last.items()})
    with restored_on_error(p for stage in last.values() for p in stage.source.parameters()):
        for path, block in blocks.items():
            _set_last(path, block, last[path], shapes[path])


def _last_stage(path: str, block: SEWBlock, shape: tuple[int, ...]) -> Stage:
    inputs = parse_inputs(zeros_like_input(block, shape))
    last = [each for each in follow_calls(block, inputs).stages if each.path.startswith("body")]
    neurons = [m for _, m in named_modules(block.body) if has_step(m)]
    if not last or last[-1].neuron is not neurons[-1] or not spike_functions(neurons[-1]):
        raise ValueError(
            f"{join_path(path, 'body')!r} does not end in neurons that spike, behind a layer with "
            "a weight of its own."
        )
    if last[-1].connection is not None:
        raise ValueError(
            f"{join_path(path, last[-1].path)!r} is recurrent: what it feeds back would have to be "
            "0 too. Let the body end in neurons without a connection."
        )
    return last[-1]


def _check_own_states(model: nn.Module, last: dict[str, nn.Module]) -> None:
    """Raise where another layer shares memory with the last layer of a body, which becomes 0."""
    own = [(name, p) for name, source in last.items() for p in source.parameters(recurse=False)]
    for path, module in named_modules(model):
        if any(module is source for source in last.values()):
            continue
        for parameter in module.parameters(recurse=False):
            for name in (name for name, each in own if overlap(parameter, each)):
                raise ValueError(
                    f"{path!r} shares a parameter with {name!r}, the last layer of a block's body, "
                    "which becomes 0. Start the blocks before you tie them, or give each layer its "
                    "own."
                )


def _set_last(path: str, block: SEWBlock, stage: Stage, shape: tuple[int, ...]) -> None:
    """Set the last layer of a body so that its neurons are silent, or fire at every step."""
    name = join_path(path, stage.path)
    distance, bias = distance_to_threshold(stage.neuron, name), stage.source.bias
    drives = [0 * distance]
    # Fang et al. (2021): add and iand are the identity of a silent body, and of one that fires
    if block.combine == "and":
        if not isinstance(bias, Tensor):
            raise ValueError(
                f"{join_path(path, stage.source_path)!r} has no bias, without which {name!r} "
                'cannot fire at every step, as combine="and" needs it.'
            )
        drives = [distance * 2.0**doubled for doubled in range(1, _MOST_DOUBLED + 1)]
    for drive in drives:
        with torch.no_grad():
            raw_weight(stage.source).zero_()
            if isinstance(bias, Tensor):
                bias.copy_(drive.to(bias).expand_as(bias))
        if _is_identity(block, shape):
            return
    title = f"block {path!r}" if path else "the block"
    raise ValueError(
        f"{title} is not the identity with the last neurons of its body silent, or driven to fire "
        f'at every step for "and": its output on random spikes {list(shape)} is not its '
        "shortcut's. Let the body return what its last neurons give, and nothing else; for "
        f'"and" {name!r} must not be refractory or slow.'
    )


def _is_identity(block: SEWBlock, shape: tuple[int, ...]) -> bool:
    shortcuts: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    spikes = torch.rand(_STEPS, _SAMPLES, *shape, generator=generator) < 0.5
    with (
        restored(block, training=False),
        forward_hooks(after=[(block.shortcut, lambda m, a, k, y: shortcuts.append(y))]),
        torch.no_grad(),
    ):
        zero_states(block)
        outputs = [block(x) for x in spikes.to(next(block.parameters()))]
    return all(map(torch.equal, outputs, shortcuts))
