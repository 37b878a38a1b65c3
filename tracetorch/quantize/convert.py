"""``convert``: keep the integers of a prepared model, and report what became of it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tracetorch.chips.target import LearnedIntegers
from tracetorch.integers.border import Quantize
from tracetorch.integers.layers import Product
from tracetorch.integers.width import limits, stored_bits
from tracetorch.quantize.build import product_of
from tracetorch.quantize.prepared import Layer, Plan, Prepared, integer_model, observed
from tracetorch.quantize.report import LayerReport, Report, relative, share_of_others
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.neuron import Neuron

_MUCH = 0.1  # of a feature's deviation, which then is that of some three integers
_NAMED = 5  # features


@torch.no_grad()
def convert(prepared: Prepared) -> tuple[nn.Sequential, Report]:
    """Make an integer model of a prepared one, equal in every spike and state; and report.

    The integer model holds integers alone, weights as int8 or int16: ``integers.Linear``,
    ``integers.LeakyIntegrator`` and the like, or a chip's neurons, in an ``nn.Sequential`` whose
    children have the names of the prepared one's. It is proved on the sample that no number leaves
    the exact range of float32 (``tt.integers.check_exact``).

    Args:
        prepared: what :func:`prepare` returned, before training or after it. Nothing of it changes.

    Returns:
        The integer model, at rest, and a :class:`Report`.

    Raises:
        TypeError: ``prepared`` is something else.
        ValueError: a number can leave the exact range. The message names the layer.

    Example:
        >>> import tracetorch as tt
        >>> from tracetorch import snn
        >>> from tracetorch.quantize import prepare
        >>> model = nn.Sequential(nn.Linear(4, 8), snn.LIF(8), nn.Linear(8, 2), snn.Readout(2))
        >>> x = (torch.rand(20, 16, 4) < 0.5).float()
        >>> prepared = prepare(model, x)
        >>> integer, report = convert(prepared)
        >>> torch.equal(tt.unroll(integer, x), tt.unroll(prepared, x))
        True
        >>> integer[0].weight.dtype, report.layers[0].weight_bits, report.misfits
        (torch.int8, 8, ())
    """
    if not isinstance(prepared, Prepared):
        raise TypeError(
            f"convert takes what tt.quantize.prepare returned, got {type(prepared).__name__}."
        )
    model, plan = integer_model(prepared), prepared.plan
    steps = len(plan.sample)
    # on a chip that delivers spikes later, every stage is a step behind the one before
    lag = int(plan.target.spike_delay(1) is not None)
    ends = plan.sample.new_zeros(lag * len(plan.layers), *plan.sample.shape[1:])
    seen = observed(model, torch.cat([plan.sample, ends]), plan)
    output = seen.output[:steps]
    layers, labels, notes = [], dict[str, str](), _input_notes(model, plan)
    for layer in plan.layers:
        product, path = product_of(model.get_submodule(layer.path), layer.path)
        notes += _unused_bits(layer.label, product, plan)
        labels |= dict.fromkeys((layer.neurons, f"{layer.neurons}.neuron"), layer.neurons_label)
        if layer.spikes:
            late = slice(lag * layer.depth, lag * layer.depth + steps)
            fired = seen.signs[layer.neurons_label][late]
            off = share_of_others(fired, plan.signs[layer.neurons_label])
        else:
            off = relative(prepared.output_scale * output, plan.output)
        raw, factor = _floats_of(prepared.get_submodule(path))
        layers.append(
            LayerReport(
                *(layer.label, layer.neurons_label, layer.unit),
                *(product.weight_bits, product.shift, plan.target.state_width),
                float(((raw * factor).round() != product.weight).double().mean()),
                seen.at_ends.get(layer.neurons_label, 0.0),
                relative(product.weight / factor, raw),
                off,
                _clipped(prepared, layer),
            )
        )
    report = Report(
        *(tuple(layers), prepared.output_scale, _num_bytes(model)),
        tuple(plan.target.misfits(model, plan.sample, labels)),
        (*plan.differences, *plan.target.departures(model, plan.sample)),
        tuple(notes),
    )
    return model, report


def _floats_of(product: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the floats that the integers of a product are rounded from, and their factor."""
    found = cast(nn.ModuleDict, product.parametrizations)["weight"]
    value = cast(Tensor, found.original)
    *rules, form = cast(nn.ModuleList, found)
    for rule in rules:
        value = rule(value)
    return value, cast(LearnedIntegers, form).factor


def _clipped(prepared: Prepared, layer: Layer) -> dict[str, float]:
    """Return which share of thresholds and biases is beyond an end of its range, where one is."""
    found = dict(layer.clipped)
    for (path, name), label in layer.names.items():
        lists = getattr(prepared.get_submodule(path), "parametrizations", {})
        if name in lists:
            form = cast(LearnedIntegers, lists[name][-1])
            found[label] = form.clipped(lists[name].original)
    return {label: share for label, share in found.items() if share}


def _input_notes(model: nn.Sequential, plan: Plan) -> list[str]:
    """Return how integers are made of the inputs, and what that takes from them."""
    if not isinstance(model[0], Quantize):
        low, high = int(plan.sample.min()), int(plan.sample.max())
        return [f"input: integers as they are, {low} to {high}; others are not rounded"]
    low, high = limits(model[0].bits, signed=model[0].signed)
    made = f"input: divide by {float(model[0].scale):.6g}, round, {low} to {high}"
    first, _ = product_of(model.get_submodule(plan.layers[0].path), plan.layers[0].path)
    return [made, *_lost_inputs(model[0], first, plan)]


def _lost_inputs(border: Quantize, first: nn.Module, plan: Plan) -> list[str]:
    """Return which features of the inputs lose in rounding much of what varies in them."""
    # what a linear layer takes is last; else channels, behind time and batch
    dim = -1 if getattr(first, "in_features", None) == plan.sample.shape[-1] else 2
    x = plan.sample.double().movedim(dim, 0).flatten(1)
    rounded = border(x)
    x, rounded = (each - each.mean(1, keepdim=True) for each in (x, rounded))
    varies = x.square().sum(1)
    kept = (x * rounded).sum(1).square() / (varies * rounded.square().sum(1)).clamp(min=1e-300)
    lost = (1 - kept).clamp(min=0).sqrt() * (varies > 0)
    few = (lost > _MUCH).nonzero().flatten().tolist()
    if not few:
        return []
    named = ", ".join(f"{i} ({float(lost[i]):.0%})" for i in few[:_NAMED])
    more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
    return [
        f"input: rounding takes much of what varies in {len(few)} of {len(x)} features: {named}"
        f"{more}, for one scale holds for all. Give each mean 0 and deviation 1 before prepare, as "
        "before training."
    ]


def _unused_bits(label: str, product: Product, plan: Plan) -> list[str]:
    """Return whether the weights use few of their bits, for the states allow no more."""
    used = 1 + int(product.weight.abs().max()).bit_length()
    if product.shift or not 1 < used < product.weight_bits:
        return []
    bits = plan.target.state_width + product.weight_bits - used
    is_fixed = plan.target.chip is not None or bits > 24
    remedy = "inputs of fewer bits." if is_fixed else f"state_bits={bits}, or inputs of fewer."
    return [
        f"layer {label} uses {used} of {product.weight_bits} bits of its weights, for its states "
        f"are too narrow. Give {remedy}"
    ]


def _num_bytes(model: nn.Sequential) -> int:
    """Return the size of all integers, each at a width that holds it."""
    bits = 0
    for module in model.modules():
        if isinstance(module, Product):
            bits += module.weight.numel() * module.weight_bits
            bits += 0 if module.bias is None else 32 * module.bias.numel()
        elif isinstance(module, Neuron | DelayingLayer):
            for name, values in module.named_buffers():
                if name.startswith("raw_"):
                    width = stored_bits(float(values.min()), float(values.max()))
                    bits += width * values.numel()
    return -(-bits // 8)
