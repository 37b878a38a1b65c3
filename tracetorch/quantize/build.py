"""Build a prepared model, stage by stage: scales, integers that learn, their conversion."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import integers
from tracetorch.chips import xylo
from tracetorch.integers.delays import IntegerDelays
from tracetorch.integers.products import Product
from tracetorch.quantize.chain import Chain
from tracetorch.quantize.learned import LearnedIntegers, original, parametrize_by
from tracetorch.quantize.prepared import Plan, Prepared, Recipe
from tracetorch.quantize.scales import Feed, unit_and_shifts
from tracetorch.quantize.stages import FloatProduct, Stage, channels_first, integer_form
from tracetorch.quantize.target import IntegerNeuron, Target
from tracetorch.snn.connectivity import RAW_WEIGHT, connectivity, raw_weight
from tracetorch.snn.delay import Delay, SynapticDelays
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import unbounded
from tracetorch.snn.recurrent import Recurrent

_BIAS = 2.0**23
_BORDER = "input"  # the name of what makes integers of inputs


def product_of(module: nn.Module, path: str = "") -> tuple[Product, str]:
    """Return the product of integers that a module is, or delays the inputs of, and its path."""
    if not isinstance(module, IntegerDelays):
        return module, path  # type: ignore[return-value]
    return module.product, f"{path}.{next(iter(module._modules))}"  # type: ignore[return-value]


def names_of(stages: list[Stage], tail: Chain) -> dict[str, str]:
    """Return the names of a flat chain's children, by path: no two alike, and none that is taken.

    Dots become underscores; a name that is taken then gets one more behind it.
    """
    paths = [path for path, _ in tail]
    for stage in stages:
        paths += [path for path, _ in (*stage.before, *stage.between)]
        paths += [stage.path] + [stage.neuron_path] * (stage.neuron is not None)
    taken = _taken()
    # first those without a dot, which keep their name
    return {path: _free(path, taken) for path in sorted(paths, key=lambda path: "." in path)}


def _taken() -> set[str]:
    """Return the names that no child can have: attributes of ``Prepared``, and the border."""
    return {*dir(Prepared()), *Prepared.__annotations__, _BORDER}


def _free(path: str, taken: set[str]) -> str:
    """Return a name for a path, and take it."""
    name = path.replace(".", "_") or "model"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


class _Builder:
    """Build a prepared model, module by module."""

    def __init__(self, plan: Plan, names: dict[str, str], inner_shift: int | None) -> None:
        self.plan, self.names, self.inner_shift = plan, names, inner_shift
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.scale, self.largest = torch.ones(()), 1
        self.inner_shifts: list[int] = []

    def add(self, path: str, module: nn.Module, recipe: Recipe, name: str | None = None) -> str:
        """Append a module, and say how its integer form is made."""
        name = name or self.names[path]
        self.modules[name] = module
        self.plan.labels[name], self.plan.recipes[name] = path, recipe
        return name

    def without_weights(self, chain: Chain) -> tuple[float, int]:
        """Append modules without weights; return their divisor, and how much values may grow."""
        divisor, growth = 1.0, 1
        for path, module in chain:
            made, divided, grown = integer_form(module)
            if not isinstance(made, Delay):
                self.add(path, made, copy.deepcopy)
                divisor, growth = divisor * divided, growth * grown
                continue
            name = self.add(path, made, _integer_delay)
            self.delays(name, made, module.raw_delay)  # type: ignore[arg-type]
        return divisor, growth

    def delays(self, name: str, made: DelayingLayer, raw: Tensor) -> None:
        """Let delays of whole steps follow from floats, if these learn.

        Args:
            name: of the layer in the prepared model.
            made: the layer, its delays rounded.
            raw: those of the float layer.
        """
        if isinstance(raw, nn.Parameter):
            form = LearnedIntegers(unbounded, 1.0, 0, made.max_delay)
            parametrize_by(made, "raw_delay", raw, form)
            self.learns(f"{name}.raw_delay", f"{name}.raw_delay")

    def product(
        self,
        name: str,
        feed: Feed,
        delays: SynapticDelays | None,
        weight_factor: Tensor,
        unit: Tensor,
        shift: int,
    ) -> tuple[nn.Module, Recipe]:
        """Return a product whose integers learn, and the recipe of its integer form.

        Args:
            name: of the product in the prepared model.
            feed: the float product.
            delays: the layer that delays its inputs, if one does.
            weight_factor: integers in a weight of 1.
            unit: what one integer of the bias stands for.
            shift: of the product.
        """
        target = self.plan.target
        bits, weight, bias = target.weight_bits, feed.product.weight, feed.product.bias
        settings = {"bias": bias is not None and target.bias_in_product, "shift": shift}
        make = partial(_kind_of(feed.product, delays), **settings, weight_bits=bits)
        made: nn.Module = make()
        if delays is not None and isinstance(made, DelayingLayer):
            made.raw_delay.copy_(delays.delay.detach().round())
            self.delays(name, made, delays.raw_delay)
        inner, path = product_of(made, name)
        low, high = integers.limits(bits)
        form = LearnedIntegers(unbounded, channels_first(weight_factor, inner.weight), low, high)
        rule = connectivity(feed.product)
        learnable = raw_weight(feed.product).requires_grad
        parametrize_by(inner, "weight", weight, form, rule, learnable)
        self.learns(f"{path}.weight", f"{path}.{'weight' if rule is None else RAW_WEIGHT}")
        if inner.bias is not None and bias is not None:
            form = LearnedIntegers(unbounded, 1 / unit, -_BIAS, _BIAS)
            parametrize_by(inner, "bias", bias, form)
            self.learns(f"{path}.bias", f"{path}.bias")
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
        each = layer is not None and layer.num_neurons == outputs and stage.aligned
        if gain.ndim and not each:
            if not bool((gain == gain[0]).all()):
                raise ValueError(
                    f"{stage.neuron_path}: decays that differ from neuron to neuron need a product "
                    "with an output for each, in the neurons' dim."
                )
            gain = gain[0]
        if stage.product.bias is not None and not target.bias_in_product and not each:
            raise ValueError(
                f"{stage.path}: its bias goes into the neurons, which need an output each, in "
                "their dim. Leave it out (bias=False)."
            )
        per_channel = each and target.per_channel and not stage.is_readout
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
        name = self.names[stage.path]
        owners = (
            (name, f"{self.names[stage.neuron_path]}.connection") if len(feeds) > 1 else (name,)
        )
        made = [
            self.product(
                owner,
                feed,
                delays,
                feed.scale * feed.gain / (unit * feed.divisor * 2.0**shift),
                unit * feed.divisor,
                shift,
            )
            for owner, feed, delays, shift in zip(
                owners, feeds, (stage.delays, stage.connection_delays), shifts, strict=False
            )
        ]
        self.add(stage.path, *made[0])
        self.without_weights(stage.between)
        self.plan.units[name] = unit
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
                taken = {*_taken(), *self.names.values(), *self.modules}
                self.add(path, delay, copy.deepcopy, _free(f"{self.names[path]}_later", taken))

    def learns(self, integer: str, source: str) -> None:
        """Note where a float that learns stands in the prepared model and in the twin."""
        self.plan.sources[original(integer)] = source

    def neurons(
        self,
        stage: Stage,
        integer: IntegerNeuron,
        connection: list[tuple[nn.Module, Recipe]],
    ) -> None:
        """Append the neurons of a stage, and what feeds them back."""
        path = stage.neuron_path
        name = self.names[path]
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
            there = {"neuron": inner, "product": self.names[stage.path]}[owner]
            self.learns(f"{inner}.raw_{parameter}", f"{there}.{source}")
        names = (*integer.constants, *integer.learned)
        recipe: Recipe = partial(_integer_neuron, integer.kind, names)
        if not connection:
            self.add(path, neuron, recipe)
            return
        ((product, of_product),) = connection
        self.add(path, Recurrent(neuron, product), partial(_integer_recurrent, recipe, of_product))


def build(
    stages: list[Stage],
    tail: Chain,
    twin: nn.Sequential,
    sample: Tensor,
    target: Target,
    reach: dict[str, Tensor],
    names: dict[str, str],
    inner_shift: int | None = None,
) -> Prepared:
    """Return a prepared model whose states have room for a reach."""
    builder = _Builder(Plan(target, sample.detach().clone(), twin), names, inner_shift)
    border, builder.largest = target.border(sample)
    if border is not None:
        builder.add(_BORDER, border, copy.deepcopy, _BORDER)
        builder.scale = border.scale
    for index, stage in enumerate(stages):
        last = index == len(stages) - 1
        found = reach.get(names[stage.neuron_path]) if stage.neuron is not None else None
        builder.stage(stage, found, first=index == 0, last=last)
    if target.one_inner_shift and inner_shift is None and len(set(builder.inner_shifts)) > 1:
        shift = min(builder.inner_shifts)
        return build(stages, tail, twin, sample, target, reach, names, shift)
    divisor, _ = builder.without_weights(tail)
    prepared = Prepared(builder.modules)
    prepared.plan = builder.plan
    prepared.output_scale = float(builder.scale) / divisor
    return prepared


def _kind_of(product: FloatProduct, delays: SynapticDelays | None) -> Any:
    """Return the integer class of a product, with its sizes."""
    late = {} if delays is None else {"max_delay": delays.max_delay}
    if isinstance(product, nn.Linear):
        linear: Any = integers.Linear if delays is None else integers.DelayedLinear
        return partial(linear, product.in_features, product.out_features, **late)
    kind: Any = integers.Conv1d if isinstance(product, nn.Conv1d) else integers.Conv2d
    sizes: Any = (
        *(product.kernel_size, product.stride, product.padding, product.dilation),
        product.groups,
    )
    if delays is not None:
        kind, sizes = integers.DelayedConv1d, (*(each[0] for each in sizes[:4]), sizes[4])
    return partial(kind, product.in_channels, product.out_channels, *sizes, **late)


def _integer_product(make: Any, prepared: nn.Module) -> nn.Module:
    given, _ = product_of(prepared)
    made: nn.Module = make().to(given.weight.device)
    into, _ = product_of(made)
    into.set_extra_state(given.get_extra_state())
    with torch.no_grad():
        into.weight.copy_(given.weight)
        if into.bias is not None and given.bias is not None:
            into.bias.copy_(given.bias)
        if isinstance(made, DelayingLayer):
            made.raw_delay.copy_(prepared.raw_delay)  # type: ignore[arg-type]
    return made


def _integer_delay(prepared: Delay) -> nn.Module:
    delay, largest = prepared.delay.detach().clone(), prepared.max_delay
    made = Delay(
        prepared.num_neurons, prepared.dim, max_delay=largest, delay=delay, learnable=False
    )
    return made.to(delay.device)


def _integer_neuron(kind: Any, names: tuple[str, ...], prepared: Neuron) -> nn.Module:
    found = {name: getattr(prepared, name) for name in names}
    values = {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in found.items()}
    made: Neuron = kind(**values)
    for name in {"unit", "rec_weight_fraction"} & made.cell.options.keys():
        setattr(made, name, getattr(prepared, name))  # of a state_dict, if one was loaded
    return made.to(next(iter(prepared.buffers()), torch.empty(0)).device)


def _integer_recurrent(neuron: Recipe, product: Recipe, prepared: Recurrent) -> nn.Module:
    made = neuron(prepared.neuron), product(prepared.connection)
    return Recurrent(*made)
