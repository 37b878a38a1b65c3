"""Export a model over a whole sequence: its exported step, scanned over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from tracetorch.core.torch_private import one_trace_at_a_time, pytree, scan
from tracetorch.export.step import decomposed, export_step, exported
from tracetorch.unrolling.inputs import parse_inputs

_STEPS = 3  # of the example; PyTorch takes a size of 1 for fixed


@one_trace_at_a_time
def sequence(model: nn.Module, sample: Any) -> ExportedProgram:
    """Export ``model`` over a whole sequence, with explicit states and a free number of steps.

    ::

        y, states = program.module()(x, states)    # x, y [T, B, ...]

    It is :func:`tt.export.step`'s program, run over time by PyTorch's ``scan``, step by step: it
    computes what ``tt.unroll(model, x, by="step")`` computes. A long stream may be cut anywhere.
    ``T`` is at least 1, the batch is free. PyTorch calls its ``scan`` a prototype.

    Args:
        model: any module whose call is one time step.
        sample: an input, time first: a tensor, a tuple or a dict of them, as in ``tt.unroll``. Only
            its feature dimensions matter, not the number of steps and the batch size.

    Shape:
        ``sample`` ``[T, B, ...]``; ``x`` and ``y`` the same for any other ``T`` and ``B``.

    Raises:
        TypeError: as :func:`step`.
        ValueError: as :func:`step`; the model has no states, so that time does not matter to it.

    Example:
        >>> from tracetorch.export.program import initial_states
        >>> program = sequence(nn.Sequential(nn.Linear(4, 3), LIF(3)), torch.rand(5, 2, 4))
        >>> y, states = program.module()(torch.rand(20, 8, 4), initial_states(program, batch=8))
        >>> y.shape, states["1.mem"].shape
        (torch.Size([20, 8, 3]), torch.Size([8, 3]))
    """
    tensors = parse_inputs(sample).tensors
    first = pytree.tree_map(lambda x: x[0], tensors)
    program, signature = export_step(model, first)
    if not signature.states:
        raise ValueError(
            f"{type(model).__name__} has no states: every step stands alone. Fold time into the "
            "batch and use torch.export.export."
        )
    scanned = exported(_ScannedStep(program), model, first, signature, steps=_STEPS)
    return decomposed(scanned, model)


class _ScannedStep(nn.Module):
    """Loop over time whose body is the graph of an exported step."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self._step: Callable[..., tuple[Tensor, ...]] = program.graph_module.forward
        self._lifted: list[str] = []
        self._out_spec = program.call_spec.out_spec
        # The graph takes its weights and constants as leading inputs. As buffers of this module
        # they are weights of the new program too; buffers may have no dot in their names.
        for spec in program.graph_signature.input_specs:
            if spec.target is not None:
                tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
                name = "/" + spec.target.replace(".", "/")
                self.register_buffer(name, tensor.detach())
                self._lifted.append(name)

    def forward(self, x: Any, states: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        lifted = [getattr(self, name) for name in self._lifted]
        forward_step, num_states = self._step, len(states)

        def body(carry: list[Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            results = forward_step(*lifted, *inputs, *carry)
            num_outputs = len(results) - num_states
            outputs, next_states = results[:num_outputs], results[num_outputs:]
            # scan allows no result to be one of its inputs: both are cloned.
            return [state.clone() for state in next_states], [y.clone() for y in outputs]

        last_states, outputs = scan()(body, list(states.values()), pytree.tree_leaves(x))
        y_and_states: tuple[Any, dict[str, Tensor]] = pytree.tree_unflatten(
            [*outputs, *last_states], self._out_spec
        )
        return y_and_states
