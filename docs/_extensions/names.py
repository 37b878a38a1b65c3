"""Document public names: `.. names:: tracetorch.snn`, names; an entry of autodoc for each.

A class has a page of its own, `reference/names/tracetorch.snn.LIF.rst`, which the build writes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import inspect as sphinx_inspect
from sphinx.util.docutils import SphinxDirective

import tracetorch
from tracetorch.snn import Neuron, SequenceLayer, TTModule

FOLDER = "names"


def has_page(module: str, name: str) -> bool:
    """Whether a name is a class of its module, and not one that it only passes on."""
    return inspect.isclass(getattr(importlib.import_module(module), name)) and (
        entry(module, name)[0].startswith(".. autoclass::")
    )


def listed(reference: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield, for each directive of the reference, its page, its module and its names."""
    for page in sorted(reference.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(
            r"^\.\. names:: (\S+)\n\n((?: {3}.*\n)+)", text, re.MULTILINE
        ):
            yield page.stem, module, names.split()


def write_pages(app: Sphinx) -> None:
    """Write a page for each class that the directives of the reference name."""
    reference = Path(app.srcdir) / "reference"
    pages: dict[Path, str] = {}
    for _, module, names in listed(reference):
        for name in names:
            if has_page(module, name):
                title = f"``{module.replace('tracetorch', 'tt', 1)}.{name}``"
                lines = [title, "=" * len(title), "", *entry(module, name)]
                pages[reference / FOLDER / f"{module}.{name}.rst"] = "\n".join(lines) + "\n"
    (reference / FOLDER).mkdir(exist_ok=True)
    for path in (reference / FOLDER).iterdir():
        if path not in pages:
            path.unlink()
    for path, text in pages.items():  # one that is newer would be read again
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def entry(module: str, name: str) -> list[str]:
    """Return the lines of reStructuredText that document one name."""
    path = f"{module}.{name}"
    thing = getattr(importlib.import_module(module), name)
    # the signature says it once: overloads are for type checkers
    source = ModuleAnalyzer.for_module(thing.__module__)
    source.analyze()
    source.overloads.clear()
    room = ".".join(thing.__module__.split(".")[:2])
    is_of_room = hasattr(importlib.import_module(room), name)
    if inspect.isclass(thing) and is_of_room and not f"{module}.".startswith(f"{room}."):
        # one entry alone may be that of the class itself
        lines = [f".. py:class:: {name}", f"   :module: {module}", ""]
        return [*lines, f"   As :class:`{room}.{name}`.", ""]
    if inspect.isclass(thing):
        return [f".. autoclass:: {path}", f"   :members: {_members(thing)}".rstrip(), ""]
    return [f".. autofunction:: {path}", ""]


def _members(kind: type) -> str:
    """Return which members to document: all of its own; of a neuron, those of its bases too."""
    if kind is not Neuron:
        return ""
    bases = kind.__mro__[: kind.__mro__.index(TTModule)]
    methods = [
        name
        for base in bases
        for name, value in vars(base).items()
        if not name.startswith("_")
        and getattr(value, "__doc__", None)
        and not isinstance(value, tuple)
    ]
    return ", ".join(dict.fromkeys(methods))


class Names(SphinxDirective):
    """List names of a module in a table, then document each of them."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the table and the entries, parsed from what autosummary and autodoc take."""
        names = " ".join(self.content).split()
        lines = [".. autosummary::", "   :nosignatures:", ""]
        lines += [*(f"   {name}" for name in names), ""]
        module = self.arguments[0]
        lines += [".. toctree::", "   :hidden:", ""]
        lines += [f"   {FOLDER}/{module}.{name}" for name in names if has_page(module, name)]
        lines.append("")
        for name in names:
            if not has_page(module, name):
                lines += entry(module, name)
        nodes_of_lines: list[nodes.Node] = self.parse_text_to_nodes("\n".join(lines))
        return nodes_of_lines


def import_names_of_types(app: Sphinx) -> None:
    """Import what modules import for type checkers alone, so that signatures can be evaluated."""
    for info in pkgutil.walk_packages(tracetorch.__path__, "tracetorch."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for statement in ast.walk(node):
                    if isinstance(statement, (ast.Import, ast.ImportFrom)):
                        exec(ast.unparse(statement), vars(module))


def take_signature_of_init(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show the arguments of ``__init__`` where a ``__new__`` takes any: of layers with states."""
    if not isinstance(thing, type) or not issubclass(thing, SequenceLayer):
        return None
    init = sphinx_inspect.signature(thing.__init__, bound_method=True)
    shown = sphinx_inspect.stringify_signature(
        init, show_return_annotation=False, unqualified_typehints=True
    )
    return shown, returns


def expand_tt(app: Sphinx, tree: nodes.document) -> None:
    """Let references name ``tt.unroll``, as code does, for ``tracetorch.unroll``."""
    for reference in tree.findall(pending_xref):
        if reference["refdomain"] == "py":
            reference["reftarget"] = re.sub(r"^tt\.", "tracetorch.", reference["reftarget"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive with Sphinx."""
    app.setup_extension("sphinx.ext.autosummary")
    app.add_directive("names", Names)
    app.connect("builder-inited", import_names_of_types)
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", take_signature_of_init)
    app.connect("doctree-read", expand_tt)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
