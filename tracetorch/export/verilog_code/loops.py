"""``Loop``: counters of nested loops in a circuit, and addresses that follow them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tracetorch.export.verilog_code.memories import address_bits


@dataclass(frozen=True)
class Follower:
    """Number that changes by constant strides with the counters of a loop, modulo ``2^bits``."""

    bits: int
    offset: int
    strides: tuple[int, ...]


def number(bits: int, value: int) -> str:
    """Return a constant of a width, in two's complement.

    Example:
        >>> number(4, 5), number(4, -1)
        ("4'd5", "4'd15")
    """
    return f"{bits}'d{value % 2**bits}"


class Loop:
    """Nested loops over ``sizes``, the last one innermost, and numbers that follow the counters.

    After the last place the registers are at the first one again, where ``reset`` sets them too.
    ``name`` is a wire or a register for every follower; of the one called ``ahead`` there is
    ``name_next`` too, what it becomes.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        followers: Mapping[str, Follower],
        prefix: str = "",
        ahead: str = "",
    ) -> None:
        self.sizes, self.prefix, self.followers = tuple(sizes), prefix, dict(followers)
        self.ahead = ahead
        self.kept = [i for i, size in enumerate(sizes) if size > 1]
        self.count = math.prod(sizes)
        self.registers = {self.counter(i): (address_bits(sizes[i]), 0) for i in self.kept}
        for name, each in self.followers.items():
            if self._moves(each) and not self._is_counter(each):
                self.registers[name] = each.bits, each.offset

    def counter(self, dim: int) -> str:
        return f"{self.prefix}i{dim}"

    def ends(self, dim: int = 0) -> str:
        """Return the condition that the loops from ``dim`` on are at their last place."""
        inner = [each for each in self.kept if each >= dim]
        return f"{self.prefix}end{inner[0]}" if inner else "1'b1"

    def begins(self, dim: int = 0) -> str:
        """Return the condition that the loops from ``dim`` on are at their first place."""
        zero = [
            f"{self.counter(each)} == {number(address_bits(self.sizes[each]), 0)}"
            for each in self.kept
            if each >= dim
        ]
        return " && ".join(zero) or "1'b1"

    def declarations(self) -> list[str]:
        lines = [f"reg [{bits - 1}:0] {name};" for name, (bits, _) in self.registers.items()]
        inner = ""
        for i in reversed(self.kept):
            bits, name = address_bits(self.sizes[i]), self.counter(i)
            last = f"{name} == {number(bits, self.sizes[i] - 1)}"
            stays = f"!{inner} ? {name} : " if inner else ""
            up = f"{stays}{last} ? {number(bits, 0)} : {name} + {number(bits, 1)}"
            lines.append(f"wire [{bits - 1}:0] {name}_next = {up};")
            lines.append(f"wire {self.ends(i)} = {f'{inner} && ' if inner else ''}{last};")
            inner = self.ends(i)
        for name, each in self.followers.items():
            lines += self._following(name, each)
        return lines

    def _following(self, name: str, each: Follower) -> list[str]:
        head = f"wire [{each.bits - 1}:0] {name}"
        if not self._moves(each):
            constant = number(each.bits, each.offset)
            following = [f"{head}_next = {constant};"] * (name == self.ahead)
            return [f"{head} = {constant};", *following]
        if self._is_counter(each):
            counter = self.counter(self.kept[0])
            wider = each.bits - address_bits(self.sizes[self.kept[0]])
            pad = f"{number(wider, 0)}, " if wider else ""
            following = [f"{head}_next = {{{pad}{counter}_next}};"] * (name == self.ahead)
            return [f"{head} = {{{pad}{counter}}};", *following]
        step, back = "", 0
        for i in reversed(self.kept):
            step += f"!{self.ends(i)} ? {number(each.bits, each.strides[i] - back)} : "
            back += (self.sizes[i] - 1) * each.strides[i]
        return [f"{head}_next = {name} + ({step}{number(each.bits, -back)});"]

    def _moves(self, each: Follower) -> bool:
        return any(each.strides[i] for i in self.kept)

    def _is_counter(self, each: Follower) -> bool:
        """Whether a follower is the one counter that there is."""
        if len(self.kept) != 1 or each.offset or each.strides[self.kept[0]] != 1:
            return False
        return each.bits >= address_bits(self.sizes[self.kept[0]])

    def reset(self) -> list[str]:
        firsts = self.registers.items()
        return [f"{name} <= {number(bits, first)};" for name, (bits, first) in firsts]

    def advance(self) -> list[str]:
        return [f"{name} <= {name}_next;" for name in self.registers]
