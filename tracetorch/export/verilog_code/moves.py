"""Write copies, pools and sums as modules, which take one value in a cycle."""

from __future__ import annotations

from torch import Tensor

from tracetorch.export.c_code.stages import Copy, Pool, Sum
from tracetorch.export.verilog_code.layer import (
    Layer,
    Ports,
    clocked,
    extended,
    follower,
    in_order,
    lane_bits,
    module,
    picked,
    walk,
    word_address,
    write_one,
)
from tracetorch.export.verilog_code.loops import Follower, Loop, number
from tracetorch.export.verilog_code.memories import Store, address_bits, table


def copy_layer(name: str, stage: Copy, source: Store, target: Store) -> Layer:
    """Return the module that copies a view, word by word where both lie in order."""
    ports = Ports((source,), (target,))
    if stage.places is None and stage.source.whole and stage.target.whole:
        followers = {"at": Follower(source.address, 0, (1,))}
        loop = Loop((source.words,), followers)
        body = walk(loop, {"to": (target.address, "at")})
        body += [
            f"assign {source.name}_read = at;",
            f"assign {target.name}_write = {{{target.lanes}{{commit}}}};",
            f"assign {target.name}_to = to;",
        ]
        for lane in range(target.lanes):
            value = _lane(source, lane)
            body.append(f"wire [{source.word.bits - 1}:0] value_{lane} = {value};")
            low, bits = lane * target.word.bits, target.word.bits
            same = extended(f"value_{lane}", source.word, bits)
            body.append(f"assign {target.name}_value[{low + bits - 1}:{low}] = {same};")
        text = module(name, f"{stage.path}: a copy", ports.lines(), body)
        return Layer(name, text, ports.reads, ports.writes, loop.count + 2)
    if stage.places is not None:
        return _gathering(name, stage, stage.places.values, source, target)
    followers = {"at": follower(source, stage.source), "into": follower(target, stage.target)}
    loop = Loop(stage.target.shape, followers)
    commits = {"to": (target.place, "into")}
    if source.shift:
        commits["lane"] = (source.shift, lane_bits(source, "at"))
    body = walk(loop, commits)
    body += [
        f"assign {source.name}_read = {word_address(source, 'at')};",
        f"wire [{source.word.bits - 1}:0] value = {picked(source, f'{source.name}_data', 'lane')};",
        f"wire [{target.word.bits - 1}:0] same = "
        f"{extended('value', source.word, target.word.bits)};",
        *write_one(target, "commit", "to", "same"),
    ]
    text = module(name, f"{stage.path}: a copy", ports.lines(), body)
    return Layer(name, text, ports.reads, ports.writes, loop.count + 2)


def _gathering(name: str, stage: Copy, chosen: Tensor, source: Store, target: Store) -> Layer:
    """Return a copy from places that a table tells, which comes one cycle before its value."""
    count = stage.target.size
    bits = address_bits(count)
    places = table(f"{name}_places", chosen, source.place)
    followers = {"number": Follower(bits, 0, in_order(stage.target.shape))}
    followers["into"] = follower(target, stage.target)
    loop = Loop(stage.target.shape, followers)
    body = [
        *("reg busy;", "reg told;", "reg commit;"),
        *(f"reg [{target.place - 1}:0] {each};" for each in ("soon", "to")),
        f"wire [{source.place - 1}:0] at;",
        *([f"reg [{source.shift - 1}:0] lane;"] if source.shift else []),
        *loop.declarations(),
        places.instance("number", "at"),
        f"assign {source.name}_read = {word_address(source, 'at')};",
        f"wire [{source.word.bits - 1}:0] value = {picked(source, f'{source.name}_data', 'lane')};",
        f"wire [{target.word.bits - 1}:0] same = "
        f"{extended('value', source.word, target.word.bits)};",
        *write_one(target, "commit", "to", "same"),
        *clocked(
            ["busy <= 1'b0;", "told <= 1'b0;", "commit <= 1'b0;", *loop.reset()],
            [
                *("told <= busy;", "commit <= told;", "soon <= into;", "to <= soon;"),
                *([f"lane <= {lane_bits(source, 'at')};"] if source.shift else []),
                "if (start) busy <= 1'b1;",
                "if (busy) begin",
                *(f"    {line}" for line in loop.advance()),
                f"    if ({loop.ends()}) busy <= 1'b0;",
                "end",
            ],
        ),
        "assign done = commit && !told;",
    ]
    ports = Ports((source,), (target,))
    text = module(name, f"{stage.path}: values of chosen places", ports.lines(), body)
    return Layer(name, text, ports.reads, ports.writes, loop.count + 3, tables=(places,))


def _lane(store: Store, lane: int) -> str:
    bits = store.word.bits
    return f"{store.name}_data[{(lane + 1) * bits - 1}:{lane * bits}]"


def _parts(stage: Sum, source: Store, target: Store) -> tuple[Loop, int, dict[str, int]]:
    """Return a loop over what is summed, and how many of its dimensions are kept."""
    into = (*stage.target.strides, *[0] * stage.dims)
    followers = {
        "at": follower(source, stage.source),
        "into": Follower(target.place, stage.target.offset, into),
    }
    kept = len(stage.source.shape) - stage.dims
    return Loop(stage.source.shape, followers), kept, {}


def _windows(stage: Pool, source: Store, target: Store) -> tuple[Loop, int, dict[str, int]]:
    """Return a loop over windows, the dimensions kept, and rows and columns that are no padding."""
    sizes, view = (*stage.target.shape, *stage.kernel), stage.source
    strides, offset = [view.strides[0], 0, 0, 0, 0], view.offset
    into = Follower(target.place, stage.target.offset, (*stage.target.strides, 0, 0))
    followers, inside = {"into": into}, dict[str, int]()
    for axis, name in enumerate(("rows", "columns")):
        apart, before, size = view.strides[1 + axis], stage.padding[axis], view.shape[1 + axis]
        steps = [0] * 5
        steps[1 + axis], steps[3 + axis] = stage.stride[axis], stage.dilation[axis]
        strides[1 + axis], strides[3 + axis] = steps[1 + axis] * apart, steps[3 + axis] * apart
        offset -= before * apart
        reach = sum((n - 1) * s for n, s in zip(sizes, steps, strict=True))
        if before or reach >= size:
            bits = max(reach + 1, size + before).bit_length() + 1
            followers[name], inside[name] = Follower(bits, -before, tuple(steps)), size
    followers["at"] = Follower(source.place, offset, tuple(strides))
    return Loop(sizes, followers), 3, inside


def reduce_layer(name: str, stage: Pool | Sum, source: Store, target: Store) -> Layer:
    """Return the module that takes the sum or the largest value of parts of a view."""
    if isinstance(stage, Pool):
        loop, kept, inside = _windows(stage, source, target)
    else:
        loop, kept, inside = _parts(stage, source, target)
    maximum = isinstance(stage, Pool) and stage.maximum
    # as a number without sign a place before the first one is a large one
    met = [f"{n} < {number(loop.followers[n].bits, size)}" for n, size in inside.items()]
    commits = {
        "to": (target.place, "into"),
        "first": (1, loop.begins(kept)),
        "finish": (1, loop.ends(kept)),
        "met": (1, " && ".join(met) or "1'b1"),
    }
    if source.shift:
        commits["lane"] = (source.shift, lane_bits(source, "at"))
    bits, signed = target.word.bits, "signed " * target.word.signed
    body = [f"reg {signed}[{bits - 1}:0] total;", "reg empty;"]
    body += walk(loop, commits)
    step = "value > total ? value : total" if maximum else "total + value"
    body += [
        f"assign {source.name}_read = {word_address(source, 'at')};",
        f"wire [{source.word.bits - 1}:0] found = {picked(source, f'{source.name}_data', 'lane')};",
        f"wire {signed}[{bits - 1}:0] value = {extended('found', source.word, bits)};",
        "wire none = first || empty;",
        f"wire {signed}[{bits - 1}:0] more = none ? value : {step};",
        f"wire {signed}[{bits - 1}:0] next = met ? more : first ? {number(bits, 0)} : total;",
        "always @(posedge clk) if (commit) begin",
        "    total <= next;",
        "    empty <= none && !met;",
        "end",
        *write_one(target, "commit && finish", "to", "next"),
    ]
    ports = Ports((source,), (target,))
    what = "the largest values" if maximum else "sums"
    text = module(name, f"{stage.path}: {what}", ports.lines(), body)
    return Layer(name, text, ports.reads, ports.writes, loop.count + 2)
