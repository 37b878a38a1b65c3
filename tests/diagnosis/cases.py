"""Networks that learn, and networks with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.cases import Net
from tracetorch import functional, snn

B, N, CLASSES = 16, 20, 4


def target() -> Tensor:
    return torch.arange(B) % CLASSES


def mean(y: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(y.mean(0), t)


def last(y: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(y[-1], t)


# The models are Any: tests reach into their layers, whose attributes nn.Module does not declare.
def dense(neuron: str = "LIF", **arguments: Any) -> Any:
    torch.manual_seed(0)
    layer = getattr(snn, neuron)(48, **arguments)
    return nn.Sequential(nn.Linear(N, 48), layer, nn.Linear(48, CLASSES), snn.Readout(CLASSES))


def surrogate(spike: Any) -> Any:
    return dense(surrogate_derivative=spike)


def deep(layers: int, **arguments: Any) -> Any:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Linear(N, 32), snn.LIF(32, **arguments)]
    for _ in range(layers - 1):
        parts += [nn.Linear(32, 32), snn.LIF(32, **arguments)]
    return nn.Sequential(*parts, nn.Linear(32, CLASSES), snn.Readout(CLASSES))


def conv() -> Any:
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), snn.LIF(8, dim=-3), nn.MaxPool2d(2))
    head = (nn.Flatten(), nn.Dropout(0.2), nn.Linear(72, CLASSES), snn.Readout(CLASSES))
    return nn.Sequential(*body, *head)


def recurrent(scale: float = 1.0, **arguments: Any) -> Any:
    torch.manual_seed(0)
    connection = nn.Linear(32, 32)
    with torch.no_grad():
        connection.weight.mul_(scale)
    loop = snn.Recurrent(snn.LIF(32, **arguments), connection)
    return nn.Sequential(nn.Linear(N, 32), loop, nn.Linear(32, CLASSES), snn.Readout(CLASSES))


def x(T: int = 25, scale: float = 1.0) -> Tensor:
    return scale * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1))


def events(T: int = 40) -> Tensor:
    return (x(T) < 0.2).float()


def images(T: int = 12) -> Tensor:
    return torch.rand(T, B, 1, 8, 8, generator=torch.Generator().manual_seed(1))


Healthy = tuple[Callable[[], nn.Module], Callable[[], Tensor], Callable[[Tensor, Tensor], Tensor]]

HEALTHY: dict[str, Healthy] = {
    "dense": (dense, x, mean),
    "dense, read at the end": (dense, x, last),
    "events": (dense, events, mean),
    "three layers": (lambda: deep(3), lambda: x(scale=3.0), mean),
    "convolution": (conv, images, mean),
    "recurrent": (recurrent, lambda: x(30), last),
    "narrow surrogate": (  # without a bias half of its neurons are silent
        lambda: scaled(surrogate(functional.fast_sigmoid_surrogate(25.0)), 1.0, bias=0.2),
        x,
        mean,
    ),
    "triangle": (lambda: surrogate(functional.triangular_surrogate(1.0)), x, mean),
    "half precision": (lambda: dense().bfloat16(), lambda: x().bfloat16(), mean),
    **{
        name: (lambda name=name: dense(name), lambda: x(30, 3.0) - 1.5, mean)  # type: ignore[misc]
        for name in ("BLIF", "SLIF", "RLIF", "BSRLIF")
    },
}


def scaled(model: Any, factor: float, bias: float | None = None) -> Any:
    """Scale the weights before the first neurons, and set their biases."""
    with torch.no_grad():
        model[0].weight.mul_(factor)
        if bias is not None:
            model[0].bias.fill_(bias)
    return model


def chain(weight: float, threshold: float, surrogate: Any) -> Any:
    """Build five layers whose membranes stay near the threshold for any scale of the weights."""
    model = deep(5, pos_threshold=threshold, surrogate_derivative=surrogate, detach_reset=True)
    with torch.no_grad():
        for module in model[2:-2]:
            if isinstance(module, nn.Linear):
                module.weight.abs_().mul_(weight)
                module.bias.zero_()
    return model


def two_heads() -> Any:
    """Return a model with an output that is not used and layers that are not called."""
    idle = nn.Sequential(nn.Linear(N, 3), snn.LIF(3))
    parts = {"body": dense(), "unused": nn.Linear(N, CLASSES), "idle": idle}
    return Net(lambda m, x: (m.unused(x), m.body(x))[1], **parts)


class HiddenList(snn.TTModule):
    """Model with its layers in a plain list, which ``parameters()`` does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = list(dense())
        self.last = nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.last(x)


def poisoned(model: Any) -> Any:
    """Set a weight to NaN."""
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    return model
