"""The one reader of YAML takes what JSON could say, and nothing twice."""

import pytest

from d2llm.errors import FormatError
from d2llm.plain_yaml import parse_yaml

#: Ten lists of ten aliases each, one in another: 430 bytes that mean ten thousand million texts.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


def test_kinds_of_values() -> None:
    text = "a: [1, 2.5, true, null, x]\nb: {c: 2001-99-99, d: 2001-01-01}\n'1': =\n<<: {}\n"
    values = {"a": [1, 2.5, True, None, "x"], "b": {"c": "2001-99-99", "d": "2001-01-01"}, "1": "=", "<<": {}}
    assert parse_yaml(text, "here") == values
    assert parse_yaml("yes: no\nn: [1, 2001-01-01]", "here", texts=True) == {"yes": "no", "n": ["1", "2001-01-01"]}


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x 1\nb: *x", "found an alias"),
        (BOMB, "found an alias"),
        ("a: 1\nb: {c: 1, c: 2}", "found 'c' twice"),
        ("{[a]: 1}", "expected a text as name"),
        ("[" * 1000, "recursion"),
        ("[" * 100_000, "recursion"),
        ("a: [1", "expected"),
        ("a: \0", "special characters"),
    ],
)
def test_what_is_refused(text: str, problem: str, texts: bool) -> None:
    with pytest.raises(FormatError, match=f"(?s)here: not valid YAML .*{problem}"):
        parse_yaml(text, "here", texts=texts)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("9" * 5000, "4300"),
        ("0x1" + "0" * 16, "at most 64 bits"),
        ("1: 2", "expected a text as name"),
        ("!!binary aGk=", "could not determine a constructor"),
        ("!!set {a, b}", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_what_json_could_not_say_is_refused(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=f"(?s)here: not valid YAML .*{problem}"):
        parse_yaml(text, "here")
