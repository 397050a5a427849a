"""Docstring-to-code pairs from Python source: a real retrieval corpus that every Python brings along.

The query is the first sentence of a function's docstring, the passage is the function's source
without the docstring. Files are parsed, never imported.
"""

import ast
import random
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from d2llm.data.example import Example
from d2llm.errors import InputError, MissingError
from d2llm.tasks import ASYM

#: Characters that a query may have, and the number at which a passage is cut.
QUERY_CHARACTERS = (20, 160)
PASSAGE_CHARACTERS = 500
#: Held-out queries of the standard library and the seed of the shuffle that chooses them.
HELD_OUT = 500
SPLIT_SEED = 0

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
# An escape such as \ud800 in a docstring makes a text that UTF-8 cannot hold.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n\s*\n")


def standard_library_pairs() -> list[Example]:
    """Every (first docstring sentence, code) pair of the running Python's standard library, in file order."""
    return list(docstring_pairs(Path(sysconfig.get_paths()["stdlib"])))


def standard_library_names() -> dict[str, str]:
    """``docstring_names`` of the running Python's standard library."""
    return docstring_names(Path(sysconfig.get_paths()["stdlib"]))


def docstring_names(root: Path) -> dict[str, str]:
    """The name of every passage of ``docstring_pairs``, such as "shutil.rmtree", in their order; all differ."""
    names: dict[str, str] = {}
    used: Counter[str] = Counter()
    for file in _library_files(root):
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for function, _, passage in _file_pairs(file):
            if passage not in names:
                name = f"{module}.{function}"
                used[name] += 1
                # A property and its setter have one name, and so have versions for several systems.
                names[passage] = name if used[name] == 1 else f"{name}#{used[name]}"
    return names


def package_pairs(package: str) -> list[Example]:
    """The pairs of one installed package, named as pip names it.

    Raises:
        MissingError: if the package is not installed.
    """
    try:
        files = distribution(package).files or []
    except (PackageNotFoundError, ValueError):  # ValueError: an empty name.
        raise MissingError(f"package {package!r} is not installed") from None
    return list(_pairs(Path(str(file.locate())) for file in sorted(files) if _is_library(Path(str(file)))))


def docstring_pairs(root: Path) -> Iterator[Example]:
    """The pairs of every Python file below ``root``, in path order, each distinct pair once.

    Raises:
        MissingError: if ``root`` is not a folder.
    """
    if not root.is_dir():
        raise MissingError(f"root: expected a folder of Python files, got {root}")
    return _pairs(_library_files(root))


def _library_files(root: Path) -> list[Path]:
    return [file for file in sorted(root.rglob("*.py")) if _is_library(file.relative_to(root))]


def hold_out(
    pairs: list[Example], held_out: int = HELD_OUT, seed: int = SPLIT_SEED
) -> tuple[list[Example], list[Example]]:
    """Split pairs into (training, held-out): the first ``held_out`` of a shuffle by ``seed`` are held out.

    A training pair that shares its query or its passage with a held-out pair is dropped, so that
    the held-out queries stay unseen.

    Raises:
        InputError: if ``held_out`` is negative or fewer than ``held_out + 1`` pairs are given.
    """
    if held_out < 0:
        raise InputError(f"held_out: expected 0 or more, got {held_out}")
    if len(pairs) <= held_out:
        raise InputError(f"pairs: expected more than the {held_out} to hold out, got {len(pairs)}")
    shuffled = list(pairs)
    random.Random(seed).shuffle(shuffled)
    held, rest = shuffled[:held_out], shuffled[held_out:]
    return without(rest, held), held


def without(pairs: Iterable[Example], unseen: Iterable[Example]) -> list[Example]:
    """The pairs that share neither query nor passage with ``unseen``."""
    unseen = list(unseen)
    queries, passages = {pair.query for pair in unseen}, {pair.positive for pair in unseen}
    return [pair for pair in pairs if pair.query not in queries and pair.positive not in passages]


def _is_library(path: Path) -> bool:
    return path.suffix == ".py" and _NOT_LIBRARY.isdisjoint(path.parts)


def _pairs(files: Iterable[Path]) -> Iterator[Example]:
    seen: set[tuple[str, str]] = set()
    for file in files:
        for _, query, passage in _file_pairs(file):
            if (query, passage) not in seen:
                seen.add((query, passage))
                yield Example(query, passage, task=ASYM)


def _file_pairs(file: Path) -> Iterator[tuple[str, str, str]]:
    """(name within the module, query, passage) of every function that has both."""
    try:
        source = file.read_text(encoding="utf-8-sig")
        with warnings.catch_warnings():
            # Old escapes in somebody else's strings are no concern of ours.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return  # Not UTF-8, a template, nested beyond the parser, or written for another Python: no pairs in it.
    # Not splitlines(), which also breaks at form feeds and other characters that end no line for the parser.
    lines = source.split("\n")
    names = _qualified(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (doc := ast.get_docstring(node)):
            query = first_sentence(doc)
            passage = _code_without_docstring(node, lines)
            if QUERY_CHARACTERS[0] <= len(query) <= QUERY_CHARACTERS[1] and passage and not _SURROGATE.search(query):
                yield names[node], query, passage


def _qualified(tree: ast.Module) -> dict[ast.AST, str]:
    """Names of functions and classes, behind those of what they stand in."""
    names: dict[ast.AST, str] = {}
    open_nodes: list[tuple[ast.AST, str]] = [(tree, "")]
    while open_nodes:
        parent, prefix = open_nodes.pop()
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names[child] = f"{prefix}{child.name}"
                open_nodes.append((child, f"{names[child]}."))
            else:
                open_nodes.append((child, prefix))
    return names


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring, its white space collapsed."""
    return " ".join(_SENTENCE_END.split(docstring.strip(), maxsplit=1)[0].split())


def _code_without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """Source of a function without decorators and docstring, dedented and cut; empty if nothing but a docstring."""
    docstring = node.body[0]
    if len(node.body) == 1:
        return ""
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    body = lines[docstring.end_lineno : node.end_lineno]
    return "\n".join(line[node.col_offset :] for line in head + body).strip()[:PASSAGE_CHARACTERS].rstrip()
