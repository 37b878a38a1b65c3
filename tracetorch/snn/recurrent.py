"""``Recurrent``: feed a neuron layer's output back to its input through any module."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import call_is_forward
from tracetorch.fuse.dispatch.recurrence import run_recurrence
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.delay import DelayedLinear, SynapticDelays
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stateful_layer import running


class Recurrent(SequenceLayer):
    """Feed a neuron layer's previous output back into its input, through a ``connection``.

    ::

        output = neuron(x + connection(prev_output)),  prev_output = output

    ``prev_output`` is a state, zero at the first step; it goes through the connection then too, so
    that a bias acts. Over time it runs step by step, for the connection needs one step's output to
    make the next one's input; with an ``nn.Linear`` or a :class:`DelayedLinear` as connection, in
    one compiled loop that multiplies by events where spikes are few.

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

    def __init__(self, neuron: SequenceLayer, connection: nn.Module) -> None:
        if not isinstance(neuron, SequenceLayer):
            raise TypeError(f"neuron must be a neuron layer, got {type(neuron).__name__}.")
        if len(neuron.passed_inputs) > 1:
            raise ValueError(
                f"Recurrent has one input, and {type(neuron).__name__} takes "
                f"({', '.join(neuron.passed_inputs)}). Write the loop in a module of your own, "
                "or let the neuron hold modules that compute the others."
            )
        if not isinstance(connection, nn.Module):
            raise TypeError(f"connection must be an nn.Module, got {type(connection).__name__}.")
        super().__init__(neuron.num_neurons, neuron.dim)
        self.neuron = neuron
        self.connection = connection

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step."""
        dtype = self.check_input(x)
        previous = cast(Tensor, self.states_for(x, dtype)[0])
        feedback = self.connection(previous.to(x.dtype))
        if feedback.shape != x.shape:
            raise ValueError(
                f"{self.label()} needs a connection that keeps the shape {list(x.shape)}, got "
                f"{list(feedback.shape)}."
            )
        output: Tensor = self.neuron(x + feedback)
        self.prev_output = output.to(dtype, copy=True)
        return output

    def forward_sequence(
        self,
        x: Tensor,
        record: Sequence[str] = (),
        *,
        after_step: Callable[[], None] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all of ``x`` ``[T, ...]``: in one loop where there is one, or else step by step.

        Args:
            x: the inputs ``[T, ...]``.
            record: ``"prev_output"``, where its trajectory is wanted too.
            after_step: called after every step, which makes steps of it.
        """
        stacked = self._run_fused(x) if after_step is None else None
        if stacked is None:
            stacked = self._run_stepped(x, after_step)
        dtype = self.check_input(x, sequence=True)
        return stacked, {name: stacked.to(dtype) for name in record}

    def _run_fused(self, x: Tensor) -> Tensor | None:
        """Run the sequence in one compiled loop; ``None`` where there is none that is as exact."""
        neuron, connection = self.neuron, self.connection
        # Only what is certain to compute what the modules would: each of them its own class's code.
        if (
            torch.compiler.is_compiling()
            or type(self) is not Recurrent
            or (linear := _linear_of(connection)) is None
            or not vars(self).keys().isdisjoint(_OWN)
            or _code_of(Recurrent) != _CODE
            or not call_is_forward(connection)
            or not call_is_forward(neuron)
            or type(neuron).forward is not Neuron.forward
            or not has_step(neuron)
            or not isinstance(neuron.step, FunctionType)
            or neuron.cell.runs_by_step
            or not isinstance(x, Tensor)
            or x.is_meta  # a device without autocast, and without kernels
            or torch.is_autocast_enabled(x.device.type)
        ):
            return None
        weight: Tensor = linear.weight
        bias: Tensor | None = linear.bias
        dtype = self.check_input(x, sequence=True)
        if (
            self.dim not in (-1, x.ndim - 2)
            or x.numel() == 0
            or weight.shape != (self.num_neurons, self.num_neurons)
            or any(tensor.dtype != dtype for tensor in (x, weight))
            or (bias is not None and bias.dtype != dtype)
            or any(t.device != x.device for t in (weight, bias) if t is not None)
        ):
            return None
        first = cast(Tensor, self.states_for(x, dtype, sequence=True)[0]).unsqueeze(0)
        if isinstance(connection, DelayedLinear):
            connection.check_input(x, sequence=True)
            past = cast(Tensor, connection.states_for(x, dtype, sequence=True)[0])
            first = torch.cat([past.movedim(-1, 0), first])
            weight = connection.kernel_of(dtype)
        neuron.check_input(x, sequence=True)
        states = neuron.states_for(x, dtype, sequence=True)
        kwargs = neuron.step_kwargs(x.ndim - 1, dtype)
        results = run_recurrence(neuron.cell, x, first, weight, bias, states, kwargs)
        if results is None:
            return None
        output, last, ends = results
        if isinstance(connection, DelayedLinear):
            before = output[:-1]
            is_long = len(before) >= connection.max_delay
            connection.keep_inputs(before if is_long else torch.cat([first, before]))
        self.prev_output = last
        for name, end in zip(neuron.cell.active, ends, strict=True):
            setattr(neuron, name, end)
        return output

    def _run_stepped(self, x: Tensor, after_step: Callable[[], None] | None) -> Tensor:
        """Run the sequence step by step."""
        outputs: list[Tensor] = []
        # what is inside runs step by step, also within a pass by layer
        within = not torch.compiler.is_compiling() and running.by_layer
        if within:
            running.by_layer = False
        delays = [m for m in self.connection.modules() if isinstance(m, SynapticDelays)]
        try:
            for each in delays:
                each.hold_kernel(self.check_input(x, sequence=True))
            for step in x.unbind(0):
                outputs.append(self.forward_step(step))
                if after_step is not None:
                    after_step()
        finally:
            for each in delays:
                each.hold_kernel(None)
            if within:
                running.by_layer = True
        return torch.stack(outputs)


# what a step calls, and a user may have set on a layer or patched in the class
_OWN = ("forward_step", "check_input", "states_for")
_code_of = operator.attrgetter(*_OWN)
_CODE = _code_of(Recurrent)
_LINEAR_FORWARD = nn.Linear.forward


def _linear_of(connection: nn.Module) -> nn.Linear | None:
    """Return the layer of weight and bias, where a compiled loop computes what a call would."""
    if isinstance(connection, DelayedLinear):
        return connection.linear if connection.computes_as_its_class else None
    if plain_class(connection) is not nn.Linear or nn.Linear.forward is not _LINEAR_FORWARD:
        return None
    return cast(nn.Linear, connection)
