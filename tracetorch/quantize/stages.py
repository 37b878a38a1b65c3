"""Cut a chain into stages, a product and the neurons behind it, and what stands between them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from tracetorch.chips.target import FloatProduct, Stage
from tracetorch.core.hooks import front_padding
from tracetorch.core.walk import join_path
from tracetorch.quantize.reader import Call, Chain, Join, flat
from tracetorch.snn.batch_norm import fold_into
from tracetorch.snn.connectivity import connectivity, plain_class
from tracetorch.snn.delay import Delay, DelayedLinear
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.model_graph import label
from tracetorch.snn.neuron import beside_step, starts_from_zero
from tracetorch.snn.recurrent import Recurrent

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, DelayedLinear)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d)
_NOTHING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, LockedDropout)
_NO_FORM = (
    "has no integer form. What has one: Linear, Conv1d, Conv2d, DelayedLinear, a "
    "BatchNorm1d or BatchNorm2d behind one of them, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d, "
    "Flatten, Dropout, snn.Delay, the twelve layers of tt.snn, snn.Recurrent of one of them and a "
    "product, and the sum of two branches."
)

# A module without weights that stands in no stage is its call; two branches are a join of parts.
Parts: TypeAlias = list[Stage | Call | Join]


def stages_in(parts: Parts) -> list[Stage]:
    return [part for part in flat(parts) if isinstance(part, Stage)]


def parts_of(chain: Chain) -> Parts:
    _check_untied(flat(chain))
    parts = _Cutter().cut(chain)
    stages = stages_in(parts)
    if not stages:
        raise ValueError("the model has no Linear or convolution to quantise.")
    stages[-1].last = True
    return parts


@dataclass
class _Cutter:
    # what the last module returned: "narrow" integers, spikes or inputs; "sums" of a product whose
    # neurons are yet to come; or the "wide" states of a readout
    values: str = "narrow"

    def cut(self, chain: Chain) -> Parts:
        parts: Parts = []
        waiting: list[Call] = []  # behind a product, until its neurons come
        stage: Stage | None = None
        before = ""
        shapes = {each.path: each.shape for each in chain if isinstance(each, Call)}
        for call in chain:
            if isinstance(call, Join):
                parts += [*waiting, self.branches(call)]
                waiting, stage = [], None
                continue
            path, module, _ = call
            kind = plain_class(module)
            if kind in _NOTHING:
                continue
            reason = _parametrized(module)
            if reason is not None:
                pass
            elif kind in _PRODUCTS:
                reason = _refuse(module)
                if self.values != "narrow":
                    reason = (
                        "follows a product or a readout, whose values are too wide to be "
                        "multiplied. Put neurons that spike between them."
                    )
                elif reason is None:
                    product, delays = _copied_product(module)
                    stage = Stage(path, product, delays=delays)
                    parts += [*waiting, stage]
                    waiting, self.values = [], "sums"
            elif kind in (nn.BatchNorm1d, nn.BatchNorm2d):
                reason = _fold(module, stage if stage and stage.path == before else None, shapes)
            elif isinstance(module, LeakyIntegrator | Recurrent):
                reason = refuse_neurons(module)
                if stage is None or self.values != "sums":
                    reason = (
                        "has no product before it, whose scale gives its states theirs. Put an "
                        "nn.Linear before it."
                    )
                elif reason is None:
                    _set_neurons(stage, call, waiting, shapes)
                    waiting, self.values = [], "narrow" if stage.spikes else "wide"
            else:
                plain = type(module) in (*_POOLS, nn.Flatten, Delay)
                reason = _refuse(module) if plain else _NO_FORM
                waiting.append(call)
            if reason is not None:
                raise ValueError(f"{label(path, module)} {reason}")
            before = path
        return [*parts, *waiting]

    def branches(self, join: Join) -> Join:
        start, made = self.values, []
        for chain in join:
            self.values = start
            made.append(self.cut(chain))
            if start != "narrow" or self.values != "narrow":
                call = ([*flat(chain)] or [Call("a branch", nn.Identity(), torch.Size())])[-1]
                raise ValueError(
                    f"{label(*call[:2])} is added to another branch, and its values are too wide "
                    "for a common scale. Add what neurons that spike return."
                )
        return Join(*made)


def _check_untied(calls: Iterable[Call]) -> None:
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


def _parametrized(module: Any) -> str | None:
    """Say where parameters follow from others by more than the mask and signs of a product."""
    inner = module.linear if isinstance(module, DelayedLinear) else module
    plain = "parametrizations" not in inner._modules
    if plain or (connectivity(inner) is not None and plain_class(inner) in _PRODUCTS):
        return None
    return (
        "is parametrized. Make its parameters plain ones first, by "
        "torch.nn.utils.parametrize.remove_parametrizations."
    )


def _refuse(module: Any) -> str | None:
    """Return why a product, a delay or a pool has no integer form; ``None`` if it has one."""
    if isinstance(module, DelayedLinear | Delay) and module.sigma != 0:
        return (
            f"spreads its delays over several steps, sigma={module.sigma:g}, which no rounding "
            "makes whole. Finish the schedule first: sigma = 0, or round_()."
        )
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"pads by padding_mode={module.padding_mode!r}, and integers pad with zeros."
        if padding_of(module) is None:
            size = " by ".join(map(str, module.kernel_size))
            return (
                f"pads one zero more at one end (padding='same' with a kernel of {size}), and "
                "integers pad both alike. Give a kernel of odd size, or a number as padding."
            )
    if isinstance(module, nn.AvgPool1d | nn.AvgPool2d):
        pads = module.padding not in (0, (0,), (0, 0))
        if module.ceil_mode or (pads and not module.count_include_pad):
            return "has windows of different sizes, whose sums have no one scale."
    return None


def padding_of(conv: nn.Conv1d | nn.Conv2d) -> tuple[int, ...] | None:
    """Return by how many zeros a convolution pads each end; ``None`` where they differ."""
    reach = [d * (size - 1) for d, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same" and any(each % 2 for each in reach):
        return None
    return front_padding(conv.padding, conv.kernel_size, conv.dilation)


def refuse_neurons(module: nn.Module) -> str | None:
    """Return why neurons, or a ``Recurrent``, have no integer form; ``None`` if they have one."""
    neuron: nn.Module = module
    if isinstance(module, Recurrent):
        neuron, connection = module.neuron, module.connection
        if type(module) is not Recurrent:
            return "is no snn.Recurrent itself: no integer form."
        reason = _parametrized(connection) or _refuse(connection)
        if plain_class(connection) not in _PRODUCTS or reason is not None:
            return (
                f"has a connection that is no Linear nor convolution to be quantised: "
                f"{label('connection', connection)} {reason or ''}"
            ).strip()
    if not isinstance(neuron, LeakyIntegrator):
        return _NO_FORM
    if neuron.step is not LeakyIntegrator.step or beside_step(neuron) is not None:
        return "has methods of its own, and no integer form."
    if not starts_from_zero(neuron):
        return "starts from states other than zero, and an integer neuron from zero. No init=."
    kwargs = neuron.step_kwargs(1, torch.float32)
    spikes = [kwargs[name] for name in ("pos_spike", "neg_spike") if kwargs[name] is not None]
    if len(spikes) == 2 and spikes[0] != spikes[1]:
        return (
            "has two surrogates, and an integer neuron has one for both signs of spikes: "
            f"{spikes[0]!r} and {spikes[1]!r}."
        )
    if neuron is not module and not spikes:
        return "feeds back the values of a readout, which are too wide to be multiplied."
    return None


def _copied_product(module: nn.Module) -> tuple[FloatProduct, DelayedLinear | None]:
    copied: Any = copy.deepcopy(module)
    if not isinstance(copied, DelayedLinear):
        return copied, None
    copied.zero_states()
    return copied.linear, copied


def _set_neurons(
    stage: Stage, call: Call, between: list[Call], shapes: dict[str, torch.Size]
) -> None:
    neuron: Any = copy.deepcopy(call.module)
    if isinstance(neuron, Recurrent):
        stage.connection, stage.connection_delays = _copied_product(neuron.connection)
        neuron = neuron.neuron
    neuron.zero_states()
    stage.neuron_path, stage.neuron = call.path, neuron
    stage.between = [(each.path, each.module) for each in between]
    stage.aligned = _aligned(stage, shapes)


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


def _fold(norm: Any, stage: Stage | None, shapes: dict[str, torch.Size]) -> str | None:
    if stage is None:
        return "is folded into the product right before it, and there is none. Move it there."
    shape = shapes[stage.path]
    if _outputs_dim(stage.product) % len(shape) != 1:
        return (
            f"normalises dimension 1 of {list(shape)}, and the outputs of {stage.path} are "
            "another: it cannot be folded."
        )
    return fold_into(stage.product, norm)
