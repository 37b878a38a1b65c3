"""``Recurrent``: feed the output of neurons back to their input through any module.

Populations. What is fed back may be any module of neuron layers: several in a chain, several types,
a user's own in which they feed each other. Everything inside a ``Recurrent`` runs step by step,
also where the model runs by layer; a single neuron layer with a linear connection runs in one
compiled loop. The state ``prev_output`` is zero before the first step, when nobody has seen an
output yet: its shape follows from a neuron layer, or from ``shape``, and is compared with the first
output.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from types import FunctionType
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_flag, check_integers
from tracetorch.core.hooks import call_is_forward
from tracetorch.core.walk import named_modules
from tracetorch.fuse.dispatch.recurrence import run_recurrence
from tracetorch.fuse.dispatch.sparse_recurrence import (
    EventRequest,
    Recurrence,
    run_sparse_events,
    run_sparse_recurrence,
)
from tracetorch.fuse.runtime.sparse_segments import Edges, Rows
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.delay import DelayedLinear
from tracetorch.snn.event_inputs import EventInput, EventSource, PoissonInput, Span, rows_of
from tracetorch.snn.memory import checked_shape
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.passes import current_pass, in_one_commit, states_of
from tracetorch.snn.populations import Populations, check_one_input
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.sparse_linear import SparseLinear


class EventRun(NamedTuple):
    """Results of a run by events: see :meth:`Recurrent.run_events`.

    Example:
        >>> edges = torch.tensor([[0], [1]])
        >>> layer = Recurrent(LIF(2), SparseLinear(2, 2, edges, weight=2.0, bias=False))
        >>> run = layer.run_events(EventInput(torch.tensor([[0, 0, 0]]), 1.5), 3, count_every=3)
        >>> run.counts.tolist(), run.events
        ([[[1.0, 1.0]]], None)
    """

    outputs: Tensor | None
    """Outputs of the neurons that were named, ``[steps, batch, k]``."""
    counts: Tensor | None
    """Spikes in each bin, ``[bins, batch, num_neurons]``."""
    events: Tensor | None
    """All spikes, ``[n, 3]``: step, sample, neuron."""


class Recurrent(SequenceLayer):
    """Feed the previous output of neurons back into their input, through a ``connection``.

    ::

        output = neuron(x + connection(prev_output)),  prev_output = output

    ``prev_output`` is a state, zero at the first step; it goes through the connection then too, so
    that a bias acts. Over time it runs step by step, for the connection needs one step's output to
    make the next one's input; with an ``nn.Linear`` or a :class:`DelayedLinear` as connection, in
    one compiled loop that multiplies by events where spikes are few, on a GPU densely and up to 256
    neurons; and with a :class:`SparseLinear` as well, on the CPU by events in both directions,
    where outputs are 0 or 1. Its gradients visit the edges of those that fired, and of those within
    the ``support`` of their surrogate: all edges in every step where it has none.
    :meth:`run_events` is for networks whose inputs and outputs would not fit into memory as
    tensors.

    ``neuron`` may be several populations, step by step: :class:`Populations`, whose neurons are
    side by side, or any module that holds neuron layers, as
    ``nn.Sequential(nn.Linear(8, 64), LIF(64), nn.Linear(64, 16), AdLIF(16))``.

    Args:
        neuron: any neuron layer, or any module of neuron layers.
        connection: any module that makes of the output what is added to the input: of a neuron
            layer ``nn.Linear(n, n)``, ``nn.Conv2d(c, c, 3, padding=1)``.
        shape: that of one sample of the output, a number for one dimension, features or channels
            first. Left out of a neuron layer, and of an ``nn.Sequential`` that ends in one, whose
            output is then as large as its input in all other dimensions.

    Shape:
        Input and output as those of ``neuron``.

    Raises:
        TypeError: ``neuron`` holds no neuron layer, ``connection`` is not a module, or ``shape`` is
            not made of integers.
        ValueError: the shape of the output is not known; the connection does not give the shape of
            the input, or ``neuron`` another one than ``shape``; or as the neuron.

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
    # a neuron layer, or any module: what its attributes are is not known
    neuron: Any
    _output_shape: tuple[int, ...] | None = None

    def __init__(
        self, neuron: nn.Module, connection: nn.Module, shape: int | Sequence[int] | None = None
    ) -> None:
        if not isinstance(neuron, nn.Module) or not any(
            isinstance(each, SequenceLayer) for _, each in named_modules(neuron)
        ):
            raise TypeError(
                f"neuron must be a neuron layer, got {type(neuron).__name__}, or a module that "
                "holds neuron layers."
            )
        check_one_input("Recurrent", neuron)
        if not isinstance(connection, nn.Module):
            raise TypeError(f"connection must be an nn.Module, got {type(connection).__name__}.")
        sizes = None if shape is None else checked_shape("the output", shape)
        if isinstance(neuron, SequenceLayer):
            if shape is not None:
                raise ValueError(
                    f"the output of {type(neuron).__name__} has the shape of its input: leave "
                    f"shape={shape!r} out."
                )
            super().__init__(neuron.num_neurons, neuron.dim)
        elif sizes is not None:
            super().__init__(sizes[0], -len(sizes))
        elif (last := _last_of(neuron)) is not None:
            super().__init__(last.num_neurons, last.dim)
        else:
            raise ValueError(
                f"the shape of the output of {type(neuron).__name__} is not known before its first "
                "step: give that of one sample, Recurrent(..., shape=16) or shape=(16, 7, 7)."
            )
        self._output_shape = sizes
        self._batch_leads = sizes is not None
        self.neuron = neuron
        self.connection = connection

    @property
    def holds_population(self) -> bool:
        """Whether the output of more than a neuron layer is fed back."""
        return not isinstance(self.neuron, SequenceLayer)

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step; all layers inside go on, or none."""
        return in_one_commit(self._step, x)

    def _step(self, x: Tensor) -> Tensor:
        dtype = self._check_input(x)
        previous = cast(Tensor, self._states_for(x, dtype)[0])
        output: Tensor = self.neuron(x + self._feedback(x, previous))
        if self.holds_population and (
            not isinstance(output, Tensor) or output.shape != previous.shape
        ):
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"{self._label()} needs an output of shape {list(previous.shape)} from "
                f"{type(self.neuron).__name__} to feed it back, got {got}. Say what one sample "
                "of it is by Recurrent(..., shape=...)."
            )
        self.prev_output = output.to(dtype, copy=True)
        return output

    def _feedback(self, x: Tensor, previous: Tensor) -> Tensor:
        feedback: Tensor = self.connection(previous.to(x.dtype))
        if feedback.shape != x.shape:
            whose = "gives the input's" if self.holds_population else "keeps the"
            raise ValueError(
                f"{self._label()} needs a connection that {whose} shape {list(x.shape)}, got "
                f"{list(feedback.shape)}."
            )
        return feedback

    def _check_features(self, x: Tensor, sequence: bool) -> None:
        """Raise where an input does not fit; what is inside says so of a population."""
        if not self.holds_population:
            super()._check_features(x, sequence)
        elif x.ndim <= sequence:
            raise ValueError(f"{self._label()} takes a batch, got shape {list(x.shape)}.")

    def _state_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of the output for an input of one step of some shape."""
        if not self.holds_population:
            return shape
        if self._output_shape is not None:
            return torch.Size((shape[0], *self._output_shape))
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(
                f"{self._label()} has its neurons at dim {self.dim}, the input has only "
                f"{len(shape)} dimensions, shape {list(shape)}."
            )
        sizes = list(shape)
        sizes[self.dim] = self.num_neurons
        return torch.Size(sizes)

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all of ``x`` ``[T, ...]``: in one loop where there is one, or else step by step.

        Args:
            x: the inputs ``[T, ...]``.
            record: ``"prev_output"``, where its trajectory is wanted too.
        """
        stacked = in_one_commit(self._run, x)
        dtype = self._check_input(x, sequence=True)
        return stacked, {name: stacked.to(dtype) for name in record}

    def _run(self, x: Tensor) -> Tensor:
        run = current_pass()
        records = run is not None and run.recorder is not None and run.recorder.wants_inside(self)
        stacked = None if records else self._run_fused(x)
        return self._run_stepped(x) if stacked is None else stacked

    def _run_fused(self, x: Tensor) -> Tensor | None:
        """Run the sequence in one compiled loop; ``None`` where there is none that is as exact."""
        loop = self._loop(x)
        if loop is None:
            return None
        connection: Any = self.connection
        if isinstance(connection, SparseLinear):
            results = run_sparse_recurrence(loop, x)
        else:
            results = run_recurrence(
                loop.cell, x, loop.first, loop.weight, loop.bias, loop.states, loop.kwargs
            )
        if results is None:
            return None
        output, last, ends = results
        self._keep(loop.first, output[-len(loop.first) :], last, ends)
        return output

    def _keep(self, first: Tensor, outputs: Tensor, last: Tensor, ends: Sequence[Tensor]) -> None:
        """Set the states to those behind a run, whose last outputs are ``outputs``."""
        if len(first) > 1:
            connection: Any = self.connection
            connection.keep_inputs(torch.cat([first, outputs])[-len(first) : -1])
        self.prev_output = last
        states_of(self.neuron).update(zip(self.neuron.cell.active, ends, strict=True))

    def _loop(self, x: Tensor) -> Recurrence | None:
        """Return what a compiled loop over inputs like ``x`` reads; ``None``: there is none."""
        connection, neuron = self.connection, self.neuron
        linear = self._linear(x)
        if linear is None:
            return None
        dtype = self._check_input(x, sequence=True)
        is_sparse = isinstance(linear, SparseLinear)
        weight = linear.edge_weight(dtype) if isinstance(linear, SparseLinear) else linear.weight
        bias: Tensor | None = linear.bias
        sizes = (linear.out_features, linear.in_features) if is_sparse else tuple(weight.shape)
        if (
            self.dim not in (-1, x.ndim - 2)
            or x.numel() == 0
            or x.shape[-1] != self.num_neurons
            or sizes != (self.num_neurons, self.num_neurons)
            or any(tensor.dtype != dtype for tensor in (x, weight))
            or (bias is not None and bias.dtype != dtype)
            or any(t.device != x.device for t in (weight, bias) if t is not None)
        ):
            return None
        first = cast(Tensor, self._states_for(x, dtype, sequence=True)[0]).unsqueeze(0)
        if first.shape[1:] != x.shape[1:]:  # of shape=, which a step says does not fit
            return None
        if isinstance(connection, DelayedLinear | SparseLinear) and connection.max_delay:
            connection._check_input(x, sequence=True)
            past = cast(Tensor, connection._states_for(x, dtype, sequence=True)[0])
            first = torch.cat([past.movedim(-1, 0), first])
        if isinstance(connection, DelayedLinear):
            weight = connection.kernel_of(dtype)
        neuron._check_input(x, sequence=True)
        states = neuron._states_for(x, dtype, sequence=True)
        kwargs = neuron.step_kwargs(x.ndim - 1, dtype)

        def edges(chunks: tuple[int, int]) -> Edges:
            return cast(SparseLinear, linear).edges_by_chunk(chunks)

        return Recurrence(neuron.cell, states, kwargs, first, weight, bias, edges)

    def _linear(self, x: Tensor) -> nn.Linear | SparseLinear | None:
        """Return the layer of weight and bias, where each module is certain to run its class."""
        neuron, connection = self.neuron, self.connection
        if (
            self.holds_population
            or torch.compiler.is_compiling()
            or type(self) is not Recurrent
            or not vars(self).keys().isdisjoint(_OWN)
            or _code_of(Recurrent) != _CODE
            or not call_is_forward(connection)
            or not _runs_its_step(neuron)
            or not isinstance(x, Tensor)
            or x.is_meta  # a device without autocast, and without kernels
            or torch.is_autocast_enabled(x.device.type)
        ):
            return None
        return _linear_of(connection)

    def run_events(
        self,
        inputs: EventSource | Sequence[EventSource],
        steps: int,
        *,
        batch: int = 1,
        neurons: Tensor | None = None,
        count_every: int | None = None,
        events: bool = False,
    ) -> EventRun:
        """Run from events to events, for networks too large for a tensor of all steps and neurons.

        As ``tt.unroll(layer, x)`` with ``x`` zero but for the events: states go on and are left
        behind as there, and outputs and counts are part of the graph. Only neurons whose output is
        0 or 1, in a loop along a :class:`SparseLinear`, on the CPU; an ``nn.Linear`` behind the
        outputs of some neurons or their counts reads out what they say. Gradients go to the values
        of an :class:`EventInput` too.

        Memory: a bit for every step and neuron, and, where there is a gradient, the states of about
        as many steps as the root of all.

        Args:
            inputs: what arrives: an :class:`EventInput`, a :class:`PoissonInput`, or several, as
                they are now; writing to their tensors before the backward pass is an error there.
            steps: how many.
            batch: samples.
            neurons: whose outputs are wanted, integers ``[k]``.
            count_every: count the spikes of every neuron in bins of so many steps, of which the
                last one may be shorter; a rate is a count over the length of its bin.
            events: whether all spikes are wanted as a list.

        Returns:
            ``outputs`` ``[steps, batch, k]``, ``counts`` ``[bins, batch, num_neurons]`` and
            ``events`` ``[n, 3]``, the step, sample and neuron of each; ``None`` what nobody wants.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: an argument is out of range, an event lies outside of the run, or there is
                no compiled loop for these modules.

        Example:
            >>> edges = torch.tensor([[0], [2]])
            >>> layer = Recurrent(LIF(3), SparseLinear(3, 3, edges, weight=2.0, bias=False))
            >>> layer.run_events(EventInput(torch.tensor([[0, 0, 0]]), 1.5), 4, events=True).events
            tensor([[0, 0, 0],
                    [1, 0, 2]])
        """
        sources = list(inputs) if isinstance(inputs, Sequence) else [inputs]
        sizes = check_count("steps", steps), check_count("batch", batch), self.num_neurons
        for source in sources:
            if not hasattr(source, "between"):
                raise TypeError(
                    f"inputs must be an EventInput, a PoissonInput or a list of them, got "
                    f"{type(source).__name__}."
                )
            source.check(*sizes)
        sources, read = _as_they_are(sources)
        wanted = _checked_neurons(neurons, self.num_neurons)
        bins = 0 if count_every is None else check_count("count_every", count_every)
        dtype = _dtype_of(self.connection)

        learned = [s for s in sources if isinstance(s, EventInput) and s.is_learned]
        values = torch.cat([s.values().to(dtype) for s in learned]) if learned else None
        places = [torch.zeros(0, 3, dtype=torch.int64), *(s.events for s in learned)]

        def given(begin: int, end: int) -> Rows:
            return rows_of(sources, Span(begin, end, *sizes[1:]), dtype)

        lists = check_flag("events", events)
        request = EventRequest(*sizes[:2], given, read, torch.cat(places), wanted, bins, lists)
        found = in_one_commit(self._run_events, request, values, dtype)
        named = neurons is not None, count_every is not None, events
        return EventRun(*(each if is_ else None for each, is_ in zip(found, named, strict=True)))

    def _run_events(
        self, request: EventRequest, values: Tensor | None, dtype: torch.dtype
    ) -> list[Tensor]:
        # a shape without memory
        x = torch.zeros((), dtype=dtype).expand(request.steps, request.samples, self.num_neurons)
        loop = self._loop(x) if isinstance(self.connection, SparseLinear) else None
        found = None if loop is None else run_sparse_events(loop, request, values)
        if loop is None or found is None:
            name = type(self.neuron).__name__
            raise ValueError(
                f"{self._label()} has no compiled loop that runs by events: that takes one neuron "
                f"layer that gives 0 or 1, and here is {name} (an output with a sign, or a graded "
                "one, is no event), a SparseLinear of finite weights as connection, modules "
                "without hooks or edits, float32 or float64 on the CPU, and llvmlite. Use "
                "tt.unroll(layer, x)."
            )
        results, last, ends = found
        self._keep(loop.first, last, last[-1], ends)
        return results

    def _run_stepped(self, x: Tensor) -> Tensor:
        """Run the sequence step by step."""
        dtype = self._check_input(x, sequence=True)
        run = current_pass()
        if run is not None:
            for module in self.modules():  # what is the same in all steps, which it finds there
                if isinstance(module, DelayedLinear):
                    run.weights[id(module)] = module.kernel_of(dtype)
                elif isinstance(module, SparseLinear):
                    run.weights[id(module)] = module.edge_weight(dtype)
        outputs: list[Tensor] = []
        for step in x.unbind(0):
            outputs.append(self._step(step))
            if run is not None and run.recorder is not None:
                run.recorder.after_step(self)
        return torch.stack(outputs)


# what a step calls, and a user may have set on a layer or patched in the class
_OWN = ("forward_step", "_check_input", "_states_for")
_code_of = operator.attrgetter(*_OWN)
_CODE = _code_of(Recurrent)
_LINEAR_FORWARD = nn.Linear.forward


def _runs_its_step(neuron: Any) -> bool:
    """Whether a call of a layer is certain to run the ``step`` of its class."""
    return (
        call_is_forward(neuron)
        and type(neuron).forward is Neuron.forward
        and has_step(neuron)
        and isinstance(neuron.step, FunctionType)
        and not neuron.cell.runs_by_step
    )


def _dtype_of(connection: nn.Module) -> torch.dtype:
    """Return the dtype of the arithmetic of a run without a tensor as its input."""
    weight = getattr(connection, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) else torch.get_default_dtype()


def _as_they_are(sources: Sequence[EventSource]) -> tuple[list[EventSource], list[Tensor]]:
    """Return copies of sources, which the backward pass asks again, and the tensors of these."""
    own = EventInput | PoissonInput
    copies = [copy.copy(source) if isinstance(source, own) else source for source in sources]
    values = [value for each in copies if isinstance(each, own) for value in vars(each).values()]
    return copies, [value.detach() for value in values if isinstance(value, Tensor)]


def _checked_neurons(neurons: object, count: int) -> Tensor:
    """Return the numbers of neurons that are there."""
    if neurons is None:
        return torch.zeros(0, dtype=torch.int64)
    wanted = check_integers("neurons", neurons).long().cpu()
    if wanted.ndim != 1:
        raise ValueError(f"neurons must be [k], got shape {list(wanted.shape)}.")
    if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < count:
        bad = int(wanted.min()) if int(wanted.min()) < 0 else int(wanted.max())
        raise ValueError(f"neurons must be 0 to {count - 1}, got {bad}.")
    return wanted


def _last_of(module: nn.Module) -> Any:
    """Return the neuron layer whose output is that of a chain, if it keeps the shape of its input.

    Linear layers with delays, or of edges, are no such layers: they may give more or less than they
    are given.
    """
    while type(module) is nn.Sequential and len(module):
        module = module[-1]
    is_last = isinstance(module, SequenceLayer | Populations)
    return module if is_last and not isinstance(module, DelayedLinear | SparseLinear) else None


def _linear_of(connection: nn.Module) -> nn.Linear | SparseLinear | None:
    """Return the layer of weight and bias, where a compiled loop computes what a call would."""
    if isinstance(connection, SparseLinear):
        return connection if connection.computes_as_its_class else None
    if isinstance(connection, DelayedLinear):
        return connection.linear if connection.computes_as_its_class else None
    if plain_class(connection) is not nn.Linear or nn.Linear.forward is not _LINEAR_FORWARD:
        return None
    return cast(nn.Linear, connection)
