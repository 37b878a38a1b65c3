"""``from_ann``: convert a network of ReLUs, and report what is proven and what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from tracetorch.convert.build import build
from tracetorch.convert.network import Network, Node, ann, read_network
from tracetorch.convert.thresholds import OUTPUT, Rules, bounds_of, rules_of
from tracetorch.core.checks import (
    check_choice,
    check_count,
    check_has_values,
    check_module,
    check_number,
    is_finite,
)
from tracetorch.core.hooks import forward_hooks
from tracetorch.quantize.convert import table
from tracetorch.snn.module import zero_states
from tracetorch.unrolling import unroll

Thresholds: TypeAlias = Literal["channel", "layer"]


@dataclass(frozen=True)
class LayerReport:
    """Report of one activation: threshold, what is proven of its rates, what was measured.

    Args:
        path: of the activation in the model that was converted; of the last, ``"output"``.
        neurons: path of the neurons in the spiking model; empty for the output.
        threshold: of the neurons, and the size of their spikes, the largest of all channels; NaN
            for the output.
        clip: the largest rate of all channels; NaN for the output.
        levels: of a quantised ReLU; ``None`` for another.
        bound: the rates are proven to be within it of the model's activations, but for rounding in
            floats: for every input where the model's own activations are clipped, else for inputs
            whose activations are no larger than those on the batch, in each channel if it has a
            threshold of its own.
        largest: largest difference on the batch.
        mean: mean difference on the batch, of the magnitudes.
        thresholds: of each channel, or the one of all; none for the output.

    Example:
        >>> from tracetorch import convert
        >>> model = nn.Sequential(nn.Linear(4, 8), convert.QuantizedReLU(4, 1.0), nn.Linear(8, 2))
        >>> _, report = convert.from_ann(model, torch.rand(9, 4), steps=4)
        >>> layer = report.layers[0]
        >>> layer.path, layer.threshold, layer.levels, layer.bound
        ('1', 1.0, 4, 0.25)
    """

    path: str
    neurons: str
    threshold: float
    clip: float
    levels: int | None
    bound: float
    largest: float
    mean: float
    thresholds: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Report:
    """Report of :func:`from_ann`, layer by layer; it prints as a table.

    Args:
        layers: the activations, in order, and last the output of the model.
        steps: sums over time are divided by them.

    Example:
        >>> from tracetorch import convert
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _, report = convert.from_ann(model, torch.rand(9, 4), steps=8)
        >>> report.steps, report.layers[-1].path
        (8, 'output')
    """

    layers: tuple[LayerReport, ...]
    steps: int

    def __str__(self) -> str:
        names = "layer", "neurons", "threshold", "clip", "levels", "bound", "largest", "mean"
        rows: list[tuple[str, ...]] = [names]
        for each in self.layers:
            # least and most of the channels; the output has none
            ends = [min(each.thresholds), each.threshold] if each.thresholds else []
            clips = [end / each.threshold * each.clip for end in ends]
            measured = (f"{value:.3g}" for value in (each.bound, each.largest, each.mean))
            levels = str(each.levels or "")
            rows.append((each.path, each.neurons, _range(ends), _range(clips), levels, *measured))
        return "\n".join([*table(rows), f"{self.steps} steps"])


def _range(ends: Sequence[float]) -> str:
    """Return two numbers as a table shows them, or the one that both are."""
    return " to ".join(dict.fromkeys(f"{end:.4g}" for end in ends))


@dataclass(frozen=True)
class Converted:
    """Spiking model of a network, and the report on it: what :func:`from_ann` returns.

    Calling it runs the model from rest, over all its steps, and returns what the network did.
    ``model, report = from_ann(...)`` takes it apart.

    Args:
        model: one time step, ``[B, ...]``; an ``nn.Sequential`` where the network is a chain.
        report: what is proven, and what was measured.

    Example:
        >>> from tracetorch import convert
        >>> net = nn.Sequential(nn.Linear(4, 8), convert.QuantizedReLU(8, 1.0), nn.Linear(8, 2))
        >>> x = torch.rand(9, 4)
        >>> converted = convert.from_ann(net, x, steps=8)
        >>> torch.allclose(converted(x), net(x), atol=1e-5)
        True
    """

    model: nn.Module
    report: Report

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.report))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the mean of the outputs over all steps.

        Args:
            x: inputs ``[B, ...]``, the same at every step.
        """
        steps = self.report.steps
        return cast(Tensor, unroll(self.model, x, steps=steps, from_rest=True).mean(0))


@torch.no_grad()
def from_ann(
    model: nn.Module,
    batch: Tensor,
    steps: int,
    *,
    burst: int = 1,
    thresholds: Thresholds = "channel",
    percentile: float = 99.9,
) -> Converted:
    """Convert a trained network of ReLUs to integrate-and-fire neurons, with a proven bound.

    ::

        threshold = clip / burst
        |rate - activation| <= D / steps + E     D = threshold / 2 + |W| D_before

    Every ReLU becomes :class:`IntegrateAndFire` neurons, which start at half a threshold and whose
    spikes have its size: each channel may have a threshold of its own, and weights and sums stay as
    they are. A mean over time of the outputs is what the network returned. The report has, for each
    layer, the bound that is proven (``E`` is what clipping and rounding alone change, propagated
    alike), and the largest and the mean difference on the batch.

    A :class:`QuantizedReLU` of as many levels as there are steps has activations that are steps of
    one spike: rates are near to them soon.

    Args:
        model: modules whose ``forward`` calls them, adds, subtracts, joins by ``cat``, and
            multiplies by numbers: ``nn.Linear``, convolutions, batch norms (folded, as they are in
            evaluation), ReLU, ReLU6, ``Hardtanh(0, c)``, ``clamp``, :class:`QuantizedReLU`, average
            pools, maximum pools (of sums over time), ``Flatten``; dropout is left out. All else is
            refused by name. Nothing of it changes.
        batch: inputs ``[B, ...]`` as they will come: thresholds are found, and rates compared, on
            it. In float32 or float64, as the model.
        steps: time steps; at least 1.
        burst: the most spikes of a neuron in a step; at least 1. The threshold is as many times
            smaller.
        thresholds: of ReLUs without a clip of their own: one for each ``"channel"`` (dimension 1),
            which is better at few steps, or one for each ``"layer"``. All others have one for the
            layer.
        percentile: of the activations on the batch, of a channel or of a layer, which becomes the
            clip of a ReLU that has none; in (0, 100]. A channel that is silent on the batch, or has
            fewer than 32 values on it (samples times places), has the clip of the layer: behind an
            ``nn.Linear`` give at least 32 samples.

    Returns:
        The spiking model and the report, as a :class:`Converted`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: an argument is out of range, or something in the model cannot be converted. The
            message names it, and what is allowed.

    Example:
        >>> import tracetorch as tt
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.rand(50, 4)
        >>> spiking, report = tt.convert.from_ann(net, x, steps=32)
        >>> y = tt.unroll(spiking, x, steps=32, from_rest=True).mean(0)
        >>> bool(((y - net(x)).abs() <= report.layers[-1].bound + 1e-6).all())
        True

    Reference: Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-
    driven networks for image classification", Frontiers in Neuroscience 11 (2017), for norms and
    percentiles; Deng, Gu, "Optimal conversion of conventional artificial neural networks to spiking
    neural networks", ICLR 2021, for the half threshold; Bu et al., "Optimal ANN-SNN conversion for
    high-accuracy and ultra-low-latency spiking neural networks", ICLR 2022, for levels.
    """
    check_module(model)
    check_count("steps", steps)
    check_count("burst", burst)
    if not 0 < check_number("percentile", percentile) <= 100:
        raise ValueError(f"percentile must lie in (0, 100], got {percentile}.")
    check_choice("thresholds", thresholds, get_args(Thresholds))
    dtypes = (torch.float32, torch.float64)
    if not isinstance(batch, Tensor) or batch.dtype not in dtypes or batch.ndim < 2:
        got = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
        raise TypeError(f"batch must be a tensor of float32 or float64, [B, ...], got {got}.")
    check_has_values(model)
    for name, tensor in (("batch", batch), *model.named_parameters(), *model.named_buffers()):
        if not tensor.numel() or not is_finite(tensor):
            raise ValueError(f"{name} has no values, or some that are not finite.")
    network = read_network(model, batch)
    if not any(node.activation for node in network.nodes):
        raise ValueError(
            "the model has no ReLU to convert. What has rates are ReLUs: nn.ReLU, or "
            "convert.QuantizedReLU."
        )
    rules = rules_of(network, batch.double(), burst, percentile, thresholds == "channel")
    built, neurons = build(network, rules, burst)
    built.to(batch).train(model.training)
    return Converted(built, _report(network, batch, rules, steps, built, neurons))


def _report(
    network: Network,
    batch: Tensor,
    rules: Rules,
    steps: int,
    model: nn.Module,
    neurons: dict[Node, str],
) -> Report:
    """Compare the spiking model with the network on the batch, and with what is proven."""
    double = batch.double()
    bounds, rates = bounds_of(network, double, rules, steps), _rates(model, neurons, batch, steps)
    layers: list[LayerReport] = []

    def compare(node: Node, value: Tensor) -> None:
        off, rule = (rates.pop(node) - value).abs(), rules.get(node)
        charge, distance = bounds[node]
        total = charge / steps + distance
        if rule is not None:
            total = total.clamp(max=rule.reach)
        layers.append(
            LayerReport(
                path=node.name,
                neurons=neurons.get(node, ""),
                threshold=math.nan if rule is None else float(rule.threshold.max()),
                clip=math.nan if rule is None else float(rule.clip.max()),
                levels=None if rule is None else rule.levels,
                bound=float(total.max()),
                largest=float(off.max()),
                mean=float(off.mean()),
                thresholds=() if rule is None else tuple(rule.threshold.flatten().tolist()),
            )
        )

    def compute(node: Node, inputs: list[Tensor]) -> Tensor:
        value = ann(node, inputs)
        if node.activation is not None:
            compare(node, value)
        return value

    compare(OUTPUT, network.run(double, compute))
    return Report(tuple(layers), steps)


def _rates(
    model: nn.Module, neurons: dict[Node, str], batch: Tensor, steps: int
) -> dict[Node, Tensor]:
    """Return the rates of all neurons on a batch, and the output; step by step, to keep few."""
    sums: dict[Node, Tensor] = {}

    def add(node: Node, module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        sums[node] = sums.get(node, 0.0) + output.double()

    hooks = [(model.get_submodule(path), partial(add, node)) for node, path in neurons.items()]
    zero_states(model)
    with forward_hooks(after=hooks):
        for _ in range(steps):
            add(OUTPUT, model, (), {}, model(batch))
    zero_states(model)
    return {node: total / steps for node, total in sums.items()}
