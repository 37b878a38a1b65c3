"""``Layer``: a stage of a step as a module that walks over memories, and the modules of all stages.

Every module waits for ``start`` and answers with ``done``. In each cycle it gives the addresses of
a place, and in the next one, when their data have come, it writes what follows from them: so a loop
over ``n`` places takes ``n + 2`` cycles. Products walk over the events of their source instead,
those of its values that are not zero, and add a row of weights for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tracetorch.export.c_code.files import comment
from tracetorch.export.c_code.stages import Copy, Pointwise, Pool, Product, Sum, View
from tracetorch.export.verilog_code.loops import Follower, Loop, number
from tracetorch.export.verilog_code.memories import Store, Table, address_bits, table
from tracetorch.export.verilog_code.words import Word, word_between


@dataclass(frozen=True)
class Layer:
    """Module of a stage, and what it costs."""

    name: str
    text: str
    reads: tuple[Store, ...]
    writes: tuple[Store, ...]
    cycles: int  # of a step, from its start to its end
    source: Store | None = None  # whose events it adds
    event_cycles: int = 0  # for each of them
    tables: tuple[Table, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)  # other modules, by name


@dataclass(frozen=True)
class Ports:
    """Ports of a layer: clock and control, a read and a write port for each memory."""

    reads: tuple[Store, ...]
    writes: tuple[Store, ...]
    more: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the declarations."""
        lines = ["input wire clk", "input wire reset", "input wire start", "output wire done"]
        for each in self.reads:
            lines.append(f"output wire [{each.address - 1}:0] {each.name}_read")
            lines.append(f"input wire [{each.width - 1}:0] {each.name}_data")
        for each in self.writes:
            lines.append(f"output wire [{each.lanes - 1}:0] {each.name}_write")
            lines.append(f"output wire [{each.address - 1}:0] {each.name}_to")
            lines.append(f"output wire [{each.width - 1}:0] {each.name}_value")
        return [*lines, *self.more]


def module(name: str, what: str, ports: Sequence[str], body: Sequence[str]) -> str:
    """Return the text of a module."""
    lines = [f"// {comment(what)}", f"module {name} ("]
    lines += [f"    {port}," for port in ports[:-1]] + [f"    {ports[-1]}", ");"]
    return "\n".join([*lines, *(f"    {line}" if line else "" for line in body), "endmodule", ""])


def clocked(reset: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Return a block of registers: what ``reset`` sets, and what happens otherwise."""
    first = [f"        {line}" for line in reset]
    rest = [f"        {line}" for line in lines]
    return ["always @(posedge clk)", "    if (reset) begin", *first, "    end else begin", *rest,
            "    end"]  # fmt: skip


def extended(name: str, word: Word, bits: int) -> str:
    """Return a wire or register with as many bits as wanted, by its sign or by zeros.

    Example:
        >>> extended("w", Word(4, signed=True), 6), extended("v", Word(1, signed=False), 2)
        ('{{2{w[3]}}, w}', "{1'd0, v}")
    """
    more = bits - word.bits
    if more < 0:
        return f"{name}[{bits - 1}:0]"
    if more == 0:
        return name
    return f"{{{{{more}{{{name}[{word.bits - 1}]}}}}, {name}}}" if word.signed else (
        f"{{{number(more, 0)}, {name}}}"
    )  # fmt: skip


def word_address(store: Store, place: str) -> str:
    """Return the address of the word that holds a place."""
    return f"{place}[{store.place - 1}:{store.shift}]" if store.shift else place


def lane_bits(store: Store, place: str) -> str:
    """Return the lane of a place."""
    return f"{place}[{store.shift - 1}:0]"


def picked(store: Store, data: str, lane: str) -> str:
    """Return the value in a lane of a word."""
    bits = store.word.bits
    parts = [f"{data}[{(i + 1) * bits - 1}:{i * bits}]" for i in range(store.lanes)]
    tests = [f"{lane} == {number(store.shift, i)} ? {part} : " for i, part in enumerate(parts[:-1])]
    return f"{''.join(tests)}{parts[-1]}" if store.lanes > 1 else data


def write_one(store: Store, when: str, place: str, value: str) -> list[str]:
    """Return the lines that write a value at a place."""
    lanes = [when]
    if store.lanes > 1:
        lane = lane_bits(store, place)
        lanes = [f"{when} && {lane} == {number(store.shift, i)}" for i in range(store.lanes)]
    return [
        f"assign {store.name}_write = {{{', '.join(reversed(lanes))}}};",
        f"assign {store.name}_to = {word_address(store, place)};",
        f"assign {store.name}_value = {{{store.lanes}{{{value}}}}};",
    ]


def follower(store: Store, view: View) -> Follower:
    """Return the place of a view's elements as a number that follows a loop over its shape."""
    return Follower(store.place, view.offset, view.strides)


def _walk(
    loop: Loop, commits: Mapping[str, tuple[int, str]], reset: Sequence[str] = ()
) -> list[str]:
    """Return the lines of a walk: a loop while ``busy``, and ``commit`` one cycle behind.

    ``commits`` are registers that keep, for the cycle behind, what the loop has now.
    """
    lines = ["reg busy;", "reg commit;"]
    lines += [f"reg [{bits - 1}:0] {name};" for name, (bits, _) in commits.items()]
    lines += loop.declarations()
    steps = [f"{name} <= {value};" for name, (_, value) in commits.items()]
    advance = loop.advance()
    lines += clocked(
        ["busy <= 1'b0;", "commit <= 1'b0;", *loop.reset(), *reset],
        [
            "commit <= busy;",
            *steps,
            "if (start) busy <= 1'b1;",
            "if (busy) begin",
            *(f"    {line}" for line in advance),
            f"    if ({loop.ends()}) busy <= 1'b0;",
            "end",
        ],
    )
    lines.append("assign done = commit && !busy;")
    return lines


# Neurons, and whatever is computed place by place


def pointwise_layer(
    name: str, stage: Pointwise, stores: Mapping[str, Store], step: str, ports: Mapping[str, str]
) -> Layer:
    """Return the module that computes a step for every place, ``lanes`` of them at a time.

    Args:
        name: of the module.
        stage: whose views lie in order where memories have several lanes.
        stores: memory of each read and of each write of the stage, by its name.
        step: name of the module of the step.
        ports: of that, by the names of the stage.
    """
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
    body = _walk(loop, commits)
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


# Events, and products


def scanner(name: str, store: Store, loop: Loop, given: Sequence[str], more: str) -> str:
    """Return the module that walks over the values of a memory, and offers those that are not zero.

    Args:
        name: of the module.
        store: the memory.
        loop: over its places, with ``place`` among its followers.
        given: those followers that go out with an event.
        more: the condition, in terms of ``ready`` and ``valid``, to go on to the next place.
    """
    bits = {**{n: f.bits for n, f in loop.followers.items()}}
    bits |= {n: width for n, (width, _) in loop.registers.items()}
    ports = [
        *("input wire clk", "input wire reset", "input wire start", "output reg busy"),
        *("output wire valid", "input wire ready"),
        f"output wire [{store.word.bits - 1}:0] value",
        *(f"output wire [{bits[each] - 1}:0] event_{each}" for each in given),
        f"output wire [{store.address - 1}:0] {store.name}_read",
        f"input wire [{store.width - 1}:0] {store.name}_data",
    ]
    body = [
        *loop.declarations(),
        f"wire advance = busy && {more};",
        f"wire [{store.place - 1}:0] ahead = advance ? place_next : place;",
        f"assign {store.name}_read = {word_address(store, 'ahead')};",
        f"assign value = {picked(store, f'{store.name}_data', lane_bits(store, 'place'))};",
        f"assign valid = busy && value != {number(store.word.bits, 0)};",
        *(f"assign event_{each} = {each};" for each in given),
        *clocked(
            ["busy <= 1'b0;", *loop.reset()],
            [
                "if (start) busy <= 1'b1;",
                "if (advance) begin",
                *(f"    {line}" for line in loop.advance()),
                f"    if ({loop.ends()}) busy <= 1'b0;",
                "end",
            ],
        ),
    ]
    if store.shift:  # the lane alone is read where the word is not changed
        body.append("wire unused = &{1'b0, ahead[" + f"{store.shift - 1}:0]}};")
    return module(name, f"Events of {store.label}", ports, body)


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
    """Weights as a table, or as one number."""

    values: Tensor  # in the order in which events and loops read them
    lanes: int

    @property
    def word(self) -> Word:
        return word_between(int(self.values.min()), int(self.values.max()))

    @property
    def uniform(self) -> bool:
        return self.lanes == 1 and bool((self.values == self.values[0]).all())

    @property
    def words(self) -> int:
        return -(-len(self.values) // self.lanes)

    def table(self, name: str) -> Table | None:
        """Return the table of the weights, if they are not one number."""
        if self.uniform:
            return None
        return table(f"{name}_weights", self.values, self.word.bits, self.lanes)

    def declarations(self, name: str) -> list[str]:
        """Return the lines that make ``weight``, one cycle after its ``pointer``."""
        bits, constants = self.lanes * self.word.bits, self.table(name)
        if constants is None:
            return [f"wire [{bits - 1}:0] weight = {number(bits, int(self.values[0]))};"]
        return [f"wire [{bits - 1}:0] weight;", constants.instance("pointer", "weight")]

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
    pointers = not weights.uniform
    width = address_bits(weights.words)
    lines = [
        "reg active;",
        "reg running;",
        "reg commit;",
        *(f"reg [{bits - 1}:0] {each};" for each, bits in kept.items()),
        *(f"wire [{bits - 1}:0] new_{each};" for each, bits in latched.items()),
        *([f"reg [{width - 1}:0] pointer;", f"wire [{width - 1}:0] new_row;"] * pointers),
        "wire scanning;",
        "wire valid;",
        f"wire [{store.word.bits - 1}:0] value;",
        f"{name} events (",
        "    .clk(clk), .reset(reset), .start(start), .busy(scanning), .valid(valid),",
        f"    .ready(!running), .value(value), {given}" + ".event_row(new_row), " * pointers,
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
    pointed = not weights.uniform
    return [
        "if (start) active <= 1'b1;",
        "if (done) active <= 1'b0;",
        "if (accept) begin",
        "    running <= 1'b1;",
        *(["    event_value <= value;"] * valued),
        *(["    pointer <= new_row;"] * pointed),
        *(f"    {each} <= new_{each};" for each in latched),
        "end",
        "if (running) begin",
        *(f"    {line}" for line in loop.advance()),
        *([f"    pointer <= pointer + {number(address_bits(weights.words), 1)};"] * pointed),
        f"    if ({loop.ends()}) running <= 1'b0;",
        "end",
    ]


def _row_product(name: str, stage: Product, source: Store, target: Store) -> Layer:
    lanes, words = target.lanes, target.words
    rows = torch.zeros(stage.weight.shape[1], words * lanes)
    rows[:, : target.size] = stage.weight.flatten(1).t()
    weights = _Weights(rows.flatten().double(), lanes)
    scan = {"place": follower(source, stage.source)}
    if not weights.uniform:
        scan["row"] = Follower(address_bits(weights.words), 0, (words, 0, 0))
    over = Loop(stage.source.shape, scan, ahead="place")
    given = [each for each in scan if each != "place"]
    text = scanner(f"{name}_events", source, over, given, "ready")
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
        f"assign {target.name}_to = to;",
        f"assign {target.name}_write = {{{lanes}{{commit}}}};",
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
    scan = {"place": Follower(source.place, view.offset, strides)}
    if not weights.uniform:
        scan["row"] = Follower(address_bits(weights.words), 0, (inputs * block, block, 0, 0))
    latched = {}
    if groups > 1:
        scan["first"] = Follower(target.place, 0, (per_group * into.strides[0], 0, 0, 0))
        latched["first"] = target.place
    over = Loop(shape, scan, ahead="place")
    for dim in (2, 3):
        if shape[dim] > 1:
            latched[over.counter(dim)] = address_bits(shape[dim])
    given = [*(each for each in scan if each not in ("place", "first")), *latched]
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
    """Return a table of where in the target an event and a weight meet, of rows or of columns.

    It is a bit that says whether they do, and the part of the place. Where there is one row of
    each, they always meet: the second result is true.
    """
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
    constants = weights.table(name)
    tables = () if constants is None else (constants,)
    scans = {f"{name}_events": scan}
    return Layer(name, text, ports.reads, ports.writes, places + 2, source, each, tables, scans)


# Copies, pools and sums


def copy_layer(name: str, stage: Copy, source: Store, target: Store) -> Layer:
    """Return the module that copies a view, word by word where both lie in order."""
    ports = Ports((source,), (target,))
    if stage.places is None and stage.source.whole and stage.target.whole:
        followers = {"at": Follower(source.address, 0, (1,))}
        loop = Loop((source.words,), followers)
        body = _walk(loop, {"to": (target.address, "at")})
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
    followers = {
        "at": follower(source, stage.source),
        "into": follower(target, stage.target),
    }
    loop = Loop(stage.target.shape, followers)
    commits = {"to": (target.place, "into")}
    if source.shift:
        commits["lane"] = (source.shift, lane_bits(source, "at"))
    body = _walk(loop, commits)
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
    followers = {"number": Follower(bits, 0, _in_order(stage.target.shape))}
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


def reduce_layer(name: str, stage: Pool | Sum, source: Store, target: Store) -> Layer:
    """Return the module that takes the sum or the largest value of parts of a view."""
    inside: dict[str, tuple[Follower, int]] = {}
    if isinstance(stage, Sum):
        kept = len(stage.source.shape) - stage.dims
        sizes, maximum = stage.source.shape, False
        from_ = follower(source, stage.source)
        into = (*stage.target.strides, *[0] * stage.dims)
    else:
        kept, maximum = 3, stage.maximum
        sizes = (*stage.target.shape, *stage.kernel)
        view, strides = stage.source, [stage.source.strides[0], 0, 0, 0, 0]
        offset = view.offset
        for axis in (0, 1):
            apart, before = view.strides[1 + axis], stage.padding[axis]
            steps = [0] * 5
            steps[1 + axis], steps[3 + axis] = stage.stride[axis], stage.dilation[axis]
            strides[1 + axis] = steps[1 + axis] * apart
            strides[3 + axis] = steps[3 + axis] * apart
            offset -= before * apart
            reach = sum((n - 1) * s for n, s in zip(sizes, steps, strict=True))
            size = view.shape[1 + axis]
            if before or reach >= size:
                bits = max(reach + 1, size + before).bit_length() + 1
                inside["rows" if axis == 0 else "columns"] = (
                    Follower(bits, -before, tuple(steps)),
                    size,
                )
        from_ = Follower(source.place, offset, tuple(strides))
        into = (*stage.target.strides, 0, 0)
    followers = {
        "at": from_,
        "into": Follower(target.place, stage.target.offset, into),
        **{n: each for n, (each, _) in inside.items()},
    }
    loop = Loop(sizes, followers)
    # as a number without sign a place before the first one is a large one
    met = [f"{n} < {number(f.bits, size)}" for n, (f, size) in inside.items()]
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
    body += _walk(loop, commits)
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


# What goes out, and what begins anew


def output_layer(name: str, store: Store, view: View) -> Layer:
    """Return the module that offers the values of an output that are not zero, by address."""
    place = follower(store, view)
    bits = address_bits(view.size)
    order = View(view.array, view.shape, _in_order(view.shape))
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


def _in_order(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def clear_layer(
    name: str, often: Mapping[Store, Tensor | None], once: Mapping[Store, Tensor | None]
) -> Layer:
    """Return the module that sets memories to what they start from.

    Args:
        name: of the module.
        often: what is set after every step, and to what; ``None`` is zero.
        once: what is set after a reset alone.
    """
    stores = {**often, **once}
    most = max((store.words for store in stores), default=1)
    bits = address_bits(most)
    loop = Loop((most,), {"at": Follower(bits, 0, (1,))})
    body = _walk(loop, {"to": (bits, "at")})
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
            body += [
                f"wire [{store.width - 1}:0] {value};",
                tables[-1].instance(at, value),
            ]
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
