"""Save a recording as an interactive HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tracetorch.core.checks import check_flag
from tracetorch.core.files import atomic_replace
from tracetorch.core.spike_values import Trajectories, are_events
from tracetorch.plot import viewer_data
from tracetorch.plot.html_page import check_title, html_page, json_element
from tracetorch.plot.recorded import Array, Recorded, check_recording, flatten_neurons

TEMPLATES = Path(__file__).parent / "viewer"
MAX_BLOCK_LENGTH = 2**29 - 2**16  # characters of a JavaScript string in Chromium


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
    check_flag("save_html: batched", batched)
    check_title("save_html", title)
    layers = check_recording("save_html", recording)
    kinds = recording.kinds if isinstance(recording, Trajectories) else {}
    layers = layers if batched else _with_batch(layers)
    values = _flattened(layers)
    layer_headers: list[dict[str, Any]] = []
    data: list[str] = []
    for number, (name, value) in enumerate(values.items()):
        events = are_events(name, value, kinds.get(name))
        layer_headers.append(_header(name, value, layers[name].shape[2:], events))
        pack = viewer_data.pack_events if events else viewer_data.pack_trace
        for sample in range(value.shape[1]):
            block = _checked_length(name, pack(value[:, sample]))
            data.append(f'<script type="text/plain" id="b-{number}-{sample}">{block}</script>')
    # what viewer.js reads before it unpacks a block
    run = {
        "title": title,
        "steps": len(next(iter(values.values()))),
        "samples": next(iter(values.values())).shape[1],
        "layers": layer_headers,
    }
    page = html_page(TEMPLATES, title, "\n".join([json_element("run", run), *data]))
    with atomic_replace(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _with_batch(layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the layers with a batch of one sample; ``[T]`` is one neuron."""
    return {n: v[:, None] if v.ndim > 1 else v[:, None, None] for n, v in layers.items()}


def _flattened(layers: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return the layers as ``[T, B, N]``, of one batch."""
    values = {name: flatten_neurons("save_html", name, value) for name, value in layers.items()}
    batches = {name: value.shape[1] for name, value in values.items()}
    if len(set(batches.values())) > 1:
        raise ValueError(f"save_html: all tensors must have the same batch, got {batches}.")
    return values


def _header(name: str, value: Array, shape: Sequence[int], events: bool) -> dict[str, Any]:
    """Return what the page knows of a layer before it unpacks a block."""
    return {
        "path": name or "recording",
        "kind": "events" if events else "trace",
        "neurons": value.shape[2],
        "shape": list(shape),
        "signed": (value < 0).any((0, 2)).tolist(),
    }


def _checked_length(name: str, block: str) -> str:
    """Return the text of a sample, if a browser can hold it."""
    if len(block) > MAX_BLOCK_LENGTH:
        raise ValueError(
            f"save_html: {name!r} is too large for a browser, {len(block):,} characters a "
            "sample. Keep fewer steps or neurons: seen[path][:1000]."
        )
    return block
