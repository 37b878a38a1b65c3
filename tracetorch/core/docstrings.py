"""Complete docstrings with descriptions that several functions or classes share."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

T = TypeVar("T")

_SECTIONS = ("Args", "Shape", "Returns", "Raises", "Example", "Reference")
_HEADING = re.compile(rf"^(?=(?:{'|'.join(_SECTIONS)}):)", flags=re.MULTILINE)
_ENTRY = re.compile(r"\n(?=    \S)")


@dataclass(frozen=True)
class SharedDescriptions:
    """Add to a docstring the arguments that it does not describe, so that ``help`` shows them."""

    # descriptions by name of an argument, or by a pattern, "*_rank": arguments of one pattern are
    # described together
    args: Mapping[str, str]
    shape: str = ""  # the section Shape:, for those that have none of their own
    # descriptions by name of an exception, added to those that a docstring has
    raises: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, documented: T) -> T:
        """Complete the docstring of a function or class, and return that."""
        if documented.__doc__:  # python -OO leaves none
            start, *rest = _HEADING.split(inspect.cleandoc(documented.__doc__))
            sections = {part.partition(":")[0]: part.rstrip() for part in rest}
            sections["Args"] = "\n".join(self._arguments(documented, sections.get("Args", "")))
            if self.shape:
                sections.setdefault("Shape", f"Shape:\n{textwrap.indent(self.shape, '    ')}")
            if self.raises:
                raises = [sections.get("Raises", "Raises:")]
                raises += [_entry(error, text) for error, text in self.raises.items()]
                sections["Raises"] = "\n".join(raises)
            ordered = [sections[name] for name in _SECTIONS if name in sections]
            documented.__doc__ = "\n\n".join([start.rstrip(), *ordered]) + "\n"
        return documented

    def _arguments(self, documented: Any, section: str) -> Iterator[str]:
        """Yield the lines of ``Args:``, the entries of ``section`` among them."""
        own: dict[str, str] = {}
        for entry in _ENTRY.split(section)[1:]:
            own |= dict.fromkeys(re.split(r",\s+", entry.partition(":")[0].strip()), entry)
        init = documented.__init__ if isinstance(documented, type) else documented  # type: ignore[misc]
        names = [name.lstrip("*") for name in inspect.signature(init).parameters if name != "self"]
        patterns = {name: self._pattern(name) for name in names}
        written = set()
        yield "Args:"
        for name in names:
            pattern = patterns[name]
            key = own.get(name, pattern)
            if key and key not in written:
                together = [n for n in names if patterns[n] == pattern and n not in own]
                yield own.get(name) or _entry(", ".join(together), self.args[pattern])
            written.add(key)

    def _pattern(self, name: str) -> str:
        """Return the key that describes an argument, its own name first; ``""`` without one."""
        fitting = (pattern for pattern in self.args if fnmatchcase(name, pattern))
        return name if name in self.args else next(fitting, "")


def _entry(names: str, text: str) -> str:
    """Write ``names: text`` as an entry of a section."""
    lines = textwrap.wrap(f"{names}: {text}", 88, break_on_hyphens=False)
    return textwrap.indent("\n    ".join(lines), "    ")
