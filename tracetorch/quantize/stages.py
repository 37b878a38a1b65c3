"""Cut a chain into stages: what has no weights, a product, and the neurons behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from tracetorch.core.walk import join_path
from tracetorch.integers.border import SumPool1d, SumPool2d
from tracetorch.quantize.chain import Chain, Shapes, check_plain, label
from tracetorch.snn.connectivity import connectivity, plain_class
from tracetorch.snn.delay import Delay, DelayedConv1d, DelayedLinear, SynapticDelays
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.neuron import beside_step, starts_from_zero
from tracetorch.snn.norm_folding import norm_affine, scale_product
from tracetorch.snn.recurrent import Recurrent

FloatProduct = nn.Linear | nn.Conv1d | nn.Conv2d
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, DelayedLinear, DelayedConv1d)
_NOTHING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, LockedDropout)
_ALLOWED = (
    "Linear, Conv1d, Conv2d, DelayedLinear, DelayedConv1d, a BatchNorm1d or BatchNorm2d behind one "
    "of them, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d, Flatten, Dropout, snn.Delay, the twelve "
    "layers of tt.snn and snn.Recurrent of one of them and a product"
)


@dataclass
class Stage:
    """Modules without weights, a product, modules again, and neurons: as floats.

    Args:
        path: of the product in the user's model.
        product: a copy, batch norm folded; that inside of ``delays``, where there are some.
        before: modules before the product, with their paths; also those behind the last neurons.
        between: modules between the product and its neurons.
        neuron_path: of the neurons, or of the ``Recurrent`` that holds them.
        neuron: a copy; ``None`` where the model ends with the product.
        connection: of a ``Recurrent``, a copy.
        delays: the layer that delays the product's inputs, synapse by synapse.
        connection_delays: that of the connection's.
        aligned: whether each neuron has an output of the product, and of the connection, for
            itself: their dimensions are the same.
    """

    path: str
    product: FloatProduct
    before: Chain = field(default_factory=list)
    between: Chain = field(default_factory=list)
    neuron_path: str = ""
    neuron: LeakyIntegrator | None = None
    connection: FloatProduct | None = None
    delays: SynapticDelays | None = None
    connection_delays: SynapticDelays | None = None
    aligned: bool = True

    @property
    def layer(self) -> LeakyIntegrator:
        """The neurons, of a stage that has some."""
        return cast(LeakyIntegrator, self.neuron)

    @property
    def is_readout(self) -> bool:
        """Whether the neurons have no threshold."""
        neuron = self.neuron
        return neuron is not None and neuron.pos_threshold is None and neuron.neg_threshold is None


def stages_of(chain: Chain, shapes: Shapes) -> tuple[list[Stage], Chain]:
    """Cut a chain into stages, and return the modules behind the last one too.

    Args:
        chain: of a model.
        shapes: of the outputs of its modules, by path.

    Raises:
        ValueError: a module has no integer form, or no place where it stands.
    """
    stages: list[Stage] = []
    waiting: Chain = []
    is_open = False  # a product has no neurons yet
    _check_untied(chain)
    for index, (path, module) in enumerate(chain):
        kind = plain_class(module)
        if kind in _NOTHING:
            continue
        _check_parameters(path, module)
        if kind in _PRODUCTS:
            if is_open or (stages and stages[-1].is_readout):
                raise ValueError(
                    f"{label(path, module)} follows a product or a readout, whose values are too "
                    "wide to be multiplied. Put neurons that spike between them."
                )
            product, delays = _product(path, module)
            stages.append(Stage(path, product, before=waiting, delays=delays))
            waiting, is_open = [], True
        elif kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            before = chain[index - 1][1] if index else None
            if before is None or not is_open or plain_class(before) not in _PRODUCTS:
                raise ValueError(
                    f"{label(path, module)} is folded into the product right before it, and there "
                    "is none. Move it there."
                )
            product, shape = stages[-1].product, shapes[stages[-1].path]
            if _outputs_dim(product) % len(shape) != 1:
                raise ValueError(
                    f"{label(path, module)} normalises dimension 1 of {list(shape)}, and the "
                    f"outputs of {label(*chain[index - 1])} are another: it cannot be folded."
                )
            _fold(path, module, product)  # type: ignore[arg-type]
        elif isinstance(module, LeakyIntegrator | Recurrent):
            if not is_open:
                raise ValueError(
                    f"{label(path, module)} has no product before it, whose scale gives its states "
                    "theirs. Put an nn.Linear before it."
                )
            stage = stages[-1]
            stage.between, waiting, is_open = waiting, [], False
            stage.neuron_path = path
            stage.neuron, stage.connection, stage.connection_delays = _neuron(path, module)
            stage.aligned = _aligned(stage, shapes)
        else:
            waiting.append((path, _without_weights(path, module)))
    if not stages:
        raise ValueError("the model has no Linear or convolution to quantise.")
    if is_open:
        stages[-1].between, waiting = waiting, []
    return stages, waiting


def _check_untied(chain: Chain) -> None:
    """Check that no two parameters are one, nor share memory."""
    known: dict[int, list[tuple[str, Tensor]]] = {}
    for path, module in chain:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            here, storage = join_path(path, name), parameter.untyped_storage().data_ptr()
            for there, other in known.setdefault(storage, []):
                if parameter is other or _overlap(parameter, other):
                    raise ValueError(
                        f"{here} is {there} too, and tied parameters have no integer form: each "
                        "has a scale of its own, and would learn alone. Give it a copy, "
                        "nn.Parameter(parameter.detach().clone())."
                    )
            known[storage].append((here, parameter))


def _overlap(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors of one storage have an element in common."""
    if x.dtype != y.dtype:
        return True
    places = torch.zeros(x.untyped_storage().nbytes() // x.element_size(), dtype=torch.bool)
    mine, theirs = (
        places.as_strided(each.shape, each.stride(), each.storage_offset()) for each in (x, y)
    )
    mine.fill_(True)
    return bool(theirs.any())


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


def _aligned(stage: Stage, shapes: Shapes) -> bool:
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


def _fold(path: str, norm: nn.BatchNorm1d | nn.BatchNorm2d, product: FloatProduct) -> None:
    """Fold a batch norm, as it is in evaluation, into the product before it."""
    affine = norm_affine(norm)
    if affine is None:
        raise ValueError(
            f"{label(path, norm)} has no running statistics to fold. It needs "
            "track_running_stats=True."
        )
    rule = connectivity(product)
    if rule is not None and rule.signs is not None and bool((affine[0] < 0).any()):
        raise ValueError(
            f"{label(path, norm)} has a negative weight, which turns the signs around that the "
            "product before it was given (tt.snn.connect). Make it positive, or leave signs out."
        )
    scale_product(product, *affine)


def _neuron(
    path: str, module: nn.Module
) -> tuple[LeakyIntegrator, FloatProduct | None, SynapticDelays | None]:
    """Return a copy of neurons of the twelve layers, of what feeds them back, and its delays."""
    connection = delays = None
    if isinstance(module, Recurrent):
        if type(module) is not Recurrent:
            raise ValueError(f"{label(path, module)} is no snn.Recurrent itself: no integer form.")
        check_plain(f"{path}.connection", module.connection)
        if plain_class(module.connection) not in _PRODUCTS:
            raise ValueError(
                f"{label(f'{path}.connection', module.connection)} must be a Linear or a "
                "convolution to be quantised."
            )
        connection, delays = _product(f"{path}.connection", module.connection)
        path, module = f"{path}.neuron", module.neuron
    if not isinstance(module, LeakyIntegrator):
        raise ValueError(f"{label(path, module)} has no integer form. What has one: {_ALLOWED}.")
    check_plain(path, module)
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
