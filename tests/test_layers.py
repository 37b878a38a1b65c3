"""The order of rooms: every import goes one way, and private names of PyTorch are in one file."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tracetorch"

# A room imports only what stands before it.
ORDER = """
    core functional ragged cell fuse snn neurons integers chips events unrolling encode decode
    loss probe data nir checkpoint quantize convert hub init online_learning metrics export
    plot models zoo diagnosis __init__ __main__
"""
ROOMS = tuple(ORDER.split())
FUSE = ("step_results", "ir", "codegen", "runtime", "dispatch", "__init__")
# Lines of Python that each room holds at most. A ceiling only falls: a commit that takes lines away
# lowers it, and one that adds lines takes as many away first.
CEILINGS = {
    "__init__": 107,
    "__main__": 110,
    "cell": 304,
    "checkpoint": 738,
    "chips": 1126,
    "convert": 1183,
    "core": 1709,
    "data": 861,
    "decode": 171,
    "diagnosis": 1562,
    "encode": 534,
    "events": 1197,
    "export": 7048,
    "functional": 488,
    "fuse": 8956,
    "hub": 125,
    "init": 2045,
    "integers": 1500,
    "loss": 964,
    "metrics": 1417,
    "models": 956,
    "neurons": 1383,
    "nir": 1895,
    "online_learning": 2058,
    "plot": 2740,
    "probe": 454,
    "quantize": 1588,
    "ragged": 96,
    "snn": 7974,
    "unrolling": 1556,
    "zoo": 250,
}
MOST_OUTSIDE = 13_000  # in examples, benchmarks and .ci, where what moves out of the package goes
SLACK = 20  # lines that a ceiling may stand above its room
# The version is on the ground floor, and only the package itself and its programs see all rooms.
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Rooms of one level import none of each other but these.
LEVEL = (*("encode", "decode", "loss", "probe", "data", "nir", "checkpoint"), "quantize", "convert")
SIBLINGS = {("data", "encode"), ("loss", "decode"), ("convert", "quantize")}


@cache
def nodes_of(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


@cache
def imports(source: str) -> list[tuple[int, str]]:
    """Dotted names of all imports: in functions and under ``TYPE_CHECKING`` too."""
    found: list[tuple[int, str]] = []
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def place(parts: tuple[str, ...], order: tuple[str, ...]) -> int:
    """Place in the order; a name of the package itself, ``tracetorch.unroll``, is its front."""
    name = parts[0] if parts else "__init__"
    return order.index(name if name in order else "__init__")


def upward(module: str, source: str) -> list[str]:
    """Imports of a module, ``"snn.neuron"``, that do not go down."""
    here = tuple(module.split("."))
    faults = []
    for line, name in imports(source):
        there = tuple(name.split("."))
        if there[0] in ("examples", "benchmarks", "tests"):
            faults.append(f"{module}:{line} imports {name}")
        if there[0] != "tracetorch":
            continue
        there = there[1:]
        room, target = place(here, ROOMS), place(there, ROOMS)
        if room == target and ROOMS[room] == "fuse" and here != ("fuse",):
            inner = place(there[1:], FUSE) - place(here[1:], FUSE)
            allowed = inner < 0 or (inner == 0 and here[1] not in FUSE[-1:])
        elif {ROOMS[room], ROOMS[target]} <= set(LEVEL) and room != target:
            allowed = (ROOMS[room], ROOMS[target]) in SIBLINGS
        else:
            allowed = target <= room
        if not allowed:
            faults.append(f"{module}:{line} imports {name}")
    return faults


def name_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    return ".".join(parts) or "__init__"


def test_every_room_has_a_place() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    assert rooms == set(ROOMS)
    inner = (path.relative_to(PACKAGE).parts for path in SOURCES)
    assert {p[1].removesuffix(".py") for p in inner if p[0] == "fuse"} == set(FUSE)


def lines_of(*folders: Path) -> int:
    files = [path for folder in folders for path in folder.rglob("*.py")]
    return sum(len(path.read_text().splitlines()) for path in files)


def test_no_room_is_above_its_ceiling() -> None:
    lines = dict.fromkeys(CEILINGS, 0)
    for path in SOURCES:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        lines[room] = lines.get(room, 0) + len(path.read_text().splitlines())
    full = {room: f"{n} of {CEILINGS.get(room)}" for room, n in lines.items() if n > CEILINGS[room]}
    assert full == {}, "make room first: see what can go"
    low = {room: n for room, n in lines.items() if n < CEILINGS[room] - SLACK}
    assert low == {}, "lower these ceilings to the lines that are left"
    assert lines_of(ROOT / "examples", ROOT / "benchmarks", ROOT / ".ci") <= MOST_OUTSIDE


def test_imports_go_one_way() -> None:
    assert [fault for path in SOURCES for fault in upward(name_of(path), path.read_text())] == []


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Files that reach themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = list(graph[start])
        while pending:
            if (name := pending.pop()) not in seen:
                seen.add(name)
                pending += graph.get(name, ())
        return seen

    return sorted(name for name in graph if name in reached(name))


def test_no_file_imports_itself_through_others() -> None:
    names = {name_of(path): path for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        targets = set()
        for _, imported in imports(path.read_text()):
            if imported.startswith("tracetorch."):
                inner = imported.removeprefix("tracetorch.")
                # a module, or a name in one
                targets.add(inner if inner in names else inner.rpartition(".")[0])
        graph[name] = targets - {name}
    assert cycles(graph) == []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("fuse.dispatch.plans", "from tracetorch.snn.neuron import Neuron"),
        ("fuse.dispatch.plans", "def f():\n    from tracetorch.snn.neuron import Neuron"),
        ("fuse.ir.trace", "if TYPE_CHECKING:\n    from tracetorch.snn import Neuron"),
        ("fuse.ir.trace", "from tracetorch.fuse.runtime import cpu"),
        ("fuse.codegen.llvm_kernel", "from tracetorch.fuse import backend"),
        ("core.walk", "import tracetorch.functional"),
        ("checkpoint.save", "from tracetorch import __version__"),
        ("nir.write", "from tracetorch.export import step"),
        ("snn.module", "from tracetorch.unrolling import unroll"),
        ("events.passes", "from tracetorch.unrolling import unroll"),
        ("export.step", "from tracetorch.diagnosis import diagnose"),
        ("core.walk", "import benchmarks"),
        ("plot.raster", "from examples.networks import Network"),
    ],
)
def test_a_planted_upward_import_is_found(module: str, planted: str) -> None:
    assert upward(module, planted)


# Private names of PyTorch


def private_names(source: str) -> list[str]:
    """Names of PyTorch with a part that begins with one underscore."""

    def is_private(dotted: str) -> bool:
        parts = dotted.split(".")
        return parts[0] == "torch" and any(
            part.startswith("_") and not part.startswith("__") for part in parts
        )

    found = [f"{line}: {name}" for line, name in imports(source) if is_private(name)]
    for node in nodes_of(source):
        if isinstance(node, ast.Attribute):
            parts: list[str] = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                aliases = {"nn": "torch.nn"}
                dotted = ".".join([aliases.get(inner.id, inner.id), *reversed(parts)])
                if is_private(dotted):
                    found.append(f"{node.lineno}: {dotted}")
    return found


def test_private_names_of_pytorch_are_in_one_file() -> None:
    found = {name_of(path): private_names(path.read_text()) for path in SOURCES}
    assert found.pop("core.torch_private")
    assert {name: names for name, names in found.items() if names} == {}
    assert private_names("from torch.utils import _pytree")
    assert private_names("from torch._C import _nn")
    assert private_names("def f():\n    return torch._C._current_graph_task_id()")
    assert private_names("x = nn.modules.batchnorm._NormBase")


def test_one_class_has_a_name() -> None:
    """No two things of the inner rooms are one word in two files."""
    inner = ("core", "cell.py", "fuse", "snn", "events", "unrolling")
    files = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] in inner]
    nodes = [node for path in files for node in nodes_of(path.read_text())]
    counts = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in counts.items() if count > 1] == []
