"""LIF and one thing more: silence after a spike, a synapse that rises, a dendrite, gates."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from tracetorch.core.checks import check_integer
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import (
    DEFAULT_SURROGATE,
    DecaySetup,
    SpikeFunction,
    ThresholdSetup,
    WeightSetup,
)
from tracetorch.snn.spiking import describe_neuron


def check_period(name: str, value: object) -> int:
    """Return a number of steps that is 0 or more; raise ``TypeError`` or ``ValueError``."""
    period = check_integer(name, value)
    if period < 0:
        raise ValueError(f"{name} must not be negative, got {period}.")
    return period


@describe_neuron
class RefractoryLIF(Neuron):
    """LIF with an absolute and a relative refractory period.

    ::

        ready = countdown == 0
        mem = ready * (beta * mem + x)
        output = ready * H(mem - pos_threshold - raised);  mem = mem * (1 - output)
        countdown = max(countdown - 1, 0) + period * output
        raised = rho * raised + strength * output

    After a spike the membrane stays at zero for ``period`` steps (the absolute refractory period)
    while the threshold, raised by ``strength``, falls back (the relative one). So two spikes are at
    least ``period + 1`` steps apart. At 1 ms per step the defaults are a membrane of 20 ms
    (``exp(-1/20)``), 2 ms of silence, and a threshold that is back in some 4 ms (``exp(-1/4)``).
    The 2 ms are those of the book's exercises; the rest, which it leaves open, is of usual size.

    Args:
        rho: decay of the raised threshold, in (0, 1).
        strength: by how much a spike raises the threshold; 0 for an absolute period alone.
        period: steps of silence after a spike; 0 for a relative period alone.

    Raises:
        TypeError, ValueError: ``period`` is not an integer, or negative.

    Example:
        >>> layer = RefractoryLIF(1, period=2)
        >>> [layer(torch.full((1, 1), 5.0)).item() for _ in range(7)]
        [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]

    Reference: Gerstner, Kistler, Naud, Paninski, "Neuronal Dynamics", Cambridge University Press
    (2014), chapters 1.3 and 6.1.
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "raised", "countdown")

    def __init__(
        self,
        num_neurons: int,
        beta: DecaySetup = 0.9512,
        rho: DecaySetup = 0.7788,
        pos_threshold: ThresholdSetup = 1.0,
        strength: WeightSetup = 1.0,
        period: int = 2,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", beta)
        self.decay("rho", rho)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)
        self.weight("strength", strength)
        self.option("period", period, check=check_period)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        raised: Tensor,
        countdown: Tensor,
        *,
        beta: Tensor,
        rho: Tensor,
        pos_threshold: Tensor,
        strength: Tensor,
        period: int,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        ready = (countdown < 0.5).to(x.dtype)
        mem = ready * (beta * mem + x)
        fired = ready * spike(mem - pos_threshold - raised)
        countdown = (countdown - 1).clamp(min=0.0) + period * fired
        return fired, mem * (1 - fired), rho * raised + strength * fired, countdown


@describe_neuron
class AlphaLIF(Neuron):
    """LIF with a second-order synapse: the alpha function, or a double exponential.

    ::

        rise = alpha_rise * rise + (1 - alpha_rise) * x
        syn = alpha * syn + (1 - alpha) * rise
        mem = beta * mem + syn
        output = H(mem - pos_threshold);  mem = mem - output * pos_threshold

    With both synaptic decays equal, as they are by default, one input spike becomes the alpha
    function of the literature in discrete time, ``(1 - alpha)^2 (n + 1) alpha^n``, which sums to
    one; with two that differ, a double exponential. The source gives the function and no constants;
    at 1 ms per step the defaults are a fast synapse of 5 ms (``exp(-1/5)``) and a membrane of 20 ms
    (``exp(-1/20)``).

    Args:
        alpha_rise: decay of the rise, in (0, 1).
        alpha: decay of the synaptic current, in (0, 1).

    Example:
        >>> layer = AlphaLIF(1, alpha_rise=0.5, alpha=0.5)
        >>> for x in (1.0, 0.0, 0.0):
        ...     _ = layer(torch.full((1, 1), x))
        ...     print(layer.syn.item())
        0.25
        0.25
        0.1875

    Reference: Rall, "Distinguishing theoretical synaptic potentials computed for different
    soma-dendritic distributions of synaptic input", Journal of Neurophysiology 30 (1967).
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "syn", "rise")

    def __init__(
        self,
        num_neurons: int,
        alpha_rise: DecaySetup = 0.8187,
        alpha: DecaySetup = 0.8187,
        beta: DecaySetup = 0.9512,
        pos_threshold: ThresholdSetup = 1.0,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("alpha_rise", alpha_rise)
        self.decay("alpha", alpha)
        self.decay("beta", beta)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        syn: Tensor,
        rise: Tensor,
        *,
        alpha_rise: Tensor,
        alpha: Tensor,
        beta: Tensor,
        pos_threshold: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        rise = alpha_rise * rise + (1 - alpha_rise) * x
        syn = alpha * syn + (1 - alpha) * rise
        mem = beta * mem + syn
        fired = spike(mem - pos_threshold)
        return fired, mem - fired * pos_threshold, syn, rise


@describe_neuron
class TCLIF(Neuron):
    """Two-compartment LIF (TC-LIF): dendrite and soma feed each other, and neither leaks.

    ::

        dendrite = dendrite - beta_1 * soma + x
        soma = soma + beta_2 * dendrite
        output = H(soma - pos_threshold)
        dendrite = dendrite - gamma * output;  soma = soma - pos_threshold * output

    The soma holds the dendrite back, the dendrite drives the soma: together they keep a memory
    longer than a leak would. The defaults are those of the authors' program
    (ZhangShimin1/TC-LIF) for digits without recurrence: both couplings start at ``sigmoid(0)``,
    ``gamma`` is 0.5 and the threshold 1 (1.5 for spoken digits). There is no time constant in
    them, so a step may be of any length.

    Args:
        beta_1: coupling of the soma to the dendrite, in (0, 1).
        beta_2: coupling of the dendrite to the soma, in (0, 1).
        gamma: what a spike takes off the dendrite.

    Example:
        >>> layer = TCLIF(1)
        >>> [layer(torch.full((1, 1), x)).item() for x in (1.0, 0.5, 0.5, 0.5)]
        [0.0, 1.0, 0.0, 1.0]

    Reference: Zhang, Yang, Ma, Wu, Li, Tan, "TC-LIF: a two-compartment spiking neuron model for
    long-term sequential modelling", AAAI 2024.
    """

    states: ClassVar[tuple[str, ...]] = ("dendrite", "soma")

    def __init__(
        self,
        num_neurons: int,
        beta_1: DecaySetup = 0.5,
        beta_2: DecaySetup = 0.5,
        gamma: WeightSetup = 0.5,
        pos_threshold: ThresholdSetup = 1.0,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.gate("beta_1", beta_1)
        self.gate("beta_2", beta_2)
        self.weight("gamma", gamma)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor,
        dendrite: Tensor,
        soma: Tensor,
        *,
        beta_1: Tensor,
        beta_2: Tensor,
        gamma: Tensor,
        pos_threshold: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        dendrite = dendrite - beta_1 * soma + x
        soma = soma + beta_2 * dendrite
        fired = spike(soma - pos_threshold)
        return fired, dendrite - gamma * fired, soma - pos_threshold * fired


@describe_neuron
class GLIF(Neuron):
    """Gated LIF (GLIF): three gates mix two kinds of leak, of input and of reset.

    ::

        kept = 1 - leak_gate * (1 - beta)
        mem = kept * mem * (1 - reset_gate * prev_output) - (1 - leak_gate) * leak
              + x * (1 - input_gate * (1 - conductance))
              - (1 - reset_gate) * reset_size * prev_output
        output = H(mem - pos_threshold);  prev_output = output

    ``leak_gate`` leads from a linear leak (0) to an exponential one (1), ``input_gate`` from the
    whole input to a scaled one, ``reset_gate`` from a reset by subtraction to one to zero. The
    paper has a conductance for each step of a short sequence; here it is one. The defaults are the
    paper's, as SpikingJelly has them, for ``T = 4`` steps: ``beta = 0.25``, a threshold and a reset
    of 0.5, a linear leak of ``0.5 / (2 T)``, a conductance of 0.5, and gates that are undecided.
    There is no time constant in them.

    Args:
        leak_gate, input_gate, reset_gate: the gates, in (0, 1).
        beta: decay of the exponential leak, in (0, 1).
        leak: what the linear leak takes off in one step.
        conductance: scale of the input, in (0, 1).
        reset_size: what the reset by subtraction takes off.

    Example:
        >>> layer = GLIF(1)
        >>> [layer(torch.full((1, 1), 0.6)).item() for _ in range(4)]
        [0.0, 1.0, 0.0, 1.0]

    Reference: Yao, Li, Mo, Cheng, "GLIF: a unified gated leaky integrate-and-fire neuron for
    spiking neural networks", NeurIPS 2022.
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "prev_output")

    def __init__(
        self,
        num_neurons: int,
        leak_gate: DecaySetup = 0.5,
        input_gate: DecaySetup = 0.5,
        reset_gate: DecaySetup = 0.5,
        beta: DecaySetup = 0.25,
        leak: WeightSetup = 0.0625,
        conductance: DecaySetup = 0.5,
        reset_size: WeightSetup = 0.5,
        pos_threshold: ThresholdSetup = 0.5,
        dim: int = -1,
        *,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.gate("leak_gate", leak_gate)
        self.gate("input_gate", input_gate)
        self.gate("reset_gate", reset_gate)
        self.decay("beta", beta)
        self.weight("leak", leak)
        self.gate("conductance", conductance)
        self.weight("reset_size", reset_size)
        self.threshold("pos_threshold", pos_threshold, surrogate=surrogate_derivative)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        prev_output: Tensor,
        *,
        leak_gate: Tensor,
        input_gate: Tensor,
        reset_gate: Tensor,
        beta: Tensor,
        leak: Tensor,
        conductance: Tensor,
        reset_size: Tensor,
        pos_threshold: Tensor,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        kept = (1 - leak_gate * (1 - beta)) * mem * (1 - reset_gate * prev_output)
        current = x * (1 - input_gate * (1 - conductance))
        removed = (1 - leak_gate) * leak + (1 - reset_gate) * reset_size * prev_output
        mem = kept + current - removed
        fired = spike(mem - pos_threshold)
        return fired, mem, fired
