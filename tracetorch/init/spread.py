"""Spread the half-lives of membranes over the length of a sequence: ``spread_``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tracetorch.core.checks import check_count, check_has_values, check_module, check_unsharded
from tracetorch.core.snapshot import restored_on_error
from tracetorch.core.walk import named_modules
from tracetorch.functional import halflife_to_decay
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.parameters import is_decay
from tracetorch.snn.spike_functions import spike_functions

_MEMBRANE = "beta"  # the decay of the membrane, in every neuron that has one


class Spread(NamedTuple):
    """New half-lives of a neuron layer, or the reason why there are none."""

    path: str
    neuron: Neuron
    halflives: Tensor | None
    reason: str = ""


def spread_(
    model: nn.Module, steps: int, *, generator: torch.Generator | None = None
) -> dict[str, tuple[float, float]]:
    """Spread the half-lives of membranes from one step to the length of a sequence, in each layer.

    Half-lives that are evenly spaced on a logarithmic scale let a layer remember the last steps and
    the whole sequence alike; decays hardly move while a network learns, so the start decides::

        halflife_i = steps^(i / (num_neurons - 1))
        beta_i     = 2^(-1 / halflife_i)

    They go to the neurons of a layer, or the channels of a convolution, in random order. A layer is
    spread where its decay of the membrane, the parameter ``beta``, is in all neurons what the
    constructor starts from by itself. So a second call changes nothing, and neither what was given
    or assigned, nor what has learned, does. Left as they are as well: readouts and other layers
    that do not spike, a decay that is fixed (``learn_beta=False``, or frozen), one for a whole
    layer (``beta_rank=0``), one that PyTorch parametrizes, one neuron, a neuron without ``beta``,
    and one whose class cannot be built from ``num_neurons`` alone, so that its start is not known.
    A number that is given and equals the default counts as the default: a tensor does not.

    Args:
        model: any module; neuron layers hidden in lists and plain objects are found too.
        steps: the longest half-life: the length of a sequence. At 1 there is nothing to spread.
        generator: source of the order of the neurons; PyTorch's own where it is ``None``. Layers
            draw from it in the order of ``model.named_modules()``.

    Returns:
        The shortest and the longest half-life of each layer that was spread, by its path.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``steps`` is below 1; a parameter has no values yet, or is computed before every
            call, by pruning say. Nothing has been changed then.

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


def plan_spread(model: nn.Module, steps: int, generator: torch.Generator | None) -> list[Spread]:
    """Return what ``spread_`` does to each neuron layer, in the order of the model."""
    found: list[Spread] = []
    raws: set[int] = set()
    for path, module in named_modules(model):
        if not has_step(module):
            continue
        reason = _reason_against(module, steps)
        raw = getattr(module, f"raw_{_MEMBRANE}", None)
        if not reason and id(raw) in raws:
            reason = "left: shared with a layer above"
        raws.add(id(raw))
        halflives = None
        if not reason:
            exponents = torch.linspace(0, 1, module.num_neurons, dtype=torch.float64, device="cpu")
            device = None if generator is None else generator.device
            order = torch.randperm(module.num_neurons, generator=generator, device=device)
            halflives = (float(steps) ** exponents)[order.cpu()]
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
    if low != high:
        return f"{low} to {high} steps"
    return "1 step" if low == "1" else f"{low} steps"


def _reason_against(neuron: Neuron, steps: int) -> str:
    """Return why a layer is left as it is; nothing where it is to be spread."""
    constraint = neuron.constraints.get(_MEMBRANE)
    if constraint is None or not is_decay(constraint):
        return f"left: no decay {_MEMBRANE}"
    if not spike_functions(neuron):
        return "left: does not spike"
    if getattr(neuron, f"raw_{_MEMBRANE}").ndim == 0 and neuron.num_neurons > 1:
        return f"left: one for the layer; {_MEMBRANE}_rank=1 gives each neuron its own"
    if neuron.num_neurons == 1:
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
    return "left: the batch has one step" if steps == 1 else ""


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
