"""Mutation testing: plant faults in the package, one at a time, and count those that tests catch.

    python -m tests.mutants --sample 200 --seed 0 --room unrolling

The fast tests run once under coverage, so that it is known which of them run which line. Then each
fault changes one place of one file (a comparison, an operator, a constant, a condition, an
argument, a ``raise``) in a copy, and the tests that run that line run there until the first fails,
those that mirror the file first. Faults that survive are printed with file and line: a test is
missing there, or the change makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tracetorch"

FAST = "not slow and not gpu"
# So many of the other tests that run a line, at random: lines of `Neuron` have thousands.
MOST_ELSEWHERE = 300

SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Args:
        path: the file, from the root.
        line: line of the place.
        change: the change in words.
        node: number of the changed node, in the order of ``ast.walk``.
        variant: number of the change among those of the node.
    """

    path: str
    line: int
    change: str
    node: int
    variant: int

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


class Coverage:
    """Coverage of the package by the fast tests: which tests run which line.

    Args:
        data: coverage's data file, with one context per test.
    """

    def __init__(self, data: Path) -> None:
        from coverage import CoverageData

        self._data = CoverageData(str(data))
        self._data.read()
        self._files = {Path(file).as_posix(): file for file in self._data.measured_files()}

    def tests(self, path: str, line: int) -> list[str]:
        """Return the tests that run the statement at a line, those that mirror the file first."""
        mirror = mirrors_of(path)
        file = next((own for name, own in self._files.items() if name.endswith(f"/{path}")), None)
        found: set[str] = set()
        if file is not None:
            contexts = self._data.contexts_by_lineno(file)
            for number in statement_lines(path, line):
                found |= {context.split("|")[0] for context in contexts.get(number, [])} - {""}
        near = sorted(test for test in found if test.startswith(tuple(mirror)))
        far = sorted(found.difference(near))
        random.Random(0).shuffle(far)
        # a line that runs at import alone, or in another process, answers to its mirror
        return near + far[:MOST_ELSEWHERE] if found else mirror


def statement_lines(path: str, line: int) -> range:
    """Return the lines of the innermost statement around a line; of a block, those of its head."""
    lines = range(line, line + 1)
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno
            if node.lineno <= line <= (end or line):
                lines = range(node.lineno, (end or line) + 1)
    return lines


def mirrors_of(path: str) -> list[str]:
    """Return the tests that mirror a file: of that file, then of its room."""
    parts = Path(path).relative_to("tracetorch").parts
    room = parts[0].removesuffix(".py")
    mirror = ROOT / "tests" / Path(*parts[:-1]) / f"test_{parts[-1]}"
    chosen = [str(mirror.relative_to(ROOT))] if mirror.exists() else []
    folder = f"tests/{room}"
    return [*chosen, folder if (ROOT / folder).is_dir() else f"tests/test_{room}.py"]


def cover(data: Path) -> None:
    """Run the fast tests under coverage, with one context per test."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-m", FAST]
    command += ["--cov=tracetorch", "--cov-context=test", "--cov-report="]
    environment = {**os.environ, "COVERAGE_FILE": str(data)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def is_caught(mutant: Mutant, tests: list[str], folder: Path, limit: float) -> bool:
    """Whether tests fail, or do not end in time, with the fault planted in ``folder``."""
    target = folder / mutant.path
    original = target.read_text()
    chosen = folder / "chosen_tests"
    chosen.write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", FAST, f"@{chosen}"]
    try:
        target.write_text(mutant.source())
        ran = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        target.write_text(original)
    # 4: with the fault, a module of the tests cannot be imported
    fails = ran.returncode in (1, 2) or (ran.returncode == 4 and b"ERROR collecting" in ran.stdout)
    if ran.returncode != 0 and not fails:
        raise RuntimeError(f"pytest ended with {ran.returncode}: {ran.stdout.decode()[-2000:]}")
    return fails


def main(arguments: list[str]) -> int:
    """Run the command; the exit status is 1 where a fault survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="how many faults")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--room", default="", help="only files below tracetorch/ROOM")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so many; 0: never")
    parser.add_argument("--coverage", type=Path, help="coverage's data of an earlier run")
    parser.add_argument("--only", default="", help="only faults at FILE:LINE, with commas between")
    options = parser.parse_args(arguments)
    files = [p for p in sorted((PACKAGE / options.room).rglob("*.py")) if p.name != "__init__.py"]
    generator = random.Random(options.seed)
    every = [mutant for path in files for mutant in mutants_of(path)]
    sample = generator.sample(every, min(options.sample, len(every)))
    if options.only:
        places = options.only.split(",")
        sample = [mutant for mutant in sample if f"{mutant.path}:{mutant.line}" in places]
    survived: list[Mutant] = []
    done, begin = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "runs", "media"))
        data = options.coverage or Path(temporary) / "coverage"
        if options.coverage is None:
            cover(data)
        coverage = Coverage(data)
        for mutant in sample:
            if options.minutes and time.monotonic() - begin > 60 * options.minutes:
                break
            tests = coverage.tests(mutant.path, mutant.line)
            caught = is_caught(mutant, tests, folder, limit=300.0)
            done += 1
            if not caught:
                survived.append(mutant)
            word = "caught" if caught else "SURVIVED"
            print(f"{word:8} {mutant.path}:{mutant.line} {mutant.change}", flush=True)
    print(f"{done - len(survived)} of {done} faults caught, of {len(every)} possible ones")
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
