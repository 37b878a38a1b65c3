"""``convert``: keep the integers of a prepared model, and report what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from tracetorch.chips.target import LearnedIntegers
from tracetorch.integers.arithmetic import limits, stored_bits
from tracetorch.integers.layers import Product, Quantize
from tracetorch.quantize.build import product_of
from tracetorch.quantize.prepared import Layer, Plan, Prepared, integer_model, observed
from tracetorch.snn.delay import DelayingLayer
from tracetorch.snn.neuron import Neuron

_MUCH = 0.1  # of a feature's deviation, which then is that of some three integers
_NAMED = 5  # features


@dataclass(frozen=True)
class LayerReport:
    """Report of a product and the neurons behind it: scale, bits, saturation, errors.

    Args:
        path: of the product in the model that was prepared.
        neurons: path of the neurons; empty where there are none.
        scale: what one integer of the states stands for: one number, or one per channel.
        weight_bits: width of the weights.
        shift: by how many bits their product is shifted.
        state_bits: width of the states.
        saturated_weights: share of the weights that are beyond an end of their width.
        saturated_states: share of the states at an end of theirs, over the sample.
        weight_error: of the weights, root mean square, as a share of theirs.
        output_error: share of the neurons' outputs, over the sample, that are other spikes than
            those of the float model that was prepared, on a chip at the step that they are later
            by; of a readout, and of a product without neurons, the root mean square of the
            difference as a share of theirs.
        saturated_parameters: share of each threshold, bias and the like that is beyond an end of
            its range, by its name in the model; those of which nothing is are left out.

    Example:
        >>> from tracetorch import quantize, snn
        >>> model = nn.Sequential(nn.Linear(4, 8), snn.LIF(8))
        >>> _, report = quantize.convert(quantize.prepare(model, torch.ones(9, 1, 4)))
        >>> layer = report.layers[0]
        >>> layer.path, layer.neurons, layer.weight_bits, layer.state_bits, layer.scale.shape
        ('0', '1', 8, 16, torch.Size([8]))
    """

    path: str
    neurons: str
    scale: Tensor
    weight_bits: int
    shift: int
    state_bits: int
    saturated_weights: float
    saturated_states: float
    weight_error: float
    output_error: float
    saturated_parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Report of ``tt.quantize.convert``, layer by layer; it prints as a table.

    Args:
        layers: in order.
        output_scale: what one integer of the output stands for.
        num_bytes: of all weights, each at its width, and of biases and parameters of neurons, at
            the next width of 8, 16 or 32 bits.
        misfits: limits of the chip that the network exceeds; empty where it fits.
        differences: in what the neurons differ from the model's, of a chip above all; without one,
            which sizes of spikes no longer learn; by how much delays were rounded.
        notes: how integers are made of the inputs, or that they are some; which features lose a
            tenth or more of their deviation by that; and of which layers the weights use fewer bits
            than they have, because the states are too narrow.

    Example:
        >>> from tracetorch import quantize, snn
        >>> model = nn.Sequential(nn.Linear(4, 8), snn.LIF(8))
        >>> _, report = quantize.convert(quantize.prepare(model, torch.ones(9, 1, 4)))
        >>> report.num_bytes, report.output_scale, report.misfits
        (96, 1.0, ())
    """

    layers: tuple[LayerReport, ...]
    output_scale: float
    num_bytes: int
    misfits: tuple[str, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        names = "layer", "neurons", "scale", "weight, state bits", "shift"
        rows = [(*names, "saturated weights, states", "weights off", "output off")]
        for each in self.layers:
            low, high = float(each.scale.min()), float(each.scale.max())
            scale = f"{low:.3g}" if low == high else f"{low:.2g} to {high:.2g}"
            bits = f"{each.weight_bits}, {each.state_bits}"
            ends = f"{each.saturated_weights:.1%}, {each.saturated_states:.1%}"
            off = f"{each.weight_error:.2%}", f"{each.output_error:.2%}"
            rows.append((each.path, each.neurons, scale, bits, str(each.shift), ends, *off))
        lines = table(rows)
        lines += [
            f"saturated: {share:.1%} of {name}"
            for each in self.layers
            for name, share in each.saturated_parameters.items()
        ]
        size = f"{self.num_bytes:,} bytes; one integer of the output is {self.output_scale:g}"
        lines += [*self.notes, size]
        lines += [f"does not fit: {each}" for each in self.misfits]
        lines += [f"differs: {each}" for each in self.differences]
        return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


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
    output, signs, at_ends = observed(model, torch.cat([plan.sample, ends]), plan)
    output = output[:steps]
    layers, labels, notes = [], dict[str, str](), _input_notes(model, plan)
    for layer in plan.layers:
        product, path = product_of(model.get_submodule(layer.path), layer.path)
        notes += _unused_bits(layer.label, product, plan)
        labels |= dict.fromkeys((layer.neurons, f"{layer.neurons}.neuron"), layer.neurons_label)
        if layer.spikes:
            late = slice(lag * layer.depth, lag * layer.depth + steps)
            fired = signs[layer.neurons_label][late]
            off = float((fired != plan.signs[layer.neurons_label]).double().mean())
        else:
            off = relative(prepared.output_scale * output, plan.output)
        raw, factor = _floats_of(prepared.get_submodule(path))
        layers.append(
            LayerReport(
                *(layer.label, layer.neurons_label, layer.unit),
                *(product.weight_bits, product.shift, plan.target.state_width),
                float(((raw * factor).round() != product.weight).double().mean()),
                at_ends.get(layer.neurons_label, 0.0),
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
    if not isinstance(model[0], Quantize):
        low, high = int(plan.sample.min()), int(plan.sample.max())
        return [f"input: integers as they are, {low} to {high}; others are not rounded"]
    low, high = limits(model[0].bits, signed=model[0].signed)
    made = f"input: divide by {float(model[0].scale):.6g}, round, {low} to {high}"
    first, _ = product_of(model.get_submodule(plan.layers[0].path), plan.layers[0].path)
    return [made, *_lost_inputs(model[0], first, plan)]


def _lost_inputs(border: Quantize, first: nn.Module, plan: Plan) -> list[str]:
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


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the root mean square of a difference, as a share of what was wanted."""
    size = wanted.double().square().mean().sqrt()
    return float((found.double() - wanted.double()).square().mean().sqrt() / size.clamp(min=1e-30))
