"""``watch``: see inside a loop over time that is the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.probe.layers import dims_of, names_of, neurons_of
from tracetorch.probe.recording import Recording
from tracetorch.unrolling.trajectories import select_names


class watch:  # noqa: N801 (used as a verb: with watch(...) as seen)
    """While it lasts, keep what is asked for of every step that a model makes.

    Args:
        model: any ``nn.Module`` with neuron layers.
        what: as for :func:`record`: ``"mem"``, ``"input"``, ``"net.*.output"``, one or a list.
        gradients: keep those tensors' gradients too, of states as well, for
            ``recording.gradients()`` after ``backward()``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``what`` matches nothing; inside, the model is unrolled by layer.

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
        self._layers = neurons_of(model)
        self._names = names_of(self._layers)
        self._gradients = gradients
        self._taken: dict[str, list[Tensor]] = {
            name: [] for name in select_names(what, self._names, by="watch")
        }
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> watch:
        wanted: dict[str, list[tuple[str, str]]] = {}
        for name in self._taken:
            path, own = self._names[name]
            wanted.setdefault(path, []).append((name, own))
        for path, pairs in wanted.items():

            def take(
                layer: Any, args: Any, kwargs: Any, output: Tensor, pairs: Any = pairs
            ) -> None:
                self._take(layer, args[0] if args else kwargs["x"], output, pairs)

            hook = self._layers[path].register_forward_hook(take, with_kwargs=True)
            self._hooks.append(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _take(self, layer: Any, x: Tensor, output: Tensor, pairs: list[tuple[str, str]]) -> None:
        if layer.layer_pass is not None:
            raise ValueError(
                f"{layer.label()} is watched, and runs all of its steps at once. Use "
                'tt.probe.record(model, x, ...), or tt.unroll(..., by="step") inside watch.'
            )
        ends = {"input": x, "output": output}
        for name, own in pairs:
            value = ends[own] if own in ends else getattr(layer, own)
            if self._gradients and value.requires_grad:
                value.retain_grad()
            self._taken[name].append(value)

    def recording(self) -> Recording:
        """What has been seen until now, ``[T, B, ...]``.

        Raises:
            ValueError: nothing has been seen of a layer, or its shape has changed on the way.
        """
        trajectories: dict[str, Tensor] = {}
        for name, taken in self._taken.items():
            shapes = [list(shape) for shape in dict.fromkeys(value.shape for value in taken)]
            if not shapes:
                raise ValueError(f"watch: {name!r} has not been seen; its layer was not called.")
            if len(shapes) > 1:
                raise ValueError(
                    f"watch: {name!r} was seen in the shapes {shapes}, which are not one "
                    "trajectory. Watch every sequence by itself."
                )
            trajectories[name] = torch.stack(taken)
        sources = None
        if self._gradients:
            sources = {n: t for n, t in self._taken.items() if any(v.requires_grad for v in t)}
        dims = {}
        for name, trajectory in trajectories.items():
            path = self._names[name][0]
            dims[name] = dims_of(path, trajectory.ndim, self._layers[path])
        return Recording(trajectories, dims=dims, sources=sources)
