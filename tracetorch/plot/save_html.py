"""Save a recording as an interactive HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tracetorch.core.checks import check_flag
from tracetorch.core.files import atomic_replace
from tracetorch.plot import viewer_data
from tracetorch.plot.html_page import html_page, json_element
from tracetorch.plot.recorded import Recorded, check_recording, flatten_neurons

TEMPLATES = Path(__file__).parent / "viewer"
MAX_BLOCK_LENGTH = 2**29 - 2**16  # characters of a JavaScript string in Chromium


def save_html(
    recording: Recorded, path: str | Path, *, title: str = "Recorded run", batched: bool = True
) -> None:
    """Write a recording as one self-contained HTML file: no server, no network.

    Tensors with zeros and one positive and one negative value per neuron are drawn as rasters, all
    others as traces. The page has lists of layers and samples, zooms and pans by wheel, drag, touch
    and keys, and shows the values under the pointer; a click on a neuron in a raster shows its
    states. Spikes are stored exactly, as sparse events; states in 65,535 levels between the lowest
    and the highest value of a neuron; states that are not finite are gaps. The page needs a browser
    of 2023 or later.

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
    if not isinstance(title, str):
        raise TypeError(f"save_html: title must be a string, got {type(title).__name__}.")
    layers = check_recording("save_html", recording)
    if not batched:
        # [T] is one neuron
        layers = {n: v[:, None] if v.ndim > 1 else v[:, None, None] for n, v in layers.items()}
    values = {name: flatten_neurons("save_html", name, value) for name, value in layers.items()}
    batches = {name: value.shape[1] for name, value in values.items()}
    if len(set(batches.values())) > 1:
        raise ValueError(f"save_html: all tensors must have the same batch, got {batches}.")

    layer_headers: list[dict[str, Any]] = []
    blocks: list[tuple[str, str]] = []
    for number, (name, value) in enumerate(values.items()):
        is_events = viewer_data.is_events(value)
        layer_headers.append(
            {
                "path": name or "recording",
                "kind": "events" if is_events else "trace",
                "neurons": value.shape[2],
                "shape": list(layers[name].shape[2:]),
                "signed": [bool((value[:, sample] < 0).any()) for sample in range(value.shape[1])],
            }
        )
        for sample in range(value.shape[1]):
            pack = viewer_data.pack_events if is_events else viewer_data.pack_trace
            block = pack(value[:, sample])
            if len(block) > MAX_BLOCK_LENGTH:
                raise ValueError(
                    f"save_html: {name!r} is too large for a browser, {len(block):,} characters a "
                    "sample. Keep fewer steps or neurons: seen[path][:1000]."
                )
            blocks.append((f"b-{number}-{sample}", block))
    # what viewer.js reads before it unpacks a block
    run = {
        "title": title,
        "steps": len(next(iter(values.values()))),
        "samples": next(iter(batches.values())),
        "layers": layer_headers,
    }
    data = [json_element("run", run)]
    data += [f'<script type="text/plain" id="{name}">{block}</script>' for name, block in blocks]
    page = html_page(TEMPLATES, title, "\n".join(data))
    with atomic_replace(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
