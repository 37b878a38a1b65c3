"""``Recurrent``: feed the output of neurons back to their input, and ``Populations`` of them.

Everything inside a ``Recurrent`` runs step by step, also where the model runs by layer; a single
neuron layer with a linear connection runs in one compiled loop.
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
    RecurrentCall,
    run_sparse_events,
    run_sparse_recurrence,
)
from tracetorch.fuse.runtime.sparse_segments import Rows
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.delay import DelayedLinear, PastLayer
from tracetorch.snn.event_inputs import EventInput, Source, Span, check_sources, rows_of
from tracetorch.snn.memory import checked_shape
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.passes import current_pass, in_one_commit, states_of
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

    outputs: Tensor | None  # of the neurons that were named, ``[steps, batch, k]``
    counts: Tensor | None  # spikes in each bin, ``[bins, batch, num_neurons]``
    events: Tensor | None  # all spikes, ``[n, 3]``: step, sample, neuron


class Populations(TTModule):
    """Neurons of several kinds side by side (populations), each over its part of the neurons.

    ::

        output[..., of a population] = its neurons(x[..., of a population])

    Neurons are numbered population by population, as by :func:`population_edges`. In a
    :class:`Recurrent` they run step by step; one layer with parameters per neuron is one loop.

    Args:
        **neurons: layers of neurons in the last dimension, attributes of their names, in order.

    Shape:
        Input and output ``[..., num_neurons]``, the sum of their numbers.

    Raises:
        TypeError, ValueError: one is no neuron layer, has its neurons in another dimension or takes
            several inputs; a name is taken; the input has another number of neurons.

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
            _check_one_input("Populations", layer)
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


class Recurrent(SequenceLayer):
    """Feed the previous output of neurons back into their input, through a ``connection``.

    ::

        output = neuron(x + connection(prev_output)),  prev_output = output

    ``prev_output`` is a state, zero at the first step, through the connection then too: a bias
    acts. It runs step by step; with an ``nn.Linear``, a :class:`DelayedLinear` or a
    :class:`SparseLinear` as connection in one compiled loop on the CPU, with the last by events
    where outputs are 0 or 1: gradients visit the edges of neurons that fired or lie within the
    ``support`` of their surrogate, all edges where it has none.

    Args:
        neuron: any neuron layer; or, step by step, any module that holds neuron layers, such as
            :class:`Populations` or ``nn.Sequential(LIF(64), nn.Linear(64, 16), AdLIF(16))``.
        connection: any module that makes of the output what is added to the input: of a neuron
            layer ``nn.Linear(n, n)``, ``nn.Conv2d(c, c, 3, padding=1)``.
        shape: that of one sample of the output, a number for one dimension, features or channels
            first. Left out of a neuron layer, and of an ``nn.Sequential`` that ends in one, whose
            output is then as large as its input in all other dimensions.

    Shape:
        Input and output as those of ``neuron``.

    Raises:
        TypeError, ValueError: ``neuron`` holds no neuron layer; the shape of the output is not
            known; the connection does not give that of the input; or as the neuron.

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
    # any modules: what their attributes are is not known
    neuron: Any
    connection: Any
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
        _check_one_input("Recurrent", neuron)
        if not isinstance(connection, nn.Module):
            raise TypeError(f"connection must be an nn.Module, got {type(connection).__name__}.")
        sizes = None if shape is None else checked_shape("the output", shape)
        if isinstance(neuron, SequenceLayer) and shape is not None:
            raise ValueError(
                f"the output of {type(neuron).__name__} has the shape of its input: leave "
                f"shape={shape!r} out."
            )
        last = neuron if isinstance(neuron, SequenceLayer) else _last_of(neuron)
        if sizes is not None:
            super().__init__(sizes[0], -len(sizes))
        elif last is not None:
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
        return not isinstance(self._modules["neuron"], SequenceLayer)  # uncalled __getattr__

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step; all layers inside go on, or none."""
        return in_one_commit(self._step, x)

    def _step(self, x: Tensor) -> Tensor:
        dtype = self._check_input(x)
        previous = cast(Tensor, self._states_for(x, dtype)[0])
        feedback: Tensor = self.connection(previous.to(x.dtype))
        if feedback.shape != x.shape:
            whose = "gives the input's" if self.holds_population else "keeps the"
            raise ValueError(
                f"{self._label()} needs a connection that {whose} shape {list(x.shape)}, got "
                f"{list(feedback.shape)}."
            )
        output: Tensor = self.neuron(x + feedback)
        if self.holds_population and getattr(output, "shape", None) != previous.shape:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"{self._label()} needs an output of shape {list(previous.shape)} from "
                f"{type(self.neuron).__name__} to feed it back, got {got}. Say what one sample "
                "of it is by Recurrent(..., shape=...)."
            )
        self.prev_output = output.to(dtype, copy=True)
        return output

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
        """Run all of ``x`` ``[T, ...]``, in one loop or step by step; ``record`` the state."""
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
        if isinstance(self.connection, SparseLinear):
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
            self.connection.keep_inputs(torch.cat([first, outputs])[-len(first) : -1])
        self.prev_output = last
        states_of(self.neuron).update(zip(self.neuron.cell.active, ends, strict=True))

    def _loop(self, x: Tensor) -> RecurrentCall | None:
        """Return what a compiled loop over inputs like ``x`` reads; ``None``: there is none."""
        connection, neuron, count = self.connection, self.neuron, self.num_neurons
        linear = self._linear(x)
        if linear is None:
            return None
        dtype = self._check_input(x, sequence=True)
        if isinstance(linear, SparseLinear):
            weight = linear.edge_weight(dtype)
            sizes = torch.Size((linear.out_features, linear.in_features))
        else:
            weight, sizes = linear.weight, linear.weight.shape
        bias = linear.bias
        given = [tensor for tensor in (x, weight, bias) if tensor is not None]
        if (
            self.dim not in (-1, x.ndim - 2)
            or x.numel() == 0
            or x.shape[-1] != count
            or sizes != (count, count)
            or any((tensor.dtype, tensor.device) != (dtype, x.device) for tensor in given)
        ):
            return None
        first = cast(Tensor, self._states_for(x, dtype, sequence=True)[0]).unsqueeze(0)
        if linear is not connection or (isinstance(linear, SparseLinear) and linear.max_delay):
            connection._check_input(x, sequence=True)
            (past,) = connection._states_for(x, dtype, sequence=True)
            first = torch.cat([past.movedim(-1, 0), first])
        if linear is not connection:
            weight = connection.kernel_of(dtype)
        neuron._check_input(x, sequence=True)
        states = neuron._states_for(x, dtype, sequence=True)
        kwargs = neuron.step_kwargs(x.ndim - 1, dtype)
        return RecurrentCall(neuron.cell, states, kwargs, first, weight, bias, linear)

    def _linear(self, x: Tensor) -> nn.Linear | SparseLinear | None:
        """Return the layer of weight and bias, where each module is certain to run its class."""
        neuron, connection = self.neuron, self.connection
        if (
            self.holds_population
            or torch.compiler.is_compiling()
            or type(self) is not Recurrent
            or not vars(self).keys().isdisjoint(_OWN)
            or _code_of(Recurrent) != _CODE
            or not (call_is_forward(connection) and call_is_forward(neuron))
            # the ``step`` of its class
            or type(neuron).forward is not Neuron.forward
            or not has_step(neuron)
            or not isinstance(neuron.step, FunctionType)
            or neuron.cell.runs_by_step
            or not isinstance(x, Tensor)
            or x.is_meta  # a device without autocast, and without kernels
            or torch.is_autocast_enabled(x.device.type)
        ):
            return None
        if isinstance(connection, SparseLinear | DelayedLinear):
            linear = connection if isinstance(connection, SparseLinear) else connection.linear
            return linear if connection.computes_as_its_class else None
        if plain_class(connection) is not nn.Linear or nn.Linear.forward is not _LINEAR_FORWARD:
            return None
        return cast(nn.Linear, connection)

    def run_events(
        self,
        inputs: Source | Sequence[Source],
        steps: int,
        *,
        batch: int = 1,
        neurons: Tensor | None = None,
        count_every: int | None = None,
        events: bool = False,
    ) -> EventRun:
        """Run from events to events, for networks too large for a tensor of all steps and neurons.

        As ``tt.unroll(layer, x)`` with ``x`` zero but for the events, for one layer of neurons
        whose output is 0 or 1 and a :class:`SparseLinear`, on the CPU. Memory: a bit for every step
        and neuron; for a gradient, states of about the root of all steps.

        Args:
            inputs: an :class:`EventInput`, a :class:`PoissonInput`, or several; writing to their
                tensors before the backward pass is an error there.
            steps: how many.
            batch: samples.
            neurons: whose outputs are wanted, integers ``[k]``.
            count_every: steps in a bin of ``counts``; the last bin may be shorter.
            events: whether all spikes are wanted as a list.

        Returns:
            ``outputs`` ``[steps, batch, k]``, ``counts`` ``[bins, batch, num_neurons]`` and
            ``events`` ``[n, 3]``, the step, sample and neuron of each; ``None`` what nobody wants.

        Raises:
            TypeError, ValueError: an argument is of another type or out of range, an event lies
                outside of the run, or there is no compiled loop for these modules.

        Example:
            >>> edges = torch.tensor([[0], [2]])
            >>> layer = Recurrent(LIF(3), SparseLinear(3, 3, edges, weight=2.0, bias=False))
            >>> layer.run_events(EventInput(torch.tensor([[0, 0, 0]]), 1.5), 4, events=True).events
            tensor([[0, 0, 0],
                    [1, 0, 2]])
        """
        sources = list(inputs) if isinstance(inputs, Sequence) else [inputs]
        sizes = check_count("steps", steps), check_count("batch", batch), self.num_neurons
        check_sources(sources, sizes)
        sources = [copy.copy(source) for source in sources]  # the backward pass asks them again
        tensors = [value for source in sources for value in vars(source).values()]
        read = [value.detach() for value in tensors if isinstance(value, Tensor)]
        bins = 0 if count_every is None else check_count("count_every", count_every)
        wanted = torch.zeros(0, dtype=torch.int64)
        if neurons is not None:
            wanted = check_integers("neurons", neurons).long().cpu()
            if wanted.ndim != 1:
                raise ValueError(f"neurons must be [k], got shape {list(wanted.shape)}.")
            for bad in wanted[(wanted < 0) | (wanted >= self.num_neurons)].tolist():
                raise ValueError(f"neurons must be 0 to {self.num_neurons - 1}, got {bad}.")
        weight = getattr(self.connection, "weight", None)
        dtype = weight.dtype if isinstance(weight, Tensor) else torch.get_default_dtype()
        learned = [s for s in sources if isinstance(s, EventInput) and s.is_learned]
        values = torch.cat([s.values().to(dtype) for s in learned]) if learned else None
        places = torch.cat([torch.zeros(0, 3, dtype=torch.int64), *(s.events for s in learned)])

        def given(begin: int, end: int) -> Rows:
            return rows_of(sources, Span(begin, end, *sizes[1:]), dtype)

        lists = check_flag("events", events)
        request = EventRequest(*sizes[:2], given, read, places, wanted, bins, lists)
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
            raise ValueError(
                f"{self._label()} has no compiled loop that runs by events: that takes one neuron "
                f"layer that gives 0 or 1, and here is {type(self.neuron).__name__} (an output "
                "with a sign, or a graded one, is no event), a SparseLinear of finite weights as "
                "connection, modules without hooks or edits, float32 or float64 on the CPU, and "
                "llvmlite. Use tt.unroll(layer, x)."
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


def _last_of(module: nn.Module) -> Any:
    """Return the neurons whose output is that of a chain, if they keep the shape of its input."""
    while type(module) is nn.Sequential and len(module):
        module = module[-1]
    is_last = isinstance(module, SequenceLayer | Populations)
    return module if is_last and not isinstance(module, DelayedLinear | SparseLinear) else None


def _check_one_input(owner: str, neuron: object) -> None:
    """Raise where a neuron takes several inputs, and what holds it has one."""
    if isinstance(neuron, Neuron) and len(neuron._passed_inputs) > 1:
        raise ValueError(
            f"{owner} has one input, and {type(neuron).__name__} takes "
            f"({', '.join(neuron._passed_inputs)}). Write the loop in a module of your own, "
            "or let the neuron hold modules that compute the others."
        )
