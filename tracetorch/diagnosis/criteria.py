"""Watch the calls of PyTorch's losses while a loss is computed."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor
from torch.overrides import TorchFunctionMode

CLASSIFIES: tuple[Any, ...] = (F.cross_entropy, F.nll_loss)
_LOSSES: tuple[Any, ...] = (*CLASSIFIES, F.binary_cross_entropy_with_logits)
_PROBABILITIES = ("softmax", "sigmoid")
_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "Tanh": "tanh"} | dict.fromkeys(
    ("Relu", "Hardtanh", "ClampMin", "Clamp"), "ReLU"
)
# operations that select, order or average, behind which an activation is still that of the output
_PASSIVE = {
    *("View", "UnsafeView", "ReshapeAlias", "AsStrided", "Squeeze", "Unsqueeze", "Transpose"),
    *("T", "Permute", "Mean", "Sum", "Div", "Stack", "Cat", "Select", "Slice", "Expand", "ToCopy"),
    *("Clone", "Alias", "Unbind", "Index", "IndexSelect", "Gather", "Amax", "Max", "MaskedFill"),
}


class Criterion(NamedTuple):
    """Call of a loss of PyTorch's that takes classes or logits."""

    function: Any
    input: Tensor  # what it is given, in the graph
    target: Tensor


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
        if func in _LOSSES:
            given = (*args, *(kwargs[name] for name in ("input", "target") if name in kwargs))
            self.found.append(Criterion(func, *given[:2]))
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
            return activation if clamped is None or activation in _PROBABILITIES else clamped
        elif name not in _PASSIVE and not (name == "Add" and len(inputs) == 1):
            return clamped
        # of many steps that are stacked the first
        node = inputs[0] if inputs else None
    return clamped
