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


def look_for_nan_in_stream(run: Pass, model: nn.Module) -> bool:
    """Log that the first of the states that a stream holds is at NaN, and return whether it is."""
    for entry in run.entries.values():
        layer = entry.module
        if not isinstance(layer, SequenceLayer) or not layer.states:
            continue
        if _is_nan(entry.states[layer.states[0]]):
            path = next((path for path, module in named_modules(model) if module is layer), "")
            _log.warning(_IN_STREAM, join_path(path, layer.states[0]))
            return True
    return False


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


def look_for_nan_in(run: Pass, model: nn.Module) -> None:
    """Log once that a state is NaN at the end of a sequence, for the outputs look finite.

    Once for each model, and once more where there are gradients; where the sequence went on from
    earlier states, once until they are zeroed.
    """
    for entry in run.entries.values():
        layer, states = entry.module, entry.states
        if not isinstance(layer, SequenceLayer) or not layer.states:
            continue
        first = states[layer.states[0]]
        # of one number, for it is looked at behind every sequence
        if type(first) is not Tensor or not first.is_cpu or functorch_active() or run.traced:
            continue
        total = first.detach().sum().item()
        if total == total or not _is_nan(first):  # NaN is not equal to itself
            continue
        layers = [e.module for e in run.entries.values() if isinstance(e.module, SequenceLayer)]
        known = {each._nan_reported for each in layers} - {""}
        trains = bool(entry.states[layer.states[0]].requires_grad)
        if known - {"sequence"} or (known and not trains):
            return
        within = "stream" if run.went_on else "training" if trains else "sequence"
        for each in layers:
            each.__dict__["_nan_reported"] = within
        path = next((path for path, module in named_modules(model) if module is layer), "")
        _log.warning(
            "%s is NaN at the end of a sequence. A neuron's spike is 0 there, so that what "
            "follows looks finite%s. tt.unroll(model, x, check=True) names where it begins. "
            "NaN in padding does no harm to outputs that a mask leaves out, but gradients of "
            "weights become NaN, for 0 * NaN is NaN: fill it, with "
            "x.masked_fill(~mask[..., None], 0).",
            join_path(path, layer.states[0]),
            ", the loss too, and one step of the optimizer makes weights NaN" if trains else "",
        )
        return
