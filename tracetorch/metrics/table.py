"""Table of a profile, with a row for every layer: ``Profile`` and ``LayerProfile``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracetorch.metrics.operations import Energy, EnergyAssumptions, SynapticOperations, energy

_HEADINGS = (
    *("layer", "kind", "shape", "parameters", "rate", "dead", "saturated"),
    *("SynOps", "MACs", "energy", "product", "time", "memory"),
)
_TEXT_COLUMNS = 3  # aligned to the left


@dataclass(frozen=True)
class LayerProfile:
    """Activity and cost of one layer. ``None`` where a figure does not apply to its kind.

    Args:
        path: path of the layer in the model.
        kind: name of its class.
        shape: shape of its output at one step, without the batch; ``None``: it was not called, or
            does not return a tensor.
        parameters: number of its own parameter values; shared ones count at the first layer.
        rate: share of steps with a spike.
        dead: share of neurons that never fire.
        saturated: share of neurons that fire at 90 % of the steps or more.
        macs: effective multiply-accumulates per sample.
        acs: effective accumulates per sample, of spikes.
        dense: products per sample, zeros too.
        updates: membrane updates per sample.
        energy_pj: energy estimate per sample.
        seconds: time for the whole batch and all steps.
        held_bytes: memory of parameters, buffers, and the states for this batch.
        output_bytes: memory of the outputs of the whole batch and all steps.
        by_events: whether its product was computed with the events of the input, as ``tt.events``
            decides.
        input_density: share of inputs that are not 0, where that was looked at to decide; from a
            few rows where they were enough.

    Example:
        >>> from tracetorch import metrics
        >>> row = metrics.profile(LIF(3), torch.ones(10, 8, 3)).rows[0]
        >>> row.kind, row.shape, row.parameters, row.output_bytes
        ('LIF', (3,), 6, 960)
    """

    path: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    rate: float | None
    dead: float | None
    saturated: float | None
    macs: float | None
    acs: float | None
    dense: float | None
    updates: float | None
    energy_pj: float | None
    seconds: float
    held_bytes: int
    output_bytes: int
    by_events: bool | None = None
    input_density: float | None = None

    @property
    def synops(self) -> float | None:
        """Sum of effective operations of both kinds."""
        return None if self.macs is None or self.acs is None else self.macs + self.acs


@dataclass(frozen=True)
class Profile:
    """Profile of a model with a row for every layer; prints as a table.

    Args:
        rows: the layers, in the order of the model.
        steps: number of time steps of the run.
        batch: number of samples of the run.
        seconds: time of the whole run.
        assumptions: energy of one operation of each kind.
        uncounted: modules with products that are in none of the figures, each with the reason.

    Example:
        >>> from torch import nn
        >>> from tracetorch import metrics, snn
        >>> net = nn.Sequential(nn.Linear(4, 3), snn.LIF(3))
        >>> table = metrics.profile(net, torch.ones(10, 8, 4))
        >>> table.to_markdown()[:42]
        '| layer | kind | shape | parameters | rate'
        >>> table.operations
        SynapticOperations(effective_macs=0.0, effective_acs=120.0, dense=120.0)
    """

    rows: tuple[LayerProfile, ...]
    steps: int
    batch: int
    seconds: float
    assumptions: EnergyAssumptions
    uncounted: tuple[str, ...] = ()

    @property
    def operations(self) -> SynapticOperations:
        """Operations of all layers that are counted, per sample."""
        return SynapticOperations(
            *(sum(getattr(r, n) or 0.0 for r in self.rows) for n in ("macs", "acs", "dense"))
        )

    @property
    def energy(self) -> Energy:
        """Energy estimate of all layers that are counted, per sample."""
        updates = sum(row.updates or 0.0 for row in self.rows)
        return energy(self.operations, updates=updates, assumptions=self.assumptions)

    def to_markdown(self) -> str:
        """Return the table in Markdown, with an explanation of its columns below it."""
        lines = [f"| {' | '.join(_HEADINGS)} |"]
        marks = ["---" if i < _TEXT_COLUMNS else "---:" for i in range(len(_HEADINGS))]
        lines.append(f"| {' | '.join(marks)} |")
        lines += [f"| {' | '.join(row)} |" for row in self._cells()]
        return "\n".join([*lines, "", *self._notes()])

    def __str__(self) -> str:
        lines = aligned_columns([_HEADINGS, *self._cells()], left=_TEXT_COLUMNS)
        # Rules below the headings and above the totals
        lines.insert(1, "-" * max(map(len, lines)))
        lines.insert(len(lines) - 1, lines[1])
        return "\n".join([*lines, *self._notes()])

    def _cells(self) -> list[tuple[str, ...]]:
        cells = []
        for row in self.rows:
            shape = "-" if row.seconds else "not called"
            if row.shape is not None:
                shape = "x".join(map(str, row.shape)) or "1"
            product = "-" if row.by_events is None else "events" if row.by_events else "dense"
            if row.by_events is not None and row.input_density is not None:
                product = f"{product} {percent(row.input_density)}"
            kind = row.path or "(model)", row.kind, shape, _count(row.parameters)
            shares = map(percent, (row.rate, row.dead, row.saturated))
            costs = _costs(row.synops, row.dense, row.energy_pj)
            memory = _bytes(row.held_bytes + row.output_bytes)
            cells.append((*kind, *shares, *costs, product, f"{1e3 * row.seconds:.2f} ms", memory))
        total, parameters = self.operations, sum(row.parameters for row in self.rows)
        costs = _costs(total.effective, total.dense, self.energy.total_pj)
        memory = _bytes(sum(row.held_bytes + row.output_bytes for row in self.rows))
        empty = "", "", ""
        last = "total", *empty[1:], _count(parameters), *empty, *costs, ""
        return [*cells, (*last, f"{1e3 * self.seconds:.2f} ms", memory)]

    def _notes(self) -> Iterable[str]:
        return (
            *(f"not counted: {each}." for each in self.uncounted),
            f"{self.steps} steps of a batch of {self.batch}. SynOps (effective), MACs (dense) and "
            "energy are per sample,",
            "time and memory (parameters, states, outputs) of the whole batch.",
            "product: computed with events or densely, at the share of inputs that are not 0.",
            f"Energy: {self.assumptions}.",
        )


def aligned_columns(table: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Print rows of cells as lines; the first ``left`` columns are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    pads = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    return [
        "  ".join(pad(cell, n) for pad, cell, n in zip(pads, row, widths, strict=True)).rstrip()
        for row in table
    ]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _costs(synops: float | None, dense: float | None, pj: float | None) -> tuple[str, str, str]:
    return _count(synops), _count(dense), "-" if pj is None else f"{pj * 1e-3:.4g} nJ"


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
