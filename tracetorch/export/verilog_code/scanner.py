"""Write the module that finds the events of a memory: its values that are not zero."""

from __future__ import annotations

from collections.abc import Sequence

from tracetorch.export.verilog_code.layer import clocked, lane_bits, module, picked, word_address
from tracetorch.export.verilog_code.loops import Loop, number
from tracetorch.export.verilog_code.memories import Store


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
