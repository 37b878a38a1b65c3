"""Watch the calls of PyTorch's losses while a loss is computed, and try it on equal outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tracetorch.core.snapshot import random_restored

CLASSIFIES: tuple[Any, ...] = (F.cross_entropy, F.nll_loss)
BINARY: Any = F.binary_cross_entropy_with_logits
_LOSSES: tuple[Any, ...] = (
    *(*CLASSIFIES, BINARY, F.binary_cross_entropy, F.mse_loss, F.l1_loss, F.smooth_l1_loss),
    *(F.huber_loss, F.kl_div, F.multi_margin_loss, F.poisson_nll_loss),
)
LOGARITHMS: tuple[Any, ...] = (torch.log, Tensor.log)
_LEVEL = 0.5  # a membrane, a rate, a probability
PROBABILITIES = ("softmax", "sigmoid")
_SQUARES: tuple[Any, ...] = (Tensor.square, torch.square)
_POWERS: tuple[Any, ...] = (Tensor.pow, torch.pow, Tensor.__pow__)
_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "Tanh": "tanh"} | dict.fromkeys(
    ("Relu", "Hardtanh", "ClampMin", "Clamp"), "ReLU"
)
# operations that select, order or average, behind which an activation is still that of the output
_PASSIVE = {
    *("View", "UnsafeView", "ReshapeAlias", "AsStrided", "Squeeze", "Unsqueeze", "Transpose"),
    *("T", "Permute", "Mean", "Sum", "Div", "Stack", "Cat", "Select", "Slice", "Expand", "ToCopy"),
    *("Clone", "Alias", "Unbind", "Index", "IndexSelect", "Gather", "Amax", "Max", "MaskedFill"),
}


@dataclass
class Criterion:
    """Call of a loss of PyTorch's, of a square, or of a logarithm."""

    function: Callable[..., Any]
    input: Tensor  # what it is given, in the graph
    target: Tensor | None  # of a loss
    # of the whole loss by what the call returns, once it is known
    gradients: list[Tensor] = field(default_factory=list)

    @property
    def direction(self) -> int:
        """Sign of the change of the whole loss where this one grows; 0 where it has none.

        Advantages of reinforcement learning, negative ones too, differ from sample to sample.
        """
        values = torch.cat([g.flatten() for g in self.gradients] or [torch.zeros(0)])
        values = values[values != 0]
        if not len(values) or bool((values > 0).all()):
            return int(len(values) > 0)
        return -int(torch.allclose(values, values[:1].clamp(max=0), rtol=1e-2))


class Criteria(TorchFunctionMode):
    """Collect the calls of losses within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Criterion] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        names = ("input", "target", "exponent")
        given = (*args, *(kwargs[name] for name in names if name in kwargs))
        squares = func in _SQUARES or (func in _POWERS and repr(given[1]) in ("2", "2.0"))
        if func in _LOSSES or func in LOGARITHMS or squares:
            tensors = [each for each in given[:2] if isinstance(each, Tensor)]
            if tensors and isinstance(result, Tensor) and result.requires_grad:
                target = tensors[1] if len(tensors) > 1 else None
                criterion = Criterion(func, tensors[0], target)
                result.register_hook(criterion.gradients.append)  # type: ignore[no-untyped-call]
                self.found.append(criterion)
        return result


def last_activation(tensor: Tensor) -> str | None:
    """Name the activation that a tensor is the output of, but for selecting and averaging.

    Behind a clamp, or the sum with a number, it may be that of probabilities.
    """
    node: Any = tensor.grad_fn
    clamped = None
    while node is not None:
        name = re.sub(r"Backward\d*$", "", node.name())
        inputs = [each for each, _ in node.next_functions if each is not None]
        activation = _ACTIVATIONS.get(name)
        if activation == "ReLU":
            clamped = "ReLU"
        elif activation is not None:
            return activation if clamped is None or activation in PROBABILITIES else clamped
        elif name not in _PASSIVE and not (name == "Add" and len(inputs) == 1):
            return clamped
        # of many steps that are stacked the first
        node = inputs[0] if inputs else None
    return clamped


def class_pull(
    loss: Callable[[Any], Tensor], outputs: Sequence[Tensor], given: Sequence[Any]
) -> Tensor | None:
    """Return each sample's class, and by how much the loss grows with the output of that class.

    Where all outputs are equal a loss knows no sample from another: its slopes are those of what it
    wants. ``None`` for outputs that are not ``[T, B, C]``, without classes as a target, and for a
    loss that is not finite there.
    """
    y = outputs[0] if len(outputs) == 1 else torch.empty(0)
    labels = next((each for each in map(_classes, given) if each is not None), None)
    if y.ndim != 3 or not y.is_floating_point() or labels is None or len(labels) != y.shape[1]:
        return None
    if y.shape[2] < 2 or not 0 <= int(labels.min()) < int(labels.max()) < y.shape[2]:
        return None
    try:
        with (
            random_restored({y.device.index} if y.is_cuda else ()),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            even = torch.full_like(y, _LEVEL).requires_grad_()
            slopes = torch.autograd.grad(loss(even), even)[0].double().sum(0)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    right = slopes.gather(1, labels[:, None].to(slopes.device))[:, 0]
    pull = right - (slopes.sum(1) - right) / (y.shape[2] - 1)
    return torch.stack([labels.to(pull), pull], 1) if bool(pull.isfinite().all()) else None


def _classes(target: Any) -> Tensor | None:
    """Return the classes ``[B]`` of a target of integers, or of probabilities ``[B, C]``."""
    if not isinstance(target, Tensor) or not target.numel() or target.dtype == torch.bool:
        return None
    if target.is_floating_point() and target.ndim == 2:
        return target.argmax(1) if bool((target.amax(1) > target.mean(1)).all()) else None
    return target.long() if target.ndim == 1 and not target.is_floating_point() else None
