"""What the viewer's page holds of a recording: packed bytes, one block per layer and sample."""

from __future__ import annotations

import base64
import gzip

import numpy as np

from tracetorch.plot.recorded import Array

GAP = 65535  # the code of a value that is not finite
FINEST = 65534


def is_events(values: Array) -> bool:
    """Whether ``[T, B, N]`` are spikes: each neuron sends 0, one value up, one value down.

    A neuron that never sends 0 is a trace, unless all there is are 0, 1 and -1.
    """
    if ((values == 0) | (np.abs(values) == 1)).all():
        return True
    if not np.isfinite(values).all() or not (values == 0).any((0, 1)).all():
        return False
    for side in (values, -values):
        highest = side.max((0, 1))
        if not ((side <= 0) | (side == highest)).all():
            return False
    return True


def events(values: Array) -> str:
    """The spikes of one sample ``[T, N]``: where each step begins, who fires, which way.

    ``uint32[T + 1]`` offsets; the neurons of each step as ``uint16``, or ``uint32`` where there are
    more than 65,536; and, where any spike points down, ``int8`` signs. Little-endian.
    """
    step, neuron = np.nonzero(values)
    offsets = np.searchsorted(step, np.arange(len(values) + 1)).astype("<u4")
    wide = "<u4" if values.shape[1] > 65536 else "<u2"
    parts = [offsets.tobytes(), neuron.astype(wide).tobytes()]
    if (values < 0).any():
        parts.append(np.sign(values[step, neuron]).astype("<i1").tobytes())
    return _packed(parts)


def trace(values: Array) -> str:
    """The states of one sample ``[T, N]`` in 65,535 levels between each neuron's extremes.

    ``float32[N]`` lowest values, ``float32[N]`` sizes of a level, ``uint16[N][T]`` levels; 65535
    where a value is not finite. Little-endian.
    """
    finite = np.isfinite(values)
    wide = values.astype(np.float64)
    low = np.where(finite, wide, np.inf).min(0)
    high = np.where(finite, wide, -np.inf).max(0)
    low, high = np.where(low <= high, low, 0.0), np.where(low <= high, high, 0.0)
    level = ((high - low) / FINEST).astype("<f4")
    low = low.astype("<f4")
    with np.errstate(invalid="ignore", divide="ignore"):
        codes = np.rint((wide - low) / np.where(level > 0, level, 1.0).astype(np.float64))
    codes = np.where(finite, np.clip(codes, 0, FINEST), GAP).astype("<u2")
    return _packed([low.tobytes(), level.tobytes(), np.ascontiguousarray(codes.T).tobytes()])


def _packed(parts: list[bytes]) -> str:
    # no time stamp: the same recording is the same page
    return base64.b64encode(gzip.compress(b"".join(parts), 3, mtime=0)).decode("ascii")
