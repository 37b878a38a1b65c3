"""Event frames as a film."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tracetorch.core.files import atomic_replace
from tracetorch.plot.canvas import COLOURS, canvas, titled
from tracetorch.plot.recorded import Array, array, index, tensors

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes

ON, OFF = COLOURS[0], COLOURS[1]

# matplotlib's player takes its buttons from a font on the network; these are every system's own
_FONT = re.compile(r'<link rel="stylesheet"\s+href="https?://[^"]*font-?awesome[^"]*">')
_BUTTONS = """<style>
.fa { font: 16px/1 sans-serif; }
.fa-plus::before { content: "+"; }
.fa-minus::before { content: "\\2212"; }
.fa-fast-backward::before { content: "|\\25C2\\25C2"; }
.fa-step-backward::before { content: "|\\25C2"; }
.fa-fast-forward::before { content: "\\25B8\\25B8|"; }
.fa-step-forward::before { content: "\\25B8|"; }
.fa-play::before { content: "\\25B6\\FE0E"; }
.fa-pause::before { content: "\\2225"; }
.fa-flip-horizontal { display: inline-block; transform: scaleX(-1); }
</style>"""


def animate_events(
    frames: Tensor,
    *,
    sample: int | None = 0,
    fps: float = 20.0,
    title: str | None = None,
    ax: Axes | None = None,
) -> FuncAnimation:
    """Event frames, or the spikes of a convolutional layer's channel, as an animation.

    Of two channels the first, darker (off) events, is red and the second, brighter (on), is blue;
    one channel is blue. The more events, the deeper: the scale ends at the most there are.
    It is shown by what shows animations: ``save``, or ``to_jshtml`` in a notebook.

    Args:
        frames: events counted per pixel, or anything not negative.
        sample: which of the batch; ``None`` for ``[T, C, H, W]`` without one.
        fps: frames per second.
        title: above the axes; the step is added.
        ax: axes to draw on; left out, they are made, with a figure of their own.

    Shape:
        ``[T, B, C, H, W]`` with C of 1 or 2.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the frames have another shape or are negative; there is no such sample; ``fps``
            is not positive.

    Example:
        >>> film = animate_events(torch.rand(3, 1, 2, 8, 8))
        >>> film.to_jshtml().count("data:image/png;base64")
        3

    """
    images = _colours(_frames(frames, sample))
    if not fps > 0:
        raise ValueError(f"animate_events: fps must be positive, got {fps}.")
    height, width = images.shape[1:3]

    ax = canvas(ax, (3.2, 3.2 * height / width + 0.4))
    from matplotlib.animation import FuncAnimation

    root = ax.figure.figure  # also where ax is on a subfigure
    drawn = ax.imshow(images[0], interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(True)

    def show(step: int) -> tuple[object, ...]:
        drawn.set_data(images[step])
        titled(ax, f"{title + ': ' if title else ''}step {step}")
        return (drawn,)

    return FuncAnimation(root, show, frames=len(images), interval=1000 / fps)  # type: ignore[arg-type]


def save_animation(
    frames: Tensor,
    path: str | Path,
    *,
    sample: int | None = 0,
    fps: float = 20.0,
    title: str | None = None,
    dpi: int = 80,
) -> None:
    """Save :func:`animate_events` as a GIF, or as one HTML page with a player.

    The page needs no network. What stood at ``path`` is replaced when all is written.

    Args:
        frames: events counted per pixel, or anything not negative.
        path: ends in ``.gif`` or ``.html``.
        sample: which of the batch; ``None`` for ``[T, C, H, W]`` without one.
        fps: frames per second.
        title: above the frames; the step is added.
        dpi: pixels per inch; a figure is about 3 inches wide.

    Shape:
        ``[T, B, C, H, W]`` with C of 1 or 2.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: as :func:`animate_events`; ``path`` ends otherwise.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_animation(torch.rand(3, 1, 2, 8, 8), f"{folder}/events.gif")
        ...     Path(folder, "events.gif").read_bytes()[:6]
        b'GIF89a'

    """
    place = Path(path)
    kind = place.suffix.lower()
    if kind not in (".gif", ".html"):
        raise ValueError(f"save_animation writes .gif or .html, got {str(path)!r}.")
    film = animate_events(frames, sample=sample, fps=fps, title=title)
    from matplotlib.animation import HTMLWriter, PillowWriter

    with atomic_replace(place) as unfinished:
        if kind == ".gif":
            film.save(unfinished, writer=PillowWriter(fps=fps), dpi=dpi)  # type: ignore[arg-type]
        else:
            # the limit, in megabytes, would leave frames out
            writer = HTMLWriter(fps=fps, embed_frames=True, embed_limit=1e6)  # type: ignore[arg-type]
            film.save(unfinished, writer=writer, dpi=dpi)
            page = unfinished.read_text(encoding="utf-8")
            unfinished.write_text(_FONT.sub(lambda _: _BUTTONS, page), encoding="utf-8")


def _frames(frames: object, sample: int | None) -> Array:
    """One sample's frames, ``[T, C, H, W]``."""
    if not isinstance(frames, Tensor):
        raise TypeError(f"animate_events takes a tensor, got {type(frames).__name__}.")
    tensors("animate_events", frames)
    wanted = "[T, C, H, W]" if sample is None else "[T, B, C, H, W]"
    if frames.ndim != len(wanted.split(",")) or frames.shape[-3] not in (1, 2):
        way_out = " Of one recording without a batch say sample=None." * (frames.ndim == 4)
        raise ValueError(
            f"animate_events takes frames {wanted} with 1 or 2 channels, got {list(frames.shape)}."
            f"{way_out if sample is not None else ''}"
        )
    if sample is not None:
        frames = frames[:, index("animate_events: sample", sample, frames.shape[1])]
    images = array(frames)
    if not (images >= 0).all():
        raise ValueError("animate_events: frames must not be negative. Try .abs().")
    return images


def _colours(images: Array) -> Array:
    """``[T, C, H, W]`` to RGB on white, ``[T, H, W, 3]``."""
    names = (ON,) if images.shape[1] == 1 else (OFF, ON)
    shades = np.array([[int(name[at : at + 2], 16) / 255 for at in (1, 3, 5)] for name in names])
    share = images / (float(images.max()) or 1.0)
    # each channel takes from white what its colour lacks
    lacking = np.einsum("tchw,cr->thwr", share, 1.0 - shades)
    rgb: Array = np.clip(1.0 - lacking, 0.0, 1.0)
    return rgb
