# mypy: ignore-errors
"""Kernels of products with events, for Numba: scan for events, sort lists of them, gather rows.

``tracetorch/events/compiled.py`` compiles this text. Nothing imports it, for Numba may be missing.

Each does the tasks from ``first`` up to ``last``, of ``per_task`` rows or columns. Events are the
values of a matrix that are not 0. ``starts[row]`` is where the list of a row begins in ``indices``,
the columns of its events, and in ``values``, which is read where ``weighted``: not all are 1.
Tables of floats have rows of ``width``, a multiple of 16.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BLOCKS = (128, 64, 32, 16)  # columns whose sums are in registers at once: the widest that fits


# Vector operations that plain loops do not become


def _vector(context, kind, lanes):
    return ir.VectorType(context.get_data_type(kind.dtype), lanes)


def _place(context, builder, kind, array, at, vector):
    """Return the address of a vector in an array, which need not be aligned to its size."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


def _differing(x, at, constant):
    """Return the type and the code of a function: which of 16 values differ from a constant."""

    def emit(context, builder, signature, arguments):
        vector = _vector(context, x, 16)
        values = builder.load(_place(context, builder, x, *arguments, vector))
        values.align = x.dtype.bitwidth // 8
        mask = builder.fcmp_unordered("!=", values, ir.Constant(vector, [constant] * 16))
        return builder.zext(builder.bitcast(mask, ir.IntType(16)), ir.IntType(64))

    return types.int64(x, at), emit


@intrinsic
def event_mask(typingctx, x, at):
    """Return 16 bits, one for each value from ``x[at]`` on that is an event; NaN is one."""
    return _differing(x, at, 0.0)


@intrinsic
def other_than_one(typingctx, x, at):
    """Return 16 bits, one for each value from ``x[at]`` on that is not 1."""
    return _differing(x, at, 1.0)


@intrinsic
def lowest_bit(typingctx, mask):
    """Return the place of the lowest bit of a mask that is not 0."""

    def emit(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(mask), emit


@intrinsic
def bit_count(typingctx, mask):
    """Return the number of bits in a mask."""

    def emit(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(mask), emit


@intrinsic
def gather(
    typingctx, out, at, start, start_at, table, origin,
    indices, values, weighted, first, last, width, left,
):  # fmt: skip
    """Sum rows of a table, and return how many columns were done: all that ``left`` has room for.

    ``out[at + j] = start[start_at + j] + sum(value * table[origin + index * width + j])`` over the
    events from ``first`` up to ``last``. The sums stay in registers.
    """
    lists = (indices, values, weighted, first, last)
    kinds = (out, at, start, start_at, table, origin, *lists, width, left)

    def emit(context, builder, signature, arguments):
        out_, at_, start_, start_at_, table_, origin_ = arguments[:6]
        indices_, values_, weighted_, first_, last_, width_, left_ = arguments[6:]
        size = out.dtype.bitwidth // 8
        word = ir.IntType(64)
        index_data = context.make_array(indices)(context, builder, indices_).data
        value_data = context.make_array(values)(context, builder, values_).data
        any_weight = builder.icmp_signed("!=", weighted_, ir.Constant(word, 0))

        def load(kind, array, place, vector):
            loaded = builder.load(_place(context, builder, kind, array, place, vector))
            loaded.align = size
            return loaded

        def block(lanes, scaled):
            vector = _vector(context, out, lanes)
            initial = load(start, start_, start_at_, vector)
            total = cgutils.alloca_once_value(builder, initial)
            one = ir.Constant(word, 1)
            with cgutils.for_range_slice(builder, first_, last_, one) as (event, _):
                index = builder.zext(builder.load(builder.gep(index_data, [event])), word)
                place = builder.add(builder.mul(index, width_), origin_)
                row = load(table, table_, place, vector)
                if scaled:
                    value = builder.load(builder.gep(value_data, [event]))
                    undefined = ir.Constant(vector, ir.Undefined)
                    front = ir.Constant(ir.IntType(32), 0)
                    single = builder.insert_element(undefined, value, front)
                    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                    row = builder.fmul(row, builder.shuffle_vector(single, undefined, everywhere))
                builder.store(builder.fadd(builder.load(total), row), total)
            address = _place(context, builder, out, out_, at_, vector)
            builder.store(builder.load(total), address).align = size

        done = cgutils.alloca_once_value(builder, ir.Constant(word, 0))
        for lanes in _BLOCKS:
            fits = builder.icmp_signed(">=", left_, ir.Constant(word, lanes))
            undone = builder.icmp_signed("==", builder.load(done), ir.Constant(word, 0))
            with builder.if_then(builder.and_(fits, undone)):
                with builder.if_else(any_weight) as (then, otherwise):
                    with then:
                        block(lanes, True)
                    with otherwise:
                        block(lanes, False)
                builder.store(ir.Constant(word, lanes), done)
        return builder.load(done)

    return types.int64(*kinds), emit


# Lists of events


def scan(first, last, per_task, rows, columns, x, masks, counts, weighted):
    """Mark the events of some rows, 16 values to a mask, and count them.

    ``weighted`` is set where a value is not 1: it is in a register here, and far away later.
    """
    per_row = (columns + 15) // 16
    others = 0
    for row in range(first * per_task, min(rows, last * per_task)):
        at, word, count = row * columns, row * per_row, 0
        for column in range(0, columns - 15, 16):
            mask = event_mask(x, at + column)
            masks[word] = mask
            word += 1
            count += bit_count(mask)
            others |= mask & other_than_one(x, at + column)
        if columns % 16:
            mask = 0
            for column in range(columns - columns % 16, columns):
                value = x[at + column]
                if value != 0:
                    mask |= 1 << column % 16
                    others |= value != 1
            masks[word] = mask
            count += bit_count(mask)
        counts[row] = count
    if others:
        weighted[0] = 1


def fill(first, last, per_task, rows, columns, x, masks, starts, indices, values, weighted):
    """Write the lists of some rows, with their values where ``weighted``."""
    per_row = (columns + 15) // 16
    for row in range(first * per_task, min(rows, last * per_task)):
        event = starts[row]
        for word in range(per_row):
            mask = types.int64(masks[row * per_row + word])
            while mask:
                column = word * 16 + lowest_bit(mask)
                mask &= mask - 1
                indices[event] = column
                if weighted:
                    values[event] = x[row * columns + column]
                event += 1


def sort(
    first, last, per_task, rows, columns, starts, indices, values, weighted, ends, sources, scales
):
    """Sort the events of some rows, a task of them at a time, by column.

    ``sources`` are then the rows of a column's events, ``scales`` their values, and
    ``ends[task * (columns + 1) + column]`` is where the list of a column ends.
    """
    for task in range(first, last):
        begin, end = task * per_task, min(rows, (task + 1) * per_task)
        base = task * (columns + 1)
        for column in range(columns + 1):
            ends[base + column] = 0
        for event in range(starts[begin], starts[end]):
            ends[base + indices[event] + 1] += 1
        place = starts[begin]
        for column in range(columns + 1):
            place += ends[base + column]
            ends[base + column] = place
        # an entry is where its list begins by now, and goes on to where it ends
        for row in range(begin, end):
            for event in range(starts[row], starts[row + 1]):
                entry = base + indices[event]
                place = ends[entry]
                ends[entry] = place + 1
                sources[place] = row
                if weighted:
                    scales[place] = values[event]


# A linear layer, and one with a delay for every weight
#
# With delays, the rows of the input are the steps of one sample after the other, ``reach`` more of
# them for each than there are outputs. An output is a sum over the window of its row and the
# ``reach`` rows behind it, each of which has a table of its own. Without, ``reach`` is 0.


def forward(
    first, last, per_task, rows, steps, reach, row_size,
    starts, indices, values, weighted, table, bias, width, out,
):  # fmt: skip
    """Write some rows of the output: the bias, and rows of the transposed weights.

    ``rows`` are those of the output, ``steps`` those of a sample. With delays an index counts the
    values of all rows before it too, ``row_size`` in each, so that a window is one list; and the
    output has its steps in front of its samples.
    """
    column = 0
    while column < width:  # the outer loop, so that the columns of the table stay in cache
        left, done = width - column, 16
        for row in range(first * per_task, min(rows, last * per_task)):
            begin, at = row, row
            if reach:
                sample = row // steps
                begin = row + sample * reach
                at = (row - sample * steps) * (rows // steps) + sample
            origin = column - begin * row_size * width
            lists = (indices, values, weighted, starts[begin], starts[begin + reach + 1])
            place = at * width + column
            done = gather(out, place, bias, column, table, origin, *lists, width, left)
        column += done


def backward(
    first, last, per_task, columns, chunks, per_chunk, reach,
    starts, ends, sources, scales, weighted, grads, width, out,
):  # fmt: skip
    """Add to some rows of the transposed weights' gradient: gradients of the output, by event.

    Chunk by chunk of rows, whose gradients stay in cache, and whose sums are rounded apart. With
    delays ``grads`` has ``reach`` rows of zeros before each sample, and behind the last; ``out`` is
    ``[reach + 1, columns, width]``.
    """
    for chunk in range(chunks):
        base, column = chunk * (columns + 1), 0
        while column < width:
            left, done = width - column, 16
            for late in range(reach + 1):
                origin = (reach - late) * width + column
                for row in range(first * per_task, min(columns, last * per_task)):
                    begin = ends[base + row - 1] if row else starts[chunk * per_chunk]
                    at, end = (late * columns + row) * width + column, ends[base + row]
                    if begin < end:
                        lists = (sources, scales, weighted, begin, end)
                        done = gather(out, at, out, at, grads, origin, *lists, width, left)
            column += done
