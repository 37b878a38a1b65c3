"""Write a model as a page on which one draws its input, and sees what it does: ``page``."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_module
from tracetorch.core.files import atomic_replace
from tracetorch.core.html_page import check_title, html_page, json_element
from tracetorch.core.torch_private import one_trace_at_a_time, pytree
from tracetorch.core.walk import named_modules
from tracetorch.export.c_code.arrangement import event_arrays, living, planned
from tracetorch.export.c_code.javascript import encoded, javascript_step, javascript_words
from tracetorch.export.c_code.recorded import holds_spikes, read_step
from tracetorch.export.c_code.source import names_of
from tracetorch.export.program import named_leaves
from tracetorch.snn.neuron import has_step

TEMPLATES = Path(__file__).parent / "drawing"


def page(
    model: nn.Module,
    path: str | os.PathLike[str],
    samples: Tensor | Mapping[str, Tensor],
    *,
    steps: int,
    classes: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    decode: Literal["mean", "last", "max"] = "mean",
    title: str = "Draw a digit",
) -> None:
    """Write a classifier of images as one self-contained HTML page: draw, and see its spikes.

    The page has a square to draw in, by mouse, touch or keys, and a button for each sample. It
    scales and centres what is drawn as the samples are, gives it to the network as the same current
    at every step, and shows the spikes of every layer, and what the network reads out for each
    class. No server, no network, no WebAssembly: the step is printed in JavaScript, by the printer
    of :func:`tt.export.c`.

    All is computed in float32. Neurons are bit for bit those of PyTorch, functions such as ``exp``
    and ``torch.lerp`` but for the last place; products begin with their bias and add in ascending
    order of the input: the sums of PyTorch to rounding, and bit for bit where sums are exact.

    Args:
        model: any module whose call is one time step that takes images and returns a number for
            each class, in eval mode, made of what :func:`tt.export.c` writes in float32: linear
            layers, convolutions, pooling, batch norm, neurons with a pointwise step, and so on. It
            is unchanged afterwards.
        path: path of the file; an existing one is replaced only when all is written.
        samples: images from the data, in a batch, or one by one by the names of their buttons.
            Their shape is that of the model's input, and their strokes are the model of the pen.
        steps: time steps T for which an image is shown, 1 or more.
        classes: names of the classes; ``"0"``, ``"1"``, ... by default.
        size: height and width of an image, where samples are flat; a square by default.
        decode: what classifies: the ``"mean"`` of the outputs over time (default), the ``"last"``
            one, or the ``"max"`` of each.
        title: title of the page.

    Shape:
        ``samples`` ``[N, 1, H, W]``, ``[N, H, W]`` or ``[N, H * W]``, without ``N`` in a mapping;
        the model returns ``[B, classes]``.

    Raises:
        ValueError: as :func:`tt.export.c`; JavaScript lacks an operation; a layer of neurons is
            called several times in a step; the samples are no images, are of a shape that the model
            does not take, are constant, or are not finite; the classes are not as many as outputs.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), LIF(20), nn.Linear(20, 3))
        >>> images = torch.zeros(2, 1, 8, 8)
        >>> images[0, 0, 1:7, 3:5] = images[1, 0, 3:5, 1:7] = 1.0
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page(net, f"{folder}/lines.html", images, steps=10, classes=["I", "-", "?"])
        ...     print(Path(folder, "lines.html").read_text()[:15])
        <!doctype html>
    """
    check_module(model)
    check_title("tt.export.page", title)
    steps = check_count("steps", steps)
    if decode not in get_args(Literal["mean", "last", "max"]):
        raise ValueError(f"decode must be 'mean', 'last' or 'max', got {decode!r}.")
    named = _named_samples(samples)
    images = torch.stack(list(named.values())).detach().cpu()
    height, width = _size_of(images, size)
    pen = measured_pen(images.reshape(-1, height, width))
    try:
        network, source, outputs = _network(model, images)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__} has no page: {error}") from error
    except RuntimeError as error:  # of shapes: whoever tells why raises a ValueError
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"the model takes no images of shape {list(images.shape[1:])} ({reason}): give "
            "[N, 1, H, W], [N, H, W] or [N, H * W], as it takes them."
        ) from error
    names = list(map(str, range(outputs) if classes is None else classes))
    if len(names) != outputs:
        raise ValueError(f"classes must name the model's {outputs} outputs, got {names}.")
    data = {
        "title": title,
        "height": height,
        "width": width,
        "steps": steps,
        "decode": decode,
        "classes": names,
        "samples": [{"name": name, "image": encoded(image)} for name, image in named.items()],
        "pen": pen,
        **network,
    }
    script = f'<script>\n"use strict";\nconst stages = {source};\n</script>'
    text = html_page(TEMPLATES, title, f"{json_element('network', data)}\n{script}")
    with atomic_replace(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _named_samples(samples: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(samples, Tensor):
        named = {str(i + 1): image for i, image in enumerate(samples)}
    else:
        named = dict(samples)
    for name, image in named.items():
        if image.dtype is not torch.float32 or not bool(image.isfinite().all()):
            wrong = image[~image.isfinite()].flatten().tolist()[:1]
            raise ValueError(
                f"the sample {name!r} must hold finite numbers of float32, got {image.dtype} "
                f"{wrong or ''}. Convert it as the data: image.float() / 255, say."
            )
    return named


def _size_of(images: Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
    shape = tuple(images.shape[1:])
    found = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if len(shape) == 1:
        found = size or (math.isqrt(shape[0]),) * 2
    if len(found) != 2 or found[0] * found[1] != images[0].numel() or size not in (None, found):
        raise ValueError(
            "samples must be grey images [N, 1, H, W], [N, H, W], or flat ones [N, H * W] of a "
            f"square or with size=(H, W), got shape {list(images.shape)} and size={size!r}."
        )
    return found[0], found[1]


@one_trace_at_a_time
def _network(model: nn.Module, images: Tensor) -> tuple[dict[str, Any], str, int]:
    """Return what the page knows of a network, its step in JavaScript, and how many classes."""
    layers = {path or "the model": each for path, each in named_modules(model) if has_step(each)}
    step = read_step(model, images[:1], layers)
    if step.program.double:
        raise ValueError("it computes in float64, and the page in float32. Give model.float().")
    # the shape of every output but the states, by the name that it has as an array
    nodes = {node.name: node.meta.get("val") for node in step.exported.graph.nodes}
    ends = list(step.exported.graph_signature.user_outputs)
    outputs, _ = pytree.tree_unflatten(ends, step.exported.call_spec.out_spec)
    shapes = {label: tuple(nodes[name].shape) for label, name in named_leaves("y", outputs)}
    shape = shapes.get("y_0", ())
    if len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
        found = [list(each) for name, each in shapes.items() if name.startswith("y_0")]
        raise ValueError(
            f"its output must be [B, classes], of two at least, got {found} for B = 1."
        )
    program = planned(living(step.program))
    given = list(program.inputs.values())
    events = event_arrays(program, given if holds_spikes(images) else [])
    names = names_of(program, javascript_words())
    source, arrays = javascript_step(program, names, events)
    # in the order in which they were called
    shown = [
        {
            "name": label.removeprefix("y_1_"),
            "kind": type(layers[label.removeprefix("y_1_")]).__name__,
            "output": names.fields[array],
            "size": array.size,
            "shape": list(shapes[label][1:]),
            "spikes": array in events,
        }
        for label, array in program.outputs.items()
        if label != "y_0"
    ]
    parts = {
        "input": names.fields[given[0]],
        "output": names.fields[program.outputs["y_0"]],
        **arrays,
    }
    return {"layers": shown, "program": parts}, source, shape[1]


_MARKED = 0.25  # from this share of the ink on a pixel belongs to the drawing


def measured_pen(images: Tensor) -> dict[str, float | list[float]]:
    """Return how a drawing becomes an image like others: their medians, in pixels.

    ``background`` is the median of the border, ``ink`` the extreme that is farthest from it.
    ``extent`` is the longer side of the box around a drawing, ``centre`` the place ``[x, y]`` of
    its centre of mass, and ``width`` that of its strokes: a stroke's area is its width times its
    length, and its sides are twice as long as it.

    Example:
        >>> images = torch.zeros(1, 28, 28)
        >>> images[0, 4:24, 12:15] = 1.0
        >>> pen = measured_pen(images)
        >>> pen["background"], pen["ink"], pen["extent"], pen["centre"], round(pen["width"], 1)
        (0.0, 1.0, 20.0, [13.5, 14.0], 2.6)
    """
    sides = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    background = torch.cat([side.flatten() for side in sides]).median()
    ends = torch.stack([images.min(), images.max()])
    ink = ends[(ends - background).abs().argmax()]
    if bool(ink == background):
        raise ValueError(f"all values of the samples are {float(ink):g}: nothing is drawn on them.")
    found: list[list[float]] = []
    for marks in ((images.double() - background) / (ink - background)).clamp(0, 1):
        mass = marks.sum()
        rows, columns = (torch.nonzero((marks > _MARKED).any(dim))[:, 0] for dim in (1, 0))
        if not len(rows):
            continue
        extent = max(int(each[-1] - each[0]) + 1 for each in (rows, columns))
        y, x = (
            float((marks.sum(dim) * (torch.arange(marks.shape[1 - dim]) + 0.5)).sum() / mass)
            for dim in (1, 0)
        )
        padded = torch.nn.functional.pad(marks, (1, 1, 1, 1))
        down, across = padded.diff(dim=0)[:, :-1], padded.diff(dim=1)[:-1]
        edge = torch.hypot(down, across).sum()
        found.append([extent, x, y, float(2 * mass / edge)])
    extent, x, y, width = torch.tensor(found, dtype=torch.float64).median(0).values.tolist()
    return {
        "background": float(background),
        "ink": float(ink),
        "extent": extent,
        "centre": [x, y],
        "width": max(width, 1.0),
    }
