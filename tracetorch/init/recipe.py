"""Prepare a model for its training: half-lives over the sequence, optimizer and schedule."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.utils.parametrize import is_parametrized

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
from tracetorch.functional import halflife_to_decay
from tracetorch.init.calibrate import trial_on, warn_of_large_weights
from tracetorch.init.membranes import Trial, holds_already, measure, root_mean_square, scale_all
from tracetorch.init.response import to_first_spike
from tracetorch.init.stages import Stage
from tracetorch.snn.connectivity import raw_weight
from tracetorch.snn.delay import DelayingLayer
from tracetorch.snn.neuron import Neuron, has_step, spike_functions
from tracetorch.snn.param_groups import param_groups
from tracetorch.snn.parameters import is_decay
from tracetorch.snn.recurrent import Recurrent
from tracetorch.unrolling.inputs import Inputs, mask_first, parse_inputs

_MEMBRANE = "beta"  # the decay of the membrane, in every neuron that has one


class Spread(NamedTuple):
    """New half-lives of a neuron layer and what they are, or the reason why there are none."""

    path: str
    neuron: Neuron
    halflives: Tensor | None
    reason: str


def spread_(
    model: nn.Module, steps: int, *, generator: torch.Generator | None = None
) -> dict[str, tuple[float, float]]:
    """Spread the half-lives of membranes from one step to the length of a sequence, in each layer.

    Half-lives that are evenly spaced on a logarithmic scale let a layer remember the last steps and
    the whole sequence alike; decays hardly move while a network learns, so the start decides::

        halflife_i = steps^(i / (num_neurons - 1))
        beta_i     = 2^(-1 / halflife_i)

    They go to the neurons of a layer, or the channels of a convolution, in random order. A layer is
    spread where its ``beta`` is in all neurons what the constructor starts from by itself: what was
    given as a tensor or another number, assigned or learned stays. Left as they are as well: layers
    that do not spike, a ``beta`` that is fixed, one for a whole layer (``beta_rank=0``) or
    parametrized by PyTorch, one neuron, and one whose class cannot be built from ``num_neurons``.

    Args:
        model: any module; neuron layers hidden in lists and plain objects are found too.
        steps: the longest half-life: the length of a sequence. At 1 there is nothing to spread.
        generator: source of the order of the neurons; PyTorch's own where it is ``None``.

    Returns:
        The shortest and the longest half-life of each layer that was spread, by its path.

    Raises:
        TypeError, ValueError: ``steps`` is below 1; a parameter has no values yet, or is computed
            before every call, by pruning say. Nothing has been changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 50), LIF(50), nn.Linear(50, 4), LIF(4, beta=0.5))
        >>> spread_(net, steps=100)
        {'1': (1.0, 100.0)}
        >>> spread_(net, steps=100)
        {}
    """
    check_module(model)
    check_unsharded(model, "tt.init")
    check_has_values(model)
    found = plan_spread(model, check_count("steps", steps), generator)
    with spread_written(found):
        pass
    return {
        each.path: (float(each.halflives.min()), float(each.halflives.max()))
        for each in found
        if each.halflives is not None
    }


def plan_spread(
    model: nn.Module, steps: int, generator: torch.Generator | None, reach: int | None = None
) -> list[Spread]:
    """Return new half-lives; ``reach``, of a target, is for what feeds back and for readouts."""
    modules = list(named_modules(model))
    loops = [each for _, each in modules if isinstance(each, Recurrent)]
    fed_back = {id(each) for loop in loops for _, each in named_modules(loop)}
    found: list[Spread] = []
    raws: set[int] = set()
    for path, module in modules:
        if not has_step(module):
            continue
        spikes = bool(spike_functions(module))
        reason = _reason_against(module, steps, spread=spikes or reach is None)
        raw = getattr(module, f"raw_{_MEMBRANE}", None)
        if not reason and id(raw) in raws:
            reason = "left: shared with a layer above"
        raws.add(id(raw))
        halflives = None
        exponents = torch.linspace(0, 1, module.num_neurons, dtype=torch.float64, device="cpu")
        if not reason and not spikes:
            reason, halflives = "of the target", torch.full_like(exponents, cast(int, reach) / 8)
        elif not reason:
            reason = "spread"
            device = None if generator is None else generator.device
            order = torch.randperm(module.num_neurons, generator=generator, device=device)
            longest = reach if reach and id(module) in fed_back else steps
            halflives = (float(longest) ** exponents)[order.cpu()]
        found.append(Spread(path, module, halflives, reason))
    return found


@contextmanager
def spread_written(found: list[Spread]) -> Iterator[None]:
    """Write half-lives into their layers, and take all back where that or the block fails."""
    chosen = [(each.neuron, each.halflives) for each in found if each.halflives is not None]
    calls = [(neuron._declared, neuron._declared.call) for neuron, _ in chosen]
    tensors = [t for neuron, _ in chosen for t in (*neuron.parameters(), *neuron.buffers())]
    try:
        with restored_on_error(tensors):
            for neuron, halflives in chosen:
                setattr(neuron, _MEMBRANE, halflife_to_decay(halflives))
            yield
    except BaseException:
        for declared, call in calls:
            declared.call = call
        raise


def describe_halflives(neuron: Neuron) -> str:
    """Say which half-lives the membranes of a layer have: ``1 to 28 steps``."""
    constraint = neuron.constraints.get(_MEMBRANE)
    if constraint is None or not is_decay(constraint):
        return ""
    # that of a decay of 1, to which a narrow dtype may have rounded, is infinite
    values = getattr(neuron, _MEMBRANE).detach().double().log2().reciprocal().abs()
    low, high = (f"{float(each):.3g}" for each in (values.min(), values.max()))
    range_ = low if low == high else f"{low} to {high}"
    return f"{range_} step{'' if range_ == '1' else 's'}"


def _reason_against(neuron: Neuron, steps: int, *, spread: bool) -> str:
    """Return why a layer is not spread, or does not get the half-life of the target."""
    constraint = neuron.constraints.get(_MEMBRANE)
    if constraint is None or not is_decay(constraint):
        return f"left: no decay {_MEMBRANE}"
    if spread and not spike_functions(neuron):
        return "left: does not spike"
    if getattr(neuron, f"raw_{_MEMBRANE}").ndim == 0 and neuron.num_neurons > 1:
        return f"left: one for the layer; {_MEMBRANE}_rank=1 gives each neuron its own"
    if spread and neuron.num_neurons == 1:
        return "left: one neuron"
    if is_parametrized(neuron, f"raw_{_MEMBRANE}"):
        return "left: parametrized"
    if not getattr(neuron, f"raw_{_MEMBRANE}").requires_grad:
        return "left: fixed"
    start = _start(neuron)
    if start is None:
        return "left: not known whether it was given"
    if not _same(getattr(neuron, f"raw_{_MEMBRANE}").detach().cpu(), start):
        return "left: given, or learned"
    if neuron._declared.call.named.get(_MEMBRANE, "").startswith("Tensor"):
        return "left: given"
    return "left: the batch has one step" if spread and steps == 1 else ""


def _start(neuron: Neuron) -> Tensor | None:
    """Return the raw decay that the constructor starts from by itself; ``None``: not known."""
    try:
        with torch.random.fork_rng([]), torch.device("cpu"):
            fresh = type(neuron)(neuron.num_neurons)
            raw: Tensor = getattr(fresh, f"raw_{_MEMBRANE}").detach()
    except Exception:  # of a constructor that wants more
        return None
    return raw


def _same(raw: Tensor, start: Tensor) -> bool:
    """Whether two raw values are bitwise the same, in the narrower of their dtypes."""
    if raw.shape != start.shape:
        return False
    dtype = min(raw.dtype, start.dtype, key=lambda each: torch.finfo(each).bits)
    return torch.equal(raw.to(dtype), start.to(dtype))


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
    target: Tensor | None = None,
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

    ``T`` is the number of steps of the longest sequence. The target is measured to where a neuron
    fires: of a voltage that runs away, as that of ``EIF``, to its peak. Three groups have rates of
    their own: ``"delays"`` ten times the rate; what is in a ``Recurrent`` behind a batch norm a
    third, for no norm follows its weights; and weights of spiking neurons with more than 128 inputs
    and no norm the larger of 128 / inputs and 16 / inputs active at once, where that is below 1,
    for Adam moves all of them at once (Yang et al., *Tensor Programs V*, 2022). A line is printed
    for each neuron layer: its half-lives, the weight before it with the factor that calibration
    found, and the highest rate at which that weight learns.

    A batch norm before neurons whose response to a pulse does not end, ``TCLIF`` or ``IF``, keeps
    its weight, and so does one that drives several layers, as through a shortcut. A second call
    changes nothing that the first did. To go on with a training, call it as before, then load
    model, optimizer and scheduler with ``tt.load``: what has learned would be calibrated anew.

    Args:
        model: any module that :func:`tracetorch.unroll` runs, in the mode that it trains in.
        batch: training data as ``unroll`` takes them, ``[T, B, ...]``; of a stream pieces as long
            as what is to be remembered.
        total_steps: how often ``optimizer.step()`` will run, and ``scheduler.step()`` after it.
        lr: the highest learning rate; ``None``: 3e-2 where a batch norm is the last layer before
            all that spike, else 1e-2.
        target: of a regression the signal that the batch is to give, floats ``[T, B, ...]``. Its
            half-life, the lag at which its autocorrelation is a half, stands for ``T`` inside of a
            ``Recurrent`` then, and an eighth of it is that of readouts left at their default.
        mask: ``[T, B]`` booleans, true where a step is real; ``None``: all are.
        steps: as in ``unroll``, for a batch without time.
        time_dim: where time is in batch, target and mask: 1 for ``[B, T, ...]``.

    Returns:
        An ``AdamW`` with a rate for each weight, and the ``OneCycleLR`` that leads it.

    Raises:
        TypeError, ValueError: an argument is of another type or out of range, or as
            :func:`tt.init.calibrate_ <tracetorch.init.calibrate_>`. The model is as before then.

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
    lr = None if lr is None else check_positive("lr", lr)
    inputs = parse_inputs(batch, steps, time_dim)
    mask, reach = mask_first(mask, inputs, time_dim), None
    # a mask of another kind is refused by trial_on
    real = mask.sum(0) if isinstance(mask, Tensor) and mask.ndim == 2 else None
    longest = max(1, inputs.steps if real is None or not real.numel() else int(real.max()))
    if target is not None:
        reach = min(longest, max(2, _target_halflife(target, inputs, time_dim, mask)))
    spread = plan_spread(model, longest, None, reach)
    with spread_written(spread):
        trial = trial_on(model, inputs, _TARGET, 0.0, steps=steps, mask=mask, may_leave=True)
        for stage in trial.calls.stages:
            response = trial.responses[stage.path]
            trial.responses[stage.path] = to_first_spike(stage.neuron, response, stage.path)
        before = _sizes(trial)
        with restored_on_error(model.parameters()):
            calibrated = not holds_already(trial)
            if calibrated:
                scale_all(trial)
            rate, reason = _rate(trial, spread) if lr is None else (lr, "as given")
            groups = _own_rates(trial, param_groups(model, _DECAY, lr=rate, relative=True))
            optimizer = _AdamW(groups)
            rates = [group["lr"] for group in groups]
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps)
    by = f", the target's half-life is {reach} steps" if reach else ""
    print(f"recipe: AdamW, one cycle of {total_steps:,} steps up to {rate:g}, {reason}{by}")
    factors = {path: size / before[path] for path, size in _sizes(trial).items()}
    learn = {
        id(parameter): f"at {group['max_lr']:.3g}"
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    print(*_lines(trial, spread, factors, learn), sep="\n")
    if calibrated:
        warn_of_large_weights(trial, inputs.steps)
    return optimizer, scheduler


def _target_halflife(target: object, inputs: Inputs, time_dim: int, mask: Tensor | None) -> int:
    """Return the lag in steps at which the autocorrelation of a signal has fallen to a half."""
    if not isinstance(target, Tensor) or not target.is_floating_point():
        raise TypeError("target must be a signal, floats [T, B, ...]. Of labels give none.")
    signal = target.detach().movedim(time_dim, 0).double()
    if signal.shape[:2] != (inputs.steps, inputs.batch):
        sizes = f"{inputs.steps} steps and {inputs.batch} samples, as the batch has"
        raise ValueError(f"target must have {sizes}, got the shape {list(target.shape)}.")
    real = mask if isinstance(mask, Tensor) else torch.ones(signal.shape[:2])
    real = real.to(signal.device, torch.bool).reshape(*real.shape, *[1] * (signal.ndim - 2))
    mean = signal.where(real, 0.0).sum((0, 1)) / real.sum()
    signal = (signal - mean).where(real, 0.0)
    power = signal.square().sum() / real.sum()
    for lag in range(1, inputs.steps):
        pairs = (real[lag:] & real[:-lag]).sum()
        if (signal[lag:] * signal[:-lag]).sum() < 0.5 * power * pairs:
            return lag
    return inputs.steps


class _AdamW(torch.optim.AdamW):
    """AdamW that tells autograd of its writes, which the fused kernel leaves out; copies too."""

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
    """Give delays, which move by whole steps, a higher rate, wide and recurrent weights a lower."""
    own: dict[int, tuple[str, float]] = {}  # name and factor of the rate, by identity
    modules = dict(named_modules(trial.model))
    # what feeds back has no norm behind its weights: at the rate of the rest it may run away
    for loop in {stage.loop for stage in _behind_norms(trial)} - {None}:
        for parameter in modules[cast(str, loop)].parameters():
            own[id(parameter)] = "recurrent", _RATE / _RATE_BEHIND_NORMS
    for module in modules.values():
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
    """Return wide weights that drive spikes without a norm, and how many inputs are active."""
    # (sum |x|)^2 / sum x^2 of what a neuron is given: of spikes, their number
    wide = [
        module
        for stage in trial.calls.stages
        if spike_functions(stage.neuron) and not isinstance(stage.source, BatchNormBase)
        for module in stage.drivers
        if not isinstance(module, BatchNormBase) and raw_weight(module)[0].numel() > _WIDE
    ]
    seen: dict[nn.Module, list[float]] = {module: [] for module in wide}

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        values = given[0].detach().double().flatten(-(raw_weight(module).ndim - 1))
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
        (raw_weight(module), raw_weight(module)[0].numel() * statistics.fmean(shares))
        for module, shares in seen.items()
        if shares
    ]


def _sizes(trial: Trial) -> dict[str, float]:
    return {
        stage.path: root_mean_square(raw_weight(stage.source).detach().double())
        for stage in trial.calls.stages
    }


def _behind_norms(trial: Trial) -> list[Stage]:
    stages = [*trial.calls.stages, *(stage for stage, _ in trial.left)]
    return [stage for stage in stages if isinstance(stage.source, BatchNormBase)]


def _rate(trial: Trial, spread: list[Spread]) -> tuple[float, str]:
    """Return the learning rate of a model, and why it is that."""
    behind = {stage.path for stage in _behind_norms(trial)}
    firing = [each.path for each in spread if spike_functions(each.neuron)]
    bare = [path for path in firing if path not in behind]
    if bare or not firing:
        return _RATE, f"no batch norm before {', '.join(bare)}" if bare else "nothing spikes"
    return _RATE_BEHIND_NORMS, "batch norms before all that spike"


def _lines(
    trial: Trial, spread: list[Spread], factors: dict[str, float], rates: dict[int, str]
) -> list[str]:
    """Return a line for each neuron layer; ``rates`` of learning are by a parameter's identity."""
    sources = {stage.path: stage for stage in trial.calls.stages}
    left = {stage.path: (stage.source_path, reason) for stage, reason in trial.left}
    rows = []
    for path, neuron, _, reason in spread:
        text = ", ".join(filter(None, (describe_halflives(neuron), reason)))
        row = [path, type(neuron).__name__, text]
        if path in sources:
            weight = join_path(sources[path].source_path, "weight")
            source = sources[path].source
            row.append(f"{weight} x {factors[path]:.3g}, {rates[id(raw_weight(source))]}")
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
