"""All-to-all recurrence: a neuron layer whose output returns to its input through any module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from tracetorch.snn.neuron import Neuron
from tracetorch.snn.walk import modules_of

if TYPE_CHECKING:
    from tracetorch.unrolling.recording import Recording


class Recurrent(Neuron):
    """Feed a neuron layer's previous output back into its input, through a ``connection``.

    ::

        output = neuron(x + connection(prev_output)),  prev_output = output

    ``prev_output`` is a state, zero at the first step; it goes through the connection then too, so
    that a bias acts. Over time it runs step by step, for the connection needs one step's output to
    make the next one's input.

    Args:
        neuron: any neuron layer.
        connection: any module that keeps the shape of the neuron's output: ``nn.Linear(n, n)``,
            ``nn.Conv2d(c, c, 3, padding=1)``.

    Shape:
        Input and output as the neuron's.

    Raises:
        TypeError: ``neuron`` is not a neuron layer, or ``connection`` not a module.
        ValueError: the connection changes the shape; or as the neuron.

    Example:
        >>> connection = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(connection.weight)
        >>> layer = Recurrent(LIF(2, beta=0.5), connection)
        >>> [layer(torch.tensor([[1.5, 0.0]])).tolist() for _ in range(2)]
        [[[1.0, 0.0]], [[1.0, 0.0]]]
        >>> layer.neuron.mem.tolist()  # 0.5 * 0.5 + 1.5 + 1 - 1
        [[1.75, 0.0]]
    """

    states: ClassVar[tuple[str, ...]] = ("prev_output",)

    prev_output: Tensor | None

    def __init__(self, neuron: Neuron, connection: nn.Module) -> None:
        if not isinstance(neuron, Neuron):
            raise TypeError(f"neuron must be a neuron layer, got {type(neuron).__name__}.")
        if not isinstance(connection, nn.Module):
            raise TypeError(f"connection must be an nn.Module, got {type(connection).__name__}.")
        super().__init__(neuron.num_neurons, neuron.dim)
        self.neuron = neuron
        self.connection = connection

    def one_step(self, x: Tensor) -> Tensor:
        """One time step."""
        dtype = self.check_input(x)
        previous = cast(Tensor, self.states_for(x, dtype)[0])
        fed = self.connection(previous.to(x.dtype))
        if fed.shape != x.shape:
            raise ValueError(
                f"{self.named()} needs a connection that keeps the shape {list(x.shape)}, got "
                f"{list(fed.shape)}."
            )
        output: Tensor = self.neuron(x + fed)
        self.prev_output = output.to(dtype, copy=True)
        return output

    def sequence(
        self, x: Tensor, record: Sequence[str], recording: Recording
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All of ``x`` ``[T, ...]``, step by step; what is inside is recorded on the way."""
        outputs: list[Tensor] = []
        inner = [m for _, m in modules_of(self) if isinstance(m, Neuron) and m is not self]
        with recording.listening(inner):
            for step in x.unbind(0):
                outputs.append(self.one_step(step))
                recording.after_step(inner)
        stacked = torch.stack(outputs)
        dtype = self.check_input(x, sequence=True)
        return stacked, {name: stacked.to(dtype) for name in record}
