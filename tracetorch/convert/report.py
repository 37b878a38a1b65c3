"""``Report``: what a conversion guarantees of each layer, and what it measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerReport:
    """Report of one activation: threshold, what is proven of its rates, what was measured.

    Args:
        path: of the activation in the model that was converted; of the last, ``"output"``.
        neurons: path of the neurons in the spiking model; empty for the output.
        threshold: of the neurons, and the size of their spikes, the largest of all channels; NaN
            for the output.
        clip: the largest rate of all channels; NaN for the output.
        levels: of a quantised ReLU; ``None`` for another.
        bound: the rates are proven to be within it of the model's activations, but for rounding in
            floats: for every input where the model's own activations are clipped, else for inputs
            whose activations are no larger than those on the batch, in each channel if it has a
            threshold of its own. 0 where they are equal.
        largest: largest difference on the batch.
        mean: mean difference on the batch, of the magnitudes.
        reason: why the rates are not proven to be equal; empty where they are.
        values: number of values on the batch.
        ties: how many of them got another level, though they are equal in exact arithmetic: they
            lie within rounding of the border of two levels, or are computed from such. 0 of others.
        thresholds: of each channel, or the one of all; none for the output.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from tracetorch import convert
        >>> model = nn.Sequential(nn.Linear(4, 8), convert.QuantizedReLU(4, 1.0), nn.Linear(8, 2))
        >>> _, report = convert.from_ann(model, torch.rand(9, 4), steps=4)
        >>> layer = report.layers[0]
        >>> layer.path, layer.threshold, layer.levels, layer.bound, layer.reason
        ('1', 1.0, 4, 0.0, '')
    """

    path: str
    neurons: str
    threshold: float
    clip: float
    levels: int | None
    bound: float
    largest: float
    mean: float
    reason: str
    values: int
    ties: int
    thresholds: tuple[float, ...] = field(repr=False)

    @property
    def is_exact(self) -> bool:
        """Whether all rates are proven to be the model's activations."""
        return not self.reason


@dataclass(frozen=True)
class Report:
    """Report of :func:`from_ann`, layer by layer; it prints as a table.

    Args:
        layers: the activations, in order, and last the output of the model.
        steps: in which the input is there; sums over time are divided by it.
        quiet: steps behind them, without an input.
        sufficient_quiet: how many of those would suffice for equality, if the rest were there;
            ``None`` where no number would.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from tracetorch import convert
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _, report = convert.from_ann(model, torch.rand(9, 4), steps=8)
        >>> report.is_exact, report.layers[-1].path
        (False, 'output')
    """

    layers: tuple[LayerReport, ...]
    steps: int
    quiet: int
    sufficient_quiet: int | None

    @property
    def is_exact(self) -> bool:
        """Whether the output, and every rate, is proven to be the model's."""
        return all(layer.is_exact for layer in self.layers)

    def __str__(self) -> str:
        """Return the table, and below it what is missing for equality."""
        rows = [("layer", "neurons", "threshold", "clip", "levels", "bound", "largest", "mean")]
        for each in self.layers:
            # least and most of the channels; the output has none
            ends = [min(each.thresholds), each.threshold] if each.thresholds else []
            rows.append(
                (
                    *(each.path, each.neurons, _range(ends)),
                    _range([end / each.threshold * each.clip for end in ends]),
                    str(each.levels or ""),
                    "equal" if each.is_exact else f"{each.bound:.3g}",
                    f"{each.largest:.3g}",
                    f"{each.mean:.3g}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        quiet = f" and {self.quiet} quiet ones" if self.quiet else ""
        lines.append(f"{self.steps} steps{quiet}")
        missing = next((layer for layer in self.layers if not layer.is_exact), None)
        if missing is None:
            lines.append("every rate is proven to be the model's activation")
            ties = [each for each in self.layers if each.ties]
            lines += [
                f"equal but for rounding: in {each.path} {each.ties} of {each.values} values on "
                "the batch got another level"
                for each in ties
            ]
        else:
            lines.append(f"not proven to be equal: {missing.path}, {missing.reason}")
        return "\n".join(lines)


def _range(ends: Sequence[float]) -> str:
    """Return two numbers as a table shows them, or the one that both are."""
    return " to ".join(dict.fromkeys(f"{end:.4g}" for end in ends))
