"""``Chip``, the limits of a chip as data, and the connections of a model, which are counted.

The model is read as a graph and run with ones: for each weight that is not zero one connection, for
each neuron one spike. What arrives then is a number of connections, and its gradient with respect
to a neuron's spike is the number of those that leave it; so several products, recurrence, delays,
pools and branches that are added count together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tracetorch.core.walk import join_path
from tracetorch.integers.layers import Product, Quantize, SumPool1d, SumPool2d
from tracetorch.integers.ranges import PRODUCTS, is_node
from tracetorch.snn.delay import Delay, DelayedLinear
from tracetorch.snn.model_graph import Node, compute, read_model
from tracetorch.snn.neuron import has_step
from tracetorch.snn.recurrent import Recurrent


@dataclass(frozen=True)
class Chip:
    """Limits of a chip: numbers of neurons and connections, widths, spikes of a step.

    ``None`` stands for no limit, or none that is published.

    Args:
        name: of the chip.
        inputs: input channels.
        hidden: neurons that may be recurrent.
        outputs: output neurons.
        synapses: synaptic states of a hidden neuron.
        fan_in: connections into one synapse of a neuron.
        fan_out: connections out of one hidden neuron into hidden neurons.
        weight_bits: width of a weight, signed.
        weight_exponent: the least and the largest power of two that weights share.
        state_bits: width of the states, signed.
        threshold_bits: width of a threshold, unsigned.
        decay_bits: width of a decay.
        input_spikes: most spikes of an input channel in a step.
        hidden_spikes: most spikes of a hidden neuron in a step.
        output_spikes: most spikes of an output neuron in a step.
        has_bias: whether neurons have a bias.
        border: hidden neurons that inputs reach, and hidden neurons that reach outputs.

    Example:
        >>> from tracetorch.chips.xylo import XYLO_2
        >>> XYLO_2.hidden, XYLO_2.weight_bits, XYLO_2.state_bits
        (1000, 8, 16)
    """

    name: str
    inputs: int | None
    hidden: int | None
    outputs: int | None
    synapses: int
    fan_in: int | None
    fan_out: int | None
    weight_bits: int
    weight_exponent: tuple[int, int]
    state_bits: int
    threshold_bits: int
    decay_bits: int
    input_spikes: int
    hidden_spikes: int
    output_spikes: int
    has_bias: bool
    border: int | None = None


class Population(NamedTuple):
    """Neurons of a layer, or the inputs: their number, and the most connections of one.

    Those out of one go to hidden neurons alone: those of inputs and outputs are counted apart.
    """

    path: str
    size: int
    fan_in: int
    fan_out: int


def exceeded(
    chip: Chip,
    model: nn.Module,
    x: Tensor,
    labels: Mapping[str, str],
    passing: tuple[type[nn.Module], ...],
) -> list[str]:
    """Return which limits of a chip a model exceeds; ``labels`` names neurons, by path."""
    inputs, *neurons = populations(model, x, passing)
    hidden = neurons[:-1]
    counts = [
        ("inputs", inputs.size, chip.inputs),
        ("hidden neurons", sum(each.size for each in hidden), chip.hidden),
        ("outputs", neurons[-1].size, chip.outputs),
    ]
    if hidden:
        counts += [
            ("hidden neurons behind the inputs", hidden[0].size, chip.border),
            ("hidden neurons before the outputs", hidden[-1].size, chip.border),
        ]
    found = [
        f"{number} {what}, {chip.name} has {most}"
        for what, number, most in counts
        if most is not None and number > most
    ]
    for each in neurons:
        label = labels.get(each.path, each.path)
        for what, number, most in (
            ("into a neuron", each.fan_in, chip.fan_in),
            ("out of one", each.fan_out, chip.fan_out),
        ):
            if most is not None and number > most:
                found.append(f"{label}: {number} connections {what}, {chip.name} has {most}")
    return found


def populations(
    model: nn.Module, x: Tensor, passing: tuple[type[nn.Module], ...]
) -> list[Population]:
    counter = _Counter(passing)
    spikes = counter.sources
    with torch.enable_grad():
        counter.run(model, "", counter.spikes("", x))
        last = list(spikes)[-1]
        hidden = [each.sum() for path, each in counter.arriving.items() if path != last]
        leaving: Sequence[Tensor | None] = [None] * len(spikes)
        if hidden:
            total = torch.stack(hidden).sum()
            leaving = torch.autograd.grad(total, list(spikes.values()), allow_unused=True)
    found = []
    for (path, source), out in zip(spikes.items(), leaving, strict=True):
        into = counter.arriving.get(path, torch.zeros(1))
        fan_out = 0 if out is None else int(out.max())
        found.append(Population(path, source.numel(), int(into.max()), fan_out))
    return found


class _Counter:
    def __init__(self, passing: tuple[type[nn.Module], ...]) -> None:
        self.passing = (*passing, Delay, Quantize, nn.Hardtanh)
        self.sources: dict[str, Tensor] = {}  # the spikes of every layer, and of the inputs
        self.arriving: dict[str, Tensor] = {}

    def spikes(self, path: str, like: Tensor) -> Tensor:
        """Return one spike of every neuron of a layer."""
        self.sources[path] = torch.ones_like(like).requires_grad_()
        return self.sources[path]

    def run(self, model: nn.Module, path: str, x: Tensor) -> Tensor:
        graph = read_model(model, torch.zeros_like(x), is_leaf=is_node)

        def call(node: Node, args: Any, kwargs: Any) -> Any:
            if node.module is not None:
                return self.module(node.module, join_path(path, node.path), args[0])
            if node.operation in ("mul", "mul_"):  # a factor of Add
                return args[node.args.index(node.inputs[0])]
            return compute(node, args, kwargs)

        result: Tensor = graph.run(x, call=call)
        return result

    def module(self, module: Any, path: str, x: Tensor) -> Tensor:
        if isinstance(module, self.passing):
            return x
        if isinstance(module, Recurrent):
            inner = join_path(path, "neuron")
            fired = self.spikes(inner, x)
            fed = self.run(module.connection, join_path(path, "connection"), fired)
            self.arriving[inner] = x + fed
            return fired
        if has_step(module):
            self.arriving[path] = x
            return self.spikes(path, x)
        if isinstance(module, nn.MaxPool1d | nn.MaxPool2d):
            kind = SumPool1d if isinstance(module, nn.MaxPool1d) else SumPool2d
            module = kind(module.kernel_size, module.stride, module.padding)
        elif isinstance(module, (*PRODUCTS, DelayedLinear)):
            product = module.linear if isinstance(module, DelayedLinear) else module
            connected = (product.weight != 0).to(x)
            convolve = product.product if isinstance(product, Product) else F.linear
            return convolve(x, connected)
        result: Tensor = module(x)
        return result
