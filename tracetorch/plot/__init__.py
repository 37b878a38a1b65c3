"""Plots of what networks do: spikes, states, rates, half-lives, gradients.

Every function draws on ``ax`` and returns it; without one it makes axes on a figure of their own
(``ax.figure.savefig("plot.png")``). Nothing is ever shown, and pyplot is not used. A recording is
what :func:`tracetorch.unroll` returns second when told ``record=``: a dict from ``"path.name"`` to
a tensor ``[T, B, ...]``; where one tensor is enough, it may be given alone.

:func:`save_html` makes a page of its own to look through a long recording. All but that page and
``MeasurementManager.append`` need matplotlib, from the extra ``plot``.
"""

from tracetorch.plot.animation import animate_events, save_animation
from tracetorch.plot.constrained import decays
from tracetorch.plot.distributions import distributions
from tracetorch.plot.gradient_flow import gradient_flow
from tracetorch.plot.halflives import halflives
from tracetorch.plot.line_graph import line_graph
from tracetorch.plot.measurement_manager import MeasurementManager
from tracetorch.plot.raster import raster
from tracetorch.plot.rates import rate_histogram, rate_map
from tracetorch.plot.render_image import render_image
from tracetorch.plot.save_html import save_html
from tracetorch.plot.spike_train import spike_train
from tracetorch.plot.state_trace import state_trace
from tracetorch.plot.surrogate_curves import surrogate_curves

__all__ = [
    "MeasurementManager",
    "animate_events",
    "decays",
    "distributions",
    "gradient_flow",
    "halflives",
    "line_graph",
    "raster",
    "rate_histogram",
    "rate_map",
    "render_image",
    "save_animation",
    "save_html",
    "spike_train",
    "state_trace",
    "surrogate_curves",
]
