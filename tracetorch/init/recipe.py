"""Prepare a model for its training, its optimizer and its schedule: ``recipe``."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from tracetorch.core.checks import (
    check_count,
    check_has_values,
    check_module,
    check_positive,
    check_unsharded,
)
from tracetorch.core.snapshot import restored_on_error
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import join_path, named_modules
from tracetorch.init.calibrate import trial_on, warn_of_scales
from tracetorch.init.membranes import Trial, measure, root_mean_square
from tracetorch.init.response import to_first_spike
from tracetorch.init.scaling import reached_already, scale_all
from tracetorch.init.spread import Spread, describe_halflives, plan_spread, spread_written
from tracetorch.init.stages import weight_of
from tracetorch.snn.delay.base import DelayingLayer
from tracetorch.snn.param_groups import param_groups
from tracetorch.snn.spike_functions import spike_functions
from tracetorch.unrolling.inputs import mask_first, parse_inputs

_TARGET = 1.0  # nearer to the threshold than calibrate_ by default: layers fire from the start
_DECAY = 0.01  # of weights
_QUICK = 10.0  # times the rate, for delays
# With more inputs than that, of which more than so many are active at once, neurons without a norm
# are driven too far by a rate that suits few, and die.
_WIDE, _ACTIVE = 128, 16.0
_RATE, _RATE_BEHIND_NORMS = 1e-2, 3e-2


def recipe(
    model: nn.Module,
    batch: Any,
    total_steps: int,
    *,
    lr: float | None = None,
    mask: Tensor | None = None,
    steps: int | None = None,
    time_dim: int = 0,
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
    """Prepare a model to be trained: a start from which it learns, an optimizer, a schedule.

    One line for the usual training::

        tt.init.spread_(model, T)            # half-lives that were left at their default
        tt.init.calibrate_(model, batch, target=1.0, mask=mask, steps=steps)
        groups = tt.param_groups(model, weight_decay=0.01, lr=lr, relative=True)
        optimizer = torch.optim.AdamW(groups, fused=True)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates_of_groups, total_steps)

    ``T`` is the number of steps of the batch, of the longest sequence where there is a mask. The
    target is measured to where a neuron fires: of a voltage that runs away to its peak, as that of
    ``EIF``, that is far below its threshold. Two groups have rates of their own: delays learn at
    ten times the rate, ``"delays"``; and the weights of spiking neurons with more than 128 inputs
    and no batch norm at the larger of 128 / inputs and 16 / inputs active at once, where that is
    below 1: Adam moves all of them at once, and so a membrane the further the more there are (Yang
    et al., *Tensor Programs V*, 2022). What was done is printed, a line for each
    neuron layer: its half-lives, the weight before it with the factor that calibration found, and
    the highest rate at which that weight learns, if it does.

    A batch norm before neurons whose response to a pulse does not end, ``TCLIF`` or ``IF``, keeps
    its weight, and so does one that drives several layers of neurons, as through a shortcut. A
    second call changes nothing that the first did: half-lives that are spread are no longer at
    their default, and membranes that hold the target are left alone. To go on with a training, call
    it as before, then load model, optimizer and scheduler with ``tt.load``: a network that has
    learned would be calibrated anew.

    Args:
        model: any module that :func:`tracetorch.unroll` runs, in the mode that it trains in.
        batch: a batch of training data, as ``unroll`` takes it: ``[T, B, ...]``. Of a stream give
            pieces as long as what is to be remembered.
        total_steps: how often ``optimizer.step()`` will run, and ``scheduler.step()`` after it.
        lr: the highest learning rate; ``None``: 3e-2 where a batch norm is the last layer before
            each layer of neurons that spike, else 1e-2.
        mask: ``[T, B]`` booleans, true where a step is real; ``None``: all are.
        steps: as in ``unroll``, for a batch without time.
        time_dim: as in ``unroll``, where time is in the batch: 1 for ``[B, T, ...]``, with a mask
            ``[B, T]`` then.

    Returns:
        An ``AdamW`` with a rate for each weight, and the ``OneCycleLR`` that leads it.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, or as :func:`tt.init.calibrate_
            <tracetorch.init.calibrate_>`, for a layer that it cannot calibrate. The model is as
            before then.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 50), LIF(50), nn.Linear(50, 4), Readout(4))
        >>> x = (torch.rand(30, 8, 20) < 0.1).float()
        >>> optimizer, scheduler = recipe(model, x, total_steps=100)  # doctest: +ELLIPSIS
        recipe: AdamW, one cycle of 100 steps up to 0.01, no batch norm before 1
        1  LIF      1 to 30 steps, spread             0.weight x ..., at ...
        3  Readout  6.58 steps, left: does not spike  2.weight x ..., at ...
    """
    check_module(model)
    check_unsharded(model, "tt.recipe")
    check_has_values(model)
    total_steps = check_count("total_steps", total_steps)
    if lr is not None:
        lr = check_positive("lr", lr)
    inputs = parse_inputs(batch, steps, time_dim, True)
    mask = mask_first(mask, inputs, time_dim)
    # a mask of another kind is refused by trial_on
    real = mask.sum(0) if isinstance(mask, Tensor) and mask.ndim == 2 else None
    longest = inputs.steps if real is None or not real.numel() else int(real.max())
    spread = plan_spread(model, max(1, longest), None)
    with spread_written(spread):
        trial = trial_on(model, inputs, _TARGET, 0.0, steps=steps, mask=mask, may_leave=True)
        for stage in trial.calls.stages:
            response = trial.responses[stage.path]
            trial.responses[stage.path] = to_first_spike(stage.neuron, response, stage.path)
        before = _sizes(trial)
        with restored_on_error(model.parameters()):
            reached = reached_already(trial)
            calibrated = reached is None
            if reached is None:
                reached = scale_all(trial)
            rate, reason = _rate(trial, spread) if lr is None else (lr, "as given")
            groups = _own_rates(trial, param_groups(model, _DECAY, lr=rate, relative=True))
            optimizer = _AdamW(groups)
            rates = [group["lr"] for group in groups]
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps)
    print(f"recipe: AdamW, one cycle of {total_steps:,} steps up to {rate:g}, {reason}")
    factors = {path: size / before[path] for path, size in _sizes(trial).items()}
    learn = {
        id(parameter): f"at {group['max_lr']:.3g}"
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    print(*_lines(trial, spread, factors, learn), sep="\n")
    if calibrated:
        warn_of_scales(trial, reached, inputs.steps)
    return optimizer, scheduler


class _AdamW(torch.optim.AdamW):
    """AdamW that tells autograd of its writes, which the fused kernel leaves out.

    A backward pass through the graph of an earlier step then raises, as with any other optimizer.
    Copies and pickles lose their hooks, and so one is added where they are made.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, fused=True)
        self._count = self.register_step_post_hook(_count_writes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not hasattr(self, "_count"):
            self._count = self.register_step_post_hook(_count_writes)


def _count_writes(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for group in optimizer.param_groups:
        increment_version([p for p in group["params"] if p.grad is not None])


def _own_rates(trial: Trial, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give delays, which move by whole steps, a higher rate, and wide weights a lower one."""
    own: dict[int, tuple[str, float]] = {}  # name and factor of the rate, by identity
    for _, module in named_modules(trial.model):
        if isinstance(module, DelayingLayer) and module.raw_delay.requires_grad:
            own[id(module.raw_delay)] = "delays", _QUICK
    for weight, active in _active_inputs(trial):
        inputs = weight[0].numel()
        if active > _ACTIVE:
            own[id(weight)] = f"{inputs} inputs", max(_WIDE / inputs, _ACTIVE / active)
    found: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[tuple[str, float], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(own.get(id(parameter), ("", 1.0)), []).append(parameter)
        for (name, factor), parameters in sorted(parts.items(), key=lambda part: bool(part[0][0])):
            named = {"name": name if name == "delays" else f"{group['name']}, {name}"}
            rate = {"params": parameters, "lr": factor * group["lr"]}
            found.append({**group, **rate, **(named if name else {})})
    return found


def _active_inputs(trial: Trial) -> list[tuple[Tensor, float]]:
    """Return wide weights that drive spikes without a norm, and how many inputs are active at once.

    That is ``(sum |x|)^2 / sum x^2`` of what a neuron is given: of spikes, their number.
    """
    wide = [
        module
        for stage in trial.calls.stages
        if spike_functions(stage.neuron) and not isinstance(stage.source, BatchNormBase)
        for module in stage.drivers
        if not isinstance(module, BatchNormBase) and weight_of(module)[0].numel() > _WIDE
    ]
    seen: dict[nn.Module, list[float]] = {module: [] for module in wide}

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        values = given[0].detach().double().flatten(-(weight_of(module).ndim - 1))
        squares = values.square().sum(-1)
        share = values.abs().sum(-1).square()[squares > 0] / squares[squares > 0] / values.shape[-1]
        if share.numel():
            seen[module].append(float(share.mean()))

    if not wide:
        return []
    hooks = [module.register_forward_pre_hook(note) for module in seen]
    try:
        measure(trial, trial.calls.stages[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (weight_of(module), weight_of(module)[0].numel() * statistics.fmean(shares))
        for module, shares in seen.items()
        if shares
    ]


def _sizes(trial: Trial) -> dict[str, float]:
    """Return the root mean square of the weight before each layer, by its path."""
    return {
        stage.path: root_mean_square(weight_of(stage.source).detach().double())
        for stage in trial.calls.stages
    }


def _rate(trial: Trial, spread: list[Spread]) -> tuple[float, str]:
    """Return the learning rate of a model, and why it is that."""
    stages = [*trial.calls.stages, *(stage for stage, _ in trial.left)]
    behind = {stage.path for stage in stages if isinstance(stage.source, BatchNormBase)}
    firing = [each.path for each in spread if spike_functions(each.neuron)]
    bare = [path for path in firing if path not in behind]
    if bare or not firing:
        return _RATE, f"no batch norm before {', '.join(bare)}" if bare else "nothing spikes"
    return _RATE_BEHIND_NORMS, "batch norms before all that spike"


def _lines(
    trial: Trial, spread: list[Spread], factors: dict[str, float], rates: dict[int, str]
) -> list[str]:
    """Return a line for each neuron layer, in columns: what was done to it.

    ``rates`` says at which rate a parameter learns, by its identity.
    """
    sources = {stage.path: stage for stage in trial.calls.stages}
    left = {stage.path: (stage.source_path, reason) for stage, reason in trial.left}
    rows = []
    for path, neuron, halflives, reason in spread:
        halflife = describe_halflives(neuron)
        parts = [halflife, "spread" if halflives is not None else reason]
        row = [path, type(neuron).__name__, ", ".join(part for part in parts if part)]
        if path in sources:
            weight = join_path(sources[path].source_path, "weight")
            source = sources[path].source
            row.append(f"{weight} x {factors[path]:.3g}, {rates[id(weight_of(source))]}")
            if isinstance(source, BatchNormBase) and not source.training:
                row[-1] += ", in eval(): by its running statistics"
        elif path in left:
            row.append("{}.weight as it is: {}".format(*left[path]))
        else:
            row.append("no weight before it")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
