"""Accumulate metrics over many batches, as torchmetrics: ``update``, ``compute``, ``reset``.

They sum over batches and over processes, and work wherever a ``torchmetrics.Metric`` does, such as
in a ``MetricCollection`` or in Lightning's ``self.log``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tracetorch.core.checks import check_count, check_integer, check_share
from tracetorch.metrics.accuracy import By, check_by, correct
from tracetorch.metrics.activity import SATURATED, count_spikes
from tracetorch.metrics.observe import observe
from tracetorch.metrics.operations import SynapticOperations, check_counted, sum_operations
from tracetorch.probe.layers import neuron_layers

_FIGURES = (*(each.name for each in dataclasses.fields(SynapticOperations)), "membrane_updates")


class _SumMetric(Metric):
    """Base of metrics that are computed from named sums in float64."""

    full_state_update = False
    higher_is_better: bool | None = None
    is_differentiable = False

    def _begin_sums(self, *names: str, shape: tuple[int, ...] = ()) -> None:
        # In float64: counts over a data set exceed the integers that float32 holds exactly.
        for name in names:
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, **terms: Any) -> None:
        for name, term in terms.items():
            setattr(self, name, getattr(self, name) + term)

    def _share(self, part: Any, whole: Any) -> Tensor:
        if not bool(whole.any()):
            raise ValueError(f"{type(self).__name__} has seen no batch. Call update() first.")
        share: Tensor = part / whole
        return share.to(torch.get_default_dtype())


class Accuracy(_SumMetric):
    """:func:`accuracy` over many batches.

    Args:
        by: ``"rate"``, ``"count"``, ``"first_spike"``, ``"last"`` or ``"maximum"``.
        kwargs: as for ``torchmetrics.Metric``.

    Raises:
        ValueError: ``by`` is unknown.

    Example:
        >>> metric = Accuracy(by="last")
        >>> metric.update(torch.eye(3).expand(5, 3, 3), torch.tensor([0, 1, 1]))
        >>> metric.compute()
        tensor(0.6667)
    """

    higher_is_better = True

    def __init__(self, by: By = "rate", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_by(by)
        self.by = by
        # A MetricCollection merges metrics with states of equal names and values: name the decoder.
        self._correct = f"correct_by_{by}"
        self._begin_sums(self._correct, "samples")

    def update(self, x: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch; arguments as :func:`accuracy`."""
        hits = correct(x, target, by=self.by, mask=mask)
        self._add(**{self._correct: hits.sum(), "samples": len(hits)})

    def compute(self) -> Tensor:
        """Return the share of samples that were classified correctly."""
        return self._share(getattr(self, self._correct), self.samples)


class FiringRate(_SumMetric):
    """:func:`firing_rate` over many batches; ``1 - FiringRate`` is the sparsity.

    Example:
        >>> metric = FiringRate()
        >>> metric.update(torch.ones(5, 2, 3))
        >>> metric.update(torch.zeros(5, 6, 3))
        >>> metric.compute()
        tensor(0.2500)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._begin_sums("fired", "total")

    def update(self, spikes: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch; arguments as :func:`firing_rate`."""
        fired, total = count_spikes(spikes, dim=None, mask=mask)
        self._add(fired=fired, total=total)

    def compute(self) -> Tensor:
        """Return the share of steps with a spike."""
        return self._share(self.fired, self.total)


class Sparsity(FiringRate):
    """:func:`sparsity` over many batches.

    Example:
        >>> metric = Sparsity()
        >>> metric.update(torch.ones(5, 2, 3))
        >>> metric.update(torch.zeros(5, 6, 3))
        >>> metric.compute()
        tensor(0.7500)
    """

    def compute(self) -> Tensor:
        """Return the share of zeros."""
        return 1 - super().compute()


class _PerNeuronMetric(_SumMetric):
    """Base of metrics that are computed from the spike counts of every neuron of a layer."""

    def __init__(self, num_neurons: int, dim: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_neurons = check_count("num_neurons", num_neurons)
        self.dim = check_integer("dim", dim)
        # A MetricCollection merges metrics with states of equal names and values: name the dim.
        along = f"along_{self.dim}".replace("-", "minus_")
        self._fired, self._total = f"fired_{along}", f"total_{along}"
        self._begin_sums(self._fired, self._total, shape=(num_neurons,))

    @property
    def fired(self) -> Tensor:
        """Number of spikes of every neuron until now."""
        return cast("Tensor", getattr(self, self._fired))

    @property
    def total(self) -> Tensor:
        """Number of steps and positions at which every neuron could have fired."""
        return cast("Tensor", getattr(self, self._total))

    def update(self, spikes: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of outputs of the layer, ``[T, B, ...]``."""
        fired, total = count_spikes(spikes, dim=self.dim, mask=mask)
        # Otherwise the sum would broadcast, or fail without naming the layer.
        if len(fired) != self.num_neurons:
            raise ValueError(
                f"{type(self).__name__} was made for {self.num_neurons} neurons at dim {self.dim}, "
                f"spikes have {len(fired)} there, shape {list(spikes.shape)}."
            )
        self._add(**{self._fired: fired, self._total: total})

    def _share_of(self, marked: Tensor) -> Tensor:
        return self._share(marked.double().sum(), (self.total > 0).sum())


class DeadNeurons(_PerNeuronMetric):
    """Share of a layer's neurons that fired in none of many batches.

    A neuron that is silent in one batch may fire in others; use this over a whole data set, and
    :func:`dead` for one batch.

    Args:
        num_neurons: number of neurons of the layer.
        dim: the layer's neuron dimension.
        kwargs: as for ``torchmetrics.Metric``.

    Raises:
        TypeError, ValueError: an argument is wrong, or ``num_neurons`` not what the spikes have.

    Example:
        >>> metric = DeadNeurons(4)
        >>> for spikes in torch.eye(4)[:3]:
        ...     metric.update(spikes.expand(5, 2, 4))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the share of neurons that never fired."""
        return self._share_of(self.fired == 0)


class SaturatedNeurons(_PerNeuronMetric):
    """Share of a layer's neurons that fired at nearly every step of many batches.

    Args:
        num_neurons: number of neurons of the layer.
        dim: the layer's neuron dimension.
        above: the firing rate from which a neuron is :func:`saturated`.
        kwargs: as for ``torchmetrics.Metric``.

    Raises:
        TypeError, ValueError: an argument is wrong, or ``num_neurons`` not what the spikes have.

    Example:
        >>> metric = SaturatedNeurons(2)
        >>> metric.update(torch.tensor([1.0, 0.0]).expand(5, 2, 2))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = False

    def __init__(
        self, num_neurons: int, dim: int = -1, above: float = SATURATED, **kwargs: Any
    ) -> None:
        super().__init__(num_neurons, dim, **kwargs)
        self.above = check_share("above", above)

    def compute(self) -> Tensor:
        """Return the share of neurons whose rate reached ``above``."""
        return self._share_of(self.fired >= self.above * self.total)


class Operations(_SumMetric):
    """:func:`synaptic_operations` and :func:`membrane_updates` over many batches, per sample.

    Args:
        steps: as for ``tt.unroll``.
        by: as for ``tt.unroll``.
        kwargs: as for ``torchmetrics.Metric``.

    Example:
        >>> metric = Operations()
        >>> metric.update(nn.Sequential(nn.Linear(4, 3), LIF(3)), torch.ones(5, 2, 4))
        >>> {name: float(figure) for name, figure in metric.compute().items()}
        {'effective_macs': 0.0, 'effective_acs': 60.0, 'dense': 60.0, 'membrane_updates': 15.0}
    """

    def __init__(
        self, *, steps: int | None = None, by: Literal["layer", "step"] = "layer", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.steps = steps
        self.by = by
        self._begin_sums(*_FIGURES, "samples")

    def update(self, model: nn.Module, x: Any, mask: Tensor | None = None) -> None:
        """Run the model on a batch, from rest, and add its operations; the model is restored.

        Args:
            model: the model.
            x: its inputs ``[T, B, ...]``.
            mask: ``[T, B]``, true where a step is real; others are run and not counted.
        """
        neuron_layers(model)  # raises where nothing has a membrane
        modules, inputs = observe(model, x, steps=self.steps, by=self.by, mask=mask)
        check_counted(modules)
        updates = sum(stats.updates for stats in modules)
        operations = dataclasses.asdict(sum_operations(modules, 1))
        self._add(**operations, membrane_updates=updates, samples=inputs.batch)

    def compute(self) -> dict[str, Tensor]:
        """Return each figure per sample, by name."""
        return {name: self._share(getattr(self, name), self.samples) for name in _FIGURES}
