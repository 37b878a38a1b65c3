"""``BatchNormThroughTime``: batch norm whose statistics and scale differ from step to step.

The step at which a norm stands is a state with one value per sample, so that exports and
``torch.compile`` follow it. It normalises one step after the other, by layer too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias, cast

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tracetorch.cell import StateKind
from tracetorch.core.checks import check_count, check_flag, check_nonnegative, check_share
from tracetorch.core.torch_private import BatchNorm, assert_async, functorch_active
from tracetorch.snn.connectivity import connectivity, write_weight
from tracetorch.snn.sequence_layer import SequenceLayer


class StepwiseNorm(BatchNorm):
    """Statistics and parameters of a batch norm per step, which PyTorch's tools find by class."""

    weight: nn.Parameter
    bias: nn.Parameter | None  # type: ignore[assignment]
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self, num_features: int, steps: int, eps: float, momentum: float, bias: bool
    ) -> None:
        super().__init__(num_features, eps, momentum)
        self.weight = nn.Parameter(torch.ones(steps, num_features))
        shift = nn.Parameter(torch.zeros(steps, num_features)) if bias else None
        self.register_parameter("bias", shift)
        self.running_mean = torch.zeros(steps, num_features)
        self.running_var = torch.ones(steps, num_features)
        self.num_batches_tracked = torch.zeros(steps, dtype=torch.long)


class BatchNormThroughTime(SequenceLayer):
    """Batch norm per time step (BNTT): statistics and scale of their own for each of ``steps``.

    ::

        output[t] = weight[t] * (x[t] - mean[t]) / sqrt(var[t] + eps)  [+ bias[t]]

    In training ``mean`` and ``var`` are those of step ``t`` over the batch and places, padded ones
    too; in evaluation the running ones. The step is counted from the last ``zero_states()``, per
    sample, in the state ``position``. **Steps from the last on share the values of the last.**

    Most networks do with ``nn.BatchNorm1d``, for which all steps are one batch. Values are in
    ``norm``, ``[steps, num_neurons]``, each process's own; ``layer.norm.eval()`` freezes them.

    Args:
        num_neurons: size of the input at ``dim``, the channels.
        dim: the dimension of the channels in the tensor of one step: -3 for ``[B, C, H, W]``.
        steps: time steps that have values of their own; at least 1.
        eps: added to the variance.
        momentum: weight of a batch's statistics in the running ones, in [0, 1].
        bias: whether there is one; the paper leaves it out, for neurons have a threshold.

    Shape:
        Input and output ``[B, ...]`` with ``num_neurons`` at ``dim``; ``position`` ``[B, 1, ...]``.

    Raises:
        TypeError, ValueError: as any neuron layer; the input has no batch, or, in training, one
            value per channel alone, or samples at different steps.

    Example:
        >>> layer = BatchNormThroughTime(2, steps=4)
        >>> y = torch.stack([layer(x) for x in torch.randn(6, 64, 2)])
        >>> bool(y.mean(1).abs().max() < 1e-5), layer.position[0].item()
        (True, 4)
        >>> layer.norm.weight.shape
        torch.Size([4, 2])

    Reference: Kim and Panda, Revisiting batch normalization for training low-latency deep spiking
    neural networks from scratch, Frontiers in Neuroscience 15 (2021).
    """

    states: ClassVar[tuple[str, ...]] = ("position",)
    _state_kind = StateKind(torch.int64, per_sample=True, learned=False)

    steps: int
    position: Tensor | None

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        *,
        steps: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        bias: bool = False,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.option("steps", check_count("steps", steps), fixed=True)
        eps, momentum = check_nonnegative("eps", eps), check_share("momentum", momentum)
        check_flag("bias", bias)
        self.norm = StepwiseNorm(num_neurons, steps, eps, momentum, bias)

    def __repr__(self) -> str:
        # without the values inside, which are no module that is called
        return super().__repr__().partition("(\n")[0]

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether statistics are those of the batch, in training and unless ``norm`` is frozen."""
        return (self.training and self.norm.training) or self.norm.running_mean is None

    def _check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        """Return the dtype of the arithmetic; raise where ``x`` does not fit the layer."""
        dtype = super()._check_input(x, sequence=sequence)
        shape = cast(Tensor, x).shape[sequence:]
        if self.dim in (0, -len(shape)):
            raise ValueError(
                f"{self._label()} takes the batch in dimension 0, where {list(shape)} has its "
                "channels. Give it a batch dimension."
            )
        if self.uses_batch_statistics and shape.numel() < 2 * self.num_neurons:
            raise ValueError(
                f"{self._label()} takes statistics over the batch in training, and {list(shape)} "
                "has fewer than two values per channel. Use drop_last=True, or model.eval()."
            )
        return dtype

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step."""
        dtype = self._check_input(x)
        if self.uses_batch_statistics:
            y, positions = self._run(x.unsqueeze(0), dtype)
            self.position = positions[-1]
            return y.squeeze(0).to(x.dtype)
        start = cast(Tensor, self._states_for(x, dtype)[0])
        y = self._by_running(x.to(dtype), start.clamp(max=self.steps - 1).flatten())
        self.position = (start + 1).clamp(max=self.steps)
        return y.to(x.dtype)

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` ``[T, ...]``, in training one after the other."""
        dtype = self._check_input(x, sequence=True)
        self._check_record(record)
        y, positions = self._run(x, dtype)
        if len(x):
            self.position = positions[-1].clone()
        return y.to(x.dtype), dict.fromkeys(record, positions)

    def _run(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the outputs, and the positions after every step."""
        start = cast(Tensor, self._states_for(x, dtype, sequence=True)[0])
        if self.uses_batch_statistics and self.position is not None:
            self._check_one_step((start == start[:1]).all())
        positions = start + torch.arange(len(x), device=x.device).view(-1, *[1] * start.ndim)
        # the step of every sample, the last one for all behind it
        index = positions.clamp(max=self.steps - 1).flatten(1)
        normalised = self._by_batch if self.uses_batch_statistics else self._by_running
        return normalised(x.to(dtype), index), (positions + 1).clamp(max=self.steps)

    def _check_one_step(self, same: Tensor) -> None:
        """Raise where the samples stand at different steps."""
        if torch.compiler.is_compiling():
            assert_async(same, _DIFFERENT)
        elif not same.is_meta and not functorch_active() and not bool(same):
            raise ValueError(f"{self._label()} {_DIFFERENT}")

    def _by_batch(self, x: Tensor, index: Tensor) -> Tensor:
        """Normalise steps by their own batch, and track them; rows ``[T, B]``, alike in a step."""
        if not len(x):
            return x.clone()
        norm, dtype, rows = self.norm, x.dtype, index[:, :1]
        weights = norm.weight.to(dtype)[index[:, 0]].unbind()
        biases = [None] * len(x) if norm.bias is None else norm.bias.to(dtype)[index[:, 0]].unbind()
        tracked = [each for each in (norm.running_mean, norm.running_var) if each is not None]
        outputs: list[Tensor] = []
        for step, row, weight, bias in zip(x.unbind(), rows.unbind(), weights, biases, strict=True):
            values = [each[row].squeeze(0).to(dtype) for each in tracked]
            mean, var = values or (None, None)
            momentum = norm.momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.index_add_(0, row, torch.ones_like(row))
                if momentum is None and not row.is_meta:  # the mean of all batches
                    momentum = 1 / float(norm.num_batches_tracked[row])
            given, settings = step.movedim(self.dim, 1), (True, momentum or 0.0, norm.eps)
            y = F.batch_norm(given, mean, var, weight, bias, *settings)
            outputs.append(y.movedim(1, self.dim))
            for each, value in zip(tracked, values, strict=True):
                each.index_copy_(0, row, value.unsqueeze(0).to(each.dtype))
        return torch.stack(outputs)

    def _by_running(self, x: Tensor, index: Tensor) -> Tensor:
        """Normalise by the running statistics of each sample's step, rows ``[T, B]`` or ``[B]``."""
        norm = self.norm
        values: list[Any] = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
        few = index.ndim == 1 and not torch.compiler.is_compiling() and len(index) < self.steps
        if few:  # only the rows that are read; a program takes any batch
            values = [each if each is None else each.index_select(0, index) for each in values]
        mean, var, weight, bias = cast(Any, [v if v is None else v.to(x.dtype) for v in values])
        scale = weight * (var + norm.eps).rsqrt()
        shift = -mean * scale if bias is None else bias - mean * scale
        if not few:
            shift, scale = (each.index_select(0, index.flatten()) for each in (shift, scale))
        sizes = [1] * (x.ndim - index.ndim + 1)
        sizes[self.dim] = self.num_neurons
        shape = (*index.shape, *sizes[1:])
        return torch.addcmul(shift.reshape(shape), x, scale.reshape(shape))


_DIFFERENT = (
    "has samples at different steps: in training its statistics are those of one step, over the "
    "batch. Call zero_states() for all samples, or model.eval()."
)


# Folding into the product before

# nn.Linear, nn.Conv1d, nn.Conv2d and nn.Conv3d: a weight with the outputs first, and a bias or none
WeightedLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def needs_batch(module: nn.Module) -> bool:
    """Whether a module is a batch norm without statistics: it computes with its batch always."""
    return isinstance(module, BatchNorm) and (
        module.running_mean is None or module.running_var is None
    )


def norm_affine(norm: Any) -> tuple[Tensor, Tensor] | None:
    """Return factor and summand of a batch norm, in float64; ``None`` without statistics."""
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = (norm.running_var.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


@torch.no_grad()
def scale_product(product: WeightedLayer, scale: Tensor, shift: Tensor) -> None:
    """Multiply and shift the outputs of a product, in place: what a norm behind it computes."""
    if product.bias is not None:
        shift = shift + product.bias.double() * scale
    values = product.weight
    write_weight(product, values.double() * scale.reshape(-1, *[1] * (values.ndim - 1)))
    product.bias = nn.Parameter(shift.to(values.dtype))


def fold_into(product: WeightedLayer, norm: Any) -> str | None:
    """Fold a norm into the product before it, in place, or return why it cannot be."""
    affine, rule = norm_affine(norm), connectivity(product)
    if affine is None:
        return "has no running statistics to fold. It needs track_running_stats=True."
    if rule is not None and rule.signs is not None and bool((affine[0] < 0).any()):
        return (
            "has a negative weight, which turns the signs around that the product before it was "
            "given (tt.snn.connect). Make it positive, or leave signs out."
        )
    scale_product(product, *affine)
    return None
