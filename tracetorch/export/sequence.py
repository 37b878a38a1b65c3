"""A whole sequence as a program: the exported step, scanned over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tracetorch.core.torch_private import pytree, scan
from tracetorch.export.explained import explained
from tracetorch.export.probe import BATCHES, resized
from tracetorch.export.step import exported, free_sizes
from tracetorch.unrolling.inputs import parse_inputs

_STEPS = 3  # of the example; PyTorch takes a size of 1 for fixed


def sequence(model: nn.Module, sample: Any) -> ExportedProgram:
    """Export ``model`` over a whole sequence, number of steps and batch free, states explicit.

    ::

        y, states = program.module()(x, states)    # x, y [T, B, ...]

    It is :func:`tt.export.step`'s program, run over time by PyTorch's ``scan``: step by step, so
    what ``tt.unroll(model, x, by="step")`` computes. A long stream may be cut anywhere. ``T`` is
    at least 1. PyTorch calls its ``scan`` a prototype.

    Args:
        model: any module whose call is one time step.
        sample: an input, time first: a tensor, a tuple or a dict of them, as in ``tt.unroll``. Only
            its shape matters, number of steps and size of the batch do not.

    Shape:
        ``sample`` ``[T, B, ...]``; ``x`` and ``y`` the same for any other ``T`` and ``B``.

    Raises:
        TypeError: as :func:`step`.
        ValueError: as :func:`step`; the model has no states, so that nothing needs its time.
        RuntimeError: the installed PyTorch has no ``scan``.

    Example:
        >>> from tracetorch.export.initial import initial_states
        >>> program = sequence(nn.Sequential(nn.Linear(4, 3), LIF(3)), torch.rand(5, 2, 4))
        >>> y, states = program.module()(torch.rand(20, 8, 4), initial_states(program, batch=8))
        >>> y.shape, states["1.mem"].shape
        (torch.Size([20, 8, 3]), torch.Size([8, 3]))
    """
    given = parse_inputs(sample, None, 0, True).tensors
    first = pytree.tree_map(lambda x: x[0], given)
    program, probed = exported(model, first)
    if not probed.states:
        raise ValueError(
            f"{type(model).__name__} has no states: every step stands alone. Fold time into the "
            "batch and use torch.export.export."
        )
    free, batch = Dim("time"), Dim("batch")
    device = pytree.tree_leaves(given)[0].device
    example = (
        resized(first, BATCHES[0], steps=_STEPS),
        {name: port.zeros(BATCHES[0], device) for name, port in probed.states.items()},
    )
    dynamic = (
        pytree.tree_map(lambda _: {0: free, 1: batch}, given),
        {name: free_sizes(port, batch) for name, port in probed.states.items()},
    )
    over_time = _Scanned(program)
    with torch.no_grad(), explained(model, RuntimeError):
        scanned: ExportedProgram = torch.export.export(
            over_time, example, dynamic_shapes=dynamic, strict=False
        ).run_decompositions({})
    return scanned


class _Scanned(nn.Module):
    """The graph of one step, over time.

    Args:
        program: the step.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self._step: Callable[..., tuple[Tensor, ...]] = program.graph_module.forward
        self._held: list[str] = []
        self._out = program.call_spec.out_spec
        for spec in program.graph_signature.input_specs:
            if spec.target is not None:
                held = program.state_dict.get(spec.target, program.constants.get(spec.target))
                name = spec.target.replace(".", "/")
                self.register_buffer(f"/{name}", held.detach())
                self._held.append(f"/{name}")
        self._scan = _scan()

    def forward(self, x: Any, states: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Outputs over time, and the states after the last step."""
        held = [getattr(self, name) for name in self._held]
        forward_step, kept = self._step, len(states)

        def body(carry: list[Tensor], now: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            results = forward_step(*held, *now, *carry)
            # scan allows no result to be one of its inputs
            outputs, after = results[: len(results) - kept], results[len(results) - kept :]
            return [state.clone() for state in after], [output.clone() for output in outputs]

        after, outputs = self._scan(body, list(states.values()), pytree.tree_leaves(x))
        assembled: tuple[Any, dict[str, Tensor]] = pytree.tree_unflatten(
            [*outputs, *after], self._out
        )
        return assembled


def _scan() -> Callable[..., tuple[list[Tensor], list[Tensor]]]:
    try:
        return scan()
    except ImportError as missing:
        raise RuntimeError(
            f"torch {torch.__version__} has no scan, which runs an exported step over time. "
            "Export one step, tt.export.step, and loop over it."
        ) from missing
