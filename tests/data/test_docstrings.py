import ast
import os
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm.data.docstrings import (
    DOCUMENTED_CHARACTERS,
    PASSAGE_CHARACTERS,
    QUERY_CHARACTERS,
    Function,
    docstring_names,
    docstring_pairs,
    first_sentence,
    functions,
    hold_out,
    package_pairs,
    without,
)
from d2llm.data.example import Example, text_id
from d2llm.errors import InputError, MissingError

DOC = "Return the number of things."


def pairs(folder: Path, source: str | bytes, name: str = "module.py") -> list[tuple[str, str]]:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    content = textwrap.dedent(source).encode() if isinstance(source, str) else source
    file.write_bytes(content)
    return [(pair.query, pair.positive) for pair in docstring_pairs(folder)]


def test_a_function_without_its_decorator_and_docstring(tmp_path):
    source = '''
        @cache
        def count(things: list,
                  start=0) -> int:
            """Return the number
            of things.  More is said here.

            And here.
            """
            # counted
            total = start + len(things)
            return total


        x = 1
    '''
    code = (
        "def count(things: list,\n          start=0) -> int:\n    # counted\n"
        "    total = start + len(things)\n    return total"
    )
    assert pairs(tmp_path, source) == [(DOC, code)]


def test_methods_nested_and_async_functions_are_dedented(tmp_path):
    source = f'''
        class Bag:
            """Return nothing, this is a class."""

            async def count(self):
                """{DOC}"""
                def inner():
                    """{DOC[:-1]} inside."""
                    return 1
                return inner()
    '''
    assert pairs(tmp_path, source) == [
        (
            DOC,
            'async def count(self):\n    def inner():\n        """Return the number of things inside."""\n'
            "        return 1\n    return inner()",
        ),
        ("Return the number of things inside.", "def inner():\n    return 1"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        f'def f(): "{DOC}"',
        f'def f():\n    "{DOC}"',
        f'def f(): "{DOC}"; return 1',
        "def f():\n    return 1",
        'def f():\n    ""\n    return 1',
        f'class C:\n    "{DOC}"\n    x = 1',
        f'"{DOC}"\nx = 1',
        f"def f():\n    b'{DOC}'\n    return 1",
        "",
    ],
)
def test_what_has_no_docstring_or_nothing_else_gives_no_pair(tmp_path, source):
    assert pairs(tmp_path, source) == []


@pytest.mark.parametrize(("length", "kept"), [(19, False), (20, True), (160, True), (161, False)])
def test_queries_have_20_to_160_characters(tmp_path, length, kept):
    query = "x" * (length - 1) + "."
    assert QUERY_CHARACTERS == (20, 160)
    expected = [(query, "def f():\n    return 1")] if kept else []
    assert pairs(tmp_path, f'def f():\n    """{query}"""\n    return 1') == expected


def test_passages_are_cut_at_500_characters(tmp_path):
    body = "\n".join(f"    a{i} = 1" for i in range(200))
    ((_, passage),) = pairs(tmp_path, f'def f():\n    """{DOC}"""\n{body}')
    whole = f"def f():\n{body}"
    assert PASSAGE_CHARACTERS == 500
    assert passage == whole[:500].rstrip()


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("One two. Three.", "One two."),
        ("Is it?\nYes.", "Is it?"),
        ("No end\n\nbut a paragraph.", "No end"),
        ("  spread\n   over\tlines", "spread over lines"),
        ("Version 3.11 is one! word", "Version 3.11 is one!"),
        ("", ""),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_a_form_feed_or_line_separator_does_not_shift_the_lines(tmp_path):
    source = f'# page\n\x0c\nx = "a\x0bb\u2028c"\ndef f():\n    """{DOC}"""\n    return 1\n\x0c\ny = 2\n'
    assert pairs(tmp_path, source.encode()) == [(DOC, "def f():\n    return 1")]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path, newline, start):
    source = start + newline.join([b"def f():", b'    """' + DOC.encode() + b'"""', b"    return 1", b""])
    assert pairs(tmp_path, source) == [(DOC, "def f():\n    return 1")]


def test_files_that_do_not_parse_are_passed_over(tmp_path):
    for i, source in enumerate(
        [
            b"def f(:",
            b"\xff\xfe",
            b"x = '\x00'",
            b"print 'old'",
            b"(" * 5000,
            b"-" * 200_000 + b"1",
            b"x" + b".x" * 100_000,
        ]
    ):
        (tmp_path / f"bad{i}.py").write_bytes(source)
    (tmp_path / "folder.py").mkdir()
    assert pairs(tmp_path, f'def f():\n    """{DOC}"""\n    return 1') == [(DOC, "def f():\n    return 1")]


def test_a_docstring_that_utf8_cannot_hold_is_passed_over(tmp_path):
    assert pairs(tmp_path, f'def f():\n    """{DOC[:-1]} \\ud800."""\n    return 1') == []


def test_tests_and_installed_packages_are_no_library(tmp_path):
    source = f'def f():\n    """{DOC}"""\n    return 1'
    for name in ("test/a.py", "pkg/tests/b.py", "site-packages/c.py", "idlelib/d.py", "e.txt"):
        assert pairs(tmp_path, source, name) == []
    assert len(pairs(tmp_path, source, "pkg/testing/a.py")) == 1


def test_a_pair_is_given_once_and_in_path_order(tmp_path):
    source = 'def f():\n    """{}"""\n    return 1'
    pairs(tmp_path, source.format(DOC), "b.py")
    pairs(tmp_path, source.format(DOC), "c.py")
    found = pairs(tmp_path, source.format("Return another number."), "a.py")
    assert [query for query, _ in found] == ["Return another number.", DOC]


def test_a_missing_folder_or_package_is_named(tmp_path):
    with pytest.raises(MissingError, match="root: expected a folder"):
        docstring_pairs(tmp_path / "absent")
    for name in ("no-such-package-of-pairs", ""):
        with pytest.raises(MissingError, match=f"package '{name}' is not installed"):
            package_pairs(name)


def test_an_installed_package():
    found = package_pairs("pytest")
    assert len(found) > 50 and len(set(found)) == len(found)
    assert all(pair.task == "asym" and len(pair.positive) <= PASSAGE_CHARACTERS for pair in found)


def test_the_standard_library_holds_out_what_it_does_not_train_on(library_pairs):
    found = list(library_pairs)
    assert len(found) > 4000
    for pair in found:
        assert QUERY_CHARACTERS[0] <= len(pair.query) <= QUERY_CHARACTERS[1]
        assert pair.positive.startswith(("def ", "async def ")) and len(pair.positive) <= PASSAGE_CHARACTERS
    train, held = hold_out(found)
    assert len(held) == 500 and (train, held) == hold_out(found)
    assert {pair.query for pair in train}.isdisjoint(pair.query for pair in held)
    assert {pair.positive for pair in train}.isdisjoint(pair.positive for pair in held)
    assert set(train) | set(held) <= set(found) and len(train) > len(found) - 700


examples = st.builds(Example, st.sampled_from("abcdef"), st.sampled_from("uvwxyz"))


@settings(deadline=None)
@given(st.lists(examples, max_size=30), st.integers(-1, 30), st.integers(0, 5))
def test_hold_out_is_disjoint_and_drops_no_more_than_it_must(found, held_out, seed):
    if not 0 <= held_out < len(found):
        with pytest.raises(InputError, match="expected"):
            hold_out(found, held_out, seed)
        return
    train, held = hold_out(found, held_out, seed)
    assert len(held) == held_out
    queries, passages = {pair.query for pair in held}, {pair.positive for pair in held}
    assert all(pair.query not in queries and pair.positive not in passages for pair in train)
    kept = [pair for pair in found if pair.query not in queries and pair.positive not in passages]
    assert sorted(map(str, train)) == sorted(map(str, kept))


def test_without_keeps_the_order():
    found = [Example(query, passage) for query, passage in ("au", "bv", "cw", "dv")]
    assert without(found, iter([Example("c", "v")])) == [found[0]]


lines = st.sampled_from(
    [
        "def f():",
        "  '''Return the number of things.",
        "    x = 1; '''",
        "    def g(): '''a'''; y",
        "async def h(a,",
        "b):",
        "\x0c",
        "  '''",
        "  return\\",
        "class C:",
        "@d",
        "    pass",
        "é = '是'",
        "if 1:",
        "        async def k(): ...",
        "\t1",
    ]
)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda s: s.encode("utf-8", "replace")))
def test_no_file_crashes_it(tmp_path_factory, content):
    check_pairs(tmp_path_factory.getbasetemp() / "any", content)


@settings(deadline=None)
@given(st.lists(lines, max_size=12).map("\n".join))
def test_no_mixture_of_python_lines_crashes_it(tmp_path_factory, source):
    check_pairs(tmp_path_factory.getbasetemp() / "mixed", source.encode())


def check_pairs(folder: Path, content: bytes) -> None:
    for query, passage in pairs(folder, content):
        assert text_id(query) and text_id(passage)
        assert query in " ".join(ast.unparse(ast.parse(content)).split()) or "\\" in content.decode()


def test_every_passage_has_a_name_of_its_own():
    root = Path(os.__file__).parent / "asyncio"
    names = docstring_names(root)
    assert list(names) == list(dict.fromkeys(pair.positive for pair in docstring_pairs(root)))
    assert len(set(names.values())) == len(names)
    (put,) = (passage for passage, name in names.items() if name == "queues.Queue.put")
    assert put.startswith("async def put(")


def test_names_are_of_modules_classes_and_functions_and_tell_equals_apart(tmp_path):
    function = '''
def outer():
    """Twenty characters at least, of which this is more."""
    return {}

    class Inner:
        def method(self):
            """Twenty characters at least, of which this is more."""
            return {}
'''
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(function.format(1, 2) + function.format(3, 2))
    assert sorted(docstring_names(tmp_path).values()) == [
        "package.outer",
        "package.outer#2",
        "package.outer.Inner.method",
    ]


def test_a_signature_is_the_source_up_to_the_docstring(tmp_path: Path) -> None:
    (tmp_path / "package.py").write_text(
        'class Files:\n    @cached\n    def load(\n        self, path="a:b"\n    ) -> dict:\n'
        f'        """{DOC}"""\n        return {{}}\n'
    )
    (function,) = functions(tmp_path)
    assert function.signature == 'def load(\n    self, path="a:b"\n) -> dict:'
    assert function.code == f"{function.signature}\n    return {{}}"
    assert function.documented == f"package.Files.load\n{function.signature}\n{DOC}"


def test_what_documents_a_function_is_cut_and_can_be_written():
    long = "x" * DOCUMENTED_CHARACTERS
    function = Function("json.load", f"Half of a pair: \ud800. {long}", f"def load({long}):", "def load(fp): ...")
    name, signature, docstring = function.documented.split("\n")
    assert (
        name == function.name
        and signature.startswith("def load(xxx")
        and docstring.startswith("Half of a pair: ?. xxx")
    )
    assert len(signature) == len(docstring) == DOCUMENTED_CHARACTERS
    assert function.documented.encode()
