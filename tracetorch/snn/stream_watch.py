"""Tell what goes wrong in a stream of single steps without an error: NaN, a graph that grows."""

from __future__ import annotations

import logging
import math
from typing import TypeGuard

from torch import Tensor

from tracetorch.core.torch_private import is_tracing, transformed_by
from tracetorch.snn.stateful_layer import StatefulLayer, running

LOOK_EVERY = 100  # single steps: a look takes microseconds, a step tens of them
LONGEST_GRAPH = 1000  # steps

_log = logging.getLogger("tracetorch")
_graph_reported = False


def has_nan(state: object) -> TypeGuard[Tensor]:
    """Whether a state is a plain tensor on the CPU with NaN; a GPU would have to be waited for."""
    if type(state) is not Tensor or state.device.type != "cpu":
        return False
    if state.requires_grad:
        state = state.detach()
    # the sum of NaN is NaN, and quicker to have
    return math.isnan(state.sum().item()) and bool(state.isnan().any())


def look_for_nan(layer: StatefulLayer) -> None:
    """Log once, until ``zero_states()``, that a layer in a stream of single steps is at NaN."""
    sequence = running.sequence  # which looks at its end
    if layer._nan_reported or sequence or is_tracing() or transformed_by() is not None:
        return
    if layer.states and has_nan(layer.__dict__.get(layer.states[0])):
        layer.__dict__["_nan_reported"] = "stream"
        _log.warning(
            "%s of %s is NaN, and stays so until zero_states(). A neuron's spike is 0 there, so "
            "that what follows looks finite. Look at each input: if not x.isfinite().all(), use "
            "the last good one.",
            layer.states[0],
            layer.label(),
        )


def count_graph(layer: StatefulLayer, state: Tensor | None) -> None:
    """Count single steps whose state is in the graph of the one before; log once of very many.

    A state that was zeroed, set, detached or computed under ``no_grad`` starts the count anew.
    """
    global _graph_reported
    attributes = layer.__dict__
    if state is None or not state.requires_grad:
        attributes["_graph_steps"] = 0
        return
    attributes["_graph_steps"] = count = layer._graph_steps + 1
    if count == LONGEST_GRAPH and not _graph_reported:
        _graph_reported = True
        _log.warning(
            "%s has run %d single steps in one graph, and memory grows with each. To run a model "
            "use torch.no_grad(); to train it call tt.detach_states(model) after each backward().",
            layer.label(),
            count,
        )
