"""Surrogate gradients: the Heaviside step forward, a smooth derivative backward.

Surrogates are frozen dataclasses: they print, compare, hash and pickle. They share one autograd
function, in the style that ``torch.func`` and ``torch.compile`` can follow.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.checks import check_positive
from tracetorch.core.torch_private import keep_absent


class _Heaviside(torch.autograd.Function):
    """Compute ``u > 0`` forward and ``grad * surrogate.derivative(u)`` backward."""

    # forward and backward are plain tensor operations, so torch.func can derive the rule
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, surrogate: Surrogate) -> Tensor:
        return (u > 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        u, ctx.surrogate = inputs
        ctx.save_for_backward(u)
        keep_absent(ctx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        (u,) = ctx.saved_tensors
        return None if grad is None else grad * ctx.surrogate.derivative(u), None


# Function.apply asks for it at every call, and would build it each time
_Heaviside.forward.__signature__ = inspect.signature(_Heaviside.forward)  # type: ignore[attr-defined]


class _ForwardModeHeaviside(_Heaviside):
    """The same with a rule for forward mode, which ``torch.compile`` refuses to trace."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        u, ctx.surrogate = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)
        if not torch.compiler.is_compiling():  # as keep_absent, uncalled
            ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (u,) = ctx.saved_tensors
        moved: Tensor = tangent * ctx.surrogate.derivative(u)
        return moved


@dataclass(frozen=True)
class Surrogate:
    """Base of the surrogates: ``1 where u > 0 else 0`` forward, a ``derivative`` backward.

    Surrogates print, compare, hash and pickle by their arguments. To write your own, subclass as a
    frozen dataclass and define ``derivative`` in pointwise operations; any other callable
    ``u -> spikes`` is accepted by the layers too.

    Shape:
        ``u`` of any shape and floating dtype; spikes and gradient have the same shape and dtype.

    Raises:
        TypeError, ValueError: an argument of the constructor is no number, or not positive and
            finite.

    Example:
        >>> @dataclass(frozen=True)
        ... class cauchy_surrogate(Surrogate):
        ...     width: float = 1.0
        ...
        ...     def derivative(self, u):
        ...         return 1 / (1 + (u / self.width) ** 2)
        >>> spike = cauchy_surrogate(0.5)
        >>> spike(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 0., 1.])

    Reference: Neftci, Mostafa, Zenke, "Surrogate gradient learning in spiking neural networks",
    IEEE Signal Processing Magazine 36 (2019).
    """

    def __post_init__(self) -> None:
        # every number of a surrogate is a width or a slope; zero and infinity have no derivative
        for field in fields(self):
            check_positive(f"{type(self).__name__}: {field.name}", getattr(self, field.name))

    def derivative(self, u: Tensor) -> Tensor:
        """Return the surrogate derivative at ``u``, used in place of the Heaviside's."""
        raise NotImplementedError(f"{type(self).__name__} must define derivative(u).")

    @property
    def support(self) -> float | None:
        """End of the derivative, which is 0 where ``|u|`` is larger. ``None``: it has none."""
        return None

    def __call__(self, u: Tensor) -> Tensor:
        """Return 1 where ``u > 0``, else 0, in the dtype of ``u``."""
        function = _Heaviside if torch.compiler.is_compiling() else _ForwardModeHeaviside
        spikes: Tensor = function.apply(u, self)  # type: ignore[no-untyped-call]
        return spikes


@dataclass(frozen=True)
class atan_surrogate(Surrogate):
    """Arc tangent surrogate: ``alpha/2 / (1 + (pi/2 alpha u)^2)``. The default.

    Args:
        alpha: sharpness, positive; the derivative at 0 is ``alpha / 2``.

    Example:
        >>> u = torch.tensor([-1.0, 0.5], requires_grad=True)
        >>> atan_surrogate(2.0)(u).sum().backward()
        >>> u.grad
        tensor([0.0920, 0.2884])

    Reference: Fang et al., "Incorporating learnable membrane time constant to enhance learning of
    spiking neural networks", ICCV 2021.
    """

    alpha: float = 2.0

    def derivative(self, u: Tensor) -> Tensor:
        scaled = (math.pi / 2 * self.alpha) * u
        return (self.alpha / 2) / (1 + scaled * scaled)


@dataclass(frozen=True)
class sigmoid_surrogate(Surrogate):
    """Sigmoid (logistic) surrogate: ``k s (1 - s)`` with ``s = sigmoid(k u)``.

    Args:
        slope: ``k``, positive; the derivative at 0 is ``k / 4``.

    Example:
        >>> sigmoid_surrogate(4.0).derivative(torch.tensor(0.0))
        tensor(1.)

    Reference: Zenke and Vogels, "The remarkable robustness of surrogate gradient learning",
    Neural Computation 33 (2021).
    """

    slope: float = 25.0

    def derivative(self, u: Tensor) -> Tensor:
        s = torch.sigmoid(self.slope * u)
        return self.slope * s * (1 - s)


@dataclass(frozen=True)
class fast_sigmoid_surrogate(Surrogate):
    """Fast sigmoid surrogate: ``1 / (1 + k |u|)^2``; with slope 100 it is that of SuperSpike.

    Args:
        slope: ``k``, positive; the derivative at 0 is 1.

    Example:
        >>> fast_sigmoid_surrogate(1.0).derivative(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 0.2500])

    Reference: Zenke and Ganguli, "SuperSpike", Neural Computation 30 (2018).
    """

    slope: float = 25.0

    def derivative(self, u: Tensor) -> Tensor:
        root = 1 / (1 + self.slope * u.abs())
        return root * root


@dataclass(frozen=True)
class triangular_surrogate(Surrogate):
    """Triangular surrogate: ``max(0, 1 - |u| / w) / w``.

    Args:
        width: ``w``, positive, where the derivative reaches 0; at 0 it is ``1 / w``.

    Example:
        >>> triangular_surrogate(2.0).derivative(torch.tensor([0.0, 1.0, 3.0]))
        tensor([0.5000, 0.2500, 0.0000])

    Reference: Esser et al., "Convolutional networks for fast, energy-efficient neuromorphic
    computing", PNAS 113 (2016).
    """

    width: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        return torch.clamp(1 - u.abs() / self.width, min=0.0) / self.width

    @property
    def support(self) -> float:
        return self.width


@dataclass(frozen=True)
class boxcar_surrogate(Surrogate):
    """Boxcar (rectangular) surrogate: ``1 / w`` where ``|u| < w / 2``, else 0.

    Args:
        width: ``w``, the whole width of the window; positive.

    Example:
        >>> boxcar_surrogate(2.0).derivative(torch.tensor([0.0, 0.9, 1.0]))
        tensor([0.5000, 0.5000, 0.0000])

    Reference: Wu et al., "Spatio-temporal backpropagation for training high-performance spiking
    neural networks", Frontiers in Neuroscience 12 (2018).
    """

    width: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        return (u.abs() < self.width / 2).to(u.dtype) / self.width

    @property
    def support(self) -> float:
        return self.width / 2


@dataclass(frozen=True)
class gaussian_surrogate(Surrogate):
    """Gaussian surrogate: ``exp(-u^2 / (2 sigma^2)) / (sigma sqrt(2 pi))``.

    Args:
        sigma: standard deviation; positive.

    Example:
        >>> round(gaussian_surrogate(0.5).derivative(torch.tensor(0.0)).item(), 4)
        0.7979

    Reference: Yin, Corradi, Bohté, "Accurate and efficient time-domain classification with adaptive
    spiking recurrent neural networks", Nature Machine Intelligence 3 (2021).
    """

    sigma: float = 0.5

    def derivative(self, u: Tensor) -> Tensor:
        scaled = u / self.sigma
        return torch.exp(-0.5 * scaled * scaled) / (self.sigma * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class straight_through_surrogate(Surrogate):
    """Straight-through estimator: a derivative of 1 everywhere.

    Example:
        >>> straight_through_surrogate().derivative(torch.tensor([-3.0, 8.0]))
        tensor([1., 1.])

    Reference: Bengio, Léonard, Courville, "Estimating or propagating gradients through stochastic
    neurons for conditional computation", arXiv:1308.3432 (2013).
    """

    def derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


@dataclass(frozen=True)
class compact_support(Surrogate):
    """Another surrogate with compact support: its derivative where ``|u| < w``, else 0.

    In a loop along a ``snn.SparseLinear`` a gradient costs what edges it visits: those of neurons
    that fired, and of those within the support.

    Args:
        surrogate: the other one.
        width: ``w``, positive, where it ends.

    Example:
        >>> spike = compact_support(atan_surrogate(2.0), width=0.5)
        >>> spike.derivative(torch.tensor([0.0, 0.4, 0.5])), spike.support
        (tensor([1.0000, 0.3877, 0.0000]), 0.5)
    """

    surrogate: Surrogate
    width: float

    def __post_init__(self) -> None:
        if not isinstance(self.surrogate, Surrogate):
            raise TypeError(
                "compact_support: surrogate must be one of tt.functional, as atan_surrogate(), or "
                f"a subclass of Surrogate, got {type(self.surrogate).__name__}."
            )
        check_positive("compact_support: width", self.width)

    def derivative(self, u: Tensor) -> Tensor:
        return torch.where(u.abs() < self.width, self.surrogate.derivative(u), 0.0)

    @property
    def support(self) -> float:
        other = self.surrogate.support
        return self.width if other is None else min(self.width, other)


# at their defaults, in the order in which pages and plots show them
SURROGATES: tuple[Surrogate, ...] = (
    atan_surrogate(),
    sigmoid_surrogate(),
    fast_sigmoid_surrogate(),
    triangular_surrogate(),
    boxcar_surrogate(),
    gaussian_surrogate(),
    straight_through_surrogate(),
)
