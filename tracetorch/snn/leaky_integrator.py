"""``LeakyIntegrator``: the one neuron of all layers, and the only place of its equations."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from tracetorch.core.checks import check_choice, check_flag
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import WEIGHT, Decay, Threshold, Weight, resolve_setup

Reset: TypeAlias = Literal["subtract", "zero", "none"]
DecaySetup: TypeAlias = Mapping[str, Any] | Decay | None
ThresholdSetup: TypeAlias = Mapping[str, Any] | Threshold | None
WeightSetup: TypeAlias = Mapping[str, Any] | Weight | None
Part: TypeAlias = Any  # a tensor, or a spike function, where the layer has the part; else None

ALPHA = Decay(0.5, 1, True, True)
BETA = Decay(0.9, 1, True, False)
GAMMA = Decay(0.5, 1, True, True)
SCALE = Weight(1.0, 1, True)


def states_of_parts(parameters: Container[str]) -> tuple[str, ...]:
    """Return the states of a leaky integrator whose parts have these parameters."""
    synapse = ("syn",) if "alpha" in parameters else ()
    recurrence = ("rec", "prev_output") if "gamma" in parameters else ()
    return ("mem", *synapse, *recurrence)


class LeakyIntegrator(Neuron):
    """The neuron that all twelve layers are: a leaky membrane and the parts you give it.

    Parts in [brackets] exist only where their setup is given. ``H(u) = 1 if u > 0 else 0``::

        [gamma]          rec = gamma * rec + (1 - gamma if averaging else 1) * prev_output
        [alpha]          syn = alpha * syn + (1 - alpha if averaging else 1) * x;  current = syn
                         drive = current [+ rec_weight * rec] [+ bias]   (no alpha: current = x)
                         mem = beta * mem + (1 - beta if averaging else 1) * drive
        [pos_threshold]  p = H(mem - pos_threshold);   mem = mem - p * pos_threshold
        [neg_threshold]  n = -H(neg_threshold - mem);  mem = mem + n * neg_threshold
                         output = [pos_scale *] p + [neg_scale *] n;  mem without any threshold
        [gamma]          prev_output = output

    ``neg_threshold`` is negative; its setup gives the magnitude. A setup is a dict or the dataclass
    named below, and completed by the defaults; ``None`` leaves the part out, except ``beta_setup``.

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension.
        alpha_setup: decay of the synapse (:class:`Decay`; 0.5, averaging).
        beta_setup: decay of the membrane (:class:`Decay`; 0.9, not averaging).
        gamma_setup: decay of the recurrent trace (:class:`Decay`; 0.5, averaging).
        pos_threshold_setup: upper threshold (:class:`Threshold`; 1.0).
        neg_threshold_setup: lower threshold, as a magnitude (:class:`Threshold`; 1.0).
        pos_scale_setup: size of an upward spike (:class:`Weight`; 1.0).
        neg_scale_setup: size of a downward spike (:class:`Weight`; 1.0).
        rec_weight_setup: weight of the recurrent trace (:class:`Weight`; 0.0).
        bias_setup: constant drive (:class:`Weight`; 0.0).
        reset: by a spike: ``"subtract"``, ``"zero"`` (``mem * (1 - p) * (1 + n)``), or ``"none"``.
        detach_reset: no gradient through the spike in the reset; the threshold there keeps its own.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: a value, rank or length is of another type or out of range, a setup
            has an unknown key, or a part is given without the one it needs.

    Example:
        >>> layer = LeakyIntegrator(3, beta_setup={"value": 0.5}, pos_threshold_setup={"rank": 0})
        >>> layer(torch.tensor([[0.5, 1.5, 2.5]]))
        tensor([[0., 1., 1.]], grad_fn=<_ForwardModeHeavisideBackward>)
        >>> layer.mem
        tensor([[0.5000, 0.5000, 1.5000]], grad_fn=<SubBackward0>)
        >>> layer.syn is None
        True
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "syn", "rec", "prev_output")

    mem: Tensor | None
    syn: Tensor | None
    rec: Tensor | None
    prev_output: Tensor | None

    alpha: Tensor | None
    beta: Tensor
    gamma: Tensor | None
    pos_threshold: Tensor | None
    neg_threshold: Tensor | None
    pos_scale: Tensor | None
    neg_scale: Tensor | None
    rec_weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        alpha_setup: DecaySetup = None,
        beta_setup: DecaySetup = None,
        gamma_setup: DecaySetup = None,
        pos_threshold_setup: ThresholdSetup = None,
        neg_threshold_setup: ThresholdSetup = None,
        pos_scale_setup: WeightSetup = None,
        neg_scale_setup: WeightSetup = None,
        rec_weight_setup: WeightSetup = None,
        bias_setup: WeightSetup = None,
        *,
        reset: Reset = "subtract",
        detach_reset: bool = False,
    ) -> None:
        super().__init__(num_neurons, dim)
        for part, given, needs, needed in (
            ("rec_weight_setup", rec_weight_setup, "gamma_setup", gamma_setup),
            ("pos_scale_setup", pos_scale_setup, "pos_threshold_setup", pos_threshold_setup),
            ("neg_scale_setup", neg_scale_setup, "neg_threshold_setup", neg_threshold_setup),
        ):
            if given is not None and needed is None:
                raise ValueError(f"{part} does nothing without {needs}. Try {needs}={{}}.")
        check_choice("reset", reset, ("subtract", "zero", "none"))
        check_flag("detach_reset", detach_reset)

        parts: tuple[tuple[str, Any, Any], ...] = (
            ("alpha", alpha_setup, ALPHA),
            ("beta", {} if beta_setup is None else beta_setup, BETA),
            ("gamma", gamma_setup, GAMMA),
            ("pos_threshold", pos_threshold_setup, None),
            ("neg_threshold", neg_threshold_setup, None),
            ("pos_scale", pos_scale_setup, SCALE),
            ("neg_scale", neg_scale_setup, SCALE),
            ("rec_weight", rec_weight_setup, WEIGHT),
            ("bias", bias_setup, WEIGHT),
        )
        for name, given, default in parts:
            setup = resolve_setup(name, given, default) if given is not None and default else given
            spike = name.replace("threshold", "spike")
            if setup is None:
                for absent in dict.fromkeys((name, spike)):
                    self.option(absent, None, fixed=True)
            elif default is None:
                self.threshold(name, setup, spike=spike, negative=name == "neg_threshold")
            else:
                (self.decay if isinstance(default, Decay) else self.weight)(name, setup)
            if isinstance(default, Decay):
                self.option(f"{name}_ema", setup is not None and setup.use_averaging)
        self.option("reset", reset)
        self.option("detach_reset", detach_reset)

    @property
    def active_states(self) -> tuple[str, ...]:
        """``mem``, with a synapse ``syn``, with recurrence ``rec`` and ``prev_output``."""
        return states_of_parts(self._declared.constraints)

    def __dir__(self) -> list[str]:
        """List what the layer has: no averaging of a part that it lacks."""
        absent = {f"{name}_ema" for name in ("alpha", "gamma") if getattr(self, name) is None}
        return [name for name in super().__dir__() if name not in absent]

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
        alpha_ema: bool,
        beta_ema: bool,
        gamma_ema: bool,
        pos_spike: Part,
        neg_spike: Part,
        reset: Reset,
        detach_reset: bool,
    ) -> tuple[Tensor, Tensor, Part, Part, Part]:
        drive = x
        if gamma is not None:
            rec = _leak(gamma, rec, prev_output, gamma_ema)
        if alpha is not None:
            drive = syn = _leak(alpha, syn, x, alpha_ema)
        if rec_weight is not None:
            drive = drive + rec_weight * rec
        if bias is not None:
            drive = drive + bias
        mem = _leak(beta, mem, drive, beta_ema)

        output = None
        if pos_threshold is not None:
            p = pos_spike(mem - pos_threshold)
            r = p.detach() if detach_reset else p
            if reset == "subtract":
                mem = mem - r * pos_threshold
            elif reset == "zero":
                mem = mem * (1 - r)
            output = p if pos_scale is None else pos_scale * p
        if neg_threshold is not None:
            n = -neg_spike(neg_threshold - mem)
            r = n.detach() if detach_reset else n
            if reset == "subtract":
                mem = mem + r * neg_threshold
            elif reset == "zero":
                mem = mem * (1 + r)
            n = n if neg_scale is None else neg_scale * n
            output = n if output is None else output + n
        if output is None:
            output = mem
        return output, mem, syn, rec, None if gamma is None else output


def _leak(decay: Tensor, trace: Tensor, inflow: Tensor, averaging: bool) -> Tensor:
    """Advance a leaky trace by one step."""
    return decay * trace + ((1 - decay) * inflow if averaging else inflow)
