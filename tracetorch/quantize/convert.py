"""``convert``: keep the integers of a prepared model, and report what became of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracetorch.integers.products import Product
from tracetorch.quantize.learned import original
from tracetorch.quantize.observe import neurons_of, observed
from tracetorch.quantize.prepared import Plan, Prepared, integer_model
from tracetorch.quantize.report import LayerReport, Report
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
    output, seen = observed(model, plan.sample)
    neurons = neurons_of(model)
    products: list[tuple[str, Product]] = []
    layers: list[LayerReport] = []
    names = list(model._modules)
    for index, (name, product) in enumerate(model.named_children()):
        if not isinstance(product, Product):
            continue
        label = plan.labels[name]
        products.append((label, product))
        behind = next((n for n in names[index + 1 :] if n in neurons), None)
        held: dict[str, Tensor] = {}
        off = _relative(prepared.output_scale * output, wanted_output)
        path = ""
        if behind is not None:
            path, held = plan.labels[behind], dict(seen[behind])
            fired, expected = held.pop("output"), wanted[behind]["output"]
            held.pop("prev_output", None)
            module = model.get_submodule(behind)
            if isinstance(module, Recurrent):
                products.append((f"{path}.connection", module.connection))  # type: ignore[arg-type]
            twin_layer = neurons_of(twin)[behind][1]
            if twin_layer.pos_threshold is not None or twin_layer.neg_threshold is not None:
                # on a chip that delivers spikes later, every stage is a step behind the one before
                late = len(layers) if plan.target.spikes_later else 0
                same = fired[late:].sign() == expected[: len(expected) - late].sign()
                off = 1 - float(same.double().mean())
        raw = prepared.get_parameter(original(f"{name}.weight"))
        factor = prepared.get_buffer(f"{name}.parametrizations.weight.0.factor")
        layers.append(
            LayerReport(
                label,
                path,
                plan.units[name],
                product.weight_bits,
                product.shift,
                plan.target.state_width,
                float(((raw * factor).round() != product.weight).double().mean()),
                _share([_at_ends(value, plan.target.state_limit) for value in held.values()]),
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
        tuple(plan.differences + plan.target.departures(model, plan.sample)),
    )


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
        elif isinstance(module, Neuron):
            for name, values in module.named_buffers():
                if name.startswith("raw_"):
                    largest = float(values.abs().max())
                    width = next(w for w in (8, 16, 32, 64) if largest < 2.0 ** (w - 1))
                    bits += width * values.numel()
    return -(-bits // 8)
