"""``from_ann``: convert a network of ReLUs, and report what is proven and what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from tracetorch.convert.build import build
from tracetorch.convert.network import Activations, Network, Node, ann, read_network
from tracetorch.convert.report import LayerReport, Report
from tracetorch.convert.thresholds import OUTPUT, Rules, Times, bounds_of, ready_of, rules_of
from tracetorch.core.checks import (
    check_choice,
    check_count,
    check_flag,
    check_has_values,
    check_integer,
    check_module,
    check_number,
    is_finite,
)
from tracetorch.core.hooks import forward_hooks
from tracetorch.snn.module import zero_states
from tracetorch.unrolling import unroll

Thresholds: TypeAlias = Literal["channel", "layer"]


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
        """Return the sum of the outputs over all steps, divided by those with an input.

        Args:
            x: inputs ``[B, ...]``, the same at every step.
        """
        steps, quiet = self.report.steps, self.report.quiet
        if not quiet:
            return cast(Tensor, unroll(self.model, x, steps=steps, from_rest=True).mean(0))
        shown = x.expand(steps, *x.shape)
        sequence = torch.cat([shown, x.new_zeros(quiet, *x.shape)])
        return cast(Tensor, unroll(self.model, sequence, from_rest=True).sum(0) / steps)


@torch.no_grad()
def from_ann(
    model: nn.Module,
    batch: Tensor,
    steps: int,
    *,
    quiet: int = 0,
    burst: int = 1,
    signed: bool = False,
    thresholds: Thresholds = "channel",
    percentile: float = 99.9,
    activations: Activations | None = None,
) -> Converted:
    """Convert a trained network of ReLUs to integrate-and-fire neurons, with a certificate.

    ::

        threshold = clip / burst                 or clip * steps / levels, of a quantised ReLU
        |rate - activation| <= D / steps + E     D = threshold / 2 + |W| D_before
        rate = activation                        of a quantised ReLU whose steps suffice

    Every ReLU becomes :class:`IntegrateAndFire` neurons, which start at half a threshold and whose
    spikes have its size: each channel may have a threshold of its own, and weights and sums stay as
    they are. A mean over time of the outputs is what the network returned. The report has, for each
    layer, the bound that is proven (``E`` is what clipping and rounding alone change, propagated
    alike), and the largest and the mean difference on the batch.

    Rates are **equal** to the activations where each is a quantised ReLU, ``steps * burst`` are at
    least its levels, and, behind the first layer of neurons, spikes are ``signed`` and ``quiet`` is
    at least the sum of ``ceil(levels / burst) - 1`` over the layers behind the first on the longest
    path. That holds for any weights and any times of spikes, but for rounding in floats: a value
    that lies within rounding of the border of two levels may get the other one.

    Args:
        model: modules whose ``forward`` calls them, adds, subtracts, joins by ``cat``, and
            multiplies by numbers: ``nn.Linear``, convolutions, batch norms (folded, as they are in
            evaluation), ReLU, ReLU6, ``Hardtanh(0, c)``, ``clamp``, :class:`QuantizedReLU`, average
            pools, maximum pools (of sums over time), ``Flatten``; dropout is left out. All else is
            refused by name. Nothing of it changes.
        batch: inputs ``[B, ...]`` as they will come: thresholds are found, and rates compared, on
            it. In float32 or float64, as the model.
        steps: time steps in which the input is there; at least 1.
        quiet: steps behind them without an input or a bias, in which spikes still travel; at least
            0. They need ``signed``.
        burst: the most spikes of a neuron in a step; at least 1. A ReLU that is not quantised gets
            a threshold as many times smaller.
        signed: spikes have a sign, and neurons take back what they sent too early.
        thresholds: of ReLUs without a clip of their own: one for each ``"channel"`` (dimension 1),
            which is better at few steps, or one for each ``"layer"``. All others have one for the
            layer.
        percentile: of the activations on the batch, of a channel or of a layer, which becomes the
            clip of a ReLU that has none; in (0, 100]. A channel that is silent on the batch, or has
            fewer than 32 values on it (samples times places), has the clip of the layer: behind an
            ``nn.Linear`` give at least 32 samples.
        activations: ReLUs of other libraries: for each class a function of the module that returns
            its clip (``None`` for none) and levels (``None`` for none). Each module is compared
            with what is returned.

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
    high-accuracy and ultra-low-latency spiking neural networks", ICLR 2022, for levels; Hu, Zheng,
    Jiang, Pan, "Fast-SNN: fast spiking neural network by converting quantized ANN", IEEE TPAMI 45
    (2023), for signed spikes.
    """
    check_module(model)
    times = Times(
        check_count("steps", steps),
        check_integer("quiet", quiet),
        check_count("burst", burst),
        check_flag("signed", signed),
    )
    if times.quiet < 0 or (times.quiet and not times.signed):
        raise ValueError(
            f"quiet={quiet}: steps from 0 on, in which neurons take back spikes. Give signed=True."
        )
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
    network = read_network(model, batch, activations or {})
    if not any(node.activation for node in network.nodes):
        raise ValueError(
            "the model has no ReLU to convert. What has rates are ReLUs: nn.ReLU, or "
            "convert.QuantizedReLU."
        )
    rules = rules_of(network, batch.double(), times, percentile, thresholds == "channel")
    built, neurons = build(network, rules, times)
    built.to(batch).train(model.training)
    return Converted(built, _report(network, batch, rules, times, built, neurons))


def _report(
    network: Network,
    batch: Tensor,
    rules: Rules,
    times: Times,
    model: nn.Module,
    neurons: dict[Node, str],
) -> Report:
    """Compare the spiking model with the network on the batch, and with what is proven."""
    double = batch.double()
    bounds, ready = bounds_of(network, double, rules, times), ready_of(network, rules, times)
    rates = _rates(model, neurons, batch, times)
    layers: list[LayerReport] = []
    end = times.steps + times.quiet

    def compare(node: Node, value: Tensor) -> None:
        off = (rates.pop(node) - value).abs()
        charge, distance = bounds[node]
        reason = ready[node].reason
        if not reason and ready[node].step > end:
            more = int(ready[node].step) - times.steps
            reason = f"it may need quiet={more}"
        rule, ties = rules.get(node), 0
        total = charge / times.steps + distance
        if rule is not None:
            total = total.clamp(max=rule.reach)
        bound = float(total.max()) if reason else 0.0
        if rule is not None and rule.levels is not None and not reason:
            ties = int((off > rule.clip / (2 * rule.levels)).sum())
        layers.append(
            LayerReport(
                path=node.name,
                neurons=neurons.get(node, ""),
                threshold=math.nan if rule is None else float(rule.threshold.max()),
                clip=math.nan if rule is None else float(rule.clip.max()),
                levels=None if rule is None else rule.levels,
                bound=bound,
                largest=float(off.max()),
                mean=float(off.mean()),
                reason=reason,
                values=off.numel(),
                ties=ties,
                thresholds=() if rule is None else tuple(rule.threshold.flatten().tolist()),
            )
        )

    def compute(node: Node, inputs: list[Tensor]) -> Tensor:
        value = ann(node, inputs)
        if node.activation is not None:
            compare(node, value)
        return value

    compare(OUTPUT, network.run(double, compute))
    last = ready[OUTPUT]
    sufficient = None if last.reason else int(last.step) - times.steps
    return Report(tuple(layers), times.steps, times.quiet, sufficient)


def _rates(
    model: nn.Module, neurons: dict[Node, str], batch: Tensor, times: Times
) -> dict[Node, Tensor]:
    """Return the rates of all neurons on a batch, and the output; step by step, to keep few."""
    sums: dict[Node, Tensor] = {}

    def add(node: Node, module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        sums[node] = sums.get(node, 0.0) + output.double()

    hooks = [(model.get_submodule(path), partial(add, node)) for node, path in neurons.items()]
    zero_states(model)
    silent = torch.zeros_like(batch)
    with forward_hooks(after=hooks):
        for step in range(times.steps + times.quiet):
            output = model(batch if step < times.steps else silent)
            add(OUTPUT, model, (), {}, output)
    zero_states(model)
    return {node: total / times.steps for node, total in sums.items()}
