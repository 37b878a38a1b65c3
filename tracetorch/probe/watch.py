"""Record what layers do in any loop over time: the context manager ``watch``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import forward_hooks
from tracetorch.probe.layers import recordable_layers, recordable_names, spike_kinds
from tracetorch.probe.recording import Recording
from tracetorch.snn.passes import current_pass, states_of
from tracetorch.unrolling.trajectories import select_names


class watch:  # noqa: N801 (used as a verb: with watch(...) as seen)
    """Record the named tensors of every step that a model makes within a block.

    Args:
        model: any ``nn.Module`` with neuron layers.
        what: as for :func:`record`: ``"mem"``, ``"input"``, ``"net.*.output"``, one or a list.
        gradients: keep those tensors' gradients too, of states as well, for
            ``recording.gradients()`` after ``backward()``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``what`` matches nothing; the model is unrolled by layer within the block.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> with watch(net, "mem", gradients=True) as seen:
        ...     loss = sum(net(x).sum() for x in torch.rand(10, 8, 4))
        >>> loss.backward()
        >>> seen.recording().gradients()
        Recording(1.mem [10, 8, 3])
    """

    def __init__(
        self, model: nn.Module, what: Sequence[str] | str, *, gradients: bool = False
    ) -> None:
        self._layers = recordable_layers(model)
        self._names = recordable_names(self._layers)
        self._gradients = gradients
        self._steps: dict[str, list[Tensor]] = {
            name: [] for name in select_names(what, self._names, by="watch")
        }
        self._hooks = ExitStack()

    def __enter__(self) -> watch:
        # One hook for each layer, whatever the number of tensors that are recorded from it.
        by_layer: dict[str, list[tuple[str, str]]] = {}
        for name in self._steps:
            path, own_name = self._names[name]
            by_layer.setdefault(path, []).append((name, own_name))
        hooks = [
            (self._layers[path], partial(self._record_step, names))
            for path, names in by_layer.items()
        ]
        self._hooks.enter_context(forward_hooks(after=hooks))
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def _record_step(
        self, names: list[tuple[str, str]], layer: Any, args: Any, kwargs: Any, output: Tensor
    ) -> None:
        """Append one step of a layer: a hook on its forward pass."""
        # By layer the hook would see one call for all steps, and no states between them.
        run = current_pass()
        if run is not None and run.folded and run.running is None:
            raise ValueError(
                f"{layer._label()} is watched, and runs all of its steps at once. Use "
                'tt.probe.record(model, x, ...), or tt.unroll(..., by="step") inside watch.'
            )
        for name, own_name in names:
            if own_name == "input":
                value = args[0] if args else kwargs["x"]
            else:
                is_output = own_name == "output"
                value = output if is_output else states_of(layer)[layer._attribute_of(own_name)]
            if value is None:  # a memory that was not assigned
                continue
            if self._gradients and value.requires_grad:
                value.retain_grad()
            self._steps[name].append(value)

    def recording(self) -> Recording:
        """Return what has been recorded until now, ``[T, B, ...]``.

        Raises:
            ValueError: a layer was not called, or its shape has changed between steps.
        """
        trajectories: dict[str, Tensor] = {}
        for name, steps in self._steps.items():
            shapes = [list(shape) for shape in dict.fromkeys(value.shape for value in steps)]
            if not shapes:
                raise ValueError(f"watch: {name!r} has not been seen; its layer was not called.")
            if len(shapes) > 1:
                raise ValueError(
                    f"watch: {name!r} was seen in the shapes {shapes}, which are not one "
                    "trajectory. Watch every sequence by itself."
                )
            trajectories[name] = torch.stack(steps)
        sources = None
        if self._gradients:
            # The gradient arrives at the tensors of the steps, not at their stacked copy.
            sources = {n: t for n, t in self._steps.items() if any(v.requires_grad for v in t)}
        return Recording(trajectories, sources=sources, kinds=spike_kinds(self._layers))
