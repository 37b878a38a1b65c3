"""``configuration``: the integer arrays of a model, in the words of Xylo's simulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tracetorch.chips.limits import Chip, exceeded
from tracetorch.chips.xylo.neurons import LIF, XYLO_1, XYLO_2, StepDelay
from tracetorch.core.checks import check_module
from tracetorch.integers.arithmetic import limits
from tracetorch.integers.layers import Linear, Quantize
from tracetorch.integers.ranges import is_node
from tracetorch.snn.model_graph import check_plain_weights, read_model
from tracetorch.snn.neuron import beside_step, starts_from_zero
from tracetorch.snn.recurrent import Recurrent

Integers = NDArray[np.int64]


class Layer(NamedTuple):
    """Weights into neurons, the neurons, and the weights from them to themselves."""

    path: str
    product: Linear
    neuron: LIF
    connection: Linear | None


@torch.no_grad()
def configuration(model: nn.Module, chip: Chip | None = None) -> dict[str, Any]:
    """Return the integer arrays that configure Xylo for a model, named as its simulator names them.

    The hidden layers of the model become one population: weights between them, and those of
    ``snn.Recurrent``, are in ``weights_rec``. The vendor's tools take what is returned, with their
    own functions; the simulator then computes, step for step, what the model computes, where no
    part of a sum of weights saturates and a channel has at most 15 spikes in a step: the chip clips
    more, and so does the front of what ``tt.quantize`` makes, an ``nn.Hardtanh(0, 15)``. An
    ``integers.Quantize`` in its place makes spikes of real inputs, and what feeds the chip does the
    same ("input: ..." in the report of ``tt.quantize.convert``).

    Args:
        model: what ``tt.quantize.convert`` returns for Xylo: ``integers.Linear`` and
            :class:`LIF` in turn, a :class:`StepDelay` between two pairs; the last neurons, which
            fire once a step, are the outputs. A hidden ``LIF`` may be in a ``snn.Recurrent`` with
            an ``integers.Linear``.
        chip: whose limits hold; ``None`` for ``XYLO_1`` or ``XYLO_2``, by the neurons' version.

    Returns:
        ``weights_in`` ``[inputs, hidden, 2]``, ``weights_rec`` ``[hidden, hidden, 2]``,
        ``weights_out`` ``[hidden, outputs]``, ``threshold``, ``dash_mem`` and ``bias``
        ``[hidden]``, ``dash_syn`` ``[hidden, 2]``, the same of the outputs with ``_out`` behind
        their name, ``weight_shift_in``, ``weight_shift_rec`` and ``weight_shift_out``, and
        ``aliases``, a list for each hidden neuron. In version 1 both biases are ``None``. Only the
        first of the two synapses is used.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it is built in another way, has hooks, or exceeds a limit of the chip: inputs,
            neurons, connections out of one, widths, shifts, spikes. The message names the layer,
            and what the chip has.

    Example:
        >>> from tracetorch import integers
        >>> model = nn.Sequential(
        ...     integers.Linear(2, 3, bias=False, shift=2), LIF(3, pos_threshold=500),
        ...     StepDelay(3),
        ...     integers.Linear(3, 1, bias=False), LIF(1, pos_threshold=90, max_spikes=1),
        ... )
        >>> found = configuration(model)
        >>> found["weights_in"].shape, found["weight_shift_in"], found["threshold_out"].tolist()
        ((2, 3, 2), 2, [90])
    """
    check_module(model)
    layers = layers_of(model)
    arrays = arrays_of(layers)
    version = layers[-1].neuron.version
    chip = chip or (XYLO_1 if version == 1 else XYLO_2)
    if chip.has_bias != (version == 2):
        raise ValueError(f"the neurons are of version {version}, which {chip.name} does not have.")
    x = torch.zeros(1, layers[0].product.in_features, device=layers[0].product.weight.device)
    modules = [node.module for node in read_model(model, x, is_leaf=is_node).chain()]
    if modules != list(model.children()):
        raise ValueError(
            f"the forward of {type(model).__name__} does not call its modules one after the other, "
            "in their order. Give an nn.Sequential of them."
        )
    misfits = exceeded(chip, model, x, {}, (StepDelay,))
    if misfits:
        raise ValueError(f"the model does not fit {chip.name}: {'; '.join(misfits)}.")
    return arrays


def arrays_of(layers: list[Layer]) -> dict[str, Any]:
    """Return the arrays of layers, whose number and connections need not fit the chip."""
    *hidden, last = layers
    sizes = [layer.neuron.num_neurons for layer in hidden]
    starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    total = starts[-1]
    weights_in = np.zeros((hidden[0].product.in_features, total, 2), np.int64)
    weights_rec = np.zeros((total, total, 2), np.int64)
    weights_out = np.zeros((total, last.neuron.num_neurons), np.int64)
    weights_in[:, : sizes[0], 0] = _weights(hidden[0].path, hidden[0].product)
    weights_out[starts[-2] :] = _weights(last.path, last.product)
    inner: list[tuple[str, Linear]] = []
    for index, layer in enumerate(hidden):
        own = slice(starts[index], starts[index + 1])
        if index:
            before = slice(starts[index - 1], starts[index])
            weights_rec[before, own, 0] = _weights(layer.path, layer.product)
            inner.append((layer.path, layer.product))
        if layer.connection is not None:
            weights_rec[own, own, 0] = _weights(layer.path, layer.connection)
            inner.append((layer.path, layer.connection))
    shifts = {product.shift for _, product in inner} or {0}
    if len(shifts) > 1:
        raise ValueError(
            f"{inner[-1][0]} has weights shifted by {inner[-1][1].shift} bits, others between "
            f"hidden neurons by {', '.join(map(str, sorted(shifts - {inner[-1][1].shift})))}: Xylo "
            "has one shift for all of them."
        )
    dash, threshold = (0, 2**XYLO_2.decay_bits - 1), (0, 2**XYLO_2.threshold_bits - 1)
    return {
        "weights_in": weights_in,
        "weights_rec": weights_rec,
        "weights_out": weights_out,
        "dash_mem": _each(hidden, "dash_mem", *dash),
        "dash_mem_out": _each([last], "dash_mem", *dash),
        "dash_syn": np.stack([_each(hidden, "dash_syn", *dash), np.zeros(total, np.int64)], -1),
        "dash_syn_out": _each([last], "dash_syn", *dash),
        "threshold": _each(hidden, "pos_threshold", *threshold),
        "threshold_out": _each([last], "pos_threshold", *threshold),
        "bias": _biases(hidden),
        "bias_out": _biases([last]),
        "weight_shift_in": hidden[0].product.shift,
        "weight_shift_rec": shifts.pop(),
        "weight_shift_out": last.product.shift,
        "aliases": [[] for _ in range(total)],
    }


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the hidden layers of a chain and its outputs, checked one by one."""
    check_plain_weights(model)
    layers = list(_layers(model))
    if len(layers) < 2:
        raise ValueError(
            f"Xylo has hidden and output neurons, the model has {len(layers)} layer of them. Put a "
            "hidden layer before the outputs."
        )
    last = layers[-1]
    for layer in layers:
        most = XYLO_2.output_spikes if layer is last else XYLO_2.hidden_spikes
        recurs = layer is last and layer.connection is not None
        if layer.neuron.max_spikes != most or recurs:
            raise ValueError(
                f"{layer.path} fires up to {layer.neuron.max_spikes} times a step: Xylo's hidden "
                f"neurons fire up to {XYLO_2.hidden_spikes} times, its outputs, the last layer, "
                f"once, xylo.LIF(..., max_spikes={most}), and these are not recurrent."
            )
        if layer.neuron.version != last.neuron.version:
            raise ValueError(
                f"{layer.path} is of version {layer.neuron.version}, the outputs of version "
                f"{last.neuron.version}: a chip has one. Give all of them the same."
            )
    return layers


def _layers(model: nn.Module) -> Iterator[Layer]:
    children = list(model.named_children())
    if children and isinstance(children[0][1], Quantize | nn.Hardtanh):
        _check_border(*children.pop(0))  # it makes the chip's inputs
    product: Linear | None = None
    delayed = True
    for path, module in children:
        label = f"{path} ({type(module).__name__})"
        recurs = type(module) is Recurrent
        neuron: Any = module.neuron if recurs else module
        connection: Any = module.connection if recurs else None
        if _fits(module) and product is None and delayed:
            product = module  # type: ignore[assignment]
        elif type(module) is StepDelay and product is None and not delayed:
            delayed = True
        elif (
            _plain(neuron) is LIF
            and product is not None
            and (neuron.num_neurons, neuron.dim) == (product.out_features, -1)
            and (beside_step(neuron) is None and starts_from_zero(neuron))
            and (connection is None or _fits(connection))
        ):
            yield Layer(label, product, neuron, connection)
            product, delayed = None, False
        else:
            raise ValueError(
                f"{label} has no place on Xylo: its layers are integers.Linear(..., bias=False) of "
                "at most 8 bits, xylo.LIF of a neuron for each output (or a snn.Recurrent of both) "
                "and, before the next, xylo.StepDelay, in this order, themselves and from zero. "
                "tt.quantize.prepare(model, sample, chip=xylo.XYLO_2) builds such a model."
            )


def _check_border(path: str, border: Any) -> None:
    if isinstance(border, Quantize):
        low, high = limits(border.bits, signed=border.signed)
    else:
        low, high = border.min_val, border.max_val
    clips = isinstance(border, nn.Hardtanh) and (low, high) != (0, XYLO_2.input_spikes)
    if clips or low < 0 or high > XYLO_2.input_spikes:
        raise ValueError(
            f"{path} ({type(border).__name__}) gives {low:g} to {high:g} spikes of a channel in a "
            f"step, and Xylo takes and clips to 0 to {XYLO_2.input_spikes}: nn.Hardtanh(0, "
            f"{XYLO_2.input_spikes}), or integers.Quantize(scale, bits=4, signed=False)."
        )


def _plain(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of a module; of one whose tensors are parametrized that behind it."""
    kind = type(module)
    return kind.__base__ if is_parametrized(module) else kind


def _fits(module: Any) -> bool:
    """Whether a module is a product that Xylo has."""
    return _plain(module) is Linear and module.bias is None and module.weight_bits <= 8


def _whole(what: str, values: Tensor, low: int, high: int) -> Integers:
    whole: NDArray[np.float64] = values.detach().double().numpy(force=True)
    wrong = whole[(whole < low) | (whole > high) | (whole != np.rint(whole))]
    if wrong.size:
        raise ValueError(f"{what} of {wrong[0]:g}: Xylo has integers of {low} to {high}.")
    found: Integers = whole.astype(np.int64)
    return found


def _weights(path: str, product: Linear) -> Integers:
    low, high = XYLO_2.weight_exponent
    if not low <= product.shift <= high:
        raise ValueError(
            f"{path} has weights shifted by {product.shift} bits: Xylo shifts by {low} to {high}."
        )
    ends = limits(XYLO_2.weight_bits)
    return np.transpose(_whole(f"{path} has a weight", product.weight, *ends))


def _each(layers: list[Layer], name: str, low: int, high: int) -> Integers:
    return np.concatenate(
        [
            _whole(
                f"{layer.path} has a {name}",
                getattr(layer.neuron, name).expand(layer.neuron.num_neurons).round(),
                *(low, high),
            )
            for layer in layers
        ]
    )


def _biases(layers: list[Layer]) -> Integers | None:
    """Return the biases of all neurons of some layers; ``None`` of version 1, which has none."""
    if layers[0].neuron.version == 1:
        return None
    low, high = limits(XYLO_2.state_bits)
    return np.concatenate(
        [
            np.zeros(layer.neuron.num_neurons, np.int64)
            if layer.neuron.bias is None
            else _each([layer], "bias", low, high)
            for layer in layers
        ]
    )
