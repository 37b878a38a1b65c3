"""Kernels of convolutions with events, in LLVM IR, written as those of ``kernels.py`` are.

An image is ``[inputs, height, width]``; the list of a channel of an image, ``starts[image * inputs
+ channel]`` and on, holds the positions of its events. The output of an image is computed with its
channels last, in scratch that stays in cache, and then transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tracetorch.events.kernels import LANES, Gathers, Lists
from tracetorch.fuse.codegen.llvm_tasks import TaskWriter
from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Value, below

_SIDE = 16  # of what is transposed at once


@dataclass(frozen=True)
class _Sizes:
    """The integers that both kernels take, as ``tracetorch/events/conv.py`` orders them."""

    inputs: Value
    height: Value
    width: Value
    kernel_height: Value
    kernel_width: Value
    stride_y: Value
    stride_x: Value
    top: Value
    left: Value
    dilation_y: Value
    dilation_x: Value
    out_height: Value
    out_width: Value
    outputs: Value
    lanes: Value

    def together(self, k: TaskWriter) -> Value:
        """Return how many columns of the kernel are one list: all where they read neighbours."""
        return k.select(self.dilation_x.equals(1), self.kernel_width, 1)


def _square(
    k: TaskWriter, rows: Value, columns: Value, write: Callable[[Value, Value], None]
) -> None:
    """Run ``write`` for all rows and columns, in squares of which both sides stay in cache."""
    with k.loop(0, rows, step=_SIDE) as high, k.loop(0, columns, step=_SIDE) as wide:
        last_row = k.least(high.index + _SIDE, rows)
        last_column = k.least(wide.index + _SIDE, columns)
        with k.loop(high.index, last_row) as row, k.loop(wide.index, last_column) as column:
            write(row.index, column.index)


def conv_forward(k: TaskWriter, real: str) -> None:
    """Write an image's output: bias, and rows of ``table``, ``[kh, kw, in, lanes]``, by event."""
    size = _Sizes(*k.integers(15))
    weighted, starts = k.integer().differs(0), k.array(WORD)
    positions, values = k.array("i32"), k.array(real)
    table, bias, out = k.array(real), k.array(real), k.array(real)
    total, ends = k.scratch(real), k.scratch(WORD)
    lists = Lists(k.scratch("i32"), k.scratch(real), weighted)
    gathers = Gathers(k, real)
    _sort_by_position(k, size, starts.at(k.number * size.inputs), positions, values, ends, lists)
    together, zero = size.together(k), k.literal(0, WORD)
    with k.loop(0, size.out_height) as row, k.loop(0, size.out_width) as column:
        at = (row.index * size.out_width + column.index) * size.lanes
        low_y = row.index * size.stride_y - size.top
        low_x = column.index * size.stride_x - size.left
        with k.repeat(below(size.lanes), zero) as block:
            done = block.index
            gather, lanes = gathers.widest(size.lanes - done, lists, size.lanes)
            initial, sums = bias.at(done), total.at(at + done)
            # what the next events are added to: the bias, and then the sums so far
            with k.loop(0, size.kernel_height, initial.pointer) as ky:
                y = low_y + ky.index * size.dilation_y
                kernel_row = ky.index * size.kernel_width
                is_inside = (y >= 0) & (y < size.height)
                columns = k.select(is_inside, size.kernel_width, 0)
                line = ends.at(y * size.width)
                with k.repeat(below(columns), zero, *ky.carried) as kx:
                    x = low_x + kx.index * size.dilation_x
                    low = line[k.least(k.largest(x, 0), size.width)]
                    high = line[k.largest(k.least(x + together, size.width), 0)]
                    begun = kx.carried[1]
                    with k.when(low < high):
                        entry = (kernel_row + kx.index - x) * size.inputs
                        source = table.at(entry * size.lanes + done)
                        gather(sums, Array(begun, real), source, low, high)
                    added = k.select(low < high, sums.pointer, begun, "ptr")
                    kx.next = kx.index + together, added
                ky.next = (kx.carried[1],)
            with k.when(ky.carried[0].equals(initial.pointer)):
                gather(sums, initial, table, zero, zero)
            block.next = (done + lanes,)
    places = size.out_height * size.out_width
    image = out.at(k.number * size.outputs * places)

    def transpose(channel: Value, place: Value) -> None:
        image[channel * places + place] = total[place * size.lanes + channel]

    _square(k, size.outputs, places, transpose)


def _sort_by_position(
    k: TaskWriter,
    size: _Sizes,
    starts: Array,
    positions: Array,
    values: Array,
    ends: Array,
    lists: Lists,
) -> None:
    """Sort an image's events by position, as table rows; ``ends[p + 1]`` ends the list of p."""
    count = size.height * size.width
    begin, end = starts[0], starts[size.inputs]
    with k.loop(0, count + 2) as entry:
        ends[entry.index] = 0
    with k.loop(begin, end) as event:
        place = positions[event.index] + 2
        ends[place] = ends[place] + 1
    with k.loop(1, count + 1, k.literal(0, WORD)) as entry:
        total = entry.carried[0] + ends[entry.index]
        ends[entry.index] = total
        entry.next = (total,)
    # an entry is where its list begins by now, and goes on to where it ends
    with k.loop(0, size.inputs) as channel:
        first, last = starts[channel.index], starts[channel.index + 1]
        with k.loop(first, last) as event:
            position = positions[event.index]
            place = ends[position + 1]
            ends[position + 1] = place + 1
            lists.indices[place] = position % size.width * size.inputs + channel.index
            with k.when(lists.weighted):
                lists.values[place] = values[event.index]


def _pad_gradients(
    k: TaskWriter, size: _Sizes, incoming: Array, padded: Array, padded_width: Value
) -> None:
    """Put the gradients of an image at the places of the input that they belong to."""
    out_size = size.out_height * size.out_width
    reach_y = (size.kernel_height - 1) * size.dilation_y
    reach_x = (size.kernel_width - 1) * size.dilation_x
    with k.loop(0, size.out_height) as row:
        line = (row.index * size.stride_y + reach_y) * padded_width + reach_x
        source = incoming.at(row.index * size.out_width)

        def spread(channel: Value, column: Value) -> None:
            at = (line + column * size.stride_x) * size.lanes
            padded[at + channel] = source[channel * out_size + column]

        _square(k, size.outputs, size.out_width, spread)


def conv_backward(k: TaskWriter, real: str) -> None:
    """Sum the weight's gradient over the images of a task: gradients of the output, by event.

    ``out`` is ``[tasks, inputs, kernel_height, kernel_width, lanes]``, the kernel's columns in
    reverse. ``padded`` are the gradients of an image, channels last, at the places of the input
    that they belong to: with zeros around and, for a stride, between them.
    """
    per_task, images = k.integers(2)
    size = _Sizes(*k.integers(15))
    weighted = k.integer().differs(0)
    padded_height, padded_width = k.integers(2)
    starts, positions, values = k.array(WORD), k.array("i32"), k.array(real)
    grads, out = k.array(real), k.array(real)
    padded, indices = k.scratch(real), k.scratch("i32")
    gathers, zero = Gathers(k, real), k.literal(0, WORD)
    together = size.together(k)
    row_width = together * size.lanes  # of what is summed at once
    zeros = k.spread(k.literal(0.0, real), LANES)
    with k.loop(0, padded_height * padded_width * size.lanes, step=LANES) as entry:
        padded.store(entry.index, zeros)
    first = k.number * per_task
    with k.loop(first, k.least(first + per_task, images)) as image:
        incoming = grads.at(image.index * size.outputs * size.out_height * size.out_width)
        _pad_gradients(k, size, incoming, padded, padded_width)
        channels = starts.at(image.index * size.inputs)
        with k.loop(0, size.inputs) as channel:
            begin = channels[channel.index]
            count = channels[channel.index + 1] - begin
            with k.when(count.differs(0)):
                with k.loop(0, count) as event:
                    position = positions[begin + event.index]
                    y = position // size.width + size.top
                    indices[event.index] = y * padded_width + position % size.width + size.left
                factors = Lists(indices, values.at(begin), weighted)
                kernel = (k.number * size.inputs + channel.index) * size.kernel_height
                with k.loop(0, size.kernel_height) as ky:
                    late = size.kernel_height - 1 - ky.index
                    window = padded.at(late * size.dilation_y * padded_width * size.lanes)
                    sums = out.at((kernel + ky.index) * size.kernel_width * size.lanes)
                    with k.repeat(below(size.kernel_width), zero) as kx:
                        shifted = window.at(kx.index * size.dilation_x * size.lanes)
                        target = sums.at(kx.index * size.lanes)
                        with k.repeat(below(row_width), zero) as block:
                            done = block.index
                            gather, lanes = gathers.widest(row_width - done, factors, size.lanes)
                            entry_sums = target.at(done)
                            gather(entry_sums, entry_sums, shifted.at(done), zero, count)
                            block.next = (done + lanes,)
                        kx.next = (kx.index + together,)
