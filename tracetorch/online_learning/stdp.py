"""Change weights by the timing of spikes: ``STDP``, by pairs, by triplets, or by a reward.

STDP is products of traces, and traces are neurons: ``SpikeTrace`` is a leaky integrator whose loop
is compiled as any. A spike that arrives in a step counts as before the output's spike in that step,
which it can cause. Changes add up until ``update_()``, as gradients do, so a loop and a whole
sequence give the same. A reward needs no matrix for each step: a change counts with all later
rewards, decayed, which is a trace of the reward backwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tracetorch.core.checks import check_choice, check_count, check_finite, check_number
from tracetorch.integers.fixed_point import shift_right
from tracetorch.integers.loading import CheckedLoading, off_range
from tracetorch.integers.width import limits
from tracetorch.online_learning.integer_stdp import (
    check_settings,
    check_sums,
    integer_rule,
    next_weight,
    whole_spikes,
)
from tracetorch.online_learning.linear_maps import (
    LinearMap,
    factors,
    is_convolution,
    is_integer_map,
    lanes,
)
from tracetorch.online_learning.spike_trace import EligibilityTrace, SpikeTrace
from tracetorch.online_learning.stdp_checks import (
    check_connection,
    check_own_weight,
    check_pair,
    check_spikes,
    checked_bounds,
    checked_reward,
)
from tracetorch.online_learning.stdp_rules import PairRule, STDPRule, TripletRule
from tracetorch.ragged import check_mask, check_sequence, real_steps_first
from tracetorch.snn.connectivity import write_weight
from tracetorch.snn.module import TTModule
from tracetorch.snn.passes import in_one_commit
from tracetorch.snn.sequence_layer import ARITHMETIC_DTYPE

Reward: TypeAlias = float | Tensor
# of potentiation and of depression: values of outputs, and of inputs, whose products are changes,
# with a row for each step, sample and place
_Pairs: TypeAlias = list[tuple[Tensor, Tensor]]


class STDP(CheckedLoading, TTModule):
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

    **In integers.** Of a ``tt.integers.Linear`` or ``Conv2d`` everything is an integer, and equal
    by step, over a sequence, on every device and in C. Amplitudes and bounds are in steps of the
    integer weight. With ``f = fraction_bits`` and ``A = round(2^f a)`` of each amplitude::

        r  = trunc(r * round(2^15 exp(-1 / tau)) / 2^15)            every trace, before spikes
        up = A2_plus post + floor(A3_plus post o2 / 2^f + 1/2)      down likewise, of pre and r2
        r  = saturate(r + 2^f x, f + 8)                             behind the spikes x
        change += up r1 - o1 down

    and ``update_`` adds to weights that keep ``2 f`` bits below their unit, in ``remainder``::

        sum       = min(max(2^2f weight + remainder + change, 2^2f lowest), 2^2f highest)
        weight    = floor(sum / 2^2f + 1/2)
        remainder = sum - 2^2f weight

    Only traces and constants are rounded; towards ``f = 12`` the rule is that of floats.

    Args:
        connection: an ``nn.Linear``, an ``nn.Conv2d`` without groups, or one of ``tt.integers``;
            its weight is learned, its bias is left alone. What ``tt.snn.connect`` has masked stays
            zero, and a weight stops at zero before it would leave its sign. It stays part of its
            model alone: ``state_dict()`` and ``to()`` of the rule leave it out.
        rule: of pairs or of triplets.
        bounds: lowest and highest weight, to which every update clips; none where left out.
        mu: exponent of the distance to the bound, as a share of their range, that a change is
            multiplied by: 0 leaves it as it is (hard bounds), 1 makes it proportional (soft).
        reduction: ``"mean"`` or ``"sum"`` of the changes over the batch; over the places of a
            convolution they are summed.
        tau_eligibility: time constant of the eligibility trace, in steps; without it there is none,
            and every change counts as it is.
        fraction_bits: of a connection of integers, the bits behind the binary point of its traces
            and amplitudes, 1 to 12; 8 where left out. A trace forgets up to ``tau / 2^f`` of a
            spike too early, so slow ones want more.
        spike_sizes: of a connection of integers, the sizes of a spike of its input and of its
            output: 128 where ``tt.quantize`` made neurons whose spikes leave a trace (``gamma``).

    Shape:
        ``pre`` ``[B, ...]``, what the connection is given, and ``post`` ``[B, ...]``, the spikes of
        the neurons behind it, shaped like its output; with ``[T]`` in front in :meth:`unroll`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the shapes do not fit; spikes are NaN or infinite;
            a reward is given without ``tau_eligibility``; or, in integers, spikes are none of -128
            to 127, sums may not be exact, an amplitude is 0, or there are soft bounds, a reward or
            a mean over several samples.

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
    remainder: Tensor | None
    _potentiation: Tensor | None
    _depression: Tensor | None

    def __init__(
        self,
        connection: LinearMap,
        rule: PairRule | TripletRule = PairRule(),  # noqa: B008 (frozen)
        *,
        bounds: tuple[float, float] | None = None,
        mu: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean",
        tau_eligibility: float | None = None,
        fraction_bits: int | None = None,
        spike_sizes: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        check_connection(connection)
        if not isinstance(rule, STDPRule):
            raise TypeError(f"rule must be a PairRule or a TripletRule, got {rule!r}.")
        bounds = checked_bounds(bounds, mu)
        triplet, remainder = rule.triplet(), None
        if is_integer_map(connection):
            given = fraction_bits, bounds, mu, tau_eligibility
            fraction_bits, bounds = check_settings(connection, *given)
            triplet = integer_rule(triplet, fraction_bits)
            remainder = torch.zeros_like(connection.weight, dtype=torch.int32)
        elif fraction_bits is not None or spike_sizes != (1, 1):
            raise ValueError(
                "fraction_bits and spike_sizes are those of a connection of tt.integers, which "
                f"tt.quantize.convert makes, got {connection!r}. Leave them out."
            )
        first, second = check_pair("spike_sizes", "(of the input, of the output)", spike_sizes)
        self.spike_sizes = check_count("a spike size", first), check_count("a spike size", second)
        # not registered: it is part of a model, which moves it and has it in its state_dict
        object.__setattr__(self, "connection", connection)
        self.rule = rule
        self.bounds, self.mu = bounds, float(mu)
        self.reduction = check_choice("reduction", reduction, ("mean", "sum"))
        self.fraction_bits, self._triplet = fraction_bits, triplet
        outputs, inputs = connection.weight.shape[:2]
        dim = -3 if is_convolution(connection) else -1

        def trace(size: int, tau: float) -> SpikeTrace:
            return SpikeTrace(size, tau, triplet.nearest, dim, fraction_bits)

        self.pre_trace = trace(inputs, triplet.tau_plus)
        self.post_trace = trace(outputs, triplet.tau_minus)
        self.slow_pre_trace = trace(inputs, triplet.tau_x) if triplet.a3_minus else None
        self.slow_post_trace = trace(outputs, triplet.tau_y) if triplet.a3_plus else None
        self.tau_eligibility = tau_eligibility
        self.eligibility: EligibilityTrace | None = None
        if tau_eligibility is not None:
            if not check_number("tau_eligibility", tau_eligibility) > 0:
                raise ValueError(
                    f"tau_eligibility must be above 0, in steps, got {tau_eligibility}."
                )
            inputs = connection.weight[0].numel()
            self.eligibility = EligibilityTrace(outputs, inputs, float(tau_eligibility))
        # as gradients, they add up and belong to no checkpoint
        self.register_buffer("_potentiation", None, persistent=False)
        self.register_buffer("_depression", None, persistent=False)
        self.register_buffer("remainder", remainder)

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Yield the remainder of a ``state_dict`` where it has other bits, and why."""
        yield from super().objections(given)
        if self.fraction_bits is not None and "remainder" in given:
            ends = limits(2 * self.fraction_bits)
            for name, reason in off_range("remainder", given["remainder"], *ends):
                yield name, f"{reason} Build the rule with the fraction_bits it was saved with."

    def extra_repr(self) -> str:
        """Name the settings."""
        names = ["connection", "rule", "bounds", "mu", "reduction", "tau_eligibility"]
        names += ["fraction_bits", "spike_sizes"] * (self.fraction_bits is not None)
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
                got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"mask must be a tensor of booleans [B] in a step, got {got}.")
            # nothing happens in the other samples
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
        check_own_weight(self.connection)
        write_weight(self.connection, self._moved(self._potentiation, self._depression))
        self._potentiation = self._depression = None

    def _moved(self, potentiation: Tensor, depression: Tensor) -> Tensor:
        """Return the next weight; one of integers leaves its remainder behind."""
        if self.remainder is not None and self.fraction_bits and self.bounds:
            change = potentiation - depression
            self.remainder = self.remainder.to(change.device)
            given = self.remainder, change, self.bounds, self.fraction_bits
            moved, remainder = next_weight(self.connection, *given)
            self.remainder.copy_(remainder)
            return moved
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
        check_spikes(self.connection, pre, post, mask)
        reward = checked_reward(reward, pre, mask, waits=self.eligibility is not None)
        if not pre.shape[1]:  # an empty batch has no mean
            return
        dtype, is_mean = ARITHMETIC_DTYPE[pre.dtype], self.reduction == "mean" and pre.shape[1] > 1
        if self.fraction_bits is not None:
            dtype = torch.float64
            pre = whole_spikes("pre", pre, self.spike_sizes[0], mask)
            post = whole_spikes("post", post, self.spike_sizes[1], mask)
            if is_mean:
                raise ValueError(
                    f"a mean over {pre.shape[1]} samples is no integer. Give reduction='sum', and "
                    "amplitudes that are smaller by as much."
                )
        pre, post = pre.to(dtype), post.to(dtype)
        lengths = None if mask is None else mask.sum(0)
        if mask is not None:
            # what is behind the real steps is without spikes
            pre, post = real_steps_first(pre, mask), real_steps_first(post, mask)
            reward = None if reward is None else real_steps_first(reward, mask)
        # the traces go on all together, or none
        up, down = in_one_commit(self._summed, pre, post, reward, lengths)
        if is_mean:
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
            worth = worth + self._in_unit(rule.a3_plus * post * before)
        if self.slow_pre_trace is not None:
            before, _ = _run(self.slow_pre_trace, pre, lengths)
            cost = cost + self._in_unit(rule.a3_minus * pre * before)
        factored = (worth, pre_after), (post_before, cost)
        own = self.connection
        pairs = [(lanes(own, y), factors(own, x.flatten(0, 1))) for y, x in factored]
        if self.eligibility is None:
            return self._changes(pairs)
        if lengths is None:
            lengths = pre.new_full(pre.shape[1:2], len(pre), dtype=torch.int64)
        up = self._rewarded(self.eligibility, pairs, len(pre), reward, lengths)
        return up, torch.zeros_like(up)

    def _in_unit(self, product: Tensor) -> Tensor:
        """Return an amplitude times a trace, in integers in the unit of one of the two."""
        bits = self.fraction_bits
        return product if bits is None else shift_right(product, bits, "nearest")

    def _changes(self, pairs: _Pairs) -> tuple[Tensor, Tensor]:
        """Sum what is potentiated and depressed."""
        if self.fraction_bits is not None:
            for pair, before in zip(pairs, (self._potentiation, self._depression), strict=True):
                check_sums(*pair, before)
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

        The trace after a step holds each change of before, decayed. So a change counts with all the
        rewards from its step on, decayed: a trace of the reward, backwards. Only the last
        eligibility is ever there as a matrix for each sample.
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
