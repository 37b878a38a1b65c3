"""Report what a network as a circuit needs: memories, and cycles of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class VerilogReport:
    """Memories of a network as a circuit, and the cycles of its step as a formula of spikes.

    Cells and the clock are what the tools find: ``make synth`` and ``make route`` print them.

    Args:
        files: names of the files.
        lanes: values that a word of a memory holds.
        memory_bits: size of each memory that is written, by what it holds.
        table_bits: size of all tables of constants, weights among them.
        fixed_cycles: cycles of a step without any spike, from ``step`` to ``done``.
        event_cycles: cycles that each spike adds, by who fired.
        reset_cycles: cycles from the end of a reset until the network is ready.
        ports: words of each ``value``: ``"int8"`` of 8 bits in two's complement, ``"uint1"``, by
            the name of the input or output.
        input_range: least and largest value of each input for which widths are proved, by name.

    Example:
        >>> report = VerilogReport((), 1, {}, 0, 20, {"x": 3, "1": 2}, 7, {}, {})
        >>> report.cycles({"x": 4, "1": 1})
        34
        >>> report.formula
        '20 + 3*[x] + 2*[1]'
    """

    files: tuple[str, ...]
    lanes: int
    memory_bits: Mapping[str, int]
    table_bits: int
    fixed_cycles: int
    event_cycles: Mapping[str, int]
    reset_cycles: int
    ports: Mapping[str, str]
    input_range: Mapping[str, tuple[float, float]]

    def cycles(self, events: Mapping[str, int]) -> int:
        """Return the cycles of a step in which so many values of each source are not zero."""
        unknown = [name for name in events if name not in self.event_cycles]
        if unknown:
            raise ValueError(f"events are of {[*self.event_cycles]}, got {unknown[0]!r}.")
        return self.fixed_cycles + sum(n * self.event_cycles[name] for name, n in events.items())

    @property
    def formula(self) -> str:
        """The cycles of a step, in terms of how many values of each source are not zero."""
        terms = [str(self.fixed_cycles)]
        terms += [f"{each}*[{name}]" for name, each in self.event_cycles.items()]
        return " + ".join(terms)

    def __str__(self) -> str:
        ranges = ", ".join(
            f"{n} {low:.0f} to {high:.0f}" for n, (low, high) in self.input_range.items()
        )
        lines = [
            f"lanes        {self.lanes}",
            f"inputs       {ranges}",
            "values       " + ", ".join(f"{name} {word}" for name, word in self.ports.items()),
            f"memories     {sum(self.memory_bits.values())} bits: "
            + ", ".join(f"{name} {bits}" for name, bits in self.memory_bits.items()),
            f"tables       {self.table_bits} bits of constants",
            f"cycles       {self.formula} from step to done, if outputs are taken at once; [name] "
            f"is how many of its values are not zero; {self.reset_cycles} after a reset",
            "cells        make synth",
            "clock        make route",
            "power        not estimated: no tool here knows it",
        ]
        return "\n".join(lines) + "\n"
