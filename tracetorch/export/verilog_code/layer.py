"""``Layer``: a stage of a step as a module that walks over memories; what all such have in common.

Every module waits for ``start`` and answers with ``done``. In each cycle it gives the addresses of
a place, and in the next one, when their data have come, it writes what follows from them: so a loop
over ``n`` places takes ``n + 2`` cycles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tracetorch.export.c_code.files import comment
from tracetorch.export.c_code.stages import View
from tracetorch.export.verilog_code.loops import Follower, Loop, number
from tracetorch.export.verilog_code.memories import Store, Table
from tracetorch.export.verilog_code.wires import Word


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
    return f"{place}[{store.place - 1}:{store.shift}]" if store.shift else place


def lane_bits(store: Store, place: str) -> str:
    return f"{place}[{store.shift - 1}:0]"


def picked(store: Store, data: str, lane: str) -> str:
    bits = store.word.bits
    parts = [f"{data}[{(i + 1) * bits - 1}:{i * bits}]" for i in range(store.lanes)]
    tests = [f"{lane} == {number(store.shift, i)} ? {part} : " for i, part in enumerate(parts[:-1])]
    return f"{''.join(tests)}{parts[-1]}" if store.lanes > 1 else data


def written(store: Store, when: str, place: str, value: str) -> dict[str, str]:
    """Return what the write port of a memory is given for a value at a place."""
    lanes = [when]
    if store.lanes > 1:
        lane = lane_bits(store, place)
        lanes = [f"{when} && {lane} == {number(store.shift, i)}" for i in range(store.lanes)]
    return {
        "write": f"{{{', '.join(reversed(lanes))}}}",
        "to": word_address(store, place),
        "value": f"{{{store.lanes}{{{value}}}}}",
    }


def write_one(store: Store, when: str, place: str, value: str) -> list[str]:
    """Return the lines that write a value at a place."""
    ports = written(store, when, place, value).items()
    return [f"assign {store.name}_{port} = {text};" for port, text in ports]


def write_words(store: Store, when: str, to: str) -> list[str]:
    """Return the lines that write whole words, but for their values."""
    return [
        f"assign {store.name}_write = {{{store.lanes}{{{when}}}}};",
        f"assign {store.name}_to = {to};",
    ]


def read_one(store: Store, name: str) -> list[str]:
    """Return the lines that read the value at the place ``at``, of which ``lane`` is kept."""
    value = picked(store, f"{store.name}_data", "lane")
    return [
        f"assign {store.name}_read = {word_address(store, 'at')};",
        f"wire [{store.word.bits - 1}:0] {name} = {value};",
    ]


def follower(store: Store, view: View) -> Follower:
    """Return the place of a view's elements as a number that follows a loop over its shape."""
    return Follower(store.place, view.offset, view.strides)


def going(loop: Loop, when: str) -> list[str]:
    """Return the steps of the registers of a loop, from its start to its end."""
    return [
        "if (start) busy <= 1'b1;",
        f"if ({when}) begin",
        *(f"    {line}" for line in loop.advance()),
        f"    if ({loop.ends()}) busy <= 1'b0;",
        "end",
    ]


def walk(loop: Loop, commits: Mapping[str, tuple[int, str]]) -> list[str]:
    """Return a loop while ``busy``, and ``commit`` a cycle behind, from registers ``commits``."""
    lines = ["reg busy;", "reg commit;"]
    lines += [f"reg [{bits - 1}:0] {name};" for name, (bits, _) in commits.items()]
    lines += loop.declarations()
    steps = [f"{name} <= {value};" for name, (_, value) in commits.items()]
    lines += clocked(
        ["busy <= 1'b0;", "commit <= 1'b0;", *loop.reset()],
        ["commit <= busy;", *steps, *going(loop, "busy")],
    )
    lines.append("assign done = commit && !busy;")
    return lines


def in_order(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a shape whose values lie in a row."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def scanner(name: str, store: Store, loop: Loop, given: Sequence[str], more: str) -> str:
    """Return the module that offers the values of a memory that are not zero, in a loop's order.

    Followers ``given`` go out with an event; ``more`` is the condition to go on to the next place.
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
        *clocked(["busy <= 1'b0;", *loop.reset()], going(loop, "advance")),
    ]
    if store.shift:  # the lane alone is read where the word is not changed
        body.append("wire unused = &{1'b0, ahead[" + f"{store.shift - 1}:0]}};")
    return module(name, f"Events of {store.label}", ports, body)
