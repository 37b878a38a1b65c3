"""``LeakyIntegrator`` of integers: the neuron of the twelve layers, as a chip computes it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tracetorch.core.checks import check_choice, check_flag, check_positive
from tracetorch.integers import arithmetic
from tracetorch.integers.arithmetic import Leak, Multiplier, Rounding, Shift, check_between, limits
from tracetorch.integers.loading import KnownSettings
from tracetorch.snn.leaky_integrator import Reset, states_of_parts
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    DEFAULT_SURROGATE,
    SpikeFunction,
    Weight,
    WeightSetup,
    resolve_setup,
)

Overflow: TypeAlias = Literal["saturate", "wrap"]
Part: TypeAlias = Any  # a tensor, where the layer has the part; else None

_AVERAGES = ("alpha_ema", "beta_ema", "gamma_ema")
_LARGEST = 2**31 - 1
_FLOAT32_BITS = 24  # the widest state in float32, and sums of two


class LeakyIntegrator(KnownSettings, Neuron):
    """Leaky integrator of integers: every one of the twelve layers, as integer hardware runs it.

    Parts in [brackets] exist only where their argument is given. ``H(u) = 1 if u > 0 else 0``;
    ``leak`` and ``inflow`` are those of ``decay``, a :class:`Multiplier` or a :class:`Shift`;
    ``fit`` saturates at ``state_bits``, or wraps around::

        [gamma]          rec = fit(leak(rec, gamma) + prev_output)
        [alpha]          syn = fit(leak(syn, alpha) + x);  current = syn     (no alpha: current = x)
                         drive = current [+ rec_weight * rec / 2^rec_weight_fraction] [+ bias]
                         mem = fit(leak(mem, beta) + drive)
        [pos_threshold]  p = H(mem - pos_threshold);   mem = fit(mem - p * pos_threshold)
        [neg_threshold]  n = -H(-neg_threshold - mem); mem = fit(mem - n * neg_threshold)
                         output = [pos_scale *] p + [neg_scale *] n;  mem without any threshold
        [gamma]          prev_output = output

    Numbers and inputs are integers, held in floats: float32 where states have up to 24 bits, else
    float64. ``tt.integers.check_exact`` proves that nothing is rounded. Layers of ``tt.snn``::

        LIF        beta, pos_threshold          Readout     beta
        S...       and alpha                    R...        and gamma, rec_weight, bias
        B...       and neg_threshold, pos_scale, neg_scale

    Parameters are numbers, tensors of rank 0 or 1 or setups, which the step rounds, straight
    through. The surrogate sees ``(mem - pos_threshold) / unit``.

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        alpha, beta, gamma: decay of synapse, membrane and recurrent trace, in the units of
            ``decay``: 0 to ``2^bits`` for a multiplier, 0 to 31 for a shift, which does not learn.
        pos_threshold, neg_threshold: magnitude of the upper and of the lower threshold.
        pos_scale, neg_scale: size of an upward and of a downward spike.
        rec_weight: weight of the recurrent trace.
        bias: constant drive.
        decay: how traces decay.
        state_bits: width of the states, 4 to 32.
        overflow: what becomes of a state that does not fit: ``"saturate"`` or ``"wrap"``.
        alpha_ema, beta_ema, gamma_ema: the trace takes in ``inflow(x, alpha)`` instead of ``x``.
        rec_weight_fraction: bits behind the binary point of ``rec_weight``, 0 to 16.
        reset: what a spike does to the membrane: ``"subtract"``, ``"zero"`` or ``"none"``.
        detach_reset: no gradient through the spike in the reset.
        surrogate_derivative: the spike function, ``u -> spikes``.
        unit: how many integers the surrogate takes for 1; ``None`` for the threshold itself.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range; a part lacks the one
            it needs; states of more than 24 bits meet float32.

    Example:
        >>> layer = LeakyIntegrator(2, beta=230, pos_threshold=100, state_bits=16)
        >>> [layer(torch.tensor([[60.0, -7.0]])).tolist() for _ in range(3)]
        [[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]]
        >>> layer.mem.tolist()  # trunc(13 * 230 / 256) + 60
        [[71.0, -18.0]]
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "syn", "rec", "prev_output")
    rec_weight_fraction: int
    taken = "rec_weight_fraction"

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        *,
        alpha: WeightSetup | None = None,
        beta: WeightSetup = 230,
        gamma: WeightSetup | None = None,
        pos_threshold: WeightSetup | None = None,
        neg_threshold: WeightSetup | None = None,
        pos_scale: WeightSetup | None = None,
        neg_scale: WeightSetup | None = None,
        rec_weight: WeightSetup | None = None,
        bias: WeightSetup | None = None,
        decay: Leak = Multiplier(8),  # noqa: B008 (a frozen value)
        state_bits: int = 16,
        overflow: Overflow = "saturate",
        alpha_ema: bool = False,
        beta_ema: bool = False,
        gamma_ema: bool = False,
        rec_weight_fraction: int = 0,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
        unit: float | None = None,
    ) -> None:
        super().__init__(num_neurons, dim)
        for name, given, needed, other in (
            ("rec_weight", rec_weight, "gamma", gamma),
            ("gamma", gamma, "rec_weight", rec_weight),
            ("pos_scale", pos_scale, "pos_threshold", pos_threshold),
            ("neg_scale", neg_scale, "neg_threshold", neg_threshold),
        ):
            if given is not None and other is None:
                raise ValueError(f"{name} needs {needed}: give both, or neither.")
        if not isinstance(decay, Multiplier | Shift):
            raise TypeError(
                f"decay must be tt.integers.Multiplier(bits) or tt.integers.Shift(), got {decay!r}."
            )
        self.option("decay_by", decay, fixed=True)
        self.option("state_bits", state_bits, check=partial(check_between, low=4, high=32))
        learns = isinstance(decay, Multiplier)
        for name, setup in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            integer_weight(self, name, setup, 0, decay.largest, learns=learns)
        for name, setup in (("pos_threshold", pos_threshold), ("neg_threshold", neg_threshold)):
            integer_weight(self, name, setup, 0, limits(self.state_bits)[1])
        scales = {"pos_scale": pos_scale, "neg_scale": neg_scale}
        for name, weight in {**scales, "rec_weight": rec_weight, "bias": bias}.items():
            integer_weight(self, name, weight, -_LARGEST, _LARGEST)
        self.option("overflow", overflow, check=partial(check_choice, allowed=get_args(Overflow)))
        for name, flag in zip(_AVERAGES, (alpha_ema, beta_ema, gamma_ema), strict=True):
            self.option(name, flag, check=check_flag)
        fraction = partial(check_between, low=0, high=16)
        self.option("rec_weight_fraction", rec_weight_fraction, check=fraction)
        self.option("reset", reset, check=partial(check_choice, allowed=get_args(Reset)))
        self.option("detach_reset", detach_reset, check=check_flag)
        self.option("spike", surrogate_derivative)
        self.option("unit", unit, check=_check_unit)

    @property
    def active_states(self) -> tuple[str, ...]:
        return states_of_parts(self._declared.constraints)

    def settings(self) -> Mapping[str, int]:
        decay = self.decay_by
        return {
            "rec_weight_fraction": self.rec_weight_fraction,
            "state_bits": self.state_bits,
            "bits of decay": decay.bits if isinstance(decay, Multiplier) else 0,
            "rounding of decay": get_args(Rounding).index(decay.rounding),
            "overflow": get_args(Overflow).index(self.overflow),
            "reset": get_args(Reset).index(self.reset),
            **{name: int(getattr(self, name)) for name in _AVERAGES},
        }

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        syn: Part,
        rec: Part,
        prev_output: Part,
        *,
        alpha: Part,
        beta: Tensor,
        gamma: Part,
        pos_threshold: Part,
        neg_threshold: Part,
        pos_scale: Part,
        neg_scale: Part,
        rec_weight: Part,
        bias: Part,
        decay_by: Leak,
        state_bits: int,
        overflow: Overflow,
        alpha_ema: bool,
        beta_ema: bool,
        gamma_ema: bool,
        rec_weight_fraction: int,
        reset: Reset,
        detach_reset: bool,
        spike: SpikeFunction,
        unit: float | None,
    ) -> tuple[Tensor, Tensor, Part, Part, Part]:
        if state_bits > _FLOAT32_BITS and x.dtype is not torch.float64:
            raise ValueError(
                f"states of {state_bits} bits need float64, got {x.dtype}, which holds every "
                f"integer up to 2^{_FLOAT32_BITS} only. Give x.double(), and model.double()."
            )

        kind = arithmetic.saturate if overflow == "saturate" else arithmetic.wrap
        fit = partial(kind, bits=state_bits)

        def advance(trace: Tensor, inflow: Tensor, decay: Tensor, averaging: bool) -> Tensor:
            decay = arithmetic.round(decay)
            taken = decay_by.inflow(inflow, decay) if averaging else inflow
            return fit(decay_by.leak(trace, decay) + taken)

        drive = x
        if gamma is not None:
            rec = advance(rec, prev_output, gamma, gamma_ema)
        if alpha is not None:
            drive = syn = advance(syn, x, alpha, alpha_ema)
        if rec_weight is not None:
            rec_weight = arithmetic.round(rec_weight)
            drive = drive + arithmetic.multiply(rec, rec_weight, rec_weight_fraction)
        if bias is not None:
            drive = drive + arithmetic.round(bias)
        mem = advance(mem, drive, beta, beta_ema)

        output = None
        for threshold, scale, sign in (
            (pos_threshold, pos_scale, 1),
            (neg_threshold, neg_scale, -1),
        ):
            if threshold is None:
                continue
            threshold = arithmetic.round(threshold)
            above, one = sign * mem - threshold, threshold.detach().clamp(min=1)
            fired = spike(above / one if unit is None else above * (1 / unit))
            again = fired.detach() if detach_reset else fired
            if reset == "subtract":
                mem = fit(mem - sign * again * threshold)
            elif reset == "zero":
                mem = mem * (1 - again)
            fired = sign * fired if scale is None else sign * (arithmetic.round(scale) * fired)
            output = fired if output is None else output + fired
        if output is None:
            output = mem
        return output, mem, syn, rec, None if gamma is None else output


def integer_weight(
    layer: Neuron,
    name: str,
    setup: WeightSetup | None,
    low: float,
    high: float,
    learns: bool = True,
) -> None:
    """Declare a parameter of integers, which the step rounds, or that there is none."""
    if setup is None:
        layer.option(name, None, fixed=True)
        return
    resolved = resolve_setup(name, setup, Weight(0.0, 0, False))
    if resolved.learnable and not learns:
        raise ValueError(f"{name} is a shift, which has no gradient: it cannot learn.")
    layer.weight(name, setup, rank=0, learnable=False, low=low, high=high)
    raw = getattr(layer, f"raw_{name}").detach()
    if not resolved.learnable and not raw.is_meta and not torch.equal(raw, raw.round()):
        wrong = raw[raw != raw.round()][0].item()
        raise ValueError(f"{name} must be integers, got {wrong:g}.")


def _check_unit(name: str, value: object) -> float | None:
    return None if value is None else check_positive(name, value)
