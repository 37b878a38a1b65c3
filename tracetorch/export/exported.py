"""Run exported programs, and say of errors of their tracing what to change in the model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter

from tracetorch.core.torch_private import pytree

_FAKE_TENSORS = logging.getLogger("torch._subclasses.fake_tensor")


@contextmanager
def ignore_own_warnings() -> Iterator[None]:
    """Ignore what PyTorch warns of in its own code, about which a user can do nothing."""
    with warnings.catch_warnings():
        # when it copies a program (torch 2.13)
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        # it logs the traceback of an error that it raises (torch 2.13)
        _FAKE_TENSORS.addFilter(_refuse)
        try:
            yield
        finally:
            _FAKE_TENSORS.removeFilter(_refuse)


def _refuse(record: logging.LogRecord) -> bool:
    return False


@contextmanager
def explain_trace_errors(model: nn.Module, *kinds: type[RuntimeError]) -> Iterator[None]:
    """Raise errors of a trace as ``ValueError``s that name the model and the remedy."""
    try:
        with ignore_own_warnings():
            yield
    except kinds as error:
        # The lines after the first are advice on torch.export itself, which the user did not call.
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{type(model).__name__} cannot be exported: {reason}. Keep sizes and branches "
            "in forward free of the batch's size and of the values of tensors; batch first, "
            "x.flatten(1) instead of x.view(2, -1)."
        ) from error


def run_step(
    program: ExportedProgram, x: Any, states: Mapping[str, Tensor], run: Interpreter | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """Return output and next states of a step."""
    run = run or Interpreter(program.graph_module)
    constants, given = constants_of(program), iter(pytree.tree_leaves((x, dict(states))))
    names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    results = run.run(*(constants[n] if n in constants else next(given) for n in names))
    y, after = pytree.tree_unflatten(list(results), program.call_spec.out_spec)
    return y, after


def constants_of(program: ExportedProgram) -> dict[str, Tensor]:
    """Return the parameters, buffers and constants of a program, by placeholder."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    values = {**program.state_dict, **program.constants}
    return {node: values[name].detach() for node, name in names.items()}
