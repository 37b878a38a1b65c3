"""Find states carried over or lost, and half-lives that do not match the sequence length."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tracetorch.diagnosis.evidence import Evidence, unfit_states
from tracetorch.diagnosis.finding import Finding, join_first, measured
from tracetorch.diagnosis.gradients import norm_by_step
from tracetorch.ragged import real_steps_first
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.parameters import is_decay
from tracetorch.snn.sequence_layer import SequenceLayer

_HALVINGS = 10  # after which a thousandth is left
_THOUSANDTH = 1e-3
_END = 0.1  # of the sequence
_MOSTLY = 0.99  # of the gradient's square
_TOO_SLOW = 10  # sequence lengths
_FEW_STEPS = 10


def carried_states(evidence: Evidence, stream: bool) -> Iterator[Finding]:
    """Find states that are left over from an earlier run."""
    held, needed, batch = evidence.old_states, evidence.new_states, evidence.inputs.batch
    if not any(bool(state.any()) or state.requires_grad for state in held.values()):
        return  # there are none, or they are at rest
    unfit = unfit_states(held, needed)
    if unfit:
        name = unfit[0]
        yield measured("error", "states-do-not-fit", name.rpartition(".")[0], len(unfit))(
            f"The model holds {name} of shape {list(held[name].shape)}, {held[name].dtype}; this "
            f"batch of {batch} needs {list(needed[name].shape)}, {needed[name].dtype}.",
            "The next call of the model raises an error. (Here it was run from rest.)",
            "Call zero_states() before each new batch.",
        )
        return
    # In a stream, states are carried on purpose: only their graph must be cut.
    if stream:
        in_graph = [name for name, state in held.items() if state.requires_grad]
        if in_graph:
            yield measured(
                "warning", "states-hold-a-graph", in_graph[0].rpartition(".")[0], len(in_graph)
            )(
                f"{len(in_graph)} of {len(held)} states, {in_graph[0]} first, are part of the "
                "graph of an earlier run.",
                "backward() goes through all earlier chunks too, or fails because they are freed.",
                "Call detach_states() after each chunk: truncated backpropagation through time.",
            )
        return
    carried_loss = evidence.loss_from_old_states
    comparison = (
        ""
        if carried_loss is None
        else f" From them the loss is {carried_loss:.4g}, from rest {float(evidence.loss):.4g}."
    )
    yield measured(
        "warning",
        "states-carried",
        next(iter(held)).rpartition(".")[0],
        math.nan if carried_loss is None else carried_loss,
    )(
        f"The model holds {len(held)} states of an earlier run, {next(iter(held))} first."
        f"{comparison}",
        "A run continues from them: the states of one batch are noise to the next.",
        "Call zero_states() before each new batch, and diagnose after it. For a stream that is "
        "continued on purpose, use diagnose(..., stream=True).",
    )


def zeroed_states(evidence: Evidence) -> Iterator[Finding]:
    """Find states that are lost between two steps."""
    if evidence.zeroed:
        yield measured("warning", "states-emptied", evidence.zeroed[0], len(evidence.zeroed))(
            f"The states of {len(evidence.zeroed)} of {len(evidence.layers)} neuron layers are "
            f"gone when the second step begins: {join_first(evidence.zeroed)}.",
            "Called step by step, the network begins every step from rest: it remembers nothing, "
            "and no gradient goes back in time. (tt.unroll by layer calls forward() once for all "
            "steps, and gives other outputs.)",
            "Call zero_states() once before each sequence, outside forward().",
        )


def padding_in_loss(evidence: Evidence) -> Iterator[Finding]:
    """Find a loss whose gradient reaches outputs in the padding."""
    mask = evidence.mask
    if mask is None or bool(mask.all()):
        return
    whole = padded = 0.0
    for gradient in evidence.output_gradients:
        if gradient is None or gradient.shape[:2] != mask.shape:
            continue
        squares = gradient.double().square()
        if not bool(squares.isfinite().all()):
            return  # for which there are other findings
        whole += float(squares.sum())
        padded += float(squares[~mask.to(squares.device)].sum())
    if padded == 0:
        return
    share = padded / whole
    alone = padded == whole
    yield measured("error" if alone else "warning", "padding-in-loss", "", share)(
        f"{100 * share:.3g} % of the squared gradient of the loss is at outputs in the padding.",
        "The loss reads steps that are no data"
        + (
            ", and nothing else: what is learned is the padding."
            if alone
            else ": a short sequence is judged by what the network does after its end."
        ),
        "Give the loss or the decoder the mask, true where a step is real: "
        "tt.loss.membrane_cross_entropy(y, target, mask=mask), tt.decode.last(y, mask=mask) "
        "instead of y[-1]. A mask that is true at padding is inverted: give ~mask.",
    )


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Find half-lives that are too short or too long for the sequence."""
    T = evidence.inputs.steps
    lives = [
        (layer.path, span)
        for layer in evidence.layers
        if (span := halflives(layer.module)) is not None
    ]
    if T >= _FEW_STEPS and lives:
        # The slowest trace of all layers bounds how far the network remembers.
        path, (_, longest) = max(lives, key=lambda pair: pair[1][1])
        if longest * _HALVINGS < T:
            yield from _short_memory(evidence, path, longest)
    for layer in evidence.layers:
        yield from _slow_average(layer.path, layer.module, T)


def _short_memory(evidence: Evidence, path: str, longest: float) -> Iterator[Finding]:
    T = evidence.inputs.steps
    back = _gradient_span(evidence)
    at_the_end = _reads_the_end(evidence)
    gradient = "" if back is None else f" The gradient falls to a thousandth {back} steps back."
    # It is a fault only where the loss depends on what the layers have forgotten.
    forgets = at_the_end and (back is None or back < T / 2)
    yield measured("warning" if forgets else "note", "short-memory", path, longest)(
        f"The longest half-life of all layers is {longest:.3g} steps, the sequence has {T}."
        f"{gradient if at_the_end else ''}",
        "The loss depends on the last steps, when the first half of the sequence has been "
        "forgotten: it can be neither used nor learned from."
        if forgets
        else "Each output depends on the last few steps only. That is enough where the loss reads "
        "all outputs and the order of steps does not matter; it is not where it does.",
        f"Start from half-lives up to the sequence's length: beta="
        f"tt.functional.halflife_to_decay({T / 4:.3g}), or a tensor of several timescales, one per "
        "neuron. Recurrence or a coarser time step help too.",
    )


def _reads_the_end(evidence: Evidence) -> bool:
    """Whether the loss depends on the last tenth of each sequence's steps alone."""
    whole = tail = 0.0
    for gradient in evidence.output_gradients:
        if gradient is None:
            continue
        # A loss depends on the outputs at which its gradient is not zero.
        squares = gradient.double().square()
        end = _last_tenth(gradient, evidence.mask)
        whole += float(squares.sum())
        tail += float(squares[end].sum())
    return whole > 0 and tail >= _MOSTLY * whole


def _last_tenth(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mark the last tenth of the steps, ``[T]``, or ``[T, B]`` for ragged sequences."""
    if mask is None or x.shape[:2] != mask.shape:
        return torch.arange(len(x), 0, -1, device=x.device) <= max(1, round(_END * len(x)))
    remaining = mask.flip(0).cumsum(0).flip(0)  # real steps from each step to the end
    tenth = (_END * mask.sum(0)).round().clamp(min=1)
    return (remaining <= tenth) & mask


def _gradient_span(evidence: Evidence) -> int | None:
    """Count the last steps whose gradient is at least a thousandth of the highest."""
    spans: list[int] = []
    for layer in evidence.layers:
        gradient, mask = layer.gradient, evidence.mask
        if gradient is not None and mask is not None:
            # Ragged sequences end at different steps: aligned, their last steps coincide.
            gradient = real_steps_first(gradient.flip(0), mask.flip(0)).flip(0)
        steps = norm_by_step(gradient)
        if steps is not None and bool(steps.any()) and bool(torch.isfinite(steps).all()):
            first = (steps >= _THOUSANDTH * steps.max()).nonzero()[0]
            spans.append(len(steps) - int(first))
    return max(spans, default=None)


def _slow_average(path: str, layer: SequenceLayer, T: int) -> Iterator[Finding]:
    if not isinstance(layer, LeakyIntegrator):
        return
    for name in ("alpha", "beta", "gamma"):
        decay = getattr(layer, name)
        if decay is None or not getattr(layer, f"{name}_ema"):
            continue
        life = float(_halflife(decay).median())
        if life > _TOO_SLOW * T:
            reached = 100 * (1 - 0.5 ** (T / life))
            yield measured("warning", "slow-average", path, life)(
                f"Half of its decays {name} have a half-life above {life:.3g} steps; the sequence "
                f"has {T}, in which such an average reaches {reached:.2g} % of its input.",
                "Its input is scaled by 1 - decay: the trace stays near zero to the end, and so "
                "does the gradient through it.",
                f"Start from half-lives around the sequence's length: {name}="
                f"tt.functional.halflife_to_decay({max(1.0, T / 4):.3g}).",
            )


def halflives(layer: SequenceLayer) -> tuple[float, float] | None:
    """Return shortest and longest half-life of a layer's decays in steps; ``None`` without any."""
    decays = [
        _halflife(getattr(layer, name))
        for name, constraint in layer.constraints.items()
        if is_decay(constraint)
    ]
    if not decays:
        return None
    return min(float(d.min()) for d in decays), max(float(d.max()) for d in decays)


def _halflife(decay: Tensor) -> Tensor:
    """Return ``log(0.5) / log(decay)``, infinite where the decay has rounded to 1."""
    return -math.log(2) / torch.log(decay.detach().double())
