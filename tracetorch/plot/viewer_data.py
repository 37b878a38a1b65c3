"""Pack a recording for the HTML viewer: one compressed block of bytes per layer and sample.

The viewer is one page without a network, held to that by a content security policy. Data are one
packed block per layer and sample, unpacked when shown: spikes as sparse events, exact; states in
65,535 levels per neuron. Names travel as JSON whose ``<`` is escaped, and enter the page as text.
"""

from __future__ import annotations

import base64
import gzip

import numpy as np

from tracetorch.plot.recorded import Array

# codes of a trace are uint16; viewer.js has the same numbers
NOT_FINITE = 65535
MAX_LEVEL = 65534


def pack_events(values: Array) -> str:
    """Pack the spikes of one sample ``[T, N]`` like a sparse matrix in compressed row format.

    ``uint32[T + 1]`` offsets of the steps; the neurons that fire in each step as ``uint16``, or
    ``uint32`` where there are more than 65,536; and ``int8`` signs if any spike is negative.
    Little-endian.
    """
    step, neuron = np.nonzero(values)
    # steps are sorted, so the offset of a step is where it would be inserted
    offsets = np.searchsorted(step, np.arange(len(values) + 1)).astype("<u4")
    dtype = "<u4" if values.shape[1] > 65536 else "<u2"
    parts = [offsets.tobytes(), neuron.astype(dtype).tobytes()]
    if (values < 0).any():
        parts.append(np.sign(values[step, neuron]).astype("<i1").tobytes())
    return _compress(parts)


def pack_trace(values: Array) -> str:
    """Pack the states of one sample ``[T, N]`` in 65,535 levels between the extremes of a neuron.

    ``float32[N]`` lowest values, ``float32[N]`` sizes of a level, ``uint16[N][T]`` levels; 65535
    where a value is not finite. Little-endian.
    """
    finite = np.isfinite(values)
    wide = values.astype(np.float64)
    low = np.where(finite, wide, np.inf).min(0)
    high = np.where(finite, wide, -np.inf).max(0)
    # a neuron without a finite value has low = inf and high = -inf
    low, high = np.where(low <= high, low, 0.0), np.where(low <= high, high, 0.0)
    # rounded to float32 before dividing, as the page multiplies by the rounded values
    level = ((high - low) / MAX_LEVEL).astype("<f4")
    low = low.astype("<f4")
    with np.errstate(invalid="ignore", divide="ignore"):
        codes = np.rint((wide - low) / np.where(level > 0, level, 1.0).astype(np.float64))
    codes = np.where(finite, np.clip(codes, 0, MAX_LEVEL), NOT_FINITE).astype("<u2")
    return _compress([low.tobytes(), level.tobytes(), np.ascontiguousarray(codes.T).tobytes()])


def _compress(parts: list[bytes]) -> str:
    """Compress with gzip and encode as base64."""
    # without a time stamp, so that the same recording gives the same page
    return base64.b64encode(gzip.compress(b"".join(parts), 3, mtime=0)).decode("ascii")
