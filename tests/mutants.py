"""Mutation testing: plant faults in the package, one at a time, and count those that tests catch.

    python -m tests.mutants --sample 200 --seed 0 --room unrolling

Each fault changes one place of one file (a comparison, an operator, a constant, a condition, an
argument, a ``raise``) in a copy, and the tests that mirror the file, and those of its folder, run
there until the first fails. Faults that survive are printed with file and line: a test is missing
there, or the change makes no difference.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tracetorch"

_PAIRS = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot)),
    *((ast.In, ast.NotIn), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.And, ast.Or)),
)
SWAPS: dict[type, type] = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
SWAPS[ast.FloorDiv] = ast.Mult


@dataclass(frozen=True)
class Mutant:
    """A fault."""

    path: str  # from the root
    line: int
    change: str  # in words
    node: int  # the number of the changed node, in the order of ``ast.walk``
    variant: int  # the number of the change among those of the node

    def source(self) -> str:
        """Return the source of the whole file with the fault."""
        tree = ast.parse((ROOT / self.path).read_text())
        node = list(ast.walk(tree))[self.node]
        new = list(mutations(node))[self.variant][1]
        return ast.unparse(ast.fix_missing_locations(_Replacer(node, new).visit(tree)))


def mutations(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield changed copies of a node, each with the change in words."""
    if isinstance(node, (ast.Compare, ast.BinOp, ast.BoolOp, ast.AugAssign)):
        changed: Any = copy.deepcopy(node)
        old = changed.ops[0] if isinstance(changed, ast.Compare) else changed.op
        if type(old) in SWAPS:
            new = SWAPS[type(old)]()
            if isinstance(changed, ast.Compare):
                changed.ops[0] = new
            else:
                changed.op = new
            yield f"{type(old).__name__} to {type(new).__name__}", changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not removed", node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield f"{node.value} to {not node.value}", ast.Constant(not node.value)
        elif isinstance(node.value, (int, float)):
            yield f"{node.value} to {node.value + 1}", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Raise):
        yield "raise removed", ast.Pass()
    elif isinstance(node, ast.Call) and node.keywords and node.keywords[-1].arg is not None:
        changed = copy.deepcopy(node)
        name = changed.keywords.pop().arg
        yield f"argument {name} left out", changed


class _Replacer(ast.NodeTransformer):
    def __init__(self, target: ast.AST, new: ast.AST) -> None:
        self.target, self.new = target, new

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.target:
            return ast.copy_location(self.new, node)
        return self.generic_visit(node)


def _skipped(tree: ast.Module) -> set[int]:
    """Find nodes in messages, annotations and module constants, which have no behaviour."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.JoinedStr):
            parts = [node]
        elif isinstance(node, (ast.arg, ast.AnnAssign)):
            parts = [node.annotation]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts = [node.returns, *node.decorator_list]
        for part in parts:
            if part is not None:
                skipped |= {id(inner) for inner in ast.walk(part)}
    for statement in tree.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            skipped |= {id(inner) for inner in ast.walk(statement)}
    return skipped


def mutants_of(path: Path) -> list[Mutant]:
    """Return all faults of a file."""
    tree = ast.parse(path.read_text())
    skipped = _skipped(tree)
    name = str(path.relative_to(ROOT))
    return [
        Mutant(name, node.lineno, change, number, variant)
        for number, node in enumerate(ast.walk(tree))
        if id(node) not in skipped and hasattr(node, "lineno")
        for variant, (change, _) in enumerate(mutations(node))
    ]


def mirrors_of(path: str) -> list[str]:
    """Return the tests that mirror a file: of that file, then of its room."""
    parts = Path(path).relative_to("tracetorch").parts
    room = parts[0].removesuffix(".py")
    mirror = ROOT / "tests" / Path(*parts[:-1]) / f"test_{parts[-1]}"
    chosen = [str(mirror.relative_to(ROOT))] if mirror.exists() else []
    folder = f"tests/{room}"
    return [*chosen, folder if (ROOT / folder).is_dir() else f"tests/test_{room}.py"]


def is_caught(mutant: Mutant, folder: Path, limit: float = 300.0) -> bool:
    """Whether tests fail, or do not end in time, with the fault planted in ``folder``."""
    target = folder / mutant.path
    original = target.read_text()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not gpu", *mirrors_of(mutant.path)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    try:
        target.write_text(mutant.source())
        ran = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        target.write_text(original)
    # 4: with the fault, a module of the tests cannot be imported; below 0: Python crashes
    fails = ran.returncode in (1, 2) or (ran.returncode == 4 and b"ERROR collecting" in ran.stdout)
    if ran.returncode > 0 and not fails:
        raise RuntimeError(f"pytest ended with {ran.returncode}: {ran.stdout.decode()[-2000:]}")
    return fails or ran.returncode < 0


def main(arguments: list[str]) -> int:
    """Run the command; the exit status is 1 where a fault survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="how many faults")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--room", default="", help="only files below tracetorch/ROOM")
    options = parser.parse_args(arguments)
    files = [p for p in sorted((PACKAGE / options.room).rglob("*.py")) if p.name != "__init__.py"]
    every = [mutant for path in files for mutant in mutants_of(path)]
    sample = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    survived = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "runs", "media"))
        for mutant in sample:
            caught = is_caught(mutant, folder)
            survived += not caught
            word = "caught" if caught else "SURVIVED"
            print(f"{word:8} {mutant.path}:{mutant.line} {mutant.change}", flush=True)
    print(f"{len(sample) - survived} of {len(sample)} faults caught, of {len(every)} possible ones")
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
