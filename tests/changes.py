"""The ways in which a layer can change after it has run: every road must see each of them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import snn
from tracetorch.functional import sigmoid_surrogate
from tracetorch.snn.parameters import softplus

T, B, N = 5, 4, 4  # as many samples as neurons, so that the neurons may stand in either dimension


def made() -> Any:
    """Make a layer whose class is its own, so that a patch of the class reaches no other."""
    torch.manual_seed(0)
    kind = type("Own", (snn.LIF,), {"__init__": snn.LIF.__init__})
    return kind(N, beta=0.7)


def sequence(dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(1), dtype=dtype)


class Soft(nn.Module):
    """Spikes as a module, which PyTorch keeps elsewhere than other attributes."""

    def forward(self, u: Tensor) -> Tensor:
        return 0.5 * (u > 0.2).to(u) + 0 * u


class Halved(nn.Module):
    def forward(self, raw: Tensor) -> Tensor:
        return raw / 2


def _parametrize(layer: Any) -> None:
    nn.utils.parametrize.register_parametrization(layer, "raw_beta", Halved())


def _own(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A method that halves, adds one or refuses."""

    def own(*args: Any, **kwargs: Any) -> Any:
        value = method(*args, **kwargs)
        if name == "step_kwargs":
            return {**value, "beta": value["beta"] / 2}
        if name == "_states_for":
            return [state + 1 if isinstance(state, Tensor) else state for state in value]
        if name in ("initial_state", "forward_step"):
            return value + 0.5
        raise ValueError("refused by an override")

    return own


def _override(name: str) -> Callable[[Any], None]:
    return lambda layer: setattr(layer, name, _own(getattr(layer, name), name))


def _subclass(name: str) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        own = None
        if name != "forward_step":
            own = _own(getattr(copy.deepcopy(layer), name), name)
        kind = type(layer)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if own is None:
                return getattr(super(other, self), name)(*args, **kwargs) + 0.5
            return own(*args, **kwargs)

        other = type("Other", (kind,), {name: method})
        layer.__class__ = other

    return change


def _patch(name: str) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        method = getattr(type(layer), name)

        def own(self: Any, *args: Any, **kwargs: Any) -> Any:
            bound = method.__get__(self)
            if name == "forward_step":
                return bound(*args, **kwargs) + 0.5
            return _own(bound, name)(*args, **kwargs)

        setattr(type(layer), name, own)

    return change


def other_step(x: Tensor, mem: Tensor, *rest: Any, beta: Tensor, **kwargs: Any) -> Any:
    mem = beta * mem + x / 2
    return mem * 2, mem, *rest


def _in_place(layer: Any) -> None:
    with torch.no_grad():
        layer.raw_beta.sub_(1.0)


def _data(layer: Any) -> None:
    layer.raw_beta.data = layer.raw_beta.data - 1.0


def _constraint(layer: Any) -> None:
    layer._declared.constrain("beta", softplus)


METHODS = ("step_kwargs", "_check_input", "_states_for", "initial_state", "forward_step")

# What a cell tells of a layer
DEFINITIONS: dict[str, Callable[[Any], object]] = {
    "a surrogate": lambda layer: setattr(layer, "pos_spike", sigmoid_surrogate(3.0)),
    "a surrogate that is a module": lambda layer: setattr(layer, "pos_spike", Soft()),
    "the reset": lambda layer: setattr(layer, "reset", "zero"),
    "a flag": lambda layer: setattr(layer, "detach_reset", True),
    "averaging": lambda layer: setattr(layer, "beta_ema", True),
    "the neuron dimension": lambda layer: setattr(layer, "dim", 0),
    "the neuron dimension, from the end": lambda layer: setattr(layer, "dim", -2),
    "the number of neurons": lambda layer: setattr(layer, "num_neurons", 2 * N),
    "the step of the instance": lambda layer: setattr(layer, "step", other_step),
    "the step of the class": lambda layer: setattr(type(layer), "step", staticmethod(other_step)),
    "a constraint": _constraint,
    "an initial value": lambda layer: layer.state("mem", 0.5),
    **{f"{name} of the instance": _override(name) for name in METHODS},
    **{f"{name} of a subclass": _subclass(name) for name in METHODS},
    **{f"{name} of the class": _patch(name) for name in METHODS},
}

# What is compared besides
CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda layer: None,
    **DEFINITIONS,
    "a parameter in place": _in_place,
    "a parameter's data": _data,
    "a parameter": lambda layer: setattr(layer, "raw_beta", nn.Parameter(torch.zeros(N))),
    "the rank of a parameter": lambda la: setattr(la, "raw_beta", nn.Parameter(torch.ones(()))),
    "a parameter of a wrong size": lambda la: setattr(la, "raw_beta", nn.Parameter(torch.ones(2))),
    "the dtype of parameters": lambda layer: layer.double(),
    "a frozen parameter": lambda layer: layer.raw_beta.requires_grad_(False),
    "a parametrization": _parametrize,
    "a live state": lambda layer: setattr(layer, "mem", torch.ones(B, N)),
    "a state with a graph": lambda la: setattr(la, "mem", torch.ones(B, N).requires_grad_() * 2),
    "a state of another batch": lambda layer: setattr(layer, "mem", torch.ones(B + 1, N)),
    "a state of another dtype": lambda layer: setattr(layer, "mem", torch.ones(B, N).double()),
    "a state that is no tensor": lambda layer: setattr(layer, "mem", 1.0),
    "a negated state": lambda layer: setattr(layer, "mem", torch._neg_view(torch.ones(B, N))),
}
