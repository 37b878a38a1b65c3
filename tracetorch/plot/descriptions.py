"""Describe the arguments that many plots have, once for all of their docstrings."""

from __future__ import annotations

from tracetorch.core.docstrings import SharedDescriptions

describe_plot = SharedDescriptions(
    {
        "title": "title of the axes.",
        "ax": "axes to draw on; if left out, new axes on a new figure.",
        "spikes": "outputs, or a dict of them by path. Dimensions after the batch are flattened to "
        "neurons.",
        "sample": "index in the batch; ``None`` for ``[T, ...]`` without one.",
        "dt": "duration of a step in milliseconds, for time in ms and rates in Hz; ``None``: in "
        "steps.",
    },
    raises={
        "TypeError, ValueError": "an argument is of the wrong type, out of range or empty, or does "
        "not fit the others."
    },
)
