"""Hold recorded trajectories by name, as tensors or arrays: ``Recording``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tracetorch.core.spike_values import Kind, Trajectories
from tracetorch.unrolling.trajectories import select_names

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Recording(Trajectories):
    """Trajectories ``[T, B, ...]`` by ``"path.name"``: ``recording["net.1.mem"]``.

    It is a mapping of names to tensors, and goes wherever one goes. Its tensors are part of the
    graph of the run; :meth:`detach` frees them from it.

    Args:
        trajectories: tensors ``[T, ...]`` by name.
        sources: the tensors of the run whose gradients are wanted, for each name either one
            ``[T, ...]`` or one for every step.
        kinds: ``"spikes"``, ``"scaled spikes"`` or ``"state"`` by name, for ``tt.plot.save_html``;
            names and values tell where left out.

    Raises:
        TypeError: a name in ``trajectories`` is not a string, or a value not a tensor.

    Example:
        >>> recording = Recording({"0.mem": torch.zeros(5, 2, 3), "1.mem": torch.ones(5, 2, 4)})
        >>> recording
        Recording(0.mem [5, 2, 3], 1.mem [5, 2, 4])
        >>> recording.select("1.*").numpy()["1.mem"].shape
        (5, 2, 4)
    """

    def __init__(
        self,
        trajectories: Mapping[str, Tensor],
        *,
        sources: Mapping[str, Sequence[Tensor]] | None = None,
        kinds: Mapping[str, Kind] | None = None,
    ) -> None:
        self._trajectories = dict(trajectories)
        for name, value in self._trajectories.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise TypeError(
                    "trajectories must be a mapping of names to tensors, got "
                    f"{type(value).__name__} at {name!r}."
                )
        self._sources = None if sources is None else dict(sources)
        self.kinds = dict(kinds or {})

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._trajectories:
            raise KeyError(f"nothing is called {name!r}. There are {', '.join(self)}.")
        return self._trajectories[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._trajectories)

    def __len__(self) -> int:
        return len(self._trajectories)

    def __repr__(self) -> str:
        return f"Recording({', '.join(f'{n} {list(t.shape)}' for n, t in self.items())})"

    @property
    def sources(self) -> dict[str, Sequence[Tensor]]:
        """The tensors of the run by name, one or one for every step; empty without gradients."""
        return dict(self._sources or {})

    def select(self, patterns: Sequence[str] | str) -> Recording:
        """Return the recording of the names that match.

        Args:
            patterns: a name (``"mem"``, ``"net.1.mem"``) or a pattern (``"net.*.mem"``), or a list
                of them.

        Raises:
            TypeError: ``patterns`` is not a string or a sequence of them.
            ValueError: one of them matches nothing.
        """
        names = select_names(patterns, self, by="select")
        sources = self._sources
        return Recording(
            {name: self[name] for name in names},
            sources=None if sources is None else {n: sources[n] for n in names if n in sources},
            kinds=self.kinds,
        )

    def gradients(self) -> Recording:
        """Return the gradient of every trajectory after ``backward()``, under the same names.

        It is the whole derivative of what ``backward`` was called on, through later steps and later
        layers; zero where nothing depended on the tensor. A tensor that requires no gradient, such
        as the data, is left out.

        Raises:
            ValueError: the run was recorded without ``gradients=True``, or ``backward()`` has not
                been called.
        """
        if self._sources is None:
            raise ValueError(
                "the run was recorded without gradients. Use "
                "tt.probe.record(..., gradients=True) or tt.probe.watch(..., gradients=True)."
            )
        # A single missing gradient is zero; without any, backward() has not run.
        if all(t.grad is None for tensors in self._sources.values() for t in tensors):
            raise ValueError(
                "no gradient has arrived. Call backward() on a loss of this run first, under "
                "torch.enable_grad(), and with something that requires a gradient before the layer."
            )
        gradients = {
            name: join_gradients(tensors, [t.grad for t in tensors], self[name].ndim)
            for name, tensors in self._sources.items()
        }
        # of spikes, too, they are numbers
        return Recording(gradients, kinds=dict.fromkeys(gradients, "state"))

    def detach(self) -> Recording:
        """Return the values alone, detached from the graph."""
        values = {name: value.detach() for name, value in self.items()}
        return Recording(values, kinds=self.kinds)

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Return NumPy arrays by name; bfloat16, which NumPy lacks, as float32."""
        return {
            name: (t.float() if t.dtype is torch.bfloat16 else t).detach().cpu().numpy()
            for name, t in self.items()
        }


def join_gradients(tensors: Sequence[Tensor], grads: Sequence[Tensor | None], ndim: int) -> Tensor:
    """Return the gradient of a trajectory of ``ndim`` dimensions; a missing one is zero."""
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)]
    # One source spans all steps, or there is one for each step.
    return filled[0] if filled[0].ndim == ndim else torch.stack(filled)
