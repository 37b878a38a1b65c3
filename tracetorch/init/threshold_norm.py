"""Scale batch norms by the thresholds of the neurons behind them, as tdBN does: ``tdbn_``."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_has_values, check_module, check_positive, check_unsharded
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import named_modules
from tracetorch.init.response import distance_to_threshold
from tracetorch.init.stages import (
    check_own_weight,
    driven_modules,
    has_weights,
    overlap,
    read_step,
    unwrapped,
)
from tracetorch.snn.batch_norm import BatchNormThroughTime
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.spike_functions import spike_functions
from tracetorch.unrolling.inputs import parse_inputs


def tdbn_(
    model: nn.Module, x: Any, *, alpha: float = 1.0, steps: int | None = None
) -> dict[str, str]:
    """Scale batch norms by the thresholds behind them: threshold-dependent batch norm (tdBN).

    ::

        output = weight * (x - mean) / sqrt(var + eps) + bias
        weight = alpha * threshold / sqrt(branches)

    Under :func:`tracetorch.unroll` by layer an ordinary batch norm takes its statistics over time
    and batch together, which is the rest of tdBN. The threshold is the distance that the membrane
    has from rest to it, one per neuron, for any neuron; branches are the norms whose outputs add up
    before the neurons, two in a residual block. The paper keeps ``alpha * threshold`` apart from a
    weight that starts at 1; here their product is learned.

    Which neurons a norm drives is followed in the autograd graph of one step, so additions and
    pooling may stand between, and branches are kept apart.

    Args:
        model: any module; give a part of it where some norms shall stay as they are.
        x: a batch, as ``unroll`` takes it, ``[T, B, ...]``; one step of it is run.
        alpha: factor of the threshold; above 0. It is 1 in the paper, which writes the root as
            another ``alpha``.
        steps: as in ``unroll``.

    Returns:
        The path of the neuron layer behind each norm, by path of the norm.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``alpha`` is out of range, or the model has no batch norm; a norm has no weight,
            is not called, or drives something else than neurons that spike, or neurons of
            thresholds that differ from each other, or shares a weight with one for which it would
            be another. Nothing has been changed then.

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
    driven = driven_modules(
        read_step(model, parse_inputs(x, steps, 0, True), norms), norms, has_weights
    )
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
    distances: list[Tensor] = []
    for path in paths:
        module = modules[path]
        if not isinstance(module, Neuron) or not spike_functions(module):
            distances.clear()
            break
        distance = distance_to_threshold(module, path)
        distances.append(distance[:1] if bool((distance == distance[0]).all()) else distance)
    if not distances:
        found = ", ".join(f"{path!r} ({type(modules[path]).__name__})" for path in paths)
        raise ValueError(
            f"{title} drives {found or 'nothing'} on this input, and not neurons that spike. Give "
            "the part of the model whose norms stand before such neurons."
        )
    first = distances[0]
    if any(d.shape != first.shape or not torch.allclose(d, first) for d in distances):
        raise ValueError(f"{title} drives {', '.join(map(repr, paths))}, whose thresholds differ.")
    return first
