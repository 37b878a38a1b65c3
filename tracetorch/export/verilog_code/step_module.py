"""``step_module``: print the circuit of a step as a combinational module of Verilog-2005.

In Verilog one unsigned operand makes a whole expression unsigned, and the width of an expression
depends on what surrounds it. So nothing is left to these rules here: every operand is extended to
the width of the result explicitly, by its sign or by zeros, and every wire has one operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from tracetorch.export.verilog_code.circuit import Circuit
from tracetorch.export.verilog_code.wires import Wire, Word, word_between


def step_module(name: str, circuit: Circuit) -> str:
    return f"module {name} (\n{step_text(circuit)}endmodule\n"


def step_text(circuit: Circuit) -> str:
    """Return the text of a module behind its name: equal steps have equal texts."""
    return _Printer(circuit).text()


class _Printer:
    """Print the wires of a circuit; which bits nothing reads is found on the way."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.names: dict[int, str] = {}
        self.words: dict[int, Word] = {}
        self.used: dict[int, int] = {}  # bit by bit

    def text(self) -> str:
        circuit, ports = self.circuit, self.circuit.port_names
        heads = [_port("input", word, ports[name]) for name, word in circuit.reads.items()]
        heads += [_port("output", word, ports[name]) for name, word in circuit.writes.items()]
        unread = [ports[name] for name in circuit.reads if name not in circuit.inputs]
        body: list[str] = []
        for wire in circuit.wires:
            if wire.op == "const":
                continue
            self.used[wire.number] = 0
            if wire.op == "read":
                self.names[wire.number] = ports[wire.name]
                self.words[wire.number] = circuit.reads[wire.name]
                continue
            self.names[wire.number], self.words[wire.number] = f"n{wire.number}", wire.word
            kind = declared(wire.word)
            if wire.op == "mul":
                body += self.factors(wire)
            body.append(
                f"  wire {kind}n{wire.number} = {self.expression(wire)};"
                f" // {wire.low} .. {wire.high}"
            )
        for name, word in circuit.writes.items():
            body.append(f"  assign {ports[name]} = {self.extended(circuit.ends[name], word.bits)};")
        unread += [part for number in self.names for part in self.left(number)]
        if unread:
            body.append(f"  wire unused = &{{1'b0, {', '.join(unread)}}};")
        return ",\n".join(f"  {head}" for head in heads) + "\n);\n" + "\n".join(body) + "\n"

    def left(self, number: int) -> list[str]:
        """Return the bits of a wire that nothing reads."""
        name, bits = self.names[number], self.words[number].bits
        if not self.used[number]:
            return [name]
        free = "".join("01"[self.used[number] >> bit & 1] for bit in range(bits))
        runs = [(m.start(), m.end() - 1) for m in re.finditer("0+", free)]
        return [f"{name}[{high}:{low}]" if high > low else f"{name}[{low}]" for low, high in runs]

    # Operands

    def extended(self, wire: Wire, bits: int) -> str:
        """Return a wire in exactly so many bits, modulo ``2^bits``."""
        return self.part(wire, 0, bits)

    def part(self, wire: Wire, low: int, bits: int) -> str:
        """Return bits of a wire in two's complement, from ``low`` on."""
        if wire.op == "const":
            return _literal(wire.k >> low, bits)
        word = self.words[wire.number]
        name, top = self.names[wire.number], word.bits - 1
        last = min(low + bits - 1, top)
        more = low + bits - 1 - max(last, low - 1)  # bits above those that it has
        sign = name if top == 0 else f"{name}[{top}]"
        parts = []
        if more and word.signed:
            self._use(wire, top, top)
            parts.append(sign if more == 1 else f"{{{more}{{{sign}}}}}")
        elif more:
            parts.append(_literal(0, more))
        if low <= last:
            self._use(wire, low, last)
            whole = low == 0 and last == top
            select = f"[{last}]" if low == last else f"[{last}:{low}]"
            parts.append(name if whole else name + select)
        return parts[0] if len(parts) == 1 else f"{{{', '.join(parts)}}}"

    def _use(self, wire: Wire, low: int, high: int) -> None:
        self.used[wire.number] |= (1 << (high + 1)) - (1 << low)

    # Operations

    def expression(self, wire: Wire) -> str:
        """Return the operation of a wire, in as many bits as it has."""
        bits, args, k = wire.word.bits, wire.args, wire.k
        if wire.op == "add" and args[0].op == "shl" and args[1].low >= 0:
            k = args[0].k  # nothing is carried where the bits of both lie apart
            if args[1].high < 1 << k and bits > k:
                inner = args[0].args[0]
                return f"{{{self.extended(inner, bits - k)}, {self.extended(args[1], k)}}}"
        if wire.op in _SYMBOLS:
            if wire.op == "sub" and args[0].op == "const" and args[0].k == -1:
                return f"~{_bracketed(self.extended(args[1], bits))}"
            one, other = (self.extended(arg, bits) for arg in args)
            return f"{one} {_SYMBOLS[wire.op]} {other}"
        if wire.op == "mul":
            return f"n{wire.number}_x * n{wire.number}_y"
        return _PRINTED[wire.op](self, bits, args, k)

    def factors(self, wire: Wire) -> list[str]:
        """Return both factors of a product, as wide as it: signed to be small."""
        bits = wire.word.bits
        signed = any(arg.low < 0 for arg in wire.args)
        return [
            f"  wire {declared(Word(bits, signed))}n{wire.number}_{letter} = "
            f"{self.extended(arg, bits)};"
            for letter, arg in zip("xy", wire.args, strict=True)
        ]

    def mux(self, bits: int, args: tuple[Wire, ...], _: int) -> str:
        condition, one, other = args
        then, otherwise = self.extended(one, bits), self.extended(other, bits)
        return f"{self.extended(condition, 1)} ? {then} : {otherwise}"

    def compared(self, op: str, one: Wire, other: Wire) -> str:
        """Return a comparison, in as many bits as hold both sides."""
        word = word_between(min(one.low, other.low), max(one.high, other.high))
        if op == "<" and other.op == "const" and other.k == 0:
            return self.part(one, self.words[one.number].bits - 1, 1)
        sides = [self.extended(one, word.bits), self.extended(other, word.bits)]
        if op == "<" and word.signed:
            sides = [f"$signed({side})" for side in sides]
        elif op == "<":
            sides = [f"$unsigned({side})" for side in sides]
        return f"{sides[0]} {op} {sides[1]}"


_SYMBOLS = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
_PRINTED: Mapping[str, Callable[[_Printer, int, tuple[Wire, ...], int], str]] = {
    "mux": _Printer.mux,
    "lt": lambda p, _, args, __: p.compared("<", *args),
    "eq": lambda p, _, args, __: p.compared("==", *args),
    "not": lambda p, _, args, __: f"~{p.extended(args[0], 1)}",
    "shl": lambda p, bits, args, k: f"{{{p.extended(args[0], bits - k)}, {_literal(0, k)}}}",
    "shr": lambda p, bits, args, k: p.part(args[0], k, bits),
    "low": lambda p, bits, args, _: p.part(args[0], 0, bits),
    "part": lambda p, bits, args, _: p.part(args[0], 0, bits),
}


def _literal(value: int, bits: int) -> str:
    return f"{bits}'d{value % (1 << bits)}"


def _bracketed(text: str) -> str:
    return text if re.fullmatch(r"[\w\[\]{}:, ']+", text) else f"({text})"


def declared(word: Word) -> str:
    """Return sign and width of a declaration, a space behind them."""
    return f"{'signed ' * word.signed}{f'[{word.bits - 1}:0] ' * (word.bits > 1)}"


def _port(direction: str, word: Word, name: str) -> str:
    return f"{direction} wire {declared(word)}{name}"
