"""Report of a diagnosis: findings, and the figures of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from tracetorch.diagnosis.finding import SEVERITIES, Finding
from tracetorch.metrics.table import aligned_columns, percent

_HEADINGS = (
    *("layer", "kind", "rate", "dead", "saturated", "in reach"),
    *("gradient", "first step", "last step", "half-life"),
)
_TEXT_COLUMNS = 2  # aligned to the left


@dataclass(frozen=True)
class LayerFigures:
    """Measurements of one neuron layer. ``None`` where a figure does not apply.

    Args:
        path: path of the layer in the model.
        kind: name of its class.
        rate: share of steps with a spike.
        dead: share of neurons that never fired.
        saturated: share of neurons that fired at 90 % of the steps or more.
        reach: share of membranes at which the surrogate's derivative is at least a tenth of its
            peak.
        gradient: norm of the gradient of the loss by the layer's input.
        gradient_by_step: norm of that gradient at every time step, ``[T]``.
        halflives: shortest and longest half-life of the layer's traces, in steps.

    Example:
        >>> from tracetorch.diagnosis import diagnose
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), LIF(8, beta=0.5))
        >>> figures = diagnose(net, (torch.rand(10, 4, 4),), lambda y: y.mean()).layers[0]
        >>> figures.kind, figures.halflives, figures.gradient_by_step.shape
        ('LIF', (1.0, 1.0), torch.Size([10]))
    """

    path: str
    kind: str
    rate: float | None
    dead: float | None
    saturated: float | None
    reach: float | None
    gradient: float | None
    gradient_by_step: Tensor | None
    halflives: tuple[float, float] | None


@dataclass(frozen=True)
class Diagnosis(Sequence[Finding]):
    """Findings of a diagnosis, ordered by severity, then from cause to effect.

    Args:
        findings: the findings.
        layers: figures of every neuron layer.
        loss: value of the loss.
        steps: number of time steps.
        batch: number of samples.

    Example:
        >>> from tracetorch.diagnosis import diagnose
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), LIF(8), nn.Linear(8, 2), Readout(2))
        >>> found = diagnose(net, (torch.zeros(10, 4, 4),), lambda y: y.square().mean())
        >>> found.ok, found[0].name
        (False, 'input-zero')
    """

    findings: tuple[Finding, ...]
    layers: tuple[LayerFigures, ...]
    loss: float
    steps: int
    batch: int

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self.findings[index]

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def ok(self) -> bool:
        """Whether there is no error and no warning; notes do not count."""
        return all(finding.severity == "note" for finding in self)

    def named(self, name: str) -> tuple[Finding, ...]:
        """Return the findings of one kind."""
        return tuple(finding for finding in self if finding.name == name)

    def __str__(self) -> str:
        counts = {s: sum(f.severity == s for f in self) for s in SEVERITIES}
        summary = ", ".join(f"{n} {s}{'' if n == 1 else 's'}" for s, n in counts.items())
        lines = [
            f"diagnosis: {summary}. Loss {self.loss:.4g} on {self.steps} steps of a batch of "
            f"{self.batch}.",
            "",
            *aligned_columns([_HEADINGS, *map(_cells, self.layers)], left=_TEXT_COLUMNS),
        ]
        for finding in self:
            lines += ["", str(finding)]
        if self.ok:
            lines += ["", "Nothing here keeps the network from learning."]
        return "\n".join(lines)


def _cells(layer: LayerFigures) -> tuple[str, ...]:
    steps = layer.gradient_by_step
    ends = (None, None) if steps is None else (float(steps[0]), float(steps[-1]))
    lives = "-"
    if layer.halflives is not None:
        short, long = (f"{life:.3g}" for life in layer.halflives)
        lives = short if short == long else f"{short} to {long}"
    return (
        layer.path or "(model)",
        layer.kind,
        *map(percent, (layer.rate, layer.dead, layer.saturated, layer.reach)),
        *("-" if g is None else f"{g:.2g}" for g in (layer.gradient, *ends)),
        lives,
    )
