"""Describe what all decoders share, once for their docstrings."""

from __future__ import annotations

from tracetorch.core.docstrings import SharedDescriptions

describe_decoder = SharedDescriptions(
    {"mask": "``[T, B]`` booleans, true where a step is real."},
    "``[T, B, ...]`` to ``[B, ...]``.",
    {
        "TypeError": "an argument is not a tensor of the right kind.",
        "ValueError": "they do not fit, or a sequence has no real step.",
    },
)
