"""Draw the derivatives of surrogate functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from tracetorch.core.checks import check_positive
from tracetorch.functional.surrogates import SURROGATES
from tracetorch.plot.axes import COLOURS, FAINT, finished, get_axes
from tracetorch.plot.descriptions import describe_plot
from tracetorch.plot.recorded import Array, to_numpy
from tracetorch.snn.parameters import SpikeFunction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Surrogates: TypeAlias = SpikeFunction | Sequence[SpikeFunction] | Mapping[str, SpikeFunction]
NUM_POINTS = 801  # odd, so that one of them is the threshold


@describe_plot
def surrogate_curves(
    surrogates: Surrogates | None = None,
    *,
    reach: float = 1.5,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw surrogate derivatives over the distance to the threshold, computed by autograd.

    Args:
        surrogates: a callable ``u -> spikes``, several, or a dict of them by label; if left out,
            those of ``tt.functional`` with their defaults.
        reach: largest distance to the threshold, on both sides.

    Shape:
        x in units of the membrane; y in spikes per unit of the membrane.

    Example:
        >>> from tracetorch.functional import atan_surrogate
        >>> line = surrogate_curves(atan_surrogate(2.0)).lines[0]
        >>> line.get_label(), round(float(line.get_ydata().max()), 3)
        ('atan_surrogate(alpha=2.0)', 1.0)
    """
    given = SURROGATES if surrogates is None else surrogates
    if isinstance(given, Mapping):
        labelled = list(given.items())
    else:
        several = given if isinstance(given, Sequence) else [given]
        # the name of a function, or the repr of any other callable
        labelled = [(str(getattr(spike, "__name__", repr(spike))), spike) for spike in several]
    reach = check_positive("surrogate_curves: reach", reach)
    u = torch.linspace(-reach, reach, NUM_POINTS, dtype=torch.float64)
    curves: list[tuple[str, Array]] = []
    for label, spike in labelled:
        # enabled also within torch.no_grad
        with torch.enable_grad():
            membrane = u.clone().requires_grad_()
            spikes = spike(membrane)
            if not isinstance(spikes, torch.Tensor) or not spikes.requires_grad:
                raise ValueError(
                    f"surrogate_curves: {label} has no gradient at all. A surrogate is a function "
                    "that autograd can follow."
                )
            (slope,) = torch.autograd.grad(spikes.sum(), membrane)
        curves.append((label, to_numpy(slope)))

    ax = get_axes(ax)
    for number, (label, curve) in enumerate(curves):
        ax.plot(u.numpy(), curve, color=COLOURS[number % len(COLOURS)], linewidth=1.4, label=label)
    ax.axvline(0.0, color=FAINT, linewidth=1.0, zorder=0)
    ax.set(xlabel="membrane - threshold", ylabel="derivative of the spike", ylim=(0.0, None))
    ax.set_xlim(-reach, reach)
    return finished(ax, title, legend=True)
