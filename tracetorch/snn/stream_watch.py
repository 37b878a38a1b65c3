"""Tell what goes wrong over time without an error: a state at NaN, a graph that grows."""

from __future__ import annotations

import logging
import math

from torch import Tensor, nn

from tracetorch.core.torch_private import functorch_active, transformed_by
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.passes import Pass
from tracetorch.snn.sequence_layer import SequenceLayer

LOOK_EVERY = 100  # single steps: a look takes microseconds, a step tens of them
LONGEST_GRAPH = 1000  # steps

_IN_STREAM = (
    "%s is NaN, and stays so until zero_states(). A neuron's spike is 0 there, so that what "
    "follows looks finite. Look at each input: if not x.isfinite().all(), use the last good one."
)

_log = logging.getLogger("tracetorch")
_graph_reported = False


def _is_nan(state: object) -> bool:
    """Whether a state on the CPU has NaN; a GPU would have to be waited for."""
    if type(state) is not Tensor or state.device.type != "cpu":
        return False
    if state.requires_grad:
        state = state.detach()
    # the sum of NaN is NaN, and quicker to have
    return math.isnan(state.sum().item()) and bool(state.isnan().any())


def look_for_nan(layer: SequenceLayer) -> None:
    """Log once, until ``zero_states()``, that a layer in a stream of single steps is at NaN."""
    if layer._nan_reported or not layer.states or transformed_by() is not None:
        return
    name = layer.states[0]
    if _is_nan(layer.__dict__[name]):
        layer.__dict__["_nan_reported"] = "stream"
        _log.warning(_IN_STREAM, f"{name} of {layer._label()}")


def state_at_nan(run: Pass, model: nn.Module) -> tuple[str, Tensor] | None:
    """Return the path and the value of the first state of a pass that has NaN."""
    for entry in run.entries.values():
        layer = entry.module
        if isinstance(layer, SequenceLayer) and layer.states:
            name = layer.states[0]
            state = entry.states[name]
            # by one number, without a call, for it is behind every sequence; no GPU is waited for
            if type(state) is not Tensor or not state.is_cpu:
                continue
            total = state.detach().sum().item()
            if total == total:  # NaN is not equal to itself
                continue
            if bool(state.isnan().any()):
                path = next((path for path, module in named_modules(model) if module is layer), "")
                return join_path(path, name), state
    return None


def look_for_nan_in_stream(run: Pass, model: nn.Module) -> bool:
    """Log that the first of the states that a stream holds is at NaN, and return whether it is."""
    found = state_at_nan(run, model)
    if found is not None:
        _log.warning(_IN_STREAM, found[0])
    return found is not None


def report_graph(layer: SequenceLayer) -> None:
    """Log, once in a process, that a layer has run very many single steps in one graph."""
    global _graph_reported
    if not _graph_reported:
        _graph_reported = True
        _log.warning(
            "%s has run %d single steps in one graph, and memory grows with each. To run a model "
            "use torch.no_grad(); to train it call tt.detach_states(model) after each backward().",
            layer._label(),
            LONGEST_GRAPH,
        )


def look_for_nan_in(run: Pass, model: nn.Module, checked: bool) -> None:
    """Log once that a state is NaN at the end of a sequence, for the outputs look finite.

    Once for each model, and once more where there are gradients; where the sequence went on from
    earlier states, once until they are zeroed. ``checked``: ``check=True`` has not found it.
    """
    if functorch_active() or run.traced:
        return
    found = state_at_nan(run, model)
    if found is None:
        return
    layers = [e.module for e in run.entries.values() if isinstance(e.module, SequenceLayer)]
    known = {each._nan_reported for each in layers} - {""}
    path, state = found
    trains = state.requires_grad
    if known - {"sequence"} or (known and not trains):
        return
    within = "stream" if run.went_on else "training" if trains else "sequence"
    for each in layers:
        each.__dict__["_nan_reported"] = within
    _log.warning(
        "%s is NaN at the end of a sequence. A neuron's spike is 0 there, so that what "
        "follows looks finite%s. %s names where it begins. "
        "NaN in padding does no harm to outputs that a mask leaves out, but gradients of "
        "weights become NaN, for 0 * NaN is NaN: fill it, with "
        "x.masked_fill(~mask[..., None], 0).",
        path,
        ", the loss too, and one step of the optimizer makes weights NaN" if trains else "",
        "tt.diagnose(model, (x, target), loss)" if checked else "tt.unroll(model, x, check=True)",
    )
