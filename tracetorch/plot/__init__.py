"""Plot the activity of networks: spikes, states, rates, half-lives, gradients.

Every function draws on ``ax`` and returns it; without one it draws on new axes of a new figure
(``ax.figure.savefig("plot.png")``). No window is opened, and pyplot is not used. A recording is the
second result of ``tracetorch.unroll(..., record=)``: a dict from ``"path.name"`` to tensors
``[T, B, ...]``; a single tensor may take its place.

:func:`save_html` writes a page for browsing a long recording, :func:`save_playground` one for
playing with a neuron, and :func:`show_html` shows either inline in a notebook. Everything but these
and ``MeasurementManager.append`` needs matplotlib, from the extra ``plot``.

Plots draw on axes they are given, or on a ``Figure`` of their own, never through pyplot: no window,
no global state. All that can be wrong is found before anything is drawn.
"""

from tracetorch.core.html_page import show_html
from tracetorch.plot.animation import animate_events, animate_run, save_animation
from tracetorch.plot.curves import learning_curves, line_graph
from tracetorch.plot.distributions import distributions
from tracetorch.plot.gradient_flow import gradient_flow
from tracetorch.plot.halflives import decays, halflives
from tracetorch.plot.measurement_manager import MeasurementManager
from tracetorch.plot.raster import raster, spike_train
from tracetorch.plot.rates import rate_histogram, rate_map
from tracetorch.plot.render_image import render_image
from tracetorch.plot.save_html import save_html
from tracetorch.plot.save_playground import save_playground
from tracetorch.plot.state_trace import state_trace
from tracetorch.plot.surrogate_curves import surrogate_curves

__all__ = [
    "MeasurementManager",
    "animate_events",
    "animate_run",
    "decays",
    "distributions",
    "gradient_flow",
    "halflives",
    "learning_curves",
    "line_graph",
    "raster",
    "rate_histogram",
    "rate_map",
    "render_image",
    "save_animation",
    "save_html",
    "save_playground",
    "show_html",
    "spike_train",
    "state_trace",
    "surrogate_curves",
]
