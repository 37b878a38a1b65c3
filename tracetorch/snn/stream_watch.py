"""Tell what goes wrong in a stream of single steps without an error: NaN, a graph that grows."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from torch import Tensor

from tracetorch.core.torch_private import is_tracing, transformed_by
from tracetorch.snn.stateful_layer import StatefulLayer, running

LOOK_EVERY = 100  # single steps: a look takes microseconds, a step tens of them
LONGEST_GRAPH = 1000  # steps

_log = logging.getLogger("tracetorch")
_graph_reported = False


def first_nan(layers: Sequence[StatefulLayer]) -> int | None:
    """Return which of the layers is the first whose first state has NaN, which stays to the end.

    ``None`` under a transform of ``torch.func``, whose values cannot be looked at.
    """
    if transformed_by() is not None:
        return None
    for number, layer in enumerate(layers):
        state = getattr(layer, layer.states[0], None) if layer.states else None
        # a GPU would have to be waited for
        if type(state) is not Tensor or state.device.type != "cpu":
            continue
        if state.requires_grad:
            state = state.detach()
        # the sum of NaN is NaN, and quicker to have
        if math.isnan(state.sum().item()) and bool(state.isnan().any()):
            return number
    return None


def look_for_nan(layer: StatefulLayer) -> None:
    """Log once, until ``zero_states()``, that a layer in a stream of single steps is at NaN."""
    sequence = running.sequence  # which looks at its end
    if layer._nan_reported or sequence or is_tracing():
        return
    if first_nan((layer,)) is not None:
        layer.__dict__["_nan_reported"] = "stream"
        _log.warning(
            "%s of %s is NaN, and stays so until zero_states(). A neuron's spike is 0 there, so "
            "that what follows looks finite. Look at each input: if not x.isfinite().all(), use "
            "the last good one.",
            layer.states[0],
            layer.label(),
        )


def report_graph(layer: StatefulLayer) -> None:
    """Log, once in a process, that a layer has run very many single steps in one graph."""
    global _graph_reported
    if not _graph_reported:
        _graph_reported = True
        _log.warning(
            "%s has run %d single steps in one graph, and memory grows with each. To run a model "
            "use torch.no_grad(); to train it call tt.detach_states(model) after each backward().",
            layer.label(),
            LONGEST_GRAPH,
        )
