"""A recorded run as one page to look through: scroll, zoom, read values off."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracetorch.core.checks import check_flag
from tracetorch.core.files import atomic_replace
from tracetorch.plot import blocks
from tracetorch.plot.recorded import Recorded, batch_of, tensors

PARTS = Path(__file__).parent / "viewer"
LONGEST = 2**29 - 2**16  # characters in one JavaScript string, by Chromium


def save_html(
    recording: Recorded,
    path: str | Path,
    *,
    title: str = "Recorded run",
    batched: bool = True,
) -> None:
    """Write a recording as one self-contained HTML file: no server, no network.

    What is made of zeros and one value up and down per neuron is a raster, everything else a trace.
    The page has a list of the layers and of the samples, zooms and pans by wheel, drag, touch and
    keys, and shows the values under the pointer; a click on a neuron in a raster shows its states.
    Spikes are kept exactly as sparse events, states in 65,535 levels between each neuron's lowest
    and highest value; states that are not finite are gaps. A browser of 2023 or later opens it.

    Args:
        recording: states and outputs by path, as :func:`tracetorch.unroll` returns them second. To
            keep some samples or neurons only, index it: ``{p: v[:, :2] for p, v in seen.items()}``.
        path: the file; what stood there is replaced when all is written.
        title: of the page.
        batched: ``False``: tensors are ``[T, ...]``, of one sample.

    Shape:
        ``[T, B, ...]`` each, of one T and one B.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the recording is empty, its tensors differ in length or batch, or one sample of
            a layer is too large for a browser.

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
    layers = tensors("save_html", recording)
    if not batched:
        layers = {name: value[:, None] for name, value in layers.items()}
    values = {name: batch_of("save_html", name, value) for name, value in layers.items()}
    batches = {name: value.shape[1] for name, value in values.items()}
    if len(set(batches.values())) > 1:
        raise ValueError(f"save_html: all must have the same batch, got {batches}.")

    about: list[dict[str, Any]] = []
    packed: list[tuple[str, str]] = []
    for number, (name, value) in enumerate(values.items()):
        is_events = blocks.is_events(value)
        about.append(
            {
                "path": name or "recording",
                "kind": "events" if is_events else "trace",
                "neurons": value.shape[2],
                "shape": list(layers[name].shape[2:]),
                "signed": [bool((value[:, b] < 0).any()) for b in range(value.shape[1])],
            }
        )
        for b in range(value.shape[1]):
            block = (blocks.events if is_events else blocks.trace)(value[:, b])
            if len(block) > LONGEST:
                raise ValueError(
                    f"save_html: {name!r} is too large for a browser, {len(block):,} characters a "
                    "sample. Keep fewer steps or neurons: seen[path][:1000]."
                )
            packed.append((f"b-{number}-{b}", block))
    run = {
        "title": title,
        "steps": len(next(iter(values.values()))),
        "samples": next(iter(batches.values())),
        "layers": about,
    }
    with atomic_replace(path) as unfinished:
        unfinished.write_text(_page(title, run, packed), encoding="utf-8")


def _page(title: str, run: Mapping[str, Any], packed: list[tuple[str, str]]) -> str:
    data = [f'<script type="application/json" id="run">{_json(run)}</script>']
    data += [f'<script type="text/plain" id="{name}">{block}</script>' for name, block in packed]
    filled = {
        "{{title}}": html.escape(title),
        "{{style}}": (PARTS / "viewer.css").read_text(encoding="utf-8"),
        "{{data}}": "\n".join(data),
        "{{script}}": (PARTS / "viewer.js").read_text(encoding="utf-8"),
    }
    page = (PARTS / "viewer.html").read_text(encoding="utf-8")
    pieces: list[str] = []
    for mark, content in filled.items():  # in the page's order, so that no content is searched
        before, page = page.split(mark)
        pieces += [before, content]
    return "".join([*pieces, page])


def _json(value: object) -> str:
    """JSON that stays inside its script element, whatever a layer is called."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
