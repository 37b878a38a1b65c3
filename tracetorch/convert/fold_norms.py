"""Fold batch norms into the products before them: ``fold_norms``."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, cast

from torch import nn

from tracetorch.core.checks import check_has_values, check_module, check_unsharded
from tracetorch.core.torch_private import BatchNormBase, pytree
from tracetorch.core.walk import named_modules
from tracetorch.snn.batch_norm import WeightedLayer, fold_into
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.delay import DelayedLinear
from tracetorch.snn.model_graph import Node, check_plain_weights, read_model
from tracetorch.unrolling.inputs import parse_inputs

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_norms(model: nn.Module, x: Any, *, steps: int | None = None) -> nn.Module:
    """Fold batch norms into the layers before them: a copy that computes the same without a norm.

    ::

        weight <- weight * scale;  bias <- bias * scale + shift,
        scale = norm.weight / sqrt(running_var + eps);  shift = norm.bias - running_mean * scale

    A norm is folded, as it is in evaluation, where its input is what one linear layer or
    convolution returns, also one with delays or of ``tt.snn.connect``, and nothing else reads that;
    it becomes an ``nn.Identity``. Any other norm is left: one behind a pooling or a sum, one per
    step (:class:`~tracetorch.snn.BatchNormThroughTime`), one without running statistics, one that
    would turn around a sign that a weight was given, and one where ``forward`` itself computes with
    its parameters, or with those of the layer before it. Outputs are equal to rounding, so that a
    spike may differ where a membrane is that near its threshold.

    ``tt.quantize`` and ``tt.nir`` fold by themselves; what ``tt.export`` writes computes a norm by
    itself, or nothing if it was folded before.

    Args:
        model: any module that :func:`tracetorch.unroll` runs. It does not change.
        x: a batch, as ``unroll`` takes it, ``[T, B, ...]``; its first step is run.
        steps: as in ``unroll``.

    Returns:
        The copy, in evaluation mode.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the model has no batch norm, or its ``forward`` is no fixed graph of calls, or
            a hook computes a weight; the message names where.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), LIF(3))
        >>> fold_norms(net, torch.rand(10, 8, 4))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): Identity()
          (2): LIF(3)
        )
    """
    check_module(model)
    check_unsharded(model, "tt.convert.fold_norms")
    check_has_values(model)
    check_plain_weights(model)
    step = next(parse_inputs(x, steps).first(1).each_step())
    folded = copy.deepcopy(model)
    modules = dict(named_modules(folded))
    for module in modules.values():  # those in a list too
        module.eval()
    if not any(isinstance(module, BatchNormBase) for module in modules.values()):
        raise ValueError(f"{type(model).__name__} has no batch norm: there is nothing to fold.")
    args = step if isinstance(step, tuple) else () if isinstance(step, dict) else (step,)
    graph = read_model(folded, *args, **(step if isinstance(step, dict) else {}))
    calls = Counter(id(node.module) for node in graph.nodes if node.module is not None)
    returned = pytree.tree_leaves(graph.output)
    shared = Counter(id(p) for m in modules.values() for p in m.parameters(recurse=False))
    for node in graph.nodes:
        norm = node.module
        if norm is None or type(norm) not in _NORMS or calls[id(norm)] > 1:
            continue
        (before,) = node.inputs
        product = _product(before)
        alone = graph.users[before] == [node] and before not in returned
        if product is None or not alone or calls[id(before.module)] > 1:
            continue
        # forward itself reads what would change
        if graph.read.intersection(map(id, [*product.parameters(), *norm.parameters()])):
            continue
        if any(shared[id(p)] > 1 for p in product.parameters()) or fold_into(product, norm):
            continue
        # in every place that holds it: a list, an attribute, another name
        norm.__class__, norm.__dict__ = nn.Identity, vars(nn.Identity())
    return folded


def _product(node: Node) -> WeightedLayer | None:
    """Return the product that a node is, whose outputs are those that a norm behind it scales."""
    module = node.module
    if isinstance(module, DelayedLinear):
        module = module.linear
    if module is None or plain_class(module) not in _PRODUCTS:
        return None
    outputs_dim = -1 if isinstance(module, nn.Linear) else 1 - len(node.shape or ())
    is_second = outputs_dim % len(node.shape or (1,)) == 1
    return cast(WeightedLayer, module) if is_second else None
