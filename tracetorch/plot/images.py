"""Draw images, and animate event frames or a raster with membranes, as a GIF or an HTML player."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.checks import check_count, check_positive, require
from tracetorch.core.files import atomic_replace
from tracetorch.core.html_page import check_title
from tracetorch.plot.axes import (
    COLOURS,
    MUTED,
    TimeScale,
    describe_plot,
    finished,
    get_axes,
    set_title,
)
from tracetorch.plot.raster import raster
from tracetorch.plot.recorded import Array, Recorded, check_index, check_recording, to_numpy
from tracetorch.plot.state_trace import Thresholds, state_trace

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes


@describe_plot
def render_image(
    tensor: Tensor,
    figsize: tuple[float, float] = (4, 4),
    title: str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw a grey or a colour image.

    Grey values are scaled from ``vmin``, black, to ``vmax``, white, with a colour bar. By default
    colours range from 0 to 1, or to 255 for ``uint8``; values beyond are clipped.

    Args:
        tensor: the image.
        figsize: size of the new figure in inches, if ``ax`` is left out.
        vmin: value of black; by default 0, for grey images the minimum.
        vmax: value of white; by default 1 or 255, for grey images the maximum.

    Shape:
        ``[H, W]``, ``[1, H, W]`` or ``[3, H, W]``.

    Example:
        >>> render_image(torch.rand(1, 28, 28)).images[0].get_array().shape
        (28, 28)
    """
    shape = tensor.shape
    if not (tensor.ndim == 2 or (tensor.ndim == 3 and shape[0] in (1, 3))) or not shape.numel():
        raise ValueError(
            f"render_image takes [H, W], [1, H, W] or [3, H, W], got {list(shape)}. Pick one image "
            "of a batch: x[0]."
        )
    coloured = tensor.ndim == 3 and shape[0] == 3
    image = to_numpy(tensor)
    darkest, brightest = float(image.min()), float(image.max())
    if coloured:
        darkest, brightest = 0.0, 255.0 if tensor.dtype == torch.uint8 else 1.0
    low, high = darkest if vmin is None else vmin, brightest if vmax is None else vmax
    if high < low:
        raise ValueError(f"render_image: vmax must not be less than vmin, got {low} and {high}.")

    ax = get_axes(ax, figsize)
    if coloured:
        # scaled here: imshow ignores vmin and vmax for colour images
        ax.imshow(np.clip((image.transpose(1, 2, 0) - low) / ((high - low) or 1.0), 0.0, 1.0))
    else:
        mappable = ax.imshow(image.reshape(shape[-2:]), cmap="gray", vmin=low, vmax=high)
        ax.figure.colorbar(mappable, ax=ax, fraction=0.046, pad=0.04)
    ax.set(xticks=[], yticks=[])
    return finished(ax, title)


ON, OFF = COLOURS[0], COLOURS[1]

# the HTML player of matplotlib is a part of a page
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
</head>
"""

# it loads its button symbols from the network; those of the style are Unicode
_FONT = re.compile(r'<link rel="stylesheet"\s+href="https?://[^"]*font-?awesome[^"]*">')
_BUTTONS = Path(__file__).parent / "player.css"


@describe_plot
def animate_events(
    frames: Tensor,
    *,
    sample: int | None = 0,
    fps: float = 20.0,
    title: str | None = None,
    ax: Axes | None = None,
) -> FuncAnimation:
    """Animate event frames, or the spikes of one or two channels of a convolutional layer.

    Of two channels the first (off events) is red and the second (on events) blue; a single channel
    is blue. The colour is the deeper the more events there are, up to the highest count. Save the
    result with ``save``, or show it with ``to_jshtml`` in a notebook.

    Args:
        frames: events counted per pixel, or other values that are not negative.
        sample: index in the batch; ``None`` for ``[T, C, H, W]`` without one.
        fps: frames per second.
        title: title of the axes, before the step.

    Shape:
        ``[T, B, C, H, W]`` with C of 1 or 2.

    Example:
        >>> film = animate_events(torch.rand(3, 1, 2, 8, 8))
        >>> film.to_jshtml().count("data:image/png;base64")
        3
    """
    # all frames at once: the colour scale is that of the whole recording
    images = _rgb_frames(frames, sample)
    fps = check_positive("animate_events: fps", fps)
    height, width = images.shape[1:3]

    ax = get_axes(ax, (3.2, 3.2 * height / width + 0.4))
    from matplotlib.animation import FuncAnimation

    image = ax.imshow(images[0], interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(True)

    def show(step: int) -> tuple[object, ...]:
        image.set_data(images[step])
        set_title(ax, f"{title + ': ' if title else ''}step {step}")
        return (image,)

    root: Any = ax.figure.figure  # the figure itself where ax is on a subfigure
    return FuncAnimation(root, show, frames=len(images), interval=1000 / fps)  # type: ignore[arg-type]


@describe_plot
def animate_run(
    spikes: Recorded,
    states: Recorded | None = None,
    *,
    neurons: int | Sequence[int] = 0,
    thresholds: Thresholds = (),
    sample: int | None = 0,
    limit: int | None = None,
    dt: float | None = None,
    stride: int = 1,
    fps: float = 20.0,
    title: str | None = None,
) -> FuncAnimation:
    """Animate a run: the raster of its spikes, and the membranes of some neurons below, over time.

    Both are drawn as :func:`raster` and :func:`state_trace` draw them, and appear step by step.
    Save the result with :func:`save_animation`, or show it with ``to_jshtml`` in a notebook.

    Args:
        spikes: outputs, or a dict of them by path, for the raster.
        states: states of one layer, a tensor or a dict by path; ``None``: a raster alone.
        neurons: indices of the neurons whose states are drawn.
        thresholds: as for :func:`state_trace`.
        limit: maximum number of neurons shown per layer of the raster.
        stride: steps from one frame to the next.
        fps: frames per second.
        title: title, before the time.

    Shape:
        ``[T, B, ...]`` each, of one T.

    Example:
        >>> film = animate_run((torch.rand(6, 1, 4) < 0.3).float(), torch.rand(6, 1, 4), stride=2)
        >>> film.to_jshtml().count("data:image/png;base64")
        3
    """
    stride = check_count("animate_run: stride", stride)
    fps = check_positive("animate_run: fps", fps)
    given = [spikes] if states is None else [spikes, states]
    steps, *others = (len(next(iter(check_recording("animate_run", r).values()))) for r in given)
    if others and others != [steps]:
        raise ValueError(
            f"animate_run: spikes have {steps} steps, states {others[0]}. Record both in one run."
        )
    time = TimeScale.of("animate_run", dt)
    require("matplotlib", extra="plot", by="tt.plot")
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(6.4, 2.8 if states is None else 4.6), layout="constrained")
    axes = [figure.add_subplot(1 if states is None else 2, 1, 1)]
    raster(spikes, sample=sample, limit=limit, dt=dt, ax=axes[0])
    if states is not None:
        axes.append(figure.add_subplot(2, 1, 2, sharex=axes[0]))
        options: Any = {"neurons": neurons, "thresholds": thresholds, "sample": sample, "dt": dt}
        state_trace(states, **options, ax=axes[1])
        axes[0].set_xlabel("")
    drawn = [(ax, [*ax.collections, *ax.lines]) for ax in axes]
    now = [ax.axvline(time.at(-0.5), color=MUTED, linewidth=0.8) for ax in axes]

    def show(frame: int) -> tuple[object, ...]:
        step = min((frame + 1) * stride, steps) - 1
        begin, end = time.at(-0.5), time.at(step + 0.5)
        for (ax, artists), line in zip(drawn, now, strict=True):
            low, high = sorted(ax.get_ylim())
            past = Rectangle((begin, low), end - begin, high - low, transform=ax.transData)
            for artist in artists:
                artist.set_clip_path(past)
            line.set_xdata([end, end])
        name = f"step {step}" if time.dt is None else f"{end:g} ms"
        set_title(axes[0], f"{title + ': ' if title else ''}{name}")
        return (*now,)

    return FuncAnimation(figure, show, frames=-(-steps // stride), interval=1000 / fps)  # type: ignore[arg-type]


def save_animation(
    frames: Tensor | FuncAnimation,
    path: str | Path,
    *,
    sample: int | None = 0,
    fps: float = 20.0,
    title: str | None = None,
    dpi: int = 80,
) -> None:
    """Save an animation as a GIF, or as one HTML page with a player.

    The page needs no network. An existing file is replaced only when all is written.

    Args:
        frames: what :func:`animate_run` or :func:`animate_events` returned; or a tensor for
            :func:`animate_events`.
        path: path that ends in ``.gif`` or ``.html``.
        sample: of a tensor, index in the batch; ``None`` for ``[T, C, H, W]`` without one.
        fps: frames per second.
        title: of the HTML page, else its file's name; of a tensor, above the frames, too.
        dpi: pixels per inch; event frames are about 3 inches wide.

    Shape:
        A tensor is ``[T, B, C, H, W]`` with C of 1 or 2.

    Raises:
        TypeError, ValueError: as :func:`animate_events`, or ``path`` has another suffix.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_animation(torch.rand(3, 1, 2, 8, 8), f"{folder}/events.gif")
        ...     Path(folder, "events.gif").read_bytes()[:6]
        b'GIF89a'
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (".gif", ".html"):
        raise ValueError(f"save_animation writes .gif or .html, got {str(path)!r}.")
    if title is not None:
        check_title("save_animation", title)
    require("matplotlib", extra="plot", by="tt.plot")
    from matplotlib.animation import Animation, HTMLWriter, PillowWriter

    film: Animation
    if isinstance(frames, Animation):
        film = frames
    else:
        film = animate_events(frames, sample=sample, fps=fps, title=title)
    with atomic_replace(target) as unfinished:
        if suffix == ".gif":
            film.save(unfinished, writer=PillowWriter(fps=fps), dpi=dpi)  # type: ignore[arg-type]
        else:
            # the default limit of 20 megabytes leaves frames out
            writer = HTMLWriter(fps=fps, embed_frames=True, embed_limit=1e6)  # type: ignore[arg-type]
            film.save(unfinished, writer=writer, dpi=dpi)
            style = f"<style>\n{_BUTTONS.read_text(encoding='utf-8')}</style>"
            player = _FONT.sub(lambda _: style, unfinished.read_text(encoding="utf-8"))
            head = _HEAD.format(title=html.escape(title or target.stem))
            unfinished.write_text(head + player, encoding="utf-8")


def _rgb_frames(frames: Tensor, sample: int | None) -> Array:
    """Map the counts of one sample to RGB on white, ``[T, H, W, 3]``."""
    check_recording("animate_events", frames)
    expected = "[T, C, H, W]" if sample is None else "[T, B, C, H, W]"
    if frames.ndim != len(expected.split(",")) or frames.shape[-3] not in (1, 2):
        hint = " For a recording without a batch pass sample=None." * (sample is not None)
        raise ValueError(
            f"animate_events takes frames {expected} with 1 or 2 channels, got "
            f"{list(frames.shape)}.{hint}"
        )
    if sample is not None:
        frames = frames[:, check_index("animate_events: sample", sample, frames.shape[1])]
    images = to_numpy(frames)
    if not (images >= 0).all():
        raise ValueError("animate_events: frames must not be negative. Try .abs().")
    names = (ON,) if images.shape[1] == 1 else (OFF, ON)
    colours = np.array([[int(name[at : at + 2], 16) / 255 for at in (1, 3, 5)] for name in names])
    intensity = images / (float(images.max()) or 1.0)
    # subtractive: a channel removes from white the part that its colour does not have
    absorbed = np.einsum("tchw,cr->thwr", intensity, 1.0 - colours)
    rgb: Array = np.clip(1.0 - absorbed, 0.0, 1.0)
    return rgb
