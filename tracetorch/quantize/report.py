"""``Report``: scales, saturation and errors of every layer, and limits that a chip exceeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LayerReport:
    """Report of a product and the neurons behind it: scale, bits, saturation, errors.

    Args:
        path: of the product in the model that was prepared.
        neurons: path of the neurons; empty where there are none.
        scale: what one integer of the states stands for: one number, or one per channel.
        weight_bits: width of the weights.
        shift: by how many bits their product is shifted.
        state_bits: width of the states.
        saturated_weights: share of the weights that are beyond an end of their width.
        saturated_states: share of the states at an end of theirs, over the sample.
        weight_error: of the weights, root mean square, as a share of theirs.
        output_error: share of the neurons' outputs, over the sample, that are other spikes than
            those of the float model that was prepared, on a chip at the step that they are later
            by; of a readout, and of a product without neurons, the root mean square of the
            difference as a share of theirs.
        saturated_parameters: share of each threshold, bias and the like that is beyond an end of
            its range, by its name in the model; those of which nothing is are left out.

    Example:
        >>> from tracetorch import quantize, snn
        >>> model = nn.Sequential(nn.Linear(4, 8), snn.LIF(8))
        >>> _, report = quantize.convert(quantize.prepare(model, torch.ones(9, 1, 4)))
        >>> layer = report.layers[0]
        >>> layer.path, layer.neurons, layer.weight_bits, layer.state_bits, layer.scale.shape
        ('0', '1', 8, 16, torch.Size([8]))
    """

    path: str
    neurons: str
    scale: Tensor
    weight_bits: int
    shift: int
    state_bits: int
    saturated_weights: float
    saturated_states: float
    weight_error: float
    output_error: float
    saturated_parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Report of ``tt.quantize.convert``, layer by layer; it prints as a table.

    Args:
        layers: in order.
        output_scale: what one integer of the output stands for.
        num_bytes: of all weights, each at its width, and of biases and parameters of neurons, at
            the next width of 8, 16 or 32 bits.
        misfits: limits of the chip that the network exceeds; empty where it fits.
        differences: in what the neurons differ from the model's, of a chip above all; without one,
            which sizes of spikes no longer learn; by how much delays were rounded.
        notes: how integers are made of the inputs, or that they are some; which features lose a
            tenth or more of their deviation by that; and of which layers the weights use fewer bits
            than they have, because the states are too narrow.

    Example:
        >>> from tracetorch import quantize, snn
        >>> model = nn.Sequential(nn.Linear(4, 8), snn.LIF(8))
        >>> _, report = quantize.convert(quantize.prepare(model, torch.ones(9, 1, 4)))
        >>> report.num_bytes, report.output_scale, report.misfits
        (96, 1.0, ())
    """

    layers: tuple[LayerReport, ...]
    output_scale: float
    num_bytes: int
    misfits: tuple[str, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return the table, and below it notes, size, what does not fit and what differs."""
        rows = [
            (
                *("layer", "neurons", "scale", "weight, state bits", "shift"),
                *("saturated weights, states", "weights off", "output off"),
            )
        ]
        for each in self.layers:
            low, high = float(each.scale.min()), float(each.scale.max())
            scale = f"{low:.3g}" if low == high else f"{low:.2g} to {high:.2g}"
            rows.append(
                (
                    *(each.path, each.neurons, scale),
                    f"{each.weight_bits}, {each.state_bits}",
                    str(each.shift),
                    f"{each.saturated_weights:.1%}, {each.saturated_states:.1%}",
                    f"{each.weight_error:.2%}",
                    f"{each.output_error:.2%}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += [
            f"saturated: {share:.1%} of {name}"
            for each in self.layers
            for name, share in each.saturated_parameters.items()
        ]
        lines += self.notes
        lines.append(
            f"{self.num_bytes:,} bytes; one integer of the output is {self.output_scale:g}"
        )
        lines += [f"does not fit: {each}" for each in self.misfits]
        lines += [f"differs: {each}" for each in self.differences]
        return "\n".join(lines)


def share_of_others(found: Tensor, wanted: Tensor) -> float:
    """Return the share of spikes that are others than wanted."""
    return float((found.sign() != wanted.sign()).double().mean())


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the root mean square of a difference, as a share of what was wanted."""
    size = wanted.double().square().mean().sqrt()
    return float((found.double() - wanted.double()).square().mean().sqrt() / size.clamp(min=1e-30))
