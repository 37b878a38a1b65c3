"""Find the paths that a rule drops, in the graph of one step; refuse what traces cannot follow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tracetorch.core.torch_private import global_hooks
from tracetorch.snn.module import layer_label
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.sequence_layer import SequenceLayer


class DroppedPath(NamedTuple):
    """A path through time along which a rule sends no gradient, or a changed one.

    Args:
        origin: path of the parameter, or of the layer, that the path begins at.
        layer: path of the layer whose states it runs through.
        reason: what is missing.

    Example:
        >>> print(DroppedPath("0.weight", "3", "no trace"))
        0.weight -> states of 3: no trace
    """

    origin: str
    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin} -> states of {self.layer}: {self.reason}"


def reached(roots: Iterable[Any], stops: Collection[Any]) -> tuple[set[Any], list[Tensor]]:
    """Walk an autograd graph from some nodes; return the stops that were met, and other leaves."""
    seen: set[Any] = set()
    met: set[Any] = set()
    leaves: list[Tensor] = []
    pending = [*roots]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in stops:
            met.add(node)
            continue
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves.append(variable)
        pending.extend(parent for parent, _ in node.next_functions)
    return met, leaves


def reached_from(node: Any) -> list[Tensor]:
    """Return the leaves that a node of an autograd graph depends on."""
    return reached((parent for parent, _ in node.next_functions), ())[1]


def check_model(
    modules: Sequence[tuple[str, nn.Module]],
    layers: Mapping[str, SequenceLayer],
    *,
    has_traces: bool,
) -> None:
    """Raise where traces cannot follow what modules do now, or the neuron layers are others."""
    now = {path: module for path, module in modules if isinstance(module, SequenceLayer)}
    changed = [path for path in (*now, *layers) if now.get(path) is not layers.get(path)]
    if changed:
        raise ValueError(
            f"the neuron layer {changed[0]!r} has been added, removed or replaced since the "
            "learner was made, and no trace follows it. Make a new learner by tt.online(model)."
        )
    if not has_traces:
        return
    if global_hooks():
        raise ValueError(
            "a hook is registered on all modules there are, and traces cannot see what it changes. "
            "Remove it with its handle's remove(), or register it on single modules."
        )
    for path, module in modules:
        if module._backward_hooks or module._backward_pre_hooks:
            raise ValueError(
                f"{layer_label(module, path)} has a backward hook, which could not act on the "
                "derivatives of earlier steps. Remove it with its handle's remove(), or train by "
                "backpropagation through time."
            )
        if has_step(module) and (
            "forward_step" in vars(module) or type(module).forward_step is not Neuron.forward_step
        ):
            raise ValueError(
                f"{layer_label(module, path)} has a forward_step of its own, and traces are "
                "derived from step alone. Put what it adds into step, or into a module before or "
                "behind the layer."
            )


def changed_inside(layer: SequenceLayer, path: str) -> str:
    return (
        f"{layer_label(layer, path)} has its states changed inside forward(), where its traces "
        "cannot follow. Call the layer itself, and zero_states() of the learner instead."
    )
