"""The same figures over many batches, as torchmetrics: ``update``, ``compute``, ``reset``.

They are summed over batches and over processes, and work wherever a ``torchmetrics.Metric`` does:
in a ``MetricCollection``, in Lightning's ``self.log``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tracetorch.core.checks import check_count, check_integer
from tracetorch.metrics.accuracy import By, check_by, right
from tracetorch.metrics.activity import check_above, firings
from tracetorch.metrics.observe import observe
from tracetorch.metrics.operations import (
    SynapticOperations,
    check_counted,
    check_neurons,
    operations_of,
)


class _Sums(Metric):
    """Named sums in float64."""

    full_state_update = False
    higher_is_better: bool | None = None
    is_differentiable = False

    def _sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")


class Accuracy(_Sums):
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
    samples: Tensor

    def __init__(self, by: By = "rate", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_by(by)
        self.by = by
        # A MetricCollection lets metrics share whose states are called alike and start alike.
        self._right = f"right_by_{by}"
        self._sum(self._right)
        self._sum("samples")

    def update(self, x: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Take a batch; arguments as :func:`accuracy`."""
        named = right(x, target, by=self.by, mask=mask)
        setattr(self, self._right, getattr(self, self._right) + named.sum())
        self.samples += len(named)

    def compute(self) -> Tensor:
        """The share of samples whose class was named right."""
        return _share(getattr(self, self._right), self.samples)


class FiringRate(_Sums):
    """:func:`firing_rate` over many batches; ``1 - FiringRate`` is the sparsity.

    Args:
        kwargs: as for ``torchmetrics.Metric``.

    Example:
        >>> metric = FiringRate()
        >>> metric.update(torch.ones(5, 2, 3))
        >>> metric.update(torch.zeros(5, 6, 3))
        >>> metric.compute()
        tensor(0.2500)
    """

    fired: Tensor
    chances: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sum("fired")
        self._sum("chances")

    def update(self, spikes: Tensor, mask: Tensor | None = None) -> None:
        """Take a batch; arguments as :func:`firing_rate`."""
        fired, chances = firings(spikes, dim=None, mask=mask)
        self.fired += fired
        self.chances += chances

    def compute(self) -> Tensor:
        """The share of steps with a spike."""
        return _share(self.fired, self.chances)


class Sparsity(FiringRate):
    """:func:`sparsity` over many batches.

    Args:
        kwargs: as for ``torchmetrics.Metric``.

    Example:
        >>> metric = Sparsity()
        >>> metric.update(torch.ones(5, 2, 3))
        >>> metric.update(torch.zeros(5, 6, 3))
        >>> metric.compute()
        tensor(0.7500)
    """

    def compute(self) -> Tensor:
        """The share of zeros."""
        return 1 - super().compute()


class _PerNeuron(_Sums):
    """Spikes and chances of every neuron of one layer."""

    def __init__(self, num_neurons: int, dim: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_neurons = check_count("num_neurons", num_neurons)
        self.dim = check_integer("dim", dim)
        # A MetricCollection lets metrics share whose states are called alike and start alike.
        along = f"along_{self.dim}".replace("-", "minus_")
        self._fired, self._chances = f"fired_{along}", f"chances_{along}"
        self._sum(self._fired, num_neurons)
        self._sum(self._chances, num_neurons)

    @property
    def fired(self) -> Tensor:
        """Spikes of every neuron until now."""
        fired: Tensor = getattr(self, self._fired)
        return fired

    @property
    def chances(self) -> Tensor:
        """Steps and places at which every neuron could have fired."""
        chances: Tensor = getattr(self, self._chances)
        return chances

    def update(self, spikes: Tensor, mask: Tensor | None = None) -> None:
        """Take a batch of outputs of the layer, ``[T, B, ...]``."""
        fired, chances = firings(spikes, dim=self.dim, mask=mask)
        if len(fired) != self.num_neurons:
            raise ValueError(
                f"{type(self).__name__} was made for {self.num_neurons} neurons at dim {self.dim}, "
                f"spikes have {len(fired)} there, shape {list(spikes.shape)}."
            )
        setattr(self, self._fired, self.fired + fired)
        setattr(self, self._chances, self.chances + chances)

    def _checked(self) -> None:
        if not bool(self.chances.any()):
            raise ValueError(f"{type(self).__name__} has seen no batch. Call update() first.")


class DeadNeurons(_PerNeuron):
    """The share of a layer's neurons that fired in none of many batches.

    In one batch a neuron may be silent by chance; over a whole data set, :func:`dead` it is.

    Args:
        num_neurons: neurons of the layer.
        dim: the layer's neuron dimension.
        kwargs: as for ``torchmetrics.Metric``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``num_neurons`` is below 1, or not what the spikes have.

    Example:
        >>> metric = DeadNeurons(4)
        >>> for spikes in torch.eye(4)[:3]:
        ...     metric.update(spikes.expand(5, 2, 4))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The share of neurons that never fired."""
        self._checked()
        return (self.fired == 0).double().mean().to(torch.get_default_dtype())


class SaturatedNeurons(_PerNeuron):
    """The share of a layer's neurons that fired at nearly every step of many batches.

    Args:
        num_neurons: neurons of the layer.
        dim: the layer's neuron dimension.
        above: the firing rate from which a neuron is :func:`saturated`.
        kwargs: as for ``torchmetrics.Metric``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``num_neurons`` is below 1, or not what the spikes have.

    Example:
        >>> metric = SaturatedNeurons(2)
        >>> metric.update(torch.tensor([1.0, 0.0]).expand(5, 2, 2))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = False

    def __init__(self, num_neurons: int, dim: int = -1, above: float = 0.9, **kwargs: Any) -> None:
        super().__init__(num_neurons, dim, **kwargs)
        check_above(above)
        self.above = above

    def compute(self) -> Tensor:
        """The share of neurons whose rate reached ``above``."""
        self._checked()
        often = self.fired >= self.above * self.chances
        return often.double().mean().to(torch.get_default_dtype())


class Operations(_Sums):
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

    Reference: Yik et al., "The NeuroBench framework", Nature Communications 16 (2025).
    """

    effective_macs: Tensor
    effective_acs: Tensor
    dense: Tensor
    membrane_updates: Tensor
    samples: Tensor

    def __init__(
        self, *, steps: int | None = None, by: Literal["layer", "step"] = "layer", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.steps = steps
        self.by = by
        for name in ("effective_macs", "effective_acs", "dense", "membrane_updates", "samples"):
            self._sum(name)

    def update(self, model: nn.Module, x: Any, mask: Tensor | None = None) -> None:
        """Run the model on a batch, from rest; it is as before after it.

        Args:
            model: the model.
            x: its inputs ``[T, B, ...]``.
            mask: ``[T, B]``, true where a step is real; others are run and not counted.
        """
        check_neurons(model)
        seen, given = observe(model, x, steps=self.steps, by=self.by, mask=mask)
        check_counted(seen)
        total: SynapticOperations = operations_of(seen, 1)
        self.effective_macs += total.effective_macs
        self.effective_acs += total.effective_acs
        self.dense += total.dense
        self.membrane_updates += sum(each.updates for each in seen)
        self.samples += given.batch

    def compute(self) -> dict[str, Tensor]:
        """Each figure per sample, by name."""
        names = ("effective_macs", "effective_acs", "dense", "membrane_updates")
        return {name: _share(getattr(self, name), self.samples) for name in names}


def _share(part: Tensor, whole: Tensor) -> Tensor:
    if not bool(whole):
        raise ValueError("the metric has seen no batch. Call update() first.")
    return (part / whole).to(torch.get_default_dtype())
