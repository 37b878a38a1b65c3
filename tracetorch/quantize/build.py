"""Build a prepared model, stage by stage: scales, and integers that learn."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tracetorch import integers
from tracetorch.chips.target import FloatProduct, IntegerNeuron, LearnedIntegers, Stage, Target
from tracetorch.integers.layers import Add, DelayedLinear, Product, SumPool1d, SumPool2d
from tracetorch.quantize.prepared import Layer, Plan, Prepared
from tracetorch.quantize.reader import Call, Join, flat
from tracetorch.quantize.stages import Parts, padding_of, stages_in
from tracetorch.snn.connectivity import Connectivity, connectivity, raw_weight
from tracetorch.snn.delay import DelayedLinear as FloatDelayedLinear
from tracetorch.snn.delay import DelayingLayer
from tracetorch.snn.parameters import unbounded
from tracetorch.snn.recurrent import Recurrent

_RESERVE = 2.0  # of the range that the sample reaches
_UNEQUAL = 16.0  # channels that are weaker than the strongest by more are rounded more coarsely


@dataclass(frozen=True)
class Feed:
    """A product that feeds neurons, for the choice of its scale."""

    product: FloatProduct  # of the float model
    scale: Tensor  # what one integer of its input stands for
    largest: int  # the largest integer of its input
    gain: Tensor  # by what its weights are multiplied, one number or one per output
    divisor: float  # of the average pools between it and the neurons
    inner: bool  # whether it connects hidden neurons
    growth: float = 1.0  # how much more sums of windows may be


@torch.no_grad()
def unit_and_shifts(
    feeds: list[Feed], reach: Tensor, target: Target, *, per_channel: bool, inner_shift: int | None
) -> tuple[Tensor, list[int]]:
    """Return the unit of states that reach so far, and the shift of products that feed them."""
    high = 2 ** (target.weight_bits - 1) - 1
    reach = _RESERVE * (reach if per_channel else reach.max())
    floor = reach / target.limit
    finest = torch.zeros_like(floor)
    shifts = []
    for feed in feeds:
        rows = feed.product.weight.abs().flatten(1)
        step = rows.max(1).values * (feed.scale * feed.gain) / (high * feed.divisor)
        step = step if per_channel else step.max()
        ratio = step / floor
        ratio = ratio[torch.isfinite(ratio) & (ratio > 0)]
        shift = 0
        if ratio.numel():
            smallest, largest = float(ratio.min()), float(ratio.max())
            shift = math.floor(math.log2(max(smallest, largest / _UNEQUAL)))
        # the sum of all weights of an output, each times the largest input
        fan = float((rows.sum(1) / rows.max(1).values.clamp(min=1e-30)).max())
        most = math.log2(max(fan * high * feed.largest * len(feeds), 1.0))
        # two bits are left of those that float32 holds; sums of windows may take one
        spare = target.sum_bits - most - max(0.0, math.log2(feed.growth) - 1)
        shift = max(0, min(shift, math.floor(spare), target.most_shift))
        if feed.inner and inner_shift is not None:
            shift = inner_shift
        shifts.append(shift)
        finest = torch.maximum(finest, step / 2.0**shift)
    unit = torch.maximum(finest, floor)
    return torch.where(unit > 0, unit, torch.ones_like(unit)), shifts


def common_scale(one: Tensor, other: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the scale of a sum, and its integers in one of either; up to 16 times finer."""
    ratio = max(float(one), float(other)) / min(float(one), float(other))
    off = {k: round(abs(round(k * ratio) / (k * ratio) - 1), 3) for k in range(1, 17)}
    times = min(off, key=lambda k: off[k])
    factors = times, round(times * ratio)
    return torch.minimum(one, other) / times, factors if one <= other else factors[::-1]


_BIAS = 2.0**23
_BORDER = "input"  # the name of what makes integers of inputs


def product_of(module: nn.Module, path: str = "") -> tuple[Product, str]:
    """Return the product of integers that a module is, or delays the inputs of, and its path."""
    if not isinstance(module, DelayedLinear):
        return module, path  # type: ignore[return-value]
    return module.linear, f"{path}.linear"  # type: ignore[return-value]


class _Builder:
    def __init__(
        self, parts: Parts, plan: Plan, reach: dict[str, Tensor], inner_shift: int | None
    ) -> None:
        self.paths = {part.path for part in flat(parts)}
        for stage in stages_in(parts):
            self.paths |= {stage.neuron_path, *(path for path, _ in stage.between)}
        self.plan = plan
        self.reach = reach  # how far the states of neurons go, by path
        self.inner_shift = inner_shift  # of products between hidden neurons, where they share one
        self.names = {*dir(Prepared()), *Prepared.__annotations__, _BORDER}  # that none may have
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.prefix = ""  # of the branch that is built
        # what one integer of the values so far stands for, the largest of them, products before
        self.scale, self.largest, self.depth = torch.ones(()), 1, 0
        self.inner_shifts: list[int] = []

    def named(self, path: str, made: bool = False) -> str:
        """Return the name of the child that stands for a path, or for what was ``made`` here."""
        name = path.replace(".", "_") or "model"
        while name in self.names or ((made or name != path) and name in self.paths):
            name += "_"
        self.names.add(name)
        return name

    def chain(self, parts: Parts) -> None:
        for part in parts:
            if isinstance(part, Join):
                self.branches(part)
            elif isinstance(part, Call):
                divisor, growth = self.plain(part.path, part.module)
                self.scale, self.largest = self.scale / divisor, self.largest * growth
            else:
                self.stage(part)

    def branches(self, part: Join) -> None:
        modules, prefix, start = self.modules, self.prefix, (self.scale, self.largest, self.depth)
        name, made, ends = self.named("sum", made=True), [], []
        for which, parts in (("first", part.first), ("second", part.second)):
            self.modules, self.prefix = OrderedDict(), f"{prefix}{name}.{which}."
            self.scale, self.largest, self.depth = start
            self.chain(parts)
            made.append(nn.Sequential(self.modules))
            ends.append((self.scale, self.largest, self.depth))
        self.modules, self.prefix, self.depth = modules, prefix, max(end[2] for end in ends)
        self.scale, factors = common_scale(*(scale for scale, _, _ in ends))
        self.largest = sum(f * end[1] for f, end in zip(factors, ends, strict=True))
        self.modules[name] = Add(made[0], made[1], factors)

    def plain(self, path: str, module: nn.Module) -> tuple[float, int]:
        """Append a module without weights; return its divisor, and how much values may grow."""
        made, divisor, growth = integer_form(module)
        if isinstance(made, DelayingLayer):
            _learn_delays(made, module.raw_delay)  # type: ignore[arg-type]
        self.modules[self.named(path)] = made
        return divisor, growth

    def product(
        self, feed: Feed, delays: FloatDelayedLinear | None, unit: Tensor, shift: int
    ) -> nn.Module:
        target, product = self.plan.target, feed.product
        kind = _integer_kind(product, delays)
        has_bias = product.bias is not None and target.bias_in_product
        made = kind(bias=has_bias, shift=shift, weight_bits=target.weight_bits)
        if delays is not None:
            made.raw_delay.copy_(delays.delay.detach().round())
            _learn_delays(made, delays.raw_delay)
        inner, _ = product_of(made)
        factor = feed.scale * feed.gain / (unit * feed.divisor * 2.0**shift)
        if factor.ndim:  # one for each output
            factor = factor.reshape(-1, *[1] * (inner.weight.ndim - 1))
        form = LearnedIntegers(unbounded, factor, *integers.limits(target.weight_bits))
        learns = raw_weight(product).requires_grad
        _learn(inner, "weight", product.weight, form, connectivity(product), learns)
        if has_bias:
            form = LearnedIntegers(unbounded, 1 / (unit * feed.divisor), -_BIAS, _BIAS)
            _learn(inner, "bias", cast(Tensor, product.bias), form)
        return cast(nn.Module, made)

    def feeds(self, stage: Stage, each: bool) -> list[Feed]:
        target = self.plan.target
        divisor = math.prod(integer_form(module)[1] for _, module in stage.between)
        growth = math.prod(integer_form(module)[2] for _, module in stage.between)
        gain = torch.ones(()) if stage.neuron is None else target.gain(stage)
        if gain.ndim and not each:
            if not bool((gain == gain[0]).all()):
                raise ValueError(
                    f"{stage.neuron_path}: decays that differ from neuron to neuron need a product "
                    "with an output for each, in the neurons' dim."
                )
            gain = gain[0]
        inner = self.depth > 0 and not stage.last
        feeds = [Feed(stage.product, self.scale, self.largest, gain, divisor, inner, growth)]
        if stage.connection is not None:
            # the size of a spike does not depend on the unit
            fed = target.neuron(stage, torch.ones(()))
            back = fed.output_scale, fed.output_largest
            feeds.append(Feed(stage.connection, *back, gain, 1.0, inner=True))
        return feeds

    def stage(self, stage: Stage) -> None:
        target, layer = self.plan.target, stage.neuron
        outputs = stage.product.weight.shape[0]
        each = layer is not None and layer.num_neurons == outputs and stage.aligned
        if stage.product.bias is not None and not target.bias_in_product and not each:
            raise ValueError(
                f"{stage.path}: its bias goes into the neurons, which need an output each, in "
                "their dim. Leave it out (bias=False)."
            )
        feeds = self.feeds(stage, each)
        unit, shifts = unit_and_shifts(
            feeds, self.reach.get(stage.neuron_path, torch.zeros(1)), target,
            per_channel=each and target.per_channel and stage.spikes, inner_shift=self.inner_shift,
        )  # fmt: skip
        self.inner_shifts += [s for s, feed in zip(shifts, feeds, strict=True) if feed.inner]
        made = [
            self.product(feed, delays, unit, shift)
            for feed, delays, shift in zip(
                feeds, (stage.delays, stage.connection_delays), shifts, strict=False
            )
        ]
        name = self.named(stage.path)
        self.modules[name] = made[0]
        noted = Layer(stage.path, f"{self.prefix}{name}", unit, depth=self.depth)
        noted.names[product_of(made[0], noted.path)[1], "bias"] = f"{stage.path}.bias"
        self.plan.layers.append(noted)
        for path, module in stage.between:
            self.plain(path, module)
        self.scale, self.depth = unit, self.depth + 1
        if layer is None:
            return
        path, name = stage.neuron_path, self.named(stage.neuron_path)
        noted.neurons_label, noted.neurons, noted.spikes = path, self.prefix + name, stage.spikes
        integer = target.neuron(stage, unit)
        neuron = _neuron(integer)
        inner = noted.neurons if len(made) == 1 else f"{noted.neurons}.neuron"
        for parameter, (raw, form) in integer.learned.items():
            of_product = parameter == "bias" and stage.product.bias is not None
            of_product = of_product and not target.bias_in_product
            label = f"{stage.path if of_product else path}.{parameter}"
            noted.names[inner, f"raw_{parameter}"] = label
            if not isinstance(raw, nn.Parameter):
                noted.clipped[label] = form.clipped(raw)
        self.modules[name] = neuron if len(made) == 1 else Recurrent(neuron, made[1])
        self.scale, self.largest = integer.output_scale, integer.output_largest
        self.plan.differences += [
            f"{path} ({type(layer).__name__}) {what}" for what in target.differences(stage)
        ]
        later = None if stage.last else target.spike_delay(layer.num_neurons)
        if later is not None:
            self.modules[self.named(f"{name}_later", made=True)] = later


def build(
    parts: Parts, plan: Plan, reach: dict[str, Tensor], inner_shift: int | None = None
) -> Prepared:
    """Return a prepared model whose states have space for a reach."""
    plan = replace(plan, layers=[], differences=[])
    builder = _Builder(parts, plan, reach, inner_shift)
    border, builder.largest = plan.target.border(plan.sample)
    if border is not None:
        builder.modules[_BORDER] = border
        builder.scale = getattr(border, "scale", builder.scale)
    tail = len(parts)
    while tail and isinstance(parts[tail - 1], Call):
        tail -= 1
    builder.chain(parts[:tail])
    if plan.target.one_inner_shift and inner_shift is None and len({*builder.inner_shifts}) > 1:
        return build(parts, plan, reach, min(builder.inner_shifts))
    divisor = 1.0
    for part in parts[tail:]:
        divisor *= builder.plain(part.path, part.module)[0]  # type: ignore[union-attr]
    prepared = Prepared(builder.modules)
    prepared.plan = plan
    prepared.output_scale = float(builder.scale) / divisor
    return prepared


def integer_form(module: nn.Module) -> tuple[nn.Module, float, int]:
    """Return a module without weights for integers, its divisor, and how much it may grow."""
    if not isinstance(module, nn.AvgPool1d | nn.AvgPool2d):
        copied = copy.deepcopy(module)
        if isinstance(copied, DelayingLayer):
            copied.round_()
            copied.zero_states()
        return copied, 1.0, 1
    kind: Any = SumPool1d if isinstance(module, nn.AvgPool1d) else SumPool2d
    pool = kind(module.kernel_size, module.stride, module.padding)
    size = math.prod(pool.kernel_size)
    return pool, float(getattr(module, "divisor_override", None) or size), size


def _integer_kind(product: nn.Module, delays: FloatDelayedLinear | None) -> Any:
    if isinstance(product, nn.Linear):
        sizes = product.in_features, product.out_features
        if delays is not None:
            return partial(DelayedLinear, *sizes, max_delay=delays.max_delay)
        return partial(integers.Linear, *sizes)
    conv: Any = product
    kind: Any = integers.Conv1d if isinstance(product, nn.Conv1d) else integers.Conv2d
    places = conv.kernel_size, conv.stride, padding_of(conv), conv.dilation
    return partial(kind, conv.in_channels, conv.out_channels, *places, conv.groups)


def _neuron(integer: IntegerNeuron) -> nn.Module:
    start = {
        name: {
            "value": form(raw).detach().to(torch.get_default_dtype()),
            "learnable": isinstance(raw, nn.Parameter),
        }
        for name, (raw, form) in integer.learned.items()
    }
    neuron = integer.kind(**integer.constants, **start)
    for name, (raw, form) in integer.learned.items():
        if isinstance(raw, nn.Parameter):
            _learn(neuron, f"raw_{name}", raw, form)
    return neuron


def _learn_delays(made: DelayingLayer, raw: Tensor) -> None:
    if isinstance(raw, nn.Parameter):
        _learn(made, "raw_delay", raw, LearnedIntegers(unbounded, 1.0, 0, made.max_delay))


def _learn(
    module: nn.Module,
    name: str,
    raw: Tensor,
    form: LearnedIntegers,
    rule: Connectivity | None = None,
    learnable: bool | None = None,
) -> None:
    """Let a tensor of a module follow from a float that learns as it learned before."""
    module._buffers.pop(name, None)
    module._parameters.pop(name, None)
    learnable = raw.requires_grad if learnable is None else learnable
    learned = nn.Parameter(raw.detach().clone(), requires_grad=learnable)
    module.register_parameter(name, learned)
    if rule is not None:
        parametrize.register_parametrization(module, name, copy.deepcopy(rule), unsafe=True)
    parametrize.register_parametrization(module, name, form, unsafe=True)
