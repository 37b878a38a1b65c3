"""Profile a model layer by layer: activity, operations, energy, time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.events import observed_products
from tracetorch.metrics.activity import firing_shares
from tracetorch.metrics.observe import observe, prepare_run
from tracetorch.metrics.operations import (
    EnergyAssumptions,
    ModuleStats,
    energy,
    sum_operations,
    uncounted_products,
)
from tracetorch.metrics.table import LayerProfile, Profile
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.delay import DelayedLinear
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling import unroll


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
    """Run a model over ``[T, B, ...]`` and return activity, cost and time of each layer.

    It runs from rest, in evaluation mode and without a graph: once to compile and to count, then
    ``repeats`` times to measure the time. States, mode and random state are restored afterwards.

    Args:
        model: any ``nn.Module``.
        x: as for ``tt.unroll``.
        steps: as for ``tt.unroll``; every layer is then run and timed at every step.
        by: as for ``tt.unroll``, of the runs that are timed; what is counted are single steps.
        mask: ``[T, B]``, true where a step is real; others are run and not counted, so padding
            belongs at the end.
        repeats: number of timed runs, of which the median is returned; at least 1.
        assumptions: energy of one operation of each kind; that of Horowitz (2014) if left out.

    Returns:
        A :class:`Profile`: print it, read its ``rows``, or convert it with ``to_markdown()``.

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
    modules, inputs = observe(model, x, steps=steps, by=by, mask=mask)
    cost = EnergyAssumptions() if assumptions is None else assumptions
    layers = [stats for stats in modules if _has_row(stats, modules)]
    run_times, layer_times, products = [], [], {}
    with restored(model), torch.no_grad():
        for _ in range(repeats):
            prepare_run(model)
            with _timed(layers) as seconds, observed_products() as called:
                start = _synchronized_time()
                unroll(model, x, steps=steps, by=by)
                run_times.append(_synchronized_time() - start)
            layer_times.append(seconds)
            products = {id(module): product for module, product in called}
    rows, counted = [], set[int]()
    for stats in layers:
        # a shared parameter at the first layer that has it, so that the column adds up
        tensors = _own_tensors(stats.module)
        own = {id(p): p for p in tensors[0] if id(p) not in counted}
        counted |= set(own)
        if stats.shape is None and not own:
            continue
        # the median of several tells more: other processes disturb single ones
        median = statistics.median(times.get(stats.path, 0.0) for times in layer_times)
        if not own and not isinstance(stats.module, SequenceLayer) and _submodules(stats, modules):
            stats.output_bytes = 0  # it has a row for its products; the layers inside have outputs
        product = products.get(id(stats.module))
        shares: tuple[float | None, float | None, float | None] = (None, None, None)
        if stats.spikes and isinstance(stats.fired, Tensor) and isinstance(stats.total, Tensor):
            shares = firing_shares(stats.fired, stats.total)
        operations = sum_operations([stats], inputs.batch)
        macs, acs, dense = astuple(operations) if stats.multiplies else (None, None, None)
        is_layer = isinstance(stats.module, SequenceLayer)
        updates = stats.updates / inputs.batch if is_layer else None
        estimate = energy(operations, updates=updates or 0.0, assumptions=cost)
        # Pooling, dropout and the like have no operations in NeuroBench's sense: no energy either.
        picojoules = estimate.total_pj if stats.multiplies or is_layer else None
        kind = plain_class(stats.module).__name__
        row = LayerProfile(
            *(stats.path, kind, stats.shape, sum(p.numel() for p in own.values()), *shares),
            *(macs, acs, dense, updates, picojoules, median),
            held_bytes=sum(t.nbytes for each in tensors for t in each) + stats.state_bytes,
            output_bytes=stats.output_bytes,
            by_events=None if product is None else product.events,
            input_density=None if product is None else product.density,
        )
        rows.append(row)
    run = inputs.steps, inputs.batch, statistics.median(run_times)
    return Profile(tuple(rows), *run, cost, uncounted_products(modules))


def _has_row(stats: ModuleStats, modules: list[ModuleStats]) -> bool:
    """Whether a module has a row: a neuron layer, or without submodules, or with parameters."""
    # A parametrization belongs to the layer whose weight it computes, and the layer of weight and
    # bias to the one that delays it.
    delayed = (each.module for each in modules if isinstance(each.module, DelayedLinear))
    if "parametrizations" in stats.path.split(".") or any(
        each.linear is stats.module for each in delayed
    ):
        return False
    if _own_tensors(stats.module)[0] or stats.multiplies or stats.uncounted:
        return True
    # a neuron layer is called, whatever it keeps in modules inside
    called = isinstance(stats.module, SequenceLayer) or not _submodules(stats, modules)
    return called and not isinstance(stats.module, Recurrent)


def _submodules(stats: ModuleStats, modules: list[ModuleStats]) -> bool:
    prefix = f"{stats.path}." if stats.path else ""
    return any(other is not stats and other.path.startswith(prefix) for other in modules)


def _own_tensors(module: nn.Module) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Return parameters and buffers of a module and of its parametrizations."""
    parts = [module]
    if isinstance(module, DelayedLinear):
        parts.append(module.linear)
    for part in tuple(parts):
        if nn.utils.parametrize.is_parametrized(part):
            # Their tensors take the place of the layer's own weight.
            parts += list(cast("nn.Module", part.parametrizations).modules())
    parameters = [p for part in parts for p in part.parameters(recurse=False)]
    return parameters, [b for part in parts for b in part.buffers(recurse=False)]


@contextmanager
def _timed(layers: Sequence[ModuleStats]) -> Iterator[dict[str, float]]:
    """Sum the seconds of each layer by path within a block, without those of layers inside."""
    seconds: dict[str, float] = {}
    started: list[list[float]] = []  # of each call in progress: its start, and the time inside

    def start(module: Any, args: Any) -> None:
        started.append([_synchronized_time(), 0.0])

    def stop(path: str, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        begin, inside = started.pop()
        elapsed = _synchronized_time() - begin
        seconds[path] = seconds.get(path, 0.0) + elapsed - inside
        if started:
            started[-1][1] += elapsed

    with forward_hooks(
        before=[(stats.module, start) for stats in layers],
        after=[(stats.module, partial(stop, stats.path)) for stats in layers],
    ):
        yield seconds


def _synchronized_time() -> float:
    """Return the time after all kernels on the GPU have finished: launching them does not wait."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
