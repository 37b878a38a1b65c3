"""``convert``: keep the integers of a prepared model, and report what became of it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tracetorch.integers.border import Quantize
from tracetorch.integers.delays import IntegerDelays
from tracetorch.integers.products import Product
from tracetorch.integers.width import limits, stored_bits
from tracetorch.quantize.build import product_of
from tracetorch.quantize.learned import scaled_by
from tracetorch.quantize.observe import neurons_of, observed
from tracetorch.quantize.prepared import Plan, Prepared, integer_model
from tracetorch.quantize.report import LayerReport, Report
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent


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
    model = integer_model(prepared)
    return model, _report(prepared, model, prepared.plan)


def _report(prepared: Prepared, model: nn.Sequential, plan: Plan) -> Report:
    """Compare the integer model with the float one on the sample."""
    twin = plan.twin
    for path, source in plan.sources.items():
        twin.get_parameter(source).copy_(prepared.get_parameter(path))
    wanted_output, wanted = observed(twin, plan.sample)
    steps = len(plan.sample)
    # on a chip that delivers spikes later, every stage is a step behind the one before
    lag = int(plan.target.spikes_later)
    ends = plan.sample.new_zeros(lag * len(wanted), *plan.sample.shape[1:])
    output, seen = observed(model, torch.cat([plan.sample, ends]))
    neurons = neurons_of(model)
    products: list[tuple[str, Product]] = []
    layers: list[LayerReport] = []
    names, spikes = list(model._modules), False
    for index, (name, module) in enumerate(model.named_children()):
        if not isinstance(module, Product | IntegerDelays):
            continue
        product, there = product_of(module, name)
        label = plan.labels[name]
        products.append((label, product))
        behind = next((n for n in names[index + 1 :] if n in neurons), None)
        held: dict[str, Tensor] = {}
        off = _relative(prepared.output_scale * output[:steps], wanted_output)
        path, spikes = "", False  # of the last product, in the end
        if behind is not None:
            path, held = plan.labels[behind], dict(seen[behind])
            fired, expected = held.pop("output"), wanted[behind]["output"]
            held.pop("prev_output", None)
            neuron = model.get_submodule(behind)
            if isinstance(neuron, Recurrent):
                products.append((f"{path}.connection", product_of(neuron.connection)[0]))
            spikes = _fires(neurons_of(twin)[behind][1])
            if spikes:
                late = lag * len(layers)
                off = _share_of_others(fired[late : late + steps], expected)
        raw, factor = scaled_by(prepared.get_submodule(there), "weight")
        layers.append(
            LayerReport(
                label,
                path,
                plan.units[name],
                product.weight_bits,
                product.shift,
                plan.target.state_width,
                float(((raw * factor).round() != product.weight).double().mean()),
                _share([_at_ends(each[:steps], plan.target.state_limit) for each in held.values()]),
                _relative(product.weight / factor, raw),
                off,
            )
        )
    counted = [(plan.labels[name], layer) for name, (_, layer) in neurons.items()]
    return Report(
        tuple(layers),
        prepared.output_scale,
        _num_bytes(model),
        tuple(plan.target.misfits(products, counted)),
        (
            *plan.differences,
            *_rounded_delays(plan, wanted_output, spikes),
            *plan.target.departures(model, plan.sample),
        ),
        (*_border(model), *_unused_bits(model, plan)),
    )


def _border(model: nn.Sequential) -> list[str]:
    """Return how integers are made of the inputs, where the model makes them."""
    border = model[0]
    if not isinstance(border, Quantize):
        return []
    low, high = limits(border.bits, signed=border.signed)
    return [f"input: divide by {float(border.scale):.6g}, round, {low} to {high}"]


def _unused_bits(model: nn.Sequential, plan: Plan) -> list[str]:
    """Return of which layers the weights use few of their bits, for the states allow no more."""
    found = []
    for name, module in model.named_children():
        if not isinstance(module, Product | IntegerDelays):
            continue
        product, _ = product_of(module)
        used = 1 + int(product.weight.abs().max()).bit_length()
        if product.shift or not 1 < used < product.weight_bits:
            continue
        bits = plan.target.state_width + product.weight_bits - used
        is_fixed = plan.target.chip is not None or bits > 24
        remedy = "inputs of fewer bits." if is_fixed else f"state_bits={bits}, or inputs of fewer."
        found.append(
            f"layer {plan.labels[name]} uses {used} of {product.weight_bits} bits of its weights, "
            f"for its states are too narrow. Give {remedy}"
        )
    return found


def _rounded_delays(plan: Plan, wanted: Tensor, spikes: bool) -> list[str]:
    """Return by how much delays between two steps were rounded, and what that alone changes."""
    found = []
    rounded = copy.deepcopy(plan.twin)
    for path, layer in rounded.named_modules():
        if not isinstance(layer, DelayingLayer):
            continue
        off = (layer.delay - layer.delay.round()).abs()
        if bool(off.any()):
            name, _, inner = path.partition(".")
            label = ".".join([plan.labels[name], *[inner] * bool(inner)])
            found.append(
                f"{label} ({type(layer).__name__}) has delays between two steps, rounded by "
                f"{float(off.mean()):.2f} of a step in the mean, {float(off.max()):.2f} at most"
            )
            layer.round_()
    if found:
        output = observed(rounded, plan.sample)[0]
        error = _share_of_others(output, wanted) if spikes else _relative(output, wanted)
        found.append(f"the rounded delays alone put the float model's output off by {error:.1%}")
    return found


def _fires(layer: Neuron) -> bool:
    """Whether neurons have a threshold."""
    return any(getattr(layer, f"{sign}_threshold", None) is not None for sign in ("pos", "neg"))


def _share_of_others(found: Tensor, wanted: Tensor) -> float:
    """Return the share of spikes that are others than wanted."""
    return float((found.sign() != wanted.sign()).double().mean())


def _relative(found: Tensor, wanted: Tensor) -> float:
    """Return the root mean square of a difference, as a share of what was wanted."""
    size = wanted.double().square().mean().sqrt()
    return float((found.double() - wanted.double()).square().mean().sqrt() / size.clamp(min=1e-30))


def _at_ends(values: Tensor, limit: int) -> float:
    """Return the share of integers at an end of their width."""
    return float((values.double().abs() >= limit).double().mean()) if values.numel() else 0.0


def _share(shares: list[float]) -> float:
    return sum(shares) / len(shares) if shares else 0.0


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
