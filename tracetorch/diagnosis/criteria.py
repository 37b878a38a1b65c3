"""Watch the calls of PyTorch's losses while a loss is computed: ``Criterion``, ``Criteria``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor
from torch.overrides import TorchFunctionMode

CLASSIFIES: tuple[Any, ...] = (F.cross_entropy, F.nll_loss)
BINARY: Any = F.binary_cross_entropy_with_logits
_LOSSES: tuple[Any, ...] = (
    *(*CLASSIFIES, BINARY, F.binary_cross_entropy, F.mse_loss, F.l1_loss, F.smooth_l1_loss),
    *(F.huber_loss, F.kl_div, F.multi_margin_loss, F.poisson_nll_loss),
)
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
    """Call of a loss of PyTorch's, or of a square.

    Args:
        function: the loss.
        input: what it is given, in the graph.
        target: the other argument; ``None`` for a square.
        gradients: of the whole loss by what the call returns, once it is known.
    """

    function: Callable[..., Any]
    input: Tensor
    target: Tensor | None
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
        if func in _LOSSES or squares:
            tensors = [each for each in given[:2] if isinstance(each, Tensor)]
            if tensors and isinstance(result, Tensor) and result.requires_grad:
                target = tensors[1] if len(tensors) > 1 else None
                criterion = Criterion(func, tensors[0], target)
                result.register_hook(criterion.gradients.append)  # type: ignore[no-untyped-call]
                self.found.append(criterion)
        return result


def last_activation(tensor: Tensor) -> str | None:
    """Name the activation that a tensor is the output of, but for selecting and averaging."""
    node: Any = tensor.grad_fn
    while node is not None:
        name = re.sub(r"Backward\d*$", "", node.name())
        if name in _ACTIVATIONS:
            return _ACTIVATIONS[name]
        if name not in _PASSIVE:
            return None
        # of many steps that are stacked the first
        node = next((each for each, _ in node.next_functions if each is not None), None)
    return None
