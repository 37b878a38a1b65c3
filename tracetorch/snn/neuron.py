"""``Neuron``: a layer with a pure ``step``, the parameters it declares, and one call per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn

from tracetorch.cell import METHODS, Cell, StepDefinition
from tracetorch.core.torch_private import (
    NO_BACKWARD,
    constant_in_compile,
    current_backward,
    functorch,
    observed_by,
)
from tracetorch.fuse.dispatch.prepared import PreparedCalls, run_sequence
from tracetorch.fuse.step_results import check_step_results, shares_memory
from tracetorch.snn.passes import Restarts, ambient, in_one_commit, states_of
from tracetorch.snn.sequence_layer import ARITHMETIC_DTYPE, SequenceLayer
from tracetorch.snn.signatures import check_step

_MOST_CELLS = 4  # that a layer keeps, for options that come and go
# of the dtypes in which an output is narrower than the arithmetic
_SIGNIFICANT_BITS = {torch.bfloat16: 8, torch.float16: 11}


class Neuron(SequenceLayer):
    """A layer of neurons that all follow one ``step``.

    A subclass lists its ``states``, declares its parameters in ``__init__`` with :meth:`decay`,
    :meth:`threshold`, :meth:`weight`, :meth:`gate` and :meth:`option`, states that start from other
    values than zero with :meth:`state`, and writes a static ``step`` in pointwise PyTorch::

        step(x, <states>, *, <parameters and options by name>) -> (output, <states>)

    A neuron with several inputs lists them all, ``inputs = ("x", "modulator")``; ``step`` takes
    them in this order before the states, and so does a call, ``layer(x, modulator)`` or
    ``layer(x, modulator=modulator)``. They broadcast to the shape of ``x``. An input of whose name
    the layer holds a module is what that computes from ``x``, such as a :class:`Noise`.

    A parameter reads as it is used, ``layer.beta``, and is set by assignment, ``layer.beta = 0.5``:
    what is written into the value in place is lost. States are ``None`` until the first input, then
    tensors shaped like it, in its dtype, float32 for bfloat16 and float16; they follow ``.to()``,
    stay out of the ``state_dict``, and are copied detached.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: that dimension in one step: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.

    Shape:
        Input and output have one shape, any that has ``num_neurons`` at ``dim``.

    Raises:
        TypeError: an argument is of another type; the input is no floating-point tensor.
        ValueError: an argument is out of range; ``step`` does not take the states by their names
            and in their order; the input has another size at ``dim``, or does not fit the states.

    Example:
        >>> class AdaptiveLIF(Neuron):
        ...     states = ("mem", "fatigue")
        ...
        ...     def __init__(self, num_neurons, dim=-1):
        ...         super().__init__(num_neurons, dim)
        ...         self.decay("beta", 0.9)
        ...         self.threshold("base", 1.0)
        ...
        ...     @staticmethod
        ...     def step(x, mem, fatigue, *, beta, base, spike):
        ...         mem = beta * mem + x
        ...         fired = spike(mem - base - fatigue)
        ...         return fired, mem - fired * base, 0.95 * fatigue + 0.1 * fired
        >>> layer = AdaptiveLIF(2)
        >>> layer(torch.tensor([[0.5, 1.5]])).tolist()
        [[0.0, 1.0]]
        >>> layer.fatigue.tolist()
        [[0.0, 0.10000000149011612]]
    """

    reset_states: ClassVar[tuple[str, ...]]
    """The states that a spike resets, which e-prop leaves out; not given: found from ``step``."""
    step: ClassVar[Callable[..., tuple[Any, ...]]]

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self._prepared = PreparedCalls()
        check_step(self)

    # Reading

    @property
    def cell(self) -> Cell:
        """Describe the layer as a frozen value; where the layer has changed it is another one."""
        cell = self._declared.cell
        if cell is not None and cell.is_current(type(self)):
            return cell
        if getattr(self, "step", None) is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no step. Write it as a static method, in PyTorch: "
                "step(x, <states>, *, <parameters and options>) -> (output, <states>)."
            )
        try:
            return self._described()
        except AttributeError as error:  # which would seem to be about the property itself
            raise RuntimeError(f"{type(self).__name__} cannot be described: {error}") from error

    def _described(self) -> Cell:
        """Return the cell of what the layer is now: an earlier one, where it is that again."""
        declared = self._declared
        definition = declared.constraints, declared.options
        cell = Cell.of(self, declared.call, declared.arguments, *definition, _METHODS)
        for known in declared.cells:
            if known.equals(cell):
                cell = known
                break
        others = [each for each in declared.cells if each is not cell]
        declared.cells = [cell, *others][:_MOST_CELLS]
        declared.cell = cell
        return cell

    def _signature(self) -> StepDefinition:
        """Return what a step reads of the cell, in a form that ``torch.compile`` can follow."""
        # Dynamo does not guard on a name that the class lacks so far: so all names are read here
        _ = [*type(self).__dict__]  # Dynamo of 2.12 can unpack them only
        for method in (*METHODS, "step"):
            _ = callable(getattr(self, method))
        name, active = type(self).__name__, self.active_states
        return StepDefinition(name, self.step, self.inputs, self.states, active)

    @property
    def _passed_inputs(self) -> tuple[str, ...]:
        modules = self._modules
        return tuple([n for n in self.inputs if n == "x" or modules.get(n) is None])

    def __getstate__(self) -> dict[str, Any]:
        # compiled steps belong to this process and this layer
        return {**super().__getstate__(), "_prepared": PreparedCalls()}

    # Calling

    def _kwargs_for(self, x: Tensor, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
        kwargs = self.step_kwargs(ndim, dtype)
        if x.dtype is not dtype and "output_bits" in kwargs:
            kwargs["output_bits"] = _SIGNIFICANT_BITS[x.dtype]
        return kwargs

    def forward_step(self, x: Tensor, *further: Tensor) -> Tensor:
        """Run one time step; compiled where there is no graph to build."""
        if torch.compiler.is_compiling():
            return self._step_checked(self._signature(), x, further)
        run, cell = ambient.current, self._declared.cell
        if cell is None or not cell.is_current(type(self)):
            cell = self.cell
        now = current_backward()
        if (
            further
            or len(cell.inputs) > 1
            or observed_by((x,)) is not None
            or (
                now not in (NO_BACKWARD, self._zeroed_in_backward)
                if run is None
                else now != run.backward
            )
        ):
            return self._step_checked(cell, x, further)
        current = self.__dict__ if run is None else run.states_of(self)
        if not torch.is_grad_enabled():
            found = self._prepared.run(self, cell, x, current, False)
            if found is not None:
                current.update(found[1])
                return found[0]
        shape, dtype, states = x.shape, x.dtype, []
        fits = (
            cell.has_plain_states
            and not cell.runs_by_step
            and dtype is ARITHMETIC_DTYPE.get(dtype)
            and -len(shape) <= cell.dim < len(shape)
            and shape[cell.dim] == cell.num_neurons
        )
        # the live states as `step` takes them, where they are plain and fit
        for name in cell.states if fits else ():
            state = current[name]
            if name in cell.active and (
                type(state) is not Tensor
                or state.shape != shape
                or state.dtype is not dtype
                or state.device != x.device
                or functorch.is_functorch_wrapped_tensor(state)
                or state.is_inference()
            ):
                fits = False
            states.append(state)
        if not fits:  # what does not fit is explained
            return self._step_checked(cell, x, further)
        results = self.step(x, *states, **self.step_kwargs(x.ndim, dtype))
        output, *ends = self._checked_results(cell, (x,), states, results)
        # assigned last and all together, so that a failed call changes nothing
        current.update(zip(cell.active, ends, strict=True))
        return output

    def _step_checked(
        self, cell: Cell | StepDefinition, x: Tensor, further: Sequence[Tensor]
    ) -> Tensor:
        """Run one step after every check of it; raise where something does not fit."""
        dtype = self._check_input(x)
        states = self._states_for(x, dtype)
        inputs = _working(self, x, further, dtype)
        results = self.step(*inputs, *states, **self._kwargs_for(x, x.ndim, dtype))
        output, *ends = self._checked_results(cell, inputs, states, results)
        current = states_of(self)
        for name, value in zip(cell.active, ends, strict=True):
            current[name] = value
        return output.to(x.dtype)

    def _checked_results(
        self,
        cell: Cell | StepDefinition,
        inputs: Sequence[Tensor],
        states: Sequence[Tensor | None],
        results: Any,
    ) -> list[Tensor]:
        """Return output and active states of a step, which share memory with nothing."""
        output, ends = check_step_results(cell, inputs, results)
        # a later in-place operation on the output must reach neither an input nor a state of before
        if shares_memory(output, (*inputs, *states)):
            output = output.clone()
        return [output, *ends.values()]

    def forward_sequence(
        self,
        x: Tensor,
        record: Sequence[str] = (),
        *,
        further: Sequence[Tensor] = (),
        reset: Tensor | Restarts | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` at once: what a loop over them computes.

        Arithmetic and comparisons give the same bits; ``exp`` and its like may differ in the last
        places, as do sums of gradients. The states go on, and stay part of the graph.

        Args:
            x: the inputs ``[T, ...]``.
            record: names of states whose trajectories are wanted too.
            further: the inputs after ``x``, in the order of ``inputs``.
            reset: ``[T, B]`` booleans: where a sample starts anew before a step.

        Shape:
            ``x`` and the outputs ``[T, ...]`` in one dtype; each trajectory ``[T, ...]`` in the
            dtype of the states.

        Raises:
            TypeError, ValueError: as the layer; it has no such state.
            RuntimeError: a backend requested by name cannot run the layer.

        Example:
            >>> layer = LIF(3, beta=0.5)
            >>> outputs, states = layer.forward_sequence(torch.ones(4, 2, 3), record=["mem"])
            >>> outputs[:, 0, 0].tolist()
            [0.0, 1.0, 1.0, 1.0]
            >>> states["mem"].shape, layer.mem.shape
            (torch.Size([4, 2, 3]), torch.Size([2, 3]))
        """
        cell: Cell | StepDefinition | None
        if torch.compiler.is_compiling():
            cell = self._signature()
            if _runs_by_step(self):
                return self._run_by_step(x, record, further)
            where = None if reset is None else self._mask_in_loop(cell, x, reset)
            return self._run_checked(cell, x, record, further, where)
        run, cell = ambient.current, self._declared.cell
        if cell is None or not cell.is_current(type(self)):
            cell = self.cell
        if cell.runs_by_step:
            return in_one_commit(self._run_by_step, x, record, further)
        where = None if reset is None else self._mask_in_loop(cell, x, reset)
        now = current_backward()
        if (
            not (record or further or where is not None)
            and len(cell.inputs) == 1
            and observed_by((x,)) is None
            and (
                now in (NO_BACKWARD, self._zeroed_in_backward)
                if run is None
                else now == run.backward
            )
        ):
            if run is None:
                current = self.__dict__
            else:  # by layer it is what runs
                own = run.entries.get(id(self)) if run.running is self else None
                current = run.states_of(self) if own is None else own.states
            prepared = self._prepared.run(self, cell, x, current, True)
            if prepared is not None:
                current.update(prepared[1])
                return prepared[0], {}
        return self._run_checked(cell, x, record, further, where)

    def _restarted(
        self, x: Tensor, record: tuple[str, ...], reset: Restarts, further: tuple[Tensor, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run a sequence in which samples start anew, in one loop where nothing must see it."""
        self._check_has_batch("one step of its input", x.shape[1:])
        if (
            has_step(self)
            and not torch.compiler.is_compiling()
            and type(self).forward_sequence is Neuron.forward_sequence
            and self._restarts_in_loop(self.cell)
        ):
            return self.forward_sequence(x, record, reset=reset, further=further)
        return super()._restarted(x, record, reset, further)

    def _restarts_in_loop(self, cell: Cell | StepDefinition) -> bool:
        """Whether samples can start anew inside the loop, and no method of the layer's own sees."""
        kind = type(self)
        return (
            isinstance(cell, Cell)
            and not cell.runs_by_step
            and cell.has_plain_states
            and kind.initial_state is SequenceLayer.initial_state
            and kind.zero_states is SequenceLayer.zero_states
            and self.__dict__.keys().isdisjoint(("initial_state", "zero_states"))
        )

    def _mask_in_loop(
        self, cell: Cell | StepDefinition, x: Tensor, reset: Tensor | Restarts
    ) -> Tensor:
        """Return the mask of restarts in the loop, checked unless it has been."""
        if isinstance(reset, Restarts):
            return reset.mask
        if reset.dtype != torch.bool:
            raise TypeError(f"reset must hold booleans, got {reset.dtype}.")
        if reset.shape != x.shape[:2]:
            raise ValueError(
                f"reset must have the shape [T, B] = {list(x.shape[:2])}, got {list(reset.shape)}."
            )
        self._check_has_batch("one step of its input", x.shape[1:])
        if not self._restarts_in_loop(cell):
            raise ValueError(
                f"{self._label()} has methods or states of its own that must see a sample start "
                "anew. Use tt.unroll(model, x, reset=...)."
            )
        return reset

    def _run_checked(
        self,
        cell: Cell | StepDefinition,
        x: Tensor,
        record: Sequence[str],
        further: Sequence[Tensor],
        where: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run a sequence after every check of it, by whatever road there is."""
        dtype = self._check_input(x, sequence=True)
        states = self._states_for(x, dtype, sequence=True)
        self._check_record(record)
        if x.shape[0] == 0:
            return x.clone(), {name: x.to(dtype, copy=True) for name in record}
        work = _working(self, x, further, dtype)
        kwargs = self._kwargs_for(x, x.ndim - 1, dtype)
        if where is not None and isinstance(cell, Cell):
            cell, restarts, starts = _restarting(self, cell, x, dtype, where)
            work, kwargs = (*work, restarts), {**kwargs, **starts}
        output, ends, trajectories = run_sequence(self, cell, work, states, kwargs, tuple(record))
        current = states_of(self)
        for name, end in zip(cell.active, ends, strict=True):
            current[name] = end
        return output.to(x.dtype), dict(zip(record, trajectories, strict=True))

    def _run_by_step(
        self, x: Tensor, record: Sequence[str], further: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run a sequence step by step, where methods of the layer's own see every step."""
        self._check_record(record)
        if not isinstance(x, Tensor) or not len(x):
            dtype = self._check_input(x, sequence=True)
            return x.clone(), {name: x.to(dtype, copy=True) for name in record}
        outputs: list[Tensor] = []
        trajectories: dict[str, list[Tensor]] = {name: [] for name in record}
        current = states_of(self)
        for step, *others in zip(*(each.unbind(0) for each in (x, *further)), strict=True):
            outputs.append(self.forward_step(step, *others))
            for name, trajectory in trajectories.items():
                trajectory.append(current[name])
        stacked = {name: torch.stack(each) for name, each in trajectories.items()}
        return torch.stack(outputs), stacked


def _working(
    layer: Neuron, x: Tensor, further: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return all inputs in the dtype of the arithmetic and the shape of ``x``, checked."""
    if len(further) != len(layer.inputs) - 1:
        raise TypeError(
            f"{layer._label()} takes ({', '.join(layer.inputs)}), got {1 + len(further)} inputs."
            + (" Call the layer itself, or tt.unroll(layer, x)." if len(layer.inputs) > 1 else "")
        )
    work = [x.to(dtype)]
    for name, value in zip(layer.inputs[1:], further, strict=True):
        if not isinstance(value, Tensor) or value.dtype not in ARITHMETIC_DTYPE:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{layer._label()} takes floating-point tensors as inputs, got {got} as {name}."
            )
        if value.shape != x.shape:
            sizes = zip(reversed(value.shape), reversed(x.shape), strict=False)
            if value.ndim > x.ndim or any(a not in (1, b) for a, b in sizes):
                raise ValueError(
                    f"{layer._label()} takes inputs of one shape; {name} has the shape "
                    f"{list(value.shape)}, which does not broadcast to {list(x.shape)} of x."
                )
            value = value.expand(x.shape)
        work.append(value.to(dtype))
    return tuple(work)


def _restarting(
    layer: Neuron, cell: Cell, x: Tensor, dtype: torch.dtype, reset: Tensor
) -> tuple[Cell, Tensor, dict[str, Tensor]]:
    """Return the cell that restarts samples, its further input and its further parameters."""
    where = reset.to(x.device, dtype).reshape(*reset.shape, *[1] * (x.ndim - 2)).expand(x.shape)
    trailing = -layer.dim - 1 if layer.dim < 0 else x.ndim - layer.dim - 2
    starts: dict[str, Tensor] = {}
    names = cell.names_of_starts
    for name in cell.starts:
        start = layer.get_buffer(f"initial_{name}").to(dtype)
        starts[names[name]] = start.reshape(-1, *[1] * trailing) if start.ndim else start
    return cell.restarting, where, starts


# methods as they are where nobody has overridden or patched them
_METHODS: dict[str, object] = {name: getattr(Neuron, name) for name in METHODS}


def has_step(layer: object) -> TypeGuard[Neuron]:
    """Whether a layer is a neuron with a ``step``; a subclass may have other methods instead."""
    return isinstance(layer, Neuron) and getattr(layer, "step", None) is not None


def beside_step(layer: Neuron) -> str | None:
    """Return which code of a neuron its step and parameters do not tell of; ``None`` where none."""
    if type(layer).forward is not Neuron.forward or "forward" in vars(layer):
        return "has a forward of its own"
    cell = layer.cell
    if cell.runs_by_step:
        return "has methods of its own that see each step"
    own_kind = type(layer).initial_state is not _METHODS["initial_state"]
    if own_kind or "initial_state" in vars(layer):
        return "has an initial_state of its own"
    return None


def starts_from_zero(layer: Neuron) -> bool:
    """Whether all states are declared to be zero before the first step."""
    declared = [getattr(layer, f"initial_{name}", None) for name in layer.states]
    return not any(bool(value.any()) for value in declared if value is not None)


def spike_functions(layer: nn.Module) -> list[str]:
    """List the options of a neuron layer that map to 0 and 1; none for a layer without spikes."""
    if not isinstance(layer, SequenceLayer):
        return []
    return [name for name in layer._options if _is_spike_function(getattr(layer, name))]


def _is_spike_function(option: object) -> bool:
    if not callable(option):
        return False
    parameters = option.parameters() if isinstance(option, nn.Module) else iter(())
    device = next((p.device for p in parameters), None)
    # Any callable may be a surrogate, so its values decide, not its type.
    with torch.no_grad():
        spikes = option(torch.linspace(-4, 4, 9, device=device))
    return isinstance(spikes, Tensor) and bool(((spikes == 0) | (spikes == 1)).all())


@constant_in_compile
def _runs_by_step(layer: Neuron) -> bool:
    """Whether methods of the layer's own must see every step, once for each compilation."""
    return layer.cell.runs_by_step
