"""``prepare``: make a network of integer layers that trains the floats of a model."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import integers
from tracetorch.chips import loihi, xylo
from tracetorch.chips.chip import Chip
from tracetorch.core.checks import check_integer, check_module
from tracetorch.integers.products import Product
from tracetorch.quantize.chain import Chain, chain_of
from tracetorch.quantize.learned import LearnedIntegers, original, parametrize_by
from tracetorch.quantize.observe import neurons_of, observed, reach_of
from tracetorch.quantize.prepared import Plan, Prepared, Recipe
from tracetorch.quantize.processor import Processor
from tracetorch.quantize.scales import Feed, unit_and_shifts
from tracetorch.quantize.silicon import Loihi, Xylo
from tracetorch.quantize.stages import (
    FloatProduct,
    Stage,
    channels_first,
    integer_form,
    stages_of,
)
from tracetorch.quantize.target import IntegerNeuron, Target
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import unbounded
from tracetorch.snn.recurrent import Recurrent

_ATTEMPTS = 8  # to double the range of states that saturate on the sample
_BIAS = 2.0**23


def prepare(
    model: nn.Module,
    sample: Tensor,
    chip: Chip | None = None,
    weight_bits: int = 8,
    state_bits: int = 16,
) -> Prepared:
    """Quantise a model for training: integer forwards, and gradients straight through.

    ::

        W_int = clamp(round(W s_in / (s 2^shift)));  x = (W_int x_in) 2^shift + round(bias / s)
        threshold_int = round(threshold / s);        decay_int = round(4096 decay)

    ``s`` is the unit of a neuron's states: found on the sample, as fine as ``state_bits`` allow
    with as much again in reserve, one for each channel where neurons may differ. What is returned
    computes with integers alone, in floats that hold them exactly, and :func:`convert` makes an
    integer model of it that is equal in every spike and state. Its parameters are the model's, to
    be trained on as before; ``model`` itself does not change.

    Args:
        model: a chain of modules, in whatever containers, whose ``forward`` computes nothing
            besides: ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, a batch norm behind one of them
            (folded, as it is in evaluation), ``AvgPool`` and ``MaxPool`` of one and two dimensions,
            ``nn.Flatten``, ``snn.Delay`` of whole steps, the twelve layers, and ``snn.Recurrent``
            of one of them and a product. Dropout is left out. A readout can only be last.
        sample: inputs ``[T, B, ...]`` as they will come, a batch of training data. Inputs that are
            no integers of 8 bits are rounded to such by an ``integers.Quantize`` at the front.
        chip: ``None`` for integer arithmetic of any width; ``tt.chips.xylo.XYLO_1``, ``XYLO_2`` or
            ``tt.chips.loihi.LOIHI`` for the neurons of a chip. Xylo takes ``Linear`` and
            ``Recurrent`` of it, and delivers spikes a step later; both chips take inputs of spikes
            and layers with one threshold (``LIF``, ``SLIF``), have decays that do not learn, and a
            bias in the neuron.
        weight_bits: width of weights, 2 to 16; on a chip at most its own.
        state_bits: width of states, 8 to 24; a chip has its own.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: an argument is out of range, or a layer has no integer form. The message names
            the layer, and what is allowed.

    Example:
        >>> import tracetorch as tt
        >>> from tracetorch import snn
        >>> model = nn.Sequential(nn.Linear(4, 8), snn.LIF(8), nn.Linear(8, 2), snn.Readout(2))
        >>> x = (torch.rand(20, 16, 4) < 0.5).float()
        >>> prepared = prepare(model, x, weight_bits=4)
        >>> y = prepared.output_scale * tt.unroll(prepared, x)
        >>> y.square().mean().backward()
        >>> prepared[0].parametrizations.weight.original.grad.shape
        torch.Size([8, 4])

    Reference: Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", CVPR 2018, for training through rounded forwards.
    """
    check_module(model)
    if not isinstance(sample, Tensor) or not sample.is_floating_point():
        raise TypeError("sample must be a tensor of floats, [T, B, ...].")
    if sample.ndim < 3 or not sample.numel():
        raise ValueError(
            f"sample must be a sequence [T, B, ...] of some steps, got shape {list(sample.shape)}."
        )
    target = _target(chip, weight_bits, state_bits)
    stages, tail = stages_of(chain_of(model, sample[0]))
    for stage in stages:
        last = stage is stages[-1]
        reason = target.refuse(stage, last=last)
        if stage.is_readout and stage.connection is not None:
            reason = "no Recurrent of a readout, whose values are too wide to be multiplied"
        if reason is not None:
            path = stage.neuron_path or stage.path
            raise ValueError(f"{path}: quantised models have {reason}.")
    if target.spikes_later and (len(stages) < 2 or tail):
        raise ValueError(
            "Xylo has hidden and output neurons: a Linear and neurons, and again, at least."
        )
    twin = _twin(stages, tail)
    states = observed(twin, sample)[1]
    reach = {name: reach_of(layer, states[name]) for name, (_, layer) in neurons_of(twin).items()}
    for _ in range(_ATTEMPTS):
        prepared = _build(stages, tail, twin, sample, target, reach)
        prepared.to(sample.device)
        seen = observed(prepared, sample)[1]
        full = [n for n, held in seen.items() if _saturates(held, target)]
        if not full:
            break
        for name in full:
            reach[name] = 2 * reach[name]
    return prepared.train(model.training)


def _target(chip: Chip | None, weight_bits: int, state_bits: int) -> Target:
    """Return what to quantise for; raise where widths do not fit."""
    most = 16 if chip is None else 8
    if not 2 <= check_integer("weight_bits", weight_bits) <= most:
        raise ValueError(f"weight_bits must be 2 to {most}, got {weight_bits}.")
    if not 8 <= check_integer("state_bits", state_bits) <= 24:
        raise ValueError(f"state_bits must be 8 to 24, got {state_bits}.")
    if chip is None:
        return Processor(None, int(weight_bits), int(state_bits))
    if chip in (xylo.XYLO_1, xylo.XYLO_2):
        return Xylo(
            *(chip, int(weight_bits), chip.state_bits, chip.weight_exponent[1]),
            bias_in_product=False,
            spikes_later=True,
            one_inner_shift=True,
        )
    if chip == loihi.LOIHI:
        # inputs of 16 bits arrive 6 bits higher; even weights are twice the integers here
        return Loihi(
            *(chip, int(weight_bits), 16, chip.weight_exponent[1] + 1),
            per_channel=False,
            bias_in_product=False,
        )
    if not isinstance(chip, Chip):
        raise TypeError(f"chip must be a tt.chips.Chip or None, got {chip!r}.")
    raise ValueError(
        f"chip must be chips.xylo.XYLO_1, chips.xylo.XYLO_2 or chips.loihi.LOIHI, got {chip.name}."
    )


def _name(path: str) -> str:
    """Return the name of a child of a flat chain."""
    return path.replace(".", "_") or "model"


def _twin(stages: list[Stage], tail: Chain) -> nn.Sequential:
    """Return the float model as a flat chain, batch norms folded."""
    found: OrderedDict[str, nn.Module] = OrderedDict()
    for stage in stages:
        for path, module in (*stage.before, (stage.path, stage.product), *stage.between):
            found[_name(path)] = module
        if stage.neuron is not None:
            neuron: nn.Module = stage.neuron
            if stage.connection is not None:
                neuron = Recurrent(stage.neuron, stage.connection)
            found[_name(stage.neuron_path)] = neuron
    found.update((_name(path), module) for path, module in tail)
    return copy.deepcopy(nn.Sequential(found)).eval()


def _saturates(states: dict[str, Tensor], target: Target) -> bool:
    """Whether a state is at an end of its width."""
    held = [value for name, value in states.items() if name not in ("output", "prev_output")]
    return any(bool((value.abs() >= target.state_limit).any()) for value in held)


class _Builder:
    """Build a prepared model, module by module."""

    def __init__(self, plan: Plan, inner_shift: int | None) -> None:
        self.plan, self.inner_shift = plan, inner_shift
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.scale, self.largest = torch.ones(()), 1
        self.inner_shifts: list[int] = []

    def add(self, path: str, module: nn.Module, recipe: Recipe, name: str | None = None) -> str:
        """Append a module, and say how its integer form is made."""
        name = name or _name(path)
        self.modules[name] = module
        self.plan.labels[name], self.plan.recipes[name] = path, recipe
        return name

    def without_weights(self, chain: Chain) -> tuple[float, int]:
        """Append modules without weights; return their divisor, and how much values may grow."""
        divisor, growth = 1.0, 1
        for path, module in chain:
            made, divided, grown = integer_form(module)
            self.add(path, made, copy.deepcopy)
            divisor, growth = divisor * divided, growth * grown
        return divisor, growth

    def product(
        self, float_product: FloatProduct, weight_factor: Tensor, unit: Tensor, shift: int
    ) -> tuple[Product, Recipe]:
        """Return a product whose integers learn, and the recipe of its integer form."""
        target = self.plan.target
        bits, bias = target.weight_bits, float_product.bias
        kind = _kind_of(float_product)
        make = partial(kind, bias=bias is not None and target.bias_in_product, shift=shift)
        make = partial(make, weight_bits=bits)
        made: Product = make()
        low, high = integers.limits(bits)
        form = LearnedIntegers(unbounded, channels_first(weight_factor, made.weight), low, high)
        parametrize_by(made, "weight", float_product.weight, form)
        if made.bias is not None and bias is not None:
            parametrize_by(made, "bias", bias, LearnedIntegers(unbounded, 1 / unit, -_BIAS, _BIAS))
        return made, partial(_integer_product, make)

    def stage(self, stage: Stage, reach: Tensor | None, *, first: bool, last: bool) -> None:
        """Append a stage."""
        target, layer = self.plan.target, stage.neuron
        divisor, growth = self.without_weights(stage.before)
        self.scale, self.largest = self.scale / divisor, self.largest * growth
        outputs = stage.product.weight.shape[0]
        divisors = [integer_form(module)[1] for _, module in stage.between]
        spread = float(torch.tensor([1.0, *divisors]).prod())
        gain = torch.ones(()) if layer is None else target.gain(layer)
        if gain.ndim and len(gain) != outputs:
            if not bool((gain == gain[0]).all()):
                raise ValueError(
                    f"{stage.neuron_path}: decays that differ from neuron to neuron need a product "
                    "with an output for each."
                )
            gain = gain[0]
        per_channel = (
            layer is not None
            and target.per_channel
            and not stage.is_readout
            and layer.num_neurons == outputs
        )
        feeds = [
            Feed(stage.product, self.scale, self.largest, gain, spread, inner=not (first or last))
        ]
        if layer is not None and stage.connection is not None:
            # the size of a spike does not depend on the unit
            fed = target.neuron(stage, torch.ones(()), last=last)
            back = fed.output_scale, fed.output_largest
            feeds.append(Feed(stage.connection, *back, gain, 1.0, inner=True))
        if reach is None:  # no states follow
            reach = torch.zeros(1)
        unit, shifts = unit_and_shifts(
            feeds, reach, target, per_channel=per_channel, inner_shift=self.inner_shift
        )
        self.inner_shifts += [
            shift for shift, feed in zip(shifts, feeds, strict=True) if feed.inner
        ]
        made = [
            self.product(
                feed.product,
                feed.scale * feed.gain / (unit * feed.divisor * 2.0**shift),
                unit * feed.divisor,
                shift,
            )
            for feed, shift in zip(feeds, shifts, strict=True)
        ]
        name = self.add(stage.path, *made[0])
        self.learns(f"{name}.weight", f"{_name(stage.path)}.weight")
        if made[0][0].bias is not None:
            self.learns(f"{name}.bias", f"{_name(stage.path)}.bias")
        self.without_weights(stage.between)
        self.plan.units[name] = unit * spread
        self.scale = unit
        if layer is not None:
            integer = target.neuron(stage, unit, last=last)
            self.neurons(stage, integer, made[1:])
            self.scale, self.largest = integer.output_scale, integer.output_largest
            self.plan.differences += [
                f"{stage.neuron_path} ({type(layer).__name__}) {each}"
                for each in target.differences(stage)
            ]
            if target.spikes_later and not last:
                path = stage.neuron_path
                delay = xylo.StepDelay(layer.num_neurons)
                self.add(path, delay, copy.deepcopy, f"{_name(path)}_later")

    def learns(self, integer: str, source: str) -> None:
        """Note where a float that learns stands in the prepared model and in the twin."""
        self.plan.sources[original(integer)] = source

    def neurons(
        self,
        stage: Stage,
        integer: IntegerNeuron,
        connection: list[tuple[Product, Recipe]],
    ) -> None:
        """Append the neurons of a stage, and what feeds them back."""
        path = stage.neuron_path
        name = _name(path)
        neuron = integer.kind(
            **integer.constants,
            **{
                parameter: {
                    "value": each.form(each.raw).detach().to(torch.get_default_dtype()),
                    "learnable": isinstance(each.raw, nn.Parameter),
                }
                for parameter, each in integer.learned.items()
            },
        )
        inner = f"{name}.neuron" if connection else name
        for parameter, each in integer.learned.items():
            if not isinstance(each.raw, nn.Parameter):
                continue
            parametrize_by(neuron, f"raw_{parameter}", each.raw, each.form)
            owner, _, source = each.source.partition(".")
            there = {"neuron": inner, "product": _name(stage.path)}[owner]
            self.learns(f"{inner}.raw_{parameter}", f"{there}.{source}")
        names = (*integer.constants, *integer.learned)
        recipe: Recipe = partial(_integer_neuron, integer.kind, names)
        if not connection:
            self.add(path, neuron, recipe)
            return
        ((product, of_product),) = connection
        self.add(path, Recurrent(neuron, product), partial(_integer_recurrent, recipe, of_product))
        for tensor in ("weight", "bias"):
            if getattr(product, tensor) is not None:
                self.learns(f"{name}.connection.{tensor}", f"{name}.connection.{tensor}")


def _build(
    stages: list[Stage],
    tail: Chain,
    twin: nn.Sequential,
    sample: Tensor,
    target: Target,
    reach: dict[str, Tensor],
    inner_shift: int | None = None,
) -> Prepared:
    """Return a prepared model whose states reach as far as is said."""
    builder = _Builder(Plan(target, sample.detach().clone(), twin), inner_shift)
    border, builder.largest = target.border(sample)
    if border is not None:
        builder.add("input", border, copy.deepcopy)
        builder.scale = border.scale
    for index, stage in enumerate(stages):
        last = index == len(stages) - 1
        found = reach.get(_name(stage.neuron_path)) if stage.neuron is not None else None
        builder.stage(stage, found, first=index == 0, last=last)
    if target.one_inner_shift and inner_shift is None and len(set(builder.inner_shifts)) > 1:
        shift = min(builder.inner_shifts)
        return _build(stages, tail, twin, sample, target, reach, shift)
    divisor, _ = builder.without_weights(tail)
    prepared = Prepared(builder.modules)
    prepared.plan = builder.plan
    prepared.output_scale = float(builder.scale) / divisor
    return prepared


def _kind_of(product: FloatProduct) -> Any:
    """Return the integer class of a product, with its sizes."""
    if isinstance(product, nn.Linear):
        return partial(integers.Linear, product.in_features, product.out_features)
    kind: Any = integers.Conv1d if isinstance(product, nn.Conv1d) else integers.Conv2d
    sizes = product.kernel_size, product.stride, product.padding, product.dilation, product.groups
    return partial(kind, product.in_channels, product.out_channels, *sizes)


def _integer_product(make: Any, prepared: Product) -> nn.Module:
    made: Product = make().to(prepared.weight.device)
    with torch.no_grad():
        made.weight.copy_(prepared.weight)
        if made.bias is not None and prepared.bias is not None:
            made.bias.copy_(prepared.bias)
    return made


def _integer_neuron(kind: Any, names: tuple[str, ...], prepared: Neuron) -> nn.Module:
    found = {name: getattr(prepared, name) for name in names}
    values = {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in found.items()}
    made: Neuron = kind(**values)
    return made.to(next(iter(prepared.buffers()), torch.empty(0)).device)


def _integer_recurrent(neuron: Recipe, product: Recipe, prepared: Recurrent) -> nn.Module:
    made = neuron(prepared.neuron), product(prepared.connection)
    return Recurrent(*made)  # type: ignore[arg-type]
