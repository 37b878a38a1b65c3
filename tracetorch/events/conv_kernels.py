# mypy: ignore-errors
# ruff: noqa: F821
"""Kernels of convolutions with events, for Numba; their text follows that of ``kernels.py``.

An image is ``[inputs, height, width]``; the list of a channel of an image, ``starts[image * inputs
+ channel]`` and on, holds the positions of its events. The output of an image is computed with its
channels last, in scratch that stays in cache, and then transposed.
"""


def conv_forward(
    first, last,
    inputs, height, width, kernel_height, kernel_width, stride_y, stride_x, top, left,
    dilation_y, dilation_x, out_height, out_width, outputs, lanes,
    weighted, starts, positions, values, table, bias, out,
    total, ends, indices, scales,
):  # fmt: skip
    """Write the output of some images: the bias, and rows of the table by event.

    ``table`` is the weight as ``[kernel_height, kernel_width, inputs, lanes]``.
    """
    size, out_size = height * width, out_height * out_width
    # neighbours of a row are one list where the kernel reads neighbours
    together = kernel_width if dilation_x == 1 else 1
    for image in range(first, last):
        # lists by position, each entry the row of the table for a kernel at column 0
        for position in range(size + 1):
            ends[position] = 0
        begin, end = starts[image * inputs], starts[(image + 1) * inputs]
        for event in range(begin, end):
            ends[positions[event] + 1] += 1
        for position in range(size):
            ends[position + 1] += ends[position]
        for channel in range(inputs):
            row = image * inputs + channel
            for event in range(starts[row], starts[row + 1]):
                position = positions[event]
                place = ends[position]
                ends[position] = place + 1
                indices[place] = position % width * inputs + channel
                if weighted:
                    scales[place] = values[event]
        factors = scales[: weighted * (end - begin)]
        # an entry of ``ends`` is by now where its list ends
        for row in range(out_height):
            for column in range(out_width):
                at = (row * out_width + column) * lanes
                done = 0
                while done < lanes:
                    block = 0
                    begun = False
                    for ky in range(kernel_height):
                        y = row * stride_y - top + ky * dilation_y
                        if y < 0 or y >= height:
                            continue
                        for kx in range(0, kernel_width, together):
                            x = column * stride_x - left + kx * dilation_x
                            x_first, x_last = max(x, 0), min(x + together, width)
                            if x_first >= x_last:
                                continue
                            before = y * width + x_first
                            low = ends[before - 1] if before else 0
                            high = ends[y * width + x_last - 1]
                            if low == high:
                                continue
                            origin = ((ky * kernel_width + kx - x) * inputs) * lanes + done
                            if begun:
                                block = gather(
                                    *(total, at + done, total, at + done, table, origin, indices),
                                    *(factors, weighted, low, high, lanes, lanes - done),
                                )
                            else:
                                block = gather(
                                    *(total, at + done, bias, done, table, origin, indices),
                                    *(factors, weighted, low, high, lanes, lanes - done),
                                )
                                begun = True
                    if not begun:
                        block = gather(
                            *(total, at + done, bias, done, table, 0, indices),
                            *(factors, weighted, 0, 0, lanes, lanes - done),
                        )
                    done += block
        # transposed in squares, of which both sides stay in cache
        for channels in range(0, outputs, 16):
            last_channel = min(channels + 16, outputs)
            for places in range(0, out_size, 16):
                last_place = min(places + 16, out_size)
                for channel in range(channels, last_channel):
                    at = (image * outputs + channel) * out_size
                    for place in range(places, last_place):
                        out[at + place] = total[place * lanes + channel]


def conv_backward(
    first, last, per_task, images,
    inputs, height, width, kernel_height, kernel_width, stride_y, stride_x, top, left,
    dilation_y, dilation_x, out_height, out_width, outputs, lanes,
    weighted, padded_height, padded_width, starts, positions, values, grads, out,
    padded, indices,
):  # fmt: skip
    """Sum the weight's gradient over the images of a task: gradients of the output, by event.

    ``out`` is ``[tasks, inputs, kernel_height, kernel_width, lanes]``, the kernel's columns in
    reverse. ``padded`` are the gradients of an image, channels last, at the places of the input
    that they belong to: with zeros around and, for a stride, between them.
    """
    out_size = out_height * out_width
    reach_y, reach_x = (kernel_height - 1) * dilation_y, (kernel_width - 1) * dilation_x
    together = kernel_width if dilation_x == 1 else 1
    for task in range(first, last):
        for at in range(padded_height * padded_width * lanes):
            padded[at] = 0
        for image in range(task * per_task, min(images, (task + 1) * per_task)):
            for channels in range(0, outputs, 16):
                last_channel = min(channels + 16, outputs)
                for row in range(out_height):
                    line = (row * stride_y + reach_y) * padded_width + reach_x
                    for places in range(0, out_width, 16):
                        last_place = min(places + 16, out_width)
                        for column in range(places, last_place):
                            at = (line + column * stride_x) * lanes
                            source = image * outputs * out_size + row * out_width + column
                            for channel in range(channels, last_channel):
                                padded[at + channel] = grads[source + channel * out_size]
            for channel in range(inputs):
                begin = starts[image * inputs + channel]
                count = starts[image * inputs + channel + 1] - begin
                if not count:
                    continue
                for event in range(count):
                    position = positions[begin + event]
                    y, x = position // width + top, position % width + left
                    indices[event] = y * padded_width + x
                factors = values[begin * weighted : (begin + count) * weighted]
                for ky in range(kernel_height):
                    for kx in range(0, kernel_width, together):
                        entry = ((task * inputs + channel) * kernel_height + ky) * kernel_width + kx
                        origin = (
                            (kernel_height - 1 - ky) * dilation_y * padded_width + kx * dilation_x
                        ) * lanes
                        done = 0
                        while done < together * lanes:
                            at = entry * lanes + done
                            done += gather(
                                *(out, at, out, at, padded, origin + done, indices),
                                *(factors, weighted, 0, count, lanes, together * lanes - done),
                            )
