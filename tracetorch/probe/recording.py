"""``Recording``: what was seen of a run, by name, as tensors, arrays or a labelled data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tracetorch.core.optional import require
from tracetorch.probe.layers import dims_of
from tracetorch.unrolling.trajectories import select_names

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Recording(Mapping[str, Tensor]):
    """Trajectories ``[T, B, ...]`` by ``"path.name"``: ``recording["net.1.mem"]``.

    Anything that takes a mapping of names to tensors takes it. Its tensors are part of the graph of
    the run; :meth:`detach` lets go of it.

    Args:
        trajectories: tensors ``[T, ...]`` by name.
        dims: names of the dimensions of each, for :meth:`xarray`; ``time``, ``batch`` and numbers
            where left out.
        sources: the tensors of the run whose gradients are wanted, for each name either one
            ``[T, ...]`` or one for every step.

    Raises:
        TypeError: ``trajectories`` is not a mapping of strings to tensors.

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
        dims: Mapping[str, Sequence[str]] | None = None,
        sources: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        if not isinstance(trajectories, Mapping):
            raise TypeError(
                f"trajectories must be a mapping of names to tensors, got {trajectories!r}."
            )
        for name, value in trajectories.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise TypeError(
                    "trajectories must be a mapping of names to tensors, got "
                    f"{type(value).__name__} at {name!r}."
                )
        self._trajectories = dict(trajectories)
        self._dims = dict(dims or {})
        self._sources = None if sources is None else dict(sources)

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
        """The part of it that is asked for.

        Args:
            patterns: ``"mem"``, ``"net.1.mem"`` or ``"net.*.mem"``, or a list of such.

        Raises:
            TypeError: ``patterns`` is not a string or a sequence of them.
            ValueError: one of them matches nothing.
        """
        names = select_names(patterns, self, by="select")
        sources = self._sources
        return Recording(
            {name: self[name] for name in names},
            dims=self._dims,
            sources=None if sources is None else {n: sources[n] for n in names if n in sources},
        )

    def gradients(self) -> Recording:
        """The gradient that ``backward()`` has brought to every trajectory, under the same names.

        It is the whole derivative of what ``backward`` was called on, through later steps and later
        layers; zero where nothing depended on the tensor. What does not require a gradient, the
        data for one, is left out.

        Raises:
            ValueError: the run was recorded without ``gradients=True``, or ``backward()`` has not
                been called.
        """
        if self._sources is None:
            raise ValueError(
                "the run was recorded without gradients. Use "
                "tt.probe.record(..., gradients=True) or tt.probe.watch(..., gradients=True)."
            )
        if all(t.grad is None for tensors in self._sources.values() for t in tensors):
            raise ValueError(
                "no gradient has arrived. Call backward() on a loss of this run first, under "
                "torch.enable_grad(), and with something that requires a gradient before the layer."
            )
        found: dict[str, Tensor] = {}
        for name, tensors in self._sources.items():
            grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
            found[name] = grads[0] if grads[0].ndim == self[name].ndim else torch.stack(grads)
        return Recording(found, dims=self._dims)

    def detach(self) -> Recording:
        """The values alone, cut from the graph."""
        return Recording({n: t.detach() for n, t in self.items()}, dims=self._dims)

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Arrays by name; bfloat16, which NumPy lacks, as float32."""
        return {
            name: (t.float() if t.dtype is torch.bfloat16 else t).detach().cpu().numpy()
            for name, t in self.items()
        }

    def xarray(self) -> Any:
        """An ``xarray.Dataset``, dimensions ``time``, ``batch``, and those of each layer by path.

        Raises:
            ModuleNotFoundError: xarray is not installed.
        """
        require("xarray", extra="xarray", by="tt.probe's Recording.xarray()")
        import xarray

        data = {}
        for name, array in self.numpy().items():
            told = self._dims.get(name) or dims_of(name.rpartition(".")[0], array.ndim)
            data[name] = (tuple(told), array)
        return xarray.Dataset(data)
