"""What encoders refuse, each by its message."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.refusals import check, refusals
from tracetorch import encode

inf, nan = float("inf"), float("nan")
ONE, ZEROS = torch.ones(1), torch.zeros(3, 2)
GOOD: dict[str, Any] = {"x": [0], "y": [0], "t": [0], "p": [0]}
T_IN_US = np.array([5], "timedelta64[us]")
NONE = np.zeros(0, [(name, int) for name in "xytp"])


def frames(events: Any = None, size: tuple[int, int] = (3, 5), **options: Any) -> torch.Tensor:
    """Count the events of a good recording, or one with other columns."""
    events = {**GOOD, **events} if isinstance(events, dict) else events
    return encode.events_to_frames(GOOD if events is None else events, size, **options)


@refusals(
    r"""
    rate([0.5], 3) -> TypeError: x must be a floating-point tensor, got list
    rate(ONE.byte(), 3) -> TypeError: got torch.uint8. .* x.float\(\) / 255
    rate(ONE, 0) -> ValueError: steps must be at least 1, got 0
    rate(ONE, 3, kind="gauss") -> ValueError: or 'poisson', got 'gauss'
    rate(ONE, 3, gain=2.0) -> ValueError: lie in \[0, 1\], got 2.0. Scale the
    rate(ONE, 3, offset=-2.0) -> ValueError: lie in \[0, 1\], got -1.0
    rate(ONE / 0 * 0, 3) -> ValueError: lie in \[0, 1\], got nan
    rate(-ONE, 3, kind="poisson") -> ValueError: not be negative, got -1.0
    latency([0.5], 5) -> TypeError: floating-point tensor, got list
    latency(1.5 * ONE, 5) -> ValueError: x must lie in \[0, 1\], got 1.5
    latency(-ONE, 5, kind="exponential") -> ValueError: not be negative, got -1.0
    latency(ONE, 5, kind="log") -> ValueError: or 'exponential', got 'log'
    latency(ONE, 5, threshold=1.0) -> ValueError: in \[0, 1\) for kind='linear', got 1.0
    latency(ONE, 5, threshold=0.0, kind="exponential") -> ValueError: threshold must be positive
    latency(ONE, 5, threshold=nan, kind="exponential") -> ValueError: threshold must be positive
    latency(ONE, 5, tau=0.0, kind="exponential") -> ValueError: tau must be positive .* got 0.0
    population([1.0], 5) -> TypeError: floating-point tensor, got list
    population(ONE, 2) -> ValueError: at least 3 to tile .* got 2
    population(ONE, 5, low=1.0) -> ValueError: low must be below high, .* got 1.0 and 1.0
    population(ONE, 5, overlap=0.0) -> ValueError: overlap must be positive and finite, got 0.0
    repeat(ONE, 0) -> ValueError: steps must be at least 1, got 0
    delta([0.5], 1.0) -> TypeError: floating-point tensor, got list
    delta(torch.zeros(0, 2), 1.0) -> ValueError: at least one time step
    delta(ZEROS, 0.0) -> ValueError: threshold must be positive .* 0.0
    delta(torch.tensor([[nan], [1.0]]), 1.0) -> ValueError: x must begin with a number
    delta(torch.tensor([[0.0], [inf]]), 1.0) -> ValueError: and hold no infinity
    delta(ZEROS, 1.0, start=nan) -> ValueError: or start= be one
    frames() -> ValueError: either bins or window, got bins=None and window=None
    frames(window=0) -> ValueError: window must be positive and finite, got 0
    frames(bins=0) -> ValueError: bins must be at least 1, got 0
    frames(bins=1, polarities=3) -> ValueError: polarities must be 1 or 2, got 3
    frames(bins=1, stop=inf) -> ValueError: stop must be finite, got inf
    frames(bins=1, size=(0, 2)) -> ValueError: size\[0\] must be at least 1, got 0
    frames([1], bins=1) -> TypeError: a mapping of columns of these names, got list
    frames({"x": [0, 1]}, bins=1) -> ValueError: one length, got .*'x': \[2\]
    frames({"x": [0.5]}, bins=1) -> ValueError: x of an event must be an integer, got 0.5 \(fl
    frames({"x": [nan]}, bins=1) -> ValueError: x of an event must be an integer, got nan
    frames({"x": [1e30]}, bins=1) -> ValueError: x of an event must be an integer, got 1e\+30
    frames({"t": [nan]}, bins=1) -> ValueError: t of an event must be finite, got nan
    frames({"t": [10**9]}, window=1e-6, start=0) -> ValueError: makes 1e\+15 frames .* unit of t
    frames({"x": [5]}, bins=1) -> ValueError: event has x=5, off the sensor .* \(3, 5\)
    frames({"y": [-1]}, bins=1) -> ValueError: event has y=-1, off the sensor
    frames({"p": [2]}, bins=1) -> ValueError: must be 0 and 1.* got \[2\]. With polarities=1
    frames({**{n: [0, 0] for n in "xyt"}, "p": [-1, 0]}, bins=1) -> ValueError: got \[-1, 0\]
    frames(bins=1, start=5, stop=5) -> ValueError: got start=5 and stop=5
    frames({"t": T_IN_US}, bins=1) -> TypeError: t of an event must.*timedelta64\[us\]\. Divide
    frames({"t": T_IN_US + np.datetime64(0, "s")}, bins=1) -> TypeError: got datetime64\[us\]
    frames(window=np.timedelta64(5, "us")) -> TypeError: window must be a number, got timed
    frames(NONE, bins=1, start=0) -> ValueError: no events: give start= and stop=
    """
)
def test_what_does_not_fit_is_named_in_the_error(call: str, error: str) -> None:
    check(call, error, {**vars(encode), **globals()})
