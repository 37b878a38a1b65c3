"""Hold recorded trajectories by name, as tensors, arrays or a labelled data set: ``Recording``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tracetorch.core.checks import check_positive
from tracetorch.core.optional import require
from tracetorch.core.spike_values import Kind, Trajectories
from tracetorch.probe.layers import dimension_names, recordable_names, spike_kinds
from tracetorch.probe.neo_block import neo_block
from tracetorch.snn.module import TTModule
from tracetorch.unrolling.trajectories import select_names

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Recording(Trajectories):
    """Trajectories ``[T, B, ...]`` by ``"path.name"``: ``recording["net.1.mem"]``.

    It is a mapping of names to tensors, and goes wherever one goes. Its tensors are part of the
    graph of the run; :meth:`detach` frees them from it.

    Args:
        trajectories: tensors ``[T, ...]`` by name.
        dims: names of the dimensions of each, for :meth:`xarray`; ``time``, ``batch`` and numbers
            where left out.
        sources: the tensors of the run whose gradients are wanted, for each name either one
            ``[T, ...]`` or one for every step.
        kinds: ``"spikes"``, ``"scaled spikes"`` or ``"state"`` by name, for :meth:`to_neo` and
            ``tt.plot.save_html``; names and values tell where left out.

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
        dims: Mapping[str, Sequence[str]] | None = None,
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
        self._dims = dict(dims or {})
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
            dims=self._dims,
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
        return Recording(gradients, dims=self._dims, kinds=dict.fromkeys(gradients, "state"))

    def detach(self) -> Recording:
        """Return the values alone, detached from the graph."""
        values = {name: value.detach() for name, value in self.items()}
        return Recording(values, dims=self._dims, kinds=self.kinds)

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Return NumPy arrays by name; bfloat16, which NumPy lacks, as float32."""
        return {
            name: (t.float() if t.dtype is torch.bfloat16 else t).detach().cpu().numpy()
            for name, t in self.items()
        }

    def xarray(self) -> Any:
        """Return an ``xarray.Dataset``, its dimensions time, batch, and those of each layer.

        Raises:
            ModuleNotFoundError: xarray is not installed.
        """
        require("xarray", extra="xarray", by="tt.probe's Recording.xarray()")
        import xarray

        data = {}
        for name, array in self.numpy().items():
            path = name.rpartition(".")[0]
            dims = self._dims.get(name) or dimension_names(path, array.ndim)
            data[name] = (tuple(dims), array)
        return xarray.Dataset(data)

    def to_neo(self, dt: float) -> Any:
        """Return a ``neo.Block``, a segment for each sample, to analyse with Elephant.

        Spikes become ``SpikeTrain``s, one for each neuron, negative spikes trains of their own;
        states become an ``AnalogSignal`` for each trajectory, a channel for each neuron. Step ``t``
        lasts from ``t * dt`` to ``(t + 1) * dt``: its spikes are in the middle, at ``(t + 0.5) *
        dt``, so that bins of ``dt`` hold one step each, and so is its sample of the states.

        The ``output`` and ``prev_output`` of a spiking neuron are spikes, a whole number k being k
        spikes at one time (one spike of that size where the layer scales them); inputs, states, the
        output of a readout and fractions of many sizes are signals. In a recording of your own,
        the values of ``output`` decide: whole numbers are spikes; and other names than ``input``,
        ``mem``, ``syn`` and ``rec`` are spikes where each neuron has zeros and one positive and one
        negative value.

        Each has ``path``, each spike train its ``neuron`` (in the flattened dimensions after the
        batch) and ``sign`` too, among its annotations.

        Args:
            dt: duration of a step in milliseconds; above 0.

        Raises:
            ModuleNotFoundError: neo is not installed.
            TypeError: ``dt`` is not a number.
            ValueError: ``dt`` is out of range, there is nothing recorded, a trajectory has no batch
                or no neurons, ``[T, B, ...]``, or they differ in steps or batch.
        """
        dt = check_positive("dt", dt, unit="milliseconds")
        for name, value in self.items():
            if value.ndim < 3:
                raise ValueError(
                    f"{name!r} must be [T, B, ...] for Recording.to_neo, got {list(value.shape)}."
                )
        shapes = {tuple(value.shape[:2]) for value in self.values()}
        if len(shapes) != 1:
            raise ValueError(
                "Recording.to_neo takes trajectories of one number of steps and samples, got "
                f"{sorted(shapes)}. Select some that have: recording.select(...)."
            )
        require("neo", extra="neuroscience", by="tt.probe's Recording.to_neo()")
        ((steps, _),) = shapes
        return neo_block(self.numpy(), steps, dt, self.kinds)


def recording_of(
    layers: Mapping[str, TTModule],
    trajectories: Mapping[str, Tensor],
    sources: Mapping[str, Sequence[Tensor]] | None,
) -> Recording:
    """Return trajectories of layers with the names of their dimensions, and their kinds."""
    paths = {name: path for name, (path, _) in recordable_names(layers).items()}
    dims = {
        name: dimension_names(paths[name], value.ndim, layers[paths[name]])
        for name, value in trajectories.items()
    }
    return Recording(trajectories, dims=dims, sources=sources, kinds=spike_kinds(layers))


def join_gradients(tensors: Sequence[Tensor], grads: Sequence[Tensor | None], ndim: int) -> Tensor:
    """Return the gradient of a trajectory of ``ndim`` dimensions; a missing one is zero."""
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)]
    # One source spans all steps, or there is one for each step.
    return filled[0] if filled[0].ndim == ndim else torch.stack(filled)
