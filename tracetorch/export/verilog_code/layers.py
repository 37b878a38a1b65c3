"""Write the modules of neurons, copies, pools, sums, outputs, and of what makes ready again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tracetorch.export.c_code.stages import Copy, Pointwise, Pool, Sum, View
from tracetorch.export.verilog_code.layer import (
    Layer,
    Ports,
    clocked,
    extended,
    follower,
    going,
    in_order,
    lane_bits,
    module,
    read_one,
    scanner,
    walk,
    write_one,
    write_words,
)
from tracetorch.export.verilog_code.loops import Follower, Loop, number
from tracetorch.export.verilog_code.memories import Store, Table, address_bits, table


def pointwise_layer(
    name: str, stage: Pointwise, stores: Mapping[str, Store], step: str, ports: Mapping[str, str]
) -> Layer:
    """Return the module that computes a step for every place, ``lanes`` of them at a time."""
    lanes = next(iter(stores.values())).lanes
    views = {**stage.reads, **stage.writes}
    flat = all(view.whole for view in views.values())
    first = next(iter(stores.values()))
    sizes = (first.words,) if flat else stage.shape
    followers = {}
    for key, view in views.items():
        at = f"at_{stores[key].name}"
        one = Follower(stores[key].address, 0, (1,)) if flat else follower(stores[key], view)
        followers[at] = one
    loop = Loop(sizes, followers)
    writes = [stores[key] for key in stage.writes]
    commits = {f"to_{s.name}": (s.address, f"at_{s.name}") for s in writes}
    body = walk(loop, commits)
    reads = [stores[key] for key in stage.reads]
    body += [f"assign {s.name}_read = at_{s.name};" for s in reads]
    for s in writes:
        body += write_words(s, "commit", f"to_{s.name}")
    for lane in range(lanes):
        given = []
        for key in views:
            store = stores[key]
            end = "data" if key in stage.reads else "value"
            low = lane * store.word.bits
            part = f"[{low + store.word.bits - 1}:{low}]" if lanes > 1 else ""
            given.append(f".{ports[key]}({store.name}_{end}{part})")
        body += [f"{step} step_{lane} (", *(f"    {each}," for each in given[:-1])]
        body += [f"    {given[-1]}", ");"]
    known = Ports(tuple(reads), tuple(writes))
    text = module(name, f"{stage.path}: its step at every place", known.lines(), body)
    return Layer(name, text, known.reads, known.writes, loop.count + 2)


def copy_layer(name: str, stage: Copy, source: Store, target: Store) -> Layer:
    """Return the module that copies a view, word by word where both lie in order."""
    if stage.places is not None:
        return _gathering(name, stage, stage.places.values, source, target)
    followers = {"at": follower(source, stage.source), "into": follower(target, stage.target)}
    loop = Loop(stage.target.shape, followers)
    commits = {"to": (target.place, "into")}
    if source.shift:
        commits["lane"] = (source.shift, lane_bits(source, "at"))
    body = [*walk(loop, commits), *_copied(source, target)]
    ports = Ports((source,), (target,))
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
        *_copied(source, target),
        *clocked(
            ["busy <= 1'b0;", "told <= 1'b0;", "commit <= 1'b0;", *loop.reset()],
            [
                *("told <= busy;", "commit <= told;", "soon <= into;", "to <= soon;"),
                *([f"lane <= {lane_bits(source, 'at')};"] if source.shift else []),
                *going(loop, "busy"),
            ],
        ),
        "assign done = commit && !told;",
    ]
    ports = Ports((source,), (target,))
    text = module(name, f"{stage.path}: values of chosen places", ports.lines(), body)
    return Layer(name, text, ports.reads, ports.writes, loop.count + 3, tables=(places,))


def _copied(source: Store, target: Store) -> list[str]:
    """Return the lines that write what is read."""
    bits = target.word.bits
    return [
        *read_one(source, "value"),
        f"wire [{bits - 1}:0] same = {extended('value', source.word, bits)};",
        *write_one(target, "commit", "to", "same"),
    ]


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
        *read_one(source, "found"),
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


def output_layer(name: str, store: Store, view: View) -> Layer:
    """Return the module that offers the values of an output that are not zero, by address."""
    place = follower(store, view)
    bits = address_bits(view.size)
    order = View(view.array, view.shape, in_order(view.shape))
    loop = Loop(
        view.shape, {"place": place, "number": Follower(bits, 0, order.strides)}, ahead="place"
    )
    scan = scanner(f"{name}_events", store, loop, ["number"], "(ready || !valid)")
    ports = Ports(
        (store,),
        (),
        (
            *("output wire valid", "input wire ready"),
            f"output wire [{bits - 1}:0] address",
            f"output wire [{store.word.bits - 1}:0] value",
        ),
    )
    body = [
        "reg active;",
        "wire busy;",
        f"{name}_events events (",
        "    .clk(clk), .reset(reset), .start(start), .busy(busy), .valid(valid), .ready(ready),",
        "    .value(value), .event_number(address),",
        f"    .{store.name}_read({store.name}_read), .{store.name}_data({store.name}_data)",
        ");",
        "assign done = active && !busy;",
        *clocked(["active <= 1'b0;"], ["if (start) active <= 1'b1;", "if (done) active <= 1'b0;"]),
    ]
    text = module(name, f"Output {store.label}", ports.lines(), body)
    return Layer(name, text, (store,), (), loop.count + 2, parts={f"{name}_events": scan})


def clear_layer(
    name: str, often: Mapping[Store, Tensor | None], once: Mapping[Store, Tensor | None]
) -> Layer:
    """Return the module that sets memories, ``often`` after each step, ``once`` after a reset."""
    stores = {**often, **once}
    most = max((store.words for store in stores), default=1)
    bits = address_bits(most)
    loop = Loop((most,), {"at": Follower(bits, 0, (1,))})
    body = walk(loop, {"to": (bits, "at")})
    tables: list[Table] = []
    for store, values in stores.items():
        size = store.address
        when = "commit" if store in often else "commit && all"
        if store.words < most:
            when += f" && to < {number(bits, store.words)}"
        to = "to" if size == bits else f"to[{size - 1}:0]"
        value = number(store.width, 0)
        if values is not None:
            value = f"start_{store.name}"
            tables.append(table(f"{name}_{store.name}", values, store.word.bits, store.lanes))
            at = "at" if size == bits else f"at[{size - 1}:0]"
            body += [f"wire [{store.width - 1}:0] {value};", tables[-1].instance(at, value)]
        body += [*write_words(store, when, to), f"assign {store.name}_value = {value};"]
    more = ("input wire all",)
    if not once:
        body.append("wire unused = &{1'b0, all};")
    ports = Ports((), tuple(stores), more)
    text = module(
        name, "Sums and inputs to zero, after a reset the states too", ports.lines(), body
    )
    return Layer(name, text, (), tuple(stores), loop.count + 2, tables=tuple(tables))
