"""Loihi's CUBA neuron in its published integer equations: decays of 12 bits, states of 24.

A current that leaks into a voltage that leaks (current-based, CUBA). Both decay by a multiplier of
12 bits, rounded towards zero. Input arrives 6 bits higher than weights are given; the current wraps
around beyond 24 bits, the voltage saturates. A spike takes the voltage to zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tracetorch.chips.chip import Chip
from tracetorch.chips.target import ChipTarget, IntegerNeuron, Stage, gathered, register
from tracetorch.core.checks import check_choice, check_count
from tracetorch.integers.fixed_point import multiply
from tracetorch.integers.layers import exactly
from tracetorch.integers.leaky_integrator import integer_weight, scaled
from tracetorch.integers.loading import KnownSettings, Settings, WholeParameters
from tracetorch.integers.ranges import ranges_of
from tracetorch.integers.rounding import clamped, floor, round, straight_through  # noqa: A004
from tracetorch.integers.width import check_between, limits
from tracetorch.snn.parameters import DEFAULT_SURROGATE, SpikeFunction, WeightSetup

SignMode: TypeAlias = Literal["mixed", "excitatory", "inhibitory"]

LOIHI = Chip(
    name="Loihi",
    inputs=None,
    hidden=None,
    outputs=None,
    synapses=1,
    fan_in=None,
    fan_out=None,
    weight_bits=8,
    weight_exponent=(-8, 7),
    state_bits=24,
    threshold_bits=17,
    decay_bits=12,
    input_spikes=1,
    hidden_spikes=1,
    output_spikes=1,
    has_bias=True,
)

__all__ = ["LIF", "LOIHI", "Dense", "SignMode"]

_BITS = LOIHI.state_bits
_LARGEST = 2 ** (_BITS - 1) - 1
_UNITY = 2**LOIHI.decay_bits
_UP = 2**6  # of input and threshold
_INPUT_BITS = 16  # of what arrives at a neuron in a step: Lava's PyLifModelBitAcc takes no more


class LIF(WholeParameters):
    """Leaky integrate-and-fire as Loihi computes it (CUBA).

    ::

        u = wrap(trunc(u (4096 - du - 1) / 4096) + 64 x)
        v = saturate(trunc(v (4096 - dv) / 4096) + u + bias)
        output = H(v - 64 pos_threshold);   v = 0 where it fires

    All are integers of 24 bits, exact in float32. ``x``, of 16 bits, is what :class:`Dense`
    returns. The current wraps, once, into -2^23 + 1 .. 2^23, and the voltage saturates at 2^23 - 1.

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        du, dv: how fast current and voltage decay, 0 to 4095.
        pos_threshold: 0 to 131071.
        bias: constant drive, mantissa and exponent multiplied out: of 13 bits, times up to 2^7.
        surrogate_derivative: the spike function, ``u -> spikes`` of the voltage in units of the
            threshold.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        >>> layer = LIF(1, du=2047, dv=1024, pos_threshold=10)
        >>> [layer(torch.tensor([[x]])).item() for x in (8.0, 0.0, 0.0)]
        [0.0, 0.0, 0.0]
        >>> layer.u.item(), layer.v.item()  # 512 / 4, and (512 * 3/4 + 256) * 3/4 + 128
        (128.0, 608.0)

    Reference: Davies et al., "Loihi: a neuromorphic manycore processor with on-chip learning", IEEE
    Micro 38 (2018); the fixed-point model of Lava (``PyLifModelBitAcc``), whose states it equals.
    """

    states: ClassVar[tuple[str, ...]] = ("u", "v")

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        *,
        du: WeightSetup = 409,
        dv: WeightSetup = 128,
        pos_threshold: WeightSetup = 1000,
        bias: WeightSetup = 0,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        integer_weight(self, "du", du, 0, _UNITY - 1)
        integer_weight(self, "dv", dv, 0, _UNITY - 1)
        integer_weight(self, "pos_threshold", pos_threshold, 0, 2**LOIHI.threshold_bits - 1)
        integer_weight(self, "bias", bias, -(2**19), 2**19)
        self.option("spike", surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor,
        u: Tensor,
        v: Tensor,
        *,
        du: Tensor,
        dv: Tensor,
        pos_threshold: Tensor,
        bias: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        bits = LOIHI.decay_bits
        # the one step of the register that makes a decay of 4096 possible
        u = multiply(u, _UNITY - 1 - round(du), bits, "trunc") + _UP * x
        # once around; and bounds that change nothing, but tell whoever reads the graph the width
        span = 2.0**_BITS
        u = u + span * ((u <= -span / 2).to(u.dtype) - (u > span / 2).to(u.dtype))
        u = straight_through(u, u.detach().clamp(-_LARGEST, _LARGEST + 1))
        v = multiply(v, _UNITY - round(dv), bits, "trunc") + round(bias) + u
        v = clamped(v, -_LARGEST, _LARGEST)
        threshold = _UP * round(pos_threshold)
        fired = spike(scaled(v - threshold, threshold, None))
        return fired, u, v * (1 - fired)


class Dense(KnownSettings):
    """Connection of Loihi: weights of 8 bits and a shared exponent, behind spikes.

    ::

        output = floor(2^exponent W x)

    With ``"mixed"`` signs weights are even, -256 to 254; otherwise 0 to 255, or -255 to 0. Of fewer
    ``weight_bits`` the lowest ones are zero. ``weight`` is a parameter of floats that learns
    straight through the rounding.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        exponent: of all weights, -8 to 7.
        sign_mode: ``"mixed"``, ``"excitatory"`` or ``"inhibitory"``.
        weight_bits: bits of a weight, 1 to 8.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        >>> layer = Dense(2, 1, exponent=1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[101.0, -300.0]]))
        >>> layer(torch.eye(2)).tolist()
        [[200.0], [-512.0]]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        exponent: int = 0,
        sign_mode: SignMode = "mixed",
        weight_bits: int = LOIHI.weight_bits,
    ) -> None:
        super().__init__()
        self.in_features = check_count("in_features", in_features)
        self.out_features = check_count("out_features", out_features)
        self.sign_mode: SignMode = check_choice("sign_mode", sign_mode, get_args(SignMode))
        self.exponent = check_between("exponent", exponent, *LOIHI.weight_exponent)
        self.weight_bits = check_between("weight_bits", weight_bits, 1, LOIHI.weight_bits)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        bound = 64.0 / in_features**0.5
        nn.init.uniform_(self.weight, *((-bound, bound) if sign_mode == "mixed" else (0, bound)))
        if sign_mode == "inhibitory":
            self.weight.data.neg_()

    def settings(self) -> Settings:
        """Return what the weights mean."""
        low, high = LOIHI.weight_exponent
        return {
            "exponent": (self.exponent, range(low, high + 1)),
            "sign_mode": (self.sign_mode, get_args(SignMode)),
            "weight_bits": (self.weight_bits, range(1, LOIHI.weight_bits + 1)),
        }

    def integers(self) -> Tensor:
        """Return the weights as the chip has them, with the gradient of ``weight``."""
        mixed = self.sign_mode == "mixed"
        sign = -1.0 if self.sign_mode == "inhibitory" else 1.0
        whole = 2.0**LOIHI.weight_bits
        step = 2.0 ** (LOIHI.weight_bits - self.weight_bits + mixed)
        # trained weights are rounded, and whole ones cut off as the chip does
        whole_weight = round(self.weight).detach() * sign
        whole_weight = whole_weight.clamp(-whole if mixed else 0.0, whole - 1)
        return straight_through(self.weight, sign * step * torch.floor(whole_weight / step))

    def terms(self) -> tuple[Tensor, Tensor | None, int]:
        """Return the weights, no bias, and the exponent, for a proof of what their sums reach."""
        return self.integers(), None, self.exponent

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the weights of spikes."""

        def product(x: Tensor) -> Tensor:
            return floor(F.linear(x, self.integers().to(x.dtype)) * 2.0**self.exponent)

        return exactly(product, x)

    def extra_repr(self) -> str:
        """Return the arguments, for ``repr``."""
        return (
            f"{self.in_features}, {self.out_features}, exponent={self.exponent}, "
            f"sign_mode={self.sign_mode!r}, weight_bits={self.weight_bits}"
        )


@dataclass(frozen=True)
class LoihiTarget(ChipTarget):
    """Quantise for Loihi's CUBA neuron: decays of 12 bits that do not learn, a reset to zero.

    Inputs of 16 bits arrive 6 bits higher, so that voltages are 6 bits finer than inputs.
    """

    # even weights are twice the integers here
    most_shift: ClassVar[int] = LOIHI.weight_exponent[1] + 1
    sum_bits: ClassVar[int] = _INPUT_BITS - 1
    per_channel: ClassVar[bool] = False
    without_delays: ClassVar[str] = (
        "no delays of synapses on Loihi here: a Linear or convolution, and snn.Delay behind the "
        "neurons that spike"
    )

    @property
    def state_width(self) -> int:
        """Width of the states, of which inputs take fewer bits."""
        return LOIHI.state_bits

    def refuse_module(self, kind: type[nn.Module]) -> str | None:
        """Return why a class of modules without weights has no form here; ``None`` if it has."""
        if issubclass(kind, nn.AvgPool1d | nn.AvgPool2d | nn.MaxPool1d | nn.MaxPool2d):
            return "no pools on Loihi, which has none. Use a convolution with a stride"
        return super().refuse_module(kind)

    def misfits(self, model: nn.Module, x: Tensor, labels: Mapping[str, str]) -> list[str]:
        """Return which limits of the chip an integer model exceeds."""
        found, (low, high) = super().misfits(model, x, labels), limits(_INPUT_BITS)
        for path, given in ranges_of(model, x).inputs.items():
            least, most = float(given["x"].low), float(given["x"].high)
            if least < low or most > high:
                found.append(
                    f"{labels.get(path, path)}: sums of weights can reach {least:.0f} to "
                    f"{most:.0f}, {self.chip.name} takes {_INPUT_BITS} bits"
                )
        return found

    def differences(self, stage: Stage) -> list[str]:
        """Return in what the chip's neurons differ from those of a stage."""
        reset = stage.settings["reset"]
        return [] if reset == "zero" else [f"is reset to zero, the model has reset={reset!r}"]

    def gain(self, stage: Stage) -> Tensor:
        """Return by what weights are multiplied: what averaging traces do not take in."""
        layer, settings, gain = stage.layer, stage.settings, torch.ones(())
        if layer.alpha is not None and settings["alpha_ema"]:
            gain = gain * (1 - layer.alpha.detach())
        if settings["beta_ema"]:
            gain = gain * (1 - layer.beta.detach())
        return gain

    def neuron(self, stage: Stage, unit: Tensor) -> IntegerNeuron:
        """Return how to build the neurons of a stage, whose inputs count in ``unit``."""
        layer, settings = stage.layer, stage.settings
        kept = torch.zeros(()) if layer.alpha is None else layer.alpha.detach()
        constants = {
            "du": (_UNITY - 1 - (_UNITY * kept).round()).clamp(0, _UNITY - 1),
            "dv": (_UNITY - (_UNITY * layer.beta.detach()).round()).clamp(0, _UNITY - 1),
        }
        taken = (1 - layer.beta.detach()) if settings["beta_ema"] else torch.ones(())
        at_membrane = _UP * taken / unit
        values = stage.product.bias if stage.product.bias is not None else layer.bias
        bias: dict[str, Any] = {"low": -4095, "high": 4095, "step": 1.0}
        if values is not None:  # a mantissa of 13 bits, and an exponent for the layer
            through_synapse = gathered(stage)[0] * at_membrane
            largest = float((values.detach().abs() * through_synapse).max())
            bias["step"] = 2.0 ** min(7, max(0, math.ceil(math.log2(max(largest, 1.0) / 2048))))
        most = 2**LOIHI.threshold_bits - 1
        kind = partial(
            LIF, layer.num_neurons, layer.dim, surrogate_derivative=settings["pos_spike"]
        )
        learned = self.learned(stage, unit, at_membrane, bias, most)
        return IntegerNeuron(kind, constants, learned, torch.ones(()), 1)


register(LOIHI, LoihiTarget)
