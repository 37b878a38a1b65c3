"""Cut a chain into stages, a product and the neurons behind it, and what stands between them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracetorch.chips.target import FloatProduct, Stage
from tracetorch.core.walk import join_path
from tracetorch.integers.border import SumPool1d, SumPool2d
from tracetorch.quantize.reader import Call, Chain, Join, calls_in
from tracetorch.snn.connectivity import connectivity, plain_class
from tracetorch.snn.delay import Delay, DelayedConv1d, DelayedLinear, SynapticDelays
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.model_graph import label
from tracetorch.snn.neuron import beside_step, starts_from_zero
from tracetorch.snn.norm_folding import norm_affine, scale_product
from tracetorch.snn.recurrent import Recurrent

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, DelayedLinear, DelayedConv1d)
_NOTHING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, LockedDropout)
_ALLOWED = (
    "Linear, Conv1d, Conv2d, DelayedLinear, DelayedConv1d, a BatchNorm1d or BatchNorm2d behind one "
    "of them, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d, Flatten, Dropout, snn.Delay, the twelve "
    "layers of tt.snn, snn.Recurrent of one of them and a product, and the sum of two branches"
)


@dataclass
class Plain:
    """Module without weights that stands in no stage."""

    path: str
    module: nn.Module


@dataclass
class Branches:
    """Two branches of stages, whose spikes are added."""

    first: Parts
    second: Parts


Parts = list[Stage | Plain | Branches]


def stages_in(parts: Parts) -> list[Stage]:
    """Return the stages of all branches, in order."""
    found: list[Stage] = []
    for part in parts:
        if isinstance(part, Branches):
            found += stages_in(part.first) + stages_in(part.second)
        elif isinstance(part, Stage):
            found.append(part)
    return found


def parts_of(chain: Chain) -> Parts:
    """Cut a chain into stages and what stands between them.

    Raises:
        ValueError: a module has no integer form, or no place where it stands.
    """
    _check_untied(calls_in(chain))
    cutter = _Cutter()
    parts = cutter.cut(chain)
    stages = stages_in(parts)
    if not stages:
        raise ValueError("the model has no Linear or convolution to quantise.")
    stages[-1].last = True
    return parts


@dataclass
class _Cutter:
    """Cut chains into stages.

    Args:
        values: what the last module returned: ``"narrow"`` integers, spikes or inputs; ``"sums"``
            of a product whose neurons are yet to come; or the ``"wide"`` states of a readout.
    """

    values: str = "narrow"

    def cut(self, chain: Chain) -> Parts:
        """Return the stages of a chain, and what stands between them."""
        parts: Parts = []
        waiting: list[Plain] = []  # behind a product, until its neurons come
        before: Call | None = None
        shapes = {each.path: each.shape for each in chain if isinstance(each, Call)}
        for call in chain:
            if isinstance(call, Join):
                parts += [*waiting, self.branches(call)]
                waiting, before = [], None
                continue
            path, module = call.path, call.module
            kind = plain_class(module)
            if kind in _NOTHING:
                continue
            _check_parameters(path, module)
            if kind in _PRODUCTS:
                if self.values != "narrow":
                    raise ValueError(
                        f"{label(path, module)} follows a product or a readout, whose values are "
                        "too wide to be multiplied. Put neurons that spike between them."
                    )
                product, delays = _product(path, module)
                parts += [*waiting, Stage(path, product, delays=delays)]
                waiting, self.values = [], "sums"
            elif kind in (nn.BatchNorm1d, nn.BatchNorm2d):
                stage = parts[-1] if parts else None
                _fold(call, stage, before, shapes)
            elif isinstance(module, LeakyIntegrator | Recurrent):
                stage = parts[-1] if parts else None
                if self.values != "sums" or not isinstance(stage, Stage):
                    raise ValueError(
                        f"{label(path, module)} has no product before it, whose scale gives its "
                        "states theirs. Put an nn.Linear before it."
                    )
                stage.between = [(each.path, each.module) for each in waiting]
                stage.neuron_path = path
                stage.neuron, stage.connection, stage.connection_delays = _neuron(path, module)
                stage.aligned = _aligned(stage, shapes)
                waiting, self.values = [], "narrow" if stage.spikes else "wide"
            else:
                waiting.append(Plain(path, _without_weights(path, module)))
            before = call
        return [*parts, *waiting]

    def branches(self, join: Join) -> Branches:
        """Return the stages of two branches."""
        start, made = self.values, []
        for chain in join:
            self.values = start
            made.append(self.cut(chain))
            if start != "narrow" or self.values != "narrow":
                raise ValueError(
                    f"{_last_label(chain)} is added to another branch, and its values are too wide "
                    "for a common scale. Add what neurons that spike return."
                )
        return Branches(*made)


def _last_label(chain: Chain) -> str:
    calls = calls_in(chain)
    return label(calls[-1].path, calls[-1].module) if calls else "what is given to a branch"


def _check_untied(calls: list[Call]) -> None:
    """Check that no two parameters are one, nor share memory."""
    known: list[tuple[str, int, int]] = []
    for path, module, _ in calls:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            here, start = join_path(path, name), parameter.data_ptr()
            sizes = zip(parameter.shape, parameter.stride(), strict=True)
            last = sum((size - 1) * stride for size, stride in sizes)
            end = start + (last + 1) * parameter.element_size()
            for there, other, other_end in known:
                if start < other_end and other < end:
                    raise ValueError(
                        f"{here} is {there} too, or shares memory with it, and tied parameters "
                        "have no integer form: each has a scale of its own, and would learn "
                        "alone. Give it a copy, nn.Parameter(parameter.detach().clone())."
                    )
            known.append((here, start, end))


def _check_parameters(path: str, module: nn.Module) -> None:
    """Raise where parameters follow from others by more than the mask and signs of a product."""
    if "parametrizations" not in module._modules:
        return
    if connectivity(module) is None or plain_class(module) not in _PRODUCTS:
        raise ValueError(
            f"{label(path, module)} is parametrized. Make its parameters plain ones first, by "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )


def _product(path: str, module: nn.Module) -> tuple[FloatProduct, SynapticDelays | None]:
    """Return a copy of a product with an integer form, and of what delays its inputs."""
    if isinstance(module, SynapticDelays):
        _check_delays(path, module)
        (name,) = module._modules
        _check_parameters(join_path(path, name), module.product)
        copied = copy.deepcopy(module)
        copied.zero_states()
        return copied.product, copied
    if isinstance(module, nn.Conv1d | nn.Conv2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        raise ValueError(f"{label(path, module)} must be padded with zeros, by a number.")
    return copy.deepcopy(module), None  # type: ignore[return-value]


def _check_delays(path: str, module: DelayingLayer) -> None:
    """Raise where a delay is none of one step, but spread over several."""
    if module.sigma != 0:
        raise ValueError(
            f"{label(path, module)} spreads its delays over several steps, sigma={module.sigma:g}, "
            "which no rounding makes whole. Finish the schedule first: sigma = 0, or round_()."
        )


def _outputs_dim(product: FloatProduct) -> int:
    """Return the dimension of a product's outputs, from the end."""
    return {nn.Linear: -1, nn.Conv1d: -2, nn.Conv2d: -3}[plain_class(product)]


def _aligned(stage: Stage, shapes: dict[str, torch.Size]) -> bool:
    """Whether the neurons' dimension is that of the outputs of what feeds them."""
    shape = shapes[stage.path]
    dim = _outputs_dim(stage.product) % len(shape)
    for path, module in stage.between:
        if isinstance(module, nn.Flatten):
            start, end = module.start_dim % len(shape), module.end_dim % len(shape)
            if start <= dim <= end:
                if shape[start : end + 1].numel() != shape[dim]:
                    return False  # a neuron for every place
                dim = start
            elif dim > end:
                dim -= end - start
        shape = shapes[path]
    ndim = len(shape)
    dims = [dim] if stage.connection is None else [dim, _outputs_dim(stage.connection) % ndim]
    return all(stage.layer.dim % ndim == each for each in dims)


def _fold(call: Call, stage: object, before: Call | None, shapes: dict[str, torch.Size]) -> None:
    """Fold a batch norm, as it is in evaluation, into the product before it."""
    path, norm = call.path, call.module
    if not isinstance(stage, Stage) or before is None or before.path != stage.path:
        raise ValueError(
            f"{label(path, norm)} is folded into the product right before it, and there is none. "
            "Move it there."
        )
    shape = shapes[stage.path]
    if _outputs_dim(stage.product) % len(shape) != 1:
        raise ValueError(
            f"{label(path, norm)} normalises dimension 1 of {list(shape)}, and the outputs of "
            f"{label(*before[:2])} are another: it cannot be folded."
        )
    affine = norm_affine(norm)
    if affine is None:
        raise ValueError(
            f"{label(path, norm)} has no running statistics to fold. It needs "
            "track_running_stats=True."
        )
    rule = connectivity(stage.product)
    if rule is not None and rule.signs is not None and bool((affine[0] < 0).any()):
        raise ValueError(
            f"{label(path, norm)} has a negative weight, which turns the signs around that the "
            "product before it was given (tt.snn.connect). Make it positive, or leave signs out."
        )
    scale_product(stage.product, *affine)


def _neuron(
    path: str, module: nn.Module
) -> tuple[LeakyIntegrator, FloatProduct | None, SynapticDelays | None]:
    """Return a copy of neurons of the twelve layers, of what feeds them back, and its delays."""
    connection = delays = None
    if isinstance(module, Recurrent):
        if type(module) is not Recurrent:
            raise ValueError(f"{label(path, module)} is no snn.Recurrent itself: no integer form.")
        if plain_class(module.connection) not in _PRODUCTS:
            raise ValueError(
                f"{label(f'{path}.connection', module.connection)} must be a Linear or a "
                "convolution to be quantised."
            )
        connection, delays = _product(f"{path}.connection", module.connection)
        path, module = f"{path}.neuron", module.neuron
    if not isinstance(module, LeakyIntegrator):
        raise ValueError(f"{label(path, module)} has no integer form. What has one: {_ALLOWED}.")
    if module.step is not LeakyIntegrator.step or beside_step(module) is not None:
        raise ValueError(f"{label(path, module)} has methods of its own, and no integer form.")
    if not starts_from_zero(module):
        raise ValueError(
            f"{label(path, module)} starts from states other than zero, and an integer neuron from "
            "zero. Leave out init=."
        )
    kwargs = module.step_kwargs(1, torch.float32)
    spikes = [kwargs[name] for name in ("pos_spike", "neg_spike") if kwargs[name] is not None]
    if len(spikes) == 2 and spikes[0] != spikes[1]:
        raise ValueError(
            f"{label(path, module)} has two surrogates, and an integer neuron has one for both "
            f"signs of spikes: {spikes[0]!r} and {spikes[1]!r}."
        )
    copied = copy.deepcopy(module)
    copied.zero_states()
    if connection is not None and copied.pos_threshold is copied.neg_threshold is None:
        raise ValueError(
            f"{path}: quantised models have no Recurrent of a readout, whose values are too wide "
            "to be multiplied."
        )
    return copied, connection, delays


def _without_weights(path: str, module: nn.Module) -> nn.Module:
    """Return a copy of a module that has an integer form and no weights."""
    name = label(path, module)
    kind = type(module)
    if isinstance(module, Delay) and kind is Delay:
        _check_delays(path, module)
        copied = copy.deepcopy(module)
        copied.zero_states()
        return copied
    if isinstance(module, nn.AvgPool1d | nn.AvgPool2d) and kind in (nn.AvgPool1d, nn.AvgPool2d):
        pads = module.padding not in (0, (0,), (0, 0))
        if module.ceil_mode or (pads and not module.count_include_pad):
            raise ValueError(
                f"{name} has windows of different sizes, whose sums have no one scale."
            )
    elif isinstance(module, nn.MaxPool1d | nn.MaxPool2d) and kind in (nn.MaxPool1d, nn.MaxPool2d):
        if module.return_indices:
            raise ValueError(f"{name} returns indices too.")
    elif not (isinstance(module, nn.Flatten) and kind is nn.Flatten):
        raise ValueError(f"{name} has no integer form. What has one: {_ALLOWED}.")
    return copy.deepcopy(module)


def integer_form(module: nn.Module) -> tuple[nn.Module, float, int]:
    """Return a module without weights for integers, what it divides by, and how much it may grow.

    An average is a sum, whose divisor goes into the scale; a delay is rounded to whole steps.
    """
    if isinstance(module, DelayingLayer):
        copied = copy.deepcopy(module)
        copied.round_()
        return copied, 1.0, 1
    if not isinstance(module, nn.AvgPool1d | nn.AvgPool2d):
        return copy.deepcopy(module), 1.0, 1
    kind: Callable[..., SumPool1d | SumPool2d] = (
        SumPool1d if isinstance(module, nn.AvgPool1d) else SumPool2d
    )
    pool = kind(module.kernel_size, module.stride, module.padding)
    size = int(torch.tensor(pool.kernel_size).prod())
    divisor = getattr(module, "divisor_override", None) or size
    return pool, float(divisor), size


def channels_first(values: Tensor, weight: Tensor) -> Tensor:
    """Return one value per output, shaped to broadcast over weights."""
    return values.reshape(-1, *[1] * (weight.ndim - 1)) if values.ndim else values
