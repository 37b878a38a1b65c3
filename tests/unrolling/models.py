"""Models to unroll: dense, convolutional, recurrent, and with several inputs and outputs."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer
from tracetorch import fuse, snn

By = Literal["layer", "step"]


class Skip(snn.TTModule):
    """Model with cells in a ``ModuleList``, a skip connection, two inputs and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([layer("SLIF", 4), layer("BRLIF", 4)])
        self.mix = nn.Linear(4, 4)
        self.out = layer("RReadout", 4)

    def forward(self, x: Tensor, gate: Tensor) -> dict[str, Any]:
        h = self.cells[0](x)
        h = h + self.cells[1](self.mix(h) * gate)
        return {"out": self.out(h), "aux": (h, x)}


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), layer("BSRLIF", 5), nn.Linear(5, 2), layer("Readout", 2))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        layer("LIF", 3, dim=-3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 2),
        layer("SReadout", 2),
    )


def recurrent() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 4), snn.Recurrent(layer("SLIF", 4), nn.Linear(4, 4)), layer("Readout", 4)
    )


# The model, and the shape of one step of its input, batch first.
MODELS = {"dense": (dense, (2, 3)), "conv": (conv, (2, 1, 6, 6)), "recurrent": (recurrent, (2, 3))}


def made(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """Build a model whose weights are small dyadic numbers, so that sums of products are exact."""
    torch.manual_seed(0)
    model = MODELS[name][0]() if name in MODELS else Skip()
    return with_dyadic_weights(model).to(dtype)


def with_dyadic_weights(model: nn.Module) -> Any:
    """Round the weights of a model to small dyadic numbers."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            with torch.no_grad():
                for p in module.parameters():
                    p.copy_((p * 16).round() / 16 + 1 / 8)
    return model


def dyadic(*shape: int, seed: int = 0) -> Tensor:
    """Draw an input of small dyadic numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 16, shape, generator=generator).double() / 4


class Whole(nn.Module):
    """Unroll a model over a whole sequence, from rest."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x: Tensor) -> Tensor:
        return tt.unroll(self.model, x, from_rest=True, **self.options)


def gradcheck(model: nn.Module, x: Tensor, **options: Any) -> None:
    """Compare the gradients of a sequence from rest with finite differences."""
    whole = Whole(model, **options)
    names, values = zip(*whole.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(whole, dict(zip(names, values, strict=True)), (x,))
        return y

    given = [tensor.detach().clone().requires_grad_() for tensor in (x, *values)]
    assert torch.autograd.gradcheck(run, given)


Run = Callable[[nn.Module, Any], Any]


def on(backend: str, **options: Any) -> Run:
    def run(model: nn.Module, x: Any) -> Any:
        with fuse.backend(backend):
            return tt.unroll(model, x, **options)

    return run


# The ways in which a sequence runs, each of which gives what its steps give.
ROADS: dict[str, Run] = {
    "cpu": on("cpu"),
    "eager": on("eager"),
    "by step": on("auto", by="step"),
    "by step, eagerly": on("eager", by="step"),
    "segments": on("auto", segment=2),
    "checked": on("auto", check=True),
    "from rest": on("auto", from_rest=True),
    "recorded": lambda model, x: on("auto", record="*")(model, x)[0],
}
KEEPING = [name for name in ROADS if name != "from rest"]  # those that leave states
