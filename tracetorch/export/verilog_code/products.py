"""Write products as modules: for every event of the source a row of weights is added.

Where every value of the source has a weight for every value of the target, ``lanes`` weights are
added at a time; otherwise, in convolutions, one, each to a place of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetorch.export.c_code.stages import Product
from tracetorch.export.verilog_code.layer import (
    Layer,
    Ports,
    clocked,
    extended,
    follower,
    lane_bits,
    module,
    picked,
    scanner,
    word_address,
    write_one,
    write_words,
)
from tracetorch.export.verilog_code.loops import Follower, Loop, number
from tracetorch.export.verilog_code.memories import Store, Table, address_bits, table
from tracetorch.export.verilog_code.wires import Word, word_between


def is_row_product(stage: Product) -> bool:
    """Whether every value of the source adds a row of weights to the whole target."""
    one = stage.source.shape[1:] == (1, 1) and stage.weight.shape[2:] == (1, 1)
    return one and stage.groups == 1 and stage.target.whole and stage.padding == (0, 0)


def product_layer(name: str, stage: Product, source: Store, target: Store) -> Layer:
    """Return the module that adds a row of weights for every event of its source."""
    if is_row_product(stage):
        return _row_product(name, stage, source, target)
    return _place_product(name, stage, source, target)


@dataclass(frozen=True)
class _Weights:
    values: Tensor  # in the order in which events and loops read them
    lanes: int

    @property
    def word(self) -> Word:
        return word_between(int(self.values.min()), int(self.values.max()))

    @property
    def address(self) -> int:
        return address_bits(-(-len(self.values) // self.lanes))

    def table(self, name: str) -> Table:
        return table(f"{name}_weights", self.values, self.word.bits, self.lanes)

    def declarations(self, name: str) -> list[str]:
        """Return the lines that make ``weight``, one cycle after its ``pointer``."""
        constants = self.table(name)
        return [f"wire [{constants.width - 1}:0] weight;", constants.instance("pointer", "weight")]

    def contribution(self, lane: int, value: Word, bits: int) -> tuple[list[str], str]:
        """Return lines, and an expression of a width: what an event adds in a lane."""
        word, low = self.word, lane * self.word.bits
        name = f"weight_{lane}"
        lines = [f"wire [{word.bits - 1}:0] {name} = weight[{low + word.bits - 1}:{low}];"]
        spike = value == Word(1, signed=False)  # it adds its weight itself
        both = bits if spike else min(word.bits + value.bits + 1, bits)
        # sums are right modulo their width: what is wider is cut
        for each, of in {name: word, **({} if spike else {"event_value": value})}.items():
            if of.bits > both:
                rest = f"{each}[{of.bits - 1}:{both}]"
                lines.append(f"wire unused_{each}_{lane} = &{{1'b0, {rest}}};")
        if spike:
            return lines, extended(name, word, bits)
        lines += [
            f"wire signed [{both - 1}:0] factor_{lane} = {extended(name, word, both)};",
            f"wire signed [{both - 1}:0] times_{lane} = {extended('event_value', value, both)};",
            f"wire signed [{both - 1}:0] product_{lane} = factor_{lane} * times_{lane};",
        ]
        return lines, extended(f"product_{lane}", Word(both, signed=True), bits)


def _events(store: Store, name: str, latched: Mapping[str, int], weights: _Weights) -> list[str]:
    """Return the lines that take events from a scanner, and keep what the loop behind needs."""
    kept = {"event_value": store.word.bits, **latched}
    if store.word == Word(1, signed=False):
        kept.pop("event_value")
    given = "".join(f".event_{each}(new_{each}), " for each in latched)
    width = weights.address
    lines = [
        "reg active;",
        "reg running;",
        "reg commit;",
        *(f"reg [{bits - 1}:0] {each};" for each, bits in kept.items()),
        *(f"wire [{bits - 1}:0] new_{each};" for each, bits in latched.items()),
        *(f"reg [{width - 1}:0] pointer;", f"wire [{width - 1}:0] new_row;"),
        "wire scanning;",
        "wire valid;",
        f"wire [{store.word.bits - 1}:0] value;",
        f"{name} events (",
        "    .clk(clk), .reset(reset), .start(start), .busy(scanning), .valid(valid),",
        f"    .ready(!running), .value(value), {given}.event_row(new_row),"
        f"    .{store.name}_read({store.name}_read), .{store.name}_data({store.name}_data)",
        ");",
        "wire accept = valid && !running;",
        "assign done = active && !scanning && !running;",
    ]
    if "event_value" not in kept:
        lines.append("wire unused_value = &{1'b0, value};")
    return lines


def _taking(store: Store, latched: Mapping[str, int], weights: _Weights, loop: Loop) -> list[str]:
    """Return the registers' steps while events are taken, one after the other."""
    valued = store.word != Word(1, signed=False)
    return [
        "if (start) active <= 1'b1;",
        "if (done) active <= 1'b0;",
        "if (accept) begin",
        "    running <= 1'b1;",
        *(["    event_value <= value;"] * valued),
        "    pointer <= new_row;",
        *(f"    {each} <= new_{each};" for each in latched),
        "end",
        "if (running) begin",
        *(f"    {line}" for line in loop.advance()),
        f"    pointer <= pointer + {number(weights.address, 1)};",
        f"    if ({loop.ends()}) running <= 1'b0;",
        "end",
    ]


def _row_product(name: str, stage: Product, source: Store, target: Store) -> Layer:
    lanes, words = target.lanes, target.words
    rows = torch.zeros(stage.weight.shape[1], words * lanes)
    rows[:, : target.size] = stage.weight.flatten(1).t()
    weights = _Weights(rows.flatten().double(), lanes)
    row = Follower(weights.address, 0, (words, 0, 0))
    places = {"place": follower(source, stage.source), "row": row}
    over = Loop(stage.source.shape, places, ahead="place")
    text = scanner(f"{name}_events", source, over, ["row"], "ready")
    loop = Loop((words,), {"at": Follower(target.address, 0, (1,))})
    body = _events(source, f"{name}_events", {}, weights)
    body += [f"reg [{target.address - 1}:0] to;", *loop.declarations()]
    body += weights.declarations(name)
    bits = target.word.bits
    for lane in range(lanes):
        lines, added = weights.contribution(lane, source.word, bits)
        part = f"[{(lane + 1) * bits - 1}:{lane * bits}]"
        body += lines
        body.append(f"assign {target.name}_value{part} = {target.name}_data{part} + {added};")
    body += [
        f"assign {target.name}_read = at;",
        *write_words(target, "commit", "to"),
        *clocked(
            ["active <= 1'b0;", "running <= 1'b0;", "commit <= 1'b0;", *loop.reset()],
            ["commit <= running;", "to <= at;", *_taking(source, {}, weights, loop)],
        ),
    ]
    return _product(name, stage, source, target, text, body, weights, (over.count, loop.count))


def _place_product(name: str, stage: Product, source: Store, target: Store) -> Layer:
    """Return a product whose every weight goes to a place of its own, one in a cycle."""
    outputs, inputs, *kernel = stage.weight.shape
    groups, per_group = stage.groups, outputs // stage.groups
    # [groups, outputs, inputs, ...] in the order of events, then of the loop
    table = stage.weight.reshape(groups, per_group, inputs, *kernel).transpose(1, 2)
    weights = _Weights(table.flatten().double(), 1)
    block = per_group * math.prod(kernel)
    view, into = stage.source, stage.target
    strides = (inputs * view.strides[0], *view.strides)
    shape = (groups, inputs, *view.shape[1:])
    scan = {
        "place": Follower(source.place, view.offset, strides),
        "row": Follower(weights.address, 0, (inputs * block, block, 0, 0)),
    }
    latched = {}
    if groups > 1:
        scan["first"] = Follower(target.place, 0, (per_group * into.strides[0], 0, 0, 0))
        latched["first"] = target.place
    over = Loop(shape, scan, ahead="place")
    for dim in (2, 3):
        if shape[dim] > 1:
            latched[over.counter(dim)] = address_bits(shape[dim])
    given = ["row", *latched]
    text = scanner(f"{name}_events", source, over, given, "ready")
    outs = Follower(target.place, into.offset, (into.strides[0], 0, 0))
    loop = Loop((per_group, *kernel), {"out": outs}, prefix="k")
    body = _events(source, f"{name}_events", latched, weights)
    body += [f"reg [{target.place - 1}:0] to;", *loop.declarations()]
    body += weights.declarations(name)
    terms = ["out", *(["first"] * (groups > 1))]
    conditions = ["running"]
    for axis, hit in enumerate(("rows", "columns")):
        lines, fixed = _hits(hit, axis, stage, over, loop, target)
        body += lines
        if not fixed:
            terms.append(f"{hit}[{target.place - 1}:0]")
            conditions.append(f"{hit}[{target.place}]")
    lines, added = weights.contribution(0, source.word, target.word.bits)
    body += lines
    body += [
        f"wire [{target.place - 1}:0] at = {' + '.join(terms)};",
        f"assign {target.name}_read = {word_address(target, 'at')};",
    ]
    data = f"{target.name}_data"
    if target.shift:
        body.append(f"wire [{target.word.bits - 1}:0] sum = "
                    f"({picked(target, data, lane_bits(target, 'to'))});")  # fmt: skip
        data = "sum"
    body.append(f"wire [{target.word.bits - 1}:0] total = {data} + {added};")
    body += write_one(target, "commit", "to", "total")
    body += clocked(
        ["active <= 1'b0;", "running <= 1'b0;", "commit <= 1'b0;", *loop.reset()],
        [
            f"commit <= {' && '.join(conditions)};",
            "to <= at;",
            *_taking(source, latched, weights, loop),
        ],
    )
    return _product(name, stage, source, target, text, body, weights, (over.count, loop.count))


def _hits(
    name: str, axis: int, stage: Product, over: Loop, loop: Loop, target: Store
) -> tuple[list[str], bool]:
    """Return a table of where an event and a weight meet, of rows or columns; true: always."""
    size, kernel = stage.source.shape[1 + axis], stage.weight.shape[2 + axis]
    stride, padding, dilation = stage.stride[axis], stage.padding[axis], stage.dilation[axis]
    results, apart = stage.target.shape[1 + axis], stage.target.strides[1 + axis]
    if size == kernel == 1 and padding == 0:
        return [], True
    at, inner = over.counter(2 + axis), loop.counter(1 + axis)
    parts = [*([at] * (size > 1)), *([inner] * (kernel > 1))]
    width = address_bits(kernel) if kernel > 1 else 0
    bits = (address_bits(size) if size > 1 else 0) + width
    lines = [f"reg [{target.place}:0] {name};", "always @*"]
    missed = f"{name} = {number(target.place + 1, 0)};"
    if not parts:
        hit = 0 <= padding // stride < results and padding % stride == 0
        value = 2**target.place + padding // stride * apart
        return [*lines, f"    {name} = {number(target.place + 1, value if hit else 0)};"], False
    lines.append(f"    case ({{{', '.join(parts)}}})")
    for place in range(size):
        for k in range(kernel):
            result, rest = divmod(place + padding - k * dilation, stride)
            if rest == 0 and 0 <= result < results:
                value = number(target.place + 1, 2**target.place + result * apart)
                lines.append(f"        {number(bits, place << width | k)}: {name} = {value};")
    return [*lines, f"        default: {missed}", "    endcase"], False


def _product(
    name: str,
    stage: Product,
    source: Store,
    target: Store,
    scan: str,
    body: list[str],
    weights: _Weights,
    counts: tuple[int, int],
) -> Layer:
    places, each = counts
    ports = Ports((source, target), (target,))
    text = module(name, f"{stage.path}: weights of every event are added", ports.lines(), body)
    tables, scans = (weights.table(name),), {f"{name}_events": scan}
    return Layer(name, text, ports.reads, ports.writes, places + 2, source, each, tables, scans)
