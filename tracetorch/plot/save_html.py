"""Save a recording as an interactive HTML page.

The viewer is one page without a network, held to that by a content security policy. Data are one
packed block per layer and sample, unpacked when shown: spikes as sparse events, exact; states in
65,535 levels per neuron. Names travel as JSON whose ``<`` is escaped, and enter the page as text.
"""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import numpy as np

from tracetorch.core.checks import check_flag
from tracetorch.core.html_page import json_element, write_page
from tracetorch.core.spike_values import Trajectories, are_events
from tracetorch.plot.recorded import Array, Recorded, check_recording, flatten_neurons

TEMPLATES = Path(__file__).parent / "viewer"
MAX_BLOCK_LENGTH = 2**29 - 2**16  # characters of a JavaScript string in Chromium
# codes of a trace are uint16; viewer.js has the same numbers
NOT_FINITE = 65535
MAX_LEVEL = 65534


def save_html(
    recording: Recorded, path: str | Path, *, title: str = "Recorded run", batched: bool = True
) -> None:
    """Write a recording as one self-contained HTML file: no server, no network.

    Spikes are drawn as rasters, all else as traces. What :func:`tracetorch.probe.record` recorded
    says which are which. In any other mapping ``mem``, ``syn`` and ``rec`` are states, and of the
    rest those are spikes that have zeros and one positive and one negative value per neuron; so it
    is with inputs always. Spikes of several sizes are traces. The page has lists of layers and
    samples, zooms and pans by wheel, drag, touch and keys, and shows the values under the pointer;
    a click on a neuron in a raster shows its states. Spikes are stored exactly, as sparse events;
    states in 65,535 levels between the lowest and the highest value of a neuron; states that are
    not finite are gaps. The page needs a browser of 2023 or later.

    Args:
        recording: states and outputs by path, the second result of :func:`tracetorch.unroll`. To
            keep some samples or neurons only, index it: ``{p: v[:, :2] for p, v in seen.items()}``.
        path: path of the file; an existing one is replaced only when all is written.
        title: title of the page.
        batched: ``False`` if tensors are ``[T, ...]``, of one sample.

    Shape:
        ``[T, B, ...]`` each, of one T and one B.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the recording is empty, its tensors differ in length or batch, or a sample of a
            layer is too large for a browser.

    Example:
        >>> import tempfile
        >>> from tracetorch import unroll
        >>> net = nn.Sequential(nn.Linear(2, 3), LIF(3))
        >>> _, seen = unroll(net, torch.rand(50, 4, 2), record=["mem", "output"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_html(seen, f"{folder}/run.html")
        ...     print(Path(folder, "run.html").read_text()[:15])
        <!doctype html>
    """
    layers = check_recording("save_html", recording)
    kinds = recording.kinds if isinstance(recording, Trajectories) else {}
    if not check_flag("save_html: batched", batched):  # [T] is one neuron
        layers = {n: v[:, None] if v.ndim > 1 else v[:, None, None] for n, v in layers.items()}
    values = {name: flatten_neurons("save_html", name, value) for name, value in layers.items()}
    batches = {name: value.shape[1] for name, value in values.items()}
    if len(set(batches.values())) > 1:
        raise ValueError(f"save_html: all tensors must have the same batch, got {batches}.")
    headers: list[dict[str, Any]] = []
    data: list[str] = []
    for number, (name, value) in enumerate(values.items()):
        events = are_events(name, value, kinds.get(name))
        header = {"path": name or "recording", "kind": "events" if events else "trace"}
        sizes = {"neurons": value.shape[2], "shape": list(layers[name].shape[2:])}
        headers.append({**header, **sizes, "signed": (value < 0).any((0, 2)).tolist()})
        for sample in range(value.shape[1]):
            block = (pack_events if events else pack_trace)(value[:, sample])
            if len(block) > MAX_BLOCK_LENGTH:
                raise ValueError(
                    f"save_html: {name!r} is too large for a browser, {len(block):,} characters a "
                    "sample. Keep fewer steps or neurons: seen[path][:1000]."
                )
            data.append(f'<script type="text/plain" id="b-{number}-{sample}">{block}</script>')
    # what viewer.js reads before it unpacks a block
    steps, samples = next(iter(values.values())).shape[:2]
    run = {"title": title, "steps": steps, "samples": samples, "layers": headers}
    elements = "\n".join([json_element("run", run), *data])
    write_page(path, "save_html", TEMPLATES, title, elements)


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
    # without a time stamp, so that the same recording gives the same page
    return base64.b64encode(gzip.compress(b"".join(parts), 3, mtime=0)).decode("ascii")
