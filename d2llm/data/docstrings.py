"""Docstring-to-code pairs from Python source: a real retrieval corpus that every Python brings along.

The query is the first sentence of a function's docstring, the passage is the function's source
without the docstring. Files are parsed, never imported.
"""

import ast
import random
import re
import sysconfig
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePath

from d2llm.data.descriptions import parameter_descriptions, result_description
from d2llm.data.example import Example
from d2llm.errors import InputError, MissingError
from d2llm.tasks import ASYM

#: Characters that a query may have, and the number at which a passage is cut.
QUERY_CHARACTERS = (20, 160)
PASSAGE_CHARACTERS = 500
#: Where a signature and a docstring are cut that say what a function does.
DOCUMENTED_CHARACTERS = 200
#: Held-out queries of the standard library and the seed of the shuffle that chooses them.
HELD_OUT = 500
SPLIT_SEED = 0

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
# An escape such as \ud800 in a docstring makes a text that UTF-8 cannot hold.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n\s*\n")


@dataclass(frozen=True)
class Function:
    """A documented function of a source file."""

    #: Module and qualified name, such as ``pathlib.Path.exists``.
    name: str
    docstring: str
    #: Its source up to the line of the docstring, without decorators; empty where it all stands on one line.
    signature: str
    #: Its source without decorators and docstring, cut.
    code: str

    @property
    def query(self) -> str:
        """The first sentence of its docstring."""
        return first_sentence(self.docstring)

    @property
    def pair(self) -> Example:
        """The first sentence with the code."""
        return Example(self.query, self.code, task=ASYM)

    @property
    def documented(self) -> str:
        """What people search for it by: its name, its signature, and what its docstring begins with.

        What comes after it, its code above all, dilutes the one vector that a passage has.
        """
        told = (text[:DOCUMENTED_CHARACTERS].rstrip() for text in (self.signature, self.docstring) if text)
        return _SURROGATE.sub("?", "\n".join((self.name, *told)))

    @property
    def words(self) -> str:
        """Its own name, behind that of its class, in words."""
        own = [part for part in self.name.split(".")[-2:] if part[:1].isupper() or part == self.name.split(".")[-1]]
        return " ".join(_WORD.findall(" ".join(own))).lower()

    def queries(self) -> list[str]:
        """Whatever asks for it: the first sentence, its name in words, what it returns and what it is given."""
        described = parameter_descriptions(self.docstring)
        further = [self.words, result_description(self.docstring), f"{self.words}: {', '.join(described)}"]
        texts = [first_sentence(text) for text in further if " " in text and not _SURROGATE.search(text)]
        texts = [text[: QUERY_CHARACTERS[1]].rstrip() for text in texts if not text.endswith(":")]
        return list(dict.fromkeys([self.query, *texts]))


def standard_library_functions() -> list[Function]:
    """Every function of the running Python's standard library that makes a pair, in file order."""
    return list(functions(Path(sysconfig.get_paths()["stdlib"])))


def standard_library_pairs() -> list[Example]:
    """Every (first docstring sentence, code) pair of the running Python's standard library, in file order."""
    return _pairs(standard_library_functions())


def standard_library_names() -> dict[str, str]:
    """``docstring_names`` of the running Python's standard library."""
    return docstring_names(Path(sysconfig.get_paths()["stdlib"]))


def docstring_names(root: Path) -> dict[str, str]:
    """The name of every passage of ``docstring_pairs``, such as "shutil.rmtree", in their order; all differ."""
    return {function.code: name for name, function in by_name(functions(root)).items()}


def by_name(found: Iterable[Function]) -> dict[str, Function]:
    """The first function of every code, in their order, by a name such as "shutil.rmtree"; all names differ."""
    named: dict[str, Function] = {}
    seen: set[str] = set()
    used: Counter[str] = Counter()
    for function in found:
        if function.code not in seen:
            seen.add(function.code)
            used[function.name] += 1
            # A property and its setter have one name, and so have versions for several systems.
            count = used[function.name]
            named[function.name if count == 1 else f"{function.name}#{count}"] = function
    return named


def below_names(names: Mapping[str, str]) -> list[str]:
    """The passages of ``docstring_names``, each below its name: ``def load(fp)`` alone does not say of what."""
    return [f"{name.partition('#')[0]}\n{passage}" for passage, name in names.items()]


def package_pairs(package: str) -> list[Example]:
    """The pairs of one installed package, named as pip names it.

    Raises:
        MissingError: if the package is not installed.
    """
    try:
        files = distribution(package).files or []
    except (PackageNotFoundError, ValueError):  # ValueError: an empty name.
        raise MissingError(f"package {package!r} is not installed") from None
    found = ((Path(str(file.locate())), PurePath(str(file))) for file in sorted(files))
    return _pairs(function for path, name in found if _is_library(name) for function in _file_functions(path, name))


def docstring_pairs(root: Path) -> Iterator[Example]:
    """The pairs of every Python file below ``root``, in path order, each distinct pair once.

    Raises:
        MissingError: if ``root`` is not a folder.
    """
    return iter(_pairs(functions(root)))


def functions(root: Path) -> Iterator[Function]:
    """Every function below ``root`` that makes a pair, in path order.

    Raises:
        MissingError: if ``root`` is not a folder.
    """
    if not root.is_dir():
        raise MissingError(f"root: expected a folder of Python files, got {root}")
    files = ((file, file.relative_to(root)) for file in sorted(root.rglob("*.py")))
    return (function for file, name in files if _is_library(name) for function in _file_functions(file, name))


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


def _is_library(path: PurePath) -> bool:
    return path.suffix == ".py" and _NOT_LIBRARY.isdisjoint(path.parts)


def _pairs(found: Iterable[Function]) -> list[Example]:
    """The distinct pairs of functions, in order."""
    return list(dict.fromkeys(function.pair for function in found))


def _file_functions(file: Path, name: PurePath) -> Iterator[Function]:
    """The functions of a file that is imported as ``name`` which make a pair."""
    try:
        source = file.read_text(encoding="utf-8-sig")
    except (ValueError, OSError):
        return  # Not UTF-8.
    module = ".".join(part for part in name.with_suffix("").parts if part != "__init__")
    for function in source_functions(source, module):
        query = function.query
        if QUERY_CHARACTERS[0] <= len(query) <= QUERY_CHARACTERS[1] and function.code and not _SURROGATE.search(query):
            yield function


def source_functions(source: str, module: str) -> Iterator[Function]:
    """Every documented function of a module's source, breadth first; none of what does not parse."""
    try:
        with warnings.catch_warnings():
            # Old escapes in somebody else's strings are no concern of ours.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # A template, nested beyond the parser, or written for another Python.
    # Not splitlines(), which also breaks at form feeds and other characters that end no line for the parser.
    lines = source.split("\n")
    for node, name in _named(tree, module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (docstring := ast.get_docstring(node)):
            yield Function(name, docstring, *_without_docstring(node, lines))


def _named(tree: ast.Module, module: str) -> Iterator[tuple[ast.AST, str]]:
    """Every node, breadth first as ``ast.walk`` goes, and the name of the innermost function or class that it is in."""
    waiting: deque[tuple[ast.AST, str]] = deque([(tree, module)])
    while waiting:
        node, name = waiting.popleft()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{name}.{node.name}"
        waiting.extend((child, name) for child in ast.iter_child_nodes(node))
        yield node, name


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring, its white space collapsed."""
    return " ".join(_SENTENCE_END.split(docstring.strip(), maxsplit=1)[0].split())


def _without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> tuple[str, str]:
    """Source of a function up to its docstring, and without it, which is cut; the second is empty if it has no more.

    Both are dedented and without decorators.
    """
    docstring = node.body[0]
    head = [line[node.col_offset :] for line in lines[node.lineno - 1 : docstring.lineno - 1]]
    body = [line[node.col_offset :] for line in lines[docstring.end_lineno : node.end_lineno]]
    code = "\n".join(head + body).strip()[:PASSAGE_CHARACTERS].rstrip() if len(node.body) > 1 else ""
    return "\n".join(head).strip(), code
