"""``profile``: a table of what every layer does and costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count
from tracetorch.core.snapshot import restored
from tracetorch.metrics.energy import EnergyAssumptions
from tracetorch.metrics.observe import Seen, at_rest, observe
from tracetorch.metrics.size import WEIGHTED
from tracetorch.metrics.table import LayerProfile, Profile
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.unrolling import unroll

_SATURATED = 0.9  # of the steps, as in tt.metrics.saturated


def profile(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
    mask: Tensor | None = None,
    repeats: int = 3,
    assumptions: EnergyAssumptions | None = None,
) -> Profile:
    """Run a model over ``[T, B, ...]`` and tell of each layer what it does and costs.

    It runs from rest, in evaluation mode and without a graph: once to compile and to count, then
    ``repeats`` times to take the time. States, mode and random state are as before after it.

    Args:
        model: any ``nn.Module``.
        x: as for ``tt.unroll``.
        steps: as for ``tt.unroll``; every layer is then run at every step, to be timed.
        by: as for ``tt.unroll``.
        mask: ``[T, B]``, true where a step is real; others are run and not counted, so padding
            belongs at the end.
        repeats: how often the time is taken; the median counts.
        assumptions: what an operation costs; those of Horowitz (2014) if left out.

    Returns:
        A :class:`Profile`: print it, read its ``rows``, or write it down with ``to_markdown()``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``repeats`` is below 1; or as ``tt.unroll``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2), Readout(2))
        >>> table = profile(net, torch.ones(10, 8, 4))
        >>> [(row.path, row.kind, row.parameters) for row in table.rows]
        [('0', 'Linear', 15), ('1', 'LIF', 6), ('2', 'Linear', 8), ('3', 'Readout', 2)]
        >>> table.rows[0].acs, table.rows[0].dense
        (120.0, 120.0)
    """
    repeats = check_count("repeats", repeats)
    seen, given = observe(model, x, steps=steps, by=by, mask=mask)
    cost = EnergyAssumptions() if assumptions is None else assumptions
    rows = [each for each in seen if _stands_alone(each, seen)]
    taken: list[dict[str, float]] = []
    whole: list[float] = []
    with restored(model), torch.no_grad():
        for _ in range(repeats):
            at_rest(model)
            with _timed(rows) as seconds:
                start = _now(model)
                unroll(model, x, steps=steps, by=by)
                whole.append(_now(model) - start)
            taken.append(seconds)
    counted: set[int] = set()
    found = []
    for row in rows:
        own = {id(p): p for p in _own(row.module)[0] if id(p) not in counted}
        counted |= set(own)
        if row.shape is None and not own:
            continue
        seconds_ = statistics.median(each.get(row.path, 0.0) for each in taken)
        found.append(_row(row, sum(p.numel() for p in own.values()), seconds_, given.batch, cost))
    return Profile(
        rows=tuple(found),
        steps=given.steps,
        batch=given.batch,
        seconds=statistics.median(whole),
        assumptions=cost,
    )


def _stands_alone(one: Seen, every: list[Seen]) -> bool:
    """Whether it is a part by itself: it holds no other module, or parameters of its own."""
    if any(
        isinstance(other.module, nn.utils.parametrize.ParametrizationList)
        and f"{one.path}.".startswith(f"{other.path}.")
        for other in every
    ):
        return False  # a part of the layer whose weight it makes
    if _own(one.module)[0]:
        return True
    before = f"{one.path}." if one.path else ""
    return not any(
        other is not one and other.path.startswith(before) for other in every
    ) and not isinstance(one.module, Recurrent)


def _own(module: nn.Module) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Parameters and buffers of a module, and of what its weights are made of."""
    parts = [module]
    if nn.utils.parametrize.is_parametrized(module):
        parts += list(cast("nn.Module", module.parametrizations).modules())
    parameters = [p for part in parts for p in part.parameters(recurse=False)]
    return parameters, [b for part in parts for b in part.buffers(recurse=False)]


def _row(
    seen: Seen, parameters: int, seconds: float, batch: int, cost: EnergyAssumptions
) -> LayerProfile:
    rate = dead = saturated = None
    if seen.fired is not None and seen.chances is not None:
        rate = float(seen.fired.sum() / seen.chances.sum())
        dead = float((seen.fired == 0).double().mean())
        saturated = float((seen.fired >= _SATURATED * seen.chances).double().mean())
    multiplies = isinstance(seen.module, WEIGHTED)
    macs, acs, dense = (n / batch for n in (seen.tally.macs, seen.tally.acs, seen.tally.dense))
    updates = seen.updates / batch if isinstance(seen.module, Neuron) else None
    costs = multiplies or updates is not None
    energy = macs * cost.mac_pj + acs * cost.ac_pj + (updates or 0.0) * cost.update_pj
    tensors = [tensor for both in _own(seen.module) for tensor in both]
    return LayerProfile(
        path=seen.path,
        kind=type(seen.module).__name__,
        shape=seen.shape,
        parameters=parameters,
        rate=rate,
        dead=dead,
        saturated=saturated,
        macs=macs if multiplies else None,
        acs=acs if multiplies else None,
        dense=dense if multiplies else None,
        updates=updates,
        energy_pj=energy if costs else None,
        seconds=seconds,
        held_bytes=sum(t.numel() * t.element_size() for t in tensors) + seen.state_bytes,
        output_bytes=seen.output_bytes,
    )


@contextmanager
def _timed(rows: list[Seen]) -> Iterator[dict[str, float]]:
    """While it lasts, add up the seconds that each module takes."""
    seconds: dict[str, float] = {}
    started: dict[str, float] = {}
    hooks = []
    for row in rows:

        def begin(module: nn.Module, args: Any, path: str = row.path) -> None:
            started[path] = _now(module)

        def end(module: nn.Module, args: Any, output: Any, path: str = row.path) -> None:
            seconds[path] = seconds.get(path, 0.0) + _now(module) - started[path]

        hooks.append(row.module.register_forward_pre_hook(begin))
        hooks.append(row.module.register_forward_hook(end))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _now(module: nn.Module) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
