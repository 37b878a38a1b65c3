"""``Store``: an array of a step as a memory in a circuit, of words with a value for every lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetorch.export.verilog_code.wires import Word

MEMORY = """\
// Words with a value for every lane; what is read comes one cycle after its address.
module tt_memory #(
    parameter WORDS = 1, parameter ADDRESS = 1, parameter BITS = 1, parameter LANES = 1
) (
    input wire clk,
    input wire [ADDRESS-1:0] read,
    output reg [LANES*BITS-1:0] data,
    input wire [LANES-1:0] write,
    input wire [ADDRESS-1:0] to,
    input wire [LANES*BITS-1:0] value
);
    reg [LANES*BITS-1:0] words [0:WORDS-1];
    integer lane;
    always @(posedge clk) begin
        data <= words[read];
        for (lane = 0; lane < LANES; lane = lane + 1)
            if (write[lane]) words[to][lane*BITS +: BITS] <= value[lane*BITS +: BITS];
    end
endmodule
"""
_TABLE = """\
// Constants from a file; what is read comes one cycle after its address.
module {name} (
    input wire clk,
    input wire [{address}:0] read,
    output reg [{bits}:0] data
);
    reg [{bits}:0] words [0:{last}];
    initial $readmemh("{name}.hex", words);
    always @(posedge clk) data <= words[read];
endmodule
"""


def address_bits(count: int) -> int:
    """Return the width of the address of one of ``count`` things.

    Example:
        >>> address_bits(1), address_bits(2), address_bits(5)
        (1, 1, 3)
    """
    return max(1, (count - 1).bit_length())


@dataclass(frozen=True, eq=False)
class Store:
    """Memory of an array, of which every word holds ``lanes`` values in a row."""

    name: str  # in the circuit
    label: str  # for people
    size: int  # values
    word: Word  # of each
    lanes: int

    @property
    def words(self) -> int:
        return -(-self.size // self.lanes)

    @property
    def bits(self) -> int:
        return self.words * self.width

    @property
    def width(self) -> int:
        return self.lanes * self.word.bits

    @property
    def address(self) -> int:
        return address_bits(self.words)

    @property
    def shift(self) -> int:
        return self.lanes.bit_length() - 1

    @property
    def place(self) -> int:
        """Bits of the place of a value: address of its word, and lane."""
        return self.address + self.shift


def hex_words(values: Sequence[int] | Tensor, bits: int, lanes: int) -> str:
    """Return numbers as lines of hexadecimal words, the first lane lowest, for ``$readmemh``.

    Example:
        >>> hex_words([1, -1, 2], bits=4, lanes=2).split()
        ['f1', '02']
    """
    numbers = [int(n) & (2**bits - 1) for n in torch.as_tensor(values).flatten().tolist()]
    numbers += [0] * (-len(numbers) % lanes)
    digits = -(-bits * lanes // 4)
    lines = []
    for first in range(0, len(numbers), lanes):
        whole = sum(n << bits * lane for lane, n in enumerate(numbers[first : first + lanes]))
        lines.append(f"{whole:0{digits}x}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Table:
    """Constants of a circuit: a module that reads them, and the file that holds them."""

    name: str  # of the module; the file is ``name.hex``
    words: int
    width: int
    text: str  # of the file

    @property
    def address(self) -> int:
        return address_bits(self.words)

    @property
    def bits(self) -> int:
        return self.words * self.width

    @property
    def module(self) -> str:
        last, bits, address = self.words - 1, self.width - 1, self.address - 1
        return _TABLE.format(name=self.name, last=last, bits=bits, address=address)

    def instance(self, read: str, data: str) -> str:
        return f"{self.name} read_{self.name} (.clk(clk), .read({read}), .data({data}));"


def table(name: str, values: Sequence[int] | Tensor, bits: int, lanes: int = 1) -> Table:
    """Return numbers as a table, with ``lanes`` of them in a word."""
    words = -(-len(values) // lanes)
    return Table(name, words, bits * lanes, hex_words(values, bits, lanes))
