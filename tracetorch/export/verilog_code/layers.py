"""Write the modules of neurons, of outputs, and of what makes ready for the next step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tracetorch.export.c_code.stages import Pointwise, View
from tracetorch.export.verilog_code.layer import (
    Layer,
    Ports,
    clocked,
    follower,
    in_order,
    module,
    scanner,
    walk,
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
        body.append(f"assign {s.name}_write = {{{lanes}{{commit}}}};")
        body.append(f"assign {s.name}_to = to_{s.name};")
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
        body += [
            f"assign {store.name}_write = {{{store.lanes}{{{when}}}}};",
            f"assign {store.name}_to = {to};",
            f"assign {store.name}_value = {value};",
        ]
    more = ("input wire all",)
    if not once:
        body.append("wire unused = &{1'b0, all};")
    ports = Ports((), tuple(stores), more)
    text = module(
        name, "Sums and inputs to zero, after a reset the states too", ports.lines(), body
    )
    return Layer(name, text, (), tuple(stores), loop.count + 2, tables=tuple(tables))
