"""Change weights by the timing of spikes: ``STDP``, by pairs, by triplets, or by a reward.

STDP is products of traces, and traces are neurons, whose loops are compiled as any. Changes add up
until ``update_()``, as gradients do, so a loop and a whole sequence give the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tracetorch.cell import StateKind
from tracetorch.core.checks import (
    check_choice,
    check_finite,
    check_flag,
    check_nonnegative,
    check_number,
    is_finite,
)
from tracetorch.core.hooks import hooked_weights, output_size
from tracetorch.core.torch_private import is_readable
from tracetorch.online_learning.lanes import (
    LinearMap,
    factors,
    is_convolution,
    is_linear_map,
    lanes,
    padding_of,
)
from tracetorch.ragged import check_mask, check_sequence, real_steps_first
from tracetorch.snn.connectivity import connectivity, write_weight
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.passes import in_one_commit
from tracetorch.snn.sequence_layer import ARITHMETIC_DTYPE, SequenceLayer

Reward: TypeAlias = float | Tensor
# of potentiation and of depression: values of outputs, and of inputs, whose products are changes,
# with a row for each step, sample and place
_Pairs: TypeAlias = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class STDPRule:
    """Constants of a rule of STDP, checked; every rule is one of triplets in the end."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "nearest":
                check_flag(field.name, value)
            elif check_finite(field.name, value) <= 0 and field.name.startswith("tau"):
                raise ValueError(f"{field.name} must be above 0, in steps, got {value}.")


@dataclass(frozen=True)
class TripletRule(STDPRule):
    """Triplet rule: how much a pair of spikes counts depends on the spike before it.

    ::

        at a spike of the output:  w += r1 (a2_plus + a3_plus o2)
        at a spike of the input:   w -= o1 (a2_minus + a3_minus r2)

    The traces ``r1`` and ``r2`` of the input decay with ``tau_plus`` and ``tau_x``, ``o1`` and
    ``o2`` of the output with ``tau_minus`` and ``tau_y``. With ``a3_minus=0`` it is the minimal
    rule. So pairs at a high rate potentiate, whatever their order, as in cortex.

    Args:
        a2_plus: potentiation by a pair.
        a3_plus: potentiation by two spikes of the output around one of the input.
        a2_minus: depression by a pair.
        a3_minus: depression by two spikes of the input around one of the output.
        tau_plus: time constant of ``r1``, in steps.
        tau_minus: time constant of ``o1``, in steps.
        tau_x: time constant of ``r2``, in steps.
        tau_y: time constant of ``o2``, in steps.
        nearest: a spike counts with the nearest one before it, not with all of them.

    Raises:
        TypeError: a number is none.
        ValueError: a number is not finite, or a time constant not above 0.

    Example:
        >>> TripletRule.presets["visual cortex, minimal"].a3_plus
        0.0065

    Source: Pfister and Gerstner, "Triplets of spikes in a model of spike timing-dependent
    plasticity", Journal of Neuroscience 26, 9673 (2006); ``presets`` are its fits of table 3
    with all spikes, for steps of a millisecond; the minimal one is the default.
    """

    a2_plus: float = 0.0
    a3_plus: float = 6.5e-3
    a2_minus: float = 7.1e-3
    a3_minus: float = 0.0
    tau_plus: float = 16.8
    tau_minus: float = 33.7
    tau_x: float = 101.0
    tau_y: float = 114.0
    nearest: bool = False

    presets: ClassVar[dict[str, TripletRule]]
    """Rules with the constants of the paper, ``"visual cortex"`` and its ``", minimal"`` form."""

    def triplet(self) -> TripletRule:
        """Return the rule itself."""
        return self


@dataclass(frozen=True)
class PairRule(STDPRule):
    """Pair rule: an input that spikes before the output gains weight, one that is late loses some.

    ::

        dw = a_plus  exp(-lag / tau_plus)    lag = steps from the input's spike to the output's >= 0
        dw = -a_minus exp(lag / tau_minus)   lag < 0

    Args:
        a_plus: potentiation at a lag of 0.
        a_minus: depression just below it.
        tau_plus: time constant of potentiation, in steps.
        tau_minus: time constant of depression, in steps.
        nearest: a spike counts with the nearest one before it, not with all of them.

    Raises:
        TypeError: a number is none.
        ValueError: a number is not finite, or a time constant not above 0.

    Example:
        >>> PairRule(a_minus=0.006)
        PairRule(a_plus=0.005, a_minus=0.006, tau_plus=20.0, tau_minus=20.0, nearest=False)

    Source: the defaults are those of Song, Miller and Abbott, "Competitive Hebbian learning through
    spike-timing-dependent synaptic plasticity", Nature Neuroscience 3, 919 (2000), for weights in
    [0, 1] and steps of a millisecond.
    """

    a_plus: float = 0.005
    a_minus: float = 0.00525
    tau_plus: float = 20.0
    tau_minus: float = 20.0
    nearest: bool = False

    def triplet(self) -> TripletRule:
        """Return it as a triplet rule whose triplets count nothing."""
        taus = {"tau_plus": self.tau_plus, "tau_minus": self.tau_minus}
        return TripletRule(self.a_plus, 0.0, self.a_minus, 0.0, **taus, nearest=self.nearest)


TripletRule.presets = {
    "visual cortex": TripletRule(5e-10, 6.2e-3, 7e-3, 2.3e-4, tau_x=101.0, tau_y=125.0),
    "visual cortex, minimal": TripletRule(0.0, 6.5e-3, 7.1e-3, 0.0, tau_y=114.0),
}


class SpikeTrace(Neuron):
    """A leaky integrator that gives what it was before the spike.

    ::

        before = exp(-1 / tau) * trace
        trace  = before + x                       all spikes count
        trace  = x where there is a spike         ``nearest``: that one alone
    """

    states: ClassVar[tuple[str, ...]] = ("trace",)
    trace: Tensor

    def __init__(self, num_neurons: int, tau: float, nearest: bool = False, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.option("factor", math.exp(-1 / tau))
        self.option("nearest", nearest)

    @staticmethod
    def step(x: Tensor, trace: Tensor, *, factor: float, nearest: bool) -> tuple[Any, ...]:
        before = factor * trace
        return before, (before * (x == 0) if nearest else before) + x


class EligibilityTrace(SequenceLayer):
    """State of the weights of a connection for each sample: changes that wait for a reward."""

    states: ClassVar[tuple[str, ...]] = ("trace",)
    trace: Tensor

    def __init__(self, num_neurons: int, inputs: int, tau: float) -> None:
        super().__init__(num_neurons)
        self._state_kind = StateKind(tail=(inputs,))
        self.tau = tau


class STDP(TTModule):
    """Spike-timing-dependent plasticity (STDP) of a linear layer or a convolution.

    An input that spikes before the output it drives gains weight, one that comes late loses some.
    Every input and output carries an exponential trace of its spikes; at a spike of the output the
    weights grow with the traces of the inputs, at a spike of an input they shrink with the traces
    of the outputs. A spike that arrives in the very step of the output's spike has caused it, and
    counts as before it. The rule says by how much, :class:`~tracetorch.online_learning.PairRule` or
    :class:`~tracetorch.online_learning.TripletRule`.

    A call takes the spikes of one step, :meth:`unroll` those of a whole sequence, whose traces are
    compiled loops and whose changes are one product of matrices. Changes add up, as gradients do,
    until :meth:`update_` moves the weights; both ways add up the same.

    With ``tau_eligibility`` a change waits for a **reward**: it goes into an eligibility trace of
    the weight, and the weights move by the reward times that trace::

        eligibility = exp(-1 / tau_eligibility) * eligibility + change
        dw          = reward * eligibility

    Gradients play no part: nothing is recorded, and ``requires_grad`` does not matter.

    Args:
        connection: an ``nn.Linear``, or an ``nn.Conv2d`` without groups; its weight is learned, its
            bias is left alone. What ``tt.snn.connect`` has masked stays zero, and a weight stops at
            zero before it would leave its sign. It stays part of its model alone: ``state_dict()``
            and ``to()`` of the rule leave it out.
        rule: of pairs or of triplets.
        bounds: lowest and highest weight, to which every update clips; none where left out.
        mu: exponent of the distance to the bound, as a share of their range, that a change is
            multiplied by: 0 leaves it as it is (hard bounds), 1 makes it proportional (soft).
        reduction: ``"mean"`` or ``"sum"`` of the changes over the batch; over the places of a
            convolution they are summed.
        tau_eligibility: time constant of the eligibility trace, in steps; without it there is none,
            and every change counts as it is.

    Shape:
        ``pre`` ``[B, ...]``, what the connection is given, and ``post`` ``[B, ...]``, the spikes of
        the neurons behind it, shaped like its output; with ``[T]`` in front in :meth:`unroll`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the shapes do not fit; spikes are NaN or infinite;
            or a reward is given without ``tau_eligibility``.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 5, bias=False), LIF(5))
        >>> stdp = STDP(net[0], PairRule(a_plus=0.01), bounds=(0, 1))
        >>> x = (torch.rand(100, 8, 20) < 0.1).float()
        >>> for step in x:
        ...     spikes = net(step)
        ...     stdp(step, spikes)
        ...     stdp.update_()

    Source: the traces are those of Morrison, Diesmann and Gerstner, "Phenomenological models of
    synaptic plasticity based on spike timing", Biological Cybernetics 98, 459 (2008); ``mu`` is of
    Guetig et al., Journal of Neuroscience 23, 3697 (2003); the reward of Izhikevich, "Solving the
    distal reward problem through linkage of STDP and dopamine signaling", Cerebral Cortex 17, 2443
    (2007), and of Florian, Neural Computation 19, 1468 (2007).
    """

    connection: LinearMap
    _potentiation: Tensor | None
    _depression: Tensor | None

    def __init__(
        self,
        connection: LinearMap,
        rule: PairRule | TripletRule = PairRule(),
        *,
        bounds: tuple[float, float] | None = None,
        mu: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean",
        tau_eligibility: float | None = None,
    ) -> None:
        super().__init__()
        _check_connection(connection)
        if not isinstance(rule, PairRule | TripletRule):
            raise TypeError(f"rule must be a PairRule or a TripletRule, got {rule!r}.")
        # not registered: it is part of a model, which moves it and has it in its state_dict
        object.__setattr__(self, "connection", connection)
        self.rule = rule
        self.bounds, self.mu = _checked_bounds(bounds, mu), float(mu)
        self.reduction = check_choice("reduction", reduction, ("mean", "sum"))
        self._triplet = triplet = rule.triplet()
        outputs, inputs = connection.weight.shape[:2]
        dim = -3 if is_convolution(connection) else -1

        def trace(size: int, tau: float) -> SpikeTrace:
            return SpikeTrace(size, tau, triplet.nearest, dim)

        self.pre_trace = trace(inputs, triplet.tau_plus)
        self.post_trace = trace(outputs, triplet.tau_minus)
        self.slow_pre_trace = trace(inputs, triplet.tau_x) if triplet.a3_minus else None
        self.slow_post_trace = trace(outputs, triplet.tau_y) if triplet.a3_plus else None
        self.tau_eligibility = tau_eligibility
        self.eligibility: EligibilityTrace | None = None
        if tau_eligibility is not None:
            if not (tau := check_number("tau_eligibility", tau_eligibility)) > 0:
                raise ValueError(f"tau_eligibility must be above 0, in steps, got {tau}.")
            self.eligibility = EligibilityTrace(outputs, connection.weight[0].numel(), tau)
        # as gradients, they add up and belong to no checkpoint
        self.register_buffer("_potentiation", None, persistent=False)
        self.register_buffer("_depression", None, persistent=False)

    def extra_repr(self) -> str:
        """Name the settings."""
        names = ("connection", "rule", "bounds", "mu", "reduction", "tau_eligibility")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(
        self, pre: Tensor, post: Tensor, reward: Reward | None = None, mask: Tensor | None = None
    ) -> None:
        """Take the spikes of one step: move the traces on, and add up the changes.

        Args:
            pre: ``[B, ...]``, the input of the connection.
            post: ``[B, ...]``, the spikes of the neurons behind it.
            reward: a number, or one a sample, ``[B]``; none is a reward of 0.
            mask: ``[B]``, true where the step is real; a sample without stays as it is.
        """
        if isinstance(reward, Tensor):
            reward = reward[None]
        elif reward is not None:
            reward = torch.tensor([check_finite("reward", reward)], dtype=torch.float64)
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 1:
                raise TypeError(f"mask must be a tensor of booleans [B] in a step, got {mask!r}.")
            mask = mask[None]
        self._learn(pre[None], post[None], reward, mask)

    def unroll(
        self, pre: Tensor, post: Tensor, reward: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Take the spikes of a whole sequence: what calls with each of its steps would add up.

        Args:
            pre: ``[T, B, ...]``, the input of the connection.
            post: ``[T, B, ...]``, the spikes of the neurons behind it.
            reward: ``[T]``, or ``[T, B]``, one a sample.
            mask: ``[T, B]``, true where a step is real; others are left out.
        """
        check_sequence("pre", pre, batched=True)
        check_sequence("post", post, batched=True)
        check_mask(mask, "pre", pre)
        self._learn(pre, post, reward, mask)

    @torch.no_grad()
    def update_(self) -> None:
        """Move the weights by the changes that have added up, within the bounds."""
        if self._potentiation is None or self._depression is None:
            return
        _check_own_weight(self.connection)
        write_weight(self.connection, self._moved(self._potentiation, self._depression))
        self._potentiation = self._depression = None

    def _moved(self, potentiation: Tensor, depression: Tensor) -> Tensor:
        weight = self.connection.weight.to(potentiation)
        # negative rewards and amplitudes turn a change: the bound that counts is the one it nears
        up = potentiation.clamp(min=0) - depression.clamp(max=0)
        down = depression.clamp(min=0) - potentiation.clamp(max=0)
        if self.bounds is None:
            return weight + up - down
        lowest, highest = self.bounds
        if self.mu:
            span = highest - lowest
            up = up * ((highest - weight) / span).clamp(0, 1) ** self.mu
            down = down * ((weight - lowest) / span).clamp(0, 1) ** self.mu
        return (weight + up - down).clamp(lowest, highest)

    @torch.no_grad()
    def _learn(self, pre: Tensor, post: Tensor, reward: Tensor | None, mask: Tensor | None) -> None:
        for trace, x in ((self.pre_trace, pre), (self.post_trace, post)):
            trace._check_input(x, sequence=True)
        _check_spikes(self.connection, pre, post, mask)
        reward = _checked_reward(reward, pre, mask, waits=self.eligibility is not None)
        if not pre.shape[1]:  # an empty batch has no mean
            return
        dtype = ARITHMETIC_DTYPE[pre.dtype]
        pre, post = pre.to(dtype), post.to(dtype)
        lengths = None if mask is None else mask.sum(0)
        if mask is not None:
            # what is behind the real steps is without spikes
            pre, post = real_steps_first(pre, mask), real_steps_first(post, mask)
            reward = None if reward is None else real_steps_first(reward, mask)
        # the traces go on all together, or none
        up, down = in_one_commit(self._summed, pre, post, reward, lengths)
        if self.reduction == "mean":
            up, down = up / pre.shape[1], down / pre.shape[1]
        if self._potentiation is not None and self._depression is not None:
            up, down = self._potentiation + up, self._depression + down
        self._potentiation, self._depression = up, down

    def _summed(
        self, pre: Tensor, post: Tensor, reward: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run the traces over the sequence; return what is potentiated and depressed."""
        rule = self._triplet
        _, pre_after = _run(self.pre_trace, pre, lengths)
        post_before, _ = _run(self.post_trace, post, lengths)
        # a spike counts once in its pair, and again with the trace of those before it
        worth, cost = rule.a2_plus * post, rule.a2_minus * pre
        if self.slow_post_trace is not None:
            before, _ = _run(self.slow_post_trace, post, lengths)
            worth = worth + rule.a3_plus * post * before
        if self.slow_pre_trace is not None:
            before, _ = _run(self.slow_pre_trace, pre, lengths)
            cost = cost + rule.a3_minus * pre * before
        factored = (worth, pre_after), (post_before, cost)
        own = self.connection
        pairs = [(lanes(own, y), factors(own, x.flatten(0, 1))) for y, x in factored]
        if self.eligibility is None:
            return self._changes(pairs)
        if lengths is None:
            lengths = pre.new_full(pre.shape[1:2], len(pre), dtype=torch.int64)
        up = self._rewarded(self.eligibility, pairs, len(pre), reward, lengths)
        return up, torch.zeros_like(up)

    def _changes(self, pairs: _Pairs) -> tuple[Tensor, Tensor]:
        shape = self.connection.weight.shape
        up, down = ((rows.t() @ columns).view(shape) for rows, columns in pairs)
        return up, down

    def _rewarded(
        self,
        eligibility: EligibilityTrace,
        pairs: _Pairs,
        steps: int,
        reward: Tensor | None,
        lengths: Tensor,
    ) -> Tensor:
        """Move the eligibility trace to the last step; return the changes by the reward.

        A change counts with all the rewards from its step on, decayed: a trace of the reward,
        backwards. Only the last eligibility is ever there as a matrix for each sample.
        """
        batch, decay = len(lengths), math.exp(-1 / eligibility.tau)
        shape = pairs[0][0].new_empty(batch, eligibility.num_neurons)
        before: Any = eligibility._states_for(shape, shape.dtype)[0]
        weight = self.connection.weight
        total = shape.new_zeros(weight.shape)

        def weighted(by: Tensor) -> _Pairs:
            each = by.flatten()[:, None, None]
            return [
                ((each * y.view(len(each), -1, y.shape[-1])).flatten(0, 1), x) for y, x in pairs
            ]

        if reward is not None:
            clock = SpikeTrace(1, eligibility.tau)
            _, seen = clock.forward_sequence(reward.flip(0)[..., None].contiguous(), ["trace"])
            later = seen["trace"].flip(0).squeeze(-1)  # [T, B]
            total += torch.einsum("b,bnk->nk", decay * later[0], before).view_as(weight)
            up, down = self._changes(weighted(later))
            total += up - down
        # what is left of each change after the last real step
        age = lengths - 1 - torch.arange(steps, device=shape.device)[:, None]
        left = (decay ** age.clamp(min=0).to(shape)).masked_fill(age < 0, 0.0)
        decayed = decay ** lengths.to(shape)

        def by_sample(rows: Tensor, columns: Tensor) -> Tensor:
            rows, columns = (
                x.view(steps, batch, -1, x.shape[-1]).transpose(0, 1).flatten(1, 2)
                for x in (rows, columns)
            )
            return rows.transpose(1, 2) @ columns

        up, down = (by_sample(*pair) for pair in weighted(left))
        eligibility.trace = decayed[:, None, None] * before + (up - down)
        return total


def _run(trace: SpikeTrace, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a trace before and after the spikes of each step; it is left at the last real step."""
    start: Any = trace._states_for(x, x.dtype, sequence=True)[0]
    if len(x) == 1:  # by the compiled step, which costs less than a sequence of one
        before = trace(x[0])[None]
        after = trace.trace[None]
    else:
        before, states = trace.forward_sequence(x, ["trace"])
        after = states["trace"]
    if lengths is not None:
        ends = after[(lengths - 1).clamp(min=0), torch.arange(len(lengths), device=x.device)]
        empty = (lengths == 0).reshape(-1, *[1] * (ends.ndim - 1))
        trace.trace = torch.where(empty, start, ends)
    return before, after


def _check_connection(connection: object) -> None:
    if isinstance(connection, nn.Module):
        _check_own_weight(connection)
    if not isinstance(connection, nn.Module) or not is_linear_map(connection):
        raise TypeError(
            "connection must be an nn.Linear, with a mask of tt.snn.connect where it is sparse, or "
            f"an nn.Conv2d with groups=1 and a padding of zeros, in numbers, got {connection!r}."
        )


def _checked_bounds(bounds: Any, mu: float) -> tuple[float, float] | None:
    if bounds is not None:
        try:
            lowest, highest = bounds = tuple(check_number("a bound", each) for each in bounds)
        except (TypeError, ValueError):
            raise TypeError(f"bounds must be (lowest, highest), got {bounds!r}.") from None
        if not lowest < highest:
            raise ValueError(f"bounds must be (lowest, highest), got {bounds}.")
    if check_nonnegative("mu", mu) > 0 and not (bounds and all(map(math.isfinite, bounds))):
        problem = "there are none" if bounds is None else f"{bounds} are not finite"
        raise ValueError(f"mu={mu} makes bounds soft, and {problem}. Give bounds=(0, 1).")
    return cast("tuple[float, float] | None", bounds)


def _check_spikes(connection: LinearMap, pre: Tensor, post: Tensor, mask: Tensor | None) -> None:
    """Raise where the spikes of a sequence fit neither each other, the connection nor the mask."""
    ndim = 5 if is_convolution(connection) else 3
    if pre.ndim != ndim or post.ndim != ndim or pre.shape[:2] != post.shape[:2]:
        step = "[B, inputs]" if ndim == 3 else "[B, C, H, W]"
        raise ValueError(
            f"pre and post must be {step} in a step, with [T] in front in unroll(), and of one "
            f"length and batch, got steps of {list(pre.shape[1:])} and {list(post.shape[1:])}."
        )
    if is_convolution(connection):
        options = connection.kernel_size, connection.stride, padding_of(connection)
        pairs = zip(pre.shape[-2:], *options, connection.dilation, strict=True)
        places = [output_size(*each) for each in pairs]
        if list(post.shape[3:]) != places:
            got = f"{list(post.shape[2:])} for an input of {list(pre.shape[2:])}"
            raise ValueError(f"post must have the places {places} of {connection!r}, got {got}.")
    if mask is not None and mask.shape != pre.shape[:2]:
        raise ValueError(f"mask has {mask.shape[1]} samples, pre has {pre.shape[1]}.")
    for name, spikes in (("pre", pre), ("post", post)):
        # padding may hold anything
        if is_readable(spikes) and not is_finite(spikes if mask is None else spikes[mask]):
            raise ValueError(
                f"{name} has NaN or infinite values, which would stay in the traces and reach "
                f"every weight. Leave the step out: if not {name}.isfinite().all(): continue"
            )


def _checked_reward(
    reward: Tensor | None, pre: Tensor, mask: Tensor | None, *, waits: bool
) -> Tensor | None:
    """Return the reward as ``[T, B]``; ``waits``: there is an eligibility trace."""
    if reward is None:
        return None
    if not waits:
        raise ValueError(
            "a reward needs an eligibility trace, which changes wait in. Give tau_eligibility."
        )
    if not isinstance(reward, Tensor):
        raise TypeError(f"reward must be a tensor over time, got {type(reward).__name__}.")
    if reward.shape not in (pre.shape[:1], pre.shape[:2]):
        sizes = f"{list(pre.shape[:2])}, got {list(reward.shape)}"
        raise ValueError(f"reward must have a value for each step, or step and sample, {sizes}.")
    reward = reward.to(pre.device, ARITHMETIC_DTYPE[pre.dtype])
    reward = (reward if reward.ndim == 2 else reward[:, None]).expand(pre.shape[:2])
    if not bool(torch.isfinite(reward if mask is None else reward[mask]).all()):
        raise ValueError("reward must be finite, got a tensor with infinite values or NaN.")
    return reward


def _check_own_weight(connection: nn.Module) -> None:
    """Raise where the weight is computed from other values: what is written into it is lost."""
    computed = is_parametrized(connection) and connectivity(connection) is None
    if computed or hooked_weights(connection):
        raise ValueError(
            f"connection {connection!r} is parametrized, pruned, or has a norm of torch.nn.utils: "
            "its weight follows from other values, and cannot be learned. Remove this first."
        )
