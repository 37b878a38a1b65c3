"""Draw weights, and scale them on random spikes as on a batch: ``fluctuation_``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_has_values, check_module, check_number, check_unsharded
from tracetorch.core.snapshot import restored_on_error
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.init.calibrate import calibrate_
from tracetorch.init.random_spikes import find_shape, random_spikes, zeros_like_input
from tracetorch.init.stages import Stage, check_moments, follow_calls, weight_of
from tracetorch.snn.connectivity import connectivity
from tracetorch.snn.sparse_linear import SparseLinear
from tracetorch.unrolling.inputs import parse_inputs


def fluctuation_(
    model: nn.Module,
    *,
    rate: float = 0.05,
    target: float = 0.5,
    mean: float = 0.0,
    generator: torch.Generator | None = None,
    shape: Sequence[int] | None = None,
) -> None:
    """Draw all weights before neurons so that their membranes fluctuate below the threshold.

    The weights of a neuron are normal and add up to 0, and its bias is 0; the model is run on
    random spikes of this rate, in its current mode, and :func:`calibrate_` scales the weights and
    moves the biases there, layer by layer: until the membranes have the target's deviation and
    mean. So it holds behind delays, pooling, a factor or a shortcut too, and for the rates that
    hidden layers have; for a linear layer in front of the neurons it is::

        deviation^2 = sum_j w_j^2 * rate (1 - rate) * sum_s kernel(s)^2 = (target * distance)^2

    with the kernel the membrane's impulse response. In an :class:`~tracetorch.snn.Recurrent` a
    tenth of the variance comes from the connection. A batch norm before a neuron gets its weight
    and bias instead. Of a layer of :func:`tt.snn.connect` the connections that are there are drawn,
    of their signs: excitation and inhibition of a neuron balance, and where all its inputs have one
    sign, its bias makes up for their mean. Frozen layers are drawn too. No data are needed.

    What mixes samples, attention over the batch dimension say, makes other moments of another
    number of them: the target holds for the batch of that run alone, 2 to 64 samples by the model's
    size.

    Args:
        model: any module; each neuron layer is driven by the linear layer, convolution, attention
            or batch norm that is called last before it. Others are left as they are.
        rate: share of the model's inputs that spike in a step, in (0, 1).
        target: deviation of the membranes, in distances from rest to threshold; above 0. At 0.5
            the threshold is two deviations away.
        mean: mean of the membranes in the same unit; other than 0 only behind a bias.
        generator: source of the random weights; PyTorch's own where it is ``None``.
        shape: of one sample at one step, ``(2, 34, 34)`` say, without the batch; ``None``: guessed
            from the layers, by which one the model runs.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, the model runs on no shape that was tried, a neuron
            has no bias for a mean or inputs of one sign, or as :func:`calibrate_`. Nothing has been
            changed then.

    Example:
        >>> from tracetorch.init import impulse_response
        >>> net = nn.Sequential(nn.Linear(100, 50), LIF(50), nn.Linear(50, 10), Readout(10))
        >>> fluctuation_(net, rate=0.02)
        >>> deviations = net[0].weight.norm(dim=1) * impulse_response(net[1]).deviation(0.02)
        >>> round(deviations.mean().item(), 1)
        0.5

    Source: Rossbroich, Gygax and Zenke, Neuromorphic Computing and Engineering 2, 044016 (2022),
    in discrete time.
    """
    check_module(model)
    check_unsharded(model, "tt.init")
    check_has_values(model)
    rate = check_number("rate", rate)
    if not 0 < rate < 1:
        raise ValueError(f"rate must be in (0, 1), the share of inputs that spike, got {rate}.")
    target, mean = check_moments(target, mean)
    found = find_shape(model, shape)
    calls = follow_calls(model, parse_inputs(zeros_like_input(model, found), None, 0, True))
    with restored_on_error(model.parameters()):
        for stage in calls.stages:
            _draw(stage, generator, mean)
        calibrate_(model, random_spikes(model, found, rate), target=target, mean=mean)


@torch.no_grad()
def _draw(stage: Stage, generator: torch.Generator | None, mean: float) -> None:
    """Draw what drives one layer of neurons, of any size."""
    biased = isinstance(stage.source.bias, Tensor)
    alone = False  # whether all inputs of some neuron have one sign
    for module in [m for m in (stage.source, stage.connection) if m is not None]:
        weight = weight_of(module)
        if isinstance(module, BatchNormBase):
            weight.fill_(1.0)
        elif isinstance(module, SparseLinear):
            raise ValueError(
                f"{stage.path!r} is driven by a SparseLinear, whose weights are a list of edges: "
                "fluctuation_ draws matrices. Use calibrate_ with a batch, which scales what is "
                "there."
            )
        else:
            rows, rule = _balanced_rows(module, generator), connectivity(module)
            if rule is not None and rule.signs is not None:
                alone |= bool((rows.sum(1).abs() > 0.5 * rows.abs().sum(1)).any())
            weight.copy_(rows.view_as(weight))
        if isinstance(module.bias, Tensor):
            module.bias.zero_()
    if (mean or alone) and not biased:
        raise ValueError(
            f"{stage.path!r} has no bias before it, for "
            + (f"a mean of {mean}." if mean else "neurons whose inputs all have one sign.")
            + f" Give {stage.source_path!r} a bias."
        )


def _balanced_rows(module: nn.Module, generator: torch.Generator | None) -> Tensor:
    """Draw rows of weights, one for each output, whose squares add up to 1 and which to 0."""
    weight = weight_of(module)
    rows: Tensor = torch.empty_like(weight).normal_(generator=generator).double().flatten(1)
    rule = connectivity(module)
    if rule is not None and rule.mask is not None:
        rows = rows * rule.mask.flatten(1)
    if rule is not None and rule.signs is not None:
        rows = rows.abs() * rule.signs.expand_as(weight).flatten(1)
        up, down = rows.clamp(min=0), rows.clamp(max=0)
        share = (up.sum(1, keepdim=True) / -down.sum(1, keepdim=True)).nan_to_num(1.0, 1.0)
        rows = up + down * torch.where(share > 0, share, 1.0)
    else:
        count = (rows != 0).sum(1, keepdim=True)
        centre = rows.sum(1, keepdim=True) / count.clamp(min=1)
        rows = torch.where((rows != 0) & (count > 1), rows - centre, rows)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
