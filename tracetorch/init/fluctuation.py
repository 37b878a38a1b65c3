"""Draw weights so that membranes fluctuate below their thresholds: ``fluctuation_``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_has_values, check_module, check_number, check_unsharded
from tracetorch.core.snapshot import restored_on_error
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.init.membranes import Trial
from tracetorch.init.random_spikes import find_shape, random_spikes, zeros_like_input
from tracetorch.init.response import ImpulseResponse, response_of, simulated_rate
from tracetorch.init.scaling import LEAST_RATE, scale_all
from tracetorch.init.stages import RECURRENT, Stage, check_moments, follow_calls, weight_of
from tracetorch.init.sums import Sums, with_sums, with_sums_and_signs
from tracetorch.snn.connectivity import connectivity
from tracetorch.snn.delay import SynapticDelays
from tracetorch.snn.delay.base import DelayingLayer, taps
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

    ::

        deviation^2 = sum_j w_j^2 * rate (1 - rate) * sum_s kernel(s)^2 = (target * distance)^2
        mean        = sum_j w_j   * rate            * sum_s kernel(s)   = mean * distance

    with the kernel the membrane's impulse response, taken from the neuron's ``step``; a delay that
    spreads a spike over several steps is part of the kernel of its synapse. The weights
    of a neuron are normal, moved and scaled so that both sums hold exactly; its bias becomes 0. In
    an :class:`~tracetorch.snn.Recurrent` a tenth of the variance comes from the connection. A batch
    norm before a neuron gets its weight and bias instead: its output has a deviation of 1 whatever
    comes before. Of a layer of :func:`tt.snn.connect` the connections that are there are drawn, of
    their signs; where all inputs of a neuron have one sign, its bias makes up for their mean.
    Frozen layers are drawn too. No data are needed; :func:`calibrate_` takes a batch.

    The sums know the weights, the neurons and their delays alone. So the model is then run on
    random spikes of this rate, in its current mode: where the membranes of a layer miss the target,
    for pooling, a factor, a shortcut or rates that are another, its weights are scaled and its bias
    is moved as :func:`calibrate_` does it, to a tenth of the target, or the layer is refused. What
    mixes samples, attention over the batch dimension say, makes other moments of another number of
    them: the target holds for the batch of that run alone, 2 to 64 samples by the model's size.

    Args:
        model: any module; each neuron layer is driven by the linear layer, convolution, attention
            or batch norm that is called last before it. Others are left as they are.
        rate: share of the model's inputs that spike in a step, in (0, 1). The rate of a neuron
            layer, which the next one receives, is simulated from its ``step``.
        target: deviation of the membranes, in distances from rest to threshold; above 0. At 0.5
            the threshold is two deviations away.
        mean: mean of the membranes in the same unit.
        generator: source of the random weights; PyTorch's own where it is ``None``.
        shape: of one sample at one step, ``(2, 34, 34)`` say, without the batch; ``None``: guessed
            from the layers, by which one the model runs.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, the mean is out of reach, the model has nothing to
            initialise, shares weights between neuron layers or computes them from other values; it
            runs on no shape that was tried; a layer misses its target, behind a norm say, or gets
            spikes too rarely for its deviation to be known; or as :func:`impulse_response`. Nothing
            has been changed then.

    Example:
        >>> from tracetorch.init import impulse_response
        >>> net = nn.Sequential(nn.Linear(100, 50), LIF(50), nn.Linear(50, 10), Readout(10))
        >>> fluctuation_(net, rate=0.02)
        >>> deviation = net[0].weight[0].norm() * impulse_response(net[1]).deviation(0.02)[0]
        >>> round(deviation.item(), 3)
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
    responses = {stage.path: response_of(stage.neuron, stage.path) for stage in calls.stages}
    x, start = random_spikes(model, found, rate, responses.values())
    with restored_on_error(model.parameters()):
        for stage in calls.stages:
            aim = _Aim(stage.path, responses[stage.path], rate, target, mean)
            rate = _draw(stage, generator, aim)
        scale_all(Trial(model, x, None, calls, responses, target, mean, start=start, drawn=True))


class _Aim(NamedTuple):
    """Moments that a layer or a connection shall give the membranes behind it."""

    path: str  # of the neuron layer, for messages
    response: ImpulseResponse  # of its membranes to what is drawn
    rate: float  # of the spikes that arrive
    target: float  # deviation of the membranes
    mean: float  # their mean


def _draw(stage: Stage, generator: torch.Generator | None, resting: _Aim) -> float:
    """Draw what drives one layer of neurons; return the rate that the next one receives."""
    _, response, rate, target, mean = resting
    fired = simulated_rate(stage.neuron, response, target, mean)
    following = rate if fired is None else max(fired, LEAST_RATE)
    share = RECURRENT if stage.connection is not None else 0.0
    # variances of independent inputs add up
    own = resting._replace(response=_delayed(response, stage), target=target * (1 - share) ** 0.5)
    offsets: list[tuple[Tensor | None, Tensor]] = []
    if isinstance(stage.source, BatchNormBase):
        drawn = _norm(stage.source, own)
    else:
        drawn, offset = _product(stage.source, stage.delays, generator, own)
        offsets.append((_bias_of(stage.source), offset))
    if stage.connection is not None:
        back = resting._replace(rate=following, target=target * share**0.5, mean=0.0)
        more, offset = _product(stage.connection, stage.connection_delays, generator, back)
        drawn += more
        bias = _bias_of(stage.connection)
        offsets.append((_bias_of(stage.source) if bias is None else bias, offset))
    for bias, offset in offsets:
        if bool(offset.any()):
            if bias is None:
                raise ValueError(
                    f"{stage.path!r} has neurons whose inputs all have one sign, and no bias to "
                    "make up for their mean. Give the layer before it a bias, or inputs of both "
                    "signs."
                )
            drawn = [(p, v + offset.to(v) if p is bias else v) for p, v in drawn]
    with torch.no_grad():
        for parameter, value in drawn:
            parameter.copy_(value.view_as(parameter))
    return following


def _bias_of(module: nn.Module) -> Tensor | None:
    return module.bias if isinstance(module.bias, Tensor) else None


def _delayed(response: ImpulseResponse, stage: Stage) -> ImpulseResponse:
    """Return the response to what the source gives, through the delays behind it."""
    known = [m for m in stage.behind.values() if m.num_neurons == stage.neuron.num_neurons]
    for path, module in stage.delaying.items():
        if module not in known and bool((_taps(module).amax(0) < 1 - 1e-6).any()):
            raise ValueError(
                f"{path!r} spreads each spike over several steps on its way to {stage.path!r}, "
                "where fluctuation_ does not follow it: delays that belong to the weights before "
                "the neurons, or stand between the two. Use calibrate_ with a batch, or round_() "
                "the delays first."
            )
    kernel = response.kernel
    for module in known:
        weights = _taps(module)
        longer = kernel.new_zeros(len(kernel) + len(weights) - 1, kernel.shape[1])
        for start, weight in enumerate(weights):
            longer[start : start + len(kernel)] += weight * kernel
        kernel = longer
    return response._replace(kernel=kernel)


def _taps(layer: DelayingLayer) -> Tensor:
    """Return the part of a spike that arrives in each step, ``[steps, *raw_delay.shape]``."""
    return taps(layer.delay.detach().double(), layer.max_delay, layer.sigma)


def _squares(response: ImpulseResponse, delays: SynapticDelays) -> Tensor:
    """Return the sum of the squared response of every synapse, relative to one without a delay."""
    # [neurons, inputs]: of a sum of shifted kernels the square is a double sum of the kernel's
    # autocorrelation at the differences of the shifts
    kernel, weights = response.kernel, _taps(delays).flatten(2)
    lags = torch.arange(len(weights), device=kernel.device)
    products = [
        (kernel[lag:] * kernel[: max(0, len(kernel) - lag)]).sum(0) for lag in lags.tolist()
    ]
    correlation = torch.stack(products) / products[0]
    between = correlation[(lags[:, None] - lags).abs()]
    return (torch.einsum("klo,loi->koi", between, weights) * weights).sum(0)


def _product(
    module: nn.Module, delays: SynapticDelays | None, generator: torch.Generator | None, aim: _Aim
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Draw the weights of a linear layer or a convolution.

    Returns:
        Values for its parameters, and what a bias must add, per output: other than 0 where all
        inputs of an output have one sign, which moves the mean.

    Only connections that are there, of a layer of ``tt.snn.connect``, are drawn and counted.
    """
    weight = weight_of(module)
    if isinstance(module, SparseLinear):
        raise ValueError(
            f"{aim.path!r} is driven by a SparseLinear, whose weights are a list of edges: "
            "fluctuation_ draws matrices. Use calibrate_ with a batch, which scales what is there."
        )
    rows = weight.detach().flatten(1)
    noise = torch.empty_like(rows).normal_(generator=generator).double()
    squares = torch.ones_like(noise) if delays is None else _squares(aim.response, delays)
    rule = connectivity(module)
    present = torch.ones_like(noise, dtype=torch.bool)
    if rule is not None and rule.mask is not None:
        present = rule.mask.flatten(1)
    # Rossbroich et al. (2022): of independent spikes the variances add up, by the squared kernel
    response = aim.response.mean(aim.rate)
    if aim.mean != 0 and bool((response.abs() < 1e-9).any()):
        raise ValueError(f"the membranes of {aim.path!r} have no mean: they pass changes alone.")
    total = aim.mean / response if aim.mean else torch.zeros_like(response)
    wanted = Sums(
        total.expand(len(rows)),
        (aim.target / aim.response.deviation(aim.rate)).square().expand(len(rows)),
    )
    offset = torch.zeros_like(wanted.weights)
    if rule is None or rule.signs is None:
        values = with_sums(noise, squares, present, wanted)
    else:
        signed = noise.abs() * rule.signs.expand_as(weight).flatten(1) * present
        values = with_sums_and_signs(signed, squares, wanted)
        if values is not None:
            alone = ((signed > 0).any(1) != (signed < 0).any(1)) & signed.any(1)
            offset = torch.where(alone, (wanted.weights - values.sum(1)) * aim.rate, 0.0)
    if values is None:
        raise ValueError(
            f"{aim.path!r} has {int(present.sum(1).min())} inputs: with a mean of {aim.mean} their "
            f"spikes alone make a larger deviation than {aim.target:.3g}. Choose a smaller mean, "
            "or a larger target."
        )
    drawn = [(weight, values)]
    if isinstance(module.bias, Tensor):
        drawn.append((module.bias, torch.zeros_like(module.bias)))
    return drawn, offset


def _norm(module: BatchNormBase, aim: _Aim) -> list[tuple[Tensor, Tensor]]:
    """Set weight and bias of a batch norm; its normalised output is taken for white noise."""
    scale, shift = aim.response.white_drive(aim.target, aim.mean)
    drawn: list[tuple[Tensor, Tensor]] = [(module.weight, scale.expand_as(module.weight))]
    if isinstance(module.bias, Tensor):
        drawn.append((module.bias, shift.expand_as(module.bias)))
    elif aim.mean != 0:
        raise ValueError(
            f"the membranes of {aim.path!r} have no mean: the norm before them has no bias. Give "
            "it one, or leave mean at 0."
        )
    return drawn
