"""The language of the code: plain technical English in names, docstrings and comments."""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tracetorch"
SOURCES = sorted(
    path
    for folder in ("tracetorch", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = sorted(
    path
    for pattern in (
        *("*.md", "docs/**/*.md", "examples/*.md", ".github/**/*.md", ".github/**/*.yml"),
        "tracetorch/diagnosis/findings.txt",
    )
    for path in ROOT.glob(pattern)
)

# Words of a private dialect: a parameter is set, not "told"; a generator has a state, no "chance".
DIALECT = frozenset(
    (
        *("asked", "chance", "chances", "heard", "lest", "said", "settle", "settled", "settles"),
        *("told", "unsuited", "yours"),
    )
)
PHRASES = re.compile(r"\b(as\s+it\s+was|as\s+they\s+were|puts?\s+back|(?:is|are)\s+told)\b")
# A first line says what a thing does or is; it is no riddle that the rest answers.
RIDDLES = frozenset(
    ("around", "from", "how", "one", "what", "when", "where", "which", "who", "whose", "why")
)

# Homonyms: words that stood for several things each. No class, function, argument, attribute, local
# or file of the package has them in its name; what to write is behind them.
HOMONYMS = {
    "contents": "what they are: tensors, modules, files, text",
    "facts": "what they are: a plan, a signature, bounds",
    "held": "stored, kept, saved, or what it is; held-out data are held_out",
    "road": "path, mode",
    "room": "package; space, capacity",
    "turn": "pass, iteration, phase, rotation",
}
# Words of one meaning, and the packages in which they have it; elsewhere the other word is written.
MEANINGS = {
    "memory": (
        "bytes of a machine, and TTModule.memory; what else remembers has states",
        frozenset(("checkpoint", "export", "fuse", "metrics", "snn")),
    ),
    "reset": (
        "what a spike does to its membrane; a sequence restarts",
        frozenset(
            (
                *("export", "integers", "models", "neurons", "nir", "online_learning", "plot"),
                *("quantize", "snn"),
            )
        ),
    ),
}
# A file has its name alone where several would be one question each for a reader.
UNIQUE_FILES = ("graph.py", "memory.py", "plan.py", "products.py")
# Public: `held_bytes` of a profile, `reset=` of `tt.unroll`, a state in files; a setting of a chip.
EXCEPTIONS = {"held": ("metrics", "nir"), "reset": ("unrolling", "chips")}


def words(identifier: str) -> set[str]:
    """``HeldStates`` and ``held_states``: held, states."""
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().split("_"))


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and (
            text := ast.get_docstring(node)
        ):
            yield getattr(node, "lineno", 1), text


def comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts of the errors that are raised."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


def dialect_of(text: str) -> list[str]:
    """Words and phrases of the dialect in prose."""
    prose = text.lower()
    return sorted(DIALECT & set(re.findall(r"[a-z]+", prose))) + PHRASES.findall(prose)


def faults(source: str) -> list[tuple[int, str]]:
    """Line and word of every use of the dialect in a source, and of riddles as first lines."""
    tree = ast.parse(source)
    found = [(n, name) for n, name in identifiers(tree) if DIALECT & words(name)]
    # tokens are slow, and looked at where a word stands at all
    prose = [*docstrings(tree), *(comments(source) if dialect_of(source) else ())]
    found += [(n, word) for n, text in prose for word in dialect_of(text)]
    for line, text in docstrings(tree):
        if text.split()[0].lower() in RIDDLES:
            found.append((line, text.splitlines()[0]))
    return found + [(n, word) for n, text in messages(tree) for word in dialect_of(text)]


def test_sources_and_pages_are_plain_english() -> None:
    found: dict[str, Sequence[object]] = {str(p): faults(p.read_text()) for p in SOURCES}
    found |= {str(path): dialect_of(path.read_text()) for path in PAGES}
    assert {path: words for path, words in found.items() if words} == {}


def homonyms(package: str, names: Iterable[str]) -> set[str]:
    """Return the homonyms among the words of the names, as they may not stand in a package."""
    used = set[str]().union(*(words(name.replace("held_out", "")) for name in names))
    used |= {word.removesuffix("s") for word in used}
    used -= {word for word, packages in EXCEPTIONS.items() if package in packages}
    elsewhere = {word for word, (_, packages) in MEANINGS.items() if package not in packages}
    return used & (HOMONYMS.keys() | elsewhere)


def names_by_package() -> dict[str, set[str]]:
    """Return the names in the package's own code, of files too, by the folder at its top."""
    names: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        found = names.setdefault(path.relative_to(PACKAGE).parts[0], set())
        found.update(name for _, name in identifiers(ast.parse(path.read_text())))
        found.update(path.relative_to(PACKAGE).with_suffix("").parts)
    return names


def test_a_word_has_one_meaning() -> None:
    found = {package: homonyms(package, names) for package, names in names_by_package().items()}
    meant = {**HOMONYMS, **{word: meaning for word, (meaning, _) in MEANINGS.items()}}
    assert {p: {w: meant[w] for w in used} for p, used in found.items() if used} == {}
    counts = Counter(path.name for path in PACKAGE.rglob("*.py"))
    assert [name for name in UNIQUE_FILES if counts[name] > 1] == []
