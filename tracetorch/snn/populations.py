"""``Populations``: neurons of several kinds side by side in the last dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracetorch.snn.delay.base import PastLayer
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.sequence_layer import SequenceLayer


class Populations(TTModule):
    """Neurons of several kinds side by side (populations), each over its part of the neurons.

    ::

        output[..., of a population] = its neurons(x[..., of a population])

    Neurons are numbered population by population, as by :func:`population_edges`: so one connection
    is a block matrix of those between all populations. In a :class:`Recurrent` they run step by
    step; populations of one kind, as one layer with parameters per neuron, are one compiled loop.

    Args:
        **neurons: layers of neurons in the last dimension, by name, in their order. Each is an
            attribute of its name.

    Shape:
        Input and output ``[..., num_neurons]``, the sum of their numbers.

    Raises:
        TypeError: one is no neuron layer.
        ValueError: there is none, one has its neurons in another dimension or takes several inputs,
            a name is taken, or the input has another number of neurons.

    Example:
        >>> neurons = Populations(excitatory=LIF(3), inhibitory=LIF(2, pos_threshold=2.0))
        >>> neurons(torch.full((1, 5), 1.5)).tolist(), neurons.sizes
        ([[1.0, 1.0, 1.0, 0.0, 0.0]], (3, 2))
    """

    dim = -1

    def __init__(self, **neurons: SequenceLayer) -> None:
        super().__init__()
        if not neurons:
            raise ValueError("Populations needs neuron layers: Populations(excitatory=LIF(80)).")
        self.names = tuple(neurons)
        for name, layer in neurons.items():
            if not isinstance(layer, SequenceLayer) or isinstance(layer, PastLayer):
                raise TypeError(f"{name} must be a neuron layer, got {type(layer).__name__}.")
            check_one_input("Populations", layer)
            if layer.dim != -1:
                raise ValueError(
                    f"populations are side by side in the last dimension, and {name} has its "
                    f"neurons at dim {layer.dim}. Build it with dim=-1."
                )
            if hasattr(Populations, name) or name in vars(self):  # no property runs
                raise ValueError(f"a module has an attribute {name!r}: take another name.")
            self.add_module(name, layer)

    @property
    def layers(self) -> list[Any]:
        """The neuron layers, in their order."""
        return [self._modules[name] for name in self.names]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons of each population."""
        return tuple(layer.num_neurons for layer in self.layers)

    @property
    def num_neurons(self) -> int:
        """Neurons of all populations."""
        return sum(self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Run all populations."""
        if not isinstance(x, Tensor):
            raise TypeError(f"Populations takes a tensor, got {type(x).__name__}.")
        if x.ndim == 0 or x.shape[-1] != self.num_neurons:
            raise ValueError(
                f"populations of {' + '.join(map(str, self.sizes))} neurons take "
                f"{self.num_neurons} in the last dimension, got shape {list(x.shape)}."
            )
        parts = zip(self.layers, x.split_with_sizes(self.sizes, -1), strict=True)
        return torch.cat([layer(part) for layer, part in parts], -1)


def check_one_input(owner: str, neuron: object) -> None:
    """Raise where a neuron takes several inputs, and what holds it has one."""
    if isinstance(neuron, Neuron) and len(neuron._passed_inputs) > 1:
        raise ValueError(
            f"{owner} has one input, and {type(neuron).__name__} takes "
            f"({', '.join(neuron._passed_inputs)}). Write the loop in a module of your own, "
            "or let the neuron hold modules that compute the others."
        )
