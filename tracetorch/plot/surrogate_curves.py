"""Draw the derivatives of surrogate functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from tracetorch.core.checks import check_positive
from tracetorch.functional.surrogates import SURROGATES
from tracetorch.plot.axes import COLOURS, FAINT, add_legend, get_axes, set_title
from tracetorch.plot.recorded import to_numpy
from tracetorch.snn.parameters import SpikeFunction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Surrogates: TypeAlias = SpikeFunction | Sequence[SpikeFunction] | Mapping[str, SpikeFunction]
NUM_POINTS = 801  # odd, so that one of them is the threshold


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
        title: title of the axes.
        ax: axes to draw on; if left out, new axes on a new figure.

    Shape:
        x in units of the membrane; y in spikes per unit of the membrane.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: there are no surrogates, one has no gradient, or ``reach`` is not positive.

    Example:
        >>> from tracetorch.functional import atan_surrogate
        >>> line = surrogate_curves(atan_surrogate(2.0)).lines[0]
        >>> line.get_label(), round(float(line.get_ydata().max()), 3)
        ('atan_surrogate(alpha=2.0)', 1.0)
    """
    if surrogates is None:
        surrogates = SURROGATES
    if isinstance(surrogates, Mapping):
        labelled = list(surrogates.items())
    else:
        several = list(surrogates) if isinstance(surrogates, Sequence) else [surrogates]
        labelled = [(_label(spike), spike) for spike in several]
    if not labelled:
        raise ValueError("surrogate_curves: there are no surrogates. Leave them out for all.")
    reach = check_positive("surrogate_curves: reach", reach)
    u = torch.linspace(-reach, reach, NUM_POINTS, dtype=torch.float64)
    # computed before the axes exist, so that a surrogate that fails leaves nothing drawn
    curves = [(label, to_numpy(_derivative(label, spike, u))) for label, spike in labelled]

    ax = get_axes(ax)
    for number, (label, curve) in enumerate(curves):
        ax.plot(u.numpy(), curve, color=COLOURS[number % len(COLOURS)], linewidth=1.4, label=label)
    ax.axvline(0.0, color=FAINT, linewidth=1.0, zorder=0)
    ax.set(xlabel="membrane - threshold", ylabel="derivative of the spike", ylim=(0.0, None))
    ax.set_xlim(-reach, reach)
    add_legend(ax)
    set_title(ax, title)
    return ax


def _label(spike: object) -> str:
    """Return the name of a function, or the ``repr`` of any other callable."""
    is_function = hasattr(spike, "__name__")
    return str(getattr(spike, "__name__", "")) if is_function else repr(spike)


def _derivative(label: str, spike: SpikeFunction, u: torch.Tensor) -> torch.Tensor:
    """Differentiate a surrogate at ``u`` by autograd."""
    if not callable(spike):
        raise TypeError(
            f"surrogate_curves takes callables, u -> spikes, got {type(spike).__name__}. Try "
            "tt.functional.atan_surrogate(2.0)."
        )
    # enabled also within torch.no_grad
    with torch.enable_grad():
        membrane = u.clone().requires_grad_()
        spikes = spike(membrane)
        if not isinstance(spikes, torch.Tensor) or not spikes.requires_grad:
            raise ValueError(
                f"surrogate_curves: {label} has no gradient at all. A surrogate is a function that "
                "autograd can follow."
            )
        (slope,) = torch.autograd.grad(spikes.sum(), membrane)
    return slope
