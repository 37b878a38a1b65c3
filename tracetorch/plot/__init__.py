"""Plot the activity of networks: spikes, states, rates, half-lives, gradients.

Plots draw on axes they are given, or on a ``Figure`` of their own, never through pyplot: no window,
no global state. All that can be wrong is found before anything is drawn. A recording is the second
result of ``tracetorch.unroll(..., record=)``, or a single tensor ``[T, B, ...]``.
"""

from tracetorch.core.html_page import show_html
from tracetorch.plot.curves import MeasurementManager, learning_curves, line_graph, surrogate_curves
from tracetorch.plot.distributions import decays, distributions, halflives
from tracetorch.plot.images import animate_events, animate_run, render_image, save_animation
from tracetorch.plot.raster import raster, spike_train
from tracetorch.plot.rates import gradient_flow, rate_histogram, rate_map
from tracetorch.plot.save_html import save_html
from tracetorch.plot.save_playground import save_playground
from tracetorch.plot.state_trace import state_trace

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
